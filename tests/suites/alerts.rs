//! Alerts for operators: one for each event, even if the same thing is tried again.

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::kv;
use presence_tests::client::{ReceivedMessage, now_ms};
use presence_tests::host::Host;
use presence_tests::nats::NatsServer;
use presence_tests::process::Signal;
use presence_tests::site::Site;
use presence_tests::{component, http, wait};
use serde_json::{Value, json};

use crate::inputs::{self, CONNECT};
use crate::store::{CONTACTS, apply, bucket, empty, plugin, push, run_ok};
use crate::world::World;

/// How many calls of a canary are needed before it is promoted.
const CALLS: usize = 30;

async fn world() -> Result<World> {
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?.with("state.dir", "state")?;
    let mut world = empty(server, site).await?;
    apply(&world.site, CONTACTS)?;
    world.host.ready().await?;
    Ok(world)
}

async fn revision(bucket: &kv::Store, number: u64) -> Result<Value> {
    let found = bucket.get(format!("revision.{number}")).await?;
    Ok(serde_json::from_slice(&found.context("a revision")?)?)
}

fn of_type<'a>(seen: &'a [ReceivedMessage], what: &str) -> Vec<&'a ReceivedMessage> {
    let alerts = seen
        .iter()
        .filter(|it| it.subject == "presence.admin.alerts");
    alerts.filter(|it| it.text("type") == what).collect()
}

/// How many alerts a node has raised since it began.
async fn raised(world: &World) -> Result<u64> {
    let status = http::get(world.site.http_port(), "/status").await?;
    let status: Value = serde_json::from_str(&status.body)?;
    status["serving"]["alerts"].as_u64().context("a number")
}

#[tokio::test]
async fn a_revision_that_is_refused_at_a_start_is_one_alert() -> Result<()> {
    let mut world = world().await?;
    let bucket = bucket(&world).await?;
    world.host.stop().await?;
    // A revision that no node takes: its second stage has an unknown key.
    let mut next = revision(&bucket, 1).await?;
    next["revision"] = 2.into();
    next["chain"][1]["config"]["more"] = 1.into();
    bucket.put("revision.2", next.to_string().into()).await?;
    world.host = Host::spawn(&world.site)?;
    let said = "revision 2 is refused";
    world.host.wait_for_log(0, &[said]).await?;
    // The task that follows the store tries the revision once more.
    world
        .host
        .wait_for_log(0, &["pipeline not swapped", "more"])
        .await?;
    world.host.ready().await?;
    ensure!(raised(&world).await? == 1);

    // The same without an earlier revision that could be in force.
    world.host.stop().await?;
    std::fs::remove_dir_all(world.site.path().join("state"))?;
    world.host = Host::spawn(&world.site)?;
    world.host.wait_for_log(0, &[said]).await?;
    world
        .host
        .wait_for_log(0, &["pipeline not swapped", "more"])
        .await?;
    ensure!(raised(&world).await? == 1);

    // The next revision is another event.
    next["revision"] = 3.into();
    bucket.put("revision.3", next.to_string().into()).await?;
    wait::until("a second alert", async || {
        Ok((raised(&world).await? == 2).then_some(()))
    })
    .await?;
    world.end().await
}

#[tokio::test]
async fn a_canary_that_another_node_has_promoted_is_no_alert_of_one_that_was_frozen() -> Result<()>
{
    let mut world = world().await?;
    let bucket = bucket(&world).await?;
    let bytes = component::named(&component::load("groups")?, "contacts")?;
    let digest = push(&world.site, &plugin(&world.site, "other.wasm", &bytes)?)?;
    let named = format!("contacts@{digest}");
    let canary = ["plugins", "canary", &*named, "--percent", "100", "--yes"];
    run_ok(
        &world.site,
        &[&canary[..], &["--promote-after", "3s"]].concat(),
    )?;
    for user in 0..CALLS {
        let connect = inputs::connect(&format!("user-{user}"), "c", now_ms());
        world.client.input(CONNECT, connect).await?;
    }
    world.host.process.signal(Signal::STOP)?;
    let begun = now_ms();
    let mut next = revision(&bucket, 2).await?;
    next["revision"] = 3.into();
    next["candidate"] = Value::Null;
    next["chain"][0]["digest"] = json!(digest);
    next["who"] = "the node other".into();
    bucket.put("revision.3", next.to_string().into()).await?;
    // By the canary's own time, its promotion is due as soon as the node goes on.
    let is_due = async || Ok((now_ms() > begun + 4_000).then_some(()));
    wait::until("the canary's time to be over", is_due).await?;
    world.host.process.signal(Signal::CONT)?;
    let said = "pipeline revision in force revision=3";
    world.host.wait_for_log(0, &[said]).await?;
    let ended = "the canary has ended in the store already";
    let log = world.host.process.stderr();
    if log.iter().any(|line| line.contains("promote the canary")) {
        world.host.wait_for_log(0, &[ended]).await?;
    }
    ensure!(raised(&world).await? == 0);
    world.tape.catch_up(&world.client).await?;
    ensure!(of_type(world.tape.seen(), "canary-promoted").is_empty());
    world.end().await
}
