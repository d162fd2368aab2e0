//! The broker's partition by its subject mapping, and a node's partition by a hash, give the same
//! shard.

use std::fs;

use anyhow::Result;
use presence_core::fleet::hash;
use presence_core::token;
use presence_tests::client::Client;
use presence_tests::nats::{NatsServer, Options};
use presence_tests::tools;
use serde_json::json;

use crate::inputs::{CONNECT, DISCONNECT, HEARTBEAT, OFFLINE, ONLINE};

/// As `docs/partition.conf` has it.
const SHARDS: u32 = 64;

#[tokio::test]
async fn a_user_in_the_subject_comes_to_the_shard_that_nodes_say() -> Result<()> {
    let mapping = fs::read_to_string(tools::root().join("docs/partition.conf"))?;
    let server = NatsServer::start_with(Options {
        config: mapping,
        ..Options::default()
    });
    let server = server.await?;
    let client = Client::connect(&server.url()).await?;
    let mut tape = client.record("presence.>").await?;

    // Ids that are tokens themselves, and ids that have to be encoded as tokens.
    let odd = ["ann@example.com", "two words", "ünïcödé", "a.b.*.>", "="];
    let odd = odd.into_iter().map(str::to_owned);
    let users: Vec<_> = (0..300)
        .map(|user| format!("user-{user}"))
        .chain(odd)
        .collect();
    let subjects = [CONNECT, HEARTBEAT, DISCONNECT, ONLINE, OFFLINE];
    for (number, user) in users.iter().enumerate() {
        let subject = subjects[number % subjects.len()];
        let subject = format!("{subject}.{}", token::encode(user));
        client.publish(&subject, &json!({"userId": user})).await?;
    }
    let expected = users.iter().enumerate().map(|(number, user)| {
        let (_, name) = subjects[number % subjects.len()].rsplit_once('.').unwrap();
        let shard = hash::shard_of(user, SHARDS);
        (format!("presence.shard.{shard}.in.{name}"), user.as_str())
    });
    let expected: Vec<_> = expected.collect();
    tape.until("all messages", |seen| seen.len() >= users.len())
        .await?;
    let seen = tape.seen().iter();
    let seen: Vec<_> = seen
        .map(|it| (it.subject.clone(), it.text("userId")))
        .collect();
    assert_eq!(seen, expected);
    let shards: std::collections::BTreeSet<_> = seen.iter().map(|(subject, _)| subject).collect();
    assert!(
        shards.len() > 200,
        "users spread over shards: {}",
        shards.len()
    );
    Ok(())
}
