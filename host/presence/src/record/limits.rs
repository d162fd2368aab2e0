//! How much is recorded at most, and what ended a recording.

use std::time::Duration;

use bytesize::ByteSize;
use jiff::SignedDuration;

/// What ended a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Time,
    Messages,
    Bytes,
    Told,
    Closed,
}

impl Ended {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Time => "the time of --for was over",
            Self::Messages => "there were as many as --messages says",
            Self::Bytes => "the next one would have passed --bytes",
            Self::Told => "it was told to stop",
            Self::Closed => "the connection to NATS was closed",
        }
    }
}

/// What is there already, against what there may be.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) messages_max: u64,
    pub(super) bytes_max: u64,
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

impl Budget {
    /// Takes account of a line. An error is what ends the recording before it.
    pub(super) fn take(&mut self, line: usize) -> Result<(), Ended> {
        let bytes = self.bytes.saturating_add(line as u64);
        if bytes > self.bytes_max {
            return Err(Ended::Bytes);
        }
        self.bytes = bytes;
        self.messages += 1;
        Ok(())
    }

    /// Whether there can be no further line.
    pub(super) fn is_full(&self) -> bool {
        self.messages >= self.messages_max
    }
}

/// A span of time as it is written on the command line: `500ms`, `90s`, `15m`, `2h`.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    let span = text.parse::<SignedDuration>().ok();
    let span = span.and_then(|span| Duration::try_from(span).ok());
    let span = span.filter(|span| !span.is_zero() && *span <= WEEK);
    span.ok_or_else(|| "write a time of at most a week, such as 500ms, 90s, 15m or 2h".into())
}

const WEEK: Duration = Duration::from_hours(7 * 24);

/// An amount of bytes as it is written on the command line: `65536`, `500k`, `64MiB`.
/// Units with an `i` are binary, the others decimal, as in the SI; their case is of no
/// matter, since nothing here is counted in bits or in thousandths.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let bytes = text.parse::<ByteSize>().ok().map(|size| size.as_u64());
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| {
        "write a size above 0, such as 65536, 500k, 10MB (decimal) or 64MiB (binary)".into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_a_unit() {
        let ms = |text| span(text).map(|span| span.as_millis());
        assert_eq!(ms("500ms"), Ok(500));
        assert_eq!(ms("90s"), Ok(90_000));
        assert_eq!(ms("15m"), Ok(900_000));
        assert_eq!(ms("1.5m"), Ok(90_000));
        assert_eq!(ms("168h"), Ok(604_800_000));
        for text in [
            "",
            "s",
            "60",
            "0s",
            "-1s",
            "1d",
            "169h",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert!(span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        for (text, bytes) in [
            ("65536", 65_536),
            ("1b", 1),
            ("10k", 10_000),
            ("10kB", 10_000),
            ("10KB", 10_000),
            ("3M", 3_000_000),
            ("2GB", 2_000_000_000),
            ("4KiB", 4_096),
            ("64MiB", 64 << 20),
            ("64mib", 64 << 20),
            ("1GiB", 1 << 30),
            ("1.5M", 1_500_000),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "k", "0", "0k", "-1", "1kk", "1µ"] {
            assert!(size(text).is_err(), "{text}");
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
        assert_eq!(budget.take(5), Err(Ended::Bytes));
        assert_eq!(budget.take(4), Ok(()));
        assert!(budget.is_full());
        assert_eq!((budget.messages, budget.bytes), (2, 10));
    }
}
