//! The events that contenders get: the seed document's, for a population in which everyone has
//! contacts of their own.

use std::fmt::Write;

use super::generator::Frames;

/// A population of users, all with the same number of contacts.
#[derive(Clone, Copy)]
pub(crate) struct Population {
    pub(crate) users: usize,
    pub(crate) viewers: usize,
}

/// The number of ids from which contacts are taken. A prime, so that any step through them visits
/// each.
const POOL: usize = 10_007;

impl Population {
    /// A population with so few users that the directory has only a few megabytes.
    pub(crate) fn with(viewers: usize) -> Self {
        Self {
            users: (2_000_000 / viewers.max(1)).clamp(500, 20_000),
            viewers,
        }
    }

    /// The same, with only the first of the users.
    pub(crate) fn of_one(self) -> Self {
        Self { users: 1, ..self }
    }

    /// The directory, as the contract lays it out.
    pub(crate) fn directory(self) -> String {
        let mut json = String::from("{\"contacts\":{");
        for user in 0..self.users {
            let comma = if user == 0 { "" } else { "," };
            let _ = write!(json, "{comma}\"{}\":[", name(user));
            for (nth, contact) in self.contacts(user).enumerate() {
                let comma = if nth == 0 { "" } else { "," };
                let _ = write!(json, "{comma}\"{}\"", viewer(contact));
            }
            json.push(']');
        }
        json.push_str("},\"groups\":{},\"blocks\":{}}");
        json
    }

    /// Who may see a user.
    fn contacts(self, user: usize) -> impl Iterator<Item = usize> {
        // Any step will do, if it is different for each user.
        let step = 1 + (user * 7_919) % (POOL - 1);
        (0..self.viewers).map(move |contact| (user + contact * step) % POOL)
    }

    /// Whom a contact may see.
    pub(crate) fn seen_by(self, viewer: usize) -> impl Iterator<Item = usize> {
        (0..self.users).filter(move |user| self.contacts(*user).any(|contact| contact == viewer))
    }

    /// An application says that everyone comes online, with the seed document's body.
    pub(crate) fn online(self, root: &str, at: u64) -> Frames {
        self.frames(&format!("{root}.events.user_online"), |user| {
            format!(
                "{{\"type\":\"user_online\",\"userId\":\"{}\",\"timestamp\":{at},\"metadata\":{{\
                 \"device\":\"web\",\"userAgent\":\"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7)\",\
                 \"location\":\"dashboard\",\"connId\":\"conn_abc123\"}}}}",
                name(user)
            )
        })
    }

    /// Everyone goes offline.
    pub(crate) fn offline(self, root: &str, at: u64) -> Frames {
        self.frames(&format!("{root}.events.user_offline"), |user| {
            format!(
                "{{\"type\":\"user_offline\",\"userId\":\"{}\",\"timestamp\":{at},\
                 \"lastSeen\":{at},\"reason\":\"disconnect\"}}",
                name(user)
            )
        })
    }

    fn frames(self, subject: &str, body: impl Fn(usize) -> String) -> Frames {
        let mut frames = Frames::default();
        for user in 0..self.users {
            frames.push(subject, "", &body(user));
        }
        frames
    }
}

/// The seed document's time.
pub(crate) const BEGIN_MS: u64 = 1_698_000_000_000;

/// The id of a user's contact.
pub(crate) fn viewer(contact: usize) -> String {
    format!("v{contact:05}")
}

/// A user's id.
pub(crate) fn name(user: usize) -> String {
    format!("user-{user:05}")
}
