//! How far each shard has read the input stream. A position is written in one transaction with the
//! results of the messages up to it, so that no message is lost and none is handled twice.
//!
//! The number of shards may change at each start. So the positions under an earlier number of
//! shards count until all current shards have passed them. For a user, the greatest position
//! counts.

use crate::pool::place;

/// A place in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// Identifies the stream, by its time of creation: one that is created anew is another stream.
    pub(crate) stream: u64,
    /// The sequence number of a message.
    pub(crate) sequence: u64,
}

/// A shard, and the number of shards at that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ShardOf {
    pub(crate) shards: u32,
    pub(crate) shard: u32,
}

/// How far a shard has read a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShardPosition {
    pub(crate) of: ShardOf,
    pub(crate) position: Position,
    /// How far all shards had read when the node began to read. A shard without a position of its
    /// own has read at least this far.
    pub(crate) begin: u64,
}

/// The places of a batch's inputs in the stream.
#[derive(Debug)]
pub(crate) struct StreamPlaces {
    pub(crate) of: ShardOf,
    pub(crate) stream: u64,
    pub(crate) begin: u64,
    /// The sequence number of each input.
    pub(crate) each: Vec<u64>,
    /// How far the shard has read the stream after the whole batch.
    pub(crate) upto: u64,
}

impl StreamPlaces {
    fn at(&self, sequence: u64) -> ShardPosition {
        ShardPosition {
            of: self.of,
            position: Position {
                stream: self.stream,
                sequence,
            },
            begin: self.begin,
        }
    }

    /// The shard's position after this input of the batch.
    pub(crate) fn after(&self, input: usize) -> Option<ShardPosition> {
        self.each.get(input).map(|sequence| self.at(*sequence))
    }

    /// The shard's position after the whole batch.
    pub(crate) fn end(&self) -> ShardPosition {
        self.at(self.upto)
    }
}

/// A position in the form in which it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredPosition {
    pub(crate) at: ShardPosition,
    /// A mark of the hash by which users were assigned to shards: see [`hash_mark`].
    pub(crate) hash: u64,
}

impl StoredPosition {
    pub(crate) fn new(at: ShardPosition) -> Self {
        Self {
            at,
            hash: hash_mark(),
        }
    }
}

/// A number that changes if another version of the program assigns users to shards differently.
fn hash_mark() -> u64 {
    // The shard of a fixed key, out of the greatest number of shards.
    place("presence", usize::MAX) as u64
}

/// All positions that are stored.
#[derive(Clone, Debug, Default)]
pub(crate) struct Positions(Vec<StoredPosition>);

impl Positions {
    pub(crate) fn new(stored: Vec<StoredPosition>) -> Self {
        Self(stored)
    }

    /// Whether there are none, so that no stream was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How far a stream was read. `None` if nothing of it was.
    pub(crate) fn of(&self, stream: u64) -> Option<ReadPositions> {
        let of_stream = || self.0.iter().filter(|it| it.at.position.stream == stream);
        let mut counts: Vec<_> = of_stream().map(|it| it.at.of.shards).collect();
        counts.sort_unstable();
        counts.dedup();
        let divisions = counts.into_iter().map(|shards| {
            let stored = || of_stream().filter(move |it| it.at.of.shards == shards);
            let begin = stored().map(|it| it.at.begin).max().unwrap_or(0);
            let mut each = vec![begin; shards.max(1) as usize];
            for it in stored() {
                if let Some(taken) = each.get_mut(it.at.of.shard as usize) {
                    *taken = it.at.position.sequence;
                }
            }
            if stored().any(|it| it.hash != hash_mark()) {
                // It isn't known which users each shard had, so only what all have read counts.
                let least = each.iter().min().copied().unwrap_or(0);
                each.fill(least);
            }
            each
        });
        let divisions: Vec<_> = divisions.collect();
        (!divisions.is_empty()).then_some(ReadPositions(divisions))
    }

    /// The numbers of shards whose positions no longer count, because all of the current `shards`
    /// shards have passed them.
    pub(crate) fn outdated(&self, shards: u32) -> Vec<u32> {
        let own = self.0.iter().filter(|it| it.at.of.shards == shards);
        let own = Self(own.copied().collect());
        let is_passed = |it: &StoredPosition| {
            let taken = own.of(it.at.position.stream);
            taken.is_some_and(|taken| taken.all_up_to() >= it.at.position.sequence)
        };
        let mut others: Vec<_> = self.0.iter().map(|it| it.at.of.shards).collect();
        others.sort_unstable();
        others.dedup();
        others.retain(|count| {
            let mut theirs = self.0.iter().filter(|it| it.at.of.shards == *count);
            *count != shards && theirs.all(is_passed)
        });
        others
    }
}

/// How far one stream was read, for each number of shards that users were divided into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReadPositions(Vec<Vec<u64>>);

impl ReadPositions {
    /// Whether a message was handled. `about`: the value whose hash determines the shard.
    pub(crate) fn has(&self, about: &(impl std::hash::Hash + ?Sized), sequence: u64) -> bool {
        let taken = self.0.iter().filter_map(|each| {
            let taken = each.get(place(about, each.len()));
            taken.copied()
        });
        taken.max().is_some_and(|taken| taken >= sequence)
    }

    /// Up to where the messages of all users were handled.
    pub(crate) fn all_up_to(&self) -> u64 {
        self.of_shard(ShardOf {
            shards: 1,
            shard: 0,
        })
    }

