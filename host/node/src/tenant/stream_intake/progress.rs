//! How far the input stream has been read, and where reading continues.

use crate::clock;
use crate::link::input_stream::ReadFrom;
use crate::state::position::{Positions, ReadPositions, ShardOf};

/// By how much the broker's clock may be behind this node's, in milliseconds, when messages are
/// selected by time.
const CLOCKS_MS: u64 = 1_000;

/// How far the stream has been read.
pub(super) struct Progress {
    /// The positions that were stored in the last run.
    positions: Positions,
    /// The stream that is being read. `None` before that.
    read: Option<Read>,
    /// When the stream was last found in order, in milliseconds since the Unix epoch.
    in_order_at: u64,
}

struct Read {
    /// The stream's creation time, which identifies it.
    stream: u64,
    /// The number of the next message.
    next: u64,
    /// When reading began: the number up to which everything had been taken.
    begun_at: u64,
    /// Which of the next messages were taken before a restart.
    taken: Option<ReadPositions>,
}

/// Why the reading begins where it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BeginReason {
    /// No stream was read before.
    First,
    /// After the messages that were taken.
    Continued,
    /// The stream isn't the one that was read before.
    OtherStream,
    /// It is the same stream, but its newest messages are lost.
    LostEnd,
}

impl Progress {
    /// For a node that has just started. `since`: without stored positions, messages are taken that
    /// were stored since this time, in milliseconds since the Unix epoch.
    pub(super) fn new(positions: Positions, since: u64) -> Self {
        Self {
            positions,
            read: None,
            in_order_at: since,
        }
    }

    /// Where to begin in a stream. `made_at`: its creation time. `last`: the number of its last
    /// message.
    pub(super) fn begin(&mut self, made_at: u64, last: u64) -> (ReadFrom, BeginReason) {
        let lost_end = ReadFrom::Since(self.in_order_at.saturating_sub(CLOCKS_MS));
        let (end, next) = match &self.read {
            Some(read) if read.stream == made_at => (read.next.saturating_sub(1), read.next),
            Some(_) => return (ReadFrom::At(1), BeginReason::OtherStream),
            None => match self.positions.of(made_at) {
                Some(taken) => (taken.last(), taken.all_up_to() + 1),
                None if self.positions.is_empty() => {
                    return (ReadFrom::Since(self.in_order_at), BeginReason::First);
                }
                None => return (ReadFrom::At(1), BeginReason::OtherStream),
            },
        };
        match end > last {
            true => (lost_end, BeginReason::LostEnd),
            false => (ReadFrom::At(next), BeginReason::Continued),
        }
    }

    /// Notes that reading has begun. `next`: the number of the next message, according to the
    /// server. Returns how many messages were removed before they could be taken.
    pub(super) fn begun(
        &mut self,
        made_at: u64,
        (first, next): (u64, u64),
        (begin, why): (ReadFrom, BeginReason),
    ) -> u64 {
        let wanted = match begin {
            ReadFrom::At(wanted) => Some(wanted.max(1)),
            ReadFrom::Since(_) => None,
        };
        let is_other = self.read.as_ref().is_some_and(|it| it.stream != made_at);
        let taken = match (&mut self.read, wanted) {
            // The stored positions are about other messages.
            (_, None) => None,
            (Some(read), Some(_)) if !is_other => read.taken.take(),
            (Some(_), Some(_)) => None,
            (None, Some(_)) => self.positions.of(made_at),
        };
        let next = wanted.map_or(next, |wanted| wanted.max(first));
        self.read = Some(Read {
            stream: made_at,
            next,
            begun_at: next.saturating_sub(1),
            taken,
        });
        self.note_in_order();
        match (why, wanted) {
            (BeginReason::Continued, Some(wanted)) => next - wanted,
            // Messages that another stream removed earlier don't count as lost.
            _ => 0,
        }
    }

    /// Notes a message. Returns how many messages before it are missing.
    pub(super) fn pass(&mut self, sequence: u64) -> u64 {
        let Some(read) = &mut self.read else {
            return 0;
        };
        let missing = sequence.saturating_sub(read.next);
        read.next = read.next.max(sequence.saturating_add(1));
        // No later message was taken before the restart.
        read.taken.take_if(|taken| taken.last() < sequence);
        self.note_in_order();
        missing
    }

    /// Notes that the stream is in order now.
    pub(super) fn note_in_order(&mut self) {
        self.in_order_at = clock::wall_now_us() / 1_000;
    }

    /// Which of the next messages were taken before a restart.
    pub(super) fn taken(&self) -> Option<&ReadPositions> {
        self.read.as_ref()?.taken.as_ref()
    }

    /// The creation time of the stream; 0 if none is read yet.
    pub(super) fn stream(&self) -> u64 {
        self.read.as_ref().map_or(0, |read| read.stream)
    }

    /// The number of the next message.
    pub(super) fn next(&self) -> u64 {
        self.read.as_ref().map_or(1, |read| read.next)
    }

