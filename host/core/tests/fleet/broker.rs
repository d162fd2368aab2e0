//! The virtual broker: three servers, links that delay and lose messages, and a bucket with
//! compare-and-swap. Messages of one sender to one receiver arrive in order. Those of different
//! senders arrive in any order.

use std::collections::BTreeMap;

use presence_core::fleet::lease::WriteOutcome;
use presence_core::fleet::member::Key;

/// The random number generator of a run: splitmix64.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

/// The sender or receiver of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    Node(usize),
    Client(usize),
    User(usize),
    Bucket,
}

/// The servers, and which of them are cut off from the others.
#[derive(Debug, Default)]
pub(crate) struct Servers {
    pub(crate) isolated: [bool; 3],
    /// By how much slow links delay every message.
    pub(crate) slow_ms: u64,
    /// When the last message from one end to another arrives.
    last: BTreeMap<(End, End), u64>,
}

impl Servers {
    /// Whether messages pass between two servers.
    pub(crate) fn are_linked(&self, a: usize, b: usize) -> bool {
        a == b || !(self.isolated[a] || self.isolated[b])
    }

    /// Whether a server belongs to the majority, which the bucket needs.
    pub(crate) fn has_majority(&self, server: usize) -> bool {
        let alone = self.isolated.iter().filter(|alone| **alone).count();
        !self.isolated[server] && alone <= 1
    }

    /// When a message that is sent now arrives.
    pub(crate) fn arrival(&mut self, t: u64, from: End, to: End, random: &mut Random) -> u64 {
        let last = self.last.entry((from, to)).or_default();
        *last = (t + random.within(1, 8) + self.slow_ms).max(*last);
        *last
    }
}

/// The fleet's bucket. All servers share one copy.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    pub(crate) keys: BTreeMap<Key, (Option<String>, u64)>,
    pub(crate) revision: u64,
}

impl Bucket {
    pub(crate) fn write(
        &mut self,
        key: &Key,
        value: Option<String>,
        revision: u64,
    ) -> WriteOutcome {
        let last = self.keys.get(key).map_or(0, |(_, revision)| *revision);
        if last != revision {
            return WriteOutcome::Refused;
        }
        self.revision += 1;
        self.keys.insert(key.clone(), (value, self.revision));
        WriteOutcome::Stored(self.revision)
    }
}
