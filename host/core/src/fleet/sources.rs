//! The client's rule, as a reference implementation: how a consumer of published messages
//! interprets their sequence numbers.
//!
//! In a fleet, a source is a shard, whichever node owns it, and its epoch is the owner's. So
//! messages that an owner still publishes after another has taken over have an earlier epoch, and
//! are dropped. `clients/js/src/sources.js` implements the same rule in JavaScript.

use std::collections::BTreeMap;

use crate::publish::Subject;

/// What a message is, by its epoch and sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceCheck {
    /// The expected next message: take it.
    Next,
    /// The first message of a source, or of a later epoch of it: take it, and query.
    New,
    /// Messages before it are missing: take it, and query.
    Gap,
    /// A repetition, or a message of an earlier owner: drop it.
    Old,
}

/// The last epoch and sequence numbers of each source.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    known: BTreeMap<u32, Source>,
}

#[derive(Clone, Debug, Default)]
struct Source {
    epoch: u64,
    seqs: BTreeMap<&'static str, u64>,
}

impl Sources {
    /// Notes a message, and classifies it.
    pub fn check(&mut self, source: u32, epoch: u64, subject: Subject, seq: u64) -> SequenceCheck {
        let known = self.known.entry(source).or_default();
        if epoch > known.epoch {
            let seqs = BTreeMap::from([(subject.as_str(), seq)]);
            *known = Source { epoch, seqs };
            return SequenceCheck::New;
        }
        let last = known.seqs.entry(subject.as_str()).or_default();
        if epoch < known.epoch || seq <= *last {
            return SequenceCheck::Old;
        }
        let is_next = seq == *last + 1;
        *last = seq;
        match is_next {
            true => SequenceCheck::Next,
            false => SequenceCheck::Gap,
        }
    }

    /// Notes a beacon, which has the last sequence number on each subject.
    pub fn check_beacon(
        &mut self,
        source: u32,
        epoch: u64,
        seqs: impl IntoIterator<Item = (Subject, u64)>,
    ) -> SequenceCheck {
        let known = self.known.entry(source).or_default();
        if epoch < known.epoch {
            return SequenceCheck::Old;
        }
        let mut found = SequenceCheck::Next;
        if epoch > known.epoch {
            *known = Source {
                epoch,
                ..Source::default()
            };
            found = SequenceCheck::New;
        }
        for (subject, seq) in seqs {
            let last = known.seqs.entry(subject.as_str()).or_default();
            if seq > *last {
                *last = seq;
                if found == SequenceCheck::Next {
                    found = SequenceCheck::Gap;
                }
            }
        }
        found
    }

    /// Notes the epoch of the owner that gave an answer. Returns whether the answer may be used.
    pub fn check_answer(&mut self, source: u32, epoch: u64) -> bool {
        self.check_beacon(source, epoch, []) != SequenceCheck::Old
    }

    /// The newest epoch received from a source; 0 if none was.
    pub fn epoch(&self, source: u32) -> u64 {
        self.known.get(&source).map_or(0, |known| known.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: Subject = Subject::FilteredOnline;
    const OFF: Subject = Subject::FilteredOffline;

    #[test]
    fn what_an_earlier_owner_still_says_is_dropped() {
        let mut sources = Sources::default();
        assert_eq!(sources.check(3, 10, ON, 1), SequenceCheck::New);
        assert_eq!(sources.check(3, 10, ON, 2), SequenceCheck::Next);
        assert_eq!(sources.check(3, 17, OFF, 1), SequenceCheck::New);
        // The previous owner wakes up.
        assert_eq!(sources.check(3, 10, ON, 3), SequenceCheck::Old);
        assert_eq!(sources.check_beacon(3, 10, [(ON, 9)]), SequenceCheck::Old);
        assert!(!sources.check_answer(3, 10) && sources.check_answer(3, 17));
        // An answer announces a new owner as a message does.
        assert!(sources.check_answer(3, 21) && !sources.check_answer(3, 17));
        // Another shard has epochs of its own.
        assert_eq!(sources.check(4, 10, ON, 1), SequenceCheck::New);
        assert_eq!((sources.epoch(3), sources.epoch(5)), (21, 0));
    }

    #[test]
    fn a_gap_and_a_repetition_are_noticed() {
        let mut sources = Sources::default();
        assert_eq!(sources.check_beacon(0, 5, [(ON, 4)]), SequenceCheck::New);
        assert_eq!(sources.check(0, 5, ON, 4), SequenceCheck::Old);
        assert_eq!(sources.check(0, 5, ON, 5), SequenceCheck::Next);
        assert_eq!(sources.check(0, 5, ON, 7), SequenceCheck::Gap);
        assert_eq!(sources.check_beacon(0, 5, [(ON, 7)]), SequenceCheck::Next);
        assert_eq!(
            sources.check_beacon(0, 5, [(ON, 7), (OFF, 1)]),
            SequenceCheck::Gap
        );
    }
}
