//! What a source has published and the broker may not have yet: kept until the broker
//! has it, so that it can be published again after a lost connection.

use std::collections::VecDeque;

use async_nats::Subject;
use bytes::Bytes;

/// What an entry takes beside its body, more or less.
const ENTRY_BYTES: usize = 128;

/// A message as it is published, and published again.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) subject: Subject,
    /// How often the numbers on the subject have begun anew since the source's start.
    pub(crate) renewed: u64,
    /// The message's number on the subject.
    pub(crate) seq: u64,
    pub(crate) body: Bytes,
}

/// The messages of one source, in their order. Their places are counted from 0 since
/// the source's start.
#[derive(Debug)]
pub(crate) struct Journal {
    entries: VecDeque<Entry>,
    /// The place of the first of them.
    begin: u64,
    bytes: usize,
    bytes_max: usize,
}

impl Journal {
    /// An empty one, which is full at so many bytes, more or less.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            begin: 0,
            bytes: 0,
            bytes_max,
        }
    }

    /// The place of the first message that is kept.
    pub(crate) fn begin(&self) -> u64 {
        self.begin
    }

    /// The place of the message that comes next.
    pub(crate) fn end(&self) -> u64 {
        self.begin + self.entries.len() as u64
    }

    /// Whether there is room for another message. One alone always has it.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes < self.bytes_max
    }

    /// How many bytes are kept, more or less.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        self.bytes += bytes(&entry);
        self.entries.push_back(entry);
    }

    /// The message at a place, if it is kept.
    pub(crate) fn get(&self, place: u64) -> Option<&Entry> {
        let place = place.checked_sub(self.begin)?;
        self.entries.get(usize::try_from(place).ok()?)
    }

    /// The broker has all messages before this place.
    pub(crate) fn acknowledged(&mut self, end: u64) {
        while self.begin < end
            && let Some(entry) = self.entries.pop_front()
        {
            self.begin += 1;
            self.bytes -= bytes(&entry);
        }
    }
}

fn bytes(entry: &Entry) -> usize {
    ENTRY_BYTES + entry.body.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: u64, bytes: usize) -> Entry {
        Entry {
            subject: "s".into(),
            renewed: 0,
            seq,
            body: vec![0; bytes].into(),
        }
    }

    #[test]
    fn messages_are_kept_until_they_are_acknowledged() {
        let mut journal = Journal::new(1_000);
        for seq in 1..=4 {
            journal.push(entry(seq, 10));
        }
        assert_eq!((journal.begin(), journal.end()), (0, 4));
        journal.acknowledged(2);
        journal.acknowledged(1);
        assert_eq!((journal.begin(), journal.end()), (2, 4));
        assert!(journal.get(1).is_none());
        assert_eq!(journal.get(2).map(|entry| entry.seq), Some(3));
        journal.acknowledged(9);
        assert_eq!((journal.begin(), journal.end(), journal.bytes()), (4, 4, 0));
    }

    #[test]
    fn it_is_full_at_its_bytes_and_takes_one_message_however_large() {
        let mut journal = Journal::new(1_000);
        assert!(journal.has_room());
        journal.push(entry(1, 5_000));
        assert!(!journal.has_room());
        journal.acknowledged(1);
        journal.push(entry(2, 100));
        assert!(journal.has_room());
    }
}
