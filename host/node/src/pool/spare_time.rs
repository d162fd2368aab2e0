//! How much time a thread may spend on comparisons of pipelines, for which nobody waits: as much as
//! it was idle, and a small part of the time that it worked, so that comparisons never stop
//! completely.

/// One nanosecond of spare time is added per this many nanoseconds of work.
const BUSY_PER_SPARE: u64 = 50;

/// The limit of saved spare time, in nanoseconds. Nobody else has a turn while it is used.
const MAX_NS: i64 = 1_000_000;

/// The spare time of a thread. A piece of work may take longer than is left. The balance is then
/// negative, and is paid out of later spare time.
#[derive(Debug)]
pub(super) struct SpareTime {
    left_ns: i64,
}

impl Default for SpareTime {
    fn default() -> Self {
        Self { left_ns: MAX_NS }
    }
}

impl SpareTime {
    /// Whether any is left.
    pub(super) fn has_any(&self) -> bool {
        self.left_ns > 0
    }

    /// Subtracts time that was used.
    pub(super) fn spend(&mut self, ns: u64) {
        let ns = i64::try_from(ns).unwrap_or(i64::MAX);
        self.left_ns = self.left_ns.saturating_sub(ns);
    }

    /// Adds time for which the thread has waited. As much may be used, so half of the time that
    /// isn't needed otherwise goes to comparisons.
    pub(super) fn add_idle(&mut self, ns: u64) {
        let ns = i64::try_from(ns).unwrap_or(i64::MAX);
        self.left_ns = self.left_ns.saturating_add(ns).min(MAX_NS);
    }

    /// Adds a part of the time for which the thread has worked.
    pub(super) fn add_busy(&mut self, ns: u64) {
        self.add_idle(ns / BUSY_PER_SPARE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// The part of a thread's time that is spent on comparisons. Each takes `use_ns`, and there is
    /// always one more. `turn_ns`: how long a turn between them takes; `None` if the thread only
    /// waits.
    fn used(use_ns: u64, turn_ns: Option<u64>) -> f64 {
        let mut spare = SpareTime::default();
        let (mut now, mut used) = (0, 0);
        while now < 10_000 * MS {
            if spare.has_any() {
                spare.spend(use_ns);
                used += use_ns;
                now += use_ns;
            } else if let Some(turn_ns) = turn_ns {
                spare.add_busy(turn_ns);
                now += turn_ns;
            } else {
                spare.add_idle(MS);
                now += MS;
            }
        }
        used as f64 / now as f64
    }

    #[test]
    fn half_of_what_a_thread_would_wait_is_used_however_long_each_use_is() {
        for use_ns in [2_000, 200_000, 20 * MS] {
            let part = used(use_ns, None);
            assert!((0.4..0.51).contains(&part), "{use_ns}: {part}");
        }
    }

    #[test]
    fn a_thread_that_is_never_idle_gives_two_per_cent() {
        for use_ns in [2_000, 200_000, 20 * MS] {
            let part = used(use_ns, Some(2 * MS));
            assert!((0.015..0.025).contains(&part), "{use_ns}: {part}");
        }
    }

    #[test]
    fn nothing_is_saved_up() {
        let mut spare = SpareTime::default();
        spare.add_idle(u64::MAX);
        spare.spend(MS);
        assert!(!spare.has_any());
    }
}
