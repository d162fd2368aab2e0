//! What operators see of a node: its log, and HTTP for health, metrics and status.

pub(crate) mod http;
pub mod log;
