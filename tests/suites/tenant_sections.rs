//! `[[tenant]]` sections: what commands read from them, and how a node handles mistakes in them.

use std::fs;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use presence_tests::client::{Client, now_ms};
use presence_tests::host::{self, Host};
use presence_tests::nats::NatsServer;
use presence_tests::site::Site;
use presence_tests::{component, wait};
use serde_json::{Value, json};
use toml::{Table, toml};

use crate::inputs::{self, CONNECT};
use crate::store::{run_err, run_ok};
use crate::tenants::{status, tenant, until_states, with};

fn all_output(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn commands_go_by_the_section_of_the_tenant_that_is_meant() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let keygen = |name: &str| -> Result<String> {
        let mut command = presence_tests::kit::plugin_command(folder.path())?;
        let printed = String::from_utf8(command.args(["keygen", name]).output()?.stdout)?;
        let (_, rest) = printed.split_once("[\"").context(printed.clone())?;
        Ok(rest.split_once("\"]").context(printed.clone())?.0.into())
    };
    let keys = [keygen("a.key")?, keygen("b.key")?];
    let [acme, beta] = ["acme", "beta"].map(tenant);
    let key = |key: &String| toml::Value::from(vec![key.clone()]);
    let trusting = |tenant: Table, of: &String| {
        let plugins = Table::from_iter([("trusted_keys".to_owned(), key(of))]);
        with(tenant, "plugins", plugins)
    };
    let beta = with(beta, "tracker", toml! { timeout_ms = 12345 });
    let site = Site::new("nats://127.0.0.1:1")?.with(
        "tenant",
        vec![trusting(acme, &keys[0]), trusting(beta, &keys[1])],
    )?;
    let signed = site.path().join("signed.wasm");
    fs::write(&signed, component::load("public")?)?;
    let mut sign = presence_tests::kit::plugin_command(folder.path())?;
    let sign = sign.arg("sign").arg(&signed).args(["--key", "b.key"]);
    ensure!(sign.output()?.status.success());
    let file = signed.to_str().context("a path")?;
    let verified = run_ok(&site, &["plugin", "verify", file, "--tenant", "beta"])?;
    ensure!(verified.contains(&keys[1]), "{verified}");
    let refused = run_err(&site, &["plugin", "verify", file, "--tenant", "acme"])?;
    ensure!(
        refused.contains("not signed with a trusted key"),
        "{refused}"
    );

    let printed = run_ok(&site, &["config", "--tenant", "beta", "--json"])?;
    let printed: Value = serde_json::from_str(&printed)?;
    let settings = printed["settings"].as_array().context("settings")?;
    let timeout = settings.iter().find(|it| it["key"] == "tracker.timeout_ms");
    assert_eq!(timeout.context("it")?["value"], 12_345);
    for args in [
        &["config"][..],
        &["check"],
        &["plugin", "verify", file],
        &["plugins", "logs", "quiet"],
        &["query", "a", "b"],
    ] {
        let args = [args, &["--tenant", "nosuch"]].concat();
        let refused = run_err(&site, &args)?;
        let says = "there is no tenant `nosuch` in the configuration: acme, beta";
        ensure!(refused.contains(says), "{args:?}: {refused}");
    }
    Ok(())
}

#[tokio::test]
async fn the_pipeline_and_the_lines_of_a_tenant_are_its_own() -> Result<()> {
    let server = NatsServer::start().await?;
    let one = |name: &str, plugin: &str| {
        let stage = toml::Value::from(vec![toml! { plugin = "public" grants = ["widen"] }]);
        let mut tenant = with(tenant(name), "pipeline", stage);
        tenant["pipeline"][0]["plugin"] = plugin.into();
        tenant
    };
    let site = Site::new(&server.url())?
        .with("plugins.source", "store")?
        .with(
            "tenant",
            vec![one("acme", "public"), one("beta", "contacts")],
        )?;
    let host = Host::start(&site).await?;
    let file = site.config_path();
    let file = file.to_str().context("a path")?;
    let apply = ["pipeline", "apply", file, "--tenant", "acme", "--yes"];
    let applied = host::run(&site, &apply)?;
    ensure!(applied.status.success(), "{}", all_output(&applied));
    let shown = run_ok(&site, &["pipeline", "show", "--tenant", "acme"])?;
    ensure!(
        shown.contains("public") && !shown.contains("contacts"),
        "{shown}"
    );
    let differs = run_ok(&site, &["pipeline", "diff", file, "--tenant", "acme"])?;
    ensure!(differs.contains("nothing changes"), "{differs}");
    run_ok(&site, &["plugins", "logs", "public", "--tenant", "acme"])?;
    host.stop().await
}

