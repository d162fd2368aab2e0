//! What operating a node costs: swaps of the pipeline under load, a shadow beside it, and
//! scrapes of its metrics.

#![allow(
    clippy::indexing_slicing,
    reason = "a field that JSON lacks is null, and a benchmark may panic"
)]

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::{self, kv};
use presence_tests::component;
use presence_tests::process::Process;
use presence_tests::site::Site;
use presence_tests::{host, http, wait};
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;

use super::entrants::{Entrant, run};
use super::fan_out::{Lane, Row};
use super::generator::{Generator, Window};
use super::load::{BEGIN_MS, Population};
use super::times::Times;
use super::{Args, Broker};

/// The pipeline of all nodes here.
const PIPELINE: &str = "[[pipeline]]\nplugin = \"contacts\"\n\n[[pipeline]]\nplugin = \"groups\"\n\n\
                        [[pipeline]]\nplugin = \"blocklist\"\n\n[[pipeline]]\nplugin = \"redact\"\n\
                        config = { keys = [\"device\"] }\n";

/// How many users are online all the while that plugins are swapped, and are decided on again
/// each time.
const ONLINE: usize = 1_000;
/// After how many swaps memory is measured first.
const WARM: u64 = 100;
/// The interval between two checks whether a task has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Swaps of the pipeline under load.
pub(crate) struct UnderLoad {
    /// How many took effect.
    pub(crate) swaps: u64,
    /// How many took effect per second, and how many were asked for per second.
    pub(crate) a_second: f64,
    pub(crate) wanted_a_second: u32,
    /// How long events took, one at a time: without swaps, and while the node swapped.
    pub(crate) steady: Times,
    pub(crate) swapping: Times,
    /// The same while another node swapped as often, on the same machine: this shows how much of
    /// the cores the swaps themselves take.
    pub(crate) elsewhere: Times,
    /// The node's resident bytes after [`WARM`] swaps, and after all.
    pub(crate) resident: [u64; 2],
}

/// The effect on the active path of what runs beside it.
pub(crate) struct SideLoads {
    /// The figures of a plain node, of one with a shadow, and of one whose metrics are read.
    pub(crate) rows: Vec<Row>,
    /// How many decisions the shadow has compared.
    pub(crate) compared: f64,
}

/// Swaps one plugin for another that decides the same, again and again, while events come.
pub(crate) fn swaps(broker: &Broker, args: &Args) -> Result<UnderLoad> {
    let population = Population {
        users: ONLINE,
        viewers: 100,
    };
    let (entrant, digests) = swapped(broker, "swaps", population)?;
    let (other, other_digests) = swapped(broker, "elsewhere", population)?;
    drop(OneByOne::online(broker, &other, population)?);
    let mut load = OneByOne::online(broker, &entrant, population)?;
    // The first half of the steady part. The second half is measured at the end.
    let mut steady = Times::default();
    load.run(&mut Times::default(), Duration::from_secs(2))?;
    load.run(&mut steady, Duration::from_secs(10))?;

    let begun = generation(broker, &entrant)?;
    // A node takes only the newest revision that it finds, so it skips those for which it has no
    // time.
    let apart = Duration::from_secs(1) / args.swaps_per_s.max(1);
    let swapper = Swapper::begin(broker, "swaps", digests, apart)?;
    let began = Instant::now();
    let mut swapping = Times::default();
    let mut first = None;
    let swaps = loop {
        load.run(&mut swapping, Duration::from_millis(500))?;
        let swaps = generation(broker, &entrant)? - begun;
        if swaps >= WARM && first.is_none() {
            first = Some(resident(entrant.pid())?);
        }
        if swaps >= args.swaps {
            break swaps;
        }
        swapper.goes_on()?;
    };
    let took = began.elapsed().as_secs_f64();
    swapper.end()?;
    let last = resident(entrant.pid())?;

    let begun = generation(broker, &other)?;
    let swapper = Swapper::begin(broker, "elsewhere", other_digests, apart)?;
    let mut elsewhere = Times::default();
    load.run(&mut Times::default(), Duration::from_secs(2))?;
    load.run(&mut elsewhere, Duration::from_secs(20))?;
    swapper.end()?;
    ensure!(generation(broker, &other)? > begun, "the other node swaps");
    load.run(&mut steady, Duration::from_secs(10))?;
    // Every user's offline comes once: no user was lost.
    load.all_but_one(false)
        .with_context(|| entrant.log_tail())?;
    Ok(UnderLoad {
        swaps,
        a_second: swaps as f64 / took,
        wanted_a_second: args.swaps_per_s,
        steady,
        swapping,
        elsewhere,
        resident: [first.unwrap_or(last), last],
    })
}

