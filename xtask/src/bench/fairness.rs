//! What a hostile tenant does to a quiet one on the same node, for each kind of hostile load.
//! Events of the quiet tenant are sent one at a time, and their times are measured: while the other
//! tenant does nothing, and while it does its worst. A third figure is with the same load on the
//! broker, and none on the node: on few cores, the broker and the load take processor time,
//! whatever the node does. How much of the cores the other tenant's own work takes is shown by the
//! rows in which it has a node of its own, on the same machine.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use presence_tests::site::Site;
use presence_tests::{component, http, wait};
use serde_json::Value;
use toml::{Table, toml};

use super::entrants::Entrant;
use super::generator::{Frames, Generator, Window};
use super::load::{BEGIN_MS, Population, name};
use super::operating::OneByOne;
use super::times::Times;
use super::{Args, Broker};

/// How long each part of a round is measured.
const PART: Duration = Duration::from_millis(500);

/// The heartbeats per second of a flood: many times what a tenant is meant to send, and less than a
/// node reads. All tenants of an account share its connection: if the broker has more for it than
/// the node reads, all of them wait.
const FLOOD_PER_S: usize = if cfg!(debug_assertions) { 500 } else { 200_000 };

/// At most how many calls per second the costly and the failing plugin get, and how many times per
/// second the directory changes.
const CALLS_PER_S: u64 = 500;
const CHANGES_PER_S: u64 = 10;

/// How many users the hostile tenant's directory has, and how many members its one large group has.
const USERS: usize = 20_000;
const CROWD: usize = 50_000;

/// How many users a query names.
const ASKED: usize = 1_000;

const REPLIES: &str = "_INBOX.hostile.answers";

/// What a hostile tenant does, and within which limits.
#[derive(Clone, Copy)]
struct Kind {
    title: &'static str,
    load: HostileLoad,
    protection: Protection,
}

/// How the operator protects other tenants from it, besides the pool's fair turns.
#[derive(Clone, Copy, PartialEq)]
enum Protection {
    Nothing,
    Quotas,
    /// It is on other threads than the quiet tenant.
    Isolated,
    /// It is in another process than the quiet tenant.
    Elsewhere,
}

#[derive(Clone, Copy, PartialEq)]
enum HostileLoad {
    Flood,
    BurnFuel,
    Trap,
    ChangeDirectory,
    HugeAudiences,
    Queries,
}

const LOADS: [(&str, HostileLoad); 6] = [
    ("a flood of heartbeats", HostileLoad::Flood),
    ("a plugin that burns its fuel", HostileLoad::BurnFuel),
    ("a plugin that traps", HostileLoad::Trap),
    ("a directory that changes", HostileLoad::ChangeDirectory),
    ("audiences of 50,000", HostileLoad::HugeAudiences),
    ("queries of 1,000", HostileLoad::Queries),
];

/// All kinds: each load without protection, within quotas, isolated, and on another node.
fn kinds() -> impl Iterator<Item = Kind> {
    LOADS.into_iter().flat_map(|(title, load)| {
        let kind = move |title, protection| Kind {
            title,
            load,
            protection,
        };
        [
            kind(title, Protection::Nothing),
            kind("  within quotas", Protection::Quotas),
            kind("  isolated", Protection::Isolated),
            kind("  on a node of its own", Protection::Elsewhere),
        ]
    })
}

/// How long events of the quiet tenant took.
pub(crate) struct Row {
    pub(crate) title: &'static str,
    pub(crate) alone: Times,
    /// With the same load on the broker, on subjects that no node reads.
    pub(crate) broker_loaded: Times,
    pub(crate) beside: Times,
}

/// Measures all kinds, each with a node of its own.
pub(crate) fn measure(broker: &Broker, args: &Args) -> Result<Vec<Row>> {
    let rows = kinds().map(|kind| {
        eprintln!("Measuring a quiet tenant beside another: {}", kind.title);
        measure_kind(broker, args, kind)
    });
    rows.collect()
}

