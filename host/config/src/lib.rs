//! Reads and checks what operators write: the configuration, the entries of a directory, the names
//! of subjects. It is plain data, without types of NATS or wasmtime.
//!
//! It also has what all readers of such text need: reading files safely ([`regular_file`]), and
//! escaping text for a log or a terminal ([`escape`]).

// `print!` panics once nobody reads its output, as with `
// head`.
#![warn(clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::disallowed_methods,
        reason = "a test may panic"
    )
)]

pub mod abort_on;
pub mod capture;
pub mod causes;
mod configuration;
pub mod digest;
pub mod directory;
pub mod escape;
#[cfg(fuzzing)]
pub mod fuzz;
pub mod log_filter;
mod public_key;
mod quotas;
pub mod regular_file;
pub mod reply_prefix;
pub mod revision;
mod shard;
pub mod subjects;

pub use configuration::*;
pub use public_key::{InvalidKey, PublicKey};
pub use quotas::Quotas;
pub use shard::{BODY_BYTES_MAX, HEADER_BYTES_MAX, pulse_ms, shard_settings};
