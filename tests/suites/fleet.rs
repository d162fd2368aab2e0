//! Several nodes that share the users: who owns what changes hands when nodes come, go and die,
//! and nobody is reported offline for it, or twice.

mod bucket;
mod closed;
mod heartbeats;
mod large;
mod late;
mod quotas;
mod refused;
mod silent;
mod stated;
mod subjects;
mod tenant_changes;
mod tenants;
mod together;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use presence_core::fleet::hash;
use presence_tests::client::{Client, ReceivedMessage, Recording, now_ms};
use presence_tests::host::{self, Host};
use presence_tests::nats::{NatsServer, Options};
use presence_tests::process::Signal;
use presence_tests::site::Site;
use presence_tests::wait;
use serde_json::{Value, json};

use crate::heartbeat_senders::HeartbeatSenders;
use crate::inputs::{self, CONNECT, DISCONNECT, FILTERED_OFFLINE, FILTERED_ONLINE, OFFLINE};
use crate::world::on;

const SHARDS: usize = 8;
const SPEAKERS: usize = 24;
const VIEWER: &str = "viewer";

/// A broker, users who speak all the while, and a record of all that is published.
struct Scene {
    _speakers: HeartbeatSenders,
    client: Client,
    tape: Recording,
    server: NatsServer,
}

/// A node, in its site.
struct Node {
    host: Host,
    site: Site,
}

fn speaker(number: usize) -> String {
    format!("speaker-{number}")
}

fn site(server: &NatsServer, name: &str) -> Result<Site> {
    let users = (0..SPEAKERS).map(speaker).chain((0..SPEAKERS).map(guest));
    let contacts: serde_json::Map<_, _> = users.map(|user| (user, json!([VIEWER]))).collect();
    let shards = i64::try_from(SHARDS)?;
    let site = Site::new(&server.url())?
        .with("node.name", name)?
        .with("fleet.enabled", true)?
        .with("fleet.shards", shards)?
        // Longer than a machine under load stalls.
        .with("fleet.lease_ms", 4_000)?
        .with("tracker.timeout_ms", 8_000)?
        .with("explain.enabled", true)?;
    site.write_directory(&json!({ "contacts": contacts }).to_string())?;
    Ok(site)
}

/// A user who comes and goes.
fn guest(number: usize) -> String {
    format!("guest-{number}")
}

/// The user whom an event is about.
fn user_of(event: &Value) -> &str {
    event["userId"].as_str().unwrap_or_default()
}

impl Scene {
    async fn start() -> Result<Self> {
        Self::start_on(NatsServer::start().await?).await
    }

    async fn start_on(server: NatsServer) -> Result<Self> {
        let client = Client::connect(&server.url()).await?;
        let speakers: Vec<_> = (0..SPEAKERS).map(speaker).collect();
        Ok(Self {
            tape: client.record("presence.>").await?,
            _speakers: HeartbeatSenders::start(&Client::connect(&server.url()).await?, &speakers),
            client,
            server,
        })
    }

    /// Starts nodes of these names at once, and waits until each is ready.
    async fn nodes(&self, names: &[&str]) -> Result<Vec<Node>> {
        let mut nodes = Vec::new();
        for name in names {
            let site = site(&self.server, name)?;
            let host = Host::spawn(&site)?;
            nodes.push(Node { host, site });
        }
        for node in &mut nodes {
            node.host.ready().await?;
        }
        Ok(nodes)
    }

    /// Waits until all speakers are online.
    async fn are_online(&mut self) -> Result<()> {
        let told = |seen: &[ReceivedMessage]| {
            let mut users: Vec<_> = on(seen, FILTERED_ONLINE)
                .iter()
                .map(|it| user_of(it).to_owned())
                .collect();
            users.sort_unstable();
            users.dedup();
            users.iter().filter(|it| it.starts_with("speaker")).count() == SPEAKERS
        };
        self.tape.until("all speakers to be online", told).await
    }

