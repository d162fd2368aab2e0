//! What operators see of a node: its log, and over HTTP its health, metrics, status and page.

pub(crate) mod http;
pub mod log;
pub(crate) mod plugin_lines;
pub(crate) mod recent_dead_letters;
