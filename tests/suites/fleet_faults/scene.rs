//! Nodes on a cluster of brokers, users on gateways, viewers, and what is judged in the end.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use presence_tests::client::{Client, now_ms};
use presence_tests::cluster::{Cluster, Links, SERVERS};
use presence_tests::host::Host;
use presence_tests::site::Site;
use presence_tests::{tools, wait};
use tokio::task::JoinHandle;

use super::load::{self, HEARTBEAT_MS, Load};
use super::oracle::{Terms, connected, differences, judge};
use super::people::{VIEWERS, directory, may_see};
use super::trace::{Fact, Trace};
use super::viewer::{self, Viewer};
use super::watches;

/// How long messages, beacons, claims and questions may take on a busy machine.
const ALLOWANCE_MS: u64 = 4_000;

/// The set-up of a scene.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) name: &'static str,
    pub(super) nodes: usize,
    pub(super) timeout_ms: u64,
    /// The lease of the fleet. `None` for nodes that serve alone.
    pub(super) lease_ms: Option<u64>,
    /// Whether all shards change hands by orderly hand-overs.
    pub(super) is_orderly: bool,
}

/// A node, with its site and its links.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) host: Option<Host>,
    site: Site,
    /// Its links to the brokers.
    pub(super) links: Links,
}

/// Everything in the scene. Nodes are dropped before brokers.
#[derive(Debug)]
pub(super) struct Scene {
    plan: Plan,
    pub(super) nodes: Vec<Node>,
    load: Load,
    _viewers: Vec<Viewer>,
    watching: Vec<JoinHandle<()>>,
    fresh: Client,
    pub(super) trace: Arc<Trace>,
    pub(super) cluster: Cluster,
}

impl Scene {
    /// Starts everything, and waits until all viewers know who is online.
    pub(super) async fn start(plan: Plan) -> Result<Self> {
        let is_fleet = plan.lease_ms.is_some();
        let partitions = match is_fleet {
            true => fs::read_to_string(tools::root().join("docs/partition.conf"))?,
            false => String::new(),
        };
        let cluster = Cluster::start_with(&partitions).await?;
        let trace = Arc::new(Trace::begin());
        let mut viewers = Vec::new();
        for client in 0..SERVERS {
            let of = (0..VIEWERS).filter(|viewer| viewer % SERVERS == client);
            let urls = cluster.urls(client);
            viewers.push(Viewer::start(client, of.collect(), &urls, &trace).await?);
        }
        let mut nodes = Vec::new();
        for number in 0..plan.nodes {
            nodes.push(Node::new(&cluster, number, plan).await?);
        }
        for node in &mut nodes {
            node.spawn()?;
        }
        for node in &mut nodes {
            node.ready().await?;
        }
        let options = load::options("fresh");
        let fresh = load::connect(options, &cluster.urls(0)).await?;
        let mut watching = vec![watches::pauses(Arc::clone(&trace))];
        for node in &nodes {
            watching.push(watches::node(node.site.http_port(), Arc::clone(&trace)));
        }
        if is_fleet {
            watching.push(watches::bucket(&cluster, Arc::clone(&trace)).await?);
        }
        // The random numbers differ in each run. The promises have to hold for all of them.
        let seed = now_ms();
        println!("{}: seed {seed}", plan.name);
        let load = Load::start(&cluster, &trace, is_fleet, seed).await?;
        let scene = Self {
            plan,
            nodes,
            load,
            _viewers: viewers,
            watching,
            fresh,
            trace,
            cluster,
        };
        scene.until_received(150).await?;
        if is_fleet {
            scene.until_standbys_are_told().await?;
        }
        Ok(scene)
    }

    /// Waits until the standbys of shards with a crowd take in no heartbeats themselves, if there
    /// are standbys.
    async fn until_standbys_are_told(&self) -> Result<()> {
        let wanted = match self.nodes.len() {
            1 => 0,
            _ => load::crowded_shards(),
        };
        wait::until("standbys to be told of heartbeats", async || {
            let mut told = 0.0;
            for host in self.nodes.iter().filter_map(|node| node.host.as_ref()) {
                told += host.metric("presence_fleet_shards_told", &[]).await?;
            }
            Ok((told >= wanted as f64).then_some(()))
        })
        .await
    }

    /// Waits until this many more messages about users have been told to viewers.
    pub(super) async fn until_received(&self, more: usize) -> Result<()> {
        let enough = self.trace.received_count() + more;
        wait::until("viewers to be told of users", async || {
            Ok((self.trace.received_count() >= enough).then_some(()))
        })
        .await
    }

    /// Something fails from now on, until [`Self::end_fault`].
    pub(super) fn begin_fault(&self, what: &'static str) {
        self.trace.note(Fact::FaultBegins(what));
    }

    pub(super) fn end_fault(&self, what: &'static str) {
        self.trace.note(Fact::FaultEnds(what));
    }

