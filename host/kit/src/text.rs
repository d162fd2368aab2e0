//! Formats text for people: aligned columns, times, and ids, with control characters escaped.

use std::fmt::Write as _;

use jiff::Timestamp;
use presence_config::escape::line;
use serde_json::Value;
use unicode_width::UnicodeWidthStr as _;

/// A value as plain text: strings without their quotes, and escaped.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => line(text),
        other => line(other),
    }
}

/// Rows under their titles, in columns as wide as they need to be.
pub fn table<const N: usize>(titles: [&str; N], rows: &[[String; N]]) -> String {
    let mut all = vec![titles.map(str::to_owned)];
    all.extend_from_slice(rows);
    columns(&all)
}

/// The greatest width that a cell gives its column. A wider cell holds text from outside, and
/// shifts only the rest of its own row.
const WIDTH_MAX: usize = 120;

/// Rows in columns as wide as they need to be.
pub fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (widest, cell) in widths.iter_mut().zip(row) {
            *widest = (*widest).max(cell.width().min(WIDTH_MAX));
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut cells = String::new();
        for (cell, widest) in row.iter().zip(widths) {
            let padding = widest.saturating_sub(cell.width());
            let _ = write!(cells, "{cell}{:padding$}  ", "");
        }
        text.push_str(cells.trim_end());
        text.push('\n');
    }
    text
}

/// A time in milliseconds since the Unix epoch as a UTC date and time.
pub fn time(ms: u64) -> String {
    let at = i64::try_from(ms).ok().map(Timestamp::from_millisecond);
    match at {
        Some(Ok(at)) => at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        // After the year 9999.
        _ => format!("{ms} ms after 1970"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_dates() {
        for (ms, expected) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400_000, "2000-02-29 00:00:00 UTC"),
            (1_698_000_000_000, "2023-10-22 18:40:00 UTC"),
            (4_107_542_399_999, "2100-02-28 23:59:59 UTC"),
            (4_107_542_400_000, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(time(ms), expected);
        }
    }

    #[test]
    fn a_long_cell_widens_no_other_row() {
        let long = "x".repeat(70_000);
        let rows = [[long.clone(), "y".into()], ["b".into(), "z".into()]];
        let text = columns(&rows);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], format!("{long}  y"));
        assert_eq!(lines[1], format!("b{}  z", " ".repeat(WIDTH_MAX - 1)));
    }

    #[test]
    fn columns_line_up_and_control_characters_are_shown() {
        let rows = [
            [line("ä\u{1b}[2J"), "x".into()],
            ["在线".into(), "y".into()],
            ["b".into(), String::new()],
        ];
        let expected = "WHO         WHAT\nä\\u{1b}[2J  x\n在线        y\nb\n";
        assert_eq!(table(["WHO", "WHAT"], &rows), expected);
    }
}
