//! The order of one connection's messages: which are late. And nobody stays invisible for longer
//! than a heartbeat, whatever the sender's clock says.

use anyhow::Result;
use presence_tests::client::now_ms;
use serde_json::{Value, json};

use crate::inputs::{self, CONNECT, DISCONNECT, FILTERED_ONLINE, HEARTBEAT, OFFLINE};
use crate::world::World;

/// The status of 12345 in the answer to 67890, a contact.
async fn status(world: &World) -> Result<Value> {
    let question = json!({"viewerId": "67890", "userIds": ["12345"]}).to_string();
    let answer = world.client.request("presence.query", question).await?;
    Ok(answer["users"][0]["status"].clone())
}

/// A world in which 12345 was connected, and has just been disconnected at a time.
async fn after_a_close() -> Result<(World, u64)> {
    let world = World::start().await?;
    let closed_at = now_ms();
    let connect = inputs::connect("12345", "c1", closed_at - 5_000);
    world.client.input(CONNECT, connect).await?;
    let bye = inputs::disconnect("12345", "c1", closed_at, "client_disconnect");
    world.client.input(DISCONNECT, bye).await?;
    Ok((world, closed_at))
}

#[tokio::test]
async fn a_reconnect_in_the_same_millisecond_counts() -> Result<()> {
    let (world, closed_at) = after_a_close().await?;
    let connect = inputs::connect("12345", "c1", closed_at);
    world.client.input(CONNECT, connect).await?;
    assert_eq!(status(&world).await?, "online");
    world.end().await
}

#[tokio::test]
async fn what_is_late_is_answered_stale_counted_and_logged_with_its_user() -> Result<()> {
    let (mut world, closed_at) = after_a_close().await?;
    let from = world.host.log_len();
    let late = inputs::connect("12345", "c1", closed_at - 1);
    let answer = world.client.request(CONNECT, late.to_string()).await?;
    assert_eq!(answer["ok"], false, "{answer}");
    assert_eq!(answer["reason"], "stale", "{answer}");
    assert_ne!(answer["error"].as_str().unwrap_or_default(), "", "{answer}");
    assert_eq!(status(&world).await?, "offline");
    world
        .host
        .wait_for_log(from, &["stale", "12345", "c1"])
        .await?;

    // However many late messages there are, the log has few lines.
    for _ in 0..200 {
        let answer = world.client.request(CONNECT, late.to_string()).await?;
        assert_eq!(answer["reason"], "stale", "{answer}");
    }
    let counted = |it: f64| it == 201.0;
    world
        .host
        .until_metric("presence_stale_inputs_total", &[], counted)
        .await?;
    let log = world.host.process.stderr();
    let lines = log.iter().filter(|line| line.contains("stale")).count();
    assert!(lines < 100, "{lines} lines");
    world.end().await
}

#[tokio::test]
async fn a_heartbeat_heals_a_connect_that_was_lost_or_taken_for_a_late_one() -> Result<()> {
    let (mut world, closed_at) = after_a_close().await?;
    let behind = inputs::connect("12345", "c1", closed_at - 2_000);
    let answer = world.client.request(CONNECT, behind.to_string()).await?;
    assert_eq!(answer["reason"], "stale", "{answer}");
    let heartbeat = inputs::heartbeat("12345", "c1", closed_at - 1);
    let answer = world
        .client
        .request(HEARTBEAT, heartbeat.to_string())
        .await?;
    assert_eq!(
        answer["reason"], "stale",
        "it is older than the close: {answer}"
    );
    // A heartbeat with the same time as the close counts by its arrival.
    let heartbeat = inputs::heartbeat("12345", "c1", closed_at);
    world.client.input(HEARTBEAT, heartbeat).await?;
    world.tape.hosts(FILTERED_ONLINE, 2).await?;
    world.end().await
}

#[tokio::test]
async fn past_the_time_of_reordering_a_connect_opens_however_old_it_says_it_is() -> Result<()> {
    let mut world = World::start_with(|site| site.with("tracker.reorder_ms", 0)).await?;
    for behind_ms in [0, 3_600_000] {
        let at = now_ms() - behind_ms;
        let connect = inputs::connect("12345", "c1", at);
        presence_tests::wait::until("the connect to count", async || {
            let answer = world.client.request(CONNECT, connect.to_string()).await?;
            Ok((answer["ok"] == true).then_some(()))
        })
        .await?;
        let bye = inputs::disconnect("12345", "c1", at, "client_disconnect");
        world.client.input(DISCONNECT, bye).await?;
    }
    world.tape.hosts(OFFLINE, 2).await?;
    world.end().await
}

#[tokio::test]
async fn a_sender_that_is_behind_is_back_with_its_next_heartbeat_after_a_time_out() -> Result<()> {
    let mut world = World::start_with(|site| site.with("tracker.timeout_ms", 400)).await?;
    let behind = now_ms() - 3_600_000;
    let connect = inputs::connect("12345", "c1", behind);
    world.client.input(CONNECT, connect).await?;
    world.tape.hosts(OFFLINE, 1).await?;
    let heartbeat = inputs::heartbeat("12345", "c1", behind + 1);
    world.client.input(HEARTBEAT, heartbeat).await?;
    world.tape.hosts(FILTERED_ONLINE, 2).await?;
    world.end().await
}
