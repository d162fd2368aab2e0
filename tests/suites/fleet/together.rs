//! Heartbeats that a router passes on together.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use presence_tests::client::{ReceivedMessage, now_ms};
use serde_json::Value;

use super::{SHARDS, Scene, are_settled, guest, hosts, speaker, user_of};
use crate::inputs::{self, DISCONNECT, DLQ, FILTERED_ONLINE, HEARTBEAT};
use crate::world::on;

/// How many guests there are.
const GUESTS: usize = 24;

/// The users of heartbeats that were passed on together.
fn users(message: &ReceivedMessage) -> Result<Vec<String>> {
    let lines = message.bytes.split(|byte| *byte == b'\n');
    let users = lines.map(|line| {
        let body: Value = serde_json::from_slice(line)?;
        Ok(user_of(&body).to_owned())
    });
    users.collect()
}

fn are_together(message: &ReceivedMessage) -> bool {
    message.subject.starts_with("presence.shard.") && message.subject.ends_with(".heartbeats")
}

/// How often each guest's heartbeat was passed on with others.
fn passed_on(seen: &[ReceivedMessage]) -> Result<BTreeMap<String, usize>> {
    let mut times = BTreeMap::new();
    for message in seen.iter().filter(|it| are_together(it)) {
        for user in users(message)?
            .into_iter()
            .filter(|it| it.starts_with("guest"))
        {
            *times.entry(user).or_default() += 1;
        }
    }
    Ok(times)
}

#[tokio::test]
async fn heartbeats_that_come_together_are_passed_on_together() -> Result<()> {
    let mut scene = Scene::start().await?;
    let nodes = scene.nodes(&["a", "b", "c"]).await?;
    are_settled(&hosts(&nodes)).await?;
    scene.are_online().await?;

    // Nobody has heard of them before. Each node has its part of them, and no node has all shards.
    for number in 0..GUESTS {
        let heartbeat = inputs::heartbeat(&guest(number), "c1", now_ms());
        scene.client.publish(HEARTBEAT, &heartbeat).await?;
    }
    let are_online = |seen: &[ReceivedMessage]| {
        let online = on(seen, FILTERED_ONLINE);
        let guests = online.iter().filter(|it| user_of(it).starts_with("guest"));
        guests.count() == GUESTS
    };
    scene
        .tape
        .until("all guests to be online", are_online)
        .await?;
    scene.tape.catch_up(&scene.client).await?;
    let once: BTreeMap<_, _> = (0..GUESTS).map(|number| (guest(number), 1)).collect();
    ensure!(passed_on(scene.tape.seen())? == once);

    // One that wants an answer gets one: it doesn't wait.
    let asks = inputs::heartbeat(&guest(0), "c2", now_ms());
    scene.client.input(HEARTBEAT, asks).await?;
    scene.tape.catch_up(&scene.client).await?;
    ensure!(passed_on(scene.tape.seen())? == once);
    scene.check_notifications().await
}

#[tokio::test]
async fn what_comes_after_a_heartbeat_is_passed_on_after_it() -> Result<()> {
    let mut scene = Scene::start().await?;
    let nodes = scene.nodes(&["a"]).await?;
    are_settled(&hosts(&nodes)).await?;
    let is_bye = |it: &ReceivedMessage, user: &str| {
        it.subject.ends_with(".in.disconnect") && user_of(&it.body) == user
    };
    for number in 0..GUESTS {
        let (user, at) = (guest(number), now_ms());
        let heartbeat = inputs::heartbeat(&user, "c1", at);
        scene.client.publish(HEARTBEAT, &heartbeat).await?;
        let bye = inputs::disconnect(&user, "c1", at + 1, "client_disconnect");
        scene.client.publish(DISCONNECT, &bye).await?;
        // The node may read all waiting messages of one kind before those of another.
        let has_come = |seen: &[ReceivedMessage]| seen.iter().any(|it| is_bye(it, &user));
        scene.tape.until("both to be passed on", has_come).await?;
    }
    let seen = scene.tape.seen();
    for number in 0..GUESTS {
        let user = guest(number);
        let bye = seen.iter().position(|it| is_bye(it, &user));
        let before = seen
            .get(..bye.context("its disconnect")?)
            .unwrap_or_default();
        ensure!(passed_on(before)?.contains_key(&user), "{user}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_no_heartbeat_is_a_dead_letter_however_it_is_passed_on() -> Result<()> {
    let mut scene = Scene::start().await?;
    let nodes = scene.nodes(&["a", "b", "c"]).await?;
    are_settled(&hosts(&nodes)).await?;
    scene.are_online().await?;
    let long = "x".repeat(40_000);
    let bodies = ["", "{", "[\"ann\"]", "{\n}", "\u{0}", &long];
    // Each node has its part of them.
    for body in bodies.iter().cycle().take(10 * bodies.len()) {
        scene.client.publish_bytes(HEARTBEAT, *body).await?;
    }
    let letters = |seen: &[ReceivedMessage]| {
        let letters = on(seen, DLQ);
        let of = |body: &str| {
            let payload = |it: &&Value| it["payload"].as_str() == Some(body);
            letters.iter().filter(payload).count()
        };
        bodies.iter().all(|body| of(body) == 10)
    };
    let what = "a dead letter of each, by its shard's owner alone";
    scene.tape.until(what, letters).await?;
    scene.check_notifications().await
}

#[tokio::test]
async fn heartbeats_that_no_router_has_passed_on_are_refused() -> Result<()> {
    let mut scene = Scene::start().await?;
    let nodes = scene.nodes(&["a", "b"]).await?;
    are_settled(&hosts(&nodes)).await?;
    scene.are_online().await?;
    // One of these shards is the user's.
    let heartbeat = inputs::heartbeat(&speaker(0), "c1", now_ms());
    let two = format!("{heartbeat}\n{{\"no\": 1}}");
    for shard in 0..SHARDS {
        let subject = format!("presence.shard.{shard}.heartbeats");
        scene.client.publish_bytes(&subject, two.as_str()).await?;
    }
    let letters = |seen: &[ReceivedMessage]| {
        let letters = on(seen, DLQ);
        let of = |reason| letters.iter().filter(|it| it["reason"] == reason).count();
        (of("wrong-shard"), of("missing-field")) == (SHARDS - 1, SHARDS)
    };
    let what = "a dead letter of each that is refused, by its shard's owner alone";
    scene.tape.until(what, letters).await?;

    let many = vec![heartbeat.to_string(); 1_000].join("\n");
    let subject = "presence.shard.0.heartbeats";
    scene.client.publish_bytes(subject, many).await?;
    for node in &nodes {
        let refused = |count: f64| count == 1.0;
        node.host
            .until_metric("presence_fleet_refused_total", &[], refused)
            .await?;
    }
    scene.check_notifications().await
}
