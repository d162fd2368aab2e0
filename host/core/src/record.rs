//! Records: what a shard knows, in pieces that survive a restart.
//!
//! The module `codec` defines their encoding.

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

/// The version of the format.
pub const FORMAT: u32 = 4;

/// A piece of a shard's state.
#[derive(Clone, Debug)]
pub enum Record {
    /// A record of the tracker.
    Tracker(tracker::TrackerRecord<Metadata>),
    /// The ledger entry of a user. `None`: the user is offline.
    Ledger {
        /// The user.
        user: Name,
        /// What is known of the user, and what viewers were told.
        entry: Option<LedgerEntry>,
    },
    /// A user's last departure. `None`: it is no longer remembered.
    Departed {
        /// The user.
        user: Name,
        /// The departure.
        departure: Option<Departure>,
    },
    /// A user's own status.
    Status {
        /// The user.
        user: Name,
        /// The status. `None`: it is no longer kept.
        own_status: Option<OwnStatus>,
    },
    /// A user's events that wait in the queue. Empty if none waits.
    Waiting {
        /// The user.
        user: Name,
        /// The next step of each event, in order.
        steps: Vec<Step>,
    },
    /// An application's statement about a user. `None`: no statement is in force.
    Stated {
        /// The user.
        user: Name,
        /// When the statement was made, by the clock of `now`, and what it says.
        statement: Option<(u64, Statement)>,
    },
}

/// A stored record: the key, and the value. `None` as the value: the record is removed.
pub type Stored = (Vec<u8>, Option<Vec<u8>>);

impl Record {
    /// The id of the record's user.
    pub fn user(&self) -> &str {
        match self {
            Self::Tracker(
                tracker::TrackerRecord::Connection { user, .. }
                | tracker::TrackerRecord::NewestTimestamp { user, .. }
                | tracker::TrackerRecord::User { user, .. },
            ) => user,
            Self::Ledger { user, .. }
            | Self::Departed { user, .. }
            | Self::Status { user, .. }
            | Self::Waiting { user, .. }
            | Self::Stated { user, .. } => user.as_str(),
        }
    }

    /// Shifts the record's host times, for a host whose clock is ahead by `ahead_ms`; behind, if
    /// negative. Senders' timestamps stay.
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
                statement: Some((stated_at, _)),
                ..
            } => stated_at,
            _ => return,
        };
        *at = at.saturating_add_signed(ahead_ms);
    }

    /// All ids in the record, as numbers.
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
