//! What is known of one user: never more than a few words, however many
//! connections there are.

use std::sync::Arc;

use super::activity::Activities;
use super::connection::{NOT_QUEUED, SaveState};
use super::damping::Flips;
use super::places::ListEnds;
use super::types::Reason;

#[derive(Debug)]
pub(super) struct User {
    pub(super) name: Arc<str>,
    /// How many live connections there are.
    pub(super) live: u32,
    /// How many connections are known, live or closed.
    pub(super) known: u32,
    /// What the live connections say that the user is doing.
    pub(super) activities: Activities,
    /// The live connections, in their order.
    pub(super) list: ListEnds,
    /// The newest timestamp in any message of the user's.
    pub(super) last_seen: u64,
    /// The last connection was closed, and its grace runs.
    pub(super) pending: Option<Box<PendingOffline>>,
    /// At which moment the timer queue holds the `Task::EndGrace` that counts for the user;
    /// [`NOT_QUEUED`] if there is none.
    pub(super) grace_entry: u64,
    pub(super) saving: SaveState,
    /// How often the user has gone offline lately.
    pub(super) flips: Option<Box<Flips>>,
}

#[derive(Debug)]
pub(super) struct PendingOffline {
    /// From which moment of the receive clock the grace runs.
    pub(super) since: u64,
    /// That of the user's newest disconnect.
    pub(super) reason: Reason,
    /// For how long it is held back at least, in milliseconds, since the user flips.
    pub(super) held_ms: u64,
}

impl User {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            live: 0,
            known: 0,
            activities: Activities::default(),
            list: ListEnds::default(),
            last_seen: 0,
            pending: None,
            grace_entry: NOT_QUEUED,
            saving: SaveState::default(),
            flips: None,
        }
    }

    pub(super) fn see(&mut self, timestamp: u64) {
        self.last_seen = self.last_seen.max(timestamp);
    }

    pub(super) fn is_online(&self) -> bool {
        self.live > 0 || self.pending.is_some()
    }

    /// How many of the connections that are known are not live.
    pub(super) fn closed(&self) -> usize {
        (self.known - self.live) as usize
    }

    /// Whether nothing of the user is left to know.
    pub(super) fn is_spent(&self) -> bool {
        self.known == 0 && self.pending.is_none()
    }
}
