//! The headers of what the host publishes, and that it never listens to itself.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use async_nats::jetstream;
use presence_tests::client::{Origin, Seen, now_ms};
use presence_tests::wait;

use crate::inputs::{
    self, BEACON, CONNECT, DISCONNECT, DLQ, EVENTS, FILTERED_ONLINE, OFFLINE, ONLINE, SEED_MS,
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

fn origin(seen: &Seen) -> Origin {
    match seen.origin() {
        Some(origin) => origin,
        None => panic!(
            "Presence-Seq expected on {} {:?}",
            seen.subject, seen.headers
        ),
    }
}

#[tokio::test]
async fn sequences_are_gapless_and_stand_in_one_header() -> Result<()> {
    let mut world = World::start().await?;
    let seen = some_of_everything(&mut world).await?;
    let mut last = BTreeMap::new();
    for seen in &seen {
        assert_eq!(seen.headers.len(), 1, "{:?}", seen.headers);
        let Origin { source, epoch, seq } = origin(seen);
        assert!(source.contains('/'), "{source}");
        let before = last.insert((source, epoch, &seen.subject), seq);
        let expected = before.map_or(1, |before| before + 1);
        // The first beacon says that nothing has been published so far.
        assert_eq!(seq, expected, "{} {:?}", seen.subject, seen.headers);
    }
    world.end().await
}

#[tokio::test]
async fn message_ids_are_unique_where_they_are_turned_on() -> Result<()> {
    let mut world = World::start_with(|site| site.with("nats.message_ids", true)).await?;
    let seen = some_of_everything(&mut world).await?;
    let mut ids = BTreeSet::new();
    for seen in &seen {
        let id = seen.headers.get("Nats-Msg-Id");
        assert!(id.is_some_and(|id| id.contains(&seen.subject)), "{id:?}");
        assert!(ids.insert(id), "{id:?} stands on two messages");
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
    let (first, second) = (origin(&first), origin(&second));
    assert_eq!(first.source, second.source);
    assert!(first.epoch < second.epoch, "{first:?} {second:?}");
    world.end().await
}

#[tokio::test]
async fn a_stream_over_all_subjects_stores_every_message_once() -> Result<()> {
    let mut world = World::start_with(|site| site.with("nats.message_ids", true)).await?;
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
    let published = some_of_everything(&mut world).await?;
    let published = published.iter().filter(|seen| seen.subject != BEACON);
    let published = published.count() as u64;
    let stored = wait::until("the stream to store every message", async || {
        let stored = stream.get_info().await?.state.messages;
        Ok((stored >= published).then_some(stored))
    });
    assert_eq!(stored.await?, published);
    world.end().await
}

#[tokio::test]
async fn what_bears_a_sequence_number_is_ignored() -> Result<()> {
    let mut world = World::start().await?;
    let client = world.client.clone();
    let source = [("Presence-Seq", "another-node/0 1698000000000 1")];
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
        .filter(|seen| origin(seen).source != "another-node/0");
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

#[tokio::test]
async fn beacons_say_how_much_each_source_has_published() -> Result<()> {
    let mut world = World::start_with(|site| {
        site.with("nats.beacon_ms", 50)?
            .with("inbox.enabled", true)?
            .with("engine.workers", 2)
    })
    .await?;
    let at_start = world.tape.hosts(BEACON, 2).await?;
    let sources: BTreeSet<_> = at_start.iter().map(|seen| origin(seen).source).collect();
    assert_eq!(sources.len(), 2);
    some_of_everything(&mut world).await?;
    let counted = |seen: &[Seen], of: &str| {
        let mut counted = BTreeMap::new();
        for seen in seen {
            let Origin { source, seq, .. } = origin(seen);
            if source == of && seen.subject != BEACON && !seen.subject.contains(".inbox.") {
                counted.insert(seen.subject.clone(), seq);
            }
        }
        serde_json::to_value(counted)
    };
    // With nothing more to come, the beacons name the last number of each subject.
    for source in sources {
        let from = world.tape.seen().len();
        let last = world
            .tape
            .next("a later beacon", |seen| {
                seen.subject == BEACON && origin(seen).source == source
            })
            .await?;
        let before: Vec<_> = world.tape.seen()[..from.max(1)]
            .iter()
            .filter(|seen| seen.is_hosts())
            .cloned()
            .collect();
        assert_eq!(last.fields(), ["source", "epoch", "seqs"]);
        assert_eq!(last.field("source"), &source);
        assert_eq!(last.field("epoch"), origin(&last).epoch);
        assert_eq!(*last.field("seqs"), counted(&before, &source)?);
    }
    world.end().await
}
