//! A fleet whose users are all in one shard: how long a hand-over and a takeover take, and how long
//! events wait meanwhile; what a standby costs beside its owner, and what a router costs per
//! message. All of it is measured with real nodes, one of which owns the shard at a time.

mod costs;
mod load;
mod scene;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use presence_tests::process::Signal;

pub(crate) use self::costs::{Routed, StandbyCost};
use self::load::{Heartbeats, Probes};
use self::scene::Scene;
use super::times::Times;
use super::{Args, Broker};

/// How long to wait after something has happened, so that all its effects are seen.
const AFTER: Duration = Duration::from_secs(3);

/// After this time without a message, viewers have been told of everything.
const QUIET: Duration = Duration::from_millis(500);

/// The effects of something that happens to the shard.
pub(crate) struct Measurement {
    pub(crate) title: &'static str,
    /// The time until the shard's new owner has decided on everyone, and answers queries. For a
    /// node that only joins: until it stands by.
    pub(crate) took: Duration,
    /// How long events took meanwhile, from when they were published until viewers were told.
    pub(crate) events: Times,
    /// How many messages viewers got about users for whom nothing had changed.
    pub(crate) differences: usize,
}

/// The figures of a fleet.
pub(crate) struct Figures {
    pub(crate) connections: usize,
    pub(crate) lease: Duration,
    pub(crate) measurements: Vec<Measurement>,
    pub(crate) standby: Vec<StandbyCost>,
    pub(crate) routed: Routed,
}

/// Measures a fleet with `--connections` users, each with one connection.
pub(crate) fn measure(broker: &Broker, args: &Args) -> Result<Figures> {
    let mut scene = Scene::new(broker, args)?;
    let [joins, owns, stands_by] = Scene::ranked()?;
    let mut measurements = Vec::new();

    eprintln!("Measuring a fleet with {} connections", args.connections);
    scene.start(owns)?;
    scene.until_owner(owns)?;
    scene.send_for_all("connect")?;
    let heartbeats = Heartbeats::begin(&scene)?;
    scene.until_sure()?;
    measurements.push(scene.measure("nothing happens", |_, _| {
        std::thread::sleep(AFTER);
        Ok(())
    })?);
    measurements.push(
        scene.measure("a node joins, and stands by", |scene, begun| {
            scene.start(stands_by)?;
            *begun = Instant::now();
            scene.until_in_step(stands_by)
        })?,
    );
    heartbeats.end(broker)?;

    eprintln!("Measuring a standby beside its owner");
    let standby = costs::standby(&scene, owns, stands_by)?;

    let heartbeats = Heartbeats::begin(&scene)?;
    measurements.push(
        scene.measure("a node joins, and is handed the shard", |scene, begun| {
            scene.start(joins)?;
            *begun = Instant::now();
            scene.until_owner(joins)
        })?,
    );
    scene.until_in_step(owns)?;
    heartbeats.end(broker)?;

    eprintln!("Measuring a router");
    let routed = costs::routed(&scene, stands_by)?;

    let heartbeats = Heartbeats::begin(&scene)?;
    measurements.push(scene.measure("the owner is stopped (SIGTERM)", |scene, _| {
        scene.signal(joins, Signal::TERM)?;
        scene.until_owner(owns)
    })?);
    scene.until_in_step(stands_by)?;
    measurements.push(scene.measure("the owner is killed (SIGKILL)", |scene, _| {
        scene.signal(owns, Signal::KILL)?;
        scene.until_owner(stands_by)
    })?);
    heartbeats.end(broker)?;
    ensure!(measurements.iter().all(|it| it.events.len() > 0));
    Ok(Figures {
        connections: args.connections,
        lease: scene::LEASE,
        measurements,
        standby,
        routed,
    })
}

impl Scene<'_> {
    /// Runs `action` while events are published at a steady rate, and measures how long it takes.
    /// `action` returns when the shard has its new state, and may set the time at which it began.
    /// The time until queries are answered is included.
    fn measure(
        &mut self,
        title: &'static str,
        action: impl FnOnce(&mut Self, &mut Instant) -> Result<()>,
    ) -> Result<Measurement> {
        eprintln!("  {title}");
        // Messages that viewers still get about an earlier load are not counted.
        let mut differences = self.watch.others();
        loop {
            std::thread::sleep(QUIET);
            let others = self.watch.others();
            if others == std::mem::replace(&mut differences, others) {
                break;
            }
        }
        let probes = Probes::begin(self)?;
        std::thread::sleep(AFTER);
        let mut begun = Instant::now();
        let from = begun;
        action(self, &mut begun)?;
        self.until_answered()?;
        let took = begun.elapsed();
        std::thread::sleep(AFTER);
        let (events, probed) = probes
            .end(self, from)
            .context("events that were published")?;
        self.probed = probed;
        Ok(Measurement {
            title,
            took,
            events,
            differences: self.watch.others() - differences,
        })
    }
}
