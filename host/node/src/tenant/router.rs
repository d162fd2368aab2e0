//! The router of a fleet's node: it passes inputs of applications on to their users' shards. It
//! also hands the messages that were sent to a shard to that shard, if they belong there.
//!
//! The broker doesn't send a node its own messages. So if this node owns or follows the shard, the
//! router hands the input to the shard directly.

mod waiting;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use presence_config::causes::Causes;
use presence_config::subjects::{
    CUT, DELAYED, EXCESS, FLEET_QUEUE, REDRIVE, STORED, ShardMessage, Subjects,
};
use presence_core::Input;
use presence_core::fleet::hash;
use presence_core::message::{Cause, Kind, Limits, Message, Rejection, user_of};
use presence_core::quota::Rate;
use tokio::time::Instant;

use self::waiting::Waiting;
use super::intake::{TRACEPARENT, redrive};
use crate::fleet::Fleet;
use crate::link::broker::BrokerHealth;
use crate::link::connection::{Connection, Destination, Incoming, Subscription};
use crate::link::drops::SubscriptionKind;
use crate::link::input_stream::KINDS;
use crate::link::reply_guard::ReplyGuard;
use crate::link::shared_input::{Receipt, SharedInput};
use crate::pool::log_limiter::LogLimiter;
use crate::pool::{self, FleetTask, Shards};

/// The least time between two log lines about messages for a wrong shard, or of another stream.
const LOG_EVERY_MS: u64 = 10_000;

/// How late a message must be to be marked as late when it is passed on, in milliseconds. Lateness
/// counts from the last watermark, which is normally a fraction of a second old.
const LATE_MS: u64 = 1_000;

/// Sorts the incoming messages of a fleet's node.
pub(crate) struct Router {
    fleet: Arc<Fleet>,
    subjects: Subjects,
    /// The destinations of each shard: one per kind of input, and the last for redrive requests.
    destinations: Vec<[Destination; Kind::ALL.len() + 1]>,
    /// The destination for each shard's combined heartbeats.
    heartbeat_destinations: Vec<Destination>,
    /// Heartbeats that wait to be combined with others.
    waiting: Waiting,
    /// The input stream, if there is one, and the destinations of its messages: one per shard and
    /// kind.
    stream: Option<String>,
    stored: Vec<[Destination; KINDS.len()]>,
    /// Messages to be passed on.
    forwards: Vec<Forwarded>,
    wrong: LogLimiter,
    other_stream: LogLimiter,
    /// The last watermark, by the host's clock. `None` before the first.
    heard_at: Option<u64>,
    /// How late the current messages may be, in milliseconds; 0 if they aren't late.
    late_ms: u64,
    /// The tenant's limit on messages per second, and this node's part of it.
    messages: Rate,
    part: Rate,
}

/// A message to be passed on.
enum Forwarded {
    One(Destination, Incoming),
    /// Combined heartbeats.
    Heartbeats(Destination, Bytes),
}

/// How a message was sent to a shard.
#[derive(Clone, Copy)]
struct Route {
    shard: u32,
    /// Whether it exceeds the tenant's rate.
    is_excess: bool,
    /// How late it may be, in milliseconds; 0 if it isn't late.
    late_ms: u64,
}

impl Route {
    /// An ordinary message.
    fn to(shard: u32) -> Self {
        Self {
            shard,
            is_excess: false,
            late_ms: 0,
        }
    }
}

/// An input for one of the node's shards.
pub(super) struct RoutedInput {
    pub(super) place: usize,
    pub(super) input: Input,
    /// The size of its message, in bytes.
    pub(super) bytes: usize,
    /// Its receipt, if a router has passed it on from the stream.
    pub(super) receipt: Option<Receipt>,
}

