//! Messages of the input stream that an owner has acknowledged recently. If one is delivered again,
//! it is acknowledged again, but not handled again: the acknowledgement was lost, came too late, or
//! was refused by the broker.

use std::collections::BTreeSet;
use std::mem;

use presence_core::message::StreamPlace;

use crate::link::shared_input::ACK_WAIT;

/// How long a message is remembered at least. It is delivered again after [`ACK_WAIT`], and then
/// waits for its turn.
const KNOWN_MS: u64 = 4_000 * ACK_WAIT.as_secs();

/// The messages that an owner has acknowledged.
#[derive(Debug, Default)]
pub(super) struct Acknowledged {
    /// The owner's epoch, and the consumer's creation time (`StreamPlace::stream`), for which the
    /// numbers below hold.
    of: (u64, u64),
    /// The numbers of messages acknowledged in the current period.
    recent: BTreeSet<u64>,
    /// The numbers of the period before.
    before: BTreeSet<u64>,
    /// When the current period began.
    since: u64,
}

impl Acknowledged {
    /// Whether the owner of this epoch has acknowledged the message.
    pub(super) fn has(&self, epoch: u64, place: StreamPlace) -> bool {
        let number = &place.sequence;
        self.of == (epoch, place.stream)
            && (self.recent.contains(number) || self.before.contains(number))
    }

    /// Notes that the owner of this epoch acknowledges a message.
    pub(super) fn add(&mut self, now: u64, epoch: u64, place: StreamPlace) {
        let of = (epoch, place.stream);
        if self.of != of {
            *self = Self {
                of,
                since: now,
                ..Self::default()
            };
        }
        let passed = now.saturating_sub(self.since);
        if passed >= KNOWN_MS {
            self.before = mem::take(&mut self.recent);
            if passed >= 2 * KNOWN_MS {
                self.before.clear();
            }
            self.since = now;
        }
        self.recent.insert(place.sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(sequence: u64) -> StreamPlace {
        StreamPlace {
            stream: 7,
            sequence,
        }
    }

    #[test]
    fn a_message_is_known_for_a_while_and_as_long_as_it_comes_again() {
        let mut acknowledged = Acknowledged::default();
        assert!(!acknowledged.has(0, at(1)));
        acknowledged.add(1_000, 5, at(1));
        for time in 1..10 {
            acknowledged.add(1_000 + time * KNOWN_MS, 5, at(2));
            assert_eq!(acknowledged.has(5, at(1)), time == 1);
            assert!(acknowledged.has(5, at(2)));
        }
        acknowledged.add(1_000 + 20 * KNOWN_MS, 5, at(3));
        assert!(!acknowledged.has(5, at(2)) && acknowledged.has(5, at(3)));
    }

    #[test]
    fn nothing_is_known_of_another_epoch_or_stream() {
        let mut acknowledged = Acknowledged::default();
        acknowledged.add(1_000, 5, at(1));
        let other = StreamPlace { stream: 8, ..at(1) };
        assert!(!acknowledged.has(6, at(1)) && !acknowledged.has(5, other));
        acknowledged.add(1_000, 6, at(2));
        assert!(!acknowledged.has(5, at(1)) && !acknowledged.has(6, at(1)));
    }
}
