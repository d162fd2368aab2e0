//! The last few dead letters, for the page. Their number, size and rate are limited, however many
//! are published. A stream keeps them in full.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Deserialize;

use crate::clock;

/// How many are kept, and how many are noted per second, at most.
const KEPT: usize = 50;

/// The greatest length of each text, in bytes.
const TEXT_BYTES_MAX: usize = 320;

/// The greatest length of a payload that is searched for its user, in bytes.
const PAYLOAD_BYTES_MAX: usize = 32 << 10;

/// A summary of a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeadLetterSummary {
    /// Its timestamp, in milliseconds.
    pub(crate) at: u64,
    pub(crate) subject: String,
    pub(crate) reason: String,
    /// What was wrong. It may quote the message.
    pub(crate) error: String,
    /// The user whom the message names, if any.
    pub(crate) user: Option<String>,
}

/// The last dead letters of a tenant.
#[derive(Debug, Default)]
pub(crate) struct RecentDeadLetters(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    letters: VecDeque<DeadLetterSummary>,
    /// How many were noted since the start.
    noted: u64,
    /// The current second, and how many were noted in it.
    second: (u64, usize),
}

/// The body of a dead letter.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    subject: Cow<'a, str>,
    #[serde(borrow)]
    reason: Cow<'a, str>,
    #[serde(borrow)]
    error: Cow<'a, str>,
    #[serde(borrow)]
    payload: Cow<'a, str>,
    timestamp: u64,
}

/// A payload that names a user.
#[derive(Deserialize)]
struct AboutUser<'a> {
    #[serde(rename = "userId", borrow)]
    user: Cow<'a, str>,
}

impl RecentDeadLetters {
    /// Notes a dead letter that is published.
    pub(crate) fn note(&self, body: &[u8]) {
        self.note_at(clock::now_ms(), body);
    }

    fn note_at(&self, now_ms: u64, body: &[u8]) {
        {
            let mut kept = self.lock();
            let second = now_ms / 1_000;
            if kept.second.0 != second {
                kept.second = (second, 0);
            }
            if kept.second.1 == KEPT {
                return;
            }
            kept.second.1 += 1;
        }
        // Parsed without the lock, so that nobody waits for it. The body is this program's own: it
        // can be read.
        let Ok(body) = serde_json::from_slice::<Body<'_>>(body) else {
            return;
        };
        let is_short = body.payload.len() <= PAYLOAD_BYTES_MAX;
        let about = is_short.then(|| serde_json::from_str::<AboutUser<'_>>(&body.payload).ok());
        let letter = DeadLetterSummary {
            at: body.timestamp,
            subject: beginning(&body.subject),
            reason: beginning(&body.reason),
            error: beginning(&body.error),
            user: about.flatten().map(|about| beginning(&about.user)),
        };
        let mut kept = self.lock();
        if kept.letters.len() == KEPT {
            kept.letters.pop_back();
        }
        kept.letters.push_front(letter);
        kept.noted += 1;
    }

    /// How many were noted since the start. It changes whenever the kept ones do.
    pub(crate) fn noted(&self) -> u64 {
        self.lock().noted
    }

    /// The kept dead letters, newest first, and how many were noted by then.
    pub(crate) fn newest(&self) -> (u64, Vec<DeadLetterSummary>) {
        let kept = self.lock();
        (kept.noted, kept.letters.iter().cloned().collect())
    }

    fn lock(&self) -> MutexGuard<'_, Recent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The beginning of a text, as much as is kept.
fn beginning(text: &str) -> String {
    let end = text.floor_char_boundary(TEXT_BYTES_MAX);
    let (kept, rest) = text.split_at(end);
    match rest {
        "" => kept.to_owned(),
        _ => format!("{kept}…"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body(error: &str, payload: &str) -> Vec<u8> {
        let body = json!({
            "subject": "presence.connect", "reason": "invalid-json", "error": error,
            "payload": payload, "encoding": "utf8", "timestamp": 7, "node": "n",
        });
        body.to_string().into_bytes()
    }

    #[test]
    fn the_newest_are_kept_with_their_user_and_the_rest_is_forgotten() {
        let letters = RecentDeadLetters::default();
        for number in 0..60_u64 {
            let payload = format!("{{\"userId\": \"u{number}\"}}");
            letters.note_at(number * 1_000, &body("e", &payload));
        }
        let (noted, kept) = letters.newest();
        assert_eq!((noted, kept.len()), (60, KEPT));
        assert_eq!(kept[0].user.as_deref(), Some("u59"));
        assert_eq!((kept[0].at, &*kept[0].reason), (7, "invalid-json"));
        letters.note_at(61_000, &body("e", "no JSON"));
        assert_eq!(letters.newest().1[0].user, None);
    }

    #[test]
    fn a_flood_and_long_texts_take_no_more_than_there_is_room_for() {
        let letters = RecentDeadLetters::default();
        for _ in 0..10_000 {
            letters.note_at(5, &body("e", "{}"));
        }
        assert_eq!(letters.noted(), KEPT as u64);
        letters.note_at(1_005, &body(&"é".repeat(10_000), "{}"));
        let error = letters.newest().1[0].error.clone();
        assert!(error.len() <= TEXT_BYTES_MAX + 3 && error.ends_with('…'));
        letters.note_at(1_006, b"no letter");
        assert_eq!(letters.noted(), KEPT as u64 + 1);
    }
}
