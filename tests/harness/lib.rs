//! The base of the end-to-end suites and of `cargo xtask`: a real nats-server, the host as a
//! process, a proxy that breaks connections, a client that records, Node with npm's clients of
//! NATS, and Chromium.
//!
//! Nothing here sleeps for a fixed time to get a result. It waits for a condition, or polls if
//! there is no signal. It gives up after [`wait::GUARD`], and says what it waited for.

pub mod browser;
pub mod client;
pub mod cluster;
pub mod collector;
pub mod component;
pub mod host;
pub mod http;
pub mod identity;
pub mod kit;
pub mod nats;
pub mod node;
pub mod process;
pub mod promtool;
pub mod proxy;
pub mod registry;
pub mod site;
pub mod toolchain;
pub mod tools;
pub mod wait;
pub mod web;
