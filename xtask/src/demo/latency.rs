//! How long something took, over many times.

use std::time::Duration;

/// Durations, to be ranked.
#[derive(Debug, Default)]
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    /// Adds one.
    pub(crate) fn push(&mut self, latency: Duration) {
        self.0.push(latency);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The duration that `percent` of them don't pass.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let mut ranked = self.0.clone();
        ranked.sort_unstable();
        let rank = (ranked.len() * percent).div_ceil(100);
        ranked
            .get(rank.saturating_sub(1))
            .copied()
            .unwrap_or_default()
    }
}

/// A duration in the unit that suits it.
pub(crate) fn readable(duration: Duration) -> String {
    let us = duration.as_secs_f64() * 1e6;
    match us {
        ..1e3 => format!("{us:.0} µs"),
        ..1e4 => format!("{:.1} ms", us / 1e3),
        ..1e6 => format!("{:.0} ms", us / 1e3),
        _ => format!("{:.1} s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentile(50), Duration::ZERO);
        for ms in (1..=200).rev() {
            latencies.push(Duration::from_millis(ms));
        }
        assert_eq!(latencies.percentile(50), Duration::from_millis(100));
        assert_eq!(latencies.percentile(99), Duration::from_millis(198));
    }

    #[test]
    fn the_unit_suits_the_duration() {
        assert_eq!(readable(Duration::from_micros(640)), "640 µs");
        assert_eq!(readable(Duration::from_micros(1_240)), "1.2 ms");
        assert_eq!(readable(Duration::from_millis(164)), "164 ms");
        assert_eq!(readable(Duration::from_millis(3_042)), "3.0 s");
    }
}
