//! What the host has to publish after an action.

use std::collections::BTreeSet;
use std::fmt;

use super::filtered_event::Change;

/// What has to come. Anything else is an error.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    /// Events on `presence.events`: the user, and the reason if the user went offline.
    pub(crate) events: BTreeSet<(String, Option<String>)>,
    /// Filtered events.
    pub(crate) filtered: BTreeSet<Change>,
    /// Reasons of dead letters.
    pub(crate) dead_letters: Vec<&'static str>,
}

impl Expected {
    /// Whether all has come.
    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.filtered.is_empty() && self.dead_letters.is_empty()
    }

    /// A user comes online, and these viewers are told.
    pub(crate) fn online(user: &str, viewers: BTreeSet<String>) -> Self {
        Self::moved(user, None, viewers)
    }

    /// A user goes offline for a reason, and these viewers are told.
    pub(crate) fn offline(user: &str, reason: &str, viewers: BTreeSet<String>) -> Self {
        Self::moved(user, Some(reason.to_owned()), viewers)
    }

    fn moved(user: &str, went: Option<String>, viewers: BTreeSet<String>) -> Self {
        let change = Change {
            user: user.to_owned(),
            online: went.is_none(),
            moved: true,
            viewers,
        };
        let mut expected = Self {
            events: [(user.to_owned(), went)].into(),
            ..Self::default()
        };
        // Without viewers, no filtered event is published.
        if !change.viewers.is_empty() {
            expected.filtered.insert(change);
        }
        expected
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return write!(f, "nothing is still to come");
        }
        write!(f, "still to come:")?;
        for (user, went) in &self.events {
            let reason = went.as_deref().unwrap_or("online");
            write!(f, "\n  an event: {user}, {reason}")?;
        }
        for change in &self.filtered {
            write!(f, "\n  {change}")?;
        }
        for reason in &self.dead_letters {
            write!(f, "\n  a dead letter: {reason}")?;
        }
        Ok(())
    }
}
