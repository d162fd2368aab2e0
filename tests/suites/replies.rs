//! Where the host answers. A client that asks names the reply subject, and could otherwise make the
//! host publish, with the host's rights, where the client may not. And what isn't an answer, if a
//! JetStream stream replies, too.

use anyhow::Result;
use async_nats::jetstream;
use presence_tests::client::{Client, ReceivedMessage, now_ms};
use presence_tests::host::{self, Host};
use presence_tests::nats::NatsServer;
use presence_tests::site::{DIRECTORY, Site};
use serde_json::{Value, json};

use crate::inputs::{self, CONNECT, DISCONNECT, FILTERED_ONLINE, HEARTBEAT, OFFLINE, ONLINE};
use crate::service::Service;
use crate::world::World;

/// Subjects to which nobody may have an answer sent.
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

/// Every subject that answers, with a body that is accepted there and one that is refused.
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
    // Records what the host publishes on these subjects: the host is another client.
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
        // The same question is answered on a permitted subject.
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
    // On these subjects, there are only the test's own questions, events of what it reported, and
    // what the node asks others every few seconds: no answers.
    let is_answer = |seen: &ReceivedMessage| {
        let fields = ["ok", "users", "stages", "node"];
        seen.reply.is_none() && fields.iter().any(|field| seen.body.get(field).is_some())
    };
    for (subject, tape) in FORBIDDEN.iter().zip(&mut tapes) {
        let end = json!({"end": true});
        world.client.publish(subject, &end).await?;
        tape.next("the end", |seen| seen.body == end).await?;
        for seen in tape.seen() {
            assert!(!is_answer(seen), "{subject}: {}", seen.body);
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

/// A broker with a stream that stores all questions, and replies to each at once.
async fn server_with_stream() -> Result<NatsServer> {
    let server = NatsServer::start().await?;
    let client = Client::connect(&server.url()).await?;
    let stream = jetstream::stream::Config {
        name: "everything".into(),
        subjects: ["presence.>", "presence-nodes.>", "presence-directory.>"]
            .map(str::to_owned)
            .to_vec(),
        ..Default::default()
    };
    jetstream::new(client.nats.clone())
        .create_stream(stream)
        .await?;
    Ok(server)
}

#[tokio::test]
async fn a_stream_that_replies_as_well_is_passed_over() -> Result<()> {
    let server = server_with_stream().await?;
    let site = Site::new(&server.url())?.with("explain.enabled", true)?;
    let host = Host::start(&site).await?;
    let client = Client::connect(&server.url()).await?;
    let mut tape = client.record("presence.>").await?;
    let connect = inputs::connect("12345", "c", now_ms());
    client.publish(CONNECT, &connect).await?;
    tape.hosts(FILTERED_ONLINE, 1).await?;

    let asked = host::run(&site, &["query", "67890", "12345", "--json"])?;
    assert_eq!(asked.status.code(), Some(0), "{asked:?}");
    let answer: Value = serde_json::from_slice(&asked.stdout)?;
    assert_eq!(answer["users"][0]["status"], "online");
    let explained = host::run(&site, &["explain", "67890", "12345"])?;
    assert_eq!(explained.status.code(), Some(0), "{explained:?}");
    let text = String::from_utf8(explained.stdout)?;
    assert!(text.contains("May 67890 see 12345? yes."), "{text}");
    // A second node finds the first one, although the stream replies first.
    let second = Site::new(&server.url())?;
    let mut waiting = Host::spawn(&second)?;
    waiting.wait_for_log(0, &["waiting while node"]).await?;
    waiting.stop().await?;
    host.stop().await?;

    // Nobody else answers: the stream's reply is reported not to be an answer.
    for command in [
        &["query", "67890", "12345"][..],
        &["explain", "67890", "12345"],
    ] {
        let asked = host::run(&site, command)?;
        let error = String::from_utf8(asked.stderr)?;
        assert_eq!(asked.status.code(), Some(1), "{error}");
        assert!(error.contains("stream `everything`"), "{error}");
        assert!(asked.stdout.is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn a_directory_is_asked_beside_a_stream() -> Result<()> {
    let server = server_with_stream().await?;
    let _service = Service::start(&server.url(), serde_json::from_str(DIRECTORY)?).await?;
    let site = Site::new(&server.url())?.with("directory.source", "request")?;
    let host = Host::start(&site).await?;
    let client = Client::connect(&server.url()).await?;
    let mut tape = client.record("presence.>").await?;
    let connect = inputs::connect("12345", "c", now_ms());
    client.publish(CONNECT, &connect).await?;
    let online = tape.hosts(FILTERED_ONLINE, 1).await?.remove(0);
    assert_eq!(online.visible_to(), ["22222", "67890"]);
    host.stop().await
}
