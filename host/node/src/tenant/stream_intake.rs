//! Reads the input stream of a node without a fleet: connects and disconnects, which JetStream
//! keeps while the node can't take them.
//!
//! Messages go to the shards in the stream's order, each with its number. A shard's number is
//! stored in one transaction with the changes that its messages have made (`state::position`), so
//! the next start continues after it. Nothing is dropped: while a shard has no room, the stream
//! waits.
//!
//! After any error of the stream, the reading ends and begins again. [`Progress`] decides where.

mod progress;

use std::convert::Infallible;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use presence_config::subjects::Subjects;
use presence_core::Input;
use presence_core::message::{Limits, Message};
use presence_core::metadata;
use presence_core::quota::Rate;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use self::progress::{BeginReason, Progress};
use super::Tenant;
use super::intake::{BATCH_BYTES_MAX, traced};
use crate::clock;
use crate::link::input_stream::{
    InputMessages, InputStreamError, InputStreams, KINDS, StoredInput,
};
use crate::pool::log_limiter::LogLimiter;
use crate::pool::{self, BATCH_MAX, Batch, Shards};
use crate::state::Restored;
use crate::state::position::{ReadPositions, ShardOf, StreamPlaces};
use crate::telemetry::Tracer;

/// The delay before an unreadable stream is tried again: at first, and at most.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How long the stream must be read until the delay is reset.
pub(super) const STEADY: Duration = Duration::from_secs(10);

/// How long heartbeats wait at the start for a stream that can't be read.
const PATIENCE: Duration = Duration::from_secs(3);

/// The interval of periodic checks.
pub(super) const TICK: Duration = Duration::from_millis(500);

/// How often the stream itself is checked. It may have been changed. Or a message may have been
/// lost between the servers, which would only show at the next message.
pub(super) const CHECK_EVERY: Duration = Duration::from_secs(5);

/// How often it is checked whether the rate allows one more message.
pub(super) const PACE: Duration = Duration::from_millis(2);

/// The least time between two log lines about lost messages, in milliseconds.
const LOG_EVERY_MS: u64 = 10_000;

/// The state of reading the stream.
#[derive(Debug)]
pub(crate) struct StreamHealth {
    /// Its name.
    pub(crate) name: String,
    outage: Mutex<Option<Outage>>,
    /// Whether messages that were stored before the node's start are still being taken.
    pub(crate) is_behind: AtomicBool,
    /// How many messages in the stream have not been taken, as far as it is known.
    pub(crate) pending: AtomicU64,
    /// How many messages were taken.
    pub(crate) taken: AtomicU64,
    /// How many messages were skipped because they had been taken before a restart. In a fleet, how
    /// many were delivered again.
    pub(crate) repeated: AtomicU64,
    /// How many messages were removed from the stream before they could be taken.
    pub(crate) lost: AtomicU64,
    /// The number of the last message taken. In a fleet, the number up to which all were handled.
    pub(crate) position: AtomicU64,
    /// In a fleet: how many messages are on their way to their owners.
    pub(crate) unacknowledged: AtomicU64,
}

#[derive(Clone, Debug)]
struct Outage {
    since: Instant,
    why: String,
}

impl StreamHealth {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            outage: Mutex::default(),
            is_behind: true.into(),
            pending: AtomicU64::default(),
            taken: AtomicU64::default(),
            repeated: AtomicU64::default(),
            lost: AtomicU64::default(),
            position: AtomicU64::default(),
            unacknowledged: AtomicU64::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Outage>> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For how long the stream has been unreadable, and why. `None` if it is readable.
    pub(crate) fn outage(&self) -> Option<(Duration, String)> {
        let outage = self.lock().clone()?;
        Some((outage.since.elapsed(), outage.why))
    }

    /// Notes that the stream can't be read. A new reason is logged.
    pub(super) fn note_outage(&self, why: String) {
        let mut outage = self.lock();
        let since = outage.as_ref().map_or_else(Instant::now, |it| it.since);
        let is_news = outage.as_ref().is_none_or(|it| it.why != why);
        if is_news {
            tracing::warn!(
                "connects and disconnects can't be taken from the stream `{}`: {why}. They wait \
                 there, and heartbeats alone count until it can be read",
                self.name
            );
        }
        *outage = Some(Outage { since, why });
    }

    /// Notes that the stream is read. The end of an outage is logged.
    pub(super) fn note_available(&self) {
        if let Some(outage) = self.lock().take() {
            let seconds = outage.since.elapsed().as_secs();
            tracing::info!(seconds, "the stream `{}` can be read again", self.name);
        }
    }
}

/// Completes when the messages stored before the node's start have been taken, or can't be for now.
pub(crate) struct CaughtUp(oneshot::Receiver<()>);

