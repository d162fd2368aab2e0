//! What users are doing, as far as their connections say.
//!
//! Of all that a user's live connections say, the foremost holds. They are counted
//! by what they say, so that this costs the same however many there are.

use serde::{Deserialize, Serialize};

/// What a user is doing, the foremost last.
// Records hold it by its place: what is added comes last, and is ranked elsewhere.
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
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Idle, Self::Active, Self::Typing];
}

/// How many of a user's live connections say so, by [`Activity`].
pub(super) type Activities = [u32; Activity::ALL.len()];
