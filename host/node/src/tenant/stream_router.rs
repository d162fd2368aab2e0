//! Reads the input stream in a fleet: each node takes a part of the stream's messages, and passes
//! each on to its user's shard, as it does with other input.
//!
//! Only the owner of its shard acknowledges a message, when it has handled it (`pool::shard_or_replica`). A
//! message that isn't acknowledged in time is delivered again, to any node. So nothing is lost if a
//! router, an owner, or the connection between them fails. A shard knows which messages of a
//! connection it has had (`core::tracker`).

mod fleet_progress;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt as _;
use presence_core::message::Limits;
use presence_core::metadata;
use presence_core::quota::Rate;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use self::fleet_progress::{FleetProgress, StartBacklog};
use super::Tenant;
use super::intake::traced;
use super::router::Router;
use super::stream_intake::{CHECK_EVERY, PACE, RETRY, STEADY, StreamHealth, TICK, gathered};
use crate::clock;
use crate::fleet::Fleet;
use crate::link::connection::Connection;
use crate::link::input_stream::{InputStream, InputStreamError, InputStreams, ReadFrom};
use crate::link::shared_input::{
    ACK_WAIT, SharedConsumer, SharedInput, SharedMessages, SharedProgress,
};
use crate::pool::log_limiter::LogLimiter;
use crate::pool::{Batch, Shards};
use crate::telemetry::Tracer;

/// How many messages may be requested and not received yet.
const PULL_MAX: u64 = 256;

/// By how much the broker's clock may be behind this node's, in milliseconds, when messages are
/// selected by time.
const CLOCKS_MS: u64 = 1_000;

/// Up to this many messages may always be on their way to their owners, however slowly they are
/// handled.
const FEW: u64 = PULL_MAX;

/// The number of checks (each a [`TICK`] apart) within which all messages on their way should be
/// handled. This is half the time after which they are delivered again.
const STALL_CHECKS: u64 = 5;

/// How often in a row reading may end soon after it began before this counts as an outage.
const EARLY_ENDS_MAX: u32 = 3;

/// The least time between two log lines about messages that wait for their owners, in milliseconds.
const WAIT_LOG_EVERY_MS: u64 = 10_000;

/// How long a node that has just started leaves it to others to create a missing consumer. They
/// know up to where messages have been handled.
const OTHERS_FIRST: std::time::Duration = std::time::Duration::from_secs(2);

/// Takes this node's part of a tenant's input stream.
pub(crate) struct StreamRouter {
    streams: InputStreams,
    fleet: Arc<Fleet>,
    router: Router,
    connection: Connection,
    shards: Shards,
    body_bytes_max: Arc<AtomicUsize>,
    metadata: watch::Receiver<metadata::Limits>,
    /// The tenant's rate of messages, and this node's part of it.
    messages: Rate,
    pace: Rate,
    tracer: Option<Tracer>,
    health: Arc<StreamHealth>,
    fleet_progress: FleetProgress,
    begun: Instant,
    /// How often in a row reading has ended before it had taken a message.
    early_ends: u32,
    waits: LogLimiter,
    unhandled: LogLimiter,
    /// The messages that were stored before the node began. `None` once they have been handled.
    start_backlog: Option<StartBacklog>,
    has_begun: bool,
}

impl Tenant {
    /// Creates the router for the tenant's input stream. `None` if the tenant has no stream or no
    /// fleet.
    pub(crate) fn stream_router(
        &self,
        streams: InputStreams,
        connection: &Connection,
        timeout_ms: u64,
    ) -> Option<StreamRouter> {
        let (fleet, health) = (self.fleet.as_ref()?, self.input_stream.clone()?);
        Some(StreamRouter {
            streams,
            fleet: Arc::clone(fleet),
            router: self.router(fleet),
            connection: connection.clone(),
            shards: self.shards.clone(),
            body_bytes_max: Arc::clone(&self.body_bytes_max),
            metadata: self.metadata.subscribe(),
            messages: self.quotas.messages.clone(),
            pace: Rate::default(),
            tracer: self.tracer.clone(),
            health,
            // A user who connected earlier and is still there has a heartbeat.
            fleet_progress: FleetProgress::new(clock::now_ms().saturating_sub(timeout_ms)),
            begun: Instant::now(),
            early_ends: 0,
            waits: LogLimiter::default(),
            unhandled: LogLimiter::default(),
            start_backlog: None,
            has_begun: false,
        })
    }
}

