//! The processor time of a standby beside its owner, and of a router per message.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::super::cpu::cpu_ns;
use super::super::fairness::plain;
use super::load::{publish, publish_on};
use super::scene::{self, ROOT, Scene, body};

/// How long each load lasts.
const LONG: Duration = Duration::from_secs(8);
/// The interval between two writes of messages.
const TICK: Duration = Duration::from_millis(2);
/// After how many pairs of messages a user who disconnected connects again. A multiple of each
/// load's `one_in`.
const AWAY: usize = 900;
/// At most how much later than its owner a standby is told of a heartbeat, and has handled it.
const TOLD: Duration = Duration::from_millis(scene::LEASE.as_millis() as u64 / 4);

const DROPS: &str = "presence_slow_consumer_drops_total";

/// The processor time of a standby and its owner, under one load.
pub(crate) struct StandbyCost {
    pub(crate) title: &'static str,
    pub(crate) messages: usize,
    pub(crate) owner_ns: u64,
    pub(crate) standby_ns: u64,
    /// How many messages the two nodes dropped.
    pub(crate) dropped: f64,
}

/// The cost of a node that only passes messages on.
pub(crate) struct Routed {
    pub(crate) messages: f64,
    /// Its processor time, without the time that it uses when there is nothing to pass on.
    pub(crate) ns: f64,
}

/// Loads the shard, and measures its owner and its standby.
pub(super) fn standby(scene: &Scene<'_>, owner: &str, standby: &str) -> Result<Vec<StandbyCost>> {
    let hosts = [scene.host(owner)?, scene.host(standby)?];
    let [owner, standby] = hosts.map(|it| it.process.id());
    let dropped = || -> Result<f64> {
        let each = hosts.map(|it| scene.broker.runtime.block_on(it.metric(DROPS, &["inputs"])));
        each.into_iter().sum()
    };
    // One in this many messages is a disconnect or a connect. 0: none is.
    let loads = [
        ("heartbeats alone", 0),
        ("of 30 messages, 1 comes or goes", 30),
        ("of 10 messages, 1 comes or goes", 10),
        ("connects and disconnects alone", 1),
    ];
    let rows = loads.into_iter().map(|(title, one_in)| {
        hear_all(scene)?;
        // Waits until the standby has been told of these heartbeats, which are not part of the
        // load.
        std::thread::sleep(TOLD);
        let dropped_before = dropped()?;
        let before = [cpu_ns(owner)?, cpu_ns(standby)?];
        // A user who disconnects connects again many messages later: a connect with the same
        // timestamp as a disconnect counts as sent before it.
        let message = |text: &mut String, number: usize| {
            let pair = number / 2;
            let changes = one_in > 0 && pair.is_multiple_of(one_in);
            let (user, kind) = match (changes, number % 2) {
                (false, _) => (pair, "heartbeat"),
                (true, 0) => (pair, "disconnect"),
                (true, _) => (pair.saturating_sub(AWAY), "connect"),
            };
            publish(text, kind, &body(user % scene.users, "c", kind));
        };
        let messages = send(scene, message)?;
        let stream = plain(scene.broker.server.port())?;
        let mut text = String::new();
        for pair in messages / 2..messages / 2 + AWAY {
            message(&mut text, 2 * pair + 1);
        }
        deliver(stream, &text)?;
        scene.until_answered()?;
        std::thread::sleep(TOLD);
        Ok(StandbyCost {
            title,
            messages,
            owner_ns: cpu_ns(owner)? - before[0],
            standby_ns: cpu_ns(standby)? - before[1],
            dropped: dropped()? - dropped_before,
        })
    });
    let rows = rows.collect();
    hear_all(scene)?;
    rows
}

/// Sends a heartbeat for every connection. No load has heartbeats of all of them, and together the
/// loads last longer than a connection's timeout.
fn hear_all(scene: &Scene<'_>) -> Result<()> {
    scene.send_for_all("heartbeat")?;
    scene.until_answered()
}

/// Sends messages, and waits until the broker has read them. The broker doesn't read on after a
/// connection is closed.
fn deliver(mut stream: TcpStream, text: &str) -> Result<()> {
    stream.write_all(text.as_bytes())?;
    stream.write_all(b"PING\r\n")?;
    let answers = BufReader::new(stream).lines();
    for answer in answers {
        if answer?.starts_with("PONG") {
            return Ok(());
        }
    }
    bail!("the broker closed the connection");
}

/// Sends messages that have to be passed on, and measures a node that has no part in the shard.
pub(super) fn routed(scene: &Scene<'_>, router: &str) -> Result<Routed> {
    let host = scene.host(router)?;
    let pid = host.process.id();
    let metric = |name| scene.broker.runtime.block_on(host.metric(name, &[]));
    let parts = [
        "presence_fleet_shards_owned",
        "presence_fleet_shards_in_step",
    ];
    for part in parts {
        ensure!(metric(part)? == 0.0, "{router} has a part in the shard");
    }
    let before = cpu_ns(pid)?;
    std::thread::sleep(LONG);
    let idle = cpu_ns(pid)? - before;
    let (before, count) = (cpu_ns(pid)?, metric("presence_fleet_routed_total")?);
    let subject = format!("{ROOT}.heartbeat");
    send(scene, |text, number| {
        let user = number % scene.users;
        publish_on(text, &subject, &body(user, "c", "heartbeat"));
    })?;
    scene.until_answered()?;
    let ns = cpu_ns(pid)? - before;
    Ok(Routed {
        messages: metric("presence_fleet_routed_total")? - count,
        ns: ns as f64 - idle as f64,
    })
}

/// Sends messages at a steady rate. Returns how many it has sent.
fn send(scene: &Scene<'_>, mut add: impl FnMut(&mut String, usize)) -> Result<usize> {
    let mut stream = plain(scene.broker.server.port())?;
    let (begun, mut text) = (Instant::now(), String::new());
    let mut sent = 0;
    while begun.elapsed() < LONG {
        let due = (begun.elapsed().as_secs_f64() * f64::from(scene.per_s)) as usize;
        text.clear();
        for number in sent..due.max(sent) {
            add(&mut text, number);
        }
        sent = due.max(sent);
        stream.write_all(text.as_bytes())?;
        std::thread::sleep(TICK);
    }
    deliver(stream, "")?;
    Ok(sent)
}
