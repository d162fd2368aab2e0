//! What has changed in the tracker since its records were last taken.

use std::sync::Arc;

use super::slab::Key;

/// What has changed since records were last taken.
#[derive(Debug, Default)]
pub(super) struct UnsavedChanges {
    /// Whether changes are noted.
    pub(super) wanted: bool,
    pub(super) connections: Vec<Key>,
    pub(super) users: Vec<Key>,
    /// Connections and users that were forgotten, and of which a record was handed out before.
    pub(super) removed_connections: Vec<(Arc<str>, Arc<str>)>,
    pub(super) removed_users: Vec<Arc<str>>,
    /// The slot from which the newest timestamps are read next.
    pub(super) next_slot: usize,
    /// The length of the pauses that the records of graces don't include yet.
    pub(super) paused_ms: u64,
}
