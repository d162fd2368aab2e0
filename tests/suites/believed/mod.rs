//! What viewers believe, compared with what is true. A crowd comes and goes; the node, the broker
//! and the links fail. In the end, every view of the reference client shows exactly those users as
//! online who are online and whom its viewer may see.

mod crowd;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use presence_tests::client::{Client, now_ms};
use presence_tests::host::Host;
use presence_tests::nats::NatsServer;
use presence_tests::process::Process;
use presence_tests::proxy::Proxy;
use presence_tests::site::Site;
use presence_tests::{http, node, wait};
use serde_json::Value;
use tokio::task::JoinHandle;

use crowd::{Crowd, Random, Sight};

/// Short, so that ghosts disappear within the promised time. Long enough for heartbeats twice a
/// second, on a busy machine.
const TIMEOUT_MS: i64 = 3_000;

/// How long a link hangs before it is cut.
const HANG: Duration = Duration::from_secs(1);

/// How many faults come in a row.
const SERIES: usize = 5;

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// The node is killed, and started again.
    Node,
    /// The broker is killed, and started again.
    Broker,
    /// The node's link carries nothing for a while, and is then cut with what is in it.
    NodesLink,
    /// The same for the viewers' link.
    ViewersLink,
    /// The viewers' link is cut at once.
    ViewersCut,
    /// Not a fault, but a change that may come between faults: who may see whom.
    Directory,
}

const ALL: [Fault; 6] = [
    Fault::Node,
    Fault::Broker,
    Fault::NodesLink,
    Fault::ViewersLink,
    Fault::ViewersCut,
    Fault::Directory,
];

/// Everything, dropped in this order.
struct Scene {
    seed: u64,
    moving: JoinHandle<()>,
    viewers: Process,
    viewers_port: u16,
    host: Host,
    crowd: Crowd,
    site: Site,
    nodes_link: Proxy,
    viewers_link: Proxy,
    server: NatsServer,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.moving.abort();
    }
}

impl Scene {
    async fn start(seed: u64) -> Result<Self> {
        let server = NatsServer::start().await?;
        let nodes_link = Proxy::start(server.port()).await?;
        let viewers_link = Proxy::start(server.port()).await?;
        let site = Site::new(&nodes_link.url())?
            .with("tracker.timeout_ms", TIMEOUT_MS)?
            .with("engine.workers", 2)?
            .with("nats.beacon_ms", 1_000)?
            .with("inbox.enabled", true)?;
        let crowd = Crowd::new(Random::new(seed));
        crowd.meet(&site)?;
        let host = Host::start(&site).await?;
        let moving = crowd.start(Client::connect(&server.url()).await?);
        let (viewers, users) = (Crowd::viewers().join(","), crowd.users().join(","));
        let args = [viewers_link.url(), viewers, users];
        let args = args.each_ref().map(String::as_str);
        let mut viewers = node::spawn("tests/node/viewers.mjs", &args)?;
        let port = viewers.wait_for_stdout("viewers to be asked", |line| line.starts_with("port "));
        let viewers_port = port.await?.trim_start_matches("port ").parse()?;
        Ok(Self {
            seed,
            moving,
            viewers,
            viewers_port,
            host,
            crowd,
            site,
            nodes_link,
            viewers_link,
            server,
        })
    }

