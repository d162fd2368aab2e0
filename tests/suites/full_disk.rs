//! A full disk: the host goes on serving, reports it, and loses nothing. A limit on the size of
//! files stands for the full disk.

use std::fs;

use anyhow::Result;
use presence_tests::client::now_ms;
use presence_tests::host::Host;
use serde_json::json;

use crate::inputs::{self, CONNECT, ONLINE};
use crate::world::World;

/// The number of users, and the bytes of each. Together they need more room than there is.
const USERS: usize = 500;
const BYTES: usize = 12_000;

/// The records of a user: the connection, and who was told.
const RECORDS: f64 = 2.0;

/// Connects users with large metadata.
async fn crowd(world: &mut World) -> Result<()> {
    for number in 0..USERS {
        let mut body = inputs::connect(&format!("user-{number}"), "c1", now_ms());
        body["metadata"]["note"] = json!("x".repeat(BYTES));
        world.client.input(CONNECT, body).await?;
    }
    Ok(())
}

/// Stops the files of the state from growing.
fn fill(world: &World) -> Result<()> {
    let state = world.site.path().join("presence-state/presence.redb");
    world.host.limit_files(Some(fs::metadata(state)?.len()))
}

#[tokio::test]
async fn a_disk_that_becomes_full_is_said_and_waited_for() -> Result<()> {
    let mut world = World::start().await?;
    fill(&world)?;
    let from = world.host.log_len();
    crowd(&mut world).await?;
    world.host.unready_because("no room on the disk").await?;
    world
        .host
        .wait_for_log(from, &["the state can't be written", "no room"])
        .await?;
    // All goes on meanwhile.
    world.tape.hosts(ONLINE, USERS).await?;

    world.host.limit_files(None)?;
    world
        .host
        .wait_for_log(from, &["the state is written again"])
        .await?;
    world.host.ready().await?;
    world.host.until_saved(RECORDS * USERS as f64).await?;
    world.host.process.kill().await?;
    world.host = Host::start(&world.site).await?;
    let words = ["restored 500 users, 500 connections"];
    world.host.wait_for_log(0, &words).await?;
    world.end().await
}

#[tokio::test]
async fn a_host_on_a_full_disk_stops_without_waiting_for_room() -> Result<()> {
    let mut world = World::start().await?;
    fill(&world)?;
    crowd(&mut world).await?;
    world.host.unready_because("no room on the disk").await?;
    world.host.process.stop().await?;
    let log = world.host.process.stderr().join("\n");
    assert!(log.contains("isn't written any more"), "{log}");
    assert!(
        !log.contains("in time"),
        "a step took all of its time: {log}"
    );

    // Whatever was being written at the kill, the next start goes on from what had been written.
    world.host = Host::start(&world.site).await?;
    let log = world.host.process.stderr().join("\n");
    assert!(!log.contains("set aside"), "{log}");
    world.end().await
}

#[tokio::test]
async fn a_host_that_starts_on_a_full_disk_waits_for_room_with_all_that_it_knew() -> Result<()> {
    let mut world = World::start().await?;
    crowd(&mut world).await?;
    world.host.until_saved(RECORDS * USERS as f64).await?;
    world.host.process.kill().await?;

    world.host = Host::spawn_on_full_disk(&world.site)?;
    // Whether the host has to wait for room depends on the free room within the file.
    world.host.wait_for_log(0, &["connected to NATS"]).await?;
    world.host.limit_files(None)?;
    world.host.ready().await?;
    let log = world.host.process.stderr().join("\n");
    assert!(log.contains("restored 500 users, 500 connections"), "{log}");
    assert!(!log.contains("set aside"), "{log}");
    world.end().await
}
