//! How many lines a plugin writes to the host's log: so many in a window of time, over
//! all calls and workers. What is left out is counted, and said when the window is over.
//! Time is an argument, as of the circuit breaker.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::recorder::{LineKind, LineRecorder};

/// How many lines a window has.
pub(crate) const LINES_MAX: u64 = 200;

/// How long a window lasts, in milliseconds.
pub(crate) const WINDOW_MS: u64 = 10_000;

/// The lines of one plugin.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    window: Mutex<Window>,
    /// When lines that were left out are to be said, in milliseconds; 0 while none were.
    due: AtomicU64,
    /// How many have been left out in all.
    total: AtomicU64,
    /// Who else gets all of them, while somebody tries the plugin out.
    recorder: Option<Arc<LineRecorder>>,
}

#[derive(Debug, Default)]
struct Window {
    began: u64,
    written: u64,
    left_out: u64,
}

impl Lines {
    /// Lines that are recorded, too.
    pub(crate) fn recorded(recorder: &Arc<LineRecorder>) -> Self {
        Self {
            recorder: Some(Arc::clone(recorder)),
            ..Self::default()
        }
    }

    /// Records a line, if somebody wants that.
    pub(crate) fn record(&self, kind: LineKind, text: &str) {
        if let Some(recorder) = &self.recorder {
            recorder.note(kind, text);
        }
    }

    /// Whether somebody wants them recorded.
    pub(crate) fn is_recorded(&self) -> bool {
        self.recorder.is_some()
    }

    /// Whether a line is written now. It is counted either way.
    pub(crate) fn takes(&self, now: u64) -> bool {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        // One that has left lines out starts again when that has been said.
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

    /// How many lines were left out in a window that is over, once.
    pub(crate) fn left_out(&self, now: u64) -> Option<u64> {
        // No lock where there is nothing to say, which is nearly always.
        match self.due.load(Ordering::Relaxed) {
            0 => return None,
            due if now < due => return None,
            _ => {}
        }
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        // Another worker may have said it meanwhile.
        if window.left_out == 0 {
            return None;
        }
        let left_out = std::mem::take(&mut window.left_out);
        (window.began, window.written) = (now, 0);
        self.due.store(0, Ordering::Relaxed);
        Some(left_out)
    }

    /// How many have been left out in all.
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
        let written = (0..LINES_MAX + 7).filter(|_| lines.takes(begin)).count();
        assert_eq!(written as u64, LINES_MAX);
        assert_eq!(lines.left_out(begin + WINDOW_MS - 5_001), None);
        assert_eq!(lines.left_out(begin + WINDOW_MS), Some(7));
        assert_eq!(lines.left_out(begin + WINDOW_MS), None);
        assert_eq!(lines.total(), 7);
        assert!(lines.takes(begin + WINDOW_MS));
        // A window without anything to say starts again by itself.
        for _ in 1..LINES_MAX {
            assert!(lines.takes(begin + WINDOW_MS));
        }
        assert!(lines.takes(begin + 2 * WINDOW_MS));
    }
}
