//! A histogram of call times that is fine enough to compare percentiles: each power of two has
//! eight buckets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The number of buckets per power of two, as a power of two.
const SUB_BITS: u32 = 3;

/// Enough buckets for all 64 bits of a number of nanoseconds.
const BUCKETS: usize = 64 << SUB_BITS;

/// A histogram that threads count into without a lock.
#[derive(Debug)]
pub(crate) struct FineLatency(Box<[AtomicU64]>);

/// The counts of its buckets at some time, or between two times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counts(Box<[u64]>);

impl Default for FineLatency {
    fn default() -> Self {
        Self((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl FineLatency {
    /// Counts a call.
    pub(crate) fn count(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.0.get(bucket(ns)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts(self.0.iter().map(|it| it.load(Ordering::Relaxed)).collect())
    }
}

impl Counts {
    /// The counts that were added since earlier counts.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let pairs = self.0.iter().zip(&earlier.0);
        Self(pairs.map(|(now, then)| now.saturating_sub(*then)).collect())
    }

    /// How many calls were counted.
    pub(crate) fn len(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The given percentile of the call times, rounded up by an eighth at most. `None` if there
    /// were no calls.
    pub(crate) fn percentile(&self, of_hundred: u64) -> Option<Duration> {
        let rank = (self.len() * of_hundred).div_ceil(100).max(1);
        let mut count = 0;
        let place = self.0.iter().position(|of_bucket| {
            count += of_bucket;
            count >= rank
        })?;
        Some(Duration::from_nanos(upper_bound(place)))
    }
}

fn bucket(ns: u64) -> usize {
    let ns = ns.max(1 << SUB_BITS);
    let exponent = ns.ilog2();
    let sub = (ns >> (exponent - SUB_BITS)) & ((1 << SUB_BITS) - 1);
    ((exponent as usize) << SUB_BITS) + sub as usize
}

/// The longest time that falls into a bucket, in nanoseconds.
fn upper_bound(bucket: usize) -> u64 {
    let (exponent, sub) = (bucket >> SUB_BITS, bucket & ((1 << SUB_BITS) - 1));
    let lower = (1_u128 << exponent) + ((sub as u128) << exponent >> SUB_BITS);
    let width = (1_u128 << exponent) >> SUB_BITS;
    u64::try_from(lower + width - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_to_within_an_eighth() {
        let latency = FineLatency::default();
        assert_eq!(latency.counts().percentile(99), None);
        for ns in 1..=1_000_u64 {
            latency.count(Duration::from_nanos(ns * 100));
        }
        let counts = latency.counts();
        for (of_hundred, exact) in [(50, 50_000.0), (99, 99_000.0), (100, 100_000.0)] {
            let ns = counts.percentile(of_hundred).unwrap().as_nanos() as f64;
            assert!((exact..=exact * 1.125).contains(&ns), "{of_hundred}: {ns}");
        }
        latency.count(Duration::from_secs(1));
        let later = latency.counts().since(&counts);
        assert_eq!(later.len(), 1);
        assert!(later.percentile(1).unwrap() >= Duration::from_secs(1));
    }

    #[test]
    fn every_time_has_a_bucket_that_holds_it() {
        for ns in [0, 1, 7, 8, 9, 1_023, 1_024, 1 << 40, u64::MAX - 1, u64::MAX] {
            let place = bucket(ns);
            assert!(place < BUCKETS && upper_bound(place) >= ns, "{ns}");
            assert!(place == bucket(8) || upper_bound(place - 1) < ns, "{ns}");
        }
    }
}
