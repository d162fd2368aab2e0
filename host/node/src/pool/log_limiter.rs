//! Limits how often a log line is written, however often its cause occurs.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock;

/// Decides when a line may be logged again. Times are by the host's clock.
#[derive(Debug, Default)]
pub(crate) struct LogLimiter {
    /// When the last line was logged, in milliseconds; 0 if none was.
    at: AtomicU64,
    /// How many reasons for a line there have been since then.
    left_out: AtomicU64,
}

impl LogLimiter {
    /// Notes a reason for a line. If the line is to be logged now, returns how many reasons there
    /// have been since the last line, including this one.
    pub(crate) fn line(&self, every_ms: u64) -> Option<u64> {
        self.line_at(clock::now_ms(), every_ms)
    }

    fn line_at(&self, now: u64, every_ms: u64) -> Option<u64> {
        self.left_out.fetch_add(1, Ordering::Relaxed);
        let due = |at: u64| (at == 0 || now >= at.saturating_add(every_ms)).then_some(now);
        let relaxed = Ordering::Relaxed;
        self.at.fetch_update(relaxed, relaxed, due).ok()?;
        Some(self.left_out.swap(0, relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_logged_at_once_and_the_next_line_says_how_many_there_were() {
        let limiter = LogLimiter::default();
        assert_eq!(limiter.line_at(5, 100), Some(1));
        assert_eq!(
            [limiter.line_at(6, 100), limiter.line_at(104, 100)],
            [None; 2]
        );
        assert_eq!(limiter.line_at(105, 100), Some(3));
    }
}
