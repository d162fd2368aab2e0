//! Heartbeats that wait in a router for others of their shard. Nearly all inputs are heartbeats,
//! and none is urgent. Combined, they cost router, broker and owner a fraction of their cost one by
//! one.

use std::collections::BTreeMap;
use std::mem;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

/// The longest wait of a heartbeat.
const WAIT: Duration = Duration::from_millis(20);

/// The size limit of combined heartbeats, in bytes.
pub(super) const BYTES_MAX: usize = 32 << 10;

/// The byte between two heartbeats. A body that contains it is passed on alone.
const SEPARATOR: u8 = b'\n';

/// The waiting heartbeats.
#[derive(Default)]
pub(super) struct Waiting {
    /// For each shard: the bodies, separated by `SEPARATOR`.
    lines: BTreeMap<u32, Vec<u8>>,
    /// When they must be passed on.
    until: Option<Instant>,
}

impl Waiting {
    /// Whether a heartbeat with this body may wait. `bytes_max`: the longest body that the broker
    /// takes.
    pub(super) fn may_wait(body: &[u8], bytes_max: usize) -> bool {
        // An empty body would leave no line.
        (1..=BYTES_MAX.min(bytes_max)).contains(&body.len()) && !body.contains(&SEPARATOR)
    }

    /// Adds a heartbeat. Returns the earlier ones of its shard, if there is no room for another.
    pub(super) fn add(&mut self, shard: u32, body: &[u8], bytes_max: usize) -> Option<Bytes> {
        self.until.get_or_insert_with(|| Instant::now() + WAIT);
        let lines = self.lines.entry(shard).or_default();
        let is_full = lines.len() + 1 + body.len() > BYTES_MAX.min(bytes_max);
        let full = (is_full && !lines.is_empty()).then(|| mem::take(lines).into());
        if !lines.is_empty() {
            lines.push(SEPARATOR);
        }
        lines.extend_from_slice(body);
        full
    }

    /// When they must be passed on. `None` if none wait.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Takes the heartbeats of a shard.
    pub(super) fn take(&mut self, shard: u32) -> Option<Bytes> {
        let lines = self.lines.get_mut(&shard)?;
        (!lines.is_empty()).then(|| mem::take(lines).into())
    }

    /// Takes the heartbeats of all shards.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = (u32, Bytes)> + use<> {
        self.until = None;
        let lines = mem::take(&mut self.lines).into_iter();
        lines
            .filter(|(_, lines)| !lines.is_empty())
            .map(|(shard, lines)| (shard, lines.into()))
    }

    /// The bodies of combined heartbeats.
    pub(super) fn bodies(together: &Bytes) -> impl Iterator<Item = Bytes> {
        let lines = together.split(|byte| *byte == SEPARATOR);
        lines.map(|line| together.slice_ref(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_comes_out_again_by_shard_and_in_order() {
        let mut waiting = Waiting::default();
        assert!(waiting.until().is_none());
        for (shard, body) in [(7, "a"), (3, "b"), (7, "c"), (7, "d")] {
            assert_eq!(waiting.add(shard, body.as_bytes(), 100), None);
        }
        assert!(waiting.until().is_some());
        let bodies = |together: Bytes| Waiting::bodies(&together).collect::<Vec<_>>();
        assert_eq!(waiting.take(7).map(bodies).unwrap(), ["a", "c", "d"]);
        assert_eq!([waiting.take(7), waiting.take(8)], [None, None]);
        let rest: Vec<_> = waiting.take_all().collect();
        assert_eq!(rest, [(3, Bytes::from("b"))]);
        assert!(waiting.until().is_none() && waiting.take_all().next().is_none());
    }

    #[test]
    fn as_many_wait_as_the_broker_takes_together() {
        for (bytes_max, most) in [(usize::MAX, BYTES_MAX), (4_096, 4_096)] {
            let mut waiting = Waiting::default();
            let body = [b'x'; 1_023];
            assert!(Waiting::may_wait(&body, bytes_max));
            for _ in 0..most / 1_024 {
                assert_eq!(waiting.add(1, &body, bytes_max), None);
            }
            let full = waiting.add(1, &body, bytes_max).unwrap();
            assert_eq!(Waiting::bodies(&full).count(), most / 1_024);
            assert_eq!(waiting.take(1).unwrap(), body[..]);
            for alone in [&vec![b'x'; most + 1][..], b"{\n}", b""] {
                assert!(!Waiting::may_wait(alone, bytes_max));
            }
        }
    }
}
