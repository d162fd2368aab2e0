//! The log of messages that were ignored because they came too late. A wrong clock causes very
//! many, so at most one line per second is written.

use presence_core::Ignored;

use crate::ops::log;

/// The shortest time between two lines, in milliseconds.
const INTERVAL_MS: u64 = 1_000;

/// What one shard logs of messages that it ignored.
#[derive(Debug, Default)]
pub(crate) struct StaleLog {
    /// When the next line may be written, by the host's clock.
    next_at: u64,
    /// How many messages were ignored since the last line.
    more: u64,
}

impl StaleLog {
    /// Logs a message that was ignored, or counts it for the next line.
    pub(crate) fn note(&mut self, now: u64, ignored: &Ignored) {
        if now < self.next_at {
            self.more += 1;
            return;
        }
        let Ignored {
            kind,
            user,
            conn,
            timestamp,
            why,
        } = ignored;
        let more = std::mem::take(&mut self.more);
        self.next_at = now.saturating_add(INTERVAL_MS);
        tracing::warn!(
            subject = kind.subject(),
            user = log::user(user),
            conn = log::user(conn),
            timestamp,
            more_since_the_last_line = more,
            "a stale message was ignored: {why}"
        );
    }
}
