//! The sandbox: runs WebAssembly components that decide who may see whom, and lets them do nothing
//! else.
//!
//! A [`Plugin`] is a compiled file. A [`Blueprint`] is a chain of them that has
//! been checked: manifest, grants, configuration, self-tests. A [`Pipeline`] is
//! one thread's instances of it, each in a store of its own with a limit on
//! fuel, memory and time.

mod api;
mod artefacts;
mod blueprint;
mod bounds;
mod breaker;
mod call;
mod capability;
mod engine;
mod error;
mod failure;
mod hand_over;
mod health;
mod instance;
mod latency;
mod limits;
mod lines;
pub mod manifest;
mod memory;
mod native;
mod pause;
mod pipeline;
mod plugin;
mod recorder;
pub mod self_test;
mod slot;
mod stage;
mod test_instance;
mod trace;
mod wasi;
mod zones;

pub use blueprint::Blueprint;
pub use breaker::{LastFailure, Quarantine};
pub use call::StageCall;
pub use capability::{Capabilities, Capability};
pub use engine::Engine;
pub use error::LoadError;
pub use health::PluginHealth;
pub use instance::CallCost;
pub use latency::{Began, Histogram, Latency};
pub use limits::Limits;
pub use manifest::{Manifest, OnFailure};
pub use memory::MemoryBudget;
pub use pause::{Pauser, set_pause_work};
pub use pipeline::{BorrowedPipeline, Pipeline, StatefulEnrichers};
pub use plugin::{Plugin, sha256};
pub use recorder::{LineKind, LineRecorder, PluginLine};
pub use stage::Stage;
pub use test_instance::{Answer, TestInstance};
pub use wasi::denied;
