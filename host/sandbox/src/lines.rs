//! Limits how many lines a plugin writes to the host's log in a window of time, over all calls and
//! workers. Further lines are left out and counted, and their number is logged when the window is
//! over. The time is an argument, as for the circuit breaker.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::recorder::{LineKind, LineRecorder};

/// How many lines may be written in a window.
pub(crate) const LINES_MAX: u64 = 200;

/// How long a window lasts, in milliseconds.
pub(crate) const WINDOW_MS: u64 = 10_000;

/// The log lines of one plugin.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    window: Mutex<Window>,
    /// When the number of lines left out is to be logged, in milliseconds. 0: none were left out.
    due: AtomicU64,
    /// How many lines have been left out in all.
    total: AtomicU64,
    /// Gets all lines as well, while an author tries the plugin.
    recorder: Option<Arc<LineRecorder>>,
}

#[derive(Debug, Default)]
struct Window {
    began: u64,
    written: u64,
    left_out: u64,
}

impl Lines {
    /// Log lines that a recorder gets as well.
    pub(crate) fn with_recorder(recorder: &Arc<LineRecorder>) -> Self {
        Self {
            recorder: Some(Arc::clone(recorder)),
            ..Self::default()
        }
    }

    /// Passes a line to the recorder, if there is one.
    pub(crate) fn record(&self, kind: LineKind, text: &str) {
        if let Some(recorder) = &self.recorder {
            recorder.note(kind, text);
        }
    }

    /// Whether there is a recorder.
    pub(crate) fn is_recorded(&self) -> bool {
        self.recorder.is_some()
    }

    /// Counts a line. Returns whether it may be written now.
    pub(crate) fn admit(&self, now: u64) -> bool {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        // A window in which lines were left out ends when `left_out` reports them.
        if window.left_out == 0 && now.saturating_sub(window.began) >= WINDOW_MS {
            (window.began, window.written) = (now, 0);
        }
        if window.written < LINES_MAX {
            window.written += 1;
            return true;
        }
        if window.left_out == 0 {
            let due = window.began.saturating_add(WINDOW_MS).max(1);
            self.due.store(due, Ordering::Relaxed);
        }
        window.left_out += 1;
        self.total.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// The number of lines left out in a window that is over. Each is reported once.
    pub(crate) fn left_out(&self, now: u64) -> Option<u64> {
        // In nearly all cases no lines were left out, and no lock is needed.
        match self.due.load(Ordering::Relaxed) {
            0 => return None,
            due if now < due => return None,
            _ => {}
        }
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        // Another worker may have reported them meanwhile.
        if window.left_out == 0 {
            return None;
        }
        let left_out = std::mem::take(&mut window.left_out);
        (window.began, window.written) = (now, 0);
        self.due.store(0, Ordering::Relaxed);
        Some(left_out)
    }

    /// How many lines have been left out in all.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_past_the_rate_is_left_out_and_said_once_when_the_window_is_over() {
        let lines = Lines::default();
        let begin = 5_000;
        let written = (0..LINES_MAX + 7).filter(|_| lines.admit(begin)).count();
        assert_eq!(written as u64, LINES_MAX);
        assert_eq!(lines.left_out(begin + WINDOW_MS - 5_001), None);
        assert_eq!(lines.left_out(begin + WINDOW_MS), Some(7));
        assert_eq!(lines.left_out(begin + WINDOW_MS), None);
        assert_eq!(lines.total(), 7);
        assert!(lines.admit(begin + WINDOW_MS));
        // A window in which no lines were left out is followed by the next without a report.
        for _ in 1..LINES_MAX {
            assert!(lines.admit(begin + WINDOW_MS));
        }
        assert!(lines.admit(begin + 2 * WINDOW_MS));
    }
}
