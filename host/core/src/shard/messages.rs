//! Handling a message: the tracker takes those of connections; the others are statements.

use std::borrow::Cow;

use super::env::{Common, Env};
use super::presence::Presence;
use super::settings::Settings;
use super::types::Ignored;
use crate::event::{Change, Event, Reason};
use crate::json;
use crate::message::{Message, Payload, Redrive, Rejection, StatedReason, StreamPlace};
use crate::metadata::{Builder, CheckedMetadata, Metadata};
use crate::names::Id;
use crate::quota::Quota;
use crate::statements::{MessageTime, ReorderLimits, Statement};
use crate::tracker::{Effect, InputResult, Transition};

/// The number of parts of a lease. A heartbeat beyond the rate of messages is taken if its
/// connection has been silent for one part of its lease.
const LEASE_PARTS: u64 = 4;

/// How far ahead of this node's clock a sender's clock may be, in milliseconds, where senders'
/// clocks decide in which order two of them said something of a user.
const AHEAD_MS: u64 = 100;

/// The result of a message.
pub(super) enum Outcome {
    Taken,
    Ignored(Ignored),
    /// The message was refused, or a part of it, which the rejection names.
    Refused(Rejection),
}

impl Presence {
    /// Takes a message beyond the rate of its tenant if a connection would live on or end wrongly
    /// without it: a disconnect of a live connection, or a heartbeat of one that has been silent
    /// for part of its lease. There are few of these, however many messages come. Any other message
    /// is refused.
    pub(super) fn excess(&mut self, message: &Message, env: &mut Env<'_>) -> Outcome {
        if is_needed(message, env.common) {
            return self.message(message, env);
        }
        let common = &*env.common;
        Outcome::Refused(Rejection::excess(common.settings.messages_per_s))
    }

    /// Takes a message. Returns whether it was ignored or refused, and why.
    pub(super) fn message(&mut self, message: &Message, env: &mut Env<'_>) -> Outcome {
        let (user, payload) = (message.user(), message.payload());
        let (timestamp, stream_place) = (message.timestamp, message.stream_place);
        let sent = (timestamp, message.delayed_ms);
        let common = &mut *env.common;
        if common.check_stream_duplicate(user, payload, stream_place) {
            self.apply_overtaken(user, timestamp, payload, env);
            return Outcome::Taken;
        }
        if let Payload::Online { .. } | Payload::Offline { .. } = payload
            && let Some(rejection) = self.refuse_statement(user, common)
        {
            return Outcome::Refused(rejection);
        }
        common.counters.count_accepted(payload.kind());
        if let Payload::Online { .. } | Payload::Offline { .. } = payload
            && self.check_overtaken(user, sent, payload, common)
        {
            common.counters.stale += 1;
            return Outcome::Ignored(ignored(user, timestamp, payload));
        }
        let handled = match track(user, timestamp, payload, stream_place, common) {
            Ok(handled) => handled,
            Err(stated) => {
                self.apply_statement(stated, env);
                return Outcome::Taken;
            }
        };
        match handled.effect {
            Effect::Stale => {
                common.counters.stale += 1;
                return Outcome::Ignored(ignored(user, timestamp, payload));
            }
            Effect::Refused(quota) => {
                return Outcome::Refused(exceeded(quota, user, &common.settings));
            }
            _ => {}
        }
        if let Payload::Heartbeat { conn, metadata } = payload
            && let Some(heard) = &mut common.heartbeats
        {
            let connection = (user, conn);
            // The timestamp as it counts here: standbys take the message later, when their clocks
            // say more.
            let taken = timestamp.min(common.clock.stamp());
            let metadata = metadata.map(CheckedMetadata::text);
            let is_status = metadata.is_some() && common.settings.status.is_some();
            heard.heartbeat(connection, taken, metadata, (handled.effect, is_status));
        }
        let mut refused = None;
        if let Payload::Connect { conn, metadata } | Payload::Heartbeat { conn, metadata } = payload
        {
            let updates = &mut self.events.updates;
            refused = updates.apply_status(user, conn, timestamp, metadata, common);
        }
        if matches!(handled.effect, Effect::Opened | Effect::Adopted) {
            self.end_stated_online(user, common);
            self.end_placeholder(user, common);
        }
        let lifted = self.lift_stated_offline(user, sent, payload, common);
        if let Some(transition) = handled.transition {
            let came = matches!(transition, Transition::Online { .. });
            if came && handled.effect == Effect::Opened {
                self.note_arrival(user, common);
            }
            self.transition(transition, env);
            if came {
                self.note_lag(user, timestamp, env.common);
            }
        } else if lifted {
            self.announce_return(user, env);
        }
        self.events.update(env);
        refused.map_or(Outcome::Taken, Outcome::Refused)
    }