/// Subscribes to inputs of applications, in the queue group of the fleet's nodes.
pub(super) async fn listen(
    connection: &Connection,
    subjects: &Subjects,
    broker: &BrokerHealth,
    of_stream: bool,
) -> anyhow::Result<Vec<Subscription>> {
    // Messages that a stream stores are taken from the stream.
    let is_heard = |kind: &Kind| !of_stream || !KINDS.contains(kind);
    let kinds = Kind::ALL.into_iter().filter(is_heard).map(Kind::subject);
    let mut subscriptions = Vec::new();
    for subject in kinds.chain([REDRIVE]) {
        let shared = (subjects.of(subject), FLEET_QUEUE);
        let messages = connection.subscribe_in(shared, SubscriptionKind::Inputs, broker);
        subscriptions.push(messages.await?);
    }
    Ok(subscriptions)
}

impl Router {
    /// `messages`: the tenant's rate over all nodes. `stream`: the input stream's name.
    pub(super) fn new(
        fleet: Arc<Fleet>,
        subjects: Subjects,
        messages: Rate,
        stream: Option<String>,
    ) -> Self {
        let destinations = (0..fleet.shards).map(|shard| {
            std::array::from_fn(|number| {
                let kind = Kind::ALL.get(number).copied();
                subjects.shard_input(shard, kind).into()
            })
        });
        let heartbeats = (0..fleet.shards).map(|shard| subjects.shard_heartbeats(shard).into());
        let stored = (0..fleet.shards)
            .map(|shard| KINDS.map(|kind| subjects.shard_stored(shard, kind).into()));
        Self {
            stored: stored.collect(),
            stream,
            destinations: destinations.collect(),
            heartbeat_destinations: heartbeats.collect(),
            waiting: Waiting::default(),
            fleet,
            subjects,
            forwards: Vec::new(),
            wrong: LogLimiter::default(),
            other_stream: LogLimiter::default(),
            heard_at: None,
            late_ms: 0,
            messages,
            part: Rate::default(),
        }
    }

    /// Notes a watermark: everything has been received up to this time.
    pub(super) fn note_heard(&mut self, at: u64) {
        self.heard_at = Some(at);
    }

    /// To be called before messages are sorted: sets their lateness and the node's rate.
    pub(super) fn begin(&mut self, now: u64) {
        let late_ms = self.heard_at.map_or(0, |at| now.saturating_sub(at));
        self.late_ms = if late_ms > LATE_MS { late_ms } else { 0 };
        self.part();
    }

    /// This node's part of the tenant's rate: it is divided equally among the living nodes.
    pub(super) fn part(&self) -> &Rate {
        self.part
            .set_to_fraction_of(&self.messages, self.fleet.nodes().len() as u64);
        &self.part
    }

    /// Whether messages of other nodes are known to reach this node.
    pub(super) fn is_in_touch(&self) -> bool {
        self.fleet.is_in_touch()
    }

    /// Hands a message's input to this node's shard, if it has one, and queues the message for the
    /// other nodes. `now_ns`: the current time.
    pub(super) fn sort(
        &mut self,
        received: Incoming,
        replies: &ReplyGuard,
        (limits, now_ns): (Limits, u64),
        shards: &Shards,
        put: &mut impl FnMut(&Incoming, RoutedInput),
    ) {
        if received.is_from_node() {
            return;
        }
        let subject = received.subject();
        if let Some(to) = self.subjects.shard_message(subject) {
            self.sort_sent(to, &received, replies, limits, shards, put);
            return;
        }
        let kind = self.subjects.kind(subject);
        if kind.is_none() && !self.subjects.is_redrive(subject) {
            return;
        }
        let shard = self.shard_of(received.payload());
        let is_excess = kind.is_some() && !self.part.take(now_ns);
        self.fleet.figures.routed.fetch_add(1, Ordering::Relaxed);
        let is_heartbeat = kind == Some(Kind::Heartbeat);
        let late_ms = self.late_ms;
        let is_from_owner = is_heartbeat && !self.fleet.receives_heartbeats(shard);
        if !is_from_owner && self.fleet.has_part(shard) {
            let route = Route {
                shard,
                is_excess,
                late_ms,
            };
            if let Some(input) = self.input(kind, route, &received, replies, limits) {
                put(
                    &received,
                    RoutedInput::new(shard as usize, input, received.bytes()),
                );
            }
        }
        let is_bare = received.reply().is_none() && !received.has_headers();
        match is_heartbeat && is_bare && !is_excess {
            true => self.wait(shard, received, limits),
            false => self.queue_one((shard, kind), received, is_excess),
        }
    }

