//! What people read: aligned columns, times, and ids that can't play tricks on a
//! terminal.

use std::fmt::Write as _;

use presence_config::escape::line;
use serde_json::Value;

/// A value as people write it: text without its quotes.
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

/// Rows in columns as wide as they need to be.
pub fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |text: &str| text.chars().count();
    let mut widths = [0; N];
    for row in rows {
        for (widest, cell) in widths.iter_mut().zip(row) {
            *widest = (*widest).max(width(cell));
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut cells = String::new();
        for (cell, widest) in row.iter().zip(widths) {
            let _ = write!(cells, "{cell:widest$}  ");
        }
        text.push_str(cells.trim_end());
        text.push('\n');
    }
    text
}

/// A time in milliseconds since the Unix epoch as a UTC date and time.
pub fn time(ms: u64) -> String {
    let seconds = ms / 1_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// The date so many days after 1 January 1970. Years are counted from March, so
/// that a leap day is a year's last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
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
    fn columns_line_up_and_control_characters_are_shown() {
        let rows = [
            [line("ä\u{1b}[2J"), "x".into()],
            ["b".into(), String::new()],
        ];
        let expected = "WHO         WHAT\nä\\u{1b}[2J  x\nb\n";
        assert_eq!(table(["WHO", "WHAT"], &rows), expected);
    }
}
