//! What viewers are told about a user, and the text for it.

use std::collections::BTreeSet;
use std::fmt;

use presence_tests::client::{ReceivedMessage, now_ms};

use super::page::Style;

/// How many viewers are named in a line.
const NAMED: usize = 6;

/// A change that viewers are told of: who learns what about whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Change {
    pub(crate) user: String,
    pub(crate) online: bool,
    /// Whether the user came or went. `false`: it is a correction, because who may see the user has
    /// changed.
    pub(crate) moved: bool,
    pub(crate) viewers: BTreeSet<String>,
}

impl Change {
    /// What happened, and whom it concerns.
    fn words(&self) -> (String, String) {
        let Self {
            user,
            online,
            moved,
            viewers,
        } = self;
        let names = named(viewers);
        let are = if viewers.len() == 1 { "is" } else { "are" };
        let (happened, whom) = match (online, moved) {
            (true, true) => ("came online", format!("seen by {names}")),
            (false, true) => ("went offline", format!("{names} {are} told")),
            (true, false) => ("is shown", format!("to {names}")),
            (false, false) => ("is hidden", format!("from {names}")),
        };
        (format!("{user} {happened}"), whom)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (happened, whom) = self.words();
        write!(f, "{happened} → {whom}")
    }
}

/// A filtered event.
#[derive(Clone, Debug)]
pub(crate) struct FilteredEvent {
    pub(crate) change: Change,
    /// The device, as viewers are told.
    device: String,
    /// How long ago the user was last seen, in milliseconds. 0 if the user is online.
    silent_ms: u64,
    /// Why the user went.
    reason: String,
}

impl FilteredEvent {
    /// Reads a filtered event. `moved`: the reason in the broadcast event before it, empty if that
    /// has none. `None` if there was no broadcast.
    pub(crate) fn read(seen: &ReceivedMessage, moved: Option<String>) -> Self {
        let device = seen.field("metadata").get("device");
        let last_seen = seen.field("lastSeen").as_u64();
        Self {
            change: Change {
                user: seen.text("userId").to_owned(),
                online: seen.text("type") == "user_online",
                moved: moved.is_some(),
                viewers: seen.visible_to().into_iter().map(str::to_owned).collect(),
            },
            device: device
                .and_then(|device| device.as_str())
                .unwrap_or_default()
                .to_owned(),
            silent_ms: last_seen.map_or(0, |at| now_ms().saturating_sub(at)),
            reason: moved.unwrap_or_default(),
        }
    }

    /// The event as a line.
    pub(crate) fn phrase(&self) -> Phrase {
        let Change { online, moved, .. } = self.change;
        let (style, detail) = match (online, moved) {
            (true, true) => (Style::Green, self.device()),
            (false, true) => (Style::Red, self.last_seen()),
            (true, false) => (Style::Cyan, self.device()),
            (false, false) => (Style::Yellow, String::new()),
        };
        let (left, right) = self.change.words();
        Phrase {
            style,
            left,
            right,
            detail,
        }
    }

    fn device(&self) -> String {
        match self.device.as_str() {
            "" => String::new(),
            device => format!("device: {device}"),
        }
    }

    fn last_seen(&self) -> String {
        let reason = if self.reason == "timeout" {
            "timed out, "
        } else {
            ""
        };
        let ago = match self.silent_ms {
            ..500 => "just now".to_owned(),
            silent_ms => format!("{:.1} s ago", silent_ms as f64 / 1_000.0),
        };
        format!("{reason}last seen {ago}")
    }
}

/// A line in three columns.
#[derive(Clone, Debug)]
pub(crate) struct Phrase {
    /// The colour of what happened.
    pub(crate) style: Style,
    /// What happened.
    pub(crate) left: String,
    /// Whom it concerns.
    pub(crate) right: String,
    /// Further information; may be empty.
    pub(crate) detail: String,
}

/// At most `NAMED` names, and how many more there are.
fn named(names: &BTreeSet<String>) -> String {
    let first: Vec<_> = names.iter().take(NAMED).map(String::as_str).collect();
    match names.len() - first.len() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(online: bool, moved: bool, viewers: &[&str]) -> FilteredEvent {
        FilteredEvent {
            change: Change {
                user: "ada".into(),
                online,
                moved,
                viewers: viewers.iter().map(|&viewer| viewer.into()).collect(),
            },
            device: "web".into(),
            silent_ms: 3_042,
            reason: "timeout".into(),
        }
    }

    #[test]
    fn a_line_says_what_happened_and_whom_it_concerns() {
        let line = |online, moved, viewers: &[&str]| {
            let event = event(online, moved, viewers);
            format!("{} ({})", event.change, event.phrase().detail)
        };
        assert_eq!(
            line(true, true, &["cleo", "ben"]),
            "ada came online → seen by ben, cleo (device: web)"
        );
        assert_eq!(
            line(false, true, &["ben"]),
            "ada went offline → ben is told (timed out, last seen 3.0 s ago)"
        );
        assert_eq!(
            line(true, false, &["dan"]),
            "ada is shown → to dan (device: web)"
        );
        assert_eq!(line(false, false, &["dan"]), "ada is hidden → from dan ()");
    }

    #[test]
    fn many_viewers_are_counted_rather_than_named() {
        let viewers = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let phrase = event(true, true, &viewers).phrase();
        assert_eq!(phrase.right, "seen by a, b, c, d, e, f and 2 more");
    }
}