fn measure_kind(broker: &Broker, args: &Args, kind: Kind) -> Result<Row> {
    let population = Population {
        users: 100,
        viewers: 100,
    };
    let mut folder = PathBuf::new();
    let mut prepare = |site: Site| {
        folder = site.path().to_owned();
        fs::write(folder.join("hostile.json"), directory(kind.load, 0))?;
        if let Some((plugin, _)) = plugin(kind.load) {
            site.write_plugin(plugin, component::load(&format!("fixtures/{plugin}"))?)?;
        }
        anyhow::Ok(site)
    };
    let start = |title, configure: &mut dyn FnMut(Site) -> Result<Site>| {
        Entrant::presence(broker, title, None, &population.directory(), configure)
    };
    let quiet = || toml! { name = "quiet" };
    let (mut entrant, other) = match kind.protection {
        Protection::Elsewhere => {
            let other = start("the other one", &mut |site| {
                prepare(site)?.with("tenant", vec![hostile_section(kind)?])
            })?;
            until_served(broker, &other, 1).with_context(|| other.log_tail())?;
            let entrant = start(kind.title, &mut |site| site.with("tenant", vec![quiet()]))?;
            (entrant, Some(other))
        }
        // The hostile tenant has shards on every thread, so that no thread serves the quiet tenant
        // alone.
        _ => {
            let both = |site| prepare(site)?.with("tenant", vec![quiet(), hostile_section(kind)?]);
            (start(kind.title, &mut { both })?, None)
        }
    };
    entrant.root = "quiet.presence".into();
    let served = 2 - usize::from(other.is_some());
    until_served(broker, &entrant, served).with_context(|| entrant.log_tail())?;
    let mut quiet = OneByOne::new(broker, &entrant, population)?;
    let mut row = Row {
        title: kind.title,
        alone: Times::default(),
        broker_loaded: Times::default(),
        beside: Times::default(),
    };
    quiet.run(&mut Times::default(), 4 * PART)?;
    for _ in 0..args.rounds {
        quiet.run(&mut row.alone, PART)?;
        for (root, times) in [
            ("nobody", &mut row.broker_loaded),
            ("hostile", &mut row.beside),
        ] {
            let running = RunningLoad::begin(broker, kind.load, root, &folder);
            // The beginning of a load is different from the rest, and is not measured.
            quiet.run(&mut Times::default(), PART / 2)?;
            quiet.run(times, PART)?;
            running.end(broker).with_context(|| entrant.log_tail())?;
        }
        // The node finishes what the load has left, before the quiet tenant is measured alone
        // again.
        quiet.run(&mut Times::default(), PART)?;
    }
    Ok(row)
}

/// Waits until `count` tenants are served.
pub(super) fn until_served(broker: &Broker, entrant: &Entrant, count: usize) -> Result<()> {
    let port = entrant.site().context("it is a host")?.http_port();
    let served = wait::until("tenants to be served", async || {
        let status = http::get(port, "/status").await?.body;
        let status: Value = serde_json::from_str(&status)?;
        let tenants = status.get("tenants").and_then(Value::as_array);
        let states = tenants.into_iter().flatten().map(|it| it.get("state"));
        let serving = states.filter(|it| it.and_then(Value::as_str) == Some("serving"));
        Ok((serving.count() == count).then_some(()))
    });
    broker.runtime.block_on(served)
}

/// The plugin of a kind, and its role in the pipeline.
fn plugin(load: HostileLoad) -> Option<(&'static str, &'static str)> {
    match load {
        HostileLoad::BurnFuel => Some(("spin", "filter")),
        HostileLoad::Trap => Some(("trap", "filter")),
        _ => None,
    }
}

/// The section of the hostile tenant.
fn hostile_section(kind: Kind) -> Result<Table> {
    let shards = std::thread::available_parallelism()?
        .get()
        .next_power_of_two();
    let shards = i64::try_from(shards)?;
    let mut tenant = toml! {
        name = "hostile"
        shards = shards
        [directory]
        path = "hostile.json"
        [engine]
        // The circuit breaker never takes the plugin out of service.
        quarantine_failures = 1000000
        retry_ms_max = 3600000
        retry_ms = 3600000
        [explain]
        enabled = false
    };
    if let Some((plugin, _)) = plugin(kind.load) {
        let pipeline = vec![toml! { plugin = plugin }, toml! { plugin = "redact" }];
        tenant.insert("pipeline".into(), pipeline.into());
    }
    if kind.protection == Protection::Isolated {
        tenant.insert("isolated".into(), true.into());
    }
    if kind.protection == Protection::Quotas {
        let limits = toml! {
            messages_per_s = 1000
            queries_per_s = 100
            cpu_ms_per_s = 200
            audience_max = 1000
        };
        tenant.insert("limits".into(), limits.into());
        if let Some(engine) = tenant.get_mut("engine").and_then(toml::Value::as_table_mut) {
            engine.insert("fuel".into(), 200_000.into());
        }
    }
    Ok(tenant)
}

/// The directory of the hostile tenant. It is different for each number.
fn directory(load: HostileLoad, number: u64) -> String {
    let users = match load {
        HostileLoad::ChangeDirectory | HostileLoad::Queries => USERS,
        _ => 100,
    };
    let contacts = (0..users).map(|user| {
        let contact = (user as u64 + number) % users as u64;
        format!("\"{}\":[\"asker\",\"v{contact}\"]", name(user))
    });
    let contacts: Vec<_> = contacts.collect();
    let crowd = match load {
        HostileLoad::HugeAudiences => (0..CROWD)
            .map(|member| format!("\"{}\"", name(member)))
            .collect(),
        _ => Vec::new(),
    };
    format!(
        "{{\"contacts\":{{{}}},\"groups\":{{\"crowd\":[{}]}},\"blocks\":{{}}}}",
        contacts.join(","),
        crowd.join(",")
    )
}