    /// When reading began: the number up to which everything had been taken.
    pub(super) fn begun_at(&self) -> u64 {
        self.read.as_ref().map_or(0, |read| read.begun_at)
    }

    /// The position of a shard in the stream, once it has got everything that was read.
    pub(super) fn upto(&self, of: ShardOf) -> u64 {
        let known = self.taken().map_or(0, |taken| taken.of_shard(of));
        self.next().saturating_sub(1).max(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::position::{Position, ShardPosition, StoredPosition};

    const MADE: u64 = 7;
    const ONE: ShardOf = ShardOf {
        shards: 2,
        shard: 1,
    };

    /// The stored positions of two shards.
    fn stored(each: [u64; 2]) -> Positions {
        let rows = each.iter().zip(0..).map(|(sequence, shard)| {
            StoredPosition::new(ShardPosition {
                of: ShardOf { shards: 2, shard },
                position: Position {
                    stream: MADE,
                    sequence: *sequence,
                },
                begin: 0,
            })
        });
        Positions::new(rows.collect())
    }

    #[test]
    fn the_first_time_what_was_stored_since_the_node_last_ran_is_wanted() {
        let mut progress = Progress::new(Positions::default(), 5_000);
        let begin = progress.begin(MADE, 40);
        assert_eq!(begin, (ReadFrom::Since(5_000), BeginReason::First));
        assert_eq!(progress.begun(MADE, (3, 30), begin), 0);
        assert_eq!((progress.next(), progress.upto(ONE)), (30, 29));
        assert_eq!([progress.pass(30), progress.pass(33)], [0, 2]);
        let again = progress.begin(MADE, 40);
        assert_eq!(again, (ReadFrom::At(34), BeginReason::Continued));
    }

    #[test]
    fn a_start_goes_on_behind_what_all_have_taken_and_a_shard_never_goes_back() {
        let mut progress = Progress::new(stored([10, 20]), 0);
        let begin = progress.begin(MADE, 20);
        assert_eq!(begin, (ReadFrom::At(11), BeginReason::Continued));
        assert_eq!(progress.begun(MADE, (1, 11), begin), 0);
        assert_eq!(progress.upto(ONE), 20);
        progress.pass(11);
        assert_eq!(progress.upto(ONE), 20);
        assert!(progress.taken().is_some());
        // Messages taken before the restart also count when reading begins again.
        let begin = progress.begin(MADE, 20);
        progress.begun(MADE, (1, 12), begin);
        assert!(progress.taken().is_some());
        progress.pass(21);
        assert!(progress.taken().is_none());
        assert_eq!(progress.upto(ONE), 21);
    }

    #[test]
    fn what_was_removed_before_it_was_taken_is_counted() {
        let mut progress = Progress::new(stored([10, 10]), 0);
        let begin = progress.begin(MADE, 60);
        assert_eq!(progress.begun(MADE, (31, 31), begin), 20);
        assert_eq!([progress.pass(31), progress.pass(35)], [0, 3]);
        // All messages were taken, and were removed afterwards.
        let mut progress = Progress::new(stored([10, 10]), 0);
        let begin = progress.begin(MADE, 10);
        assert_eq!(begin, (ReadFrom::At(11), BeginReason::Continued));
        assert_eq!(progress.begun(MADE, (11, 11), begin), 0);
    }

    #[test]
    fn another_stream_is_taken_from_its_begin() {
        let mut progress = Progress::new(stored([10, 20]), 0);
        let other = (ReadFrom::At(1), BeginReason::OtherStream);
        assert_eq!(progress.begin(MADE + 1, 4), other);
        assert_eq!(progress.begun(MADE + 1, (3, 3), other), 0);
        assert_eq!((progress.next(), progress.upto(ONE)), (3, 2));
        assert!(progress.taken().is_none());
        // The same while the node runs.
        progress.pass(4);
        assert_eq!(progress.begin(MADE + 2, 9), other);
        assert_eq!(progress.begun(MADE + 2, (1, 1), other), 0);
        assert_eq!((progress.stream(), progress.next()), (MADE + 2, 1));
    }

    #[test]
    fn a_stream_that_lost_its_end_is_taken_from_when_it_was_in_order() {
        let mut progress = Progress::new(stored([10, 20]), 9_000);
        let begin = progress.begin(MADE, 19);
        assert_eq!(begin, (ReadFrom::Since(8_000), BeginReason::LostEnd));
        assert_eq!(progress.begun(MADE, (1, 18), begin), 0);
        assert!(progress.taken().is_none());
        assert_eq!(progress.upto(ONE), 17);
        // The same while the node runs.
        progress.pass(18);
        let (begin, why) = progress.begin(MADE, 12);
        assert_eq!(why, BeginReason::LostEnd);
        assert!(matches!(begin, ReadFrom::Since(ms) if ms > 9_000));
    }
}
