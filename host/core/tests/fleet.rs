//! A fleet in virtual time: the real shards and the fleet's protocol, over a broker, clocks and
//! processes that fail as real ones do.
//!
//! The seed determines everything in a run: what fails, what users do, which messages are late or
//! lost. An oracle that knows nothing of the protocol (`fleet/oracle.rs`) judges what viewers were
//! told. `SIMULATE=from..to` selects another range of seeds than the default one. If it is a single
//! seed, everything that happens is printed. `cargo xtask simulate` sets it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    missing_docs,
    reason = "a test may panic"
)]

#[path = "fleet/agreement.rs"]
mod agreement;
#[path = "fleet/broker.rs"]
mod broker;
#[path = "fleet/client.rs"]
mod client;
#[path = "fleet/faults.rs"]
mod faults;
#[path = "fleet/node.rs"]
mod node;
#[path = "fleet/oracle.rs"]
mod oracle;
#[path = "fleet/rules.rs"]
mod rules;
#[path = "fleet/seeds.rs"]
mod seeds;
#[path = "fleet/statements.rs"]
mod statements;
#[path = "fleet/statuses.rs"]
mod statuses;
#[path = "fleet/stream.rs"]
mod stream;
#[path = "fleet/users.rs"]
mod users;
#[path = "fleet/wires.rs"]
mod wires;
#[path = "fleet/world.rs"]
mod world;