impl CaughtUp {
    /// Waits for it. To be called once.
    pub(super) async fn wait(&mut self) {
        // A dropped sender means the same.
        let _ = (&mut self.0).await;
    }
}

/// Reads a tenant's input stream.
pub(crate) struct StreamIntake {
    streams: InputStreams,
    subjects: Subjects,
    shards: Shards,
    body_bytes_max: Arc<AtomicUsize>,
    metadata: watch::Receiver<metadata::Limits>,
    /// The tenant's rate of messages, and the rate at which they are taken from the stream.
    messages: Rate,
    pace: Rate,
    tracer: Option<Tracer>,
    health: Arc<StreamHealth>,
    progress: Progress,
    /// Dropped when the messages stored before the node's start have been taken.
    caught_up_sender: Option<oneshot::Sender<()>>,
    /// For each shard, the position in the stream that it was last told.
    sent_positions: Vec<Option<u64>>,
    /// Lost messages that haven't been logged yet.
    unlogged_losses: u64,
    losses: LogLimiter,
}

impl Tenant {
    /// Creates the reader of the tenant's input stream. `restored`: the state of the last run.
    pub(crate) fn stream_intake(
        &self,
        streams: InputStreams,
        restored: Option<&Restored>,
        timeout_ms: u64,
    ) -> Option<(StreamIntake, CaughtUp)> {
        let health = self.input_stream.clone()?;
        let (caught_up_sender, caught_up) = oneshot::channel();
        // A user who connected earlier and is still there has a heartbeat.
        let last_ran = restored.map(|it| it.saved_at).filter(|at| *at > 0);
        let since = last_ran.unwrap_or_else(|| clock::now_ms().saturating_sub(timeout_ms));
        let positions = restored.map(|it| it.positions.clone()).unwrap_or_default();
        let intake = StreamIntake {
            streams,
            subjects: self.subjects.clone(),
            shards: self.shards.clone(),
            body_bytes_max: Arc::clone(&self.body_bytes_max),
            metadata: self.metadata.subscribe(),
            messages: self.quotas.messages.clone(),
            pace: Rate::default(),
            tracer: self.tracer.clone(),
            health,
            progress: Progress::new(positions, since),
            caught_up_sender: Some(caught_up_sender),
            sent_positions: Vec::new(),
            unlogged_losses: 0,
            losses: LogLimiter::default(),
        };
        Some((intake, CaughtUp(caught_up)))
    }
}

impl StreamIntake {
    /// Reads until `stop`. The messages that are left stay in the stream.
    pub(crate) async fn read(mut self, stop: oneshot::Receiver<()>) {
        tokio::select! {
            biased;
            _ = stop => {}
            never = self.follow() => match never {}
        }
    }

