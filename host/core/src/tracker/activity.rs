//! What users are doing, as their connections report it.
//!
//! Of all activities that a user's live connections report, the one of the highest rank counts.
//! Connections are counted by activity, so the cost is the same however many there are.

use serde::{Deserialize, Serialize};

/// What a user is doing, in ascending rank.
// Records store the index of a variant: a new variant comes last, and is ranked elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Activity {
    /// Nothing, for a while.
    Idle,
    /// Something.
    Active,
    /// Typing.
    Typing,
}

impl Activity {
    /// All activities, in the order of their indexes.
    pub const ALL: [Self; 3] = [Self::Idle, Self::Active, Self::Typing];
}

/// How many of a user's live connections report each [`Activity`].
pub(super) type Activities = [u32; Activity::ALL.len()];
