//! What the tracker and applications say of a user, as rules see it.

use crate::metadata::{Metadata, MetadataChange};
use crate::names::{Id, Name};
pub use crate::tracker::Reason;

/// What happened to a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The user came online.
    Online,
    /// The metadata of an online user has changed. It is published without calling the rules
    /// for it: they are called for the online event, with its current metadata.
    Updated,
    /// The user went offline.
    Offline {
        /// When the user was last seen, in milliseconds since the Unix epoch.
        last_seen: u64,
        /// Why.
        reason: Reason,
    },
}

/// A user's coming online or going offline, or what changes in between.
#[derive(Clone, Debug)]
pub struct Event {
    /// The user's number.
    pub user: Id,
    /// The user's id.
    pub name: Name,
    /// When it happened, in milliseconds since the Unix epoch.
    pub timestamp: u64,
    /// What happened.
    pub change: Change,
    /// What is known beside it.
    pub metadata: Metadata,
}

impl Event {
    /// The event with an enricher's changes. What it sets may be broadcast.
    #[must_use]
    pub fn changed(&self, changes: &[MetadataChange]) -> Self {
        let mut metadata = self.metadata.edit();
        for (key, value) in changes {
            match value {
                Some(value) => metadata.set(key, value, true),
                None => metadata.remove(key),
            }
        }
        Self {
            metadata: metadata.build(),
            ..self.clone()
        }
    }
}

impl Reason {
    /// The reason as bodies spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disconnect => "disconnect",
            Self::Timeout => "timeout",
            Self::Logout => "logout",
        }
    }
}