impl StreamRouter {
    /// Takes messages until `stop`, and passes on those that it has taken by then. The other nodes
    /// take the rest.
    pub(crate) async fn read(mut self, mut stop: oneshot::Receiver<()>) {
        let mut wait = RETRY.0;
        loop {
            let opened = Instant::now();
            let open = async {
                self.may_route().await;
                self.open().await
            };
            let open = tokio::select! {
                biased;
                _ = &mut stop => return,
                opened = open => opened,
            };
            let error = match open {
                Ok(messages) => match self.take_from(messages, &mut stop).await {
                    Ok(()) => return,
                    Err(error) => {
                        self.early_ends += 1;
                        error
                    }
                },
                Err(error) => error,
            };
            match error {
                InputStreamError::Reopen(_) if !self.has_begun => {}
                InputStreamError::Reopen(why) if self.early_ends < EARLY_ENDS_MAX => {
                    tracing::info!(
                        "the stream `{}` is taken from anew: {why}",
                        self.health.name
                    );
                }
                InputStreamError::Refused(why)
                | InputStreamError::Unavailable(why)
                | InputStreamError::Reopen(why) => {
                    self.health.note_outage(why);
                }
            }
            if opened.elapsed() >= STEADY {
                wait = RETRY.0;
            }
            tokio::select! {
                biased;
                _ = &mut stop => return,
                () = sleep(wait) => {}
            }
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// Waits until the node is connected, has a lease, and shards have owners. Nobody would handle
    /// messages that are passed on earlier.
    async fn may_route(&self) {
        self.fleet.until_settled().await;
        self.streams.connected().await;
        while !self.has_lease() {
            sleep(RETRY.0).await;
        }
    }

    /// Whether the node's lease lasts. A node that was suspended may hold messages that others have
    /// handled long ago, and whose connections are forgotten.
    fn has_lease(&self) -> bool {
        clock::now_ms() < self.fleet.lease.until()
    }

    async fn open(&mut self) -> Result<SharedMessages, InputStreamError> {
        let stream = self.streams.find().await?;
        let consumer = match stream.shared_consumer().await? {
            Some(consumer) => self.checked(consumer).await?,
            None if self
                .fleet_progress
                .has_lost_end(stream.made_at, stream.last) =>
            {
                self.recreate_consumer(&stream).await?
            }
            None => {
                let is_new = self.fleet_progress.handled.is_none();
                let has_others = self.fleet.nodes().len() > 1;
                if is_new && has_others && self.begun.elapsed() < OTHERS_FIRST {
                    return Err(InputStreamError::Reopen(
                        "its consumer is made by others".into(),
                    ));
                }
                let made = stream
                    .create_shared_consumer(self.fleet_progress.begin(stream.made_at))
                    .await?;
                tracing::info!(
                    "the nodes of the fleet share the stream `{}` from now on",
                    self.health.name
                );
                made
            }
        };
        if !std::mem::replace(&mut self.has_begun, true) {
            self.start_backlog = Some(StartBacklog::new(stream.last));
        }
        self.note(&stream, consumer.progress);
        if self.early_ends < EARLY_ENDS_MAX {
            self.health.note_available();
        }
        let pull = match self.messages.per_s() {
            0 => PULL_MAX,
            // At most what this node may pass on in one second.
            per_s => {
                let nodes = self.fleet.nodes().len().max(1) as u64;
                per_s.div_ceil(nodes).min(PULL_MAX)
            }
        };
        consumer.messages(usize::try_from(pull).unwrap_or(1)).await
    }

    /// Checks an existing consumer. If a server has lost the stream's newest messages, the consumer
    /// may be ahead of the stream, and would leave out the next messages. It is then created again.
    async fn checked(
        &mut self,
        consumer: SharedConsumer,
    ) -> Result<SharedConsumer, InputStreamError> {
        // The stream must be fetched after the consumer, because it only grows meanwhile.
        let stream = self.streams.find().await?;
        // The server may have lost the consumer's progress, too, so what this node knows is
        // compared.
        let is_behind = self
            .fleet_progress
            .has_lost_end(stream.made_at, stream.last);
        if !is_behind && consumer.progress.delivered <= stream.last {
            return Ok(consumer);
        }
        stream.delete_shared_consumer().await?;
        self.recreate_consumer(&stream).await
    }

    /// Creates the consumer of a stream that has lost its newest messages.
    async fn recreate_consumer(
        &mut self,
        stream: &InputStream,
    ) -> Result<SharedConsumer, InputStreamError> {
        let since = self.fleet_progress.in_order_at.saturating_sub(CLOCKS_MS);
        let made = stream
            .create_shared_consumer(ReadFrom::Since(since))
            .await?;
        self.fleet_progress.last_received = 0;
        tracing::warn!(
            "the stream `{}` has lost its last messages: the messages are taken that were stored \
             since it was last in order, so some may be taken for the second time",
            self.health.name
        );
        Ok(made)
    }

    fn note(&mut self, stream: &InputStream, progress: SharedProgress) {
        let lost = self
            .fleet_progress
            .note(stream.made_at, stream.first, progress);
        let health = &self.health;
        let note = |of: &std::sync::atomic::AtomicU64, value| of.store(value, Ordering::Relaxed);
        note(&health.pending, progress.pending);
        note(&health.position, progress.handled);
        note(&health.unacknowledged, progress.unacknowledged);
        let is_over = |it: &mut StartBacklog| it.is_over(Instant::now(), progress);
        if self.start_backlog.take_if(is_over).is_some() {
            health.is_behind.store(false, Ordering::Relaxed);
        }
        if lost > 0 {
            health.lost.fetch_add(lost, Ordering::Relaxed);
            tracing::warn!(
                messages = lost,
                "messages were removed from the stream `{}` before the fleet could take them: by its \
                 limits (`max_age`, `max_bytes`, `max_msgs`), or by hand. Users whose disconnect was \
                 among them go offline after a timeout, and connections are known by their heartbeats",
                health.name
            );
        }
    }

    /// Takes messages until `stop`, or until no more come.
    async fn take_from(
        &mut self,
        mut messages: SharedMessages,
        stop: &mut oneshot::Receiver<()>,
    ) -> Result<(), InputStreamError> {
        let link = self.streams.link();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (begun, mut looked_at) = (Instant::now(), Instant::now());
        // Set while no more messages are taken: since when, and how many were on their way at the
        // last check.
        let mut waiting: Option<(Instant, Option<u64>)> = None;
        loop {
            tokio::select! {
                biased;
                _ = &mut *stop => {
                    // Messages that have arrived are passed on, so that nobody has to wait until
                    // they are delivered again.
                    while let Some(Ok(first)) = messages.next().now_or_never() {
                        let (batch, _) = gathered(first, length, || messages.next().now_or_never());
                        if self.dispatch(batch).await.is_err() {
                            break;
                        }
                    }
                    return Ok(());
                }
                _ = tick.tick() => {
                    if self.streams.link() != link {
                        return Err(InputStreamError::Reopen("NATS was connected anew".into()));
                    }
                    if begun.elapsed() >= STEADY {
                        self.reset_backoff();
                    }
                    let is_awaited = waiting.is_some() || self.start_backlog.is_some();
                    if looked_at.elapsed() < CHECK_EVERY && !is_awaited {
                        continue;
                    }
                    looked_at = Instant::now();
                    let left = self.refresh().await?;
                    if let Some((since, before)) = waiting {
                        waiting = is_too_much(left, before).then_some((since, Some(left)));
                        if waiting.is_some() && before.is_none() {
                            self.log_waiting(left);
                        }
                        if waiting.is_none() && since.elapsed() >= ACK_WAIT {
                            let why = "its messages had to wait for their owners";
                            return Err(InputStreamError::Reopen(why.into()));
                        }
                    }
                }
                first = messages.next(), if waiting.is_none() => {
                    let (batch, end) = gathered(first?, length, || messages.next().now_or_never());
                    self.reset_backoff();
                    let is_late = batch.iter().any(|it| it.receipt.is_repeated());
                    self.warn_unhandled(&batch);
                    self.dispatch(batch).await?;
                    end?;
                    // While a shard has no owner, its messages are delivered again for this reason
                    // alone.
                    if is_late && self.fleet.ownerless() == 0 {
                        waiting = Some((Instant::now(), None));
                    }
                }
            }
        }
    }

    /// Warns if a message is delivered again and again although all shards have owners. An operator
    /// has to act then.
    fn warn_unhandled(&self, batch: &[SharedInput]) {
        let is_unhandled = |it: &&SharedInput| it.receipt.is_often_repeated();
        let messages = batch.iter().filter(is_unhandled).count();
        if messages > 0
            && self.fleet.ownerless() == 0
            && self.unhandled.line(WAIT_LOG_EVERY_MS).is_some()
        {
            tracing::warn!(
                messages,
                "messages of the stream `{}` are delivered again and again, though their users have \
                 owners: do all nodes have this [input] stream, and may they acknowledge its messages?",
                self.health.name
            );
        }
    }

    fn log_waiting(&self, messages: u64) {
        if self.waits.line(WAIT_LOG_EVERY_MS).is_some() {
            tracing::warn!(
                messages,
                "messages of the stream `{}` are delivered again before their owners have handled them: \
                 this node takes no others until what is on its way is soon handled",
                self.health.name
            );
        }
    }

    /// Notes that reading works.
    fn reset_backoff(&mut self) {
        self.early_ends = 0;
        self.health.note_available();
    }

    /// Fetches the stream and its consumer again, since they may have been changed. Returns how
    /// many messages are on their way to their owners.
    async fn refresh(&mut self) -> Result<u64, InputStreamError> {
        let stream = self.streams.find().await?;
        let is_other = self
            .fleet_progress
            .handled
            .is_some_and(|(fleet_progress, _)| fleet_progress != stream.made_at);
        if is_other {
            return Err(InputStreamError::Reopen("it was made anew".into()));
        }
        let Some(consumer) = stream.shared_consumer().await? else {
            return Err(InputStreamError::Reopen("its consumer is gone".into()));
        };
        let progress = consumer.progress;
        self.note(&stream, progress);
        Ok(progress.unacknowledged)
    }

    /// Passes messages on, and waits until this node's own shards have room for theirs.
    ///
    /// # Errors
    /// If the node's lease has ended, or if other messages that came with these may be too old now.
    async fn dispatch(&mut self, messages: Vec<SharedInput>) -> Result<(), InputStreamError> {
        let begun = Instant::now();
        let nodes = self.fleet.nodes().len() as u64;
        self.pace.set_to_fraction_of(&self.messages, nodes);
        for _ in &messages {
            self.pace().await;
        }
        if !self.has_lease() {
            return Err(InputStreamError::Reopen(
                "the node's lease has ended".into(),
            ));
        }
        let now = clock::now_ms();
        let limits = Limits {
            body_bytes_max: self.body_bytes_max.load(Ordering::Relaxed),
            metadata: *self.metadata.borrow(),
        };
        let batch = |_| Batch::new(now, Vec::new(), 0);
        let mut batches: Vec<_> = self.shards.iter().map(batch).collect();
        for stored in messages {
            self.health.pending.store(stored.pending, Ordering::Relaxed);
            let counted = match stored.receipt.is_repeated() {
                true => &self.health.repeated,
                false => &self.health.taken,
            };
            counted.fetch_add(1, Ordering::Relaxed);
            let given = stored.receipt.place.sequence;
            self.fleet_progress.last_received = self.fleet_progress.last_received.max(given);
            let bytes = stored.message.bytes();
            match self.router.route(stored, limits) {
                Ok(Some((place, input, receipt))) => {
                    let tracer = self.tracer.as_ref().zip(self.router.routed());
                    let begun = tracer.and_then(|(it, message)| traced(it, message, &input));
                    if let Some(batch) = batches.get_mut(place) {
                        batch
                            .traced
                            .extend(begun.map(|it| (batch.inputs.len(), it)));
                        batch.receipts.push((batch.inputs.len(), receipt));
                        batch.inputs.push(input);
                        batch.bytes += bytes;
                    }
                }
                Ok(None) => {}
                // It is no input, so no owner will acknowledge it.
                Err(receipt) => {
                    let _ = self.connection.acknowledge(&receipt).await;
                }
            }
        }
        self.router.pass_on(&self.connection).await;
        for (shard, batch) in self.shards.iter().zip(batches) {
            if !batch.inputs.is_empty() {
                shard.hand_over(batch).await;
            }
        }
        match begun.elapsed() < ACK_WAIT {
            true => Ok(()),
            // Messages that wait behind these have been delivered again by now.
            false => Err(InputStreamError::Reopen(
                "shards had no room for a while".into(),
            )),
        }
    }

    /// Waits until the rate allows one more message.
    async fn pace(&self) {
        while !self.pace.take(clock::now_ms().saturating_mul(1_000_000)) {
            sleep(PACE).await;
        }
    }
}

/// Whether so many messages are on their way to their owners that no more may be taken. `before`:
/// how many there were at the last check. If none of them were handled, they may be lost, and must
/// be delivered and passed on again.
fn is_too_much(left: u64, before: Option<u64>) -> bool {
    let is_slow = |handled: u64| handled > 0 && left > handled * STALL_CHECKS;
    left > FEW && before.is_none_or(|it| is_slow(it.saturating_sub(left)))
}

/// How long a message is, in bytes.
fn length(input: &SharedInput) -> usize {
    input.message.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_taken_when_what_is_on_its_way_is_soon_handled_or_stays_unhandled() {
        assert!(!is_too_much(FEW, None));
        assert!(
            is_too_much(8_000, None),
            "it isn't known how fast that goes"
        );
        assert!(is_too_much(8_000, Some(8_100)));
        assert!(!is_too_much(8_000, Some(10_000)));
        assert!(!is_too_much(8_000, Some(8_000)), "nobody handles it");
        assert!(!is_too_much(8_000, Some(7_000)));
    }
}
