//! From the input stream to the shards: connects and disconnects, which JetStream keeps while the
//! node can't take them.
//!
//! Messages go to the shards in the stream's order, each with its number. A shard's number is stored
//! in one transaction with what came of its messages (`state::position`), so a start goes on behind
//! it. Nothing is dropped: while a shard has no room, the stream waits.
//!
//! If anything is wrong with the stream, the reading ends, and begins anew at the next message. Where
//! that is, says [`Progress`].

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

use self::progress::{Beginning, Progress};
use super::Tenant;
use super::intake::{BATCH_BYTES_MAX, traced};
use crate::clock;
use crate::link::input_stream::{InputMessages, InputStreams, KINDS, OpenError, StoredInput};
use crate::pool::log_limiter::LogLimiter;
use crate::pool::{self, BATCH_MAX, Batch, Shards};
use crate::state::Restored;
use crate::state::position::{ShardOf, StreamPlaces, Taken};
use crate::telemetry::Tracer;

/// How long is waited before a stream that can't be read is tried again, at first and at most.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How long the stream has to be read for the next failure to be the first again.
pub(super) const STEADY: Duration = Duration::from_secs(10);

/// How long heartbeats wait at the start for a stream that can't be read.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often is looked at what else there is to do.
pub(super) const TICK: Duration = Duration::from_millis(500);

/// How often is looked at the stream itself: it may have been changed, or a message may have been
/// lost between the brokers, which nothing says before the next one.
pub(super) const LOOK: Duration = Duration::from_secs(5);

/// How often is looked whether there may be one more message, if there may be so many a second.
pub(super) const PACE: Duration = Duration::from_millis(2);

/// How often the log tells of messages that were lost.
const LOST_TOLD_MS: u64 = 10_000;

/// What is known of the stream.
#[derive(Debug)]
pub(crate) struct StreamHealth {
    /// Its name.
    pub(crate) name: String,
    outage: Mutex<Option<Outage>>,
    /// Whether what was stored before the node's start is still being taken.
    pub(crate) is_behind: AtomicBool,
    /// How many messages are in it that have not been taken, as far as that is known.
    pub(crate) pending: AtomicU64,
    /// How many were taken.
    pub(crate) taken: AtomicU64,
    /// How many were passed over since they had been taken before a restart.
    pub(crate) repeated: AtomicU64,
    /// How many were removed from it before they could be taken.
    pub(crate) lost: AtomicU64,
    /// The number of the last message that was taken; in a fleet, up to which all were handled.
    pub(crate) position: AtomicU64,
    /// In a fleet, how many are on their way to their owners.
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

    /// For how long the stream can't be read, and why; none if it can.
    pub(crate) fn outage(&self) -> Option<(Duration, String)> {
        let outage = self.lock().clone()?;
        Some((outage.since.elapsed(), outage.why))
    }

    /// The stream can't be read. The log says so if that is news.
    pub(super) fn fails(&self, why: String) {
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

    /// The stream is read.
    pub(super) fn works(&self) {
        if let Some(outage) = self.lock().take() {
            let seconds = outage.since.elapsed().as_secs();
            tracing::info!(seconds, "the stream `{}` can be read again", self.name);
        }
    }
}

/// What says that what was stored before the node's start has been taken, or can't be for now.
pub(crate) struct CaughtUp(oneshot::Receiver<()>);

impl CaughtUp {
    /// Returns when it is so. To be called once.
    pub(super) async fn wait(&mut self) {
        // A sender that is gone says the same.
        let _ = (&mut self.0).await;
    }
}

/// What reads a tenant's input stream.
pub(crate) struct StreamIntake {
    streams: InputStreams,
    subjects: Subjects,
    shards: Shards,
    body_bytes_max: Arc<AtomicUsize>,
    metadata: watch::Receiver<metadata::Limits>,
    /// How many messages a second the tenant may send, and how many are taken from the stream.
    messages: Rate,
    pace: Rate,
    tracer: Option<Tracer>,
    health: Arc<StreamHealth>,
    progress: Progress,
    /// Dropped when what was stored before the node's start has been taken.
    behind: Option<oneshot::Sender<()>>,
    /// Up to where each shard has been told that it has taken the stream.
    told: Vec<Option<u64>>,
    /// Messages that were lost, and that the log hasn't been told of.
    untold_losses: u64,
    losses: LogLimiter,
}

impl Tenant {
    /// What reads the tenant's input stream. `restored`: what was known when the node last ran.
    pub(crate) fn stream_intake(
        &self,
        streams: InputStreams,
        restored: Option<&Restored>,
        timeout_ms: u64,
    ) -> Option<(StreamIntake, CaughtUp)> {
        let health = self.input_stream.clone()?;
        let (behind, caught_up) = oneshot::channel();
        // Who connected earlier and is still there, is heard by a heartbeat.
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
            behind: Some(behind),
            told: Vec::new(),
            untold_losses: 0,
            losses: LogLimiter::default(),
        };
        Some((intake, CaughtUp(caught_up)))
    }
}

