//! The bodies of answers to queries: what a viewer may know of each user they asked about.
//!
//! The answer on a user who is hidden from the viewer is the same as on a user who was never seen.

use std::collections::BTreeSet;

use crate::directory::Question;
use crate::event::Event;
use crate::json::{push_number, push_quoted};
use crate::query::Refusal;
use crate::rules::Rendition;

/// About how many bytes the answer on one user takes.
const ANSWER_BYTES: usize = 96;

/// The minimum length of the answer on a user, without the id, in bytes.
pub const ANSWER_BYTES_MIN: usize = b"{\"userId\":\"\",\"status\":\"offline\"},".len();

/// What a viewer may know of a user.
#[derive(Clone, Copy, Debug)]
pub enum Visibility<'a> {
    /// The user is online, with what a rendition shows of this event.
    Online(&'a Event, &'a Rendition),
    /// The user is offline. The time: when they were last seen.
    LastSeen(u64),
    /// The user is offline, hidden, or unknown.
    Nothing,
}

/// Answers on several users, in the order of the query.
#[derive(Debug, Default)]
pub struct Answers {
    json: Vec<u8>,
    ends: Vec<usize>,
    /// The questions whose answers aren't cached yet. The users that they concern look hidden, and
    /// can be queried again later.
    pub cache_misses: BTreeSet<Question>,
}

impl Answers {
    /// Empty answers, with capacity for a number of users.
    pub fn with_capacity(users: usize) -> Self {
        Self {
            json: Vec::with_capacity(ANSWER_BYTES * users),
            ends: Vec::with_capacity(users),
            cache_misses: BTreeSet::new(),
        }
    }

    /// Adds the answer on a user.
    pub fn push(&mut self, user: &str, visibility: Visibility<'_>) {
        let json = &mut self.json;
        json.extend_from_slice(b"{\"userId\":");
        match visibility {
            Visibility::Online(event, _) => json.extend_from_slice(event.name.json()),
            _ => push_quoted(json, user),
        }
        json.extend_from_slice(b",\"status\":");
        match visibility {
            Visibility::Online(event, rendition) => {
                json.extend_from_slice(b"\"online\",\"metadata\":");
                event
                    .metadata
                    .write_public(json, |key| rendition.shows(key));
            }
            Visibility::LastSeen(at) => {
                json.extend_from_slice(b"\"offline\",\"lastSeen\":");
                push_number(json, at);
            }
            Visibility::Nothing => json.extend_from_slice(b"\"offline\""),
        }
        json.push(b'}');
        self.ends.push(json.len());
    }

    /// The answer on the user at this place in the query: a JSON object.
    pub fn get(&self, place: usize) -> Option<&[u8]> {
        let end = *self.ends.get(place)?;
        let before = place
            .checked_sub(1)
            .and_then(|before| self.ends.get(before));
        self.json.get(before.copied().unwrap_or_default()..end)
    }

    /// The size of all answers in bytes.
    pub fn bytes(&self) -> usize {
        self.json.len()
    }
}

/// A reply with these answers. `bytes`: their total size.
pub fn reply<'a>(viewer: &str, answers: impl Iterator<Item = &'a [u8]>, bytes: usize) -> Vec<u8> {
    let mut json = Vec::with_capacity(bytes + 2 * viewer.len() + USERS_BYTES_MAX);
    json.extend_from_slice(b"{\"viewerId\":");
    push_quoted(&mut json, viewer);
    json.extend_from_slice(b",\"users\":[");
    let head = json.len();
    for answer in answers {
        json.extend_from_slice(answer);
        json.push(b',');
    }
    if json.len() > head {
        json.pop();
    }
    json.extend_from_slice(b"]}");
    json
}

/// Room for what surrounds the answers, and for the commas of most replies.
const USERS_BYTES_MAX: usize = 1_100;

/// The reply to a refused question.
pub fn refusal(refusal: &Refusal) -> Vec<u8> {
    let mut json = b"{\"ok\":false,\"reason\":".to_vec();
    push_quoted(&mut json, refusal.reason);
    json.extend_from_slice(b",\"error\":");
    push_quoted(&mut json, &refusal.error);
    if let Some(field) = &refusal.field {
        json.extend_from_slice(b",\"field\":");
        push_quoted(&mut json, field);
    }
    json.push(b'}');
    json
}
