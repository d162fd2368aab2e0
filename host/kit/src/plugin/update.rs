//! `presence plugin test --update`: writes the actual results into the manifests as the expected
//! ones, and leaves the manifests' other text as it is.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use presence_component::{manifest, package};
use presence_sandbox::self_test::{Outcome, RECONSIDER_AT, sorted};
use serde::{Deserialize, Serialize};
use serde_json::ser::Formatter;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// The name of the manifest in a plugin's folder.
pub(super) const MANIFEST: &str = "plugin.json";

/// Updates the manifest in a plugin's file and, if the plugin was built from the file's folder, the
/// folder's manifest. Returns the files that were updated.
pub(super) fn update(
    path: &Path,
    plugin: &[u8],
    outcomes: &[Outcome],
) -> anyhow::Result<Vec<PathBuf>> {
    let own = std::str::from_utf8(manifest(plugin)?).context("its manifest is no text")?;
    let updated = rewrite(own, outcomes)?;
    super::write(path, &package(plugin, updated.as_bytes())?)?;
    let mut files = vec![path.to_owned()];
    let beside = path.with_file_name(MANIFEST);
    if let Ok(source) = std::fs::read_to_string(&beside)
        && is_source(&source, own)
    {
        super::write(&beside, rewrite(&source, outcomes)?.as_bytes())?;
        files.push(beside);
    }
    Ok(files)
}

/// Whether a folder's manifest is equal to the one in the plugin.
fn is_source(source: &str, own: &str) -> bool {
    let read = |text| serde_json::from_str::<Value>(text).ok();
    read(source).is_some_and(|source| Some(source) == read(own))
}

#[derive(Deserialize)]
struct Cases<'a> {
    #[serde(borrow)]
    tests: Vec<Case<'a>>,
}

#[derive(Deserialize)]
struct Case<'a> {
    #[serde(borrow)]
    expect: &'a RawValue,
}

/// A manifest's text with new expectations for the cases that fail.
fn rewrite(text: &str, outcomes: &[Outcome]) -> anyhow::Result<String> {
    let cases: Cases<'_> = serde_json::from_str(text).context("reading the manifest")?;
    let mut rewritten = String::new();
    let mut rest = text;
    for (case, outcome) in cases.tests.iter().zip(outcomes) {
        let expected = case.expect.get();
        // `expected` is a slice of `text`, so its address gives its place.
        let place = expected.as_ptr().addr() - rest.as_ptr().addr();
        let (before, at) = rest
            .split_at_checked(place)
            .context("an expectation elsewhere")?;
        rewritten.push_str(before);
        rest = at.get(expected.len()..).unwrap_or_default();
        if outcome.passes() || !is_taken(outcome) {
            rewritten.push_str(expected);
        } else {
            rewritten.push_str(&spaced(&sorted(&found(outcome)))?);
        }
    }
    rewritten.push_str(rest);
    Ok(rewritten)
}

/// Whether an actual result may become the expected one. A failed call may not, unless a failure
/// was expected: otherwise a broken rule would pass its tests.
pub(super) fn is_taken(outcome: &Outcome) -> bool {
    let Some(error) = outcome.found.get("error") else {
        return true;
    };
    let error = error.as_str().unwrap_or_default();
    outcome.expected.get("error").is_some() || error.contains("refuses its configuration")
}

/// The actual result. If nothing was expected yet, it includes the time at which the rule asks to
/// be asked again.
fn found(outcome: &Outcome) -> Value {
    let mut found = outcome.found.clone();
    let is_new = outcome.expected.as_object().is_some_and(Map::is_empty);
    if let (true, Some(at), Some(fields)) = (is_new, outcome.reconsider_at, found.as_object_mut()) {
        fields.insert(RECONSIDER_AT.into(), at.into());
    }
    found
}

/// JSON on one line, with a space after each comma and colon.
fn spaced(value: &Value) -> anyhow::Result<String> {
    let mut json = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(
        &mut json,
        SpacedFormatter,
    ))?;
    Ok(String::from_utf8(json)?)
}

struct SpacedFormatter;

impl Formatter for SpacedFormatter {
    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        to: &mut W,
        first: bool,
    ) -> io::Result<()> {
        to.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        to: &mut W,
        first: bool,
    ) -> io::Result<()> {
        to.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, to: &mut W) -> io::Result<()> {
        to.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_expectations_that_fail_are_rewritten() {
        let text = r#"{
  "tests": [
    {"name": "ä", "expect": {"audience":["b", "a"]}},
    {"expect": {"audience": []}, "name": "2"}
  ],
  "name": "x"
}
"#;
        let outcome = |expected, found| Outcome {
            case: String::new(),
            expected,
            found,
            lines: Vec::new(),
            reconsider_at: None,
            spent: None,
            took: Duration::ZERO,
        };
        let outcomes = [
            outcome(
                json!({"audience": ["b", "a"]}),
                json!({"audience": ["a", "b"]}),
            ),
            outcome(json!({"audience": []}), json!({"audience": ["z", "c"]})),
        ];
        let expected = text.replace(r#"{"audience": []}"#, r#"{"audience": ["c", "z"]}"#);
        assert_eq!(rewrite(text, &outcomes).unwrap(), expected);
        let trapped = outcome(json!({"audience": []}), json!({"error": "trapped: x"}));
        let [first, _] = outcomes;
        assert_eq!(rewrite(text, &[first, trapped]).unwrap(), text);
    }

    #[test]
    fn a_new_expectation_has_the_time_at_which_the_rule_is_asked_again() {
        let outcome = Outcome {
            case: String::new(),
            expected: json!({}),
            found: json!({"audience": []}),
            lines: Vec::new(),
            reconsider_at: Some(7),
            spent: None,
            took: Duration::ZERO,
        };
        let with_time = json!({"audience": [], "reconsiderAt": 7});
        assert_eq!(found(&outcome), with_time);
        let expected = json!({"audience": ["ben"]});
        let before = Outcome {
            expected,
            ..outcome
        };
        assert_eq!(found(&before), json!({"audience": []}));
    }
}