    /// Hands over a message that was sent to a shard.
    fn sort_sent(
        &self,
        (shard, what): (u32, ShardMessage),
        received: &Incoming,
        replies: &ReplyGuard,
        limits: Limits,
        shards: &Shards,
        put: &mut impl FnMut(&Incoming, RoutedInput),
    ) {
        let input = match what {
            ShardMessage::Standby => return self.forward_update(shard, received, shards),
            ShardMessage::Heartbeats if received.payload().len() > waiting::BYTES_MAX => {
                // No router combines as many.
                self.fleet.figures.refused.fetch_add(1, Ordering::Relaxed);
                return;
            }
            ShardMessage::Heartbeats => {
                for body in Waiting::bodies(received.payload()) {
                    let bytes = body.len();
                    let input = self.message(Kind::Heartbeat, Route::to(shard), body, None, limits);
                    put(received, RoutedInput::new(shard as usize, input, bytes));
                }
                return;
            }
            ShardMessage::Input(kind) => {
                // The router sets these headers, so that the owner and its standbys treat the
                // message alike.
                let late_ms = received.header(DELAYED).and_then(|it| it.parse().ok());
                let route = Route {
                    shard,
                    is_excess: received.header(EXCESS).is_some(),
                    late_ms: late_ms.unwrap_or(0),
                };
                self.input(Some(kind), route, received, replies, limits)
            }
            ShardMessage::Redrive => self.input(None, Route::to(shard), received, replies, limits),
            ShardMessage::Stored(kind) => {
                return self.sort_stored((shard, kind), received, limits, put);
            }
        };
        if let Some(input) = input {
            put(
                received,
                RoutedInput::new(shard as usize, input, received.bytes()),
            );
        }
    }

    /// Hands over a message of the stream that a router has passed on.
    fn sort_stored(
        &self,
        (shard, kind): (u32, Kind),
        received: &Incoming,
        limits: Limits,
        put: &mut impl FnMut(&Incoming, RoutedInput),
    ) {
        let header = received.header(STORED).zip(self.stream.as_ref());
        let Some(receipt) = header.and_then(|(it, stream)| Receipt::of_header(it, stream)) else {
            return self.refuse_other_stream();
        };
        let input = self.stored_input((shard, kind), received, &receipt, limits);
        let routed = RoutedInput {
            receipt: Some(receipt),
            ..RoutedInput::new(shard as usize, input, received.bytes())
        };
        put(received, routed);
    }

    /// Lets a heartbeat wait to be combined with others, if it isn't too long.
    fn wait(&mut self, shard: u32, received: Incoming, limits: Limits) {
        let bytes_max = limits.body_bytes_max;
        let body = received.payload();
        if !Waiting::may_wait(body, bytes_max) {
            return self.queue_one((shard, Some(Kind::Heartbeat)), received, false);
        }
        let full = self.waiting.add(shard, body, bytes_max);
        self.queue_heartbeats(shard, full);
    }

    fn queue_heartbeats(&mut self, shard: u32, heartbeats: Option<Bytes>) {
        let destination = self.heartbeat_destinations.get(shard as usize).cloned();
        let forward = destination.zip(heartbeats);
        self.forwards
            .extend(forward.map(|(to, heartbeats)| Forwarded::Heartbeats(to, heartbeats)));
    }

    /// Queues a message, behind the heartbeats of its shard that came before it.
    fn queue_one(
        &mut self,
        (shard, kind): (u32, Option<Kind>),
        received: Incoming,
        is_excess: bool,
    ) {
        let before = self.waiting.take(shard);
        self.queue_heartbeats(shard, before);
        let number = kind.map_or(Kind::ALL.len(), |kind| kind as usize);
        let destinations = self.destinations.get(shard as usize);
        let destination = destinations.and_then(|them| them.get(number)).cloned();
        // Only a router may set these headers.
        let is_late = self.late_ms > 0 && kind != Some(Kind::Heartbeat);
        let message = match is_excess || is_late || received.has_headers() {
            true => received.marked(&[
                (EXCESS, is_excess.then(|| "1".into())),
                (DELAYED, is_late.then(|| self.late_ms.to_string())),
            ]),
            false => received,
        };
        self.forwards
            .extend(destination.map(|to| Forwarded::One(to, message)));
    }