/// A node with a pipeline in a store of its own, and two builds of a plugin to swap.
fn swapped(
    broker: &Broker,
    tenant: &str,
    population: Population,
) -> Result<(Entrant, [String; 2])> {
    let directory = population.directory();
    let entrant = Entrant::of_store(broker, "presence", tenant, &directory, PIPELINE)?;
    let site = entrant.site().context("it is a host")?;
    let digests = [pushed(site, "contacts", 1)?, pushed(site, "contacts", 2)?];
    Ok((entrant, digests))
}

/// Rates of events with a shadow beside the pipeline, with the metrics read, and with neither.
pub(crate) fn side_loads(broker: &Broker, args: &Args) -> Result<SideLoads> {
    let population = Population::with(100);
    let directory = population.directory();
    let titles = ["presence", "with a shadow", "with its metrics read"];
    let tenants = ["plain", "shadowed", "scraped"];
    let mut lanes = Vec::new();
    for (title, tenant) in titles.into_iter().zip(tenants) {
        let entrant = Entrant::of_store(broker, title, tenant, &directory, PIPELINE)?;
        lanes.push(Lane::new(broker, entrant)?);
    }
    let [_, shadowed, scraped] = &lanes[..] else {
        anyhow::bail!("there are three lanes");
    };
    let shadow = Shadow::begin(broker, shadowed)?;
    let port = scraped.entrant.site().context("it is a host")?.http_port();
    // Ten times as often as most do.
    let scrapes = broker.runtime.spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let _ = http::get(port, "/metrics").await;
        }
    });
    for round in 0..=args.rounds {
        for lane in &mut lanes {
            let done = lane.round(broker, args.window, population, round);
            done.with_context(|| format!("{}\n{}", lane.entrant.title, lane.entrant.log_tail()))?;
        }
    }
    scrapes.abort();
    let compared = shadow.compared(broker, lanes.get(1).context("there is a shadow")?)?;
    Ok(SideLoads {
        rows: lanes.into_iter().map(|lane| lane.row).collect(),
        compared,
    })
}

/// Events one at a time: one user comes and goes.
pub(super) struct OneByOne<'a> {
    generator: Generator,
    entrant: &'a Entrant,
    population: Population,
    events: u64,
}

impl<'a> OneByOne<'a> {
    pub(super) fn new(
        broker: &Broker,
        entrant: &'a Entrant,
        population: Population,
    ) -> Result<Self> {
        let subject = format!("{}.filtered.*", entrant.root);
        Ok(Self {
            generator: Generator::connect(broker.server.port(), &subject)?,
            entrant,
            population,
            events: 0,
        })
    }

    /// Takes everyone online but the first one, who comes and goes.
    fn online(broker: &Broker, entrant: &'a Entrant, population: Population) -> Result<Self> {
        let mut load = Self::new(broker, entrant, population)?;
        load.all_but_one(true)?;
        Ok(load)
    }

    /// Sends events for some time.
    pub(super) fn run(&mut self, times: &mut Times, time: Duration) -> Result<()> {
        let (one, root) = (self.population.of_one(), &self.entrant.root);
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.events += 1;
            let at = BEGIN_MS + 2 * self.events;
            for event in [one.online(root, at), one.offline(root, at + 1)] {
                let begin = Instant::now();
                let answer = self.generator.ask(&event);
                let answer = answer.with_context(|| self.entrant.log_tail())?;
                times.push(begin.elapsed());
                ensure!(answer.contains("\"user-00000\""), "{answer:.300}");
            }
        }
        Ok(())
    }

    /// Takes everyone online or offline, and leaves the first user offline. Fails unless exactly
    /// one event comes for each.
    fn all_but_one(&mut self, online: bool) -> Result<()> {
        let (all, one, root) = (
            self.population,
            self.population.of_one(),
            &self.entrant.root,
        );
        let window = Window {
            messages: 128,
            per_answer: 1,
        };
        self.events += 1;
        let at = BEGIN_MS + 2 * self.events;
        if online {
            self.generator.feed(&all.online(root, at), window)?;
            self.generator.feed(&one.offline(root, at + 1), window)?;
        } else {
            self.generator.feed(&one.online(root, at), window)?;
            self.generator.feed(&all.offline(root, at + 1), window)?;
        }
        Ok(())
    }
}

