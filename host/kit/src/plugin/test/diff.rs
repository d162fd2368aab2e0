//! What was expected of a case and what came out, line by line.

use presence_config::escape;
use presence_sandbox::self_test::{Outcome, sorted};
use serde_json::Value;

/// The lines that are expected only, found only, or both.
pub(super) fn diff(outcome: &Outcome) -> String {
    let (expected, found) = (pretty(&outcome.expected), pretty(&outcome.found));
    let (expected, found): (Vec<_>, Vec<_>) = (expected.lines().collect(), found.lines().collect());
    let mut text = String::from("    - expected\n    + found\n");
    for (sign, line) in lines(&expected, &found) {
        text.push_str(&format!("    {sign} {}\n", escape::line(line)));
    }
    text
}

fn pretty(value: &Value) -> String {
    // With `#` a value is written over several lines.
    format!("{:#}", sorted(value))
}

/// The shortest way from the one to the other: what both have (` `), what only
/// the first has (`-`), and what only the second has (`+`).
fn lines<'a>(a: &[&'a str], b: &[&'a str]) -> Vec<(char, &'a str)> {
    // How long the longest common part is of what follows each pair of places.
    let mut common = vec![vec![0_usize; b.len() + 1]; a.len() + 1];
    let at = |common: &[Vec<usize>], i: usize, j: usize| {
        common
            .get(i)
            .and_then(|row| row.get(j))
            .copied()
            .unwrap_or_default()
    };
    for (i, left) in a.iter().enumerate().rev() {
        for (j, right) in b.iter().enumerate().rev() {
            let longest = if left == right {
                at(&common, i + 1, j + 1) + 1
            } else {
                at(&common, i + 1, j).max(at(&common, i, j + 1))
            };
            if let Some(cell) = common.get_mut(i).and_then(|row| row.get_mut(j)) {
                *cell = longest;
            }
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut lines = Vec::new();
    loop {
        match (a.get(i), b.get(j)) {
            (Some(left), Some(right)) if left == right => {
                lines.push((' ', *left));
                (i, j) = (i + 1, j + 1);
            }
            (Some(left), right)
                if right.is_none() || at(&common, i + 1, j) >= at(&common, i, j + 1) =>
            {
                lines.push(('-', *left));
                i += 1;
            }
            (_, Some(right)) => {
                lines.push(('+', *right));
                j += 1;
            }
            (_, None) => return lines,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_told_apart_from_what_does_not() {
        let a = ["{", "  1,", "  2,", "  3", "}"];
        let b = ["{", "  0,", "  1,", "  3", "}", "x"];
        let told: Vec<_> = lines(&a, &b)
            .into_iter()
            .map(|(sign, line)| format!("{sign}{line}"))
            .collect();
        assert_eq!(told, [" {", "+  0,", "   1,", "-  2,", "   3", " }", "+x"]);
        assert_eq!(lines(&[], &[]), []);
    }
}
