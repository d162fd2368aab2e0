//! From the broker to the shards: one reader, so that messages of a connection
//! keep the broker's order across subjects.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{iter, mem};

use futures_util::{FutureExt, Stream, StreamExt, future};
use presence_config::subjects::Subjects;
use presence_core::Input;
use presence_core::message::{Limits, Message, Redrive, Rejection};
use presence_core::metadata;
use presence_core::quota::{Quota, Rate};
use tokio::sync::{oneshot, watch};
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep_until};

use crate::clock;
use crate::fleet::behind::Behind;
use crate::fleet::parts::Inputs;
use crate::link::broker::BrokerHealth;
use crate::link::connection::{Connection, Incoming};
use crate::link::drops::SubscriptionKind;
use crate::link::input_stream::KINDS;
use crate::link::reply_guard::ReplyGuard;
use crate::link::watermark::Watermark;
use crate::pool::{self, BATCH_MAX, Batch, FleetTask, Shards, ThreadShare};
use crate::telemetry::{Begun, Tracer};
use crate::tenant::router::{Router, Sorted};
use crate::tenant::stream_intake::CaughtUp;

/// How many bytes of messages are handed on at once, and those of one message more.
pub(super) const BATCH_BYTES_MAX: usize = 1 << 20;

/// The header by which a sender says which trace a message belongs to.
pub(super) const TRACEPARENT: &str = "traceparent";

/// How often is looked for what the client has dropped.
const SETTLE_EVERY: Duration = Duration::from_secs(1);

/// What reads a tenant's subscription.
pub(crate) struct Intake {
    pub(crate) messages: Inputs,
    /// What passes inputs on to their shards; none outside of a fleet.
    pub(crate) router: Option<Router>,
    /// Where connects and disconnects are taken from a stream: what says that those which were
    /// stored before the node's start have been.
    pub(crate) stream: Option<CaughtUp>,
    pub(crate) subjects: Subjects,
    pub(crate) replies: Arc<ReplyGuard>,
    /// Whether connects and disconnects are taken from a stream.
    pub(crate) has_stream: bool,
    /// The longest body that the broker takes, as it says on connecting.
    pub(crate) body_bytes_max: Arc<AtomicUsize>,
    /// How much metadata a message may have.
    pub(crate) metadata: watch::Receiver<metadata::Limits>,
    /// How many messages are taken in.
    pub(crate) messages_rate: Rate,
    /// The tenant's share of the threads.
    pub(crate) share: Arc<ThreadShare>,
    pub(crate) shards: Shards,
    pub(crate) broker: Arc<BrokerHealth>,
    pub(crate) connection: Connection,
    pub(crate) drops: DropCounter,
    /// What makes traces of messages, if any are made.
    pub(crate) tracer: Option<Tracer>,
    pub(crate) watermark: Watermark,
    /// What shards are told behind all that has arrived for them.
    pub(crate) behind: Behind,
}

/// Counts the messages that the client has received and dropped. It drops those that the
/// subscription has no room for, and sends events about that, which may be dropped, too, and may
/// come late.
#[derive(Default)]
pub(crate) struct DropCounter {
    /// How many were read here.
    read: u64,
    /// How many more the client had received, the last time and the time before that
    /// all there were had been read: other subscriptions', and those dropped.
    others: [u64; 2],
    events: u64,
}

impl DropCounter {
    /// All that was there has been read. Says how many were dropped since the last
    /// time: none, unless the client has said that some were.
    fn settle(&mut self, received: u64, events: u64) -> u64 {
        let others = received.saturating_sub(self.read);
        let [last, before] = self.others;
        if std::mem::replace(&mut self.events, events) == events {
            self.others = [others, last];
            return 0;
        }
        self.others = [others; 2];
        others.saturating_sub(before)
    }
}