    /// A message of a stream has been overtaken by a later one of its connection, or comes again.
    fn apply_overtaken(
        &mut self,
        user: &str,
        timestamp: u64,
        payload: Payload<'_>,
        env: &mut Env<'_>,
    ) {
        if self.take_overtaken(user, timestamp, payload, env.common) {
            self.announce_return(user, env);
        }
        self.events.update(env);
    }

    /// A connect of a stream arrives after the end of its connection: takes what it says of its
    /// user. Returns whether that ends an application's offline.
    pub(super) fn take_overtaken(
        &mut self,
        user: &str,
        timestamp: u64,
        payload: Payload<'_>,
        common: &mut Common,
    ) -> bool {
        let Payload::Connect { conn, metadata } = payload else {
            return false;
        };
        if !common.tracker.take_first_overtaken(user, conn) {
            return false;
        }
        let updates = &mut self.events.updates;
        // If there is no room for the status, it is dropped.
        let _ = updates.apply_status(user, conn, timestamp, metadata, common);
        self.lift_stated_offline(user, (timestamp, 0), payload, common)
    }

    /// Whether a message with a newer timestamp, which says the opposite about the user, arrived
    /// earlier: the nodes of a fleet pass messages on side by side. `delayed_ms`: how late the
    /// message may be.
    pub(super) fn check_overtaken(
        &mut self,
        user: &str,
        (timestamp, delayed_ms): (u64, u64),
        payload: Payload<'_>,
        common: &Common,
    ) -> bool {
        if !self.statements.orders_by_clocks() {
            return false;
        }
        let is_offline = matches!(payload, Payload::Offline { .. });
        let time = MessageTime {
            timestamp,
            latest: common.clock.stamp().saturating_add(AHEAD_MS),
            at: common.now(),
            delayed_ms,
        };
        let tracker = &common.settings.tracker;
        let limits = ReorderLimits {
            within_ms: tracker.reorder_ms,
            kept_ms: tracker.timeout_ms,
        };
        let id = common.names.intern(user);
        let is_overtaken = self
            .statements
            .check_overtaken(id, is_offline, time, limits);
        is_overtaken.unwrap_or_else(|| {
            delayed_ms > 0 && self.is_outdated((user, id), is_offline, time, common)
        })
    }

    /// Whether a message that comes late is older than the user's statement, or, if it is an
    /// offline, older than the user's newest connect. For when it isn't remembered what was said
    /// meanwhile: because it was too long ago, or because this replica was made from a snapshot.
    fn is_outdated(
        &self,
        (user, id): (&str, Id),
        is_offline: bool,
        late: MessageTime,
        common: &Common,
    ) -> bool {
        let sent = late.timestamp.min(late.latest);
        let since = late.at.saturating_sub(late.delayed_ms);
        let contradicts = |(stated_at, statement)| match statement {
            Statement::Online { timestamp } => is_offline && timestamp > sent,
            Statement::Offline => !is_offline && common.clock.wall_at(stated_at) >= sent,
        };
        let opened = || common.tracker.last_opened(user);
        self.statements.since(since, id).is_some_and(contradicts)
            || (is_offline && opened().is_some_and(|opened| opened > sent))
    }

    /// Ends an application's offline, if the message is a connect that is newer. No viewer sees the
    /// user then, so the user is announced by the newest connection. Returns whether an offline has
    /// ended.
    pub(super) fn lift_stated_offline(
        &mut self,
        user: &str,
        sent: (u64, u64),
        payload: Payload<'_>,
        common: &mut Common,
    ) -> bool {
        let lifted = matches!(payload, Payload::Connect { .. })
            && !self.check_overtaken(user, sent, payload, common)
            && self.end_stated_offline(user, common);
        if lifted {
            common.tracker.show_newest_again(user);
        }
        lifted
    }

    /// Has the pending decision on an event made again at once. Returns whether the event is still
    /// its user's newest.
    pub(super) fn redrive(&mut self, event: &Redrive, common: &mut Common) -> bool {
        let decisions = &mut self.events.updates.decisions;
        let user = common.names.find(&event.user);
        let entry = user.and_then(|user| Some((user, decisions.ledger.get(user)?)));
        match entry {
            Some((user, entry)) if entry.current().timestamp == event.timestamp => {
                decisions.retries.redrive(user, common.clock.now());
                true
            }
            _ => {
                common.counters.stale += 1;
                false
            }
        }
    }

