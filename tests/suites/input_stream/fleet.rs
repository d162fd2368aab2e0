//! The nodes of a fleet take connects and disconnects from one stream: whichever of them fails,
//! each message is handled by the owner of its user, and acknowledged then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::{self, Context, stream};
use presence_tests::client::{Client, Recording, now_ms};
use presence_tests::cluster::Cluster;
use presence_tests::host::Host;
use presence_tests::nats::NatsServer;
use presence_tests::process::Signal;
use presence_tests::site::Site;
use presence_tests::wait;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::{
    CONNECT, DISCONNECT, DLQ, HEARTBEAT, OFFLINE, ONLINE, STREAM, command, tenants_with_streams,
};
use crate::inputs;
use crate::permissions;

pub(super) const CONSUMER: &str = "presence-fleet";
pub(super) const SHARDS: usize = 8;
const USERS: usize = 80;
const VIEWER: &str = "viewer";

/// How often connections send heartbeats.
const BEAT: Duration = Duration::from_secs(1);

/// After this silence, a connection times out.
const TIMEOUT: Duration = Duration::from_secs(15);

/// How long a user stays, or stays away.
const STAY: Duration = Duration::from_millis(100);

pub(super) fn user(number: usize) -> String {
    format!("user-{number}")
}

/// A broker with a stream, and nodes of a fleet by their names.
pub(super) struct Fleet {
    pub(super) nodes: BTreeMap<&'static str, (Host, Site)>,
    pub(super) tape: Recording,
    client: Client,
    pub(super) context: Context,
    pub(super) server: NatsServer,
}

pub(super) fn site(url: &str, name: &str) -> Result<Site> {
    site_without_stream(url, name)?.with("input.stream", STREAM)
}

/// A site of a node that hears connects as they are published, without a stream.
pub(super) fn site_without_stream(url: &str, name: &str) -> Result<Site> {
    let contacts = (0..USERS).map(|number| (user(number), json!([VIEWER])));
    let contacts: serde_json::Map<_, _> = contacts.collect();
    let site = Site::new(url)?
        .with("node.name", name)?
        .with("fleet.enabled", true)?
        .with("fleet.shards", i64::try_from(SHARDS)?)?
        .with("fleet.lease_ms", 3_000)?
        // Longer than it takes until a message is delivered again.
        .with("tracker.timeout_ms", i64::try_from(TIMEOUT.as_millis())?)?
        .with("tracker.flap_threshold", 0)?;
    site.write_directory_value(&json!({ "contacts": contacts }))?;
    Ok(site)
}

