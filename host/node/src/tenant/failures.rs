//! The log of plugins that fail: at once when one begins to, and then at most once in some
//! seconds for each of them, however many users it fails on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use presence_core::PluginFailed;

use crate::ops::log;

/// The shortest time between two lines about a plugin, in milliseconds.
const INTERVAL_MS: u64 = 10_000;

/// What a tenant's shards log of plugins that fail. It is locked only when one has.
#[derive(Debug, Default)]
pub(crate) struct FailureLog(Mutex<HashMap<Arc<str>, Logged>>);

/// What was logged of a plugin.
#[derive(Debug, Default)]
struct Logged {
    /// When the next line may be written, by the monotonic time.
    next_at: u64,
    /// How many failures there were since the last line, and are in none.
    more: u64,
}

impl FailureLog {
    /// Logs a failure, or counts it for the plugin's next line.
    pub(crate) fn note(&self, now: u64, failed: &PluginFailed) {
        let Some(more) = self.due(now, &failed.plugin) else {
            return;
        };
        let PluginFailed {
            plugin,
            user,
            error,
            retry_ms,
        } = failed;
        let (plugin, user) = (&**plugin, log::user(user.as_str()));
        match retry_ms {
            Some(retry_in_ms) => tracing::warn!(
                plugin,
                user,
                retry_in_ms,
                more_since_the_last_line = more,
                "a plugin failed, and nobody new is told about the user until a retry succeeds: \
                 {error}"
            ),
            None => tracing::warn!(
                plugin,
                user,
                more_since_the_last_line = more,
                "a plugin failed, and the event went on without it: {error}"
            ),
        }
    }

    /// Whether to log a failure of a plugin now, and how many there were in no line.
    fn due(&self, now: u64, plugin: &Arc<str>) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let logged = all.entry(Arc::clone(plugin)).or_default();
        if now < logged.next_at {
            logged.more += 1;
            return None;
        }
        logged.next_at = now.saturating_add(INTERVAL_MS);
        Some(std::mem::take(&mut logged.more))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_plugins_first_failure_is_logged_at_once_and_further_ones_are_counted() {
        let log = FailureLog::default();
        let (picky, moody) = ("picky".into(), "moody".into());
        assert_eq!(log.due(5, &picky), Some(0));
        assert_eq!([log.due(6, &picky), log.due(7, &picky)], [None; 2]);
        assert_eq!(log.due(8, &moody), Some(0), "another plugin");
        assert_eq!(log.due(5 + INTERVAL_MS, &picky), Some(2));
    }
}