    async fn follow(&mut self) -> Infallible {
        let begun = Instant::now();
        let mut wait = RETRY.0;
        loop {
            self.streams.connected().await;
            let opened = Instant::now();
            let error = match self.open().await {
                Ok((messages, last)) => match self.take_from(messages, last).await {
                    Ok(never) => match never {},
                    Err(error) => error,
                },
                Err(error) => error,
            };
            let is_patient = begun.elapsed() < PATIENCE;
            match error {
                InputStreamError::Refused(why) => self.on_failure(why, false),
                InputStreamError::Unavailable(why) => self.on_failure(why, is_patient),
                InputStreamError::Reopen(why) => {
                    tracing::info!("the stream `{}` is read anew: {why}", self.health.name);
                }
            }
            if opened.elapsed() >= STEADY {
                wait = RETRY.0;
            }
            sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// Notes that the stream can't be read. Heartbeats stop waiting for it, unless `is_patient`.
    fn on_failure(&mut self, why: String, is_patient: bool) {
        self.health.note_outage(why);
        if !is_patient {
            self.caught_up_sender = None;
        }
    }

    /// Opens the stream where the reading must continue. Also returns the number of the last
    /// message that is stored now.
    async fn open(&mut self) -> Result<(InputMessages, u64), InputStreamError> {
        let stream = self.streams.find().await?;
        let (made_at, first, last) = (stream.made_at, stream.first, stream.last);
        let begin = self.progress.begin(made_at, last);
        let (messages, next) = self.streams.read(stream, begin.0).await?;
        let lost = self.progress.begun(made_at, (first, next), begin);
        self.sent_positions = self.shards.iter().map(|_| None).collect();
        self.health.note_available();
        self.note_position();
        self.log(begin.1);
        self.lost(lost);
        self.mark();
        self.note_caught_up(last);
        Ok((messages, last))
    }

    fn log(&self, beginning: BeginReason) {
        let (name, next) = (&self.health.name, self.progress.next());
        match beginning {
            BeginReason::First => tracing::info!(
                next,
                "connects and disconnects are taken from the stream `{name}`, for the first time: \
                 from those on that were stored when the node last ran, or a timeout ago"
            ),
            BeginReason::Continued => {
                tracing::info!(
                    next,
                    "connects and disconnects are taken from the stream `{name}`"
                );
            }
            BeginReason::OtherStream => tracing::warn!(
                next,
                "the stream `{name}` is another one than before: all of its messages are taken"
            ),
            BeginReason::LostEnd => tracing::warn!(
                next,
                "the stream `{name}` has lost its last messages: the messages are taken that were \
                 stored since it was last in order, so some may be taken for the second time"
            ),
        }
    }

    /// Takes messages until no more come.
    async fn take_from(
        &mut self,
        mut messages: InputMessages,
        last: u64,
    ) -> Result<Infallible, InputStreamError> {
        let link = self.streams.link();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut looked_at, mut missing_at) = (Instant::now(), None);
        loop {
            tokio::select! {
                first = messages.next() => {
                    let (batch, end) = gathered(
                        first?,
                        |it| it.message.bytes(),
                        || messages.next().now_or_never(),
                    );
                    self.dispatch(batch).await;
                    end?;
                    self.note_caught_up(last);
                }
                _ = tick.tick() => {
                    if self.streams.link() != link {
                        // Messages on their way were lost, and this would only show at the next
                        // message.
                        return Err(InputStreamError::Reopen("NATS was connected anew".into()));
                    }
                    self.mark();
                    self.lost(0);
                    if looked_at.elapsed() < CHECK_EVERY {
                        continue;
                    }
                    looked_at = Instant::now();
                    let stream = self.streams.find().await?;
                    if stream.made_at != self.progress.stream() {
                        return Err(InputStreamError::Reopen("it was made anew".into()));
                    }
                    let next = self.progress.next();
                    if stream.last + 1 < next {
                        return Err(InputStreamError::Reopen("its last messages are gone".into()));
                    }
                    if stream.last < next {
                        self.progress.note_in_order();
                    } else if missing_at.replace(next) == Some(next) {
                        return Err(InputStreamError::Reopen("a message doesn't come".into()));
                    }
                }
            }
        }
    }

    /// Notes whether the messages stored before the node's start have been taken. `last`: the
    /// number of the last of them.
    fn note_caught_up(&mut self, last: u64) {
        if self.progress.next() > last {
            self.health.is_behind.store(false, Ordering::Relaxed);
            self.caught_up_sender = None;
        }
    }

    /// Hands messages to their shards, and waits until these have room for them.
    async fn dispatch(&mut self, messages: Vec<StoredInput>) {
        let limits = Limits {
            body_bytes_max: self.body_bytes_max.load(Ordering::Relaxed),
            metadata: *self.metadata.borrow(),
        };
        let mut batches = self.batches();
        for stored in messages {
            self.health.pending.store(stored.pending, Ordering::Relaxed);
            let sorted = self.sort(&stored, limits);
            if sorted.is_some() && !self.may_take_one() {
                // The earlier messages don't wait with this one: they are handed over now, so that
                // their leases begin now.
                self.hand_over(mem::replace(&mut batches, self.batches()))
                    .await;
                self.pace().await;
                batches = self.batches();
            }
            let lost = self.progress.pass(stored.sequence);
            self.lost(lost);
            let Some((place, input)) = sorted else {
                continue;
            };
            if let Some((batch, each)) = batches.get_mut(place) {
                let begun = self.tracer.as_ref();
                if let Some(begun) = begun.and_then(|it| traced(it, &stored.message, &input)) {
                    batch.traced.push((batch.inputs.len(), begun));
                }
                batch.bytes += stored.message.bytes();
                batch.inputs.push(input);
                each.push(stored.sequence);
            }
        }
        self.hand_over(batches).await;
    }

    /// An empty batch for each shard, and an empty list of its messages' numbers.
    fn batches(&self) -> Vec<(Batch, Vec<u64>)> {
        let now = clock::now_ms();
        let batch = |_| (Batch::new(now, Vec::new(), 0), Vec::new());
        self.shards.iter().map(batch).collect()
    }

    /// Hands batches to their shards, with the messages' numbers, and waits until the shards have
    /// room.
    async fn hand_over(&mut self, batches: Vec<(Batch, Vec<u64>)>) {
        for (place, (mut batch, each)) in batches.into_iter().enumerate() {
            if batch.inputs.is_empty() {
                continue;
            }
            let taken = batch.inputs.len() as u64;
            let (places, upto) = self.places(place, each);
            batch.places = Some(Box::new(places));
            if let Some(shard) = self.shards.get(place) {
                shard.hand_over(batch).await;
            }
            self.health.taken.fetch_add(taken, Ordering::Relaxed);
            if let Some(sent_positions) = self.sent_positions.get_mut(place) {
                *sent_positions = Some(upto);
            }
        }
        self.note_position();
    }

    fn note_position(&self) {
        let position = self.progress.next().saturating_sub(1);
        self.health.position.store(position, Ordering::Relaxed);
    }

    /// The input of a message, and its shard. `None` if it was taken before a restart, or is no
    /// input.
    fn sort(&self, stored: &StoredInput, limits: Limits) -> Option<(usize, Input)> {
        let received = &stored.message;
        let kind = self.subjects.kind(received.subject());
        let kind = kind.filter(|kind| KINDS.contains(kind) && !received.is_from_node())?;
        let taken = self.progress.taken();
        let was_taken = |was: &dyn Fn(&ReadPositions) -> bool| {
            let was = taken.is_some_and(was);
            self.health
                .repeated
                .fetch_add(u64::from(was), Ordering::Relaxed);
            was
        };
        let sequence = stored.sequence;
        match Message::parse(kind, received.payload(), limits) {
            Ok(message) => {
                let user = message.user();
                let is_new = !was_taken(&|it| it.has(user, sequence));
                let place = self.shards.place_of(user);
                // The reply subject was JetStream's, so nobody waits for an answer.
                is_new.then_some((
                    place,
                    Input::Message {
                        message,
                        reply: None,
                    },
                ))
            }
            Err(rejection) => {
                let payload = received.payload().clone();
                let is_new = !was_taken(&|it| it.has(&payload, sequence));
                // Dead letters are spread over all shards.
                let place = pool::place(&payload, self.shards.iter().len());
                is_new.then_some((
                    place,
                    Input::Rejected {
                        kind,
                        payload,
                        rejection,
                        reply: None,
                    },
                ))
            }
        }
    }

    /// Whether the rate allows one more message now. Messages beyond the tenant's rate wait in the
    /// stream.
    fn may_take_one(&self) -> bool {
        self.pace.set_to_fraction_of(&self.messages, 1);
        self.pace.take(clock::now_ms().saturating_mul(1_000_000))
    }

    /// Waits until the rate allows one more message.
    async fn pace(&self) {
        while !self.may_take_one() {
            sleep(PACE).await;
        }
    }

    /// The stream positions for a shard's inputs. Also returns the position that the shard has
    /// reached with them.
    fn places(&self, place: usize, each: Vec<u64>) -> (StreamPlaces, u64) {
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let of = ShardOf {
            shards: number(self.shards.iter().len()),
            shard: number(place),
        };
        let upto = self.progress.upto(of);
        let places = StreamPlaces {
            of,
            stream: self.progress.stream(),
            begin: self.progress.begun_at(),
            each,
            upto,
        };
        (places, upto)
    }

    /// Tells the shards their positions in the stream. A shard without room is told later.
    fn mark(&mut self) {
        for (place, shard) in self.shards.iter().enumerate() {
            let (places, upto) = self.places(place, Vec::new());
            if self.sent_positions.get(place).copied().flatten() == Some(upto) {
                continue;
            }
            let mut batch = Batch::new(clock::now_ms(), Vec::new(), 0);
            batch.places = Some(Box::new(places));
            if shard.offer(batch).is_ok()
                && let Some(sent_positions) = self.sent_positions.get_mut(place)
            {
                *sent_positions = Some(upto);
            }
        }
    }

    /// Counts messages that were removed from the stream before they could be taken, and logs them.
    fn lost(&mut self, count: u64) {
        self.health.lost.fetch_add(count, Ordering::Relaxed);
        self.unlogged_losses += count;
        if self.unlogged_losses > 0 && self.losses.line(LOG_EVERY_MS).is_some() {
            let messages = mem::take(&mut self.unlogged_losses);
            tracing::warn!(
                messages,
                "messages were removed from the stream `{}` before this node could take them: by its \
                 limits (`max_age`, `max_bytes`, `max_msgs`), or by hand. Users whose disconnect was \
                 among them go offline after a timeout, and connections are known by their \
                 heartbeats",
                self.health.name
            );
        }
    }
}

/// Collects a message and those that are available behind it into a batch. The result has the error
/// that ended the batch, if there was one. `length`: a message's size in bytes.
pub(super) fn gathered<T>(
    first: T,
    length: fn(&T) -> usize,
    mut next: impl FnMut() -> Option<Result<T, InputStreamError>>,
) -> (Vec<T>, Result<(), InputStreamError>) {
    let mut bytes = length(&first);
    let mut batch = vec![first];
    while batch.len() < BATCH_MAX && bytes < BATCH_BYTES_MAX {
        match next() {
            Some(Ok(next)) => {
                bytes += length(&next);
                batch.push(next);
            }
            Some(Err(error)) => return (batch, Err(error)),
            None => break,
        }
    }
    (batch, Ok(()))
}
