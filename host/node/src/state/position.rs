//! Up to where each shard has taken the input stream. It is written in one transaction with what
//! came of these messages, so that none is lost and none is taken twice.
//!
//! The number of shards may change at each start. So what is noted of an earlier number counts
//! until all shards are beyond it: of a user, the greatest of what is noted holds.

use crate::pool::place;

/// A place in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// Which stream: when it was made. One that is made anew is another.
    pub(crate) stream: u64,
    /// The number of a message.
    pub(crate) sequence: u64,
}

/// A shard, as one of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ShardOf {
    pub(crate) shards: u32,
    pub(crate) shard: u32,
}

/// Up to where a shard has taken a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShardPosition {
    pub(crate) of: ShardOf,
    pub(crate) position: Position,
    /// Up to where all shards had when the node began to read: a shard of which nothing is noted
    /// has taken no less.
    pub(crate) begin: u64,
}

/// Where the inputs of a batch stand in the stream.
#[derive(Debug)]
pub(crate) struct StreamPlaces {
    pub(crate) of: ShardOf,
    pub(crate) stream: u64,
    pub(crate) begin: u64,
    /// The number of each input.
    pub(crate) each: Vec<u64>,
    /// Up to where the shard has taken the stream, with the last of them.
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

    /// Where the shard is once it has taken this one of the inputs.
    pub(crate) fn after(&self, input: usize) -> Option<ShardPosition> {
        self.each.get(input).map(|sequence| self.at(*sequence))
    }

    /// Where it is once it has taken them all.
    pub(crate) fn end(&self) -> ShardPosition {
        self.at(self.upto)
    }
}

/// A position as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredPosition {
    pub(crate) at: ShardPosition,
    /// What tells by which hash users were divided: see [`hash_mark`].
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

/// What differs if another version of the program divides users in another way.
fn hash_mark() -> u64 {
    // Which of so many shards has this one.
    place("presence", usize::MAX) as u64
}

/// All that is stored.
#[derive(Clone, Debug, Default)]
pub(crate) struct Positions(Vec<StoredPosition>);

impl Positions {
    pub(crate) fn new(stored: Vec<StoredPosition>) -> Self {
        Self(stored)
    }

    /// Whether a stream was taken from at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was taken of a stream; none if nothing was.
    pub(crate) fn of(&self, stream: u64) -> Option<Taken> {
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
                // Which users each of them had isn't known any more.
                let least = each.iter().min().copied().unwrap_or(0);
                each.fill(least);
            }
            each
        });
        let divisions: Vec<_> = divisions.collect();
        (!divisions.is_empty()).then_some(Taken(divisions))
    }

    /// The numbers of shards that don't count any more: all of these shards are beyond them, of
    /// which there are so many.
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

/// What was taken of one stream, by each division of the users into shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken(Vec<Vec<u64>>);

impl Taken {
    /// Whether a message was taken. `about`: what says which shard it is for.
    pub(crate) fn has(&self, about: &(impl std::hash::Hash + ?Sized), sequence: u64) -> bool {
        let taken = self.0.iter().filter_map(|each| {
            let taken = each.get(place(about, each.len()));
            taken.copied()
        });
        taken.max().is_some_and(|taken| taken >= sequence)
    }

    /// Up to where all was taken, of all users.
    pub(crate) fn all_up_to(&self) -> u64 {
        self.of_shard(ShardOf {
            shards: 1,
            shard: 0,
        })
    }

    /// Up to where all was taken of the users of a shard.
    pub(crate) fn of_shard(&self, of: ShardOf) -> u64 {
        // Each number of shards is a power of two: the most of them are parts of all others.
        let most = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let (shards, shard) = (of.shards.max(1) as usize, of.shard as usize);
        let parts = (shard..most.max(shards)).step_by(shards).map(|part| {
            let taken = self.0.iter().filter_map(|each| each.get(part % each.len()));
            taken.max().copied().unwrap_or(0)
        });
        parts.min().unwrap_or(0)
    }

    /// Beyond which nothing was taken.
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
        // Shards 0 and 2 of four make shard 0 of two, which had come to 50.
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

    /// Starts with numbers of shards that change, ends without notice, and what is written by
    /// each shard apart: every message is taken once by what is written.
    #[test]
    fn whatever_is_written_of_each_shard_no_message_is_lost_or_taken_twice() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let messages: Vec<_> = (1..=120_u64)
                .map(|sequence| (sequence, format!("user-{}", random.u32(..12))))
                .collect();
            // What is written: how often each message was taken, and the positions.
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
                let begin = taken.as_ref().map_or(0, Taken::all_up_to);
                let end = match is_last {
                    true => messages.len() as u64,
                    false => begin + random.u64(..30),
                };
                // What each shard takes, in order, and up to where it is written.
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
