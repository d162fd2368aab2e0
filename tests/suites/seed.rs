//! The seed document's flows, with its own bodies, and what the contract says about each of their
//! fields.

use anyhow::Result;
use presence_tests::client::{ReceivedMessage, now_ms};
use serde_json::{Value, json};

use crate::inputs::{
    self, CONNECT, DISCONNECT, DLQ, EVENTS, FILTERED_OFFLINE, FILTERED_ONLINE, HEARTBEAT, OFFLINE,
    ONLINE, SEED_MS,
};
use crate::world::{World, on};

fn only<'a>(seen: &'a [ReceivedMessage], subject: &str) -> &'a ReceivedMessage {
    let matching: Vec<_> = seen.iter().filter(|seen| seen.subject == subject).collect();
    match matching.as_slice() {
        [one] => one,
        several => panic!("one message on {subject} expected, not {several:#?}"),
    }
}

#[tokio::test]
async fn first_device_brings_the_user_online() -> Result<()> {
    let mut world = World::start().await?;
    let before = now_ms();
    world
        .client
        .input(CONNECT, inputs::connect("12345", "web_abc123", SEED_MS))
        .await?;
    let seen = world.all_about("12345").await?;
    let after = now_ms();

    let online = only(&seen, ONLINE);
    assert_eq!(online.fields(), ["type", "userId", "timestamp", "metadata"]);
    assert_eq!(online.text("type"), "user_online");
    assert_eq!(
        *online.field("metadata"),
        json!({"device": "web", "userAgent": "Mozilla/5.0...", "connId": "web_abc123"}),
    );
    let at = online.field("timestamp").as_u64().unwrap_or_default();
    assert!(
        (before..=after).contains(&at),
        "{at} is the host's clock, {before} to {after}"
    );

    assert_eq!(only(&seen, EVENTS).body, online.body);

    let filtered = only(&seen, FILTERED_ONLINE);
    assert_eq!(
        filtered.fields(),
        ["type", "userId", "timestamp", "visibleTo", "metadata"]
    );
    assert_eq!(filtered.field("timestamp"), online.field("timestamp"));
    assert_eq!(
        filtered.visible_to(),
        ["22222", "67890"],
        "11111 is a contact, but blocked"
    );
    assert_eq!(*filtered.field("metadata"), json!({"device": "web"}));
    world.end().await
}

#[tokio::test]
async fn location_is_broadcast_where_it_is_known_and_ip_never() -> Result<()> {
    let mut world = World::start().await?;
    let mut body = inputs::connect("12345", "c1", SEED_MS);
    body["metadata"] =
        json!({"device": "web", "location": "dashboard", "ip": "192.168.1.1", "plan": "pro"});
    world.client.input(CONNECT, body).await?;
    let seen = world.all_about("12345").await?;
    assert_eq!(
        *only(&seen, ONLINE).field("metadata"),
        json!({"device": "web", "location": "dashboard", "connId": "c1"}),
    );
    world.end().await
}

#[tokio::test]
async fn additional_devices_and_activity_say_nothing() -> Result<()> {
    let mut world = World::start().await?;
    let web = "web_abc123";
    let mobile = "mobile_xyz789";
    let client = world.client.clone();
    client
        .input(CONNECT, inputs::connect("12345", web, SEED_MS))
        .await?;
    client
        .input(CONNECT, inputs::connect("12345", mobile, SEED_MS))
        .await?;
    client
        .input(CONNECT, inputs::connect("12345", web, SEED_MS))
        .await?;
    client
        .input(HEARTBEAT, inputs::heartbeat("12345", web, SEED_MS))
        .await?;
    client
        .input(
            DISCONNECT,
            inputs::disconnect("12345", mobile, SEED_MS, "client_disconnect"),
        )
        .await?;
    let seen = world.all_about("12345").await?;
    for subject in [ONLINE, EVENTS, FILTERED_ONLINE] {
        only(&seen, subject);
    }
    assert_eq!(seen.len(), 3, "{seen:#?}");
    world.end().await
}

