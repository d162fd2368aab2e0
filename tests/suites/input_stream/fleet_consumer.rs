//! What happens to the stream that a fleet shares, and to its consumer; and nodes that disagree
//! about it. Each message is handled nonetheless, or the nodes say why not.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, anyhow, ensure};
use async_nats::datetime;
use async_nats::jetstream::consumer::{FromConsumer as _, pull};
use async_nats::jetstream::stream::{self, Stream};
use presence_tests::client::now_ms;
use presence_tests::host::Host;
use presence_tests::process::Signal;
use presence_tests::wait;

use super::fleet::{CONSUMER, Fleet, SHARDS, site, site_without_stream, user};
use super::{CONNECT, DISCONNECT, OFFLINE, ONLINE, STREAM, command};
use crate::inputs;

/// How many connects wait for an owner that is slow.
const MANY: usize = 2_000;

impl Fleet {
    async fn stream(&self) -> Result<Stream> {
        Ok(self.context.get_stream(STREAM).await?)
    }

    /// The consumer as it is now.
    async fn consumer(&self) -> Result<pull::Config> {
        let found = self.stream().await?.consumer_info(CONSUMER).await?.config;
        let found = pull::Config::try_from_consumer_config(found);
        found.map_err(|error| anyhow!(error))
    }
}

#[tokio::test]
async fn a_consumer_that_is_removed_or_another_one_is_said_and_mended() -> Result<()> {
    let mut fleet = Fleet::start(&["a", "b"]).await?;
    fleet.connects(&user(0), "c1").await?;
    fleet.is_quiet().await?;
    let stream = fleet.context.get_stream(STREAM).await?;
    stream.delete_consumer(CONSUMER).await?;
    fleet.connects(&user(1), "c1").await?;
    fleet.tape.hosts(ONLINE, 2).await?;
    fleet.is_quiet().await?;

    // Somebody changes the consumer.
    let found = fleet.consumer().await?;
    let other = pull::Config {
        max_deliver: 3,
        ..found.clone()
    };
    stream.update_consumer(other).await?;
    let why = "gives up messages that nobody handled in time (`max_deliver`)";
    fleet.node("a")?.unready_because(why).await?;
    fleet.node("b")?.unready_because(why).await?;
    fleet.connects(&user(2), "c1").await?;
    stream.update_consumer(found).await?;
    fleet.node("a")?.ready().await?;
    fleet.node("b")?.ready().await?;
    fleet.tape.hosts(ONLINE, 3).await?;

    // Another stream gets the same name.
    fleet.is_quiet().await?;
    fleet.context.delete_stream(STREAM).await?;
    fleet
        .node("a")?
        .unready_because("there is no stream")
        .await?;
    command(&site(&fleet.server.url(), "command")?, &["input", "init"])?;
    let body = inputs::disconnect(&user(2), "c1", now_ms(), "logout");
    fleet.store(DISCONNECT, &body).await?;
    fleet.node("a")?.ready().await?;
    fleet.node("b")?.ready().await?;
    let gone = fleet.tape.next("the user to go", |seen| {
        seen.is_from_host() && seen.subject == OFFLINE && seen.text("userId") == user(2)
    });
    gone.await?;
    fleet.is_quiet().await?;
    fleet.end().await
}

#[tokio::test]
async fn what_comes_is_handled_though_the_server_has_lost_what_it_had_before() -> Result<()> {
    let mut fleet = Fleet::of_nobody().await?;
    // The node keeps its lease while the server starts again, however long that takes.
    fleet.join_for(&["a"], 10_000).await?;
    for number in 0..9 {
        fleet.connects(&user(number), "c1").await?;
    }
    fleet.is_quiet().await?;
    fleet.server.kill().await?;
    // Then the consumer is ahead of the stream.
    fs::remove_dir_all(fleet.server.messages_path(STREAM))?;
    fleet.server.resume().await?;
    let stored = wait::until("the stream to be back", async || {
        let body = inputs::disconnect(&user(0), "c1", now_ms(), "client_disconnect");
        Ok(fleet.store(DISCONNECT, &body).await.ok())
    });
    let sequence = stored.await?;
    ensure!(sequence < 9, "{sequence}");
    let gone = fleet.tape.next("the user to go", |seen| {
        seen.is_from_host() && seen.subject == OFFLINE && seen.text("userId") == user(0)
    });
    assert_eq!(gone.await?.text("reason"), "disconnect");
    fleet.is_quiet().await?;
    fleet.end().await
}

#[tokio::test]
async fn what_comes_is_handled_though_the_consumer_is_lost_with_the_streams_end() -> Result<()> {
    let mut fleet = Fleet::of_nobody().await?;
    fleet.join_for(&["a"], 10_000).await?;
    for number in 0..30 {
        fleet.connects(&user(number), "c1").await?;
    }
    fleet.is_quiet().await?;
    // The node knows up to which message all are acknowledged.
    let position = "presence_input_stream_position";
    let is_last = |it| it == 30.0;
    fleet
        .node("a")?
        .until_metric(position, &[], is_last)
        .await?;
    // Publishers send more before the node comes back.
    fleet.node("a")?.process.signal(Signal::STOP)?;
    fleet.server.kill().await?;
    let messages = fleet.server.messages_path(STREAM);
    let consumers = messages.parent().context("a stream")?.join("obs");
    fs::remove_dir_all(messages)?;
    fs::remove_dir_all(consumers)?;
    fleet.server.resume().await?;
    for number in 0..3 {
        wait::until("the stream to take a disconnect", async || {
            let body = inputs::disconnect(&user(number), "c1", now_ms(), "logout");
            Ok(fleet.store(DISCONNECT, &body).await.ok())
        })
        .await?;
    }
    fleet.node("a")?.process.signal(Signal::CONT)?;
    let mut gone = BTreeSet::new();
    for _ in 0..3 {
        let next = fleet.tape.next("a user to go", |seen| {
            seen.is_from_host() && seen.subject == OFFLINE && seen.text("reason") == "logout"
        });
        gone.insert(next.await?.text("userId").to_owned());
    }
    assert_eq!(gone, (0..3).map(user).collect());
    fleet.is_quiet().await?;
    fleet.end().await
}

