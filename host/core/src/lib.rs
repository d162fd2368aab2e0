//! The core of the presence processor. It derives presence from what connections and applications
//! say about users, and what each viewer is told from presence.
//!
//! Nothing here does I/O, reads a clock or draws random numbers. A [`Shard`] is a state machine: it
//! gets the time and an input, and returns outputs. The same code runs against a broker, over a
//! recording, and in tests.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        reason = "a test may panic"
    )
)]

pub mod audience;
pub mod body;
mod changed;
pub mod clock;
pub mod comparison;
pub mod dead_letter_limit;
pub mod departed;
pub mod digest;
pub mod directory;
pub mod event;
pub mod fleet;
pub mod inbox;
pub mod json;
pub mod ledger;
pub mod message;
pub mod metadata;
pub mod names;
mod pending_fetches;
pub mod publish;
pub mod query;
pub mod quota;
pub mod read_point;
pub mod recipients;
pub mod record;
mod reverse_deps;
pub mod rules;
mod shard;
pub mod share;
pub mod statements;
pub mod status;
mod step;
pub mod token;
pub mod tracker;
pub mod verdicts;

pub use shard::{
    Counters, HeartbeatBatch, Ignored, Input, Output, PluginFailed, Settings, Shard, ShardCursor,
    UnreadableHeartbeats,
};
pub use step::Step;
