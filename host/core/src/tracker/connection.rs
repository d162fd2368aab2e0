//! What is known of one connection.

use super::activity::Activity;
use super::places::Place;
use super::silence::StartsWithoutMessage;
use super::slab::Key;

#[derive(Debug)]
pub(super) struct Connection<M> {
    pub(super) id: Box<str>,
    pub(super) user: Key,
    /// The hash of (user, connection), for when the table grows.
    pub(super) hash: u32,
    pub(super) state: State<M>,
    /// At which moment the timer queue holds the `Task::Lease` that counts for it;
    /// [`NOT_QUEUED`] if there is none.
    pub(super) lease_entry: u64,
    /// Whether the timer queue holds a `Task::Forget` for it.
    pub(super) forgetting_queued: bool,
    pub(super) saving: SaveState,
}

/// No entry of the timer queue: later than any.
pub(super) const NOT_QUEUED: u64 = u64::MAX;

/// Whether a connection or user is stored, see `record`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SaveState {
    /// A record of it was handed out.
    pub(super) saved: bool,
    /// It is among the changed.
    pub(super) changed: bool,
}

impl<M> Connection<M> {
    /// The newest timestamp in any of its messages that is known.
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
    pub(super) heard_at: u64,
    /// From which moment of the receive clock its lease counts: what liveness is
    /// judged by.
    pub(super) lease_from: u64,
    /// The timestamp of its newest connect, whose metadata it has. A disconnect
    /// from before belongs to an earlier life of the same connection.
    pub(super) opened: u64,
    /// The newest timestamp in any of its messages.
    pub(super) newest: u64,
    /// Whether the store knows it.
    pub(super) is_newest_saved: bool,
    pub(super) metadata: M,
    /// What it says that its user is doing.
    pub(super) activity: Option<Activity>,
    /// The number of its last message that was taken from a stream: see `stored`. 0 for none.
    pub(super) stored: u32,
    /// Where it stands among its user's live connections.
    pub(super) place: Place,
    /// What there is to know of few connections.
    rare: Option<Box<Rare>>,
}

#[derive(Debug, Default)]
struct Rare {
    /// When it last said that its user is typing, by the host's clock.
    typing_at: u64,
    /// Over which starts of the host it has been silent.
    silence: Option<StartsWithoutMessage>,
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
            heard_at: heard.at,
            lease_from: heard.lease_from,
            opened,
            newest: timestamp,
            is_newest_saved: false,
            metadata,
            activity: None,
            stored: 0,
            rare: None,
            place: Place::new(order),
        }
    }

    /// Says whether it is the first that is heard of it since the host started again.
    pub(super) fn renew(&mut self, heard: ReceivedAt, timestamp: u64) -> bool {
        self.heard_at = heard.at;
        self.lease_from = heard.lease_from;
        if timestamp > self.newest {
            self.newest = timestamp;
            self.is_newest_saved = false;
        }
        self.take_silence().is_some()
    }

    /// What it has said of itself, as far as replicas compare it; 0 of one that was opened and has said
    /// nothing more. "Typing" ends by itself.
    pub(super) fn said(&self) -> u8 {
        let activity = match self.activity {
            None => 0,
            Some(Activity::Idle) => 1,
            Some(Activity::Active | Activity::Typing) => 2,
        };
        activity + 4 * u8::from(self.place.order < 0)
    }

    /// Over which starts of the host it has been silent.
    pub(super) fn silence(&self) -> Option<StartsWithoutMessage> {
        self.rare.as_ref()?.silence
    }

    pub(super) fn take_silence(&mut self) -> Option<StartsWithoutMessage> {
        self.rare.as_mut()?.silence.take()
    }

    pub(super) fn set_silence(&mut self, silence: Option<StartsWithoutMessage>) {
        if silence.is_some() || self.rare.is_some() {
            self.rare.get_or_insert_default().silence = silence;
        }
    }

    /// When it last said that its user is typing, by the host's clock.
    pub(super) fn typing_at(&self) -> u64 {
        self.rare.as_ref().map_or(0, |rare| rare.typing_at)
    }

    pub(super) fn set_typing_at(&mut self, at: u64) {
        self.rare.get_or_insert_default().typing_at = at;
    }
}

/// A moment at which a connection is heard from.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReceivedAt {
    /// By the host's clock.
    pub(super) at: u64,
    /// By the receive clock.
    pub(super) lease_from: u64,
}

#[derive(Debug)]
pub(super) struct Close {
    /// Its timestamp. What is older, and arrives soon after it, is late.
    pub(super) timestamp: u64,
    /// The newest timestamp in any of its messages, this close among them.
    pub(super) newest: u64,
    /// When the close was handled, by the host's clock.
    pub(super) kept_since: u64,
    /// Whether nobody closed it: it fell silent.
    pub(super) is_silent: bool,
    /// Whether nothing was heard of it before: its connect may come late.
    pub(super) is_first: bool,
    /// The newest timestamp of what has been taken since for older than the close: where
    /// something newer comes, it is the sender's clock that is behind.
    pub(super) ignored: Option<u64>,
    /// As of a live connection.
    pub(super) stored: u32,
}

/// How messages of a connection are ordered about its close.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    /// As [`super::TrackerSettings::reorder_ms`].
    pub(super) reorder_ms: u64,
    /// As [`super::TrackerSettings::ties_close`].
    pub(super) ties_close: bool,
}

impl Close {
    /// Whether a message was sent before the close and has been overtaken by it. Past
    /// `reorder_ms` the sender's clock is behind instead.
    pub(super) fn has_overtaken(&self, at: u64, timestamp: u64, order: Order) -> bool {
        let is_before = match order.ties_close {
            true => timestamp <= self.timestamp,
            false => timestamp < self.timestamp,
        };
        is_before && self.is_recent(at, order.reorder_ms)
    }

    /// Whether a heartbeat is of a life after this one.
    pub(super) fn is_followed_by(&mut self, at: u64, timestamp: u64, order: Order) -> bool {
        let is_recent = self.is_recent(at, order.reorder_ms);
        let is_tie = timestamp == self.newest && !order.ties_close;
        if timestamp > self.newest || (is_recent && is_tie) {
            return true;
        }
        let goes_on = self.ignored.is_some_and(|ignored| timestamp > ignored);
        self.ignored = self.ignored.max(Some(timestamp));
        goes_on && !is_recent
    }

    /// Whether it was handled at most so long ago.
    pub(super) fn is_recent(&self, at: u64, within_ms: u64) -> bool {
        at.saturating_sub(self.kept_since) <= within_ms
    }
}
