//! The log of failing plugins. The first failure of a plugin is logged at once, then at most one
//! line per interval and plugin, however many users it fails on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use presence_core::PluginFailed;

use crate::ops::log;

/// The shortest time between two lines about a plugin, in milliseconds.
const INTERVAL_MS: u64 = 10_000;

/// The failures of a tenant's plugins, from all of its shards. It is locked only when a plugin has
/// failed.
#[derive(Debug, Default)]
pub(crate) struct FailureLog(Mutex<HashMap<Arc<str>, Logged>>);

/// The log state of one plugin.
#[derive(Debug, Default)]
struct Logged {
    /// When the next line may be written, by the host's clock.
    next_at: u64,
    /// How many failures there were since the last line.
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

    /// Whether to log a failure of a plugin now. If so, returns how many failures weren't logged.
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
