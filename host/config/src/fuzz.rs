//! Entry points for fuzzers: the readers of outside data, with assertions about what they accept.
//! Each returns whether the input was accepted.

use std::ffi::OsString;
use std::path::Path;

use crate::capture::Recorded;
use crate::directory;
use crate::escape;
use crate::{Config, Text};

/// Reads the text of a configuration file and, after a NUL, the value of a variable. Each problem
/// must print as one line.
pub fn configuration(text: &str) -> bool {
    let (text, variable) = text.split_once('\0').unwrap_or((text, ""));
    let path = Path::new("presence.toml");
    let variables = [("PRESENCE_NATS_URL".to_owned(), OsString::from(variable))];
    let variables = variables.into_iter().filter(|_| !variable.is_empty());
    match Config::parse(Some(path), Some(&Text::of(text)), variables) {
        Ok(config) => {
            assert!(config.changes(&config).is_empty(), "it differs from itself");
            true
        }
        Err(problems) => {
            for problem in problems.iter() {
                let line = escape::line(problem);
                assert!(!line.contains(char::is_control), "{line:?}");
            }
            false
        }
    }
}

/// Reads what a source of a directory says. The first byte chooses the form: a file; an entry of a
/// bucket, which is a key, a NUL and a value; or a service.
pub fn directory(bytes: &[u8]) -> bool {
    let Some((form, bytes)) = bytes.split_first() else {
        return false;
    };
    match (form % 3, std::str::from_utf8(bytes)) {
        (0, Ok(text)) => directory::fuzz::file(text),
        (1, Ok(text)) => {
            let (key, value) = text.split_once('\0').unwrap_or((text, ""));
            directory::fuzz::entry(key, value.as_bytes())
        }
        (2, _) => directory::fuzz::service(form / 3, bytes),
        _ => false,
    }
}

/// Reads a line of recorded traffic. Written and read again, it must be the same message.
pub fn capture(line: &str) -> bool {
    let Ok(recorded) = Recorded::parse(line, None) else {
        return false;
    };
    let written = recorded.line().expect("what was read can be written");
    let text = String::from_utf8(written).expect("a line is text");
    let again = Recorded::parse(&text, None).expect("what is written can be read");
    // The header that marks a node's own message isn't written.
    let again = Recorded {
        is_from_node: recorded.is_from_node,
        ..again
    };
    assert_eq!(recorded, again, "{text}");
    true
}