    /// Queues a message of the stream for its shard. Returns its input if this node owns or follows
    /// the shard. An error means that a node has published it, or that it is no input.
    pub(super) fn route(
        &mut self,
        stored: SharedInput,
        limits: Limits,
    ) -> Result<Option<(usize, Input, Receipt)>, Receipt> {
        let SharedInput {
            receipt, message, ..
        } = stored;
        let kind = self.subjects.kind(message.subject());
        let place = kind.and_then(|kind| KINDS.iter().position(|it| *it == kind));
        let (Some(kind), Some(place)) = (kind, place.filter(|_| !message.is_from_node())) else {
            return Err(receipt);
        };
        let shard = self.shard_of(message.payload());
        let bytes_max = limits.body_bytes_max;
        let message = message.with_receipt(&receipt.to_string(), TRACEPARENT, bytes_max);
        self.fleet.figures.routed.fetch_add(1, Ordering::Relaxed);
        let input = self.fleet.has_part(shard).then(|| {
            let input = self.stored_input((shard, kind), &message, &receipt, limits);
            (shard as usize, input, receipt)
        });
        let destinations = self.stored.get(shard as usize);
        if let Some(destination) = destinations.and_then(|them| them.get(place)).cloned() {
            self.forwards.push(Forwarded::One(destination, message));
        }
        Ok(input)
    }

    /// The message that was routed last.
    pub(super) fn routed(&self) -> Option<&Incoming> {
        match self.forwards.last()? {
            Forwarded::One(_, message) => Some(message),
            Forwarded::Heartbeats(_, _) => None,
        }
    }

    fn stored_input(
        &self,
        (shard, kind): (u32, Kind),
        message: &Incoming,
        receipt: &Receipt,
        limits: Limits,
    ) -> Input {
        let payload = message.payload();
        let parsed = match message.header(CUT) {
            None => Message::parse(kind, payload, limits),
            Some(bytes) => Err(Rejection::new(
                Cause::TooLarge,
                format!(
                    "{bytes} bytes long, and no more than {} of a message of the stream can be passed \
                     on to the node that owns its user; this is its beginning",
                    limits.body_bytes_max
                ),
            )),
        };
        // The reply subject was JetStream's, so nobody waits for an answer.
        let reply = None;
        let rejection = match parsed {
            Ok(mut message) if self.check_shard(message.user(), shard) => {
                message.stream_place = Some(receipt.place);
                return Input::Message { message, reply };
            }
            Ok(message) => self.wrong_shard(shard, message.user()),
            Err(rejection) => rejection,
        };
        Input::Rejected {
            kind,
            payload: payload.clone(),
            rejection,
            reply,
        }
    }

    /// Counts and logs a message of a stream that this node doesn't take. Nobody acknowledges it,
    /// so it is delivered again and again.
    fn refuse_other_stream(&self) {
        let refused = &self.fleet.figures.refused;
        refused.fetch_add(1, Ordering::Relaxed);
        if let Some(messages) = self.other_stream.line(LOG_EVERY_MS) {
            let mine = match &self.stream {
                Some(stream) => format!("takes from `{stream}`"),
                None => "has none".into(),
            };
            tracing::warn!(
                messages,
                "another node passes on messages of an input stream that this node doesn't take, so they \
                 are not handled: all nodes of the fleet are to have the same [input] stream, and this \
                 one {mine}"
            );
        }
    }

    /// When the waiting heartbeats must be passed on. `None` if none wait.
    pub(super) fn waits_until(&self) -> Option<Instant> {
        self.waiting.until()
    }

    /// Passes on what is due now.
    pub(super) async fn pass_on(&mut self, connection: &Connection) {
        match self.waits_until() {
            Some(until) if until <= Instant::now() => self.pass_on_all(connection).await,
            _ => self.publish(connection).await,
        }
    }

