//! What applications state themselves: how long it holds, and how it combines with connections.

use anyhow::Result;
use presence_tests::client::now_ms;
use presence_tests::host::Host;
use serde_json::{Value, json};

use crate::inputs::{
    self, CONNECT, DISCONNECT, EVENTS, FILTERED_OFFLINE, FILTERED_ONLINE, HEARTBEAT, OFFLINE,
    ONLINE,
};
use crate::world::{World, on};

/// The status of 12345 in the answer to 67890, a contact.
async fn status(world: &World) -> Result<Value> {
    let question = json!({"viewerId": "67890", "userIds": ["12345"]}).to_string();
    let answer = world.client.request("presence.query", question).await?;
    Ok(answer["users"][0]["status"].clone())
}

async fn send_statement(world: &World, subject: &str, body: Value) -> Result<()> {
    world.client.input(subject, body).await
}

#[tokio::test]
async fn an_offline_holds_until_the_next_connect_and_ends_no_connection() -> Result<()> {
    let mut world = World::start().await?;
    send_statement(&world, CONNECT, inputs::connect("12345", "c1", now_ms())).await?;
    send_statement(&world, OFFLINE, inputs::offline("12345", now_ms())).await?;
    assert_eq!(status(&world).await?, "offline");
    // Neither a live connection nor one that a heartbeat adopts changes this.
    send_statement(
        &world,
        HEARTBEAT,
        inputs::heartbeat("12345", "c1", now_ms()),
    )
    .await?;
    send_statement(
        &world,
        HEARTBEAT,
        inputs::heartbeat("12345", "c2", now_ms()),
    )
    .await?;
    assert_eq!(status(&world).await?, "offline");
    // The user's offline isn't published twice.
    let bye = |conn| inputs::disconnect("12345", conn, now_ms(), "logout");
    send_statement(&world, DISCONNECT, bye("c1")).await?;
    send_statement(&world, DISCONNECT, bye("c2")).await?;
    send_statement(
        &world,
        HEARTBEAT,
        inputs::heartbeat("12345", "c3", now_ms()),
    )
    .await?;
    assert_eq!(status(&world).await?, "offline");
    send_statement(&world, CONNECT, inputs::connect("12345", "c4", now_ms())).await?;
    assert_eq!(status(&world).await?, "online");

    let seen = world.all_about("12345").await?;
    let types = |subject: &str| -> Vec<_> {
        let bodies = on(&seen, subject);
        bodies.iter().map(|body| body["type"].clone()).collect()
    };
    assert_eq!(
        types(EVENTS),
        ["user_online", "user_offline", "user_online"]
    );
    assert_eq!(on(&seen, ONLINE).len(), 2);
    assert_eq!(on(&seen, OFFLINE), Vec::<Value>::new());
    assert_eq!(on(&seen, FILTERED_ONLINE).len(), 2);
    assert_eq!(on(&seen, FILTERED_OFFLINE).len(), 1);
    world.end().await
}

#[tokio::test]
async fn an_offline_holds_over_a_restart() -> Result<()> {
    let mut world = World::start_with(|it| it.with("tracker.timeout_ms", 600_000)).await?;
    send_statement(&world, CONNECT, inputs::connect("12345", "c1", now_ms())).await?;
    send_statement(&world, OFFLINE, inputs::offline("12345", now_ms())).await?;
    world.host.until_saved(2.0).await?;
    world.host.process.stop().await?;
    world.host = Host::start(&world.site).await?;
    send_statement(
        &world,
        HEARTBEAT,
        inputs::heartbeat("12345", "c2", now_ms()),
    )
    .await?;
    assert_eq!(status(&world).await?, "offline");
    send_statement(&world, ONLINE, inputs::online("12345", now_ms())).await?;
    assert_eq!(status(&world).await?, "online");
    world.end().await
}

#[tokio::test]
async fn an_online_ends_unless_it_is_repeated_and_a_crashed_application_leaves_no_ghost()
-> Result<()> {
    const TTL_MS: i64 = 600;
    let mut world = World::start_with(|it| it.with("tracker.statement_ttl_ms", TTL_MS)).await?;
    let stated_at = now_ms();
    send_statement(&world, ONLINE, inputs::online("12345", stated_at)).await?;
    let offline = world.tape.hosts(OFFLINE, 1).await?.remove(0);
    assert_eq!(offline.text("reason"), "timeout");
    assert_eq!(*offline.field("lastSeen"), stated_at);
    let metadata = json!({"timeoutDuration": TTL_MS, "lastHeartbeat": stated_at});
    assert_eq!(*offline.field("metadata"), metadata);
    let told = world.tape.hosts(FILTERED_OFFLINE, 1).await?.remove(0);
    assert_eq!(told.visible_to(), ["22222", "67890"]);
    assert_eq!(status(&world).await?, "offline");

    // The same after a restart.
    send_statement(&world, ONLINE, inputs::online("12345", now_ms())).await?;
    world.host.process.stop().await?;
    world.host = Host::start(&world.site).await?;
    world.tape.hosts(OFFLINE, 2).await?;
    world.end().await
}

#[tokio::test]
async fn connections_take_over_from_an_applications_online() -> Result<()> {
    let mut world = World::start_with(|it| it.with("tracker.statement_ttl_ms", 600)).await?;
    send_statement(&world, ONLINE, inputs::online("12345", now_ms())).await?;
    send_statement(&world, CONNECT, inputs::connect("12345", "c1", now_ms())).await?;
    // A statement about a user who is connected.
    send_statement(&world, ONLINE, inputs::online("12345", now_ms())).await?;
    // The statement about another user, which is made later, ends.
    send_statement(&world, ONLINE, inputs::online("67890", now_ms())).await?;
    world.tape.hosts(OFFLINE, 1).await?;
    assert_eq!(status(&world).await?, "online");
    let bye = inputs::disconnect("12345", "c1", now_ms(), "logout");
    send_statement(&world, DISCONNECT, bye).await?;
    assert_eq!(status(&world).await?, "offline");
    let offline = world.tape.hosts(OFFLINE, 2).await?.remove(1);
    assert_eq!(offline.text("reason"), "logout");
    world.end().await
}
