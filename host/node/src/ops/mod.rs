//! What operators see of a node: its log, and HTTP for health, metrics, status and the
//! page.

pub(crate) mod http;
pub mod log;
pub(crate) mod plugin_lines;
pub(crate) mod recent_dead_letters;
