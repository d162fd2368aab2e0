//! The problems of a configuration: where each is, what it is, and what to do about it.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::escape::{Line, cut};

/// Where a problem is. Problems are listed in this order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The configuration file as a whole.
    File(PathBuf),
    /// A line of the configuration file and a column in it, in characters, counted from one.
    Line(PathBuf, usize, usize),
    /// An environment variable.
    Variable(String),
}

impl Place {
    /// Where in `file` a span of its text begins.
    pub(super) fn of_span(file: &Path, text: &str, span: Range<usize>) -> Self {
        Lines::of(text).place(file, span)
    }
}

/// A text, and where its lines begin. The beginnings are kept, since a file with thousands of
/// tenants has many places.
#[derive(Clone, Debug)]
pub(super) struct Lines<'a> {
    text: &'a str,
    begin: Arc<[usize]>,
}

impl<'a> Lines<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        let begin = text.match_indices('\n').map(|(at, _)| at + 1);
        let begin = std::iter::once(0).chain(begin).collect();
        Self { text, begin }
    }

    /// Where in `file` a span of the text begins.
    pub(super) fn place(&self, file: &Path, span: Range<usize>) -> Place {
        let line = self.begin.partition_point(|begin| *begin <= span.start);
        let begin = line.checked_sub(1).and_then(|it| self.begin.get(it));
        let on_line = self
            .text
            .get(begin.copied().unwrap_or_default()..span.start);
        let column = 1 + on_line.unwrap_or_default().chars().count();
        Place::Line(file.to_owned(), line.max(1), column)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => write!(f, "{}", file.display()),
            Self::Line(file, line, column) => write!(f, "{}:{line}:{column}", file.display()),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

/// One problem. It prints as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it is.
    pub place: Place,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub fix: String,
}

impl Problem {
    pub(super) fn unreadable(file: &Path, error: &std::io::Error) -> Self {
        Self {
            place: Place::File(file.to_owned()),
            what: format!("can't be read ({error})"),
            fix: "name a readable TOML file, or none to use the defaults".into(),
        }
    }

    pub(super) fn empty(file: &Path) -> Self {
        Self {
            place: Place::File(file.to_owned()),
            what: "is empty".into(),
            fix: "write the configuration into it; to use the defaults, name no file, and have \
                  none in the working folder"
                .into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The quoted text may hold line breaks, and escape sequences for a terminal.
        let (what, fix, place) = (cut(&self.what), cut(&self.fix), self.place.to_string());
        let line = format_args!("{}: {what}; {fix}", cut(&place));
        write!(f, "{}", Line(line))
    }
}

/// All problems of a configuration: at least one, in the order of the file and then of the
/// environment. Prints one line for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// The problems as an error, or none if the list is empty.
    pub(super) fn found(mut problems: Vec<Problem>) -> Option<Self> {
        problems.sort_by(|a, b| a.place.cmp(&b.place));
        (!problems.is_empty()).then_some(Self(problems))
    }

    /// The problems, one after the other.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// What is wrong with the value of one key. The code that reads the section adds the key and its
/// place.
#[derive(Debug)]
pub(super) struct InvalidValue {
    /// The end of a sentence that begins with the key: "is 0".
    pub(super) what: String,
    /// What to do about it.
    pub(super) fix: String,
}

impl InvalidValue {
    pub(super) fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            fix: fix.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_line_and_a_column_in_characters() {
        let text = "a\n\nü b\r\nc";
        let file = Path::new("f");
        let place = |at: usize| Lines::of(text).place(file, at..at + 1).to_string();
        let begin = |word: &str| text.find(word).unwrap();
        for (at, expected) in [
            (0, "f:1:1"),
            (begin("\n"), "f:1:2"),
            (begin("\n\n") + 1, "f:2:1"),
            (begin("ü"), "f:3:1"),
            (begin("b"), "f:3:3"),
            (begin("c"), "f:4:1"),
            (text.len(), "f:4:2"),
        ] {
            assert_eq!(place(at), expected, "{at}");
        }
        assert_eq!(Lines::of("").place(file, 0..0).to_string(), "f:1:1");
    }
}
