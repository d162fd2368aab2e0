//! How much is recorded at most, and what ended a recording.

use std::time::Duration;

use crate::arguments;

/// What ended a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndReason {
    Time,
    Messages,
    Bytes,
    Signal,
    Closed,
}

impl EndReason {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Time => "the time of --for was over",
            Self::Messages => "there were as many as --messages says",
            Self::Bytes => "the next one would have passed --bytes",
            Self::Signal => "it was told to stop",
            Self::Closed => "the connection to NATS was closed",
        }
    }
}

/// The recorded messages and bytes, and their limits.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) messages_max: u64,
    pub(super) bytes_max: u64,
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

impl Budget {
    /// Counts a line of this many bytes. `Err`: it doesn't fit, and the recording ends before it.
    pub(super) fn take(&mut self, line: usize) -> Result<(), EndReason> {
        let bytes = self.bytes.saturating_add(line as u64);
        if bytes > self.bytes_max {
            return Err(EndReason::Bytes);
        }
        self.bytes = bytes;
        self.messages += 1;
        Ok(())
    }

    /// Whether the maximum number of messages is reached.
    pub(super) fn is_full(&self) -> bool {
        self.messages >= self.messages_max
    }
}

/// A span of time of at most a week.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    let span = arguments::span(text).ok().filter(|span| *span <= WEEK);
    span.ok_or_else(|| "write a time of at most a week, such as 500ms, 90s, 15m or 2h".into())
}

const WEEK: Duration = Duration::from_hours(7 * 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_takes_a_week_at_most() {
        assert_eq!(span("168h"), Ok(WEEK));
        assert_eq!(span("7d"), Ok(WEEK));
        for text in ["", "0s", "169h", "8d"] {
            assert!(span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_line_that_would_be_too_much_is_left_out() {
        let mut budget = Budget {
            messages_max: 2,
            bytes_max: 10,
            messages: 0,
            bytes: 0,
        };
        assert_eq!(budget.take(6), Ok(()));
        assert_eq!(budget.take(5), Err(EndReason::Bytes));
        assert_eq!(budget.take(4), Ok(()));
        assert!(budget.is_full());
        assert_eq!((budget.messages, budget.bytes), (2, 10));
    }
}