/// Writes revisions that alternate between two builds of a plugin.
struct Swapper {
    stop: Arc<AtomicBool>,
    failed: Arc<Mutex<Option<anyhow::Error>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Swapper {
    fn begin(broker: &Broker, tenant: &str, digests: [String; 2], apart: Duration) -> Result<Self> {
        let (url, bucket) = (broker.server.url(), format!("{tenant}-presence-pipeline"));
        let bucket = broker.runtime.block_on(async {
            let client = async_nats::connect(url).await?;
            anyhow::Ok(jetstream::new(client).get_key_value(bucket).await?)
        })?;
        let (stop, failed) = (Arc::<AtomicBool>::default(), Arc::default());
        let task = write(bucket, (digests, apart), Arc::clone(&stop));
        let note: Arc<Mutex<Option<anyhow::Error>>> = Arc::clone(&failed);
        let task = broker.runtime.spawn(async move {
            if let Err(error) = task.await {
                *note.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        });
        Ok(Self { stop, failed, task })
    }

    /// Fails if the task has failed.
    fn goes_on(&self) -> Result<()> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.take().map_or(Ok(()), Err)
    }

    fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        wait_for(&self.task);
        self.goes_on()
    }
}

/// Waits for a task's end.
fn wait_for(task: &tokio::task::JoinHandle<()>) {
    while !task.is_finished() {
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Writes revisions until `stop` is set.
async fn write(
    bucket: kv::Store,
    (digests, apart): ([String; 2], Duration),
    stop: Arc<AtomicBool>,
) -> Result<()> {
    let mut ticks = tokio::time::interval(apart);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut number = 1_u64;
    let first = bucket.get("revision.1").await?.context("a revision")?;
    let mut revision: Value = serde_json::from_slice(&first)?;
    for digest in digests.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        ticks.tick().await;
        number += 1;
        revision["revision"] = number.into();
        revision["chain"][0]["digest"] = json!(digest);
        revision["why"] = json!("a bench");
        let bytes = serde_json::to_vec(&revision)?;
        bucket
            .create(format!("revision.{number}"), bytes.into())
            .await?;
    }
    Ok(())
}

/// A running shadow.
struct Shadow {
    _command: Process,
}

impl Shadow {
    fn begin(broker: &Broker, lane: &Lane) -> Result<Self> {
        let site = lane.entrant.site().context("it is a host")?;
        let digest = pushed(site, "contacts", 1)?;
        let named = format!("contacts@{digest}");
        let args = ["plugins", "shadow", &named, "--for", "24h"];
        let command = host::start(site, &args)?;
        let host = lane.entrant.host().context("it is a host")?;
        let runs = wait::until("the shadow to begin", async || {
            let status = http::get(site.http_port(), "/status").await?.body;
            let status: Value = serde_json::from_str(&status)?;
            Ok((status["serving"]["beside"]["kind"] == "shadow").then_some(()))
        });
        let begun = broker.runtime.block_on(runs);
        begun.with_context(|| host.process.log_tail())?;
        Ok(Self { _command: command })
    }

    /// How many decisions it has compared.
    fn compared(&self, broker: &Broker, lane: &Lane) -> Result<f64> {
        let site = lane.entrant.site().context("it is a host")?;
        let status = broker
            .runtime
            .block_on(http::get(site.http_port(), "/status"))?;
        let status: Value = serde_json::from_str(&status.body)?;
        let compared = &status["serving"]["beside"]["report"]["decisions"]["compared"];
        compared
            .as_f64()
            .with_context(|| format!("{}", status["serving"]["beside"]))
    }
}

/// Uploads a build of a plugin that differs from others in its version alone.
fn pushed(site: &Site, plugin: &str, build: u32) -> Result<String> {
    let version = format!("0.1.{build}");
    let bytes = component::with(&component::load(plugin)?, |manifest| {
        drop(manifest.insert("version".into(), version.clone().into()));
    })?;
    let path = site.path().join(format!("{plugin}-{build}.wasm"));
    fs::write(&path, bytes)?;
    let printed = run(
        site,
        &["plugins", "push", &path.to_string_lossy(), "--json"],
    )?;
    let printed: Value = serde_json::from_str(&printed)?;
    let digest = printed["pushed"][0]["digest"].as_str();
    Ok(digest.context("a digest")?.to_owned())
}

fn generation(broker: &Broker, entrant: &Entrant) -> Result<u64> {
    let host = entrant.host().context("it is a host")?;
    let generation = host.metric("presence_pipeline_generation", &[]);
    Ok(broker.runtime.block_on(generation)? as u64)
}

/// How many bytes of a process are resident.
pub(super) fn resident(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: u64 = kib
        .with_context(|| format!("{path} has no VmRSS"))?
        .parse()?;
    Ok(1_024 * kib)
}
