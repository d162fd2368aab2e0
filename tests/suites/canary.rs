//! A canary from the command line: a share of the users is decided on by another plugin, more
//! of them, and then all or none, each step a revision.

use anyhow::{Context, Result, ensure};
use async_nats::jetstream;
use presence_tests::client::now_ms;
use presence_tests::host::Host;
use presence_tests::http;
use presence_tests::nats::NatsServer;
use presence_tests::site::Site;
use presence_tests::{component, host, wait};
use serde_json::Value;

use crate::inputs::{self, CONNECT};
use crate::store::{CONTACTS, apply, bad, empty, good, plugin, push};
use crate::world::World;

/// Who sees 12345, whose place is 4,506, by `contacts`, and by `groups` in its place.
const BY_CONTACT: [&str; 2] = ["11111", "67890"];
const BY_GROUP: [&str; 1] = ["22222"];

/// A node by which contacts see each other, and another plugin of that name in its store.
async fn world(other: &str) -> Result<(World, String)> {
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?;
    let mut world = empty(server, site).await?;
    apply(&world.site, CONTACTS)?;
    world.host.ready().await?;
    let bytes = component::named(&component::load(other)?, "contacts")?;
    let path = plugin(&world.site, "other.wasm", &bytes)?;
    let digest = push(&world.site, &path)?;
    Ok((world, format!("contacts@{digest}")))
}

fn canary(world: &World, named: &str, percent: &str, more: &[&str]) -> Result<String> {
    let args = ["plugins", "canary", named, "--yes", "--percent", percent];
    good(&world.site, &[&args[..], more].concat())
}

async fn status(world: &World) -> Result<Value> {
    let status = http::get(world.site.http_port(), "/status").await?;
    Ok(serde_json::from_str(&status.body)?)
}

#[tokio::test]
async fn a_canary_decides_on_its_share_grows_outlives_a_restart_and_is_promoted() -> Result<()> {
    let (mut world, named) = world("groups").await?;
    world.until_visible_to("12345", &BY_CONTACT).await?;
    let out = canary(&world, &named, "45.06", &[])?;
    ensure!(out.contains("+# canary: contacts@sha256:"), "{out}");
    assert_eq!(world.probe("12345").await?.visible_to(), BY_CONTACT);
    let error = bad(
        &world.site,
        &["plugins", "canary", &named, "--percent", "101", "--yes"],
    )?;
    ensure!(error.contains("`101` is no share of the users"), "{error}");
    canary(&world, &named, "45.07", &["--abort-on", "errors>1%"])?;
    assert_eq!(world.probe("12345").await?.visible_to(), BY_GROUP);
    let beside = &status(&world).await?["serving"]["beside"];
    assert_eq!(
        (&beside["kind"], &beside["percent"]),
        (&"canary".into(), &45.07.into())
    );

    world.host.stop().await?;
    world.host = Host::start(&world.site).await?;
    assert_eq!(world.probe("12345").await?.visible_to(), BY_GROUP);

    good(&world.site, &["plugins", "abort", "--yes"])?;
    assert_eq!(world.probe("12345").await?.visible_to(), BY_CONTACT);
    let error = bad(&world.site, &["plugins", "promote", "--yes"])?;
    ensure!(error.contains("no canary runs"), "{error}");
    canary(&world, &named, "1", &[])?;
    assert_eq!(world.probe("12345").await?.visible_to(), BY_CONTACT);
    good(&world.site, &["plugins", "promote", "--yes"])?;
    assert_eq!(world.probe("12345").await?.visible_to(), BY_GROUP);
    ensure!(status(&world).await?["serving"]["beside"].is_null());
    let history = good(&world.site, &["pipeline", "history"])?;
    for words in [
        ": 45.06 %",
        "from 45.06 % to 45.07 %",
        "abort the canary",
        "promote the canary",
    ] {
        ensure!(history.contains(words), "{words}: {history}");
    }
    world.end().await
}

#[tokio::test]
async fn a_canary_that_breaks_its_rule_is_aborted_with_the_figures_in_the_history() -> Result<()> {
    let (mut world, named) = world("fixtures/trap").await?;
    canary(&world, &named, "100", &["--abort-on", "errors>10%"])?;
    for user in 0..30 {
        let user = format!("user-{user}");
        let connect = inputs::connect(&user, "c", now_ms());
        world.client.input(CONNECT, connect).await?;
    }
    let client = async_nats::connect(world.server.url()).await?;
    let bucket = jetstream::new(client)
        .get_key_value("presence-pipeline")
        .await?;
    let aborted = wait::until("the abort to be written", async || {
        Ok(bucket.get("revision.3").await?)
    });
    let aborted: Value = serde_json::from_slice(&aborted.await?)?;
    assert_eq!(aborted["candidate"], Value::Null);
    let why = aborted["why"].as_str().context("a reason")?;
    for words in [
        "abort the canary contacts@",
        "calls of the candidate failed",
        "errors>10%",
    ] {
        ensure!(why.contains(words), "{words}: {why}");
    }
    world.until_visible_to("12345", &BY_CONTACT).await?;
    world.end().await
}

#[tokio::test]
async fn a_shadow_says_what_would_differ_and_changes_nothing() -> Result<()> {
    let (mut world, named) = world("groups").await?;
    let site = &world.site;
    let args = ["plugins", "shadow", &named, "--for", "3s", "--json"];
    let mut command = host::command(site, &args)?;
    let run = tokio::task::spawn_blocking(move || command.output());
    wait::until("the shadow to begin", async || {
        let beside = &status(&world).await?["serving"]["beside"];
        Ok((beside["kind"] == "shadow").then_some(()))
    })
    .await?;
    let error = bad(&world.site, &["plugins", "shadow", &named, "--for", "1s"])?;
    ensure!(error.contains("another shadow runs"), "{error}");
    assert_eq!(world.probe("12345").await?.visible_to(), BY_CONTACT);
    let output = run.await??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let shadow = &report["nodes"][0]["shadow"];
    assert_eq!(shadow["isOver"], true);
    let report = &shadow["report"];
    ensure!(
        report["decisions"]["different"].as_u64() > Some(0),
        "{report}"
    );
    assert_eq!(report["lost"]["pairs"], 2, "{report}");
    assert_eq!(report["gained"]["pairs"], 1, "{report}");
    assert_eq!(report["examples"][0]["userId"], "12345");
    ensure!(status(&world).await?["serving"]["beside"].is_null());
    world.end().await
}
