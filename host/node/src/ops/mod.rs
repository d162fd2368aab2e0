//! What operators see of a node: its log, and HTTP for health, metrics, status and the
//! page.

pub(crate) mod http;
pub(crate) mod letters;
pub mod log;
pub(crate) mod plugin_lines;