    /// How often each user was told online and offline, by live owners.
    async fn notification_counts(&mut self) -> Result<BTreeMap<String, (usize, usize)>> {
        self.tape.catch_up(&self.client).await?;
        let mut counts = BTreeMap::<_, (usize, usize)>::new();
        for seen in on(self.tape.seen(), FILTERED_ONLINE) {
            counts.entry(user_of(&seen).to_owned()).or_default().0 += 1;
        }
        for seen in on(self.tape.seen(), FILTERED_OFFLINE) {
            counts.entry(user_of(&seen).to_owned()).or_default().1 += 1;
        }
        Ok(counts)
    }

    /// No speaker was ever reported offline, and each was told once.
    async fn check_notifications(&mut self) -> Result<()> {
        let counts = self.notification_counts().await?;
        for number in 0..SPEAKERS {
            let user = speaker(number);
            ensure!(counts.get(&user) == Some(&(1, 0)), "{user}: {counts:?}");
        }
        let gone = on(self.tape.seen(), OFFLINE);
        let speakers = gone.iter().filter(|it| user_of(it).starts_with("speaker"));
        ensure!(speakers.count() == 0, "{gone:#?}");
        Ok(())
    }

    /// Asks after users, again for as long as their new owners can't answer yet.
    async fn query(&self, users: &[String]) -> Result<Value> {
        let asked = json!({"viewerId": VIEWER, "userIds": users}).to_string();
        wait::until("a query to be answered", async || {
            let answer = self
                .client
                .request("presence.query", asked.as_str())
                .await?;
            Ok((answer["reason"] != "unavailable").then_some(answer))
        })
        .await
    }
}

/// Waits until each of these nodes owns the shards that its rank gives it, and all shards have a
/// standby.
async fn are_settled(nodes: &[&Host]) -> Result<()> {
    let mut names = Vec::new();
    for host in nodes {
        let status = host.status().await?;
        names.push(status["node"].as_str().context("a name")?.to_owned());
    }
    let first = |shard| hash::rank(0, shard, names.iter().map(String::as_str))[0];
    let owners: Vec<_> = (0..SHARDS as u32).map(first).collect();
    wait::until("all shards to be owned and stood by for", async || {
        let mut in_step = 0.0;
        for (host, name) in nodes.iter().zip(&names) {
            let owns = host.metric("presence_fleet_shards_owned", &[]).await?;
            if owns != owners.iter().filter(|owner| **owner == name).count() as f64 {
                return Ok(None);
            }
            in_step += host.metric("presence_fleet_shards_in_step", &[]).await?;
        }
        let standing_by = if nodes.len() > 1 { SHARDS as f64 } else { 0.0 };
        Ok((in_step == standing_by).then_some(()))
    })
    .await
}

fn hosts(nodes: &[Node]) -> Vec<&Host> {
    nodes.iter().map(|node| &node.host).collect()
}