    /// Makes something fail, and repairs it.
    async fn fail(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Node => {
                self.host.process.kill().await?;
                self.host = Host::start(&self.site).await?;
            }
            Fault::Broker => {
                self.server.kill().await?;
                self.server.resume().await?;
            }
            Fault::NodesLink => hang_and_cut(&self.nodes_link).await,
            Fault::ViewersLink => hang_and_cut(&self.viewers_link).await,
            Fault::ViewersCut => self.viewers_link.drop_connections(),
            Fault::Directory => self.crowd.meet(&self.site)?,
        }
        Ok(())
    }

    /// The users whom each viewer's view shows as online, for each kind of feed. `None` while a
    /// view is in doubt. Fails if a view has ever shown a user whom its viewer may never see.
    async fn believed(&self) -> Result<Option<[Sight; 2]>> {
        let answer = http::get(self.viewers_port, "/").await?;
        let answer: Value = serde_json::from_str(&answer.body)?;
        let could_see = self.crowd.could_see();
        let mut all = [Sight::new(), Sight::new()];
        for (sight, mode) in all.iter_mut().zip(["filtered", "inbox"]) {
            for (viewer, belief) in answer[mode].as_object().context("a map of viewers")? {
                let ever = strings(&belief["ever"]);
                let could = could_see.get(viewer).cloned().unwrap_or_default();
                ensure!(
                    ever.is_subset(&could),
                    "{viewer} ({mode}) was shown whom they may not see: {:?}",
                    ever.difference(&could)
                );
                if belief["synced"] != true {
                    return Ok(None);
                }
                sight.insert(viewer.clone(), strings(&belief["online"]));
            }
        }
        Ok(Some(all))
    }

    /// Waits until everyone believes what is true, and says how long that took.
    async fn until_true(&mut self, after: &str) -> Result<()> {
        let begin = Instant::now();
        self.crowd.settle();
        let expected = self.crowd.seen();
        let mut wrong = Vec::new();
        let agreed = wait::until("viewers to believe what is true", async || {
            let Some(believed) = self.believed().await? else {
                wrong = vec!["somebody doubts".to_owned()];
                return Ok(None);
            };
            wrong = ["filtered", "inbox"]
                .iter()
                .zip(&believed)
                .flat_map(|(mode, sight)| differences(mode, sight, &expected))
                .collect();
            // If the node has the same number, no message is still to come.
            let online = self.host.metric("presence_online_users", &[]).await?;
            if online != self.crowd.online() as f64 {
                wrong.push(format!("the node holds {online} to be online"));
            }
            Ok(wrong.is_empty().then_some(()))
        });
        let agreed = agreed.await;
        let seed = self.seed;
        agreed.with_context(|| {
            let (host, viewers) = (self.host.process.log_tail(), self.viewers.log_tail());
            format!("after {after}, PRESENCE_SEED={seed}: {wrong:#?}\n{host}\n{viewers}")
        })?;
        println!(
            "after {after} (seed {seed}): all true after {:?}",
            begin.elapsed()
        );
        Ok(())
    }
}

/// A link hangs, and then what is in it is lost.
async fn hang_and_cut(link: &Proxy) {
    link.pause();
    tokio::time::sleep(HANG).await;
    link.cut();
    link.resume();
}

fn strings(list: &Value) -> BTreeSet<String> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(|it| Some(it.as_str()?.to_owned()))
        .collect()
}

/// The differences between what viewers believe and what they should believe, as texts.
fn differences(mode: &str, believed: &Sight, expected: &Sight) -> Vec<String> {
    let all = expected.iter().filter_map(|(viewer, expected)| {
        let believed = believed.get(viewer).cloned().unwrap_or_default();
        let ghosts: Vec<_> = believed.difference(expected).collect();
        let missing: Vec<_> = expected.difference(&believed).collect();
        let wrong = !ghosts.is_empty() || !missing.is_empty();
        wrong.then(|| format!("{viewer} ({mode}): ghosts {ghosts:?}, missing {missing:?}"))
    });
    all.collect()
}

/// The seed of this run, which `PRESENCE_SEED` may name.
fn seed() -> u64 {
    let named = std::env::var("PRESENCE_SEED").ok();
    named
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(now_ms)
}

/// A fault amid the crowd's coming and going.
async fn after(fault: Fault) -> Result<()> {
    let mut scene = Scene::start(seed()).await?;
    scene.fail(fault).await?;
    scene.until_true(&format!("{fault:?}")).await?;
    scene.host.process.stop().await
}

#[tokio::test]
async fn all_is_true_without_a_fault() -> Result<()> {
    let mut scene = Scene::start(seed()).await?;
    scene.until_true("nothing").await?;
    scene.host.process.stop().await
}

#[tokio::test]
async fn all_is_true_after_the_node_was_killed() -> Result<()> {
    after(Fault::Node).await
}

#[tokio::test]
async fn all_is_true_after_the_broker_was_killed() -> Result<()> {
    after(Fault::Broker).await
}

#[tokio::test]
async fn all_is_true_after_the_nodes_link_hung_and_was_cut() -> Result<()> {
    after(Fault::NodesLink).await
}

#[tokio::test]
async fn all_is_true_after_the_viewers_link_hung_and_was_cut() -> Result<()> {
    after(Fault::ViewersLink).await
}

#[tokio::test]
async fn all_is_true_after_several_faults_in_a_row() -> Result<()> {
    let seed = seed();
    let mut random = Random::new(!seed);
    let mut scene = Scene::start(seed).await?;
    let faults: Vec<_> = (0..SERIES).map(|_| ALL[random.below(ALL.len())]).collect();
    let what = format!("{faults:?}");
    for fault in faults {
        let failed = scene.fail(fault).await;
        failed.with_context(|| format!("amid {what}, PRESENCE_SEED={seed}"))?;
    }
    scene.until_true(&what).await?;
    scene.host.process.stop().await
}
