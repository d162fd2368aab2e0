//! The broker goes away and comes back, and connections break.

use anyhow::Result;
use presence_tests::client::{Client, now_ms};
use presence_tests::host::Host;
use presence_tests::nats::{NatsServer, Options};
use presence_tests::proxy::Proxy;
use presence_tests::site::Site;
use presence_tests::tools;
use serde_json::Value;

use crate::inputs::{
    self, CONNECT, DISCONNECT, FILTERED_OFFLINE, FILTERED_ONLINE, HEARTBEAT, OFFLINE, SEED_MS,
};
use crate::world::{World, on};

#[tokio::test]
async fn a_host_waits_for_its_broker() -> Result<()> {
    let port = tools::free_port()?;
    let site = Site::new(&format!("nats://127.0.0.1:{port}"))?;
    let mut host = Host::spawn(&site)?;
    host.answers("/healthz", 200).await?;
    host.unready().await?;
    let server = NatsServer::start_with(Options {
        port: Some(port),
        ..Options::default()
    })
    .await?;
    host.ready().await?;
    let client = Client::connect(&server.url()).await?;
    client
        .input(CONNECT, inputs::connect("12345", "c1", SEED_MS))
        .await?;
    host.stop().await
}

#[tokio::test]
async fn a_broker_restarted_mid_stream_is_found_again_and_nobody_goes_offline() -> Result<()> {
    let mut world = World::start().await?;
    world
        .client
        .input(CONNECT, inputs::connect("12345", "c1", now_ms()))
        .await?;
    world.tape.hosts(FILTERED_ONLINE, 1).await?;

    world.server.stop().await?;
    world.host.unready().await?;
    world.server.resume().await?;
    world.host.ready().await?;
    // A recording of its own: the old subscription has a gap.
    let client = Client::connect(&world.server.url()).await?;
    world.tape = client.record("presence.>").await?;
    world.client = client;

    world
        .client
        .input(HEARTBEAT, inputs::heartbeat("12345", "c1", now_ms()))
        .await?;
    world
        .client
        .input(CONNECT, inputs::connect("22222", "c1", now_ms()))
        .await?;
    let online = world.tape.hosts(FILTERED_ONLINE, 1).await?.remove(0);
    assert_eq!(
        online.text("userId"),
        "22222",
        "12345 never went: {:#?}",
        world.tape.seen()
    );
    assert_eq!(on(world.tape.seen(), OFFLINE), Vec::<Value>::new());

    let bye = inputs::disconnect("12345", "c1", now_ms(), "client_disconnect");
    world.client.input(DISCONNECT, bye).await?;
    let offline = world.tape.hosts(FILTERED_OFFLINE, 1).await?.remove(0);
    assert_eq!(offline.text("userId"), "12345");
    assert_eq!(
        offline.visible_to(),
        ["22222", "67890"],
        "who was told before the restart"
    );
    world.end().await
}

/// What a host does on the far side of a network that fails.
async fn through_a_proxy(fail: impl AsyncFnOnce(&Proxy, &mut Host) -> Result<()>) -> Result<()> {
    let server = NatsServer::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    let site = Site::new(&proxy.url())?;
    let client = Client::connect(&server.url()).await?;
    let mut tape = client.record("presence.>").await?;
    let mut host = Host::start(&site).await?;
    client
        .input(CONNECT, inputs::connect("12345", "c1", now_ms()))
        .await?;
    tape.hosts(FILTERED_ONLINE, 1).await?;

    fail(&proxy, &mut host).await?;
    host.ready().await?;

    client
        .input(HEARTBEAT, inputs::heartbeat("12345", "c1", now_ms()))
        .await?;
    let bye = inputs::disconnect("12345", "c1", now_ms(), "client_disconnect");
    client.input(DISCONNECT, bye).await?;
    let offline = tape.hosts(OFFLINE, 1).await?.remove(0);
    assert_eq!(
        offline.text("reason"),
        "disconnect",
        "the outage itself takes nobody offline"
    );
    let offline = tape.hosts(FILTERED_OFFLINE, 1).await?.remove(0);
    assert_eq!(offline.visible_to(), ["22222", "67890"]);
    host.stop().await
}

#[tokio::test]
async fn a_cut_connection_is_made_again() -> Result<()> {
    through_a_proxy(async |proxy, host| {
        proxy.cut();
        host.unready().await?;
        proxy.resume();
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_outage_longer_than_the_timeout_takes_nobody_offline_before_they_can_speak() -> Result<()>
{
    const TIMEOUT_MS: i64 = 1_500;
    let server = NatsServer::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    let site = Site::new(&proxy.url())?.with("tracker.timeout_ms", TIMEOUT_MS)?;
    let client = Client::connect(&server.url()).await?;
    let mut tape = client.record("presence.>").await?;
    let mut host = Host::start(&site).await?;
    client
        .input(CONNECT, inputs::connect("12345", "c1", now_ms()))
        .await?;
    let connected = std::time::Instant::now();

    proxy.cut();
    host.unready().await?;
    let long = std::time::Duration::from_millis(TIMEOUT_MS as u64 + 200);
    presence_tests::wait::until("the lease to pass", async || {
        Ok((connected.elapsed() > long).then_some(()))
    })
    .await?;
    proxy.resume();
    host.ready().await?;
    let bye = inputs::disconnect("12345", "c1", now_ms(), "client_disconnect");
    client.input(DISCONNECT, bye).await?;
    let offline = tape.hosts(OFFLINE, 1).await?.remove(0);
    assert_eq!(
        offline.text("reason"),
        "disconnect",
        "the host was deaf, the user wasn't silent"
    );
    host.stop().await
}

#[tokio::test]
async fn a_link_that_hangs_turns_readiness_and_takes_nobody_offline() -> Result<()> {
    const TIMEOUT_MS: i64 = 2_000;
    let server = NatsServer::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    let site = Site::new(&proxy.url())?.with("tracker.timeout_ms", TIMEOUT_MS)?;
    let client = Client::connect(&server.url()).await?;
    let mut tape = client.record("presence.>").await?;
    let mut host = Host::start(&site).await?;
    let connect = inputs::connect("12345", "c1", now_ms());
    client.input(CONNECT, connect).await?;
    let connected = std::time::Instant::now();

    // The connection stands, and nothing comes through for longer than a time-out.
    proxy.pause();
    host.unready().await?;
    let silence = ["nothing", "heard from NATS"];
    let long = std::time::Duration::from_millis(2 * TIMEOUT_MS as u64);
    presence_tests::wait::until("two time-outs to pass", async || {
        Ok((connected.elapsed() > long).then_some(()))
    })
    .await?;
    // What the user said meanwhile comes with all else.
    let heartbeat = inputs::heartbeat("12345", "c1", now_ms());
    client.publish(HEARTBEAT, &heartbeat).await?;
    proxy.resume();
    host.ready().await?;
    let bye = inputs::disconnect("12345", "c1", now_ms(), "client_disconnect");
    client.input(DISCONNECT, bye).await?;
    let offline = tape.hosts(OFFLINE, 1).await?.remove(0);
    assert_eq!(offline.text("reason"), "disconnect", "nobody was silent");
    let log = host.process.stderr().concat().to_lowercase();
    assert!(
        silence
            .iter()
            .all(|words| log.contains(&words.to_lowercase()))
            || log.contains("lost the connection"),
        "the log says what was wrong: {log}"
    );
    host.stop().await
}
