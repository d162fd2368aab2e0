//! The seed document's JavaScript handlers, unchanged, in Node with npm's client: they get the
//! messages that they were written for.

use anyhow::{Context, Result};
use presence_tests::client::Client;
use presence_tests::nats::NatsServer;
use presence_tests::process::Process;
use presence_tests::{node, tools};
use serde_json::{Value, json};

use crate::inputs::{self, CONNECT, DISCONNECT, EVENTS, FILTERED_ONLINE, ONLINE, SEED_MS};
use crate::world::World;

/// The handlers, running.
async fn handlers(url: &str) -> Result<Process> {
    let document = tools::root().join("tests/seed/nats-presence-event-payloads.md");
    let document = document.to_string_lossy();
    let mut node = node::spawn("tests/node/handlers.js", &[url, &document])?;
    call(&mut node, "ready", |_| true).await?;
    Ok(node)
}

/// Waits for a call that the handlers make, and returns its arguments.
async fn call(node: &mut Process, name: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let args = |line: &str| {
        let call: Value = serde_json::from_str(line).ok()?;
        (call["call"] == name).then(|| call["args"].clone())
    };
    let what = format!("the handlers to call {name}");
    let line = node.wait_for_stdout(&what, |line| args(line).is_some_and(|args| wanted(&args)));
    args(&line.await?).context("the line that was waited for")
}

#[tokio::test]
async fn they_are_called_for_what_the_host_publishes() -> Result<()> {
    let mut world = World::start().await?;
    let mut node = handlers(&world.server.url()).await?;
    let client = &world.client;
    client
        .input(CONNECT, inputs::connect("12345", "web_abc123", SEED_MS))
        .await?;
    let bye = inputs::disconnect("12345", "web_abc123", SEED_MS, "client_disconnect");
    client.input(DISCONNECT, bye).await?;

    let args = call(&mut node, "handleUserOnline", |_| true).await?;
    let metadata = json!({"device": "web", "userAgent": "Mozilla/5.0...", "connId": "web_abc123"});
    assert_eq!(args, json!(["12345", metadata]));
    let args = call(&mut node, "handleUserOffline", |_| true).await?;
    assert_eq!(args, json!(["12345", SEED_MS]));
    for kind in ["user_online", "user_offline"] {
        let expected = json!(["Presence event:", kind, "12345"]);
        call(&mut node, "console.log", |args| *args == expected).await?;
    }

    // The seed's own filters agree with the host's.
    let ours = world.tape.hosts(FILTERED_ONLINE, 1).await?.remove(0);
    let contacts = call(&mut node, "publish", |_| true).await?;
    assert_eq!(contacts[0], FILTERED_ONLINE);
    let groups = call(&mut node, "groups", |_| true).await?;
    for theirs in [&contacts[1], &groups[0]] {
        for field in ["type", "userId", "timestamp"] {
            assert_eq!(theirs[field], *ours.field(field));
        }
    }
    let names = |viewers: &Value| -> Vec<String> {
        let viewers = viewers.as_array().into_iter().flatten();
        viewers
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    };
    let union = [
        names(&contacts[1]["visibleTo"]),
        names(&groups[0]["visibleTo"]),
    ]
    .concat();
    let mut union: Vec<_> = union
        .iter()
        .map(String::as_str)
        .filter(|name| !["12345", "11111"].contains(name))
        .collect();
    union.sort_unstable();
    assert_eq!(
        ours.visible_to(),
        union,
        "contacts and groups, less the blocked and the user"
    );
    world.end().await
}

#[tokio::test]
async fn what_they_publish_is_taken_as_an_applications_word() -> Result<()> {
    let mut world = World::start().await?;
    let _node = handlers(&world.server.url()).await?;
    world.client.nats.request("test.publish", "".into()).await?;

    let event = world.tape.hosts(EVENTS, 1).await?.remove(0);
    assert_eq!(event.text("type"), "user_online");
    assert_eq!(*event.field("metadata"), json!({"device": "web"}));
    let filtered = world.tape.hosts(FILTERED_ONLINE, 1).await?.remove(0);
    assert_eq!(filtered.visible_to(), ["22222", "67890"]);

    // The heartbeat is of a connection the host never saw: it is adopted, and
    // its user comes online.
    let online = world.tape.hosts(ONLINE, 1).await?.remove(0);
    assert_eq!(online.field("metadata")["connId"], "web_abc123");
    world.end().await
}

#[tokio::test]
async fn their_handling_of_invalid_events_works_on_real_messages() -> Result<()> {
    let server = NatsServer::start().await?;
    let client = Client::connect(&server.url()).await?;
    let mut node = handlers(&server.url()).await?;
    let good = inputs::online("12345", SEED_MS);
    client.publish("test.handle", &good).await?;
    client
        .publish("test.handle", &json!({"type": "user_online"}))
        .await?;
    client.publish_bytes("test.handle", "{").await?;
    assert_eq!(
        call(&mut node, "handleEvent", |_| true).await?,
        json!([good])
    );
    for error in ["Invalid event format", "SyntaxError"] {
        call(&mut node, "logger.error", |args| {
            args[0] == "Invalid presence event:"
                && args[1].as_str().is_some_and(|text| text.contains(error))
        })
        .await?;
    }
    Ok(())
}
