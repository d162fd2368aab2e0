//! Reads messages from the broker and hands them to the shards. There is one reader, so that the
//! messages of a connection keep the broker's order across subjects.

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
use crate::fleet::deferred_tasks::DeferredTasks;
use crate::fleet::parts::Inputs;
use crate::link::broker::BrokerHealth;
use crate::link::connection::{Connection, Incoming};
use crate::link::drops::SubscriptionKind;
use crate::link::input_stream::KINDS;
use crate::link::reply_guard::ReplyGuard;
use crate::link::watermark::Watermark;
use crate::pool::{self, BATCH_MAX, Batch, FleetTask, Shards, ThreadShare};
use crate::telemetry::{OpenTrace, Tracer};
use crate::tenant::router::{RoutedInput, Router};
use crate::tenant::stream_intake::CaughtUp;

/// A batch of messages ends after this many bytes. Its last message may exceed the limit.
pub(super) const BATCH_BYTES_MAX: usize = 1 << 20;

/// The header with which a sender assigns a message to a trace.
pub(super) const TRACEPARENT: &str = "traceparent";

/// How often messages that the client has dropped are counted.
const SETTLE_EVERY: Duration = Duration::from_secs(1);

/// Reads a tenant's input messages.
pub(crate) struct Intake {
    pub(crate) messages: Inputs,
    /// Passes inputs on to their shards in a fleet. `None` outside of a fleet.
    pub(crate) router: Option<Router>,
    /// If connects and disconnects come from a stream: completes when those that were stored before
    /// the node's start have been taken.
    pub(crate) stream: Option<CaughtUp>,
    pub(crate) subjects: Subjects,
    pub(crate) replies: Arc<ReplyGuard>,
    /// Whether connects and disconnects come from a stream.
    pub(crate) has_stream: bool,
    /// The longest body that the broker takes, according to its last connect message.
    pub(crate) body_bytes_max: Arc<AtomicUsize>,
    /// The limits on a message's metadata.
    pub(crate) metadata: watch::Receiver<metadata::Limits>,
    /// The limit on messages per second.
    pub(crate) messages_rate: Rate,
    /// The tenant's share of the threads.
    pub(crate) share: Arc<ThreadShare>,
    pub(crate) shards: Shards,
    pub(crate) broker: Arc<BrokerHealth>,
    pub(crate) connection: Connection,
    pub(crate) drops: DropCounter,
    /// Makes traces of messages. `None` if there are none.
    pub(crate) tracer: Option<Tracer>,
    pub(crate) watermark: Watermark,
    /// Tasks that shards get after all messages that arrived before them.
    pub(crate) deferred: DeferredTasks,
}

/// Counts messages that the client has received and dropped. The client drops a message if the
/// subscription is full. It reports this in events, which may be dropped too, and may come late.
#[derive(Default)]
pub(crate) struct DropCounter {
    /// How many messages this intake has read.
    read: u64,
    /// How many messages the client had received that this intake hadn't read, at the last two
    /// times when all waiting messages had been read. These are messages of other subscriptions,
    /// and dropped ones.
    others: [u64; 2],
    events: u64,
}

