//! Whether a node does its work, and why not: at `/readyz`. And which files on disk are not in
//! force: in the metrics and in `presence status`.

use std::fs;

use anyhow::{Context, Result, ensure};
use presence_tests::client::Client;
use presence_tests::host::{self, Host};
use presence_tests::nats::{NatsServer, Options};
use presence_tests::process::Signal;
use presence_tests::site::{DIRECTORY, Site};
use presence_tests::{component, http, wait};
use serde_json::Value;

use crate::inputs::CONNECT;
use crate::world::World;

const REFUSED: &str = "presence_on_disk_refused";

/// Two users: the node's, who may do everything but this, and another one without limits.
fn without(denied: &str) -> String {
    format!(
        r#"authorization {{ users = [
            {{ user: node, password: "secret", permissions: {{ {denied} }} }}
            {{ user: tests, password: "tests" }}
        ] }}"#
    )
}

async fn server(denied: &str) -> Result<NatsServer> {
    NatsServer::start_with(Options {
        config: without(denied),
        ..Options::default()
    })
    .await
}

fn site(server: &NatsServer) -> Result<Site> {
    let site = Site::new(&server.url())?;
    site.with("nats.user", "node")?
        .with("nats.password", "secret")
}

async fn client(server: &NatsServer) -> Result<Client> {
    let options = async_nats::ConnectOptions::new();
    let options = options.user_and_password("tests".into(), "tests".into());
    let nats = options.connect(server.url()).await?;
    Ok(Client { nats })
}

/// Waits until `/readyz` answers 503, with a line for each of these words.
async fn unready(site: &Site, words: &[&str]) -> Result<()> {
    wait::until(&format!("/readyz to say {words:?}"), async || {
        // The node may not listen yet.
        let Ok(answer) = http::get(site.http_port(), "/readyz").await else {
            return Ok(None);
        };
        let says = |word: &&str| answer.body.lines().any(|line| line.contains(*word));
        Ok((answer.status == 503 && words.iter().all(says)).then_some(()))
    })
    .await
}

/// Makes the server take other permissions. Everyone stays connected.
fn permit(server: &NatsServer, denied: &str) -> Result<()> {
    server.set_config(&without(denied))?;
    server.signal(Signal::HUP)
}

