//! What of the tracker has changed since its records were last taken.

use std::sync::Arc;

use super::slab::Key;

/// What has changed since it was last taken.
#[derive(Debug, Default)]
pub(super) struct UnsavedChanges {
    /// Whether anybody takes them.
    pub(super) wanted: bool,
    pub(super) connections: Vec<Key>,
    pub(super) users: Vec<Key>,
    /// Those of which a record was handed out, and nothing is known any longer.
    pub(super) gone_connections: Vec<(Arc<str>, Arc<str>)>,
    pub(super) gone_users: Vec<Arc<str>>,
    /// The slot from which to look on for who was heard from.
    pub(super) heard_from: usize,
    /// How long the pauses took of which records of graces know nothing yet.
    pub(super) paused_ms: u64,
}
