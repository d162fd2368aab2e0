//! Escapes text on its way to the log or to a terminal. Text from outside (plugins, manifests, ids,
//! brokers, files) may hold line breaks, which would forge a line of the log, and escape sequences,
//! which would control the terminal or hide text. Such characters are shown escaped, as Rust writes
//! them.
//!
//! The program writes to standard output and standard error only through this module. JSON has its
//! own escapes.

use std::borrow::Cow;
use std::fmt::{self, Display, Write as _};
use std::io::{self, Write as _};

use serde_json::Value;
use tracing_subscriber::fmt::MakeWriter;

use crate::Problems;
use crate::causes::Causes;

/// How many bytes of a text are shown. It may quote text as long as a message.
pub const SHOWN_BYTES_MAX: usize = 1024;

/// The longest line of an error, in bytes: as long as a path.
const ERROR_BYTES_MAX: usize = 4 * 1024;

/// The longest part of a line of the log, in bytes: the message, or the value of a field.
pub const LOGGED_BYTES_MAX: usize = 16 * 1024;

/// How many lines of a text are shown, which may have as many problems as a file has lines.
const LINES_MAX: usize = 8;

/// A text, cut at [`SHOWN_BYTES_MAX`]. It then ends with the number of bytes left out.
pub fn cut(text: &str) -> Cow<'_, str> {
    if text.len() <= SHOWN_BYTES_MAX {
        return Cow::Borrowed(text);
    }
    let (kept, left_out) = text.split_at(text.floor_char_boundary(SHOWN_BYTES_MAX));
    Cow::Owned(format!("{kept}… ({} bytes more)", left_out.len()))
}

/// The first lines of a text, each [`cut`], and the number of further lines.
pub fn brief(text: &str) -> String {
    let mut lines = text.lines();
    let mut kept: Vec<_> = lines.by_ref().take(LINES_MAX).map(cut).collect();
    match lines.count() {
        0 => {}
        more => kept.push(format!("and {more} lines more").into()),
    }
    kept.join("\n")
}

/// Whether a character must be escaped: a control character, including C1, one that changes the
/// direction of text, or one that separates lines.
fn is_harmful(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        || matches!(character, '\u{2028}' | '\u{2029}')
}

/// Displays as one line, with harmful characters escaped.
pub struct Line<T>(pub T);

impl<T: Display> Display for Line<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f, ""), "{}", self.0)
    }
}

/// Displays with harmful characters escaped, except line breaks: for a text whose parts are
/// [`Line`]s already.
struct Text<T>(T);

impl<T: Display> Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f, "\n"), "{}", self.0)
    }
}

/// Displays at most this many bytes, and how many are left out.
pub struct Bounded<T>(pub T, pub usize);

impl<T: Display> Display for Bounded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bounded = Bounding {
            f,
            room: self.1,
            left_out: 0,
        };
        write!(bounded, "{}", self.0)?;
        match bounded.left_out {
            0 => Ok(()),
            bytes => write!(f, "… ({bytes} bytes more)"),
        }
    }
}

/// Passes text on while there is room, and counts the rest.
struct Bounding<'a, 'b> {
    f: &'a mut fmt::Formatter<'b>,
    room: usize,
    left_out: usize,
}

impl fmt::Write for Bounding<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let (kept, rest) = text.split_at(text.floor_char_boundary(self.room));
        self.f.write_str(kept)?;
        self.left_out += rest.len();
        // Nothing is shown after text that was left out, even if it would fit.
        self.room = match rest.is_empty() {
            true => self.room - kept.len(),
            false => 0,
        };
        Ok(())
    }
}

/// Passes text on with harmful characters escaped, except those in the second field.
struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>, &'static str);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        let is_escaped = |character| is_harmful(character) && !self.1.contains(character);
        while let Some(at) = rest.find(is_escaped) {
            let (plain, from) = rest.split_at(at);
            self.0.write_str(plain)?;
            let mut characters = from.chars();
            if let Some(character) = characters.next() {
                write!(self.0, "{}", character.escape_default())?;
            }
            rest = characters.as_str();
        }
        self.0.write_str(rest)
    }
}

/// A text as one line, with its harmful characters escaped.
pub fn line(text: impl Display) -> String {
    Line(text).to_string()
}

