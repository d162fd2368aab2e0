//! A stream on three servers: without a leader for a while, and when the server that leads it is
//! gone.

use anyhow::Result;
use async_nats::jetstream;
use presence_tests::client::{Client, now_ms};
use presence_tests::cluster::Cluster;
use presence_tests::host::Host;
use presence_tests::site::Site;
use presence_tests::wait;

use super::{CONNECT, HEARTBEAT, ONLINE, STREAM, command};
use crate::inputs;

// A command blocks its thread, and the routes between the servers pass through the test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_without_a_leader_is_said_and_read_again_when_it_has_one() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let site = Site::new(&cluster.url(0))?.with("input.stream", STREAM)?;
    command(&site, &["input", "init", "--replicas", "3"])?;
    let mut host = Host::start(&site).await?;
    let client = Client::connect(&cluster.url(0)).await?;
    let mut tape = client.record("presence.>").await?;
    let context = jetstream::new(client.nats.clone());
    // A publisher repeats what the stream doesn't acknowledge.
    let store = async |user: &str| {
        let body = inputs::connect(user, "c1", now_ms()).to_string();
        wait::until("the stream to take a connect", async || {
            let stored = context.publish(CONNECT, body.clone().into()).await?;
            Ok(stored.await.ok())
        })
        .await
    };
    store("12345").await?;
    tape.hosts(ONLINE, 1).await?;

    for server in [1, 2] {
        cluster.servers[server].kill().await?;
    }
    host.unready_because("can't be taken from the stream")
        .await?;
    let body = inputs::heartbeat("22222", "c1", now_ms());
    client.input(HEARTBEAT, body).await?;
    tape.hosts(ONLINE, 2).await?;
    for server in [1, 2] {
        cluster.servers[server].resume().await?;
    }
    store("33333").await?;
    let came = tape.hosts(ONLINE, 3).await?;
    assert_eq!(came[2].text("userId"), "33333");
    host.ready().await?;
    let lost = host.metric("presence_input_stream_lost_total", &[]).await?;
    assert_eq!(lost, 0.0);

    // Whichever server leads the stream, another one takes its place.
    for server in [1, 2] {
        cluster.servers[server].kill().await?;
        store(&format!("user-{server}")).await?;
        tape.hosts(ONLINE, 3 + server).await?;
        cluster.servers[server].resume().await?;
        cluster.wait_until_storing().await?;
    }
    host.stop().await
}
