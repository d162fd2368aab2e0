//! Events: what the tracker and applications say about a user, as rules see it.

use crate::metadata::{Metadata, MetadataChange};
use crate::names::{Id, Name};
pub use crate::tracker::Reason;

/// What happened to a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The user came online.
    Online,
    /// The metadata of an online user has changed. The rules are not called for this event: their
    /// decision on the online event, with its current metadata, applies.
    Updated,
    /// The user went offline.
    Offline {
        /// When the user was last seen, in milliseconds since the Unix epoch.
        last_seen: u64,
        /// Why.
        reason: Reason,
    },
}

/// A user came online, went offline, or changed in between.
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
    /// The metadata of the event.
    pub metadata: Metadata,
}

impl Event {
    /// The event with an enricher's changes of the metadata. Values that an enricher sets may be
    /// broadcast.
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