/// Writes a text of several lines to standard output. If nobody reads the output any more, as with
/// `| head`, the text is lost: the command still does its work.
///
/// # Errors
/// If it can't be written.
pub fn print(text: impl Display) -> io::Result<()> {
    unless_unread(print_while_read(text))
}

/// As [`print()`], for a command that only writes, and ends when nobody reads its output any more.
///
/// # Errors
/// If it can't be written, or nobody reads it any more.
#[expect(clippy::disallowed_methods, reason = "this is what escapes")]
pub fn print_while_read(text: impl Display) -> io::Result<()> {
    write!(io::stdout(), "{}", Text(text))
}

/// Writes JSON, which is for programs, to standard output, and a line break. It stays the same JSON:
/// harmful characters are written as JSON writes them.
///
/// # Errors
/// As [`print()`].
pub fn print_json(json: impl Display) -> io::Result<()> {
    unless_unread(print_json_while_read(json))
}

/// As [`print_json`], for a command that only writes, and ends when nobody reads its output any
/// more.
///
/// # Errors
/// As [`print_while_read`].
#[expect(clippy::disallowed_methods, reason = "JSON is escaped by itself")]
pub fn print_json_while_read(json: impl Display) -> io::Result<()> {
    writeln!(io::stdout(), "{}", escape_json(&json.to_string()))
}

