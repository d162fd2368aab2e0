//! Connections from which nothing has been heard since the host started.

use serde::{Deserialize, Serialize};

/// A connection from which nothing has been heard in this run of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartsWithoutMessage {
    /// When the host started for the first time since it was heard from, in milliseconds.
    pub since: u64,
    /// How often the host has started since.
    pub starts: u32,
}

impl StartsWithoutMessage {
    /// The host starts for the first time since the connection was heard from.
    pub(super) fn from(now: u64) -> Self {
        Self {
            since: now,
            starts: 0,
        }
    }

    /// How long the lease is at the next start, in milliseconds: at the first one a whole
    /// time-out, since the client couldn't be heard while the host was down; later what
    /// is left of that time-out, but at least half as long as at the start before, since
    /// the host may have been down for most of it. So all starts together add at most one
    /// time-out of hearing, however many there are.
    pub(super) fn lease_ms(self, now: u64, timeout_ms: u64) -> u64 {
        let left_ms = timeout_ms.saturating_sub(now.saturating_sub(self.since));
        left_ms.max(timeout_ms.checked_shr(self.starts).unwrap_or(0))
    }
}