impl Fleet {
    pub(super) async fn start(names: &[&'static str]) -> Result<Self> {
        let mut fleet = Self::of_nobody().await?;
        fleet.join(names).await?;
        Ok(fleet)
    }

    pub(super) async fn of_nobody() -> Result<Self> {
        let server = NatsServer::start().await?;
        let client = Client::connect(&server.url()).await?;
        let fleet = Self {
            nodes: BTreeMap::new(),
            tape: client.record("presence.>").await?,
            context: jetstream::new(client.nats.clone()),
            client,
            server,
        };
        command(&site(&fleet.server.url(), "command")?, &["input", "init"])?;
        Ok(fleet)
    }

    /// Starts nodes, and waits until all shards have an owner and a standby.
    async fn join(&mut self, names: &[&'static str]) -> Result<()> {
        self.join_for(names, 3_000).await
    }

    /// As [`Self::join`], with leases of this many milliseconds.
    pub(super) async fn join_for(&mut self, names: &[&'static str], lease_ms: i64) -> Result<()> {
        for name in names {
            let site = site(&self.server.url(), name)?.with("fleet.lease_ms", lease_ms)?;
            self.nodes.insert(name, (Host::spawn(&site)?, site));
        }
        for name in names {
            self.node(name)?.ready().await?;
        }
        self.is_settled().await
    }

    pub(super) fn node(&mut self, name: &str) -> Result<&mut Host> {
        let node = self.nodes.get_mut(name).context("a node")?;
        Ok(&mut node.0)
    }

    /// Waits until all shards have an owner, and a standby if there are several nodes.
    pub(super) async fn is_settled(&self) -> Result<()> {
        let standbys = if self.nodes.len() > 1 { SHARDS } else { 0 };
        wait::until("all shards to be owned and stood by for", async || {
            let (mut owned, mut in_step) = (0.0, 0.0);
            for (host, _) in self.nodes.values() {
                owned += host.metric("presence_fleet_shards_owned", &[]).await?;
                in_step += host.metric("presence_fleet_shards_in_step", &[]).await?;
            }
            let is_settled = owned == SHARDS as f64 && in_step == standbys as f64;
            Ok(is_settled.then_some(()))
        })
        .await
    }

    async fn kill(&mut self, name: &str) -> Result<()> {
        self.node(name)?.process.kill().await?;
        self.nodes.remove(name);
        Ok(())
    }

    pub(super) async fn leave(&mut self, name: &str) -> Result<()> {
        self.node(name)?.process.stop().await?;
        self.nodes.remove(name);
        Ok(())
    }

    /// Waits until all messages in the stream are handled and acknowledged.
    pub(super) async fn is_quiet(&self) -> Result<Info> {
        wait::until("all messages to be acknowledged", async || {
            let stream = self.context.get_stream(STREAM).await?;
            let last = stream.cached_info().state.last_sequence;
            let info = stream.consumer_info(CONSUMER).await?;
            let is_quiet = info.num_pending == 0
                && info.num_ack_pending == 0
                && info.ack_floor.stream_sequence == last;
            Ok(is_quiet.then_some(info))
        })
        .await
    }

    pub(super) async fn store(&self, subject: &str, body: &Value) -> Result<u64> {
        store(&self.context, subject, body).await
    }

    pub(super) async fn connects(&self, user: &str, conn: &str) -> Result<u64> {
        let body = inputs::connect(user, conn, now_ms());
        self.store(CONNECT, &body).await
    }

    /// The users who are online, according to a viewer's query.
    async fn online(&self) -> Result<BTreeSet<String>> {
        let users: Vec<_> = (0..USERS).map(user).collect();
        let asked = json!({"viewerId": VIEWER, "userIds": users}).to_string();
        let answer = wait::until("a query to be answered", async || {
            let answer = self.client.request("presence.query", &*asked).await?;
            Ok((answer["reason"] != "unavailable").then_some(answer))
        })
        .await?;
        let users = answer["users"].as_array().context("users")?.iter();
        let online = users.filter(|user| user["status"] == "online");
        let online = online.filter_map(|user| user["userId"].as_str());
        Ok(online.map(str::to_owned).collect())
    }

    pub(super) async fn end(mut self) -> Result<()> {
        for (host, _) in self.nodes.values_mut() {
            host.process.stop().await?;
        }
        Ok(())
    }
}

/// Stores a message in the stream once, and returns its number there. As a publisher does, it
/// repeats what isn't acknowledged.
async fn store(context: &Context, subject: &str, body: &Value) -> Result<u64> {
    store_with(context, (subject, HeaderMap::new()), body).await
}

async fn store_with(
    context: &Context,
    (subject, mut headers): (&str, HeaderMap),
    body: &Value,
) -> Result<u64> {
    static STORED: AtomicU64 = AtomicU64::new(0);
    let id = STORED.fetch_add(1, Ordering::Relaxed).to_string();
    headers.insert("Nats-Msg-Id", id);
    wait::until("the stream to take a message", async || {
        let (subject, headers) = (subject.to_owned(), headers.clone());
        let stored = context.publish_with_headers(subject, headers, body.to_string().into());
        Ok(match stored.await {
            Ok(acknowledged) => acknowledged.await.ok().map(|it| it.sequence),
            Err(_) => None,
        })
    })
    .await
}

/// Users who come and go.
struct People {
    end: Option<oneshot::Sender<()>>,
    ended: Option<oneshot::Receiver<usize>>,
    task: JoinHandle<Result<()>>,
}

impl Drop for People {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl People {
    /// They come and go, with a new connection each time, which sends heartbeats.
    fn start(fleet: &Fleet) -> Self {
        let (end, ends) = oneshot::channel();
        let (says, ended) = oneshot::channel();
        let (context, client) = (fleet.context.clone(), fleet.client.nats.clone());
        Self {
            end: Some(end),
            ended: Some(ended),
            task: tokio::spawn(come_and_go(context, client, (ends, says))),
        }
    }

    /// From now on, every third user is online, and nobody else. Returns how many messages were
    /// sent.
    async fn end(&mut self) -> Result<usize> {
        let (end, ended) = (self.end.take(), self.ended.take());
        let _ = end.context("a first end")?.send(());
        Ok(ended.context("a first end")?.await?)
    }
}

async fn come_and_go(
    context: Context,
    client: async_nats::Client,
    (mut ends, says): (oneshot::Receiver<()>, oneshot::Sender<usize>),
) -> Result<()> {
    let (mut sent, mut live, mut says) = (0, vec![None; USERS], Some(says));
    let mut beaten_at = Instant::now();
    for round in 0.. {
        let is_last = ends.try_recv().is_ok();
        let mut acks = Vec::new();
        for (number, live) in live.iter_mut().enumerate() {
            let wants = match is_last {
                true => number % 3 == 0,
                false => (number + round) % 2 == 0,
            };
            let (name, at) = (user(number), now_ms());
            let (subject, body) = match (&*live, wants) {
                (None, true) => {
                    let conn = format!("c{round}");
                    let body = inputs::connect(&name, &conn, at);
                    *live = Some((conn, Instant::now()));
                    (CONNECT, body)
                }
                (Some((conn, _)), false) => {
                    let body = inputs::disconnect(&name, conn, at, "client_disconnect");
                    *live = None;
                    (DISCONNECT, body)
                }
                _ => continue,
            };
            sent += 1;
            acks.push(context.publish(subject, body.to_string().into()).await?);
        }
        for ack in acks {
            ack.await?;
        }
        if is_last {
            let _ = says.take().context("one end")?.send(sent);
        }
        // After the end, they only send heartbeats.
        while is_last || beaten_at.elapsed() >= BEAT {
            beaten_at = Instant::now();
            for (number, conn) in live.iter().enumerate() {
                if let Some((conn, since)) = conn
                    && since.elapsed() >= BEAT
                {
                    let body = inputs::heartbeat(&user(number), conn, now_ms());
                    client.publish(HEARTBEAT, body.to_string().into()).await?;
                }
            }
            if is_last {
                sleep(BEAT).await;
            }
        }
        sleep(STAY).await;
    }
    Ok(())
}

#[tokio::test]
async fn whichever_node_fails_each_message_is_handled_and_acknowledged() -> Result<()> {
    let mut fleet = Fleet::start(&["a"]).await?;
    let begun = Instant::now();
    // Until then, the first owner can't be sure that it knows all connections of a user.
    wait::until("a whole timeout to be over", async || {
        Ok((begun.elapsed() > TIMEOUT + BEAT).then_some(()))
    })
    .await?;
    let mut people = People::start(&fleet);
    fleet.join(&["b", "c"]).await?;
    for name in ["a", "b"] {
        fleet.kill(name).await?;
        // Others handle what was on its way to the node. Then the node comes back.
        fleet.join(&[name]).await?;
    }
    // A stopped node holds what it has taken for longer than its lease.
    let (host, site) = fleet.nodes.remove("c").context("a node")?;
    host.process.signal(Signal::STOP)?;
    fleet.is_settled().await?;
    host.process.signal(Signal::CONT)?;
    fleet.nodes.insert("c", (host, site));
    fleet.is_settled().await?;
    fleet.leave("c").await?;
    fleet.is_settled().await?;
    fleet.kill("a").await?;
    fleet.is_settled().await?;
    let sent = people.end().await?;
    let info = fleet.is_quiet().await?;
    ensure!(info.ack_floor.stream_sequence == sent as u64, "{info:?}");
    let expected: BTreeSet<_> = (0..USERS).step_by(3).map(user).collect();
    wait::until(
        "those who stayed to be online, and nobody else",
        async || Ok((fleet.online().await? == expected).then_some(())),
    )
    .await?;
    // All offlines come from disconnects in the stream.
    fleet.tape.catch_up(&fleet.client).await?;
    let seen = fleet.tape.seen().iter();
    let mut gone = seen.filter(|seen| seen.is_from_host() && seen.subject == OFFLINE);
    let other = gone.find(|seen| seen.text("reason") != "disconnect");
    ensure!(other.is_none(), "{other:?}");
    let again = info.delivered.consumer_sequence - sent as u64;
    println!("{sent} messages, {again} of them delivered again");
    fleet.end().await
}

#[tokio::test]
async fn what_comes_while_no_node_runs_is_handled_by_those_who_start() -> Result<()> {
    let mut fleet = Fleet::start(&["a", "b"]).await?;
    fleet.connects(&user(0), "c1").await?;
    fleet.is_quiet().await?;
    fleet.kill("a").await?;
    fleet.kill("b").await?;
    for number in 1..USERS {
        fleet.connects(&user(number), "c1").await?;
    }
    let left_at = now_ms();
    let body = inputs::disconnect(&user(1), "c1", left_at, "logout");
    fleet.store(DISCONNECT, &body).await?;
    fleet.join(&["a", "b"]).await?;
    fleet.is_quiet().await?;
    let pending = "presence_input_stream_unacknowledged";
    let is_none = |it| it == 0.0;
    fleet.node("a")?.until_metric(pending, &[], is_none).await?;
    let came = fleet.tape.hosts(ONLINE, USERS).await?;
    let came: BTreeSet<_> = came.iter().map(|seen| seen.text("userId")).collect();
    ensure!(came.len() >= USERS - 1, "{came:?}");
    fleet.end().await
}

#[tokio::test]
async fn what_cant_be_handled_is_a_dead_letter_and_is_acknowledged() -> Result<()> {
    let mut fleet = Fleet::start(&["a", "b"]).await?;
    let config = fleet.context.get_stream(STREAM).await?;
    let config = stream::Config {
        max_message_size: -1,
        ..config.cached_info().config.clone()
    };
    fleet.context.update_stream(&config).await?;
    fleet.store(CONNECT, &json!({"userId": "12345"})).await?;
    // This message leaves no room for the headers that a router adds.
    let mut long = inputs::connect(&user(0), "c1", now_ms());
    long["filler"] = "x".repeat((1 << 20) - 500).into();
    fleet.store(CONNECT, &long).await?;
    // A message that a node has published is no input.
    let mut headers = HeaderMap::new();
    headers.insert("Presence-Seq", "n/0 1 1");
    let body = inputs::connect(&user(1), "c1", now_ms());
    store_with(&fleet.context, (CONNECT, headers), &body).await?;
    fleet.connects(&user(2), "c1").await?;
    // None of these is delivered again.
    let info = fleet.is_quiet().await?;
    assert_eq!(info.ack_floor.stream_sequence, 4);
    assert_eq!(fleet.online().await?, BTreeSet::from([user(2)]));
    fleet.tape.catch_up(&fleet.client).await?;
    let seen = fleet.tape.seen().iter();
    let letters = seen.filter(|seen| seen.is_from_host() && seen.subject == DLQ);
    // The next owner may handle again what the one before hasn't acknowledged in time.
    let reasons: BTreeSet<_> = letters.map(|seen| seen.text("reason")).collect();
    assert_eq!(reasons, BTreeSet::from(["missing-field", "too-large"]));
    fleet.end().await
}

// The routes between the servers pass through the test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_server_has_the_stream_all_of_it_is_handled() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let url = cluster.url(0);
    command(
        &site(&url, "command")?,
        &["input", "init", "--replicas", "3"],
    )?;
    let client = Client::connect(&url).await?;
    let mut tape = client.record("presence.>").await?;
    let context = jetstream::new(client.nats.clone());
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        let site = site(&url, name)?;
        nodes.push((Host::spawn(&site)?, site));
    }
    for (host, _) in &mut nodes {
        host.ready().await?;
    }
    for server in [1, 2] {
        cluster.servers[server].kill().await?;
        for number in 0..10 {
            let body = inputs::connect(&user(10 * server + number), "c1", now_ms());
            store(&context, CONNECT, &body).await?;
        }
        tape.hosts(ONLINE, 10 * server).await?;
        cluster.servers[server].resume().await?;
        cluster.wait_until_storing().await?;
    }
    wait::until("all to be acknowledged", async || {
        let stream = context.get_stream(STREAM).await?;
        let info = stream.consumer_info(CONSUMER).await?;
        Ok((info.num_pending == 0 && info.num_ack_pending == 0).then_some(()))
    })
    .await?;
    for (host, _site) in nodes {
        host.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn it_works_with_the_permissions_of_the_file() -> Result<()> {
    let server = permissions::server().await?;
    command(
        &permissions::as_user(site(&server.url(), "command")?, "operator")?,
        &["input", "init"],
    )?;
    let mut hosts = Vec::new();
    for name in ["a", "b"] {
        let site = permissions::as_user(site(&server.url(), name)?, "processor")?;
        command(&site, &["check", "--connect"])?;
        hosts.push((Host::spawn(&site)?, site));
    }
    for (host, _) in &mut hosts {
        host.ready().await?;
    }
    let context = jetstream::new(permissions::connect(&server, "transport").await?);
    for number in 0..20 {
        let body = inputs::connect(&user(number), "c1", now_ms());
        store(&context, CONNECT, &body).await?;
    }
    for (host, _) in &hosts {
        let handled = |it| it >= 20.0;
        let position = "presence_input_stream_position";
        host.until_metric(position, &[], handled).await?;
        let errors = host.metric("presence_nats_errors_total", &[]).await?;
        assert_eq!(errors, 0.0);
    }
    for (host, _site) in hosts {
        host.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn each_tenant_of_a_fleet_has_its_own_stream() -> Result<()> {
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?.with("fleet.enabled", true)?;
    let site = site.with("tenant", tenants_with_streams())?;
    let client = Client::connect(&server.url()).await?;
    let mut tape = client.record(">").await?;
    for name in ["acme", "beta"] {
        command(&site, &["input", "init", "--tenant", name])?;
    }
    let host = Host::start(&site).await?;
    let context = jetstream::new(client.nats.clone());
    for (tenant, user) in [("acme", "12345"), ("beta", "22222")] {
        let body = inputs::connect(user, "c1", now_ms());
        store(&context, &format!("{tenant}.{CONNECT}"), &body).await?;
        let online = format!("{tenant}.{}", ONLINE);
        let came = tape.hosts(&online, 1).await?;
        assert_eq!(came[0].text("userId"), user);
        let stream = context.get_stream(format!("{tenant}-input")).await?;
        wait::until("it to be acknowledged", async || {
            let info = stream.consumer_info(CONSUMER).await?;
            Ok((info.ack_floor.stream_sequence == 1).then_some(()))
        })
        .await?;
    }
    host.stop().await
}