#[tokio::test]
async fn a_forbidden_publication_turns_it_until_it_is_permitted() -> Result<()> {
    let server = server(r#"publish: { deny: ["presence.dlq", "presence.filtered.>"] }"#).await?;
    let site = site(&server)?;
    let mut host = Host::start(&site).await?;
    let client = client(&server).await?;
    let heard = client.record("presence.>").await?;

    client.publish_bytes(CONNECT, "nonsense").await?;
    unready(&site, &["this node to publish to `presence.dlq`"]).await?;
    host.until_metric("presence_nats_forbidden", &[], |it| it == 1.0)
        .await?;
    client.publish_bytes(CONNECT, "nonsense").await?;
    permit(&server, r#"publish: { deny: "presence.filtered.>" }"#)?;
    host.ready().await?;
    host.until_metric("presence_nats_forbidden", &[], |it| it == 0.0)
        .await?;
    // What was tried meanwhile was sent to nobody, and is in the log once.
    let empty = heard.seen();
    let empty = empty
        .iter()
        .filter(|it| it.subject != CONNECT && it.body.is_null());
    assert_eq!(empty.count(), 0);
    let log = host.process.stderr();
    let said = log.iter().filter(|line| line.contains("forbids this node"));
    assert_eq!(said.count(), 1, "{log:#?}");
    host.stop().await
}

#[tokio::test]
async fn a_forbidden_subscription_turns_it_until_it_is_permitted() -> Result<()> {
    for subject in ["presence.>", "presence-nodes.hello"] {
        let server = server(&format!("subscribe: {{ deny: \"{subject}\" }}")).await?;
        let site = site(&server)?;
        let mut host = Host::spawn(&site)?;
        let why = format!("this node to subscribe to `{subject}`");
        unready(&site, &[&why]).await?;
        permit(&server, "")?;
        host.ready().await?;
        // The node has subscribed again.
        let client = client(&server).await?;
        let answer = client.request(CONNECT, "nonsense").await?;
        assert_eq!(answer["ok"], false, "{answer}");
        host.stop().await?;
    }
    Ok(())
}

/// What `presence status --json` says.
fn status(site: &Site) -> Result<Value> {
    let output = host::run(site, &["status", "--json"])?;
    ensure!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).context("status")
}

/// Waits until exactly this is not in force, and returns the reason.
async fn until_refused(world: &mut World, what: &str) -> Result<String> {
    for of in ["configuration", "directory", "pipeline"] {
        let label = format!("what=\"{of}\"");
        let expected = f64::from(u8::from(of == what));
        world
            .host
            .until_metric(REFUSED, &[&label], |it| it == expected)
            .await?;
    }
    // The node stays ready when it refuses a file.
    world.host.ready().await?;
    let status = status(&world.site)?;
    let refused = &status["serving"]["notInForce"];
    assert_eq!(refused.as_array().map_or(0, Vec::len), 1, "{status}");
    assert_eq!(refused[0]["what"], what, "{status}");
    ensure!(refused[0]["since"].as_u64() >= status["startedAt"].as_u64());
    let page = host::run(&world.site, &["status"])?;
    let page = String::from_utf8(page.stdout)?;
    let headline = format!("NOT IN FORCE: the {what} on disk, since 2");
    ensure!(page.contains(&headline), "{page}");
    let why = refused[0]["why"].as_str().unwrap_or_default();
    ensure!(
        page.contains(why.lines().next().unwrap_or_default()),
        "{page}"
    );
    Ok(why.to_owned())
}

#[tokio::test]
async fn what_was_refused_on_disk_leaves_it_ready_and_is_told() -> Result<()> {
    let mut world = World::start().await?;
    until_taken(&world).await?;

    // A duplicate key: the file is complete, and can't be taken.
    let twice = r#"{"contacts": {"12345": ["67890"], "12345": ["11111"]}}"#;
    world.site.write_directory(twice)?;
    let why = until_refused(&mut world, "directory").await?;
    ensure!(why.contains("directory.json"), "{why}");
    assert_eq!(world.probe("12345").await?.visible_to(), ["22222", "67890"]);
    let from = world.host.log_len();
    world.site.write_directory(DIRECTORY)?;
    until_taken(&world).await?;
    let back = ["the directory on disk is back, unchanged"];
    world.host.wait_for_log(from, &back).await?;

    let path = world.site.config_path();
    let whole = fs::read_to_string(&path)?;
    fs::write(&path, format!("{whole}\n[tracker]\ntimeut_ms = 5\n"))?;
    let why = until_refused(&mut world, "configuration").await?;
    ensure!(why.contains("presence.toml"), "{why}");
    let from = world.host.log_len();
    fs::write(&path, &whole)?;
    until_taken(&world).await?;
    let back = ["the configuration on disk is back, unchanged"];
    world.host.wait_for_log(from, &back).await?;

    let bad = component::named(&component::load("fixtures/bad-config")?, "contacts")?;
    world.site.write_plugin("contacts", bad)?;
    let why = until_refused(&mut world, "pipeline").await?;
    ensure!(why.contains("contacts"), "{why}");
    let plugin = component::named(&component::load("groups")?, "contacts")?;
    let from = world.host.log_len();
    world.site.write_plugin("contacts", &plugin)?;
    until_taken(&world).await?;
    let back = ["the pipeline on disk is in force again"];
    world.host.wait_for_log(from, &back).await?;

    // The file of a running plugin is removed.
    fs::remove_file(world.site.plugin_path("contacts"))?;
    let why = until_refused(&mut world, "pipeline").await?;
    ensure!(why.contains("contacts.wasm"), "{why}");
    ensure!(why.contains("the next start refuses"), "{why}");
    let words = ["contacts.wasm is gone", "the next start refuses"];
    world.host.wait_for_log(from, &words).await?;
    world.site.write_plugin("contacts", &plugin)?;
    until_taken(&world).await?;
    let back = ["the pipeline on disk is back, unchanged"];
    world.host.wait_for_log(from, &back).await?;
    world.end().await
}

/// Waits until all files on disk are in force.
async fn until_taken(world: &World) -> Result<()> {
    world
        .host
        .until_metric(REFUSED, &[], |it| it == 0.0)
        .await?;
    let status = status(&world.site)?;
    assert_eq!(status["serving"]["notInForce"], serde_json::json!([]));
    Ok(())
}

#[tokio::test]
async fn a_change_that_takes_a_restart_is_told_until_it_is_undone() -> Result<()> {
    let mut world = World::start().await?;
    world.site.set("engine.workers", 3)?;
    let sections = "presence_restart_needed_sections";
    world
        .host
        .until_metric(sections, &[], |it| it == 1.0)
        .await?;
    let status = status(&world.site)?;
    let restart = &status["serving"]["restartNeeded"];
    assert_eq!(*restart, serde_json::json!(["engine.workers"]));
    let page = host::run(&world.site, &["status"])?;
    let page = String::from_utf8(page.stdout)?;
    ensure!(page.contains("started again: [engine.workers]"), "{page}");
    world.end().await
}

#[tokio::test]
async fn status_tells_what_a_node_runs_also_one_that_is_not_ready() -> Result<()> {
    let mut world = World::start().await?;
    let told = wait::until("a status that is ready", async || {
        let told = status(&world.site)?;
        Ok((told["ready"] == true).then_some(told))
    })
    .await?;
    assert_eq!(told["nats"]["connected"], true);
    let config = world.site.config_path().display().to_string();
    assert_eq!(told["configuration"], config);
    assert_eq!(told["serving"]["pipeline"][0]["plugin"], "contacts");
    world.server.stop().await?;
    world.host.unready().await?;
    let page = host::run(&world.site, &["status"])?;
    let page = String::from_utf8(page.stdout)?;
    for word in [
        "NOT READY",
        "not connected to NATS",
        "contacts 0.1.0 (built-in",
    ] {
        ensure!(page.contains(word), "{word} is not in:\n{page}");
    }
    world.host.process.stop().await?;
    let output = host::run(&world.site, &["status"])?;
    let said = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1), "{said}");
    ensure!(
        said.contains("no node answers") && said.contains("refused"),
        "{said}"
    );
    Ok(())
}