    /// Notes how long the message was on its way with which a user came online.
    fn note_lag(&mut self, user: &str, timestamp: u64, common: &Common) {
        let ledger = &mut self.events.updates.decisions.ledger;
        if let Some(user) = common.names.find(user)
            && let Some(entry) = ledger.get_mut(user)
        {
            entry.connect_delay_ms = common.clock.wall().saturating_sub(timestamp);
            // As a rule, the online has been noted already. But it may wait behind another event.
            ledger.mark_changed(user);
        }
    }
}

/// Whether a connection would live on or end wrongly without a message.
pub(super) fn is_needed(message: &Message, common: &Common) -> bool {
    let silent_ms = |conn| {
        let tracker = &common.tracker;
        tracker.silent_ms(common.now(), message.user(), conn)
    };
    match message.payload() {
        Payload::Disconnect { conn, .. } => silent_ms(conn).is_some(),
        Payload::Heartbeat { conn, .. } => {
            let part_ms = common.settings.tracker.timeout_ms / LEASE_PARTS;
            silent_ms(conn).is_some_and(|ms| ms >= part_ms)
        }
        _ => false,
    }
}

/// What the tracker makes of a message of a connection. `Err`: the event that an application
/// states.
pub(super) fn track(
    user: &str,
    timestamp: u64,
    payload: Payload<'_>,
    stream_place: Option<StreamPlace>,
    common: &mut Common,
) -> Result<InputResult<Metadata>, Event> {
    let now = common.now();
    let Settings { broadcast, .. } = &common.settings;
    let handled = match payload {
        Payload::Connect { conn, metadata } => {
            let keep = || connection_metadata(broadcast, conn, metadata);
            let tracker = &mut common.tracker;
            tracker.connect_at(now, (user, conn), timestamp, stream_place, keep)
        }
        Payload::Heartbeat { conn, metadata } => {
            let keep = || connection_metadata(broadcast, conn, metadata);
            common.tracker.heartbeat(now, user, conn, timestamp, keep)
        }
        Payload::Disconnect { conn, reason } => {
            let reason = common.reason(reason);
            let tracker = &mut common.tracker;
            tracker.disconnect(now, user, conn, timestamp, reason)
        }
        Payload::Online { metadata } => {
            let metadata = stated_metadata(metadata);
            let timestamp = timestamp.min(common.clock.stamp());
            return Err(common.event(user, timestamp, Change::Online, metadata));
        }
        Payload::Offline {
            last_seen,
            reason,
            metadata,
        } => {
            let reason = common.reason(reason);
            let metadata = stated_metadata(metadata);
            let timestamp = timestamp.min(common.clock.stamp());
            let last_seen = timestamp.min(last_seen);
            let change = Change::Offline { last_seen, reason };
            return Err(common.event(user, timestamp, change, metadata));
        }
    };
    if let (Some(place), Some(conn)) = (stream_place, connection_of(payload)) {
        common.tracker.note_stream_seq(user, conn, place);
    }
    Ok(handled)
}

/// The connection that a message is about.
fn connection_of(payload: Payload<'_>) -> Option<&str> {
    match payload {
        Payload::Connect { conn, .. }
        | Payload::Heartbeat { conn, .. }
        | Payload::Disconnect { conn, .. } => Some(conn),
        Payload::Online { .. } | Payload::Offline { .. } => None,
    }
}

impl Common {
    /// Whether a message of a stream, or a later one of its connection, was taken before.
    pub(super) fn check_stream_duplicate(
        &mut self,
        user: &str,
        payload: Payload<'_>,
        stream_place: Option<StreamPlace>,
    ) -> bool {
        match (stream_place, connection_of(payload)) {
            (Some(place), Some(conn)) => self.tracker.check_stream_duplicate(user, conn, place),
            _ => false,
        }
    }

    /// A reason as it is understood. Counts an unknown one.
    fn reason(&mut self, why: StatedReason) -> Reason {
        self.counters.unknown_reasons += u64::from(!why.known);
        why.reason
    }
}

