//! Where the host answers: whoever asks names the subject, and could otherwise have
//! the host write with its own rights where they may not.

use anyhow::Result;
use presence_tests::client::{Client, now_ms};
use serde_json::{Value, json};

use crate::inputs::{self, CONNECT, DISCONNECT, HEARTBEAT, OFFLINE, ONLINE};
use crate::world::World;

/// Where nobody may have an answer sent.
const FORBIDDEN: [&str; 9] = [
    "$KV.presence-directory.settings.12345",
    "$JS.API.STREAM.PURGE.KV_presence-directory",
    "$SYS.REQ.USER.INFO",
    "presence.filtered.user_online",
    "presence.inbox.ben",
    "presence.connect",
    "presence-directory.invalidate",
    "presence-nodes.hello",
    "somewhere.else",
];

/// Every subject that answers, with a body that is answered there and one that is
/// refused there.
fn answering() -> Vec<(&'static str, [Value; 2])> {
    let now = now_ms();
    vec![
        (CONNECT, [inputs::connect("eve", "c", now), json!([])]),
        (HEARTBEAT, [inputs::heartbeat("eve", "c", now), json!([])]),
        (
            DISCONNECT,
            [inputs::disconnect("eve", "c", now, "logout"), json!([])],
        ),
        (ONLINE, [inputs::online("eve", now), json!([])]),
        (OFFLINE, [inputs::offline("eve", now), json!([])]),
        (
            "presence.query",
            [json!({"viewerId": "ada", "userIds": ["12345"]}), json!([])],
        ),
        (
            "presence.query.ada",
            [json!({"userIds": ["12345"]}), json!([])],
        ),
        (
            "presence.explain",
            [json!({"viewerId": "ada", "userId": "12345"}), json!([])],
        ),
        ("presence-nodes.hello", [json!({}), json!([])]),
    ]
}

async fn ask(client: &Client, subject: &str, reply: &str, body: &Value) -> Result<()> {
    let (subject, reply) = (subject.to_owned(), reply.to_owned());
    let bytes = body.to_string().into_bytes().into();
    Ok(client
        .nats
        .publish_with_reply(subject, reply, bytes)
        .await?)
}

#[tokio::test]
async fn answers_go_to_reply_subjects_alone_whatever_is_asked() -> Result<()> {
    let world = World::start_with(|site| site.with("explain.enabled", true)).await?;
    // What is published where answers must not go, by the host: it is another client.
    let mut tapes = Vec::new();
    for subject in FORBIDDEN {
        tapes.push(world.client.record(subject).await?);
    }
    let mut asked = 0;
    for (subject, bodies) in answering() {
        for (forbidden, body) in FORBIDDEN.iter().zip(bodies.iter().cycle()) {
            ask(&world.client, subject, forbidden, body).await?;
            asked += 1;
        }
        // The same is answered where it may be.
        let inbox = world.client.nats.new_inbox();
        let mut answers = world.client.record(&inbox).await?;
        ask(&world.client, subject, &inbox, &bodies[0]).await?;
        answers.next("the answer", |_| true).await?;
    }
    let refused = |count| count >= f64::from(asked);
    world
        .host
        .until_metric("presence_replies_refused_total", &[], refused)
        .await?;
    // Whatever was published there is what the test itself has asked, or an event of
    // what it reported: no answer.
    let is_answer = |body: &Value| {
        let fields = ["ok", "users", "stages", "node"];
        fields.iter().any(|field| body.get(field).is_some())
    };
    for (subject, tape) in FORBIDDEN.iter().zip(&mut tapes) {
        let end = json!({"end": true});
        world.client.publish(subject, &end).await?;
        let last = |seen: &presence_tests::client::Seen| seen.body == end;
        tape.next("the end", last).await?;
        for seen in tape.seen() {
            assert!(!is_answer(&seen.body), "{subject}: {}", seen.body);
        }
    }
    world.end().await
}

#[tokio::test]
async fn an_operator_names_other_reply_subjects() -> Result<()> {
    let prefixes = ["_R_.", "replies.of.ours."].map(String::from).to_vec();
    let world = World::start_with(|site| site.with("nats.reply_prefixes", prefixes)).await?;
    let mut answers = world.client.record("replies.>").await?;
    let body = inputs::connect("12345", "c", now_ms());
    ask(&world.client, CONNECT, "_INBOX.a", &body).await?;
    ask(&world.client, CONNECT, "replies.of.ours.7", &body).await?;
    let answer = answers.next("the answer", |_| true).await?;
    assert_eq!(answer.body, json!({"ok": true}));
    let refused = "presence_replies_refused_total";
    assert_eq!(world.host.metric(refused, &[]).await?, 1.0);
    world.end().await
}

#[tokio::test]
async fn the_log_tells_of_it_once_a_while() -> Result<()> {
    let mut world = World::start().await?;
    for _ in 0..20 {
        let body = inputs::heartbeat("12345", "c", now_ms());
        ask(&world.client, HEARTBEAT, "$KV.x", &body).await?;
    }
    let all = |count| count >= 20.0;
    world
        .host
        .until_metric("presence_replies_refused_total", &[], all)
        .await?;
    let line = world
        .host
        .wait_for_log(0, &["$KV.x", "reply_prefixes", "not answered"])
        .await?;
    assert!(line.contains("WARN"), "{line}");
    let lines = world.host.process.stderr();
    let told = lines.iter().filter(|line| line.contains("$KV.x")).count();
    assert_eq!(told, 1, "{lines:?}");
    world.end().await
}
