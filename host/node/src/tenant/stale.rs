//! The log of messages that were ignored since they came too late: a clock that is
//! wrong makes very many of them, so a line is written at most once a second.

use presence_core::Ignored;

use crate::ops::log;

/// The shortest time between two lines, in milliseconds.
const INTERVAL_MS: u64 = 1_000;

/// What one shard logs of messages that it ignored.
#[derive(Debug, Default)]
pub(crate) struct StaleLog {
    /// When the next line may be written, by the monotonic time.
    next_at: u64,
    /// How many messages were ignored since the last line, and are in none.
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
