//! What is kept over a restart, piece by piece.
//!
//! `codec` says as which bytes.

mod codec;

use roaring::RoaringBitmap;

use crate::departed::Departure;
use crate::ledger::LedgerEntry;
use crate::metadata::Metadata;
use crate::names::Name;
use crate::statements::Statement;
use crate::status::OwnStatus;
use crate::step::Step;
use crate::tracker;

/// Which format this is.
pub const FORMAT: u32 = 4;

/// A piece of what a shard knows.
#[derive(Clone, Debug)]
pub enum Record {
    /// Of its tracker.
    Tracker(tracker::TrackerRecord<Metadata>),
    /// Of its ledger; none if the user is offline.
    Ledger {
        /// The user.
        user: Name,
        /// What is known and was said of them.
        entry: Option<LedgerEntry>,
    },
    /// Of its departures; none if it isn't remembered any more.
    Departed {
        /// The user.
        user: Name,
        /// The user's last one.
        departure: Option<Departure>,
    },
    /// Of its statuses.
    Status {
        /// The user.
        user: Name,
        /// The user's own status, if it is known.
        word: Option<OwnStatus>,
    },
    /// Of its events that wait; none if none of the user's does any more.
    Waiting {
        /// The user.
        user: Name,
        /// What is next for each, in their order.
        steps: Vec<Step>,
    },
    /// What an application stated of a user, and holds; none if nothing does.
    Stated {
        /// The user.
        user: Name,
        /// What, and when it was said, by the clock of `now`.
        statement: Option<(u64, Statement)>,
    },
}

/// A record as it is stored: its key, and its value unless it is to be removed.
pub type Stored = (Vec<u8>, Option<Vec<u8>>);

impl Record {
    /// The id of the user it is about.
    pub fn user(&self) -> &str {
        match self {
            Self::Tracker(
                tracker::TrackerRecord::Connection { user, .. }
                | tracker::TrackerRecord::ReceivedAt { user, .. }
                | tracker::TrackerRecord::User { user, .. },
            ) => user,
            Self::Ledger { user, .. }
            | Self::Departed { user, .. }
            | Self::Status { user, .. }
            | Self::Waiting { user, .. }
            | Self::Stated { user, .. } => user.as_str(),
        }
    }

    /// Moves the times that it has by the host's clock, for a host whose clock is ahead by so
    /// much; behind, if negative. Senders' times stay.
    pub fn shift(&mut self, ahead_ms: i64) {
        let at = match self {
            Self::Tracker(tracker::TrackerRecord::Connection {
                state: Some(tracker::Connected::Closed { kept_since, .. }),
                ..
            }) => kept_since,
            Self::Tracker(tracker::TrackerRecord::User {
                state:
                    Some(tracker::UserState {
                        pending: Some((since, _)),
                        ..
                    }),
                ..
            }) => since,
            Self::Stated {
                statement: Some((said_at, _)),
                ..
            } => said_at,
            _ => return,
        };
        *at = at.saturating_add_signed(ahead_ms);
    }

    /// All the numbers of ids it holds.
    pub fn ids(&self) -> RoaringBitmap {
        match self {
            Self::Ledger {
                entry: Some(entry), ..
            } => {
                let mut ids = entry.recipients.audience().bitmap();
                ids.insert(entry.event.user.0);
                ids
            }
            Self::Departed {
                departure: Some(departure),
                ..
            } => departure.ids(),
            Self::Waiting { steps, .. } => {
                let ids = steps.iter().map(Step::ids);
                ids.fold(RoaringBitmap::new(), |all, ids| all | ids)
            }
            Self::Ledger { entry: None, .. }
            | Self::Departed {
                departure: None, ..
            }
            | Self::Tracker(_)
            | Self::Status { .. }
            | Self::Stated { .. } => RoaringBitmap::new(),
        }
    }
}
