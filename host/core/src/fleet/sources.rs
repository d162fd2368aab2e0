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
pub enum Heard {
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
    pub fn hear(&mut self, source: u32, epoch: u64, subject: Subject, seq: u64) -> Heard {
        let known = self.known.entry(source).or_default();
        if epoch > known.epoch {
            let seqs = BTreeMap::from([(subject.as_str(), seq)]);
            *known = Source { epoch, seqs };
            return Heard::New;
        }
        let last = known.seqs.entry(subject.as_str()).or_default();
        if epoch < known.epoch || seq <= *last {
            return Heard::Old;
        }
        let is_next = seq == *last + 1;
        *last = seq;
        match is_next {
            true => Heard::Next,
            false => Heard::Gap,
        }
    }

    /// Notes a beacon, which has the last sequence number on each subject.
    pub fn hear_beacon(
        &mut self,
        source: u32,
        epoch: u64,
        seqs: impl IntoIterator<Item = (Subject, u64)>,
    ) -> Heard {
        let known = self.known.entry(source).or_default();
        if epoch < known.epoch {
            return Heard::Old;
        }
        let mut found = Heard::Next;
        if epoch > known.epoch {
            *known = Source {
                epoch,
                ..Source::default()
            };
            found = Heard::New;
        }
        for (subject, seq) in seqs {
            let last = known.seqs.entry(subject.as_str()).or_default();
            if seq > *last {
                *last = seq;
                if found == Heard::Next {
                    found = Heard::Gap;
                }
            }
        }
        found
    }

    /// Notes the epoch of the owner that gave an answer. Returns whether the answer may be used.
    pub fn hear_answer(&mut self, source: u32, epoch: u64) -> bool {
        self.hear_beacon(source, epoch, []) != Heard::Old
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
        assert_eq!(sources.hear(3, 10, ON, 1), Heard::New);
        assert_eq!(sources.hear(3, 10, ON, 2), Heard::Next);
        assert_eq!(sources.hear(3, 17, OFF, 1), Heard::New);
        // The previous owner wakes up.
        assert_eq!(sources.hear(3, 10, ON, 3), Heard::Old);
        assert_eq!(sources.hear_beacon(3, 10, [(ON, 9)]), Heard::Old);
        assert!(!sources.hear_answer(3, 10) && sources.hear_answer(3, 17));
        // An answer announces a new owner as a message does.
        assert!(sources.hear_answer(3, 21) && !sources.hear_answer(3, 17));
        // Another shard has epochs of its own.
        assert_eq!(sources.hear(4, 10, ON, 1), Heard::New);
        assert_eq!((sources.epoch(3), sources.epoch(5)), (21, 0));
    }

    #[test]
    fn a_gap_and_a_repetition_are_noticed() {
        let mut sources = Sources::default();
        assert_eq!(sources.hear_beacon(0, 5, [(ON, 4)]), Heard::New);
        assert_eq!(sources.hear(0, 5, ON, 4), Heard::Old);
        assert_eq!(sources.hear(0, 5, ON, 5), Heard::Next);
        assert_eq!(sources.hear(0, 5, ON, 7), Heard::Gap);
        assert_eq!(sources.hear_beacon(0, 5, [(ON, 7)]), Heard::Next);
        assert_eq!(sources.hear_beacon(0, 5, [(ON, 7), (OFF, 1)]), Heard::Gap);
    }
}
