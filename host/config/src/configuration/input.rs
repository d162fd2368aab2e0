//! `[input]`: where connects and disconnects are taken from.

use super::fleet::Fleet;
use super::problem::InvalidValue;
use super::section::Section;
use super::state::State;

/// The longest name of a stream that a server accepts, in bytes.
const STREAM_BYTES_MAX: usize = 255;

/// `[input]`: where connects and disconnects are taken from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Input {
    /// The JetStream stream that stores them. `None`: they are taken as they are published.
    pub stream: Option<String>,
}

impl Input {
    pub(super) fn read(section: &mut Section<'_, '_>, state: &State, fleet: &Fleet) -> Self {
        let stream = section.get("stream", |text: String| match text.as_str() {
            "" => Ok(None),
            _ => stream_name(text).map(Some),
        });
        let input = Self {
            stream: stream.flatten(),
        };
        // In a fleet, the broker knows up to where the stream has been taken.
        if input.stream.is_some() && state.dir.is_none() && !fleet.enabled {
            let what = "is set, and `dir` in [state] is \"\": the node would not know after a \
                        restart what it has taken from the stream";
            let fix = "give [state] a `dir`, or leave `stream` out";
            section.refuse("stream", InvalidValue::new(what, fix));
        }
        input
    }
}

/// Checks the name of a stream.
fn stream_name(text: String) -> Result<String, InvalidValue> {
    let is_taken = |character: char| character.is_ascii_graphic() && !".*>/\\".contains(character);
    if text.len() <= STREAM_BYTES_MAX && text.chars().all(is_taken) {
        return Ok(text);
    }
    let fix = format!(
        "a stream's name has at most {STREAM_BYTES_MAX} letters, digits and signs, and no space, \
         `.`, `*`, `>`, `/` or `\\`"
    );
    Err(InvalidValue::new(format!("is `{text}`"), fix))
}