impl Intake {
    /// Reads until it is told to stop, and then what has arrived by then.
    pub(crate) async fn read(mut self, mut stop: oneshot::Receiver<()>) {
        let mut stopping = false;
        let held_from = clock::now_ms();
        if let Some(stream) = &mut self.stream {
            // Until then no lease runs, and no heartbeat stands for a connect that is still to come.
            tokio::select! {
                () = stream.wait() => {}
                _ = &mut stop => {
                    stopping = true;
                    if !self.messages.drain().await {
                        return;
                    }
                }
            }
        }
        // What was held comes at once, and didn't arrive so.
        self.allow_for(clock::now_ms().saturating_sub(held_from));
        let mut settle = tokio::time::interval(SETTLE_EVERY);
        loop {
            let waits_until = self.router.as_ref().and_then(Router::waits_until);
            let first = tokio::select! {
                // A stop isn't kept waiting by what comes in, and what has been
                // dropped is counted when nothing is left to read.
                biased;
                _ = &mut stop, if !stopping => {
                    stopping = true;
                    self.pass_on_all().await;
                    // The subscription ends when all that is on its way is read.
                    if !self.messages.drain().await {
                        return;
                    }
                    continue;
                }
                first = self.messages.next() => first,
                _ = settle.tick(), if !self.broker.drops.has_several_readers() => {
                    self.settle();
                    continue;
                }
                () = reached(waits_until) => {
                    self.pass_on_all().await;
                    continue;
                }
                () = arrival(&mut self.watermark, &mut self.behind, self.drops.read) => {
                    match next_ready(&mut self.messages) {
                        Some(first) => Some(first),
                        None => {
                            self.all_is_read();
                            continue;
                        }
                    }
                }
            };
            let Some(first) = first else { return };
            self.batch(first, stopping).await;
            if let Some(at) = self.watermark.after(self.drops.read) {
                let events = self.slow_consumer_events();
                self.watermark
                    .look_for_drops(clock::now_ms(), self.drops.read, events);
                self.send_watermark(at);
            }
            while let Some((shard, task)) = self.behind.after(self.drops.read) {
                self.tell(shard, task);
            }
        }
    }

    /// As many more messages are taken in as may come in so many milliseconds.
    fn allow_for(&self, ms: u64) {
        let rate = self
            .router
            .as_ref()
            .map_or(&self.messages_rate, Router::part);
        rate.allow_for(ms);
    }

    /// No message waits to be read: what comes behind those that had arrived is due.
    fn all_is_read(&mut self) {
        self.allow_for(0);
        if let Some(at) = self.watermark.take() {
            let events = self.slow_consumer_events();
            self.watermark
                .all_is_read(clock::now_ms(), self.drops.read, events);
            self.send_watermark(at);
        }
        if let Some((shard, task)) = self.behind.take() {
            self.tell(shard, task);
        }
    }

    fn tell(&self, shard: u32, task: FleetTask) {
        if let Some(shard) = self.shards.get(shard as usize) {
            shard.tell(task);
        }
    }

    /// Passes on what waits for others, too.
    async fn pass_on_all(&mut self) {
        if let Some(router) = &mut self.router {
            router.pass_on_all(&self.connection).await;
        }
    }

    /// Gives the shards the watermark of a time. One that has no room for it gets the next.
    fn send_watermark(&mut self, at: u64) {
        if let Some(router) = &mut self.router {
            router.heard(at);
        }
        // What others say may not reach this node.
        let hears = self.router.as_ref().is_none_or(Router::hears);
        for (place, shard) in self.shards.iter().enumerate() {
            // What comes from a stream is handed over elsewhere.
            let goes_without =
                !self.has_stream && shard.figures.goes_without_clock.load(Ordering::Relaxed);
            if hears && self.watermark.skips(place, at, goes_without) {
                continue;
            }
            let input = match hears {
                true => self.watermark.input(place, at),
                false => Input::LostUpTo { at },
            };
            let batch = Batch::new(clock::now_ms(), vec![input], 0);
            if shard.offer(batch).is_ok() {
                self.watermark.sent(place, at);
            }
        }
    }

    fn slow_consumer_events(&self) -> u64 {
        self.broker.drops.all_reported()
    }

