//! A fleet with one shard: its nodes, and the states to wait for.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use presence_core::fleet::hash;
use presence_tests::client::{Client, now_ms};
use presence_tests::host::Host;
use presence_tests::process::Signal;
use presence_tests::site::Site;
use serde_json::{Value, json};

use super::super::generator::{Frames, Generator, Window};
use super::super::load::{Population, name, viewer};
use super::super::{Args, Broker};
use super::load::Watch;

/// The lease of the fleet's nodes, which is the default.
pub(super) const LEASE: Duration = Duration::from_secs(6);
/// How long a connection may be silent.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The beginning of the fleet's subjects.
pub(super) const ROOT: &str = "fleet.presence";
const PREFIX: &str = "fleet";

/// How many probe users there are, in addition to those whose connections last. They come online
/// one after another.
pub(super) const PROBES: usize = 30_000;

/// How many viewers each user has.
const VIEWERS: usize = 10;

const REPLIES: &str = "_INBOX.load.fleet";

/// For how many users messages are laid out in memory at once.
const PIECE: usize = 20_000;

/// The interval between two checks, and the timeout of one query.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
const ANSWER: Duration = Duration::from_millis(50);
/// How long to wait before giving up.
const PATIENCE: Duration = Duration::from_secs(300);

pub(super) struct Scene<'a> {
    pub(super) broker: &'a Broker,
    pub(super) users: usize,
    /// How many messages per second are sent when processor time is measured.
    pub(super) per_s: u32,
    /// How many probe users have come online so far.
    pub(super) probed: usize,
    pub(super) watch: Watch,
    client: Client,
    directory: String,
    nodes: BTreeMap<&'static str, Node>,
}

/// A node, and its site: a temporary folder, which is kept as long as the node runs.
struct Node {
    host: Host,
    _site: Site,
}

impl<'a> Scene<'a> {
    pub(super) fn new(broker: &'a Broker, args: &Args) -> Result<Self> {
        let users = args.connections;
        let population = Population {
            users: users + PROBES,
            viewers: VIEWERS,
        };
        let client = broker
            .runtime
            .block_on(Client::connect(&broker.server.url()));
        let client = client?;
        Ok(Self {
            watch: Watch::begin(broker, &client, users)?,
            broker,
            users,
            per_s: args.fleet_per_s,
            probed: 0,
            client,
            directory: population.directory(),
            nodes: BTreeMap::new(),
        })
    }

    /// The names of three nodes, by their rank for the shard: the first is to own it.
    pub(super) fn ranked() -> Result<[&'static str; 3]> {
        let ranks = hash::rank(0, 0, ["node-1", "node-2", "node-3"]);
        ranks
            .try_into()
            .map_err(|_| anyhow::anyhow!("three names have three ranks"))
    }

    /// Starts a node, and waits until it is one of the fleet's.
    pub(super) fn start(&mut self, name: &'static str) -> Result<()> {
        let millis = |it: Duration| i64::try_from(it.as_millis());
        let site = Site::new(&self.broker.server.url())?
            .with("node.name", name)?
            .with("tenant.prefix", PREFIX)?
            .with("state.dir", "")?
            .with("fleet.enabled", true)?
            .with("fleet.shards", 1)?
            .with("fleet.lease_ms", millis(LEASE)?)?
            .with("tracker.timeout_ms", millis(TIMEOUT)?)?;
        site.write_directory(&self.directory)?;
        let mut host = Host::spawn(&site)?;
        let joined = host.wait_for_log(0, &["this node is one of the fleet"]);
        self.broker.runtime.block_on(joined)?;
        self.nodes.insert(name, Node { host, _site: site });
        Ok(())
    }

    pub(super) fn host(&self, name: &str) -> Result<&Host> {
        let node = self.nodes.get(name);
        Ok(&node.with_context(|| format!("{name} runs"))?.host)
    }

    pub(super) fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        self.host(name)?.process.signal(signal)
    }

    /// Waits until a node owns the shard.
    pub(super) fn until_owner(&self, name: &str) -> Result<()> {
        self.until_one(name, "presence_fleet_shards_owned")
    }

    /// Waits until a node stands by, and holds all that the owner does.
    pub(super) fn until_in_step(&self, name: &str) -> Result<()> {
        self.until_one(name, "presence_fleet_shards_in_step")
    }

    fn until_one(&self, name: &str, metric: &str) -> Result<()> {
        let host = self.host(name)?;
        let what = format!("{metric} of {name} to be 1");
        self.until(&what, async || Ok(host.metric(metric, &[]).await? == 1.0))
            .with_context(|| host.process.log_tail())
    }

    /// Waits until a query is answered. Then the owner has decided on everyone.
    pub(super) fn until_answered(&self) -> Result<()> {
        let asked = json!({"viewerId": viewer(0), "userIds": [name(0)]}).to_string();
        let subject = format!("{ROOT}.query");
        self.until("a query to be answered", async || {
            let answer = self.client.request(&subject, asked.clone());
            let answer = tokio::time::timeout(ANSWER, answer).await;
            let users = |answer: &Value| answer.get("users").is_some();
            Ok(matches!(&answer, Ok(Ok(answer)) if users(answer)))
        })
    }

    /// Checks again and again, until a condition holds.
    fn until(&self, what: &str, mut is_so: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
        let looks = async {
            while !is_so().await? {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            Ok(())
        };
        let looks = async { tokio::time::timeout(PATIENCE, looks).await };
        match self.broker.runtime.block_on(looks) {
            Ok(done) => done,
            Err(_) => bail!("{what}: it isn't so after {} s", PATIENCE.as_secs()),
        }
    }

    /// Sends a message of this kind for every connection, not faster than they are answered.
    pub(super) fn send_for_all(&self, kind: &str) -> Result<()> {
        let mut generator = Generator::connect(self.broker.server.port(), REPLIES)?;
        let window = Window {
            messages: 4_096,
            per_answer: 1,
        };
        let mut next = 0;
        while next < self.users {
            let to = self.users.min(next + PIECE);
            let mut frames = Frames::default();
            for user in next..to {
                frames.push(&subject(kind), REPLIES, &body(user, "c", kind));
            }
            generator.feed(&frames, window)?;
            next = to;
        }
        Ok(())
    }

    /// Waits until the first owner is sure that it knows all connections. Before, it publishes no
    /// offline: so this has a user connect and disconnect, and waits for the offline.
    pub(super) fn until_sure(&mut self) -> Result<()> {
        let user = self.users + self.probed;
        self.probed += 1;
        let publish = async {
            for kind in ["connect", "disconnect"] {
                let body = serde_json::from_str(&body(user, "p", kind))?;
                self.client.publish(&subject(kind), &body).await?;
            }
            anyhow::Ok(())
        };
        self.broker.runtime.block_on(publish)?;
        self.until("a user to be offline", async || {
            Ok(self.watch.has_left(user))
        })
    }
}

/// The shard's own subject for a kind of input. In production, a subject mapping of the broker
/// leads to it.
pub(super) fn subject(kind: &str) -> String {
    format!("{ROOT}.shard.0.in.{kind}")
}

/// The body of an input.
pub(super) fn body(user: usize, conn: &str, kind: &str) -> String {
    let further = match kind {
        "disconnect" => ",\"reason\":\"client_disconnect\"",
        _ => ",\"metadata\":{\"device\":\"web\"}",
    };
    let (user, at) = (name(user), now_ms());
    format!("{{\"userId\":\"{user}\",\"connId\":\"{conn}\",\"timestamp\":{at}{further}}}")
}