#[tokio::test]
async fn what_is_removed_while_no_node_runs_is_counted() -> Result<()> {
    let mut fleet = Fleet::start(&["a"]).await?;
    fleet.connects(&user(0), "c1").await?;
    fleet.is_quiet().await?;
    fleet.leave("a").await?;
    let stream = fleet.stream().await?;
    let config = stream::Config {
        max_messages: 2,
        ..stream.cached_info().config.clone()
    };
    fleet.context.update_stream(&config).await?;
    for number in 1..6 {
        fleet.connects(&user(number), "c1").await?;
    }
    fleet.join_for(&["a"], 3_000).await?;
    fleet.is_quiet().await?;
    let lost = "presence_input_stream_lost_total";
    let node = fleet.node("a")?;
    node.until_metric(lost, &[], |it| it == 3.0).await?;
    fleet.end().await
}

#[tokio::test]
async fn a_pause_of_the_consumer_ends_by_itself() -> Result<()> {
    let mut fleet = Fleet::start(&["a"]).await?;
    let until = i128::from(now_ms() + 10_000) * 1_000_000;
    let until = datetime::from_nanos(until).map_err(|error| anyhow!(error))?;
    let stream = fleet.stream().await?;
    stream.pause_consumer(CONSUMER, until).await?;
    fleet.node("a")?.unready_because("is paused").await?;
    fleet.connects(&user(0), "c1").await?;
    fleet.tape.hosts(ONLINE, 1).await?;
    fleet.node("a")?.ready().await?;
    fleet.is_quiet().await?;
    fleet.end().await
}

#[tokio::test]
async fn that_nodes_may_not_ask_for_messages_is_said() -> Result<()> {
    let mut fleet = Fleet::start(&["a"]).await?;
    fleet.connects(&user(0), "c1").await?;
    fleet.is_quiet().await?;
    fleet.leave("a").await?;
    let found = fleet.consumer().await?;
    let other = pull::Config {
        max_batch: 1,
        ..found.clone()
    };
    fleet.stream().await?.update_consumer(other).await?;
    fleet.connects(&user(1), "c1").await?;
    let site = site(&fleet.server.url(), "a")?;
    let mut host = Host::spawn(&site)?;
    host.unready_because("Exceeded MaxRequestBatch of 1")
        .await?;
    fleet.stream().await?.update_consumer(found).await?;
    host.ready().await?;
    fleet.tape.hosts(ONLINE, 2).await?;
    fleet.nodes.insert("a", (host, site));
    fleet.is_quiet().await?;
    fleet.end().await
}

#[tokio::test]
async fn a_node_that_owns_users_and_has_no_stream_says_what_is_wrong() -> Result<()> {
    let mut fleet = Fleet::start(&["a"]).await?;
    let other = site_without_stream(&fleet.server.url(), "b")?;
    let mut host = Host::spawn(&other)?;
    host.ready().await?;
    fleet.nodes.insert("b", (host, other));
    fleet.is_settled().await?;
    // Both nodes own some of the users.
    for number in 0..10 * SHARDS {
        fleet.connects(&user(number), "c1").await?;
    }
    let node = fleet.node("b")?;
    let words = ["an input stream that this node doesn't take", "has none"];
    node.wait_for_log(0, &words).await?;
    let refused = "presence_fleet_refused_total";
    node.until_metric(refused, &[], |it| it > 0.0).await?;
    fleet.leave("b").await?;
    fleet.is_quiet().await?;
    fleet.end().await
}

#[tokio::test]
async fn what_waits_for_slow_owners_is_not_passed_on_again_and_again() -> Result<()> {
    let mut fleet = Fleet::start(&["a"]).await?;
    fleet.connects(&user(0), "c1").await?;
    fleet.is_quiet().await?;
    fleet.leave("a").await?;
    let mut acks = Vec::new();
    for number in 1..MANY {
        let body = inputs::connect(&user(number), "c1", now_ms()).to_string();
        acks.push(fleet.context.publish(CONNECT, body.into()).await?);
    }
    for ack in acks {
        ack.await?;
    }
    // The node needs far longer for all of them than until messages are delivered again.
    let slow = site(&fleet.server.url(), "a")?.with("limits.cpu_ms_per_s", 100)?;
    let mut host = Host::spawn(&slow)?;
    let words = ["takes no others until what is on its way is soon handled"];
    host.wait_for_log(0, &words).await?;
    fleet.nodes.insert("a", (host, slow));
    let info = fleet.is_quiet().await?;
    let again = info.delivered.consumer_sequence - MANY as u64;
    ensure!(
        again < 4 * MANY as u64,
        "{again} of {MANY} were delivered again"
    );
    fleet.end().await
}