fn unless_unread(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// The same JSON, or the same TOML string in double quotes, without harmful characters.
pub fn escape_json(json: &str) -> Cow<'_, str> {
    let is_escaped = |character| is_harmful(character) && character != '\n';
    if !json.contains(is_escaped) {
        return Cow::Borrowed(json);
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for character in json.chars() {
        if is_escaped(character) {
            // All harmful characters are in the basic multilingual plane, and occur only within
            // strings.
            let _ = write!(escaped, "\\u{:04x}", u32::from(character));
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

/// Standard output for lines of JSON.
#[expect(clippy::disallowed_methods, reason = "JSON is escaped by itself")]
pub fn json_output() -> io::Stdout {
    io::stdout()
}

/// Writes one line to standard error. If nobody reads it, it is lost.
#[expect(clippy::disallowed_methods, reason = "this is what escapes")]
pub fn eprint_line(text: impl Display) {
    let _ = writeln!(io::stderr(), "{}", Line(text));
}

/// Writes an error to standard error. Several problems are a line each; the further lines
/// of any other error are indented, so that none of them looks like an error of its own.
pub fn eprint_error(error: &anyhow::Error) {
    let are_several = error.is::<ProblemLines>() || error.is::<Problems>();
    let further = if are_several { "error: " } else { "       " };
    for (number, line) in Causes(error).to_string().split('\n').enumerate() {
        let mark = if number == 0 { "error: " } else { further };
        eprint_line(format_args!("{mark}{}", Bounded(line, ERROR_BYTES_MAX)));
    }
}

/// Several problems, each one line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
struct ProblemLines(Vec<String>);

/// Several problems as one error, a line each: a line break in one of them is escaped.
pub fn join_problems(problems: Vec<anyhow::Error>) -> anyhow::Error {
    let lines = problems.into_iter().map(|problem| line(Causes(&problem)));
    ProblemLines(lines.collect()).into()
}

/// Standard error, for a log of JSON lines. JSON holds no control characters below U+0020. The
/// other harmful characters are escaped as JSON does it. In a long line, each text is [`Bounded`].
pub struct JsonLog;

impl<'a> MakeWriter<'a> for JsonLog {
    type Writer = JsonLines<io::Stderr>;

    #[expect(clippy::disallowed_methods, reason = "this is what escapes")]
    fn make_writer(&'a self) -> Self::Writer {
        JsonLines(io::stderr())
    }
}

/// Writes lines of JSON. Each write must be a whole line.
pub struct JsonLines<W>(W);

impl<W: io::Write> io::Write for JsonLines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let text = String::from_utf8_lossy(bytes);
        let text = match text.len() > LOGGED_BYTES_MAX {
            true => bounded_json(text),
            false => text,
        };
        self.0.write_all(escape_json(&text).as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A line of JSON in which each text is [`Bounded`]. A line that isn't JSON is bounded as one text.
fn bounded_json(line: Cow<'_, str>) -> Cow<'_, str> {
    let Ok(mut value) = serde_json::from_str(&line) else {
        return Bounded(line, LOGGED_BYTES_MAX).to_string().into();
    };
    bound(&mut value);
    format!("{value}\n").into()
}

fn bound(value: &mut Value) {
    match value {
        Value::String(text) if text.len() > LOGGED_BYTES_MAX => {
            *text = Bounded(&text, LOGGED_BYTES_MAX).to_string();
        }
        Value::Array(items) => items.iter_mut().for_each(bound),
        Value::Object(fields) => fields.values_mut().for_each(bound),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HARMFUL: &str =
        "a\n2026 ERROR\r\u{1b}[2J\u{9b}31m\u{85}\u{7f}\u{202e}b\u{2066}\u{2028}ä\t";

    #[test]
    fn a_line_has_no_character_that_breaks_or_commands() {
        let line = line(HARMFUL);
        assert_eq!(
            line,
            r"a\n2026 ERROR\r\u{1b}[2J\u{9b}31m\u{85}\u{7f}\u{202e}b\u{2066}\u{2028}ä\t"
        );
        assert!(!line.contains(is_harmful));
    }

    #[test]
    fn what_is_said_has_a_bound_and_says_what_is_left_out() {
        assert_eq!(cut("short"), "short");
        let long = "ä".repeat(SHOWN_BYTES_MAX);
        let said = cut(&long);
        assert_eq!(
            said.chars().filter(|it| *it == 'ä').count(),
            SHOWN_BYTES_MAX / 2
        );
        assert!(said.ends_with("… (1024 bytes more)"), "{said}");
        let said = brief(&format!("{long}\n").repeat(LINES_MAX + 3));
        assert_eq!(said.lines().count(), LINES_MAX + 1);
        assert!(said.ends_with("\nand 3 lines more"), "{said}");
        assert!(said.len() < 2 * LINES_MAX * SHOWN_BYTES_MAX);
        assert_eq!(brief("a\nb"), "a\nb");
        let parts = format_args!("{}{}{}", "ä".repeat(8_191), "äö", "x").to_string();
        let logged = Bounded(Line(&parts), LOGGED_BYTES_MAX).to_string();
        assert!(logged.ends_with("ä… (3 bytes more)"), "{}", logged.len());
        assert_eq!(Bounded("short", 5).to_string(), "short");
    }

    #[test]
    fn a_text_keeps_its_line_breaks_and_nothing_else() {
        let text = Text("a\u{1b}[1m\nb\u{202e}\n").to_string();
        assert_eq!(text, "a\\u{1b}[1m\nb\\u{202e}\n");
    }

    #[test]
    fn a_problem_among_several_is_one_line() {
        let problems = ["one\nerror: two", "three"].map(|text| anyhow::anyhow!(text.to_owned()));
        let error = join_problems(problems.into()).to_string();
        assert_eq!(error, "one\\nerror: two\nthree");
    }

    #[test]
    fn a_line_of_json_stays_the_same_json() {
        let json = serde_json::json!({"message": HARMFUL}).to_string();
        let mut lines = JsonLines(Vec::new());
        lines.write_all(format!("{json}\n").as_bytes()).unwrap();
        let written = String::from_utf8(lines.0).unwrap();
        let line = written.strip_suffix('\n').unwrap();
        assert!(!line.contains(is_harmful), "{line}");
        let read: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(read["message"], HARMFUL);
    }

    #[test]
    fn a_long_line_of_json_has_the_beginning_of_each_text() {
        let (long, short) = ("ä".repeat(50_000), "x".repeat(LOGGED_BYTES_MAX));
        let json = serde_json::json!({
            "fields": {"message": long, "count": 3, "short": short},
            "spans": [{"user": long}],
        });
        let mut lines = JsonLines(Vec::new());
        lines.write_all(format!("{json}\n").as_bytes()).unwrap();
        let written = String::from_utf8(lines.0).unwrap();
        assert!(written.len() < 60_000 && written.ends_with("}\n"));
        let read: Value = serde_json::from_str(written.trim_end()).unwrap();
        let message = &read["fields"]["message"];
        assert!(message.as_str().unwrap().ends_with("… (83616 bytes more)"));
        assert_eq!(read["spans"][0]["user"], *message);
        assert_eq!(read["fields"]["count"], 3);
        assert_eq!(read["fields"]["short"], *short);
    }
}
