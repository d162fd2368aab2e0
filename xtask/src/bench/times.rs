//! How long each of many answers took.

use std::time::Duration;

/// A collection of durations.
#[derive(Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    /// Adds one.
    pub(crate) fn push(&mut self, took: Duration) {
        self.0.push(took);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The longest. Zero if there are none.
    pub(crate) fn longest(&self) -> Duration {
        self.0.iter().max().copied().unwrap_or_default()
    }

    /// The time in microseconds within which this part of the answers came: a quantile. NaN if
    /// there are none.
    pub(crate) fn us(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let took = sorted.get((part * sorted.len() as f64) as usize);
        took.map_or(f64::NAN, |took| took.as_secs_f64() * 1e6)
    }
}