#[tokio::test]
async fn last_device_takes_the_user_offline() -> Result<()> {
    let mut world = World::start().await?;
    let before = now_ms();
    world
        .client
        .input(CONNECT, inputs::connect("12345", "web_abc123", SEED_MS))
        .await?;
    let bye = inputs::disconnect("12345", "web_abc123", SEED_MS, "client_disconnect");
    world.client.input(DISCONNECT, bye).await?;
    let seen = world.all_about("12345").await?;

    let offline = only(&seen, OFFLINE);
    assert_eq!(
        offline.fields(),
        ["type", "userId", "timestamp", "lastSeen", "reason"]
    );
    assert_eq!(offline.text("type"), "user_offline");
    assert_eq!(*offline.field("lastSeen"), SEED_MS);
    assert_eq!(offline.text("reason"), "disconnect");
    assert!(offline.field("timestamp").as_u64() >= Some(before));

    let events = on(&seen, EVENTS);
    assert_eq!(
        events,
        [only(&seen, ONLINE).body.clone(), offline.body.clone()]
    );

    let filtered = only(&seen, FILTERED_OFFLINE);
    assert_eq!(
        filtered.fields(),
        ["type", "userId", "timestamp", "lastSeen", "visibleTo"]
    );
    assert_eq!(filtered.field("timestamp"), offline.field("timestamp"));
    assert_eq!(*filtered.field("lastSeen"), SEED_MS);
    let told = only(&seen, FILTERED_ONLINE).field("visibleTo");
    assert_eq!(
        filtered.field("visibleTo"),
        told,
        "anyone who was told, in the same order"
    );
    world.end().await
}

#[tokio::test]
async fn reasons_of_transports_become_reasons_of_events() -> Result<()> {
    let mut world = World::start().await?;
    let cases = [
        ("client_disconnect", "disconnect"),
        ("server_shutdown", "disconnect"),
        ("timeout", "timeout"),
        ("logout", "logout"),
        ("gremlins", "disconnect"),
    ];
    for (said, meant) in cases {
        let user = format!("user-{said}");
        world
            .client
            .input(CONNECT, inputs::connect(&user, "c1", SEED_MS))
            .await?;
        world
            .client
            .input(DISCONNECT, inputs::disconnect(&user, "c1", SEED_MS, said))
            .await?;
        let seen = world.all_about(&user).await?;
        assert_eq!(only(&seen, OFFLINE).text("reason"), meant, "for {said}");
    }
    world.end().await
}

#[tokio::test]
async fn silence_times_out() -> Result<()> {
    const TIMEOUT_MS: u64 = 400;
    let mut world =
        World::start_with(|site| site.with("tracker.timeout_ms", TIMEOUT_MS as i64)).await?;
    world
        .client
        .input(CONNECT, inputs::connect("12345", "c1", now_ms()))
        .await?;
    let last = now_ms();
    world
        .client
        .input(HEARTBEAT, inputs::heartbeat("12345", "c1", last))
        .await?;
    let offline = world.tape.hosts(OFFLINE, 1).await?.remove(0);
    assert_eq!(
        offline.fields(),
        [
            "type",
            "userId",
            "timestamp",
            "lastSeen",
            "reason",
            "metadata"
        ]
    );
    assert_eq!(offline.text("reason"), "timeout");
    assert_eq!(*offline.field("lastSeen"), last);
    assert_eq!(
        *offline.field("metadata"),
        json!({"timeoutDuration": TIMEOUT_MS, "lastHeartbeat": last}),
    );
    assert!(offline.field("timestamp").as_u64() >= Some(last + TIMEOUT_MS));

    let filtered = world.tape.hosts(FILTERED_OFFLINE, 1).await?.remove(0);
    assert_eq!(
        filtered.fields(),
        ["type", "userId", "timestamp", "lastSeen", "visibleTo"]
    );
    assert_eq!(*filtered.field("lastSeen"), last);
    assert_eq!(filtered.visible_to(), ["22222", "67890"]);
    world.end().await
}