#[tokio::test]
async fn a_mistyped_name_ends_nobody() -> Result<()> {
    let server = NatsServer::start().await?;
    let both = vec![tenant("acme"), tenant("beta")];
    let mut site = Site::new(&server.url())?.with("tenant", both.clone())?;
    let mut host = Host::start(&site).await?;
    until_states(&site, &[("acme", "serving"), ("beta", "serving")]).await?;
    let from = host.log_len();
    site.set("tenant", vec![tenant("ac me"), tenant("beta")])?;
    let words = ["acme", "it goes on as it was until each section has a name"];
    host.wait_for_log(from, &words).await?;
    let serving = |status: &Value| -> Vec<String> {
        let tenants = status["tenants"].as_array().into_iter().flatten();
        let serving = tenants.filter(|it| it["state"] == "serving");
        serving
            .map(|it| it["tenant"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    assert_eq!(serving(&status(&site).await?), ["acme", "beta"]);
    let listed = run_ok(&site, &["tenants", "list"])?;
    let line = listed.lines().find(|line| line.starts_with("acme"));
    ensure!(
        line.is_some_and(|it| it.contains("no section has this name")),
        "{listed}"
    );
    // Once the section has a name, everything is as before, and nothing is left of the mistake.
    site.set("tenant", both)?;
    until_states(&site, &[("acme", "serving"), ("beta", "serving")]).await?;
    assert_eq!(status(&site).await?["tenants"][0]["notTaken"], Value::Null);
    // A tenant whose section is removed ends.
    site.set("tenant", vec![tenant("beta")])?;
    until_states(&site, &[("beta", "serving")]).await?;
    host.stop().await
}

#[tokio::test]
async fn a_tenant_goes_on_as_it_was_while_two_sections_have_its_name() -> Result<()> {
    let server = NatsServer::start().await?;
    let mut site = Site::new(&server.url())?.with("tenant", vec![tenant("acme")])?;
    let mut host = Host::start(&site).await?;
    let client = Client::connect(&server.url()).await?;
    let connect = inputs::connect("12345", "c1", now_ms());
    client.input(&format!("acme.{CONNECT}"), connect).await?;
    let question = json!({"viewerId": "67890", "userIds": ["12345"]}).to_string();
    let status_of_user = async || -> Result<Value> {
        let answer = client.request("acme.presence.query", &*question).await?;
        Ok(answer["users"][0]["status"].clone())
    };
    assert_eq!(status_of_user().await?, "online");
    let from = host.log_len();
    let other = with(tenant("acme"), "prefix", "other");
    site.set("tenant", vec![other, tenant("acme")])?;
    let file = fs::read_to_string(site.config_path())?;
    let lines = file.lines().zip(1..);
    let lines = lines.filter(|(line, _)| *line == "[[tenant]]");
    let places: Vec<_> = lines
        .map(|(_, line)| format!("presence.toml:{line}"))
        .collect();
    let words = ["2 sections have this name, at", &*places[0], &*places[1]];
    host.wait_for_log(from, &words).await?;
    let told = status(&site).await?;
    let acme = &told["tenants"][0];
    assert_eq!(acme["prefix"], "acme", "{acme}");
    let why = acme["notTaken"].as_str().unwrap_or_default();
    ensure!(places.iter().all(|place| why.contains(place)), "{acme}");
    assert_eq!(status_of_user().await?, "online");
    // Nothing is left of it once only one section has the name.
    site.set("tenant", vec![tenant("acme")])?;
    until_states(&site, &[("acme", "serving")]).await?;
    assert_eq!(status(&site).await?["tenants"][0]["notTaken"], Value::Null);
    assert_eq!(status_of_user().await?, "online");
    host.stop().await
}

#[tokio::test]
async fn nothing_is_told_of_sections_that_are_gone_and_one_that_pauses_pauses() -> Result<()> {
    let server = NatsServer::start().await?;
    let acme = || tenant("acme");
    let mut site = Site::new(&server.url())?.with("tenant", vec![acme(), acme(), acme()])?;
    let host = Host::start(&site).await?;
    wait::until("three tenants", async || {
        let status = status(&site).await?;
        let tenants = status["tenants"].as_array().map_or(0, Vec::len);
        Ok((tenants == 3).then_some(()))
    })
    .await?;
    site.set("tenant", vec![acme()])?;
    until_states(&site, &[("acme", "serving")]).await?;
    let refused = ["state=\"refused\""];
    let count = host.metric("presence_tenants", &refused).await?;
    assert!(count < 0.1, "{count}");
    // The tenant's status also says why a new pipeline is not in force.
    let wrong = with(acme(), "pipeline", vec![toml! { plugin = "nowhere" }]);
    site.set("tenant", vec![wrong])?;
    wait::until("`tenants list` to say why", async || {
        let listed = run_ok(&site, &["tenants", "list"])?;
        let says = listed.contains("its pipeline is not in force: ") && listed.contains("nowhere");
        Ok(says.then_some(()))
    })
    .await?;
    // The tenant is paused, whatever else is wrong in its section.
    let wrong = with(acme(), "tracker", toml! { timeout_ms = "soon" });
    site.set("tenant", vec![with(wrong, "paused", true)])?;
    until_states(&site, &[("acme", "paused")]).await?;
    let listed = run_ok(&site, &["tenants", "list"])?;
    ensure!(listed.contains("`timeout_ms`"), "{listed}");
    host.stop().await
}

#[tokio::test]
async fn what_was_logged_ends_with_the_tenant() -> Result<()> {
    let server = NatsServer::start().await?;
    let one = |name: &str| {
        let stages = vec![toml! { plugin = "contacts" }, toml! { plugin = "chatty" }];
        with(with(tenant(name), "prefix", "p"), "pipeline", stages)
    };
    let mut site = Site::new(&server.url())?.with("tenant", vec![one("old")])?;
    site.write_plugin("chatty", component::load("fixtures/chatty")?)?;
    let host = Host::start(&site).await?;
    let client = Client::connect(&server.url()).await?;
    let connect = inputs::connect("12345", "c1", now_ms());
    client.input(&format!("p.{CONNECT}"), connect).await?;
    let logged = |name: &'static str| ["plugins", "logs", "chatty", "--tenant", name];
    wait::until("lines of the plugin", async || {
        Ok((!run_ok(&site, &logged("old"))?.is_empty()).then_some(()))
    })
    .await?;
    site.set("tenant", vec![one("new")])?;
    until_states(&site, &[("new", "serving")]).await?;
    let question = json!({"viewerId": "67890", "userIds": ["12345"]});
    client
        .request("p.presence.query", question.to_string())
        .await?;
    assert_eq!(run_ok(&site, &logged("new"))?, "");
    host.stop().await
}
