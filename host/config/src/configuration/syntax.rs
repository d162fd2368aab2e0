//! Describes the problem of a file that isn't TOML, and names the key that it is about. The
//! parser's own message says what it expected, and not which key it was reading.

use std::path::Path;

use super::problem::{Place, Problem};

/// What a line of a file sets, as far as it says so.
enum Written<'t> {
    /// `key = …`: the key, and the text after the `=`.
    Value(&'t str, &'t str),
    /// The beginning of a section: `[tracker`.
    Section(&'t str),
    /// A word that may be meant for a key.
    Word(&'t str),
    Other,
}

/// Describes an error of the parser.
pub(super) fn problem(file: &Path, text: &str, error: &toml::de::Error) -> Problem {
    let message = error.message().lines().collect::<Vec<_>>().join(", ");
    let Some(span) = error.span() else {
        return Problem {
            place: Place::File(file.to_owned()),
            what: format!("not valid TOML ({message})"),
            fix: FIX.into(),
        };
    };
    let (what, fix) = explained(text, span.start, &message);
    Problem {
        place: Place::of_span(file, text, span),
        what,
        fix,
    }
}

const FIX: &str = "correct the line; strings need quotes, and a key stands once in its section";

fn explained(text: &str, at: usize, message: &str) -> (String, String) {
    let is_twice = message.contains("duplicate key");
    match line_at(text, at) {
        Written::Value(key, rest) if is_blank(rest) => (
            format!("`{key}` has no value"),
            "write one after the `=`".into(),
        ),
        Written::Value(key, _) if is_twice => (
            format!("`{key}` is there twice"),
            "keep one of the two".into(),
        ),
        Written::Value(key, rest) => {
            let is_word = rest.trim_start().starts_with(char::is_alphabetic);
            of_value(key, message, is_word)
        }
        Written::Section(section) if is_twice => (
            format!("{section} is there twice"),
            "put all of its keys into one".into(),
        ),
        Written::Section(section) => (
            format!("`{section}` is not valid TOML ({message})"),
            "write it as [section] or [[section]]".into(),
        ),
        Written::Word(word) if message.contains("key with no value") => (
            format!("`{word}` has no value ({message})"),
            format!("write `{word} = ` and its value"),
        ),
        // The line may be in a value of several lines.
        Written::Word(_) | Written::Other => match key_before(text, at) {
            Some(key) => of_value(key, message, false),
            None => (format!("not valid TOML ({message})"), FIX.into()),
        },
    }
}

fn of_value(key: &str, message: &str, is_word: bool) -> (String, String) {
    let fix = match is_word || message.contains("quoted") {
        true => "strings need quotes, as in \"text\"",
        false => "correct the value",
    };
    let what = format!("the value of `{key}` is not valid TOML ({message})");
    (what, fix.into())
}

/// The line at this position.
fn line_at(text: &str, at: usize) -> Written<'_> {
    let before = text.get(..at).unwrap_or(text);
    let begin = before.rfind('\n').map_or(0, |end| end + 1);
    let line = text.get(begin..).unwrap_or_default();
    written(line.lines().next().unwrap_or_default())
}

/// The key whose value of several lines contains this position.
fn key_before(text: &str, at: usize) -> Option<&str> {
    let before = text.get(..at).unwrap_or(text);
    let lines = before.lines().rev().map(written);
    let mut of_key = lines.skip_while(|line| matches!(line, Written::Word(_) | Written::Other));
    match of_key.next() {
        Some(Written::Value(key, _)) => Some(key),
        _ => None,
    }
}

fn written(line: &str) -> Written<'_> {
    let line = line.trim();
    if let Some((key, rest)) = line.split_once('=')
        && is_key(key.trim_end())
    {
        return Written::Value(key.trim_end(), rest);
    }
    let name = line.trim_matches(['[', ']']);
    if line.starts_with('[') && is_key(name) {
        return Written::Section(line);
    }
    let word = line.split_whitespace().next().unwrap_or_default();
    match is_key(word) {
        true => Written::Word(word),
        false => Written::Other,
    }
}

/// Whether a text can be a key or a section's name.
fn is_key(text: &str) -> bool {
    let is_of_key = |it: char| it.is_ascii_alphanumeric() || "_-.\"'".contains(it);
    !text.is_empty() && text.chars().all(is_of_key)
}

fn is_blank(value: &str) -> bool {
    let value = value.trim_start();
    value.is_empty() || value.starts_with('#')
}