#[tokio::test]
async fn reconnect_within_the_grace_says_nothing() -> Result<()> {
    let mut world = World::start_with(|site| site.with("tracker.grace_ms", 600_000)).await?;
    let client = world.client.clone();
    client
        .input(CONNECT, inputs::connect("12345", "c1", now_ms()))
        .await?;
    client
        .input(
            DISCONNECT,
            inputs::disconnect("12345", "c1", now_ms(), "client_disconnect"),
        )
        .await?;
    client
        .input(CONNECT, inputs::connect("12345", "c2", now_ms()))
        .await?;
    let seen = world.all_about("12345").await?;
    only(&seen, ONLINE);
    assert_eq!(on(&seen, OFFLINE), Vec::<Value>::new());
    world.end().await
}

#[tokio::test]
async fn invalid_format_goes_to_the_dead_letters_and_the_stream_goes_on() -> Result<()> {
    let mut world = World::start().await?;
    let text = r#"{"userId": "12345", "connId""#;
    world.client.publish_bytes(CONNECT, text).await?;
    world
        .client
        .input(CONNECT, inputs::connect("12345", "c1", SEED_MS))
        .await?;
    let dead = world.tape.hosts(DLQ, 1).await?.remove(0);
    assert_eq!(dead.text("subject"), CONNECT);
    assert_eq!(dead.text("reason"), "invalid-json");
    assert_eq!(dead.text("payload"), text);
    world.tape.hosts(FILTERED_ONLINE, 1).await?;
    world.end().await
}

#[tokio::test]
async fn applications_events_are_broadcast_and_filtered_once() -> Result<()> {
    let mut world = World::start().await?;
    let online = inputs::online("12345", SEED_MS);
    world.client.input(ONLINE, online.clone()).await?;
    let offline = inputs::offline("12345", SEED_MS + 1);
    world.client.input(OFFLINE, offline.clone()).await?;
    let seen = world.all_about("12345").await?;

    assert_eq!(on(&seen, EVENTS), [online, offline]);
    assert!(
        on(&seen, ONLINE).is_empty() && on(&seen, OFFLINE).is_empty(),
        "no echo: {seen:#?}"
    );
    let filtered = only(&seen, FILTERED_ONLINE);
    assert_eq!(*filtered.field("timestamp"), SEED_MS);
    assert_eq!(filtered.visible_to(), ["22222", "67890"]);
    assert_eq!(*filtered.field("metadata"), json!({"device": "web"}));
    let filtered = only(&seen, FILTERED_OFFLINE);
    assert_eq!(*filtered.field("lastSeen"), SEED_MS + 1);
    assert_eq!(filtered.visible_to(), ["22222", "67890"]);
    world.end().await
}

#[tokio::test]
async fn nobody_is_in_their_own_audience_and_nobody_else_means_no_message() -> Result<()> {
    let directory = r#"{"contacts": {"12345": ["12345", "67890"], "11111": ["11111"]}, "groups": {}, "blocks": {}}"#;
    let mut world = World::start_with(|site| {
        site.write_directory(directory)?;
        Ok(site)
    })
    .await?;
    for user in ["12345", "11111"] {
        world
            .client
            .input(CONNECT, inputs::connect(user, "c1", SEED_MS))
            .await?;
    }
    let seen = world.all_about("12345").await?;
    assert_eq!(only(&seen, FILTERED_ONLINE).visible_to(), ["67890"]);
    let seen = world.all_about("11111").await?;
    only(&seen, ONLINE);
    assert_eq!(on(&seen, FILTERED_ONLINE), Vec::<Value>::new());
    world.end().await
}
