//! What has been followed of a bucket's stream, and its comparison with what the broker reports of
//! the stream. It does no I/O.

use std::collections::HashMap;
use std::hash::BuildHasher;

use async_nats::jetstream::{kv, stream};
use foldhash::fast::FixedState;

/// After this many checks in a row without anything new, a bucket counts as quiet.
const QUIET_CHECKS: u32 = 3;

/// What has been followed of a stream.
#[derive(Debug)]
pub(super) struct Followed {
    /// When the stream was created. It tells streams of the same name apart.
    identity: String,
    /// The greatest sequence number that was delivered, or that the stream had at the beginning.
    last: u64,
    /// The keys that the stream has messages of, as hashes, and whether each has a value.
    keys: HashMap<u64, bool, FixedState>,
    /// How many of the keys have a value.
    values: usize,
    /// The end of the stream and its number of keys when that number didn't match the followed keys
    /// and the stream was read again. The same mismatch doesn't cause a second reading.
    known_mismatch: Option<(u64, u64)>,
    /// The value of `last` when a check found the stream ahead of it.
    behind_at: Option<u64>,
    /// How many checks in a row have found nothing new.
    quiet_looks: u32,
    quiet_at: u64,
}

/// The result of a check of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamCheck {
    /// The stream is what was followed, or the watch is about to catch up.
    Followed,
    /// The stream is what was followed, isn't empty, and nothing new has come for some checks.
    Quiet,
    /// It is another stream, or entries are missing: it must be read again as a whole.
    Other,
}

impl Followed {
    /// Begins with a stream that is about to be read.
    pub(super) fn new(info: &stream::Info, known_mismatch: Option<(u64, u64)>) -> Self {
        Self {
            known_mismatch,
            ..Self::of(info.created.to_string(), info.state.last_sequence)
        }
    }

    fn of(identity: String, last: u64) -> Self {
        Self {
            identity,
            last,
            keys: HashMap::default(),
            values: 0,
            known_mismatch: None,
            behind_at: None,
            quiet_looks: 0,
            quiet_at: last,
        }
    }

    /// What tells the stream apart from others of the same name.
    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    /// The mismatch that was checked already, to be given to [`Self::new`] when the stream is read
    /// again.
    pub(super) fn known_mismatch(&self) -> Option<(u64, u64)> {
        self.known_mismatch
    }

    /// Whether this reading had a value under a key that the other reading, `after`, doesn't know,
    /// not even as deleted.
    pub(super) fn has_lost(&self, after: &Self) -> bool {
        let mut values = self.keys.iter().filter(|(_, is_value)| **is_value);
        values.any(|(key, _)| !after.keys.contains_key(key))
    }

    /// Whether the stream holds no value.
    pub(super) fn is_empty(&self) -> bool {
        self.values == 0
    }

    /// Notes an entry that was delivered.
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

    /// Compares the followed state with the broker's report about the stream.
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
            // The watch is catching up, unless nothing at all has come since the last check.
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
            && self.known_mismatch.replace((last, keys)) != Some((last, keys))
        {
            return StreamCheck::Other;
        }
        if self.quiet_at != last {
            (self.quiet_at, self.quiet_looks) = (last, 0);
        }
        self.quiet_looks = self.quiet_looks.saturating_add(1);
        if self.quiet_looks >= QUIET_CHECKS && !self.is_empty() {
            StreamCheck::Quiet
        } else {
            StreamCheck::Followed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream with two keys that has been read.
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
        again.known_mismatch = followed.known_mismatch();
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
