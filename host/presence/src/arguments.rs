//! Arguments, and values of them, that several commands take.

use std::time::Duration;

use bytesize::ByteSize;
use jiff::{SignedDuration, Span, SpanRelativeTo};
use presence_kit::ConfigArg;

/// What commands about the plugin store have in common: how the output is wanted, and from
/// whom.
#[derive(clap::Args)]
pub(crate) struct Output {
    /// Prints one JSON object; `logs` one for each line.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) config: ConfigArg,
}

/// A span of time as it is written on the command line: `500ms`, `90s`, `15m`, `2h`, `7d`.
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    // Only the first parser takes fractions, and only the second takes days (of 24 hours).
    let span = text.parse::<SignedDuration>().or_else(|_| {
        let span: Span = text.parse()?;
        span.to_duration(SpanRelativeTo::days_are_24_hours())
    });
    let span = span.ok().and_then(|span| Duration::try_from(span).ok());
    let span = span.filter(|span| !span.is_zero());
    span.ok_or_else(|| "write a time such as 500ms, 90s, 15m, 2h or 7d".into())
}

/// A span of time in words: in the largest unit of which it is a whole number.
pub(crate) fn span_text(span: Duration) -> String {
    const UNITS: [(u128, &str); 4] = [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "min"),
        (1_000, "s"),
    ];
    let ms = span.as_millis();
    let unit = UNITS.into_iter().find(|(unit, _)| ms.is_multiple_of(*unit));
    let (unit, name) = unit.unwrap_or((1, "ms"));
    format!("{} {name}", ms / unit)
}

/// Parses an amount of bytes as it is written on the command line: `65536`, `500k`, `64MiB`. Units
/// with an `i` are binary, the others decimal, as in the SI. Case doesn't matter: no unit here
/// means bits or thousandths.
pub(crate) fn size(text: &str) -> Result<u64, String> {
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
        assert_eq!(ms("14d"), Ok(1_209_600_000));
        for text in [
            "",
            "s",
            "60",
            "0s",
            "-1s",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert!(span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_span_is_written_in_the_largest_unit_that_fits() {
        for (text, words) in [
            ("14d", "14 d"),
            ("48h", "2 d"),
            ("36h", "36 h"),
            ("90m", "90 min"),
            ("30m", "30 min"),
            ("1m30s", "90 s"),
            ("1500ms", "1500 ms"),
        ] {
            assert_eq!(span_text(span(text).unwrap()), words);
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
}
