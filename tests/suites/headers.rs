//! The headers of what the host publishes, and that it never listens to itself.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use async_nats::jetstream;
use presence_tests::client::{Seen, now_ms};
use presence_tests::wait;

use crate::inputs::{
    self, CONNECT, DISCONNECT, DLQ, EVENTS, FILTERED_ONLINE, OFFLINE, ONLINE, SEED_MS,
};
use crate::world::World;

/// Some of everything: users that come and go, and a dead letter.
async fn some_of_everything(world: &mut World) -> Result<Vec<Seen>> {
    const USERS: usize = 20;
    for number in 0..USERS {
        let user = format!("user-{number}");
        let client = &world.client;
        client
            .input(CONNECT, inputs::connect(&user, "c1", SEED_MS))
            .await?;
        client
            .input(
                DISCONNECT,
                inputs::disconnect(&user, "c1", SEED_MS, "logout"),
            )
            .await?;
    }
    world
        .client
        .input(CONNECT, inputs::connect("12345", "c1", SEED_MS))
        .await?;
    world.client.publish_bytes(CONNECT, "[]").await?;
    world.tape.hosts(EVENTS, 2 * USERS + 1).await?;
    world.tape.hosts(ONLINE, USERS + 1).await?;
    world.tape.hosts(OFFLINE, USERS).await?;
    world.tape.hosts(FILTERED_ONLINE, 1).await?;
    world.tape.hosts(DLQ, 1).await?;
    Ok(world
        .tape
        .seen()
        .iter()
        .filter(|seen| seen.is_hosts())
        .cloned()
        .collect())
}

fn header<'a>(seen: &'a Seen, name: &str) -> &'a str {
    match seen.headers.get(name) {
        Some(value) if !value.is_empty() => value,
        _ => panic!("{name} expected on {} {:?}", seen.subject, seen.headers),
    }
}

#[tokio::test]
async fn sequences_are_gapless_and_message_ids_unique() -> Result<()> {
    let mut world = World::start().await?;
    let seen = some_of_everything(&mut world).await?;
    let mut last = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for seen in &seen {
        let stream = (
            header(seen, "Presence-Source"),
            header(seen, "Presence-Epoch"),
            &seen.subject,
        );
        let seq: u64 = header(seen, "Presence-Seq").parse()?;
        let before = last.insert(stream, seq);
        assert!(
            before.is_none_or(|before| seq == before + 1),
            "{stream:?}: {before:?}, then {seq}"
        );
        let id = header(seen, "Nats-Msg-Id");
        assert!(ids.insert(id), "{id} stands on two messages");
    }
    world.end().await
}

#[tokio::test]
async fn a_new_start_is_a_new_epoch() -> Result<()> {
    let mut world = World::start().await?;
    world
        .client
        .input(CONNECT, inputs::connect("12345", "c1", SEED_MS))
        .await?;
    let first = world.tape.hosts(ONLINE, 1).await?.remove(0);
    // Who is online when the host stops is so when it starts.
    let bye = inputs::disconnect("12345", "c1", now_ms(), "logout");
    world.client.input(DISCONNECT, bye).await?;
    world.host.process.stop().await?;
    world.host = presence_tests::host::Host::start(&world.site).await?;
    world
        .client
        .input(CONNECT, inputs::connect("12345", "c2", now_ms()))
        .await?;
    let second = world.tape.hosts(ONLINE, 2).await?.remove(1);
    assert_eq!(
        header(&first, "Presence-Source"),
        header(&second, "Presence-Source")
    );
    assert_ne!(
        header(&first, "Presence-Epoch"),
        header(&second, "Presence-Epoch")
    );
    assert_ne!(
        header(&first, "Nats-Msg-Id"),
        header(&second, "Nats-Msg-Id")
    );
    world.end().await
}

#[tokio::test]
async fn a_stream_over_all_subjects_stores_every_message() -> Result<()> {
    let mut world = World::start().await?;
    let context = jetstream::new(world.client.nats.clone());
    let config = jetstream::stream::Config {
        name: "presence".into(),
        subjects: [
            "presence.events",
            "presence.events.>",
            "presence.filtered.>",
            "presence.dlq",
        ]
        .map(str::to_owned)
        .to_vec(),
        ..Default::default()
    };
    let stream = context.create_stream(config).await?;
    let published = some_of_everything(&mut world).await?.len() as u64;
    let stored = wait::until("the stream to store every message", async || {
        let stored = stream.get_info().await?.state.messages;
        Ok((stored >= published).then_some(stored))
    });
    assert_eq!(stored.await?, published);
    world.end().await
}

#[tokio::test]
async fn what_bears_a_presence_source_is_ignored() -> Result<()> {
    let mut world = World::start().await?;
    let client = world.client.clone();
    let source = [("Presence-Source", "another-node/0")];
    client
        .publish_with(
            CONNECT,
            &source,
            &inputs::connect("12345", "theirs", SEED_MS),
        )
        .await?;
    client
        .publish_with(ONLINE, &source, &inputs::online("12345", SEED_MS))
        .await?;
    client
        .publish_with(CONNECT, &source, &serde_json::json!("not even an object"))
        .await?;
    client
        .input(CONNECT, inputs::connect("12345", "ours", SEED_MS))
        .await?;
    let seen: Vec<_> = world.all_about("12345").await?;
    // "theirs" is the publisher's own message, which bears the header too.
    let hosts = seen
        .iter()
        .filter(|seen| header(seen, "Presence-Source") != source[0].1);
    let hosts: Vec<_> = hosts.collect();
    let mut subjects: Vec<_> = hosts.iter().map(|seen| seen.subject.as_str()).collect();
    subjects.sort_unstable();
    assert_eq!(subjects, [EVENTS, ONLINE, FILTERED_ONLINE]);
    let online = hosts.iter().find(|seen| seen.subject == ONLINE);
    let conn = online.and_then(|online| online.field("metadata").get("connId"));
    assert_eq!(conn.and_then(serde_json::Value::as_str), Some("ours"));
    assert_eq!(
        world
            .tape
            .seen()
            .iter()
            .filter(|seen| seen.subject == DLQ)
            .count(),
        0
    );
    world.end().await
}