    /// Lets some time pass.
    pub(super) async fn sleep(&self, ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    /// One more node joins.
    pub(super) async fn join(&mut self) -> Result<()> {
        let number = self.nodes.len();
        let mut node = Node::new(&self.cluster, number, self.plan).await?;
        node.spawn()?;
        node.ready().await?;
        let port = node.site.http_port();
        let watch = watches::node(port, Arc::clone(&self.trace));
        self.watching.push(watch);
        self.nodes.push(node);
        Ok(())
    }

    /// The users stop coming and going. Then the views become exact, and stay so for longer than a
    /// timeout. Fails if any promise was ever broken.
    pub(super) async fn end(mut self) -> Result<()> {
        let checked = self.check_promises().await;
        if checked.is_err() {
            let folder = self.save_trace()?;
            return checked.with_context(|| format!("all that happened is in {folder}"));
        }
        self.load.end().await?;
        for node in &mut self.nodes {
            if node.host.is_some() {
                node.stop().await?;
            }
        }
        Ok(())
    }

    async fn check_promises(&self) -> Result<()> {
        self.until_received(60).await?;
        self.load.calm();
        let begin = Instant::now();
        let mut found = differences(&self.trace.entries());
        while !found.is_empty() && begin.elapsed() < wait::GUARD {
            self.sleep(100).await;
            found = differences(&self.trace.entries());
        }
        ensure!(found.is_empty(), "in the end: {found:#?}");
        self.sleep(self.plan.timeout_ms + 500).await;
        let answers = viewer::ask_anew(&self.fresh, 0..VIEWERS).await?;
        let entries = self.trace.entries();
        let found = differences(&entries);
        ensure!(found.is_empty(), "a while after the end: {found:#?}");
        // A client that knows nothing yet gets the same answers.
        let connected = connected(&entries);
        for (viewer, users) in answers {
            for (user, online) in users {
                ensure!(
                    online == (connected.contains(&user) && may_see(viewer, user)),
                    "viewer {viewer} asks of user {user}, and is answered: online: {online}"
                );
            }
        }
        let verdict = judge(self.terms(), &entries);
        println!(
            "{}: {} messages told, {} later epochs, {} users steady, {} stalls, {} s",
            self.plan.name,
            verdict.told,
            verdict.successions,
            verdict.steady,
            verdict.stalls,
            self.trace.now() / 1_000,
        );
        let count = verdict.violations.len();
        let first: Vec<_> = verdict.violations.iter().take(15).collect();
        ensure!(count == 0, "{count} violations, the first: {first:#?}");
        ensure!(
            verdict.steady > 0,
            "no user could speak all the time: this machine is too busy for this test"
        );
        Ok(())
    }

    fn terms(&self) -> Terms {
        Terms {
            timeout_ms: self.plan.timeout_ms,
            lease_ms: self.plan.lease_ms.unwrap_or_default(),
            heartbeat_ms: HEARTBEAT_MS,
            allowance_ms: ALLOWANCE_MS,
            is_orderly: self.plan.is_orderly,
        }
    }

    /// Writes everything that happened to a folder, and returns the folder.
    fn save_trace(&self) -> Result<String> {
        let folder = tools::target().join("fleet-faults").join(self.plan.name);
        fs::create_dir_all(&folder)?;
        let entries = self.trace.entries();
        let lines = entries
            .iter()
            .map(|it| format!("{} {:?}\n", it.at, it.fact));
        fs::write(folder.join("trace.txt"), lines.collect::<String>())?;
        for (number, node) in self.nodes.iter().enumerate() {
            if let Some(host) = &node.host {
                let log = host.process.stderr().join("\n");
                fs::write(folder.join(format!("node-{number}.log")), log)?;
            }
        }
        Ok(folder.display().to_string())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.watching.iter().for_each(JoinHandle::abort);
    }
}

impl Node {
    async fn new(cluster: &Cluster, number: usize, plan: Plan) -> Result<Self> {
        let links = cluster.links().await?;
        let mut site = Site::new("nats://127.0.0.1:1")?
            .with("nats.url", links.urls(number % SERVERS))?
            .with("nats.beacon_ms", 500)?
            .with("tracker.timeout_ms", i64::try_from(plan.timeout_ms)?)?;
        if let Some(lease_ms) = plan.lease_ms {
            site.set("fleet.enabled", true)?;
            site.set("fleet.lease_ms", i64::try_from(lease_ms)?)?;
        }
        site.write_directory_value(&directory())?;
        Ok(Self {
            host: None,
            site,
            links,
        })
    }

    /// Starts it.
    pub(super) fn spawn(&mut self) -> Result<()> {
        self.host = Some(Host::spawn(&self.site)?);
        Ok(())
    }

    /// Waits until it is ready.
    pub(super) async fn ready(&mut self) -> Result<()> {
        self.running()?.ready().await
    }

    /// Its process.
    pub(super) fn running(&mut self) -> Result<&mut Host> {
        self.host.as_mut().context("the node runs")
    }

    /// Ends it without warning.
    pub(super) async fn kill(&mut self) -> Result<()> {
        self.host.take().context("the node runs")?.kill().await
    }

    /// Stops it with SIGTERM.
    pub(super) async fn stop(&mut self) -> Result<()> {
        self.host.take().context("the node runs")?.stop().await
    }
}
