//! What is known of one user. It takes the same memory, however many connections there are.

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
    /// How many live connections report each activity.
    pub(super) activities: Activities,
    /// The two ends of the list of live connections.
    pub(super) list: ListEnds,
    /// The newest timestamp in any of the user's messages.
    pub(super) last_seen: u64,
    /// The offline that waits for the end of a grace, after the last connection was closed.
    pub(super) pending: Option<Box<PendingOffline>>,
    /// The deadline of the `Task::EndGrace` in the timer queue that counts for the user;
    /// [`NOT_QUEUED`] if there is none.
    pub(super) grace_entry: u64,
    pub(super) saving: SaveState,
    /// How often the user has gone offline lately.
    pub(super) flips: Option<Box<Flips>>,
}

#[derive(Debug)]
pub(super) struct PendingOffline {
    /// The moment of the receive clock from which the grace counts.
    pub(super) since: u64,
    /// The reason of the user's newest disconnect.
    pub(super) reason: Reason,
    /// For how long damping holds the offline back, in milliseconds; 0 if it doesn't.
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

    /// How many of the known connections are not live.
    pub(super) fn closed(&self) -> usize {
        (self.known - self.live) as usize
    }

    /// Whether nothing is known of the user any more: no connection, close or grace.
    pub(super) fn is_spent(&self) -> bool {
        self.known == 0 && self.pending.is_none()
    }
}
