//! The headers of the host's messages, and that the host ignores its own messages.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail, ensure};
use async_nats::jetstream;
use presence_tests::client::{ReceivedMessage, now_ms};
use presence_tests::nats::NatsServer;
use presence_tests::wait;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::inputs::{
    self, CONNECT, DISCONNECT, DLQ, EVENTS, FILTERED_ONLINE, OFFLINE, ONLINE, SEED_MS,
};
use crate::world::World;

/// Some of everything: users that come and go, and a dead letter.
async fn some_of_everything(world: &mut World) -> Result<Vec<ReceivedMessage>> {
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
        .filter(|seen| seen.is_from_host() && seen.subject != "presence.beacon")
        .cloned()
        .collect())
}

#[tokio::test]
async fn sequences_are_gapless_and_the_only_header() -> Result<()> {
    let mut world = World::start().await?;
    let seen = some_of_everything(&mut world).await?;
    let mut last = BTreeMap::new();
    for seen in &seen {
        let names: Vec<_> = seen.headers.keys().collect();
        assert_eq!(names, ["Presence-Seq"], "{}", seen.subject);
        let (source, epoch, seq) = seen.sequence();
        let expected = format!("{source} {epoch} {seq}");
        assert_eq!(seen.headers["Presence-Seq"], expected);
        let before = last.insert((source, epoch, &seen.subject), seq);
        assert_eq!(seq, before.unwrap_or(0) + 1, "{source} on {}", seen.subject);
    }
    world.end().await
}

#[tokio::test]
async fn message_ids_are_turned_on_and_made_of_what_counts_a_message() -> Result<()> {
    let mut world = World::start_with(|site| site.with("nats.message_ids", true)).await?;
    let seen = some_of_everything(&mut world).await?;
    let mut ids = BTreeSet::new();
    for seen in &seen {
        let (source, epoch, seq) = seen.sequence();
        let id = &seen.headers["Nats-Msg-Id"];
        assert_eq!(*id, format!("{}/{source}/{epoch}/{seq}", seen.subject));
        assert!(ids.insert(id), "{id} stands on two messages");
    }
    world.end().await
}

/// The next beacon of each of two sources.
async fn beacons(world: &mut World) -> Result<BTreeMap<String, ReceivedMessage>> {
    let mut beacons = BTreeMap::new();
    while beacons.len() < 2 {
        let beacon = world.tape.next("a beacon of each source", |seen| {
            seen.is_from_host() && seen.subject == "presence.beacon"
        });
        let beacon = beacon.await?;
        beacons.insert(beacon.sequence().0.to_owned(), beacon);
    }
    Ok(beacons)
}

