//! The node's second connection, by which it notices what the broker has, and until when it has
//! heard everything. Without it, the main connection does this.

use anyhow::Result;
use presence_tests::client::{Client, ReceivedMessage, Recording, now_ms};
use presence_tests::host::Host;
use presence_tests::nats::NatsServer;
use presence_tests::proxy::Proxy;
use presence_tests::site::Site;

use crate::inputs::{self, CONNECT, FILTERED_ONLINE, OFFLINE};

const SECOND: &str = "presence_nats_second_connection";

/// A user connects and times out. Both are told, so the node knows that the broker has the
/// messages.
async fn comes_and_times_out(
    user: &str,
    client: &Client,
    tape: &mut Recording,
    host: &Host,
) -> Result<ReceivedMessage> {
    let connect = inputs::connect(user, "c", now_ms());
    client.input(CONNECT, connect).await?;
    tape.hosts(FILTERED_ONLINE, 1).await?;
    let offline = tape.hosts(OFFLINE, 1).await?.remove(0);
    assert_eq!(
        (offline.text("userId"), offline.text("reason")),
        (user, "timeout")
    );
    host.until_metric("presence_journal_bytes", &[], |bytes| bytes == 0.0)
        .await?;
    Ok(offline)
}

#[tokio::test]
async fn without_its_second_connection_a_node_publishes_and_hears_as_before() -> Result<()> {
    let server = NatsServer::start().await?;
    let proxy = Proxy::start_for(server.port(), "pulse").await?;
    let site = Site::new(&proxy.url())?.with("tracker.timeout_ms", 1_000)?;
    let client = Client::connect(&server.url()).await?;
    let mut tape = client.record("presence.>").await?;
    let mut host = Host::start(&site).await?;
    let from = host.log_len();

    // The second connection is open, and carries nothing.
    proxy.pause();
    comes_and_times_out("12345", &client, &mut tape, &host).await?;
    host.until_metric(SECOND, &[], |is| is == 0.0).await?;
    host.wait_for_log(from, &["second connection", "the main one"])
        .await?;

    // The second connection is closed, and can't be made again.
    proxy.cut();
    comes_and_times_out("12345", &client, &mut tape, &host).await?;
    host.ready().await?;

    proxy.resume();
    host.until_metric(SECOND, &[], |is| is == 1.0).await?;
    comes_and_times_out("12345", &client, &mut tape, &host).await?;
    let log = host.process.stderr().concat();
    assert!(!log.contains("NATS doesn't respond"), "{log}");
    host.stop().await
}

#[tokio::test]
async fn leases_run_on_at_the_same_speed_when_a_reload_shortens_the_time_out() -> Result<()> {
    let server = NatsServer::start().await?;
    let mut site = Site::new(&server.url())?.with("tracker.timeout_ms", 60_000)?;
    let client = Client::connect(&server.url()).await?;
    let mut tape = client.record("presence.>").await?;
    let mut host = Host::start(&site).await?;
    let from = host.log_len();

    site.set("tracker.timeout_ms", 200)?;
    host.wait_for_log(from, &["configuration", "reloaded"])
        .await?;
    // If the broker were asked as rarely as before, no lease would end within a second.
    for _ in 0..50 {
        let offline = comes_and_times_out("12345", &client, &mut tape, &host).await?;
        let at = |key: &str| offline.body[key].as_u64().unwrap();
        if at("timestamp") - at("lastSeen") < 700 {
            return host.stop().await;
        }
    }
    panic!("no lease of 200 ms ended within 700 ms");
}
