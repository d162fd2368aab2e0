//! What users are doing, and their status texts, for those who turn it on.

use std::fs;

use anyhow::{Context, Result};
use presence_tests::client::{ReceivedMessage, now_ms};
use presence_tests::host::Host;
use presence_tests::site::Site;
use presence_tests::{host, wait};
use serde_json::{Value, json};
use toml::toml;

use crate::inputs::{self, CONNECT, DISCONNECT, DLQ, FILTERED_ONLINE, HEARTBEAT, SEED_MS};
use crate::world::World;

const UPDATED: &str = "presence.events.user_updated";
const FILTERED_UPDATED: &str = "presence.filtered.user_updated";

/// Ann's one contact is Ben, who gets to see statuses.
fn site(site: Site) -> Result<Site> {
    // A long time, so that typing doesn't end during a test, however slow the machine is.
    let site = site.with("status.typing_ms", 3_600_000)?;
    let mut site = site.with("status.enabled", true)?;
    let redact = toml! { keys = ["device", "activity", "status"] };
    site.set_pipeline(&[("contacts", None), ("redact", Some(redact))])?;
    site.write_directory_value(&json!({"contacts": {"ann": ["ben"]}}))?;
    Ok(site)
}

async fn come(world: &World) -> Result<()> {
    let connect = inputs::connect("ann", "c1", now_ms());
    world.client.input(CONNECT, connect).await
}

/// A heartbeat of Ann's with this metadata.
async fn send_heartbeat(world: &World, metadata: Value) -> Result<()> {
    let mut body = inputs::heartbeat("ann", "c1", now_ms());
    body["metadata"] = metadata;
    world.client.input(HEARTBEAT, body).await
}

/// The metadata in the answer to Ben's query about Ann.
async fn asked(world: &World) -> Result<Value> {
    let question = json!({"viewerId": "ben", "userIds": ["ann"]}).to_string();
    let answer = world.client.request("presence.query", question).await?;
    Ok(answer["users"][0]["metadata"].clone())
}

#[tokio::test]
async fn a_change_is_broadcast_filtered_delivered_and_answered() -> Result<()> {
    let mut world = World::start_with(|it| {
        site(it)?
            .with("inbox.enabled", true)?
            .with("status.min_interval_ms", 0)
    })
    .await?;
    come(&world).await?;
    let status = json!({"text": "in a meeting", "expiresAt": now_ms() + 3_600_000});
    send_heartbeat(&world, json!({"activity": "active", "status": status})).await?;

    let updated = world.tape.hosts(UPDATED, 1).await?.remove(0);
    assert_eq!(
        updated.fields(),
        ["type", "userId", "timestamp", "metadata"]
    );
    assert_eq!(updated.text("type"), "user_updated");
    assert_eq!(updated.field("metadata")["status"], status);
    assert_eq!(updated.field("metadata")["connId"], "c1");
    let told = world.tape.hosts(FILTERED_UPDATED, 1).await?.remove(0);
    let fields = ["type", "userId", "timestamp", "visibleTo", "metadata"];
    assert_eq!(told.fields(), fields);
    assert_eq!(told.field("timestamp"), updated.field("timestamp"));
    assert_eq!(told.visible_to(), ["ben"]);
    let metadata = json!({"device": "web", "activity": "active", "status": status});
    assert_eq!(*told.field("metadata"), metadata);
    assert_eq!([&updated, &told].map(|seen| seen.sequence().2), [1, 1]);
    assert_eq!(asked(&world).await?, metadata);

    // A repeated status is no change, and an invalid one is counted.
    send_heartbeat(&world, json!({"activity": "active", "status": status})).await?;
    send_heartbeat(&world, json!({"activity": "dancing", "status": "busy"})).await?;
    send_heartbeat(&world, json!({"status": null})).await?;
    let bye = inputs::disconnect("ann", "c1", now_ms(), "client_disconnect");
    world.client.input(DISCONNECT, bye).await?;
    let seen = world.all_about("ann").await?;
    let on = |subject: &str| -> Vec<&ReceivedMessage> {
        let on = seen.iter().filter(|seen| seen.subject == subject);
        on.collect()
    };
    let metadata = json!({"device": "web", "activity": "active"});
    assert_eq!(on(FILTERED_UPDATED).len(), 2);
    assert_eq!(*on(FILTERED_UPDATED)[1].field("metadata"), metadata);
    let types: Vec<_> = on("presence.inbox.ben")
        .into_iter()
        .map(|seen| seen.text("type"))
        .collect();
    let expected = [
        "user_online",
        "user_updated",
        "user_updated",
        "user_offline",
    ];
    assert_eq!(types, expected);
    assert!(world.tape.seen().iter().all(|seen| seen.subject != DLQ));
    let unknown = "presence_unknown_statuses_total";
    world
        .host
        .until_metric(unknown, &[], |it| it == 2.0)
        .await?;
    world.end().await
}

#[tokio::test]
async fn a_status_ends_when_it_expires() -> Result<()> {
    let mut world = World::start_with(|it| site(it)?.with("status.min_interval_ms", 0)).await?;
    come(&world).await?;
    let expires_at = now_ms() + 500;
    send_heartbeat(
        &world,
        json!({"status": {"text": "brb", "expiresAt": expires_at}}),
    )
    .await?;
    let told = world.tape.hosts(FILTERED_UPDATED, 2).await?;
    assert_eq!(told[0].field("metadata")["status"]["text"], "brb");
    assert_eq!(*told[1].field("metadata"), json!({"device": "web"}));
    assert!(told[1].field("timestamp").as_u64() >= Some(expires_at));
    world.end().await
}