impl StreamIntake {
    /// Reads until it is told to stop. What is left stays in the stream.
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
                OpenError::Refused(why) => self.fails(why, false),
                OpenError::Away(why) => self.fails(why, is_patient),
                OpenError::Again(why) => {
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

    /// The stream can't be read: heartbeats don't wait for it, unless it is to be given time.
    fn fails(&mut self, why: String, is_patient: bool) {
        self.health.fails(why);
        if !is_patient {
            self.behind = None;
        }
    }

    /// Asks for the messages from where the reading goes on. With them comes the number of the last
    /// one that was stored by now.
    async fn open(&mut self) -> Result<(InputMessages, u64), OpenError> {
        let stream = self.streams.find().await?;
        let (made_at, first, last) = (stream.made_at, stream.first, stream.last);
        let begin = self.progress.begin(made_at, last);
        let (messages, next) = self.streams.read(stream, begin.0).await?;
        let lost = self.progress.begun(made_at, (first, next), begin);
        self.told = self.shards.iter().map(|_| None).collect();
        self.health.works();
        self.note_position();
        self.log(begin.1);
        self.lost(lost);
        self.mark();
        self.note_caught_up(last);
        Ok((messages, last))
    }

    fn log(&self, beginning: Beginning) {
        let (name, next) = (&self.health.name, self.progress.next());
        match beginning {
            Beginning::First => tracing::info!(
                next,
                "connects and disconnects are taken from the stream `{name}`, for the first time: \
                 from those on that were stored when the node last ran, or a timeout ago"
            ),
            Beginning::Continued => {
                tracing::info!(
                    next,
                    "connects and disconnects are taken from the stream `{name}`"
                );
            }
            Beginning::OtherStream => tracing::warn!(
                next,
                "the stream `{name}` is another one than before: all of its messages are taken"
            ),
            Beginning::LostEnd => tracing::warn!(
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
    ) -> Result<Infallible, OpenError> {
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
                    self.hand_on(batch).await;
                    end?;
                    self.note_caught_up(last);
                }
                _ = tick.tick() => {
                    if self.streams.link() != link {
                        // What was on its way is lost, and nothing says so before the next message.
                        return Err(OpenError::Again("NATS was connected anew".into()));
                    }
                    self.mark();
                    self.lost(0);
                    if looked_at.elapsed() < LOOK {
                        continue;
                    }
                    looked_at = Instant::now();
                    let stream = self.streams.find().await?;
                    if stream.made_at != self.progress.stream() {
                        return Err(OpenError::Again("it was made anew".into()));
                    }
                    let next = self.progress.next();
                    if stream.last + 1 < next {
                        return Err(OpenError::Again("its last messages are gone".into()));
                    }
                    if stream.last < next {
                        self.progress.is_in_order();
                    } else if missing_at.replace(next) == Some(next) {
                        return Err(OpenError::Again("a message doesn't come".into()));
                    }
                }
            }
        }
    }

    /// What was stored before the node's start may have been taken.
    fn note_caught_up(&mut self, last: u64) {
        if self.progress.next() > last {
            self.health.is_behind.store(false, Ordering::Relaxed);
            self.behind = None;
        }
    }

