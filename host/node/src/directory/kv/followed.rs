//! What has been followed of a bucket's stream, compared with what the broker says of it.
//! It does no I/O.

use std::collections::HashMap;
use std::hash::BuildHasher;

use async_nats::jetstream::{kv, stream};
use foldhash::fast::FixedState;

/// How many looks in a row must find nothing new in a bucket for it to be quiet.
const QUIET_LOOKS: u32 = 3;

/// What has been followed.
#[derive(Debug)]
pub(super) struct Followed {
    /// When the stream was made: another of the same name was made at another time.
    identity: String,
    /// The last of its messages that was delivered, or was there before.
    last: u64,
    /// The keys that it has messages of, as hashes, and whether there is a value.
    keys: HashMap<u64, bool, FixedState>,
    /// How many of them have a value.
    values: usize,
    /// Where the stream ended and how many keys it had when the two didn't fit, and it
    /// was read again: once is enough.
    excused: Option<(u64, u64)>,
    /// How far it had been followed when a look found it behind.
    behind_at: Option<u64>,
    /// Since how many looks nothing new has come.
    quiet_looks: u32,
    quiet_at: u64,
}

/// What a look at a stream says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamCheck {
    /// It is what is followed, or that is about to catch up.
    Followed,
    /// It is, and nothing new has come for some looks, and it isn't empty.
    Quiet,
    /// It is another, or entries are missing: it is to be read whole.
    Other,
}

impl Followed {
    /// A stream that is about to be read.
    pub(super) fn new(info: &stream::Info, excused: Option<(u64, u64)>) -> Self {
        Self {
            excused,
            ..Self::of(info.created.to_string(), info.state.last_sequence)
        }
    }

    fn of(identity: String, last: u64) -> Self {
        Self {
            identity,
            last,
            keys: HashMap::default(),
            values: 0,
            excused: None,
            behind_at: None,
            quiet_looks: 0,
            quiet_at: last,
        }
    }

    /// Which stream it is.
    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    /// For [`Self::new`], when it is read again.
    pub(super) fn excused(&self) -> Option<(u64, u64)> {
        self.excused
    }

    /// Whether it had a value under a key of which another reading knows nothing, not
    /// even that it was deleted.
    pub(super) fn has_lost(&self, after: &Self) -> bool {
        let mut values = self.keys.iter().filter(|(_, is_value)| **is_value);
        values.any(|(key, _)| !after.keys.contains_key(key))
    }

    /// Whether it holds no value.
    pub(super) fn is_empty(&self) -> bool {
        self.values == 0
    }

    /// An entry has been delivered.
    pub(super) fn note(&mut self, entry: &kv::Entry) {
        let is_value = entry.operation == kv::Operation::Put;
        self.delivered(&entry.key, is_value, entry.revision);
    }

    fn delivered(&mut self, key: &str, is_value: bool, revision: u64) {
        self.last = self.last.max(revision);
        let key = FixedState::default().hash_one(key);
        let was_value = self.keys.insert(key, is_value).unwrap_or(false);
        self.values += usize::from(is_value);
        self.values -= usize::from(was_value);
    }

    /// Compares it with what the broker says of the stream.
    pub(super) fn check(&mut self, info: &stream::Info) -> StreamCheck {
        let state = &info.state;
        let identity = info.created.to_string();
        self.compare(&identity, state.last_sequence, state.subjects_count)
    }

    fn compare(&mut self, identity: &str, last: u64, keys: u64) -> StreamCheck {
        if identity != self.identity || last < self.last {
            return StreamCheck::Other;
        }
        if last > self.last {
            // The watch is on its way, unless nothing at all has come since the last look.
            self.quiet_looks = 0;
            let stuck = self.behind_at.replace(self.last) == Some(self.last);
            return if stuck {
                StreamCheck::Other
            } else {
                StreamCheck::Followed
            };
        }
        self.behind_at = None;
        if keys != self.keys.len() as u64
            && self.excused.replace((last, keys)) != Some((last, keys))
        {
            return StreamCheck::Other;
        }
        if self.quiet_at != last {
            (self.quiet_at, self.quiet_looks) = (last, 0);
        }
        self.quiet_looks = self.quiet_looks.saturating_add(1);
        if self.quiet_looks >= QUIET_LOOKS && !self.is_empty() {
            StreamCheck::Quiet
        } else {
            StreamCheck::Followed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream with two keys, read.
    fn read() -> Followed {
        let mut followed = Followed::of("a".into(), 5);
        followed.delivered("contacts.1", true, 4);
        followed.delivered("blocks.1", true, 5);
        followed
    }

    #[test]
    fn a_stream_that_is_what_was_followed_is_quiet_after_a_while() {
        let mut followed = read();
        assert_eq!(followed.compare("a", 5, 2), StreamCheck::Followed);
        assert_eq!(followed.compare("a", 5, 2), StreamCheck::Followed);
        assert_eq!(followed.compare("a", 5, 2), StreamCheck::Quiet);
        followed.delivered("contacts.2", true, 6);
        assert_eq!(followed.compare("a", 6, 3), StreamCheck::Followed);
    }

    #[test]
    fn another_stream_an_earlier_end_and_missing_keys_are_noticed() {
        assert_eq!(read().compare("b", 5, 2), StreamCheck::Other);
        assert_eq!(read().compare("a", 4, 2), StreamCheck::Other);
        assert_eq!(read().compare("a", 5, 1), StreamCheck::Other);
        assert_eq!(read().compare("a", 5, 0), StreamCheck::Other);
    }

    #[test]
    fn a_watch_that_is_behind_gets_until_the_next_look_to_go_on() {
        let mut followed = read();
        assert_eq!(followed.compare("a", 9, 2), StreamCheck::Followed);
        followed.delivered("blocks.1", false, 6);
        assert_eq!(followed.compare("a", 9, 2), StreamCheck::Followed);
        assert_eq!(followed.compare("a", 9, 2), StreamCheck::Other);
    }

    #[test]
    fn a_key_that_is_gone_without_a_deletion_is_lost() {
        let (mut before, mut after) = (read(), Followed::of("a".into(), 5));
        after.delivered("contacts.1", false, 4);
        assert!(before.has_lost(&after));
        before.delivered("blocks.1", false, 6);
        assert!(!before.has_lost(&after));
    }

    #[test]
    fn what_was_looked_into_once_is_not_again() {
        let mut followed = read();
        assert_eq!(followed.compare("a", 5, 7), StreamCheck::Other);
        let mut again = read();
        again.excused = followed.excused();
        assert_eq!(again.compare("a", 5, 7), StreamCheck::Followed);
        assert_eq!(again.compare("a", 5, 8), StreamCheck::Other);
    }

    #[test]
    fn a_stream_of_deletions_alone_is_empty() {
        let mut followed = read();
        followed.delivered("contacts.1", false, 6);
        followed.delivered("blocks.1", false, 7);
        followed.delivered("blocks.1", false, 8);
        assert!(followed.is_empty());
        followed.delivered("blocks.1", true, 9);
        assert!(!followed.is_empty());
    }
}