#[tokio::test]
async fn it_is_told_only_while_the_configuration_says_so() -> Result<()> {
    let mut world = World::start_with(|it| site(it)?.with("status.enabled", false)).await?;
    come(&world).await?;
    send_heartbeat(&world, json!({"activity": "active"})).await?;
    assert_eq!(asked(&world).await?, json!({"device": "web"}));

    world.site.set("status.enabled", true)?;
    wait::until("Ann's activity to be told", async || {
        send_heartbeat(&world, json!({"activity": "typing"})).await?;
        let answer = asked(&world).await?;
        Ok((answer["activity"] == "typing").then_some(()))
    })
    .await?;
    world.site.set("status.enabled", false)?;
    let told = world.tape.hosts(FILTERED_UPDATED, 2).await?;
    assert_eq!(told[0].field("metadata")["activity"], "typing");
    assert_eq!(*told[1].field("metadata"), json!({"device": "web"}));
    send_heartbeat(&world, json!({"activity": "active"})).await?;
    let seen = world.all_about("ann").await?;
    let updates = seen.iter().filter(|seen| seen.subject == FILTERED_UPDATED);
    assert_eq!(updates.count(), 2);
    world.end().await
}

#[tokio::test]
async fn what_others_publish_as_an_update_is_nobodys_input() -> Result<()> {
    let mut world = World::start_with(site).await?;
    come(&world).await?;
    let forged = json!({"type": "user_updated", "userId": "ann", "metadata": {"activity": "idle"}});
    world.client.publish(UPDATED, &forged).await?;
    let answer = world.client.nats.request(UPDATED, "no JSON".into()).await;
    assert!(answer.is_err(), "nobody answers: {answer:?}");
    let seen = world.all_about("ann").await?;
    assert!(seen.iter().all(|seen| seen.subject != FILTERED_UPDATED));
    assert!(world.tape.seen().iter().all(|seen| seen.subject != DLQ));
    world.end().await
}

#[tokio::test]
async fn a_status_outlives_a_kill_and_expires_in_time() -> Result<()> {
    let mut world = World::start_with(|it| site(it)?.with("tracker.timeout_ms", 600_000)).await?;
    come(&world).await?;
    // The records: the connection, and who was told.
    world.host.until_saved(2.0).await?;
    let expires_at = now_ms() + 5_000;
    let status = json!({"text": "brb", "expiresAt": expires_at});
    send_heartbeat(&world, json!({"activity": "typing", "status": status})).await?;
    // The records: both again, and the status.
    world.host.until_saved(5.0).await?;
    world.host.process.kill().await?;
    world.host = Host::start(&world.site).await?;
    let answer = asked(&world).await?;
    let metadata = json!({"device": "web", "activity": "typing", "status": status});
    assert_eq!(answer, metadata);

    // Nothing is told again, and later changes are told.
    let told = world.tape.hosts(FILTERED_UPDATED, 2).await?;
    assert_eq!(*told[0].field("metadata"), metadata);
    let metadata = json!({"device": "web", "activity": "typing"});
    assert_eq!(*told[1].field("metadata"), metadata);
    assert!(told[1].field("timestamp").as_u64() >= Some(expires_at));
    let seen = world.all_about("ann").await?;
    let online = seen.iter().filter(|seen| seen.subject == FILTERED_ONLINE);
    assert_eq!(online.count(), 1);
    world.end().await
}

#[test]
fn a_replay_tells_at_most_one_update_an_interval() -> Result<()> {
    let site = site(Site::new("nats://127.0.0.1:1")?)?;
    let line = |at: u64, subject: &str, metadata: Value| {
        let body = json!({"userId": "ann", "connId": "c1", "timestamp": at, "metadata": metadata});
        format!("{}\n", json!({"at": at, "subject": subject, "data": body}))
    };
    let status = json!({"text": "brb", "expiresAt": SEED_MS + 5_000});
    let lines = [
        line(
            SEED_MS,
            CONNECT,
            json!({"device": "web", "activity": "active"}),
        ),
        line(SEED_MS + 100, HEARTBEAT, json!({"activity": "typing"})),
        line(SEED_MS + 200, HEARTBEAT, json!({"activity": "active"})),
        line(SEED_MS + 300, HEARTBEAT, json!({"status": status})),
    ];
    let file = site.path().join("inputs.ndjson");
    fs::write(&file, lines.concat())?;
    let file = file.to_str().context("a temporary path is text")?;
    let output = host::run(&site, &["replay", file])?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output, host::run(&site, &["replay", file])?);
    let told = String::from_utf8(output.stdout)?;
    let told = told.lines().map(serde_json::from_str::<Value>);
    let told = told.collect::<Result<Vec<_>, _>>()?;
    let told: Vec<_> = told
        .iter()
        .filter(|line| {
            line["subject"]
                .as_str()
                .is_some_and(|it| it.starts_with("presence.filtered."))
        })
        .map(|line| (line["at"].as_u64().unwrap_or(0) - SEED_MS, &line["data"]))
        .collect();
    let types: Vec<_> = told
        .iter()
        .map(|(at, data)| (*at, data["type"].as_str()))
        .collect();
    let updated = Some("user_updated");
    let expected = [
        (0, Some("user_online")),
        (100, updated),
        (1_100, updated),
        (5_000, updated),
        (30_300, Some("user_offline")),
    ];
    assert_eq!(types, expected);
    assert_eq!(
        told[0].1["metadata"],
        json!({"device": "web", "activity": "active"})
    );
    assert_eq!(
        told[1].1["metadata"],
        json!({"device": "web", "activity": "typing"})
    );
    let metadata = json!({"device": "web", "activity": "active", "status": status});
    assert_eq!(told[2].1["metadata"], metadata);
    Ok(())
}
