//! Tenants in the store: added, changed, paused and removed while a node runs, without affecting
//! the others.

use std::fs;
use std::process::Output;

use anyhow::{Context, Result, anyhow};
use futures_util::TryStreamExt as _;
use presence_tests::client::{Client, now_ms};
use presence_tests::host::{self, Host};
use presence_tests::nats::{NatsServer, Options};
use presence_tests::site::Site;
use presence_tests::{http, wait};
use serde_json::{Value, json};
use toml::Table;

use crate::{inputs, permissions};

/// A node with the tenant `acme` in its file, and further tenants from the store. Each has the
/// folder's pipeline.
pub(crate) async fn node() -> Result<(Host, Site, NatsServer)> {
    let server = NatsServer::start().await?;
    let site = site(&server)?;
    let host = Host::start(&site).await?;
    Ok((host, site, server))
}

pub(crate) fn site(server: &NatsServer) -> Result<Site> {
    let mut acme = Table::new();
    acme.insert("name".into(), "acme".into());
    acme.insert("plugins".into(), folder().into());
    Site::new(&server.url())?
        .with("state.dir", "state")?
        .with("plugins.source", "store")?
        .with("tenant", vec![acme])
}

fn folder() -> Table {
    let mut plugins = Table::new();
    plugins.insert("source".into(), "folder".into());
    plugins
}

/// A section of a tenant, with more in it.
pub(crate) fn section(name: &str, more: &str) -> String {
    format!("[[tenant]]\nname = '{name}'\n{more}\n[tenant.plugins]\nsource = 'folder'\n")
}

pub(crate) fn apply(site: &Site, text: &str) -> Result<Output> {
    let file = site.path().join("tenants.toml");
    fs::write(&file, text)?;
    let file = file.to_string_lossy().into_owned();
    host::run(
        site,
        &["tenants", "apply", &file, "--why", "a test", "--yes"],
    )
}