    /// Counts what the client has dropped.
    fn settle(&mut self) {
        let received = self.connection.received();
        let drops = &self.broker.drops;
        if drops.has_several_readers() {
            return;
        }
        let said = drops.reported_of(SubscriptionKind::Inputs);
        // At least those.
        let dropped_elsewhere = drops.all_reported().saturating_sub(said);
        let elsewhere = self.broker.read_elsewhere() + dropped_elsewhere;
        match self.drops.settle(received.saturating_sub(elsewhere), said) {
            0 => {}
            dropped => drops.count(SubscriptionKind::Inputs, dropped),
        }
    }

    /// Sorts a message and those that are there behind it, by the places of their shards.
    fn gather(&mut self, first: Incoming, now: u64) -> Vec<Option<Batch>> {
        let limits = Limits {
            body_bytes_max: self.body_bytes_max.load(Ordering::Relaxed),
            metadata: *self.metadata.borrow(),
        };
        let room = BATCH_MAX / 4 / self.shards.iter().len().max(1);
        let mut batches: Vec<Option<Batch>> = self.shards.iter().map(|_| None).collect();
        let (subjects, replies) = (&self.subjects, &self.replies);
        let of_stream = self.stream.is_some();
        let tracer = self.tracer.as_ref();
        let messages = (&self.messages_rate, now.saturating_mul(1_000_000));
        let mut router = self.router.as_mut();
        if let Some(router) = &mut router {
            router.begin(now);
        }
        let (inputs, mut bytes) = (Cell::new(0), 0);
        let mut add = |received: &Incoming, sorted: Sorted| {
            let Some(batch) = batches.get_mut(sorted.place) else {
                return;
            };
            let batch = batch.get_or_insert_with(|| Batch::new(now, Vec::with_capacity(room), 0));
            let at = batch.inputs.len();
            if let Some(begun) = tracer.and_then(|it| traced(it, received, &sorted.input)) {
                batch.traced.push((at, begun));
            }
            batch.receipts.extend(sorted.receipt.map(|it| (at, it)));
            batch.inputs.push(sorted.input);
            batch.bytes += sorted.bytes;
            inputs.set(inputs.get() + 1);
        };
        let mut put = |received: Incoming| {
            bytes += received.bytes();
            match &mut router {
                None if of_stream && is_of_stream(subjects, &received) => {}
                None => {
                    let sorted = sort(&received, subjects, replies, limits, messages, &self.shards);
                    if let Some((place, input)) = sorted {
                        add(&received, Sorted::new(place, input, received.bytes()));
                    }
                }
                Some(router) => {
                    let taken_by = (limits, messages.1);
                    router.sort(received, replies, taken_by, &self.shards, &mut add);
                }
            }
            // A message may have many heartbeats.
            bytes < BATCH_BYTES_MAX && inputs.get() < BATCH_MAX
        };
        let mut has_room = put(first);
        self.drops.read += 1;
        for _ in 1..BATCH_MAX {
            if !has_room {
                break;
            }
            let Some(next) = next_ready(&mut self.messages) else {
                break;
            };
            has_room = put(next);
            self.drops.read += 1;
        }
        batches
    }

    /// Hands on a message and those that are there behind it. What a shard has no
    /// room for is dropped and counted: were it waited for, the broker's client
    /// would drop instead, and not say how much. When nothing more is to come, it
    /// is waited for.
    async fn batch(&mut self, first: Incoming, stopping: bool) {
        let batches = self.gather(first, clock::now_ms());
        match &mut self.router {
            Some(router) if stopping => router.pass_on_all(&self.connection).await,
            Some(router) => router.pass_on(&self.connection).await,
            None => {}
        }
        let batches = batches.into_iter().enumerate();
        for (place, batch) in batches.filter_map(|(place, batch)| Some((place, batch?))) {
            let count = batch.inputs.len();
            let Some(shard) = self.shards.get(place) else {
                continue;
            };
            if let Some(watermark) = self.watermark.before_message(place) {
                // One that has no room for it gets the next.
                let _ = shard.offer(Batch::new(clock::now_ms(), vec![watermark], 0));
            }
            if stopping {
                shard.hand_over(batch).await;
            } else if let Err(batch) = shard.offer(batch) {
                // One that waits for its time says so of what it can't take in meanwhile.
                let is_told = self.share.is_resting()
                    && shard.offer_refused(refused(batch, self.share.cpu_ms_per_s()));
                if !is_told {
                    self.broker
                        .drops
                        .count(SubscriptionKind::Inputs, count as u64);
                }
                self.watermark.dropped(place, clock::now_ms());
            }
        }
    }
}

