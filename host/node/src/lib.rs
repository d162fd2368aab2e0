//! A process that serves tenants. It takes input from the broker, has shards decide, and publishes
//! the results.

// Printing panics once the reader is gone, as with `| head`.
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

mod candidate;
pub mod clock;
mod directory;
mod fleet;
pub mod link;
mod ops;
mod periodic_checks;
mod pool;
mod reload;
mod run;
mod signals;
pub mod state;
mod stop;
pub mod store;
mod tasks;
pub mod telemetry;
mod tenant;

pub use ops::log;
pub use run::run;