    /// Passes on everything that waits.
    pub(super) async fn pass_on_all(&mut self, connection: &Connection) {
        for (shard, heartbeats) in self.waiting.take_all() {
            self.queue_heartbeats(shard, Some(heartbeats));
        }
        self.publish(connection).await;
    }

    async fn publish(&mut self, connection: &Connection) {
        for forward in self.forwards.drain(..) {
            let published = match forward {
                Forwarded::One(to, message) => connection.pass_on(to, message).await,
                Forwarded::Heartbeats(to, heartbeats) => {
                    connection.publish_to(to, heartbeats).await
                }
            };
            if let Err(error) = published {
                tracing::error!("an input could not be passed on: {}", Causes(&error));
            }
        }
    }

    /// The shard of a message. Any shard refuses a message that can't be parsed.
    fn shard_of(&self, payload: &[u8]) -> u32 {
        match user_of(payload) {
            Some(user) => hash::shard_of(&user, self.fleet.shards),
            None => {
                let place = pool::place(payload, self.fleet.shards as usize);
                u32::try_from(place).unwrap_or_default()
            }
        }
    }

    /// The input of a message that was sent to a shard. `None` for a redrive request to ignore.
    fn input(
        &self,
        kind: Option<Kind>,
        route: Route,
        received: &Incoming,
        replies: &ReplyGuard,
        limits: Limits,
    ) -> Option<Input> {
        let Some(kind) = kind else {
            let input = redrive(received, replies)?;
            let is_right = match &input {
                Input::Redrive {
                    event: Ok(event), ..
                } => self.check_shard(&event.user, route.shard),
                _ => true,
            };
            return is_right.then_some(input);
        };
        let reply = replies.accept(received.reply()).map(Into::into);
        let payload = received.payload().clone();
        Some(self.message(kind, route, payload, reply, limits))
    }

    fn message(
        &self,
        kind: Kind,
        route: Route,
        payload: Bytes,
        reply: Option<String>,
        limits: Limits,
    ) -> Input {
        let rejection = match Message::parse(kind, &payload, limits) {
            Ok(mut message) if self.check_shard(message.user(), route.shard) => {
                message.delayed_ms = route.late_ms;
                return match route.is_excess {
                    true => Input::Excess { message, reply },
                    false => Input::Message { message, reply },
                };
            }
            Ok(message) => self.wrong_shard(route.shard, message.user()),
            Err(_) if route.is_excess => Rejection::excess(self.messages.per_s()),
            Err(rejection) => rejection,
        };
        Input::Rejected {
            kind,
            payload,
            rejection,
            reply,
        }
    }

    /// Whether a user belongs to a shard. If not, it is counted and logged.
    fn check_shard(&self, user: &str, shard: u32) -> bool {
        let is_right = hash::shard_of(user, self.fleet.shards) == shard;
        if !is_right {
            self.fleet
                .figures
                .wrong_shard
                .fetch_add(1, Ordering::Relaxed);
            if let Some(messages) = self.wrong.line(LOG_EVERY_MS) {
                tracing::warn!(
                    shard,
                    messages,
                    "messages arrive on the subject of another shard than their user's, and are refused: \
                     the broker's subject mapping is to have `partition({}, 1)` of the user's token",
                    self.fleet.shards
                );
            }
        }
        is_right
    }

    fn wrong_shard(&self, shard: u32, user: &str) -> Rejection {
        let right = hash::shard_of(user, self.fleet.shards);
        let error = format!("it was sent to shard {shard}, and its user is of shard {right}");
        Rejection::new(Cause::WrongShard, error)
    }

    fn forward_update(&self, shard: u32, received: &Incoming, shards: &Shards) {
        let update = FleetTask::Update(received.payload().clone());
        let to = shards.get(shard as usize);
        if !to.is_some_and(|to| to.offer_update(update)) {
            self.fleet
                .figures
                .updates_dropped
                .fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl RoutedInput {
    pub(super) fn new(place: usize, input: Input, bytes: usize) -> Self {
        Self {
            place,
            input,
            bytes,
            receipt: None,
        }
    }
}