/// Waits for what comes behind all messages that have arrived, when so many have been read.
async fn arrival(watermark: &mut Watermark, behind: &mut Behind, read: u64) {
    tokio::select! {
        () = watermark.arrives(read) => {}
        () = behind.arrives(read) => {}
    }
}

/// How often a stream is polled before nothing waits in it.
const POLLS: usize = 4;

/// What waits to be read, if anything does. A stream may say that nothing does since the task has had its
/// share of polls, or since the stream gives way to others of the task.
fn next_ready<S: Stream + Unpin>(messages: &mut S) -> Option<S::Item> {
    let next = || unconstrained(messages.next()).now_or_never();
    iter::repeat_with(next)
        .take(POLLS)
        .flatten()
        .next()
        .flatten()
}

/// Returns when it is that late; never, where it is to wait for no time.
async fn reached(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => future::pending().await,
    }
}

/// Whether a message is one of those that are taken from the stream, which has it, too.
fn is_of_stream(subjects: &Subjects, received: &Incoming) -> bool {
    let kind = subjects.kind(received.subject());
    kind.is_some_and(|kind| KINDS.contains(&kind))
}

/// What there is no room for, as it is to be answered. It holds no more than it did.
/// What the stream delivers again is no part of it.
fn refused(mut batch: Batch, cpu_ms_per_s: u64) -> Batch {
    if !batch.receipts.is_empty() {
        let mut places = batch.receipts.drain(..).map(|(place, _)| place).peekable();
        let inputs = mem::take(&mut batch.inputs).into_iter().enumerate();
        let published = inputs.filter(|(place, _)| places.next_if_eq(place).is_none());
        batch.inputs = published.map(|(_, input)| input).collect();
        // They stand elsewhere now.
        batch.traced.clear();
    }
    let inputs = batch.inputs.into_iter().map(|input| match input {
        Input::Message { message, reply } | Input::Excess { message, reply } => Input::Rejected {
            kind: message.payload.kind(),
            payload: message.raw,
            rejection: Rejection::over(
                Quota::Cpu,
                format!(
                    "{cpu_ms_per_s} ms of processor time a second are used up ([limits] \
                     cpu_ms_per_s), and as many messages wait as may ([engine] worker_queue, \
                     worker_queue_bytes): this one is refused"
                ),
            ),
            reply,
        },
        other => other,
    });
    Batch {
        inputs: inputs.collect(),
        ..batch
    }
}

/// What a message says, and to which of the shards. `messages`: how many are taken in, and what
/// time it is, in nanoseconds.
fn sort(
    received: &Incoming,
    subjects: &Subjects,
    replies: &ReplyGuard,
    limits: Limits,
    (messages, now_ns): (&Rate, u64),
    shards: &Shards,
) -> Option<(usize, Input)> {
    if received.is_from_node() {
        return None;
    }
    let Some(kind) = subjects.kind(received.subject()) else {
        if !subjects.is_redrive(received.subject()) {
            return None;
        }
        let input = redrive(received, replies)?;
        let place = match &input {
            Input::Redrive {
                event: Ok(event), ..
            } => shards.place_of(&event.user),
            _ => 0,
        };
        return Some((place, input));
    };
    let is_admitted = messages.take(now_ns);
    let reply = replies.accept(received.reply()).map(Into::into);
    Some(match Message::parse(kind, received.payload(), limits) {
        Ok(message) => {
            let place = shards.place_of(&message.user);
            let input = match is_admitted {
                true => Input::Message { message, reply },
                false => Input::Excess { message, reply },
            };
            (place, input)
        }
        Err(rejection) => {
            let rejection = match is_admitted {
                true => rejection,
                false => Rejection::excess(messages.per_s()),
            };
            let payload = received.payload().clone();
            // All shards share what there is to do for dead letters.
            (
                pool::place(&payload, shards.iter().len()),
                Input::Rejected {
                    kind,
                    payload,
                    rejection,
                    reply,
                },
            )
        }
    })
}