    /// Hands messages to their shards, and returns when these have had room for them.
    async fn hand_on(&mut self, messages: Vec<StoredInput>) {
        let limits = Limits {
            body_bytes_max: self.body_bytes_max.load(Ordering::Relaxed),
            metadata: *self.metadata.borrow(),
        };
        let mut batches = self.batches();
        for stored in messages {
            self.health.pending.store(stored.pending, Ordering::Relaxed);
            let sorted = self.sort(&stored, limits);
            if sorted.is_some() && !self.may_take_one() {
                // Those before it don't wait with it, and their leases begin now.
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

    /// Nothing yet for any shard.
    fn batches(&self) -> Vec<(Batch, Vec<u64>)> {
        let now = clock::now_ms();
        let batch = |_| (Batch::new(now, Vec::new(), 0), Vec::new());
        self.shards.iter().map(batch).collect()
    }

    /// Hands inputs to their shards, each with its number, and returns when these have had room for
    /// them.
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
            if let Some(told) = self.told.get_mut(place) {
                *told = Some(upto);
            }
        }
        self.note_position();
    }

    fn note_position(&self) {
        let position = self.progress.next().saturating_sub(1);
        self.health.position.store(position, Ordering::Relaxed);
    }

    /// What a message says, and to which shard; nothing if it was taken before a restart.
    fn sort(&self, stored: &StoredInput, limits: Limits) -> Option<(usize, Input)> {
        let received = &stored.message;
        let kind = self.subjects.kind(received.subject());
        let kind = kind.filter(|kind| KINDS.contains(kind) && !received.is_from_node())?;
        let taken = self.progress.taken();
        let was_taken = |was: &dyn Fn(&Taken) -> bool| {
            let was = taken.is_some_and(was);
            self.health
                .repeated
                .fetch_add(u64::from(was), Ordering::Relaxed);
            was
        };
        let sequence = stored.sequence;
        match Message::parse(kind, received.payload(), limits) {
            Ok(message) => {
                let user = &*message.user;
                let is_new = !was_taken(&|it| it.has(user, sequence));
                let place = self.shards.place_of(user);
                // Its reply subject was JetStream's, and nobody waits for an answer.
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
                // All shards share what there is to do for dead letters.
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

    /// Whether there may be one more message now: no more are taken in a second than the tenant may
    /// send, and what is left waits in the stream.
    fn may_take_one(&self) -> bool {
        self.pace.be_part_of(&self.messages, 1);
        self.pace.take(clock::now_ms().saturating_mul(1_000_000))
    }

    /// Waits until there may be.
    async fn pace(&self) {
        while !self.may_take_one() {
            sleep(PACE).await;
        }
    }

    /// Where inputs of a shard stand in the stream; and up to where it has taken that with them.
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

    /// Tells the shards up to where they have taken the stream. One without room is told later.
    fn mark(&mut self) {
        for (place, shard) in self.shards.iter().enumerate() {
            let (places, upto) = self.places(place, Vec::new());
            if self.told.get(place).copied().flatten() == Some(upto) {
                continue;
            }
            let mut batch = Batch::new(clock::now_ms(), Vec::new(), 0);
            batch.places = Some(Box::new(places));
            if shard.offer(batch).is_ok()
                && let Some(told) = self.told.get_mut(place)
            {
                *told = Some(upto);
            }
        }
    }

    /// So many messages were removed from the stream before they could be taken.
    fn lost(&mut self, count: u64) {
        self.health.lost.fetch_add(count, Ordering::Relaxed);
        self.untold_losses += count;
        if self.untold_losses > 0 && self.losses.line(LOST_TOLD_MS).is_some() {
            let messages = mem::take(&mut self.untold_losses);
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

/// A message and those that are there behind it; and the error that comes then, if one does. `length`: how
/// long a message is, in bytes.
pub(super) fn gathered<T>(
    first: T,
    length: fn(&T) -> usize,
    mut next: impl FnMut() -> Option<Result<T, OpenError>>,
) -> (Vec<T>, Result<(), OpenError>) {
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
