//! What is known of one connection.

use super::activity::Activity;
use super::places::Place;
use super::silent_starts::SilentStarts;
use super::slab::Key;

#[derive(Debug)]
pub(super) struct Connection<M> {
    pub(super) id: Box<str>,
    pub(super) user: Key,
    /// The hash of (user, connection), which is needed when the table grows.
    pub(super) hash: u32,
    pub(super) state: State<M>,
    /// The deadline of the `Task::Lease` in the timer queue that counts for this connection;
    /// [`NOT_QUEUED`] if there is none.
    pub(super) lease_entry: u64,
    /// Whether the timer queue holds a `Task::Forget` for it.
    pub(super) forgetting_queued: bool,
    pub(super) saving: SaveState,
}

/// No entry in the timer queue: it is later than any deadline.
pub(super) const NOT_QUEUED: u64 = u64::MAX;

/// Whether a connection or user has been stored, see `record`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SaveState {
    /// A record of it was handed out.
    pub(super) saved: bool,
    /// It is in the list of changes, see `UnsavedChanges`.
    pub(super) changed: bool,
}

impl<M> Connection<M> {
    /// The newest timestamp that is known of its messages.
    pub(super) fn newest(&self) -> u64 {
        match &self.state {
            State::Unknown => 0,
            State::Live(life) => life.newest,
            State::Closed(close) => close.newest,
        }
    }
}

#[derive(Debug)]
pub(super) enum State<M> {
    /// Never heard of, or forgotten: lasts only until its first input is
    /// handled.
    Unknown,
    Live(LiveConnection<M>),
    Closed(Close),
}

#[derive(Debug)]
pub(super) struct LiveConnection<M> {
    /// When it was last heard from, by the host's clock.
    pub(super) received_at: u64,
    /// The moment of the receive clock from which its lease counts. Liveness depends on it alone.
    pub(super) lease_from: u64,
    /// The timestamp of its newest connect, from which it has its metadata. An older disconnect
    /// belongs to an earlier life of the same connection.
    pub(super) opened: u64,
    /// The newest timestamp in any of its messages.
    pub(super) newest: u64,
    /// Whether a record of `newest` was handed out.
    pub(super) is_newest_saved: bool,
    pub(super) metadata: M,
    /// The activity that it reported last. `None`: it has reported none.
    pub(super) activity: Option<Activity>,
    /// The number, in the stream, of its last message, see `stream_order`. 0: none.
    pub(super) stream_seq: u32,
    /// Its place in the list of its user's live connections.
    pub(super) place: Place,
    /// State that few connections have.
    cold: Option<Box<ColdState>>,
}

#[derive(Debug, Default)]
struct ColdState {
    /// When it last reported typing, by the host's clock.
    typing_at: u64,
    /// The starts of the host since its last message. `None`: it has sent one in this run.
    silence: Option<SilentStarts>,
}

impl<M> LiveConnection<M> {
    pub(super) fn new(
        heard: ReceivedAt,
        opened: u64,
        timestamp: u64,
        metadata: M,
        order: i64,
    ) -> Self {
        Self {
            received_at: heard.at,
            lease_from: heard.lease_from,
            opened,
            newest: timestamp,
            is_newest_saved: false,
            metadata,
            activity: None,
            stream_seq: 0,
            cold: None,
            place: Place::new(order),
        }
    }

    /// Notes that it was heard from. Returns whether this is its first message since a start of the
    /// host.
    pub(super) fn renew(&mut self, heard: ReceivedAt, timestamp: u64) -> bool {
        self.received_at = heard.at;
        self.lease_from = heard.lease_from;
        if timestamp > self.newest {
            self.newest = timestamp;
            self.is_newest_saved = false;
        }
        self.take_silence().is_some()
    }

    /// What replicas compare of it, as a number: its activity, and whether it was adopted. 0 if it
    /// was opened by a connect, and has reported no activity. Typing counts as active, since it
    /// ends by itself.
    pub(super) fn digest_state(&self) -> u8 {
        let activity = match self.activity {
            None => 0,
            Some(Activity::Idle) => 1,
            Some(Activity::Active | Activity::Typing) => 2,
        };
        activity + 4 * u8::from(self.place.order < 0)
    }

    /// The starts of the host since its last message. `None`: it has sent one in this run.
    pub(super) fn silence(&self) -> Option<SilentStarts> {
        self.cold.as_ref()?.silence
    }

    pub(super) fn take_silence(&mut self) -> Option<SilentStarts> {
        self.cold.as_mut()?.silence.take()
    }

    pub(super) fn set_silence(&mut self, silence: Option<SilentStarts>) {
        if silence.is_some() || self.cold.is_some() {
            self.cold.get_or_insert_default().silence = silence;
        }
    }

    /// When it last reported typing, by the host's clock; 0 if never.
    pub(super) fn typing_at(&self) -> u64 {
        self.cold.as_ref().map_or(0, |cold| cold.typing_at)
    }

    pub(super) fn set_typing_at(&mut self, at: u64) {
        self.cold.get_or_insert_default().typing_at = at;
    }
}

/// When a message of a connection arrived.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReceivedAt {
    /// By the host's clock.
    pub(super) at: u64,
    /// By the receive clock.
    pub(super) lease_from: u64,
}

#[derive(Debug)]
pub(super) struct Close {
    /// The timestamp of the close. An older message that arrives soon after the close is stale.
    pub(super) timestamp: u64,
    /// The newest timestamp in any message of the connection, including this close.
    pub(super) newest: u64,
    /// When the close was handled, by the host's clock.
    pub(super) kept_since: u64,
    /// Whether the connection timed out, so that nobody closed it.
    pub(super) is_silent: bool,
    /// Whether the connection was unknown before: its connect may still arrive.
    pub(super) is_first: bool,
    /// The newest timestamp of the messages that were ignored since the close, as older than it. If
    /// a message comes that is newer than this, the sender's clock is behind.
    pub(super) ignored: Option<u64>,
    /// As `LiveConnection::stream_seq`.
    pub(super) stream_seq: u32,
}

/// How messages of a connection are ordered around its close.
#[derive(Clone, Copy, Debug)]
pub(super) struct CloseOrder {
    /// As [`super::TrackerSettings::reorder_ms`].
    pub(super) reorder_ms: u64,
    /// As [`super::TrackerSettings::ties_close`].
    pub(super) ties_close: bool,
}

impl Close {
    /// Whether a message was sent before the close, and arrives after it. After `reorder_ms`, an
    /// older timestamp means that the sender's clock is behind.
    pub(super) fn has_overtaken(&self, at: u64, timestamp: u64, order: CloseOrder) -> bool {
        let is_before = match order.ties_close {
            true => timestamp <= self.timestamp,
            false => timestamp < self.timestamp,
        };
        is_before && self.is_recent(at, order.reorder_ms)
    }

    /// Whether a heartbeat belongs to a new life of the connection, after this close.
    pub(super) fn accept_heartbeat(&mut self, at: u64, timestamp: u64, order: CloseOrder) -> bool {
        let is_recent = self.is_recent(at, order.reorder_ms);
        let is_tie = timestamp == self.newest && !order.ties_close;
        if timestamp > self.newest || (is_recent && is_tie) {
            return true;
        }
        let goes_on = self.ignored.is_some_and(|ignored| timestamp > ignored);
        self.ignored = self.ignored.max(Some(timestamp));
        goes_on && !is_recent
    }

    /// Whether the close was handled at most `within_ms` ago.
    pub(super) fn is_recent(&self, at: u64, within_ms: u64) -> bool {
        at.saturating_sub(self.kept_since) <= within_ms
    }
}