/// The load of a hostile tenant, which runs until it is ended.
struct RunningLoad {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl RunningLoad {
    /// `root`: the tenant whose subjects or directory get the load. `nobody`: only the broker does.
    fn begin(
        broker: &Broker,
        load: HostileLoad,
        root: &'static str,
        folder: &std::path::Path,
    ) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let (port, stopped, folder) = (broker.server.port(), Arc::clone(&stop), folder.to_owned());
        let task = broker.runtime.spawn_blocking(move || {
            let goes_on = || !stopped.load(Ordering::Relaxed);
            match load {
                HostileLoad::Flood => flood(port, root, goes_on),
                HostileLoad::BurnFuel | HostileLoad::Trap | HostileLoad::HugeAudiences => {
                    calls(port, root, goes_on)
                }
                HostileLoad::ChangeDirectory => changes(root, &folder, goes_on),
                HostileLoad::Queries => queries(port, root, goes_on),
            }
        });
        Self { stop, task }
    }

    fn end(self, broker: &Broker) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        broker.runtime.block_on(self.task)?
    }
}

/// Sends heartbeats of some hundred connections: in each tick, as many as the rate needs.
fn flood(port: u16, root: &str, goes_on: impl Fn() -> bool) -> Result<()> {
    const TICK: Duration = Duration::from_millis(2);
    let mut stream = plain(port)?;
    let mut text = String::new();
    let a_tick = (FLOOD_PER_S as f64 * TICK.as_secs_f64()) as usize;
    for conn in 0..a_tick.max(1) {
        let body = format!(
            "{{\"userId\":\"{}\",\"connId\":\"c{conn}\",\"timestamp\":{BEGIN_MS}}}",
            name(conn % 100)
        );
        let bytes = body.len();
        text.push_str(&format!(
            "PUB {root}.presence.heartbeat {bytes}\r\n{body}\r\n"
        ));
    }
    let mut next = Instant::now();
    while goes_on() {
        stream.write_all(text.as_bytes())?;
        next += TICK;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// Users come and go, so that the plugins are called for each.
fn calls(port: u16, root: &str, goes_on: impl Fn() -> bool) -> Result<()> {
    let mut stream = plain(port)?;
    let mut number = 0;
    while goes_on() {
        for (kind, extra) in [("connect", ""), ("disconnect", ",\"reason\":\"logout\"")] {
            let at = BEGIN_MS + number;
            let user = name(usize::try_from(number % 100)?);
            let body = format!(
                "{{\"userId\":\"{user}\",\"connId\":\"c{number}\",\"timestamp\":{at}{extra}}}"
            );
            let bytes = body.len();
            let message = format!("PUB {root}.presence.{kind} {bytes}\r\n{body}\r\n");
            stream.write_all(message.as_bytes())?;
        }
        number += 1;
        std::thread::sleep(Duration::from_micros(1_000_000 / CALLS_PER_S));
    }
    Ok(())
}

/// Writes another directory each time.
fn changes(root: &str, folder: &std::path::Path, goes_on: impl Fn() -> bool) -> Result<()> {
    let mut number = 0;
    let path = folder.join(format!("{root}.json"));
    let new = folder.join(format!("{root}.json.new"));
    while goes_on() {
        number += 1;
        fs::write(&new, directory(HostileLoad::ChangeDirectory, number))?;
        fs::rename(&new, &path)?;
        std::thread::sleep(Duration::from_millis(1_000 / CHANGES_PER_S));
    }
    Ok(())
}

/// Sends queries about as many users as a query may name, several at a time. Those to `nobody` are
/// not answered.
fn queries(port: u16, root: &str, goes_on: impl Fn() -> bool) -> Result<()> {
    let users: Vec<_> = (0..ASKED)
        .map(|user| format!("\"{}\"", name(user)))
        .collect();
    let body = format!(
        "{{\"viewerId\":\"asker\",\"userIds\":[{}]}}",
        users.join(",")
    );
    if root == "nobody" {
        let mut stream = plain(port)?;
        while goes_on() {
            let bytes = body.len();
            let message = format!("PUB {root}.presence.query {REPLIES} {bytes}\r\n{body}\r\n");
            stream.write_all(message.as_bytes())?;
            std::thread::sleep(Duration::from_micros(500));
        }
        return Ok(());
    }
    let mut generator = Generator::connect(port, REPLIES)?;
    let mut frames = Frames::default();
    for _ in 0..64 {
        frames.push(&format!("{root}.presence.query"), REPLIES, &body);
    }
    while goes_on() {
        let window = Window {
            messages: 16,
            per_answer: 1,
        };
        generator.feed(&frames, window)?;
    }
    Ok(())
}

/// A connection that only publishes. It doesn't answer the broker's pings, since it is short.
pub(super) fn plain(port: u16) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    let hello = "CONNECT {\"verbose\":false,\"pedantic\":false,\"name\":\"hostile\"}\r\n";
    stream.write_all(hello.as_bytes())?;
    Ok(stream)
}