#[tokio::test]
async fn a_source_says_at_its_start_and_now_and_then_how_far_it_has_counted() -> Result<()> {
    let mut world = World::start_with(|site| {
        site.with("engine.workers", 2)?
            .with("inbox.enabled", true)?
            .with("nats.beacon_ms", 500)
    })
    .await?;
    for (source, beacon) in beacons(&mut world).await? {
        assert_eq!(beacon.fields(), ["source", "epoch", "seqs"]);
        assert_eq!(beacon.text("source"), source);
        assert_eq!(beacon.field("epoch").as_u64(), Some(beacon.sequence().1));
        assert_eq!(*beacon.field("seqs"), serde_json::json!({}));
        assert_eq!(beacon.sequence().2, 1, "the first is said at the start");
    }
    some_of_everything(&mut world).await?;
    // A beacon that was already on its way may have lower numbers.
    beacons(&mut world).await?;
    let beacons = beacons(&mut world).await?;
    let mut last = BTreeMap::new();
    for seen in world.tape.seen().iter().filter(|seen| seen.is_from_host()) {
        let (source, _, seq) = seen.sequence();
        last.insert((source.to_owned(), seen.subject.clone()), seq);
    }
    last.retain(|(_, subject), _| {
        subject != "presence.beacon" && !subject.starts_with("presence.inbox.")
    });
    for (source, beacon) in beacons {
        let said = beacon.field("seqs").as_object().cloned();
        let said: BTreeMap<_, _> = said.unwrap_or_default().into_iter().collect();
        let seen = last.iter().filter(|((by, _), _)| *by == source);
        let seen = seen.map(|((_, subject), seq)| (subject.clone(), (*seq).into()));
        assert_eq!(said, seen.collect(), "{source}");
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
    // A user who is online when the host stops is online when it starts.
    let bye = inputs::disconnect("12345", "c1", now_ms(), "logout");
    world.client.input(DISCONNECT, bye).await?;
    world.host.process.stop().await?;
    world.host = presence_tests::host::Host::start(&world.site).await?;
    world
        .client
        .input(CONNECT, inputs::connect("12345", "c2", now_ms()))
        .await?;
    let second = world.tape.hosts(ONLINE, 2).await?.remove(1);
    let ((source, epoch, _), (same, later, seq)) = (first.sequence(), second.sequence());
    assert_eq!((source, 1), (same, seq));
    assert!(epoch < later, "{epoch} {later}");
    world.end().await
}

#[tokio::test]
async fn a_stream_over_all_subjects_stores_every_message() -> Result<()> {
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
    let published = some_of_everything(&mut world).await?.len() as u64;
    let stored = wait::until("the stream to store every message", async || {
        let stored = stream.get_info().await?.state.messages;
        Ok((stored >= published).then_some(stored))
    });
    assert_eq!(stored.await?, published);
    world.end().await
}

#[tokio::test]
async fn what_bears_a_nodes_header_is_ignored() -> Result<()> {
    let mut world = World::start().await?;
    let client = world.client.clone();
    let source = [("Presence-Seq", "another-node/0 1 1")];
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
    // "theirs" is the publisher's own message, which has the header, too.
    let hosts = seen
        .iter()
        .filter(|seen| seen.sequence().0 != "another-node/0");
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

/// Header blocks that no client library writes, but that a server passes on.
const UNREADABLE: [&[u8]; 6] = [
    b"NATS/1.0\r\nX-Name: M\xfcller\r\n\r\n",
    b"NATS/1.0\r\nno colon\r\n\r\n",
    b"NATS/1.0\r\na b: c\r\n\r\n",
    b"NATS/1.0\r\n\xc3\xbc: c\r\n\r\n",
    b"NATS/1.0\r\na: b\rc\r\n\r\n",
    b"NATS/1.1 odd\r\na: b\r\n\r\n",
];

/// Publishes messages with header blocks that can't be read, each about another user.
pub(crate) async fn publish_unreadable(
    server: &NatsServer,
    subject: &str,
    body: impl Fn(&str) -> Value,
) -> Result<usize> {
    let mut text = b"CONNECT {\"verbose\":false,\"headers\":true}\r\n".to_vec();
    for (number, block) in UNREADABLE.iter().enumerate() {
        let body = body(&format!("user-{number}")).to_string();
        let (head, whole) = (block.len(), block.len() + body.len());
        text.extend(format!("HPUB {subject} {head} {whole}\r\n").bytes());
        text.extend([block, body.as_bytes(), b"\r\n"].concat());
    }
    // A reply subject that is not valid UTF-8, and one with a space that NATS doesn't treat as one.
    for (reply, user) in [
        (&b"_INBOX.\xff"[..], "a"),
        ("_INBOX.a\u{2003}b".as_bytes(), "b"),
    ] {
        let body = body(user).to_string();
        text.extend(format!("HPUB {subject} ").bytes());
        text.extend(reply);
        text.extend(format!(" 12 {}\r\nNATS/1.0\r\n\r\n{body}\r\n", 12 + body.len()).bytes());
    }
    text.extend(b"PING\r\n");
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).await?;
    stream.write_all(&text).await?;
    let mut answers = BufReader::new(stream).lines();
    while let Some(line) = answers.next_line().await? {
        ensure!(!line.starts_with("-ERR"), "{line}");
        if line == "PONG" {
            return Ok(UNREADABLE.len() + 2);
        }
    }
    bail!("the broker closed the connection")
}

#[tokio::test]
async fn a_message_whose_header_cant_be_read_counts_and_costs_no_connection() -> Result<()> {
    let mut world = World::start().await?;
    let connects = |user: &str| inputs::connect(user, "c1", now_ms());
    let sent = publish_unreadable(&world.server, CONNECT, connects).await?;
    let query = |user: &str| json!({"userIds": [user]});
    publish_unreadable(&world.server, "presence.query.ada", query).await?;
    world.tape.hosts(ONLINE, sent).await?;
    let made = world
        .host
        .metric("presence_nats_connects_total", &[])
        .await?;
    assert_eq!(made, 1.0);
    world.end().await
}
