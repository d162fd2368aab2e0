//! Measures how long calls take: a histogram with few buckets. Threads count into it without a
//! lock. One call in eight is measured, so that reading the clock costs next to nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::pause::paused;

/// The upper bounds of the buckets, in nanoseconds. One more bucket has all longer calls.
const BOUNDS_NS: [u64; 7] = [
    2_000,
    10_000,
    50_000,
    250_000,
    1_000_000,
    10_000_000,
    100_000_000,
];

/// One call in this many is measured, beginning with the first.
const SAMPLED: u8 = 8;

/// How long the measured calls took.
#[derive(Debug, Default)]
pub struct Latency {
    counts: [AtomicU64; BOUNDS_NS.len() + 1],
    sum_ns: AtomicU64,
}

/// A histogram at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// The upper bound of each bucket, in seconds, and how many calls took no longer.
    pub buckets: Vec<(f64, u64)>,
    /// How many calls were measured.
    pub count: u64,
    /// How long they took together, in seconds.
    pub sum: f64,
}

/// Chooses the calls that are measured.
#[derive(Debug, Default)]
pub(crate) struct Sampler(u8);

/// When a call began.
#[derive(Clone, Copy, Debug)]
pub struct Began {
    pub(crate) at: Instant,
    /// How long calls on this thread had been paused in all when the call began.
    paused: Duration,
}

impl Began {
    /// A call that begins now.
    pub fn now() -> Self {
        Self {
            at: Instant::now(),
            paused: paused(),
        }
    }

    /// How long the call has taken, without its pauses.
    pub fn elapsed(&self) -> Duration {
        let paused = paused().saturating_sub(self.paused);
        self.at.elapsed().saturating_sub(paused)
    }
}

impl Sampler {
    /// The beginning of a call that is to be measured. `None` for all other calls.
    pub(crate) fn begin(&mut self) -> Option<Began> {
        let is_measured = self.0 == 0;
        self.0 = (self.0 + 1) % SAMPLED;
        is_measured.then(Began::now)
    }
}

impl Latency {
    /// Counts a call that began at this time and ends now.
    pub fn end(&self, began: Instant) {
        self.count(began.elapsed());
    }

    pub(crate) fn count(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_NS.iter().take_while(|bound| ns > **bound).count();
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// What has been counted so far.
    pub fn histogram(&self) -> Histogram {
        let mut count = 0;
        let mut buckets = Vec::with_capacity(BOUNDS_NS.len());
        let counts = self.counts.iter().map(|it| it.load(Ordering::Relaxed));
        for (place, of_bucket) in counts.enumerate() {
            count += of_bucket;
            if let Some(bound) = BOUNDS_NS.get(place) {
                buckets.push((Duration::from_nanos(*bound).as_secs_f64(), count));
            }
        }
        let sum = Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed));
        Histogram {
            buckets,
            count,
            sum: sum.as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_in_the_buckets_whose_bound_they_do_not_pass() {
        let latency = Latency::default();
        for ns in [1, 2_000, 2_001, 999_999_999_999] {
            latency.count(Duration::from_nanos(ns));
        }
        let histogram = latency.histogram();
        assert_eq!(histogram.buckets.len(), BOUNDS_NS.len());
        assert_eq!(histogram.buckets[0], (0.000_002, 2));
        assert_eq!(histogram.buckets[1], (0.000_01, 3));
        assert_eq!(histogram.buckets[6], (0.1, 3));
        assert_eq!(histogram.count, 4);
        assert!(histogram.sum > 999.0);
    }

    #[test]
    fn the_first_call_of_eight_is_measured() {
        let mut sampler = Sampler::default();
        let measured: Vec<_> = (0..17).map(|_| sampler.begin().is_some()).collect();
        let expected: Vec<_> = (0..17).map(|number| number % 8 == 0).collect();
        assert_eq!(measured, expected);
    }
}