/// The trace of a message, if it is one that is traced.
pub(super) fn traced(tracer: &Tracer, received: &Incoming, input: &Input) -> Option<Begun> {
    let kind = match input {
        Input::Message { message, .. } | Input::Excess { message, .. } => message.payload.kind(),
        Input::Rejected { kind, .. } => *kind,
        _ => return None,
    };
    tracer.begin(kind, received.subject(), received.header(TRACEPARENT))
}

/// A request to decide about an event again; nothing where nobody waits for the answer.
pub(super) fn redrive(received: &Incoming, replies: &ReplyGuard) -> Option<Input> {
    let reply = replies.accept(received.reply())?.into();
    let event = Redrive::parse(received.payload());
    Some(Input::Redrive { event, reply })
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use presence_core::message::Kind;

    use super::*;
    use crate::link::shared_input::Receipt;

    /// Gives way to others so often before it says what it has.
    struct GivesWay(u32, u32);

    impl Stream for GivesWay {
        type Item = u32;

        fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<u32>> {
            if self.0 > 0 {
                self.0 -= 1;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(Some(self.1))
        }
    }

    #[tokio::test]
    async fn what_waits_is_found_though_its_stream_gives_way_to_others() {
        assert_eq!(next_ready(&mut GivesWay(2, 7)), Some(7));
        assert_eq!(next_ready(&mut futures_util::stream::empty::<u32>()), None);
        assert_eq!(
            next_ready(&mut futures_util::stream::pending::<u32>()),
            None
        );
        // Nor does it matter how much the task has polled before.
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        (0..1_000).for_each(|number| sender.send(number).unwrap());
        let messages = futures_util::stream::unfold(receiver, async |mut receiver| {
            Some((receiver.recv().await?, receiver))
        });
        let mut messages = std::pin::pin!(messages);
        let read = std::iter::from_fn(|| next_ready(&mut messages)).count();
        assert_eq!(read, 1_000);
    }

    #[test]
    fn what_a_stream_delivers_again_is_not_refused() {
        let input = |body: &'static [u8]| Input::Rejected {
            kind: Kind::Connect,
            payload: body.into(),
            rejection: Rejection::excess(1),
            reply: None,
        };
        let inputs = [&b"0"[..], b"1", b"2", b"3"].map(input);
        let mut batch = Batch::new(0, inputs.into(), 4);
        let to = "7 $JS.ACK.in.presence-fleet.1.5.5.1.0";
        let receipt = || Receipt::of_header(to, "in").unwrap();
        batch.receipts = vec![(0, receipt()), (2, receipt())];
        let refused = refused(batch, 5);
        let left = refused.inputs.iter().map(|input| match input {
            Input::Rejected { payload, .. } => payload.clone(),
            other => panic!("{other:?}"),
        });
        assert_eq!(left.collect::<Vec<_>>(), ["1", "3"]);
        assert!(refused.receipts.is_empty());
    }

    #[test]
    fn what_was_dropped_is_what_was_received_and_not_read() {
        let mut drops = DropCounter {
            read: 10,
            ..DropCounter::default()
        };
        // Three were other subscriptions'.
        assert_eq!([drops.settle(13, 0), drops.settle(13, 0)], [0, 0]);
        drops.read = 50;
        assert_eq!(drops.settle(153, 2), 100, "however many events there are");
        drops.read = 60;
        assert_eq!(drops.settle(165, 2), 0, "the event may be on its way");
        assert_eq!(drops.settle(165, 3), 2);
        drops.read = 70;
        assert_eq!([drops.settle(176, 3), drops.settle(176, 3)], [0, 0]);
        assert_eq!(drops.settle(177, 4), 1, "an earlier one was another's");
    }
}
