//! The resources that many tenants take on one node: time to start, memory, threads, mappings,
//! subscriptions.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use presence_tests::client::{Client, now_ms};
use presence_tests::host::Host;
use presence_tests::http;
use presence_tests::site::Site;
use serde_json::{Value, json};
use toml::Table;

use super::cpu::cpu_ns;
use super::{Args, Broker};

/// How long an idle node is watched.
const IDLE: Duration = Duration::from_secs(10);

/// How long to wait until instances that nobody calls have been released.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(150);

/// The interval between two checks whether the node is ready.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A node's resources at one moment.
#[derive(Clone, Copy)]
pub(crate) struct Resources {
    pub(crate) resident: u64,
    pub(crate) threads: u64,
    pub(crate) mappings: u64,
    pub(crate) files: u64,
}

/// The figures of a node with many tenants.
pub(crate) struct Density {
    pub(crate) tenants: usize,
    /// The time from the start of the process until every tenant is served: the first time without
    /// state, and again with the state of the first run.
    pub(crate) started: [Duration; 2],
    /// The resources of an idle node with one tenant.
    pub(crate) one: Resources,
    /// The resources of the node with all tenants: idle, after an event in each, and after unused
    /// instances have been released.
    pub(crate) all: [Resources; 3],
    /// The processor time of the idle node, in thousandths of a processor: with one tenant, and
    /// with all.
    pub(crate) idle_cpu: [f64; 2],
    /// The node's subscriptions at the broker: with one tenant, and with all.
    pub(crate) subscriptions: [u64; 2],
    /// How long it took until the viewers of one event in each tenant were told.
    pub(crate) events: Duration,
}

/// Measures a node with `--tenants` tenants, and a node with one.
pub(crate) fn measure(broker: &Broker, args: &Args) -> Result<Density> {
    let few = site(broker, 1)?;
    let (host, _) = start(broker, &few, 1)?;
    let one_cpu = idle_cpu(&host)?;
    let (one, one_subscriptions) = (resources(&host)?, broker.subscriptions()?);
    broker.runtime.block_on(host.stop())?;

    let count = args.tenants;
    let site = site(broker, count)?;
    let (host, first) = start(broker, &site, count)?;
    broker.runtime.block_on(host.stop())?;
    let (mut host, again) = start(broker, &site, count)?;
    let all_cpu = idle_cpu(&host)?;
    let (idle, subscriptions) = (resources(&host)?, broker.subscriptions()?);
    let began = Instant::now();
    let told = broker.runtime.block_on(come_online(broker, count));
    told.with_context(|| host.process.log_tail())?;
    let events = began.elapsed();
    let busy = resources(&host)?;
    std::thread::sleep(RELEASE_TIMEOUT);
    let released = resources(&host)?;
    if let Some(status) = host.process.ended()? {
        bail!("it ended: {status}\n{}", host.process.log_tail());
    }
    broker.runtime.block_on(host.stop())?;
    Ok(Density {
        tenants: count,
        started: [first, again],
        one,
        all: [idle, busy, released],
        idle_cpu: [one_cpu, all_cpu],
        subscriptions: [one_subscriptions, subscriptions],
        events,
    })
}

fn name(tenant: usize) -> String {
    format!("t{tenant:05}")
}

/// A site with this many tenants, each with a directory of its own.
fn site(broker: &Broker, tenants: usize) -> Result<Site> {
    let site = Site::new(&broker.server.url())?.with("state.dir", "state")?;
    let folder = site.path().join("directories");
    fs::create_dir(&folder)?;
    let sections = (0..tenants).map(|tenant| {
        let path = Path::new("directories").join(format!("{}.json", name(tenant)));
        let directory = json!({
            "contacts": {"12345": ["67890", "11111"]},
            "groups": {"team-a": ["12345", "22222"]},
            "blocks": {"12345": ["11111"]},
        });
        fs::write(site.path().join(&path), directory.to_string())?;
        let mut section = Table::new();
        section.insert("name".into(), name(tenant).into());
        let mut directory = Table::new();
        directory.insert("path".into(), path.to_string_lossy().into_owned().into());
        section.insert("directory".into(), directory.into());
        Ok(section)
    });
    let sections: Vec<Table> = sections.collect::<Result<_>>()?;
    site.with("tenant", sections)
}

/// Starts a node, and waits until all its tenants are served. Doesn't read its metrics meanwhile:
/// those of a thousand tenants would take part of the measured time.
fn start(broker: &Broker, site: &Site, tenants: usize) -> Result<(Host, Duration)> {
    let began = Instant::now();
    let mut host = Host::spawn(site)?;
    let is_ready = async || -> Result<bool> {
        let ready = http::get(site.http_port(), "/readyz").await?;
        // The body would name tenants that are not served.
        Ok(ready.status == 200 && ready.body == "ready\n")
    };
    while !broker.runtime.block_on(is_ready()).unwrap_or(false) {
        if let Some(status) = host.process.ended()? {
            bail!("it ended: {status}\n{}", host.process.log_tail());
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    let took = began.elapsed();
    let serving = host.metric("presence_tenants", &["state=\"serving\""]);
    let serving = broker.runtime.block_on(serving)?;
    ensure!(serving as usize == tenants, "{serving} tenants are served");
    Ok((host, took))
}

/// The processor time of an idle node, in thousandths of a processor.
fn idle_cpu(host: &Host) -> Result<f64> {
    // Waits first, so that the work after the start is not measured.
    std::thread::sleep(IDLE);
    let (began, before) = (Instant::now(), cpu_ns(host.process.id())?);
    std::thread::sleep(IDLE);
    let used = cpu_ns(host.process.id())?.saturating_sub(before);
    Ok(1_000.0 * used as f64 / began.elapsed().as_nanos() as f64)
}

/// Takes one user of each tenant online, and waits until viewers are told of each.
async fn come_online(broker: &Broker, tenants: usize) -> Result<()> {
    let client = Client::connect(&broker.server.url()).await?;
    let mut tape = client.record("*.presence.filtered.user_online").await?;
    for tenant in 0..tenants {
        let subject = format!("{}.presence.connect", name(tenant));
        let body = json!({
            "userId": "12345", "connId": "c1", "timestamp": now_ms(),
            "metadata": {"device": "web"},
        });
        client.publish(&subject, &body).await?;
    }
    for _ in 0..tenants {
        tape.next("a filtered online", |_| true).await?;
    }
    Ok(())
}

/// A node's resources now.
fn resources(host: &Host) -> Result<Resources> {
    let process = format!("/proc/{}", host.process.id());
    let status = fs::read_to_string(format!("{process}/status"))?;
    let field = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number
            .with_context(|| format!("{process} has {name}"))?
            .parse()?)
    };
    Ok(Resources {
        resident: 1_024 * field("VmRSS:")?,
        threads: field("Threads:")?,
        mappings: fs::read_to_string(format!("{process}/maps"))?
            .lines()
            .count() as u64,
        files: fs::read_dir(format!("{process}/fd"))?.count() as u64,
    })
}

impl Broker {
    /// The number of its clients' subscriptions, without the broker's own.
    fn subscriptions(&self) -> Result<u64> {
        let connz = http::get(self.monitoring_port, "/connz?limit=1024");
        let connz: Value = serde_json::from_str(&self.runtime.block_on(connz)?.body)?;
        let all = connz.get("connections").and_then(Value::as_array);
        let each = all.into_iter().flatten();
        let each = each.filter_map(|it| it.get("subscriptions")?.as_u64());
        Ok(each.sum())
    }
}