/// The output of a command that has succeeded.
pub(crate) fn done(output: Output) -> Result<String> {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(
        output.status.code() == Some(0),
        "{:?}: {errors}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Why a command failed.
pub(crate) fn failed(output: &Output) -> Result<String> {
    anyhow::ensure!(output.status.code() == Some(1), "{:?}", output.status);
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

pub(crate) fn change(site: &Site, command: &str, name: &str) -> Result<String> {
    done(host::run(site, &["tenants", command, name, "--yes"])?)
}

async fn states(site: &Site) -> Result<Vec<(String, String)>> {
    let status = http::get(site.http_port(), "/status").await?.body;
    let status: Value = serde_json::from_str(&status)?;
    let tenants = status["tenants"].as_array().context("tenants")?;
    let word = |it: &Value, key: &str| it[key].as_str().unwrap_or_default().to_owned();
    let states = tenants
        .iter()
        .map(|it| (word(it, "tenant"), word(it, "state")));
    Ok(states.collect())
}

pub(crate) async fn until_states(site: &Site, expected: &[(&str, &str)]) -> Result<()> {
    let expected: Vec<_> = expected
        .iter()
        .map(|(name, state)| ((*name).to_owned(), (*state).to_owned()))
        .collect();
    wait::until("the tenants' states", async || {
        Ok((states(site).await? == expected).then_some(()))
    })
    .await
}

/// Takes a user online, and waits until a viewer is told.
async fn come_online(client: &Client, prefix: &str) -> Result<()> {
    let mut tape = client
        .record(&format!("{prefix}.presence.filtered.user_online"))
        .await?;
    let body = inputs::connect("12345", "c1", now_ms());
    client
        .input(&format!("{prefix}.presence.connect"), body)
        .await?;
    tape.next("the filtered online", |_| true).await.map(drop)
}

/// How often a tenant has been started.
fn starts(host: &Host, name: &str) -> usize {
    let log = host.process.stderr();
    let words = format!("tenant{{name=\"{name}\"}}: ready node=");
    log.iter().filter(|line| line.contains(&words)).count()
}

#[tokio::test]
async fn tenants_come_change_rest_and_go_without_the_others() -> Result<()> {
    let (host, site, server) = node().await?;
    let client = Client::connect(&server.url()).await?;
    let printed = done(apply(&site, &section("beta", ""))?)?;
    assert!(
        printed.contains("+name = 'beta'") && printed.contains("beta serving"),
        "{printed}"
    );
    come_online(&client, "beta").await?;
    let both = format!(
        "{}{}",
        section("beta", "prefix = 'b'"),
        section("gamma", "")
    );
    let printed = done(apply(&site, &both)?)?;
    assert!(
        printed.contains("beta serving") && printed.contains("gamma serving"),
        "{printed}"
    );
    come_online(&client, "b").await?;
    come_online(&client, "gamma").await?;
    let printed = done(apply(&site, &both)?)?;
    assert!(printed.contains("nothing changes"), "{printed}");

    let printed = change(&site, "pause", "gamma")?;
    assert!(printed.contains("gamma paused"), "{printed}");
    // A paused tenant stays paused when it is changed.
    let changed = section("gamma", "prefix = 'g'");
    assert!(done(apply(&site, &changed)?)?.contains("gamma paused"));
    until_states(
        &site,
        &[
            ("acme", "serving"),
            ("beta", "serving"),
            ("gamma", "paused"),
        ],
    )
    .await?;
    assert!(change(&site, "resume", "gamma")?.contains("gamma serving"));
    come_online(&client, "g").await?;
    let printed = change(&site, "remove", "gamma")?;
    assert!(printed.contains("gamma removed"), "{printed}");
    until_states(&site, &[("acme", "serving"), ("beta", "serving")]).await?;
    assert_eq!(starts(&host, "acme"), 1, "the others aren't disturbed");
    assert_eq!(starts(&host, "beta"), 2, "its prefix has changed once");
    host.stop().await
}

#[tokio::test]
async fn what_a_node_refuses_is_not_written_and_the_reason_is_said() -> Result<()> {
    let (host, site, server) = node().await?;
    for (text, reason) in [
        (
            section("beta", "prefix = 'acme'"),
            "would have the subjects of `acme`",
        ),
        (section("beta", "shards = 'many'"), "shards"),
        (section("beta", "more = 1"), "presence-tenants.beta:3:"),
        (section("acme", ""), "the tenant `acme` is there already"),
        (
            format!(
                "{}[[tenant.pipeline]]\nplugin = 'missing'\n",
                section("beta", "")
            ),
            "missing",
        ),
    ] {
        let why = failed(&apply(&site, &text)?)?;
        assert!(
            why.contains(reason) && why.contains("nothing was written"),
            "{why}"
        );
    }
    let why = failed(&apply(&site, "[http]\nlisten = ''\n")?)?;
    assert!(
        why.contains("has `http` beside [[tenant]] sections"),
        "{why}"
    );
    for command in ["pause", "resume", "remove"] {
        let why = failed(&host::run(&site, &["tenants", command, "acme", "--yes"])?)?;
        assert!(
            why.contains("in the configuration file, and not in the store"),
            "{why}"
        );
        let why = failed(&host::run(&site, &["tenants", command, "nobody", "--yes"])?)?;
        assert!(why.contains("there is no tenant `nobody`"), "{why}");
    }
    let unasked = host::run(&site, &["tenants", "apply", "tenants.toml"])?;
    assert_eq!(
        unasked.status.code(),
        Some(1),
        "there is no terminal to ask on"
    );
    until_states(&site, &[("acme", "serving")]).await?;
    // The node refuses what others write into the bucket, and no tenant is disturbed.
    done(apply(&site, &section("beta", ""))?)?;
    let nats = async_nats::connect(server.url()).await?;
    let bucket = async_nats::jetstream::new(nats);
    let bucket = bucket.get_key_value("presence-tenants").await?;
    let twin = json!({"section": section("twin", "prefix = 'beta'")}).to_string();
    bucket.put("twin", twin.into()).await?;
    bucket.put("junk", "no tenant".into()).await?;
    let states = [
        ("acme", "serving"),
        ("beta", "serving"),
        ("junk", "refused"),
        ("twin", "refused"),
    ];
    until_states(&site, &states).await?;
    host.until_metric("presence_tenants", &["state=\"refused\""], |it| it > 1.5)
        .await?;
    let listed = done(host::run(&site, &["tenants", "list"])?)?;
    assert!(
        listed.contains("would have the subjects of `beta`"),
        "{listed}"
    );
    assert!(listed.contains("it is no tenant"), "{listed}");
    assert_eq!(starts(&host, "beta"), 1);
    host.stop().await
}

#[tokio::test]
async fn a_node_that_starts_without_the_store_serves_the_tenants_that_it_knew() -> Result<()> {
    let (host, site, server) = node().await?;
    done(apply(&site, &section("beta", ""))?)?;
    host.stop().await?;
    // This has the same effect as if JetStream were away.
    let nats = async_nats::connect(server.url()).await?;
    let bucket = async_nats::jetstream::new(nats);
    bucket.delete_stream("KV_presence-tenants").await?;
    let other = async_nats::jetstream::stream::Config {
        name: "KV_presence-tenants".into(),
        subjects: vec!["others".into()],
        ..Default::default()
    };
    bucket.create_stream(other).await?;
    let mut host = Host::start(&site).await?;
    host.wait_for_log(0, &["can't be read", "was not made by presence"])
        .await?;
    until_states(&site, &[("acme", "serving"), ("beta", "serving")]).await?;
    come_online(&Client::connect(&server.url()).await?, "beta").await?;
    let why = failed(&apply(&site, &section("beta", "prefix = 'b'"))?)?;
    assert!(why.contains("was not made by presence"), "{why}");
    host.stop().await
}

#[tokio::test]
async fn a_bucket_that_is_lost_ends_no_tenant_and_one_made_anew_is_read() -> Result<()> {
    let (host, site, server) = node().await?;
    done(apply(&site, &section("beta", ""))?)?;
    let nats = async_nats::connect(server.url()).await?;
    let bucket = async_nats::jetstream::new(nats);
    bucket.delete_stream("KV_presence-tenants").await?;
    host.stop().await?;
    let mut host = Host::start(&site).await?;
    host.wait_for_log(0, &["the bucket `presence-tenants` is gone"])
        .await?;
    until_states(&site, &[("acme", "serving"), ("beta", "serving")]).await?;
    // The new bucket's first place is the same as the last one that was read of the bucket before
    // it.
    let applied = done(apply(&site, &section("gamma", ""))?)?;
    assert!(applied.contains("gamma serving"), "{applied}");
    let three = [
        ("acme", "serving"),
        ("beta", "serving"),
        ("gamma", "serving"),
    ];
    until_states(&site, &three).await?;
    let lacks = ["the bucket `presence-tenants` lacks tenants", "end: beta"];
    host.wait_for_log(0, &lacks).await?;
    // Nothing was written, so the bucket's place is the same.
    let stream = bucket.get_stream("KV_presence-tenants").await?;
    stream.purge().await?;
    let both = ["the bucket `presence-tenants` lacks", "end: beta, gamma"];
    host.wait_for_log(0, &both).await?;
    let why = failed(&host::run(&site, &["tenants", "remove", "beta", "--yes"])?)?;
    assert!(why.contains("apply its section again"), "{why}");
    bucket.delete_stream("KV_presence-tenants").await?;
    let applied = done(apply(&site, &section("delta", ""))?)?;
    assert!(applied.contains("delta serving"), "{applied}");
    host.stop().await?;
    let mut host = Host::start(&site).await?;
    let again = ["the bucket `presence-tenants` lacks", "end: beta, gamma"];
    host.wait_for_log(0, &again).await?;
    let four = [
        ("acme", "serving"),
        ("beta", "serving"),
        ("delta", "serving"),
        ("gamma", "serving"),
    ];
    until_states(&site, &four).await?;
    host.stop().await
}

/// The keys of the bucket.
async fn stored(server: &NatsServer) -> Result<Vec<String>> {
    let nats = async_nats::connect(server.url()).await?;
    let bucket = async_nats::jetstream::new(nats);
    let bucket = bucket.get_key_value("presence-tenants").await?;
    let mut keys: Vec<_> = bucket.keys().await?.try_collect().await?;
    keys.sort();
    Ok(keys)
}

#[tokio::test]
async fn of_two_operators_who_want_the_same_subjects_at_once_one_is_refused() -> Result<()> {
    let (host, site, server) = node().await?;
    let mut expected = Vec::new();
    for round in 0..4 {
        let names = ["a", "b"].map(|it| format!("{it}{round}"));
        let apply = |name: &String| {
            let file = site.path().join(format!("{name}.toml"));
            fs::write(&file, section(name, &format!("prefix = 'p{round}'")))?;
            let file = file.to_string_lossy().into_owned();
            host::run(&site, &["tenants", "apply", &file, "--yes"])
        };
        let [one, other] = std::thread::scope(|scope| {
            let threads = names
                .each_ref()
                .map(|name| scope.spawn(move || apply(name)));
            threads.map(|it| it.join().map_err(|_| anyhow!("a panic")).flatten())
        });
        let outputs = [one?, other?];
        let winner = outputs.iter().position(|it| it.status.success());
        let winner = winner.context("one of them is written")?;
        let why = failed(&outputs[1 - winner])?;
        let says = format!("would have the subjects of `{}`", names[winner]);
        assert!(
            why.contains(&says) && why.contains("nothing was written"),
            "{why}"
        );
        expected.push(names[winner].clone());
        expected.sort();
        assert_eq!(stored(&server).await?, expected);
    }
    host.stop().await
}

#[tokio::test]
async fn operators_who_change_different_tenants_at_once_are_both_done() -> Result<()> {
    let (host, site, server) = node().await?;
    let names = ["a", "b", "c"].map(str::to_owned);
    let apply = |name: &String| {
        let file = site.path().join(format!("{name}.toml"));
        fs::write(&file, section(name, ""))?;
        let file = file.to_string_lossy().into_owned();
        host::run(&site, &["tenants", "apply", &file, "--yes"])
    };
    let outputs = std::thread::scope(|scope| {
        let threads = names
            .each_ref()
            .map(|name| scope.spawn(move || apply(name)));
        threads.map(|it| it.join().map_err(|_| anyhow!("a panic")).flatten())
    });
    for output in outputs {
        done(output?)?;
    }
    assert_eq!(stored(&server).await?, names);
    host.stop().await
}

#[tokio::test]
async fn who_had_subjects_has_them_after_a_restart() -> Result<()> {
    let (host, site, server) = node().await?;
    done(apply(&site, &section("zeta", "prefix = 'p'"))?)?;
    // Others can write what no command writes. By its name, this tenant would be the first.
    let nats = async_nats::connect(server.url()).await?;
    let bucket = async_nats::jetstream::new(nats);
    let bucket = bucket.get_key_value("presence-tenants").await?;
    let twin = json!({"section": section("eps", "prefix = 'p'")}).to_string();
    bucket.put("eps", twin.into()).await?;
    let states = [("acme", "serving"), ("eps", "refused"), ("zeta", "serving")];
    until_states(&site, &states).await?;
    // Now its entry is newer than the other's.
    change(&site, "pause", "zeta")?;
    change(&site, "resume", "zeta")?;
    until_states(&site, &states).await?;
    host.stop().await?;
    let host = Host::start(&site).await?;
    until_states(&site, &states).await?;
    assert_eq!(starts(&host, "eps"), 0);
    host.stop().await
}

#[tokio::test]
async fn what_is_no_tenant_can_be_removed() -> Result<()> {
    let (host, site, server) = node().await?;
    done(apply(&site, &section("beta", ""))?)?;
    let nats = async_nats::connect(server.url()).await?;
    let context = async_nats::jetstream::new(nats);
    for key in ["junk", "a.b", "esc\u{1b}"] {
        let subject = format!("$KV.presence-tenants.{key}");
        context.publish(subject, "no tenant".into()).await?.await?;
        wait::until("it to be refused", async || {
            let states = states(&site).await?;
            Ok(states
                .iter()
                .any(|(_, state)| state == "refused")
                .then_some(()))
        })
        .await?;
        assert!(change(&site, "remove", key)?.contains("removed"));
        until_states(&site, &[("acme", "serving"), ("beta", "serving")]).await?;
    }
    host.stop().await
}

/// Waits until the file's tenant is in a state, the store's tenant with the same name is refused,
/// and `beta` serves.
async fn until_acme(site: &Site, state: &str) -> Result<()> {
    wait::until("the tenants' states", async || {
        let states = states(site).await?;
        let is = |at: usize, name: &str, expected: &str| {
            let found = states.get(at);
            found.is_some_and(|(it, state)| it.starts_with(name) && state == expected)
        };
        let is_so = is(0, "acme", state) && is(1, "acme (", "refused") && is(2, "beta", "serving");
        Ok(is_so.then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_key_with_the_name_of_a_tenant_of_the_file_changes_nothing_of_it() -> Result<()> {
    let (host, mut site, server) = node().await?;
    done(apply(&site, &section("beta", ""))?)?;
    let nats = async_nats::connect(server.url()).await?;
    let context = async_nats::jetstream::new(nats);
    let others = json!({"section": section("acme", "prefix = 'other'")}).to_string();
    let written = context.publish("$KV.presence-tenants.acme", others.into());
    written.await?.await?;
    until_acme(&site, "serving").await?;
    // The file's own section is still followed.
    let acme = |key: &str, value: toml::Value| {
        let mut acme = Table::new();
        acme.insert("name".into(), "acme".into());
        acme.insert("plugins".into(), folder().into());
        acme.insert(key.into(), value);
        vec![acme]
    };
    site.set("tenant", acme("prefix", "new".into()))?;
    let client = Client::connect(&server.url()).await?;
    wait::until("the new prefix", async || {
        let shown = done(host::run(&site, &["tenants", "list"])?)?;
        let mut lines = shown.lines();
        Ok(lines
            .any(|it| it.starts_with("acme ") && it.contains(" new "))
            .then_some(()))
    })
    .await?;
    until_acme(&site, "serving").await?;
    come_online(&client, "new").await?;
    site.set("tenant", acme("paused", true.into()))?;
    until_acme(&site, "paused").await?;
    let said = host.process.stderr();
    let said = said
        .iter()
        .filter(|it| it.contains("a tenant does not start"));
    assert_eq!(said.count(), 1, "it is said once");
    host.stop().await
}

#[tokio::test]
async fn tenants_of_the_file_are_changed_in_the_file() -> Result<()> {
    let (host, mut site, _server) = node().await?;
    site.set("plugins.source", "folder")?;
    for args in [
        &["apply", "tenants.toml"][..],
        &["pause", "acme"],
        &["remove", "acme"],
    ] {
        fs::write(site.path().join("tenants.toml"), section("beta", ""))?;
        let file = site
            .path()
            .join("tenants.toml")
            .to_string_lossy()
            .into_owned();
        let mut args: Vec<_> = ["tenants"]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        if args[1] == "apply" {
            args[2] = &file;
        }
        args.push("--yes");
        let why = failed(&host::run(&site, &args)?)?;
        assert!(
            why.contains("tenants are in the configuration file"),
            "{why}"
        );
    }
    host.stop().await
}

#[tokio::test]
async fn the_example_permissions_let_a_node_read_tenants_and_an_operator_change_them() -> Result<()>
{
    // As the guide says for tenants that come later: each subject also with `*.` before it.
    let config = permissions::file()?;
    let mut quoted = config.split('"').enumerate();
    let config = quoted.try_fold(String::new(), |config, (nth, text)| {
        let of_tenants = match nth % 2 == 1 && text.starts_with("presence") {
            true => format!("\"{text}\", \"*.{text}\""),
            false if nth % 2 == 1 => format!("\"{text}\""),
            false => text.to_owned(),
        };
        Ok::<_, anyhow::Error>(config + &of_tenants)
    })?;
    let server = NatsServer::start_with(Options {
        config,
        ..Options::default()
    })
    .await?;
    let of_user = |user: &str| -> Result<Site> {
        permissions::as_user(Site::new(&server.url())?, user)?
            .with("plugins.source", "store")?
            .with("tenant", Vec::<Table>::new())
    };
    let (site, operator) = (of_user("processor")?, of_user("operator")?);
    let host = Host::spawn(&site)?;
    let mut said = String::new();
    let applied = wait::until("the node to take the tenant", async || {
        let applied = done(apply(&operator, &section("beta", ""))?);
        said = applied
            .as_ref()
            .map_or_else(ToString::to_string, Clone::clone);
        Ok(applied.ok())
    });
    applied.await.with_context(|| said)?;
    until_states(&site, &[("beta", "serving")]).await?;
    change(&operator, "pause", "beta")?;
    until_states(&site, &[("beta", "paused")]).await?;
    change(&operator, "resume", "beta")?;
    until_states(&site, &[("beta", "serving")]).await?;
    let metrics = host.metrics().await?;
    assert!(
        metrics.contains("presence_nats_errors_total 0"),
        "{metrics}"
    );
    change(&operator, "remove", "beta")?;
    until_states(&site, &[]).await?;
    host.stop().await
}
