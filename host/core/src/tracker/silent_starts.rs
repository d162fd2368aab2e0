//! Connections from which nothing has been heard since the host started.

use serde::{Deserialize, Serialize};

/// A connection from which nothing has been heard in this run of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SilentStarts {
    /// The first start of the host after the connection was last heard from, in milliseconds.
    pub since: u64,
    /// How often the host has started since the connection was last heard from.
    pub starts: u32,
}

impl SilentStarts {
    /// A connection at the first start of the host after it was heard from.
    pub(super) fn from(now: u64) -> Self {
        Self {
            since: now,
            starts: 0,
        }
    }

    /// The length of the lease at the next start, in milliseconds. At the first start it is a whole
    /// timeout, since the client couldn't be heard while the host was down. Later it is what is
    /// left of that timeout; but not less than half, a quarter, an eighth of it and so on, since
    /// the host may have been down for most of the time. So all starts together add at most one
    /// timeout of receiving, however many there are.
    pub(super) fn lease_ms(self, now: u64, timeout_ms: u64) -> u64 {
        let left_ms = timeout_ms.saturating_sub(now.saturating_sub(self.since));
        left_ms.max(timeout_ms.checked_shr(self.starts).unwrap_or(0))
    }
}