impl DropCounter {
    /// To be called when all waiting messages have been read. Returns how many were dropped since
    /// the last call. The result is 0 unless the client has reported drops.
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
    /// Reads until `stop`, and then the messages that have arrived by then.
    pub(crate) async fn read(mut self, mut stop: oneshot::Receiver<()>) {
        let mut stopping = false;
        let held_from = clock::now_ms();
        if let Some(stream) = &mut self.stream {
            // Until then, no lease runs out, and no heartbeat takes the place of a connect that is
            // still in the stream.
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
        // The messages that were held back come all at once. They mustn't exceed the rate for that.
        self.allow_for(clock::now_ms().saturating_sub(held_from));
        let mut settle = tokio::time::interval(SETTLE_EVERY);
        loop {
            let waits_until = self.router.as_ref().and_then(Router::waits_until);
            let first = tokio::select! {
                // A stop isn't delayed by incoming messages. Drops are counted only when no message
                // waits.
                biased;
                _ = &mut stop, if !stopping => {
                    stopping = true;
                    self.pass_on_all().await;
                    // The subscription ends when all messages on their way have been read.
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
                () = arrival(&mut self.watermark, &mut self.deferred, self.drops.read) => {
                    match next_ready(&mut self.messages) {
                        Some(first) => Some(first),
                        None => {
                            self.note_queue_empty();
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
            while let Some((shard, task)) = self.deferred.after(self.drops.read) {
                self.send_fleet_task(shard, task);
            }
        }
    }

    /// Allows as many additional messages as the rate allows in `ms` milliseconds.
    fn allow_for(&self, ms: u64) {
        let rate = self
            .router
            .as_ref()
            .map_or(&self.messages_rate, Router::part);
        rate.allow_extra(ms);
    }

    /// No message waits to be read: watermarks and tasks that follow the arrived messages are due.
    fn note_queue_empty(&mut self) {
        self.allow_for(0);
        if let Some(at) = self.watermark.take() {
            let events = self.slow_consumer_events();
            self.watermark
                .note_queue_empty(clock::now_ms(), self.drops.read, events);
            self.send_watermark(at);
        }
        if let Some((shard, task)) = self.deferred.take() {
            self.send_fleet_task(shard, task);
        }
    }

    fn send_fleet_task(&self, shard: u32, task: FleetTask) {
        if let Some(shard) = self.shards.get(shard as usize) {
            shard.send_fleet_task(task);
        }
    }

    /// Passes on everything that waits in the router.
    async fn pass_on_all(&mut self) {
        if let Some(router) = &mut self.router {
            router.pass_on_all(&self.connection).await;
        }
    }

    /// Sends a watermark to the shards. A shard without room for it gets the next one.
    fn send_watermark(&mut self, at: u64) {
        if let Some(router) = &mut self.router {
            router.note_heard(at);
        }
        // While the node isn't in touch with the fleet, messages of others may not reach it.
        let is_in_touch = self.router.as_ref().is_none_or(Router::is_in_touch);
        for (place, shard) in self.shards.iter().enumerate() {
            // Messages of a stream are handed over by another task, which sends no watermark before
            // them.
            let needs_no_watermark =
                !self.has_stream && shard.figures.needs_no_watermark.load(Ordering::Relaxed);
            if is_in_touch && self.watermark.skips(place, at, needs_no_watermark) {
                continue;
            }
            let input = match is_in_touch {
                true => self.watermark.input(place, at),
                false => Input::LostUpTo { at },
            };
            let batch = Batch::new(clock::now_ms(), vec![input], 0);
            if shard.offer(batch).is_ok() {
                self.watermark.note_sent(place, at);
            }
        }
    }

    fn slow_consumer_events(&self) -> u64 {
        self.broker.drops.all_reported()
    }

    /// Counts messages that the client has dropped.
    fn settle(&mut self) {
        let received = self.connection.received();
        let drops = &self.broker.drops;
        if drops.has_several_readers() {
            return;
        }
        let said = drops.reported_of(SubscriptionKind::Inputs);
        // This is a minimum, because the client doesn't report all drops.
        let dropped_elsewhere = drops.all_reported().saturating_sub(said);
        let elsewhere = self.broker.read_elsewhere() + dropped_elsewhere;
        match self.drops.settle(received.saturating_sub(elsewhere), said) {
            0 => {}
            dropped => drops.count(SubscriptionKind::Inputs, dropped),
        }
    }

    /// Sorts a message, and those that wait behind it, into one batch per shard.
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
        let mut add = |received: &Incoming, routed: RoutedInput| {
            let Some(batch) = batches.get_mut(routed.place) else {
                return;
            };
            let batch = batch.get_or_insert_with(|| Batch::new(now, Vec::with_capacity(room), 0));
            let at = batch.inputs.len();
            if let Some(begun) = tracer.and_then(|it| traced(it, received, &routed.input)) {
                batch.traced.push((at, begun));
            }
            batch.receipts.extend(routed.receipt.map(|it| (at, it)));
            batch.inputs.push(routed.input);
            batch.bytes += routed.bytes;
            inputs.set(inputs.get() + 1);
        };
        let mut put = |received: Incoming| {
            bytes += received.bytes();
            match &mut router {
                None if of_stream && is_of_stream(subjects, &received) => {}
                None => {
                    let routed = sort(&received, subjects, replies, limits, messages, &self.shards);
                    if let Some((place, input)) = routed {
                        add(&received, RoutedInput::new(place, input, received.bytes()));
                    }
                }
                Some(router) => {
                    let taken_by = (limits, messages.1);
                    router.sort(received, replies, taken_by, &self.shards, &mut add);
                }
            }
            // One message may contain many heartbeats.
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

    /// Hands on a message and those that wait behind it. If a shard has no room, its batch is
    /// dropped and counted. If the intake waited instead, the broker's client would drop messages,
    /// and their number wouldn't be known. During a stop, the intake does wait.
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
                // A shard without room gets the next one.
                let _ = shard.offer(Batch::new(clock::now_ms(), vec![watermark], 0));
            }
            if stopping {
                shard.hand_over(batch).await;
            } else if let Err(batch) = shard.offer(batch) {
                // A tenant that rests can still answer that messages are refused.
                let is_told = self.share.is_resting()
                    && shard.offer_refused(refused(batch, self.share.cpu_ms_per_s()));
                if !is_told {
                    self.broker
                        .drops
                        .count(SubscriptionKind::Inputs, count as u64);
                }
                self.watermark.note_dropped(place, clock::now_ms());
            }
        }
    }
}

/// Waits for something that follows all arrived messages. `read`: how many messages have been read.
async fn arrival(watermark: &mut Watermark, deferred: &mut DeferredTasks, read: u64) {
    tokio::select! {
        () = watermark.arrives(read) => {}
        () = deferred.arrives(read) => {}
    }
}

/// How often a stream is polled before it counts as empty.
const POLLS: usize = 4;

/// The next waiting message, if there is one. A stream may be pending although a message waits,
/// because the task has used up its budget or the stream yields to others. So it is polled several
/// times.
fn next_ready<S: Stream + Unpin>(messages: &mut S) -> Option<S::Item> {
    let next = || unconstrained(messages.next()).now_or_never();
    iter::repeat_with(next)
        .take(POLLS)
        .flatten()
        .next()
        .flatten()
}

/// Waits until this time, or forever for `None`.
async fn reached(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => future::pending().await,
    }
}

/// Whether the message is of a kind that is taken from the stream, which stores it as well.
fn is_of_stream(subjects: &Subjects, received: &Incoming) -> bool {
    let kind = subjects.kind(received.subject());
    kind.is_some_and(|kind| KINDS.contains(&kind))
}

/// Turns inputs for which there is no room into rejections, so that they are answered. They take no
/// more room than before. Messages of the input stream are left out, because the stream delivers
/// them again.
fn refused(mut batch: Batch, cpu_ms_per_s: u64) -> Batch {
    if !batch.receipts.is_empty() {
        let mut places = batch.receipts.drain(..).map(|(place, _)| place).peekable();
        let inputs = mem::take(&mut batch.inputs).into_iter().enumerate();
        let published = inputs.filter(|(place, _)| places.next_if_eq(place).is_none());
        batch.inputs = published.map(|(_, input)| input).collect();
        // Their indexes have changed.
        batch.traced.clear();
    }
    let inputs = batch.inputs.into_iter().map(|input| match input {
        Input::Message { message, reply } | Input::Excess { message, reply } => Input::Rejected {
            kind: message.kind,
            payload: message.into_body(),
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

/// Parses a message, and finds its shard. `messages`: the rate, and the time in nanoseconds.
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
            let place = shards.place_of(message.user());
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
            // Dead letters are spread over all shards.
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

/// Begins the trace of a message, if it is traced.
pub(super) fn traced(tracer: &Tracer, received: &Incoming, input: &Input) -> Option<OpenTrace> {
    let kind = match input {
        Input::Message { message, .. } | Input::Excess { message, .. } => message.kind,
        Input::Rejected { kind, .. } => *kind,
        _ => return None,
    };
    tracer.begin(kind, received.subject(), received.header(TRACEPARENT))
}

/// A request to decide an event again. `None` if it has no reply subject.
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

    /// A stream that is pending this often before it yields its item.
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
        // It also doesn't matter how much the task has polled before.
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
        // Three messages were of other subscriptions.
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
