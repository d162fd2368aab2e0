//! The difference between a case's expected and actual result, line by line.

use presence_config::escape;
use presence_sandbox::self_test::{Outcome, sorted};
use serde_json::Value;
use similar::TextDiff;

/// The lines of both, each marked as expected only, found only, or in both.
pub(super) fn diff(outcome: &Outcome) -> String {
    let (expected, found) = (pretty(&outcome.expected), pretty(&outcome.found));
    let mut text = String::from("    - expected\n    + found\n");
    for change in TextDiff::from_lines(&expected, &found).iter_all_changes() {
        let line = change.value().trim_end_matches('\n');
        text.push_str(&format!("    {} {}\n", change.tag(), escape::line(line)));
    }
    text
}

fn pretty(value: &Value) -> String {
    // With `#`, a value is written on several lines.
    format!("{:#}", sorted(value))
}
