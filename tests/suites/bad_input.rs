//! Input that can't be processed: the dead letter, the answer, and that the
//! stream goes on.

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use presence_tests::client::Client;
use presence_tests::client::now_ms;
use presence_tests::host::Host;
use presence_tests::nats::{NatsServer, Options};
use presence_tests::site::Site;
use presence_tests::wait;
use serde_json::Value;

use crate::inputs::{
    self, CONNECT, DISCONNECT, DLQ, FILTERED_OFFLINE, FILTERED_ONLINE, HEARTBEAT, OFFLINE, ONLINE,
    SEED_MS,
};
use crate::world::World;

/// Every kind of bad input: its subject, its body, and the reason for which it is refused.
fn cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let long = "x".repeat(257);
    let text = |subject, text: &str, reason| (subject, text.as_bytes().to_vec(), reason);
    vec![
        text(CONNECT, "", "invalid-json"),
        text(CONNECT, "hello", "invalid-json"),
        text(CONNECT, r#"{"userId": "1", "connId": "c""#, "invalid-json"),
        text(
            HEARTBEAT,
            r#"{"userId": "1"} {"userId": "2"}"#,
            "invalid-json",
        ),
        (CONNECT, vec![0xff, 0xfe, 0x00, 0x80], "invalid-json"),
        (
            CONNECT,
            b"{\"userId\": \"\xc3\x28\"}".to_vec(),
            "invalid-json",
        ),
        text(CONNECT, "[1, 2, 3]", "not-an-object"),
        text(DISCONNECT, "null", "not-an-object"),
        text(ONLINE, "\"user_online\"", "not-an-object"),
        text(
            CONNECT,
            r#"{"connId": "c", "timestamp": 1698000000000}"#,
            "missing-field",
        ),
        text(
            CONNECT,
            r#"{"userId": "1", "timestamp": 1698000000000}"#,
            "missing-field",
        ),
        text(
            HEARTBEAT,
            r#"{"userId": "1", "connId": "c"}"#,
            "missing-field",
        ),
        text(
            ONLINE,
            r#"{"type": "user_online", "timestamp": 1698000000000}"#,
            "missing-field",
        ),
        text(
            OFFLINE,
            r#"{"type": "user_offline", "userId": "1"}"#,
            "missing-field",
        ),
        text(
            CONNECT,
            r#"{"userId": 12345, "connId": "c", "timestamp": 1698000000000}"#,
            "invalid-field",
        ),
        text(CONNECT, r#"["12345", "c", 1698000000000]"#, "not-an-object"),
        text(
            CONNECT,
            r#"{"userId": "", "connId": "c", "timestamp": 1698000000000}"#,
            "invalid-field",
        ),
        text(
            CONNECT,
            r#"{"userId": "1", "connId": "", "timestamp": 1698000000000}"#,
            "invalid-field",
        ),
        text(
            CONNECT,
            &format!(r#"{{"userId": "{long}", "connId": "c", "timestamp": 1698000000000}}"#),
            "invalid-field",
        ),
        text(
            CONNECT,
            r#"{"userId": "1", "connId": "c", "timestamp": "1"}"#,
            "invalid-field",
        ),
        text(
            CONNECT,
            r#"{"userId": "1", "connId": "c", "timestamp": 0}"#,
            "invalid-field",
        ),
        text(
            CONNECT,
            r#"{"userId": "1", "connId": "c", "timestamp": -1}"#,
            "invalid-field",
        ),
        text(
            CONNECT,
            r#"{"userId": "1", "connId": "c", "timestamp": 1.5}"#,
            "invalid-field",
        ),
        text(
            CONNECT,
            r#"{"userId": "1", "connId": "c", "timestamp": 1698000000000, "metadata": []}"#,
            "invalid-field",
        ),
        text(
            CONNECT,
            r#"{"userId": "1", "connId": "c", "timestamp": 1698000000}"#,
            "invalid-field",
        ),
        text(
            OFFLINE,
            r#"{"userId": "1", "timestamp": 1698000000000, "lastSeen": 1698000000}"#,
            "invalid-field",
        ),
        with_metadata(r#"{"a": "\ud83d"}"#),
        with_metadata(r#"{"\ud83d": 1}"#),
        with_metadata(r#"{"a": 1e999}"#),
        with_metadata(r#"{"a": 1, "a": 2}"#),
        with_metadata(&format!(
            r#"{{"a": {}{}}}"#,
            "[".repeat(5_000),
            "]".repeat(5_000)
        )),
        with_metadata(&format!(r#"{{"a": "{}"}}"#, "x".repeat(20_000))),
        with_metadata(&dense(257)),
        text(
            ONLINE,
            r#"{"type": "user_online", "userId": "1", "timestamp": true}"#,
            "invalid-field",
        ),
    ]
}

/// A heartbeat with metadata that is refused.
fn with_metadata(metadata: &str) -> (&'static str, Vec<u8>, &'static str) {
    let body = format!(
        r#"{{"userId": "1", "connId": "c", "timestamp": 1698000000000, "metadata": {metadata}}}"#
    );
    (HEARTBEAT, body.into_bytes(), "invalid-field")
}

/// Metadata with this many keys.
fn dense(keys: usize) -> String {
    let keys: Vec<_> = (0..keys).map(|key| format!("\"k{key}\": {key}")).collect();
    format!("{{{}}}", keys.join(", "))
}

#[tokio::test]
async fn metadata_that_would_stall_a_worker_is_refused_by_its_field_and_holds_up_nobody()
-> Result<()> {
    let mut world = World::start().await?;
    let body = |keys: usize| {
        let metadata: Value = serde_json::from_str(&dense(keys))?;
        let mut body = inputs::connect("12345", "c1", SEED_MS);
        body["metadata"] = metadata;
        anyhow::Ok(body.to_string())
    };
    // About 800 kB each, and so many that they would delay what comes after, if each took long.
    for _ in 0..20 {
        let answer = world.client.request(CONNECT, body(60_000)?).await?;
        assert_eq!(answer["reason"], "invalid-field", "{answer}");
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(error.contains("`metadata`"), "{error}");
    }
    // As many keys as are permitted by default.
    let answer = world.client.request(CONNECT, body(256)?).await?;
    assert_eq!(answer["ok"], true, "{answer}");
    world.tape.hosts(FILTERED_ONLINE, 1).await?;
    world.end().await
}

#[tokio::test]
async fn the_configuration_says_how_much_metadata_is_taken() -> Result<()> {
    let mut world = World::start_with(|site| site.with("tracker.metadata_keys_max", 2)).await?;
    let mut body = inputs::connect("12345", "c1", SEED_MS);
    let answer = world.client.request(CONNECT, body.to_string()).await?;
    assert_eq!(answer["reason"], "invalid-field", "{answer}");
    body["metadata"] = serde_json::json!({"device": "web", "a": 1});
    world.client.input(CONNECT, body.clone()).await?;
    world.site.set("tracker.metadata_keys_max", 1)?;
    wait::until("the limit to be in force", async || {
        let answer = world.client.request(CONNECT, body.to_string()).await?;
        Ok((answer["reason"] == "invalid-field").then_some(()))
    })
    .await?;
    world.end().await
}

#[tokio::test]
async fn an_applications_times_are_no_later_than_their_arrival() -> Result<()> {
    let mut world = World::start().await?;
    world
        .client
        .input(ONLINE, inputs::online("12345", u64::MAX))
        .await?;
    let mut offline = inputs::offline("12345", SEED_MS);
    offline["lastSeen"] = u64::MAX.into();
    world.client.input(OFFLINE, offline).await?;
    let online = world.tape.hosts(FILTERED_ONLINE, 1).await?.remove(0);
    assert!(online.field("timestamp").as_u64() <= Some(now_ms()));
    let offline = world.tape.hosts(FILTERED_OFFLINE, 1).await?.remove(0);
    assert_eq!(*offline.field("lastSeen"), SEED_MS);
    let question = r#"{"viewerId": "67890", "userIds": ["12345"]}"#;
    let answer = world.client.request("presence.query", question).await?;
    assert_eq!(answer["users"][0]["lastSeen"], SEED_MS);
    world.end().await
}

#[tokio::test]
async fn every_kind_of_bad_input_is_a_dead_letter_with_its_bytes_and_an_answer() -> Result<()> {
    let mut world = World::start().await?;
    for (number, (subject, bytes, reason)) in cases().into_iter().enumerate() {
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        let before = now_ms();
        let answer = world.client.request(subject, bytes.clone()).await?;
        let dead = world.tape.hosts(DLQ, number + 1).await?.remove(number);

        assert_eq!(answer["ok"], false, "{shown}: {answer}");
        assert_eq!(answer["reason"], reason, "{shown}: {answer}");
        assert_ne!(
            answer["error"].as_str().unwrap_or_default(),
            "",
            "{shown}: {answer}"
        );

        assert_eq!(
            dead.fields(),
            [
                "subject",
                "reason",
                "error",
                "payload",
                "encoding",
                "timestamp",
                "node"
            ],
            "{shown}",
        );
        assert_eq!(dead.text("subject"), subject, "{shown}");
        assert_eq!(dead.text("reason"), reason, "{shown}");
        assert_eq!(*dead.field("error"), answer["error"], "{shown}");
        assert!(dead.field("timestamp").as_u64() >= Some(before), "{shown}");
        assert_ne!(dead.text("node"), "", "{shown}");
        let payload = dead.text("payload");
        match dead.text("encoding") {
            "utf8" => assert_eq!(payload.as_bytes(), bytes),
            "base64" => {
                assert!(
                    std::str::from_utf8(&bytes).is_err(),
                    "{shown} is text and is kept as such"
                );
                assert_eq!(BASE64.decode(payload)?, bytes);
            }
            other => panic!("no such encoding: {other}"),
        }
    }
    world
        .client
        .input(CONNECT, inputs::connect("12345", "c1", SEED_MS))
        .await?;
    world.tape.hosts(FILTERED_ONLINE, 1).await?;
    world.end().await
}

#[tokio::test]
async fn unknown_fields_are_no_error() -> Result<()> {
    let world = World::start().await?;
    let mut body = inputs::connect("12345", "c1", SEED_MS);
    body["colour"] = "green".into();
    world.client.input(CONNECT, body).await?;
    world.end().await
}

#[tokio::test]
async fn a_dead_letter_about_too_much_carries_the_beginning() -> Result<()> {
    const MAX: usize = 65_536;
    let options = Options {
        config: format!("max_payload: {MAX}"),
        ..Options::default()
    };
    let server = NatsServer::start_with(options).await?;
    let client = Client::connect(&server.url()).await?;
    let mut tape = client.record("presence.>").await?;
    let host = Host::start(&Site::new(&server.url())?).await?;

    let huge = [
        "x".repeat(MAX).into_bytes(),
        // Each byte takes six bytes when it is escaped.
        "\u{1}".repeat(MAX).into_bytes(),
        // Cut inside a character, the beginning must still be text.
        "ü".repeat(MAX / 2).into_bytes(),
        vec![0xff; MAX],
    ];
    for (number, bytes) in huge.into_iter().enumerate() {
        client.publish_bytes(CONNECT, bytes.clone()).await?;
        let dead = tape.hosts(DLQ, number + 1).await?.remove(number);
        assert_eq!(*dead.field("truncated"), Value::Bool(true));
        assert_eq!(dead.field("size").as_u64(), Some(bytes.len() as u64));
        let payload = match dead.text("encoding") {
            "base64" => BASE64.decode(dead.text("payload"))?,
            _ => dead.text("payload").as_bytes().to_vec(),
        };
        assert!(
            bytes.starts_with(&payload),
            "payload {number} is the beginning"
        );
        assert!(
            payload.len() > 1_000,
            "payload {number}: only {} bytes are kept",
            payload.len()
        );
    }
    client
        .input(CONNECT, inputs::connect("12345", "c1", SEED_MS))
        .await?;
    tape.hosts(FILTERED_ONLINE, 1).await?;
    host.stop().await
}