#[tokio::test]
async fn when_a_node_is_killed_nobody_who_stays_goes_offline_and_everyone_who_leaves_does()
-> Result<()> {
    let mut scene = Scene::start().await?;
    let mut nodes = scene.nodes(&["a", "b", "c"]).await?;
    are_settled(&hosts(&nodes)).await?;
    scene.are_online().await?;
    let guests: Vec<_> = (0..SPEAKERS).map(guest).collect();
    for user in &guests {
        let connect = inputs::connect(user, "c1", now_ms());
        scene.client.input(CONNECT, connect).await?;
    }
    let come = |seen: &[ReceivedMessage]| on(seen, FILTERED_ONLINE).len() == 2 * SPEAKERS;
    scene.tape.until("all guests to be online", come).await?;

    nodes.remove(1).host.kill().await?;
    for user in &guests {
        let bye = inputs::disconnect(user, "c1", now_ms(), "client_disconnect");
        scene.client.publish(DISCONNECT, &bye).await?;
    }
    let gone = |seen: &[ReceivedMessage]| {
        let gone = on(seen, FILTERED_OFFLINE);
        guests
            .iter()
            .all(|user| gone.iter().any(|it| user_of(it) == *user))
    };
    scene.tape.until("all guests to be offline", gone).await?;
    are_settled(&hosts(&nodes)).await?;

    scene.check_notifications().await?;
    let counts = scene.notification_counts().await?;
    for user in &guests {
        ensure!(counts.get(user) == Some(&(1, 1)), "{user}: {counts:?}");
    }
    let mut takeovers = 0.0;
    for node in &nodes {
        takeovers += node
            .host
            .metric("presence_fleet_takeovers_total", &[])
            .await?;
    }
    ensure!(takeovers > 0.0, "shards were taken over");
    let words = ["took over shards that had lost their owner"];
    for node in &mut nodes {
        if node
            .host
            .metric("presence_fleet_takeovers_total", &[])
            .await?
            > 0.0
        {
            node.host.wait_for_log(0, &words).await?;
        }
    }
    let users: Vec<_> = (0..SPEAKERS).map(speaker).chain(guests).collect();
    let answer = scene.query(&users).await?;
    let online = answer["users"].as_array().context("users")?.iter();
    let online = online.filter(|user| user["status"] == "online").count();
    ensure!(online == SPEAKERS, "{answer}");
    for node in nodes {
        node.host.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_node_that_joins_is_handed_its_shards_and_one_that_leaves_hands_them_over() -> Result<()>
{
    let mut scene = Scene::start().await?;
    let first = scene.nodes(&["a"]).await?;
    scene.are_online().await?;
    let mut second = scene.nodes(&["b", "c"]).await?;
    let all: Vec<_> = hosts(&first).into_iter().chain(hosts(&second)).collect();
    are_settled(&all).await?;
    let takeovers = "presence_fleet_takeovers_total";
    for host in all {
        ensure!(host.metric(takeovers, &[]).await? == 0.0);
    }
    // Not all speakers are on one node any more, and any node answers on all of them.
    let users: Vec<_> = (0..SPEAKERS).map(speaker).collect();
    for _ in 0..10 {
        let answer = scene.query(&users).await?;
        let told = answer["users"].as_array().context("users")?;
        let names: Vec<_> = told
            .iter()
            .filter_map(|user| user["userId"].as_str())
            .collect();
        ensure!(names == users, "{answer}");
        ensure!(
            told.iter().all(|user| user["status"] == "online"),
            "{answer}"
        );
    }
    for _ in 0..5 {
        let asked = json!({"viewerId": VIEWER, "userId": users[3]}).to_string();
        let explained = scene.client.request("presence.explain", asked).await?;
        ensure!(explained["outcome"]["maySee"] == true, "{explained}");
    }
    second.remove(0).host.stop().await?;
    let left: Vec<_> = hosts(&first).into_iter().chain(hosts(&second)).collect();
    are_settled(&left).await?;
    second.remove(0).host.stop().await?;
    are_settled(&hosts(&first)).await?;
    let node = &first[0];
    ensure!(node.host.metric(takeovers, &[]).await? == 0.0);
    let handovers = node
        .host
        .metric("presence_fleet_handovers_total", &[])
        .await?;
    ensure!(handovers > 0.0);
    scene.check_notifications().await?;

    let shown = host::run(&node.site, &["status"])?;
    let shown = String::from_utf8(shown.stdout)?;
    ensure!(shown.contains("owns 8 of 8 shards"), "{shown}");
    Ok(())
}

#[tokio::test]
async fn a_shard_has_one_source_and_a_later_owner_a_later_epoch() -> Result<()> {
    let mut scene = Scene::start().await?;
    let mut first = scene.nodes(&["a"]).await?;
    scene.are_online().await?;
    let second = scene.nodes(&["b"]).await?;
    let both: Vec<_> = hosts(&first).into_iter().chain(hosts(&second)).collect();
    are_settled(&both).await?;
    first.remove(0).host.stop().await?;
    are_settled(&hosts(&second)).await?;
    let epochs = |seen: &[ReceivedMessage]| {
        let mut epochs = BTreeMap::<String, Vec<u64>>::new();
        for seen in seen.iter().filter(|it| it.subject == "presence.beacon") {
            let (source, epoch, _) = seen.sequence();
            let known = epochs.entry(source.to_owned()).or_default();
            if known.last() != Some(&epoch) {
                known.push(epoch);
            }
        }
        epochs
    };
    let grown = |seen: &[ReceivedMessage]| {
        let epochs = epochs(seen);
        epochs.len() == SHARDS && epochs.values().all(|it| it.len() >= 2)
    };
    let what = "a beacon of two owners of each shard";
    scene.tape.until(what, grown).await?;
    for (source, epochs) in epochs(scene.tape.seen()) {
        ensure!(source.starts_with("shard/"), "{source}");
        ensure!(epochs.is_sorted(), "{source}: {epochs:?}");
    }
    scene.check_notifications().await
}

#[tokio::test]
async fn an_outage_of_the_broker_changes_no_hands_and_reports_nobody() -> Result<()> {
    let mut scene = Scene::start().await?;
    let nodes = scene.nodes(&["a", "b"]).await?;
    are_settled(&hosts(&nodes)).await?;
    scene.are_online().await?;
    scene.server.stop().await?;
    for node in &nodes {
        let down = |connected: f64| connected == 0.0;
        node.host
            .until_metric("presence_nats_connected", &[], down)
            .await?;
    }
    scene.server.resume().await?;
    // Until then, what it had is gone.
    for node in &nodes {
        let in_touch = |in_touch: f64| in_touch == 1.0;
        node.host
            .until_metric("presence_fleet_in_touch", &[], in_touch)
            .await?;
    }
    are_settled(&hosts(&nodes)).await?;
    for node in &nodes {
        let lost = node
            .host
            .metric("presence_fleet_sessions_lost_total", &[])
            .await?;
        ensure!(lost == 0.0);
    }
    let gone = on(scene.tape.seen(), FILTERED_OFFLINE);
    ensure!(gone.is_empty(), "{gone:#?}");
    Ok(())
}

#[tokio::test]
async fn an_owner_that_was_paused_for_longer_than_its_lease_says_nothing_that_is_not_so()
-> Result<()> {
    let mut scene = Scene::start().await?;
    let nodes = scene.nodes(&["a", "b"]).await?;
    are_settled(&hosts(&nodes)).await?;
    scene.are_online().await?;
    let guests: Vec<_> = (0..SPEAKERS).map(guest).collect();
    nodes[0].host.process.signal(Signal::STOP)?;
    let all = |owned: f64| owned == SHARDS as f64;
    let owned = "presence_fleet_shards_owned";
    nodes[1].host.until_metric(owned, &[], all).await?;
    // The paused owner must not report any of these users as offline.
    for user in &guests {
        let subject = format!("presence.shard.{}.in.connect", shard_of(user));
        let connect = inputs::connect(user, "c1", now_ms());
        scene.client.input(&subject, connect).await?;
    }
    nodes[0].host.process.signal(Signal::CONT)?;
    let lost = |lost: f64| lost > 0.0;
    let sessions = "presence_fleet_sessions_lost_total";
    nodes[0].host.until_metric(sessions, &[], lost).await?;
    are_settled(&hosts(&nodes)).await?;
    scene.check_notifications().await?;
    let answer = scene.query(&guests).await?;
    let online = answer["users"].as_array().context("users")?.iter();
    let online = online.filter(|user| user["status"] == "online").count();
    ensure!(online == SPEAKERS, "{answer}");
    for node in nodes {
        node.host.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn nodes_whose_bucket_was_removed_end_and_say_so() -> Result<()> {
    let scene = Scene::start().await?;
    let mut nodes = scene.nodes(&["a"]).await?;
    let context = async_nats::jetstream::new(scene.client.nats.clone());
    context.delete_key_value("presence-fleet").await?;
    let mut node = nodes.remove(0);
    let status = node.host.process.wait().await?;
    ensure!(!status.success(), "{status}");
    let said = node.host.process.stderr().join("\n");
    ensure!(said.contains("the fleet's bucket was removed"), "{said}");
    Ok(())
}

/// The shard of a user.
fn shard_of(user: &str) -> u32 {
    hash::shard_of(user, SHARDS as u32)
}

/// A broker with these further lines in its configuration.
async fn broker(config: &str) -> Result<NatsServer> {
    let options = Options {
        config: config.into(),
        ..Options::default()
    };
    NatsServer::start_with(options).await
}
