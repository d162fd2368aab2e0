//! The load that goes on all the time: heartbeats of connections, and events whose times are
//! measured. And the watch that notes what viewers are told.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt as _;
use presence_tests::client::Client;

use super::super::Broker;
use super::super::fairness::plain;
use super::super::times::Times;
use super::scene::{PROBES, ROOT, Scene, body, subject};

/// How long a connection is silent between two heartbeats.
const INTERVAL: Duration = Duration::from_secs(10);
/// The interval between two writes of heartbeats.
const TICK: Duration = Duration::from_millis(10);
/// The interval between two events whose times are measured.
const PROBE: Duration = Duration::from_millis(10);
/// How long to wait until viewers have been told of all events.
const PATIENCE: Duration = Duration::from_secs(120);

/// What viewers have been told.
#[derive(Clone)]
pub(super) struct Watch(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    /// When each probe user was first shown as online.
    online: BTreeMap<usize, Instant>,
    left: BTreeSet<usize>,
    /// How many messages were about other users.
    others: usize,
}

impl Watch {
    /// Begins to watch. The users from number `first` on are probe users.
    pub(super) fn begin(broker: &Broker, client: &Client, first: usize) -> Result<Self> {
        let seen = Arc::<Mutex<Seen>>::default();
        let subscribed = client.nats.subscribe(format!("{ROOT}.filtered.*"));
        let mut messages = broker.runtime.block_on(subscribed)?;
        broker.runtime.block_on(client.round_trip())?;
        let noted = Arc::clone(&seen);
        broker.runtime.spawn(async move {
            while let Some(message) = messages.next().await {
                let at = Instant::now();
                let mut seen = noted.lock().unwrap_or_else(PoisonError::into_inner);
                match user_of(&message.payload).filter(|user| *user >= first) {
                    Some(user) if message.subject.ends_with("online") => {
                        seen.online.entry(user).or_insert(at);
                    }
                    Some(user) => {
                        seen.left.insert(user);
                    }
                    None => seen.others += 1,
                }
            }
        });
        Ok(Self(seen))
    }

    /// How many messages were about users who are not probe users. Their connections last all the
    /// time.
    pub(super) fn others(&self) -> usize {
        self.seen(|seen| seen.others)
    }

    pub(super) fn has_left(&self, user: usize) -> bool {
        self.seen(|seen| seen.left.contains(&user))
    }

    fn seen<T>(&self, of: impl FnOnce(&Seen) -> T) -> T {
        of(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The number of the user whom a message is about.
fn user_of(payload: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(payload).ok()?;
    let (_, rest) = text.split_once("\"userId\":\"user-")?;
    rest.split_once('"')?.0.parse().ok()
}

/// A thread that does something until it is stopped.
struct Worker<T> {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Result<T>>,
}

impl<T: Send + 'static> Worker<T> {
    /// `work` gets a connection that only publishes, and a function that says whether to go on.
    fn begin(
        broker: &Broker,
        work: impl FnOnce(TcpStream, &dyn Fn() -> bool) -> Result<T> + Send + 'static,
    ) -> Result<Self> {
        let stop = Arc::<AtomicBool>::default();
        let (stream, stopped) = (plain(broker.server.port())?, Arc::clone(&stop));
        let task = broker
            .runtime
            .spawn_blocking(move || work(stream, &|| !stopped.load(Ordering::Relaxed)));
        Ok(Self { stop, task })
    }

    fn end(self, broker: &Broker) -> Result<T> {
        self.stop.store(true, Ordering::Relaxed);
        broker.runtime.block_on(self.task)?
    }
}

/// Heartbeats of connections: one of each connection in every `INTERVAL`.
pub(super) struct Heartbeats(Worker<()>);

impl Heartbeats {
    pub(super) fn begin(scene: &Scene<'_>) -> Result<Self> {
        let users = scene.users;
        let ticks = INTERVAL.as_millis() / TICK.as_millis();
        let a_tick = users.div_ceil(usize::try_from(ticks)?);
        let worker = Worker::begin(scene.broker, move |mut stream, goes_on| {
            let (mut next, mut at) = (0, Instant::now());
            let mut text = String::new();
            while goes_on() {
                text.clear();
                for _ in 0..a_tick {
                    publish(
                        &mut text,
                        "heartbeat",
                        &body(next % users, "c", "heartbeat"),
                    );
                    next += 1;
                }
                stream.write_all(text.as_bytes())?;
                at += TICK;
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
            }
            Ok(())
        })?;
        Ok(Self(worker))
    }

    pub(super) fn end(self, broker: &Broker) -> Result<()> {
        self.0.end(broker)
    }
}

/// Probe users: they come online one after another, at a steady rate, so that events can be timed.
pub(super) struct Probes(Worker<BTreeMap<usize, Instant>>);

impl Probes {
    pub(super) fn begin(scene: &Scene<'_>) -> Result<Self> {
        let (first, end) = (scene.users + scene.probed, scene.users + PROBES);
        let worker = Worker::begin(scene.broker, move |mut stream, goes_on| {
            let mut sent = BTreeMap::new();
            let (mut at, mut text) = (Instant::now(), String::new());
            for user in first..end {
                if !goes_on() {
                    return Ok(sent);
                }
                text.clear();
                publish(&mut text, "connect", &body(user, "p", "connect"));
                sent.insert(user, Instant::now());
                stream.write_all(text.as_bytes())?;
                at += PROBE;
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
            }
            anyhow::bail!("it took longer than there are users for");
        })?;
        Ok(Self(worker))
    }

    /// Ends the probes, and waits until viewers have been told of all of them. Returns how long the
    /// events took that were published from `from` on, and how many probe users have come online so
    /// far.
    pub(super) fn end(self, scene: &Scene<'_>, from: Instant) -> Result<(Times, usize)> {
        let sent = self.0.end(scene.broker)?;
        let last = sent.keys().next_back().context("one was sent")?;
        let until = Instant::now() + PATIENCE;
        let are_seen = |seen: &Seen| sent.keys().all(|user| seen.online.contains_key(user));
        while !scene.watch.seen(are_seen) {
            ensure!(Instant::now() < until, "viewers were not told of everyone");
            std::thread::sleep(TICK);
        }
        let mut times = Times::default();
        scene.watch.seen(|seen| {
            for (user, at) in sent.iter().filter(|(_, at)| **at >= from) {
                if let Some(shown) = seen.online.get(user) {
                    times.push(*shown - *at);
                }
            }
        });
        Ok((times, last + 1 - scene.users))
    }
}

/// Adds a message on the shard's own subject.
pub(super) fn publish(text: &mut String, kind: &str, body: &str) {
    publish_on(text, &subject(kind), body);
}

/// Adds a message.
pub(super) fn publish_on(text: &mut String, subject: &str, body: &str) {
    let bytes = body.len();
    text.push_str(&format!("PUB {subject} {bytes}\r\n{body}\r\n"));
}