    /// Up to where the messages of all users of a shard were handled.
    pub(crate) fn of_shard(&self, of: ShardOf) -> u64 {
        // Each number of shards is a power of two, so the greatest number divides all other shards
        // into parts.
        let most = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let (shards, shard) = (of.shards.max(1) as usize, of.shard as usize);
        let parts = (shard..most.max(shards)).step_by(shards).map(|part| {
            let taken = self.0.iter().filter_map(|each| each.get(part % each.len()));
            taken.max().copied().unwrap_or(0)
        });
        parts.min().unwrap_or(0)
    }

    /// The last message that was handled for any user.
    pub(crate) fn last(&self) -> u64 {
        self.0.iter().flatten().max().copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: u64 = 7;

    fn stored(shards: u32, shard: u32, sequence: u64, begin: u64) -> StoredPosition {
        StoredPosition::new(ShardPosition {
            of: ShardOf { shards, shard },
            position: Position {
                stream: STREAM,
                sequence,
            },
            begin,
        })
    }

    fn positions(of: &[(u32, u32, u64, u64)]) -> Positions {
        let each = of.iter();
        Positions::new(each.map(|it| stored(it.0, it.1, it.2, it.3)).collect())
    }

    #[test]
    fn a_shard_of_which_nothing_is_noted_has_taken_what_all_had() {
        let positions = positions(&[(2, 0, 90, 40)]);
        let taken = positions.of(STREAM).unwrap();
        assert_eq!((taken.all_up_to(), taken.last()), (40, 90));
        assert!(positions.of(STREAM + 1).is_none(), "another stream");
        assert!(Positions::default().of(STREAM).is_none());
    }

    #[test]
    fn by_another_hash_only_what_all_have_counts() {
        let mut other = stored(2, 0, 90, 40);
        other.hash ^= 1;
        let positions = Positions::new(vec![other, stored(2, 1, 70, 40)]);
        let taken = positions.of(STREAM).unwrap();
        assert_eq!((taken.all_up_to(), taken.last()), (70, 70));
    }

    #[test]
    fn another_number_of_shards_takes_nothing_twice_and_forgets_the_old_one_when_it_can() {
        // Shards 0 and 2 of four are the parts of shard 0 of two, which had read up to 50.
        let before = [(2, 0, 50, 0), (2, 1, 80, 0)];
        let with = |more: &[(u32, u32, u64, u64)]| positions(&[&before, more].concat());
        let taken = with(&[(4, 0, 60, 50)]).of(STREAM).unwrap();
        assert_eq!((taken.all_up_to(), taken.last()), (50, 80));
        let mut users = (0..1_000).map(|it| it.to_string());
        let user = users.find(|it| place(&**it, 4) == 0).unwrap();
        assert!(taken.has(&*user, 60) && !taken.has(&*user, 61));
        let user = users.find(|it| place(&**it, 4) == 2).unwrap();
        assert!(taken.has(&*user, 50) && !taken.has(&*user, 51));
        let user = users.find(|it| place(&**it, 4) == 3).unwrap();
        assert!(taken.has(&*user, 80) && !taken.has(&*user, 81));
        assert_eq!(with(&[(4, 0, 60, 50)]).outdated(4), [] as [u32; 0]);
        let all: Vec<_> = (0..4).map(|shard| (4, shard, 81, 50)).collect();
        assert_eq!(with(&all).outdated(4), [2]);
        assert_eq!(with(&all).outdated(2), [] as [u32; 0], "80 < 81");
    }

    /// Starts with changing numbers of shards, ends without notice, and writes that each shard
    /// makes on its own: by what is written, every message is handled exactly once.
    #[test]
    fn whatever_is_written_of_each_shard_no_message_is_lost_or_taken_twice() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let messages: Vec<_> = (1..=120_u64)
                .map(|sequence| (sequence, format!("user-{}", random.u32(..12))))
                .collect();
            // The written data: how often each message was handled, and the positions.
            let mut written = vec![0; messages.len() + 1];
            let mut disk: Vec<StoredPosition> = Vec::new();
            for run in 0..40 {
                let is_last = run == 39;
                let shards = 1 << random.u32(..4);
                let known = Positions::new(disk.clone());
                let outdated = known.outdated(shards);
                disk.retain(|it| !outdated.contains(&it.at.of.shards));
                let known = Positions::new(disk.clone());
                let taken = known.of(STREAM);
                let begin = taken.as_ref().map_or(0, ReadPositions::all_up_to);
                let end = match is_last {
                    true => messages.len() as u64,
                    false => begin + random.u64(..30),
                };
                // What each shard handles, in order, and up to where that is written.
                for shard in 0..shards {
                    if !is_last && random.u32(..4) == 0 {
                        continue;
                    }
                    let upto = match is_last {
                        true => end,
                        false => random.u64(begin..=end),
                    };
                    let upto = upto.min(messages.len() as u64);
                    let of = ShardOf { shards, shard };
                    let known = taken.as_ref().map_or(0, |it| it.of_shard(of));
                    let upto = upto.max(known);
                    for (sequence, user) in &messages {
                        let is_new = taken.as_ref().is_none_or(|it| !it.has(&**user, *sequence));
                        let is_read = *sequence > begin && *sequence <= upto;
                        if is_read && is_new && place(&**user, shards as usize) == shard as usize {
                            written[*sequence as usize] += 1;
                        }
                    }
                    let row = stored(shards, shard, upto, begin);
                    disk.retain(|it| it.at.of != row.at.of);
                    disk.push(row);
                }
            }
            assert!(
                written[1..].iter().all(|times| *times == 1),
                "{seed}: {written:?}"
            );
        }
    }
}
