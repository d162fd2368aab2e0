//! From plugin files to a pipeline that may run: which file of a plugin counts
//! ([`loader`]), who signed it ([`signature`]), what ran before ([`in_force`]), what is kept of the
//! plugin store ([`store_cache`]), and where compiled code is kept ([`private`]).

// `print!` panics when the reader of the output has gone, as with `| head`.
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

pub mod in_force;
pub mod keys;
pub mod limits;
pub mod loader;
pub mod private;
pub mod signature;
pub mod store_cache;