fn exceeded(quota: Quota, user: &str, settings: &Settings) -> Rejection {
    let of_user = settings.tracker.connections_per_user_max;
    let of_shard = match settings.limits_per_shard {
        true => " in one shard of the fleet",
        false => "",
    };
    let error = match quota {
        Quota::Users => format!(
            "the limit of {} users online{of_shard} is reached ([limits] users_max): this \
             connection of `{user}` is refused",
            settings.users.max()
        ),
        Quota::Connections => format!(
            "the limit of {} live connections{of_shard} is reached ([limits] connections_max): \
             this connection of `{user}` is refused",
            settings.connections.max()
        ),
        Quota::Closes => format!(
            "this connection of the user `{user}` is unknown, and its close can't be stored: the \
             limit is {of_user} closes of one user ([tracker] connections_per_user_max), and \
             [tracker] closes_max of all users"
        ),
        _ => format!(
            "the user `{user}` has {of_user} live connections, which is the limit \
             ([tracker] connections_per_user_max): this connection is refused"
        ),
    };
    Rejection::over(quota, error)
}

/// The metadata of an application's statement. All of it may be broadcast.
fn stated_metadata(given: Option<CheckedMetadata<'_>>) -> Metadata {
    given.map_or_else(Metadata::default, |given| given.metadata(|_| true))
}

/// A connection's metadata: first the keys that are broadcast, in the configured order, then the
/// rest, which is for the plugins alone.
pub(super) fn connection_metadata(
    broadcast: &[String],
    conn: &str,
    given: Option<CheckedMetadata<'_>>,
) -> Metadata {
    let given_entries = given.map(CheckedMetadata::entries).unwrap_or_default();
    let entries = given_entries.iter();
    let entries = entries.map(|(key, value)| (Cow::Borrowed(&**key), *value));
    let get = |key: &str| {
        entries
            .clone()
            .find(|(it, _)| it == key)
            .map(|(_, value)| value)
    };
    let bytes = given.map_or(0, |given| given.text().len());
    let room = (given_entries.len(), bytes);
    publish_keys(broadcast, conn, (get, entries.clone()), room)
}

/// The same metadata, if other keys are broadcast than before. `None` if they are the same.
pub(super) fn with_other_keys(
    broadcast: &[String],
    conn: &str,
    given: &Metadata,
) -> Option<Metadata> {
    let is_public = |key: &str| broadcast.iter().any(|it| it == key);
    let is_same = given
        .entries()
        .all(|entry| entry.public == is_public(entry.key));
    let lacks_conn = !conn.is_empty() && is_public("connId") && given.get("connId").is_none();
    let entries = given.entries();
    let entries = entries.map(|entry| (Cow::Borrowed(entry.key), entry.value));
    let get = |key: &str| given.get(key);
    let room = (given.len(), given.bytes());
    (!is_same || lacks_conn).then(|| publish_keys(broadcast, conn, (get, entries), room))
}

/// `get`: returns the value of a key. `entries`: all keys and values. `room`: how many there are, and
/// about how many bytes.
fn publish_keys<'a>(
    broadcast: &[String],
    conn: &str,
    (get, entries): (
        impl Fn(&str) -> Option<&'a str>,
        impl Iterator<Item = (Cow<'a, str>, &'a str)>,
    ),
    room: (usize, usize),
) -> Metadata {
    // A placeholder has no id, and keeps the `connId` of its metadata.
    let conn = (!conn.is_empty()).then(|| json::quoted(conn));
    let conn_bytes = conn
        .as_ref()
        .map_or(0, |conn| conn.len() + "\"connId\":".len());
    let mut metadata = Builder::with_capacity(room.0 + 1, room.1 + conn_bytes);
    for key in broadcast {
        let conn = conn.as_deref().filter(|_| key == "connId");
        if let Some(value) = conn.or_else(|| get(key)) {
            metadata.set(key, value, true);
        }
    }
    for (key, value) in entries {
        if !broadcast.iter().any(|one| *one == key) {
            metadata.append(&key, value, false);
        }
    }
    metadata.build()
}

/// A message that was ignored.
fn ignored(user: &str, timestamp: u64, payload: Payload<'_>) -> Ignored {
    let kind = payload.kind();
    let (conn, why) = match payload {
        Payload::Connect { conn, .. } => (
            conn,
            "the connection has just been closed, and this was sent before that, by its timestamp",
        ),
        Payload::Heartbeat { conn, .. } => (
            conn,
            "the connection is closed, and the timestamp is not newer than the last one known of it",
        ),
        Payload::Disconnect { conn, .. } => (
            conn,
            "the timestamp is older than that of the connection's newest connect or disconnect",
        ),
        Payload::Online { .. } | Payload::Offline { .. } => (
            "",
            "the opposite has just been said of the user, and this was sent before that, by its timestamp",
        ),
    };
    Ignored {
        kind,
        user: user.into(),
        conn: conn.into(),
        timestamp,
        why,
    }
}
