//! How much time of a thread there is for what nobody waits for: half of what the thread would
//! only wait, and a small part of what it works, so that it never comes to nothing.

/// Out of how many nanoseconds of work one is added.
const BUSY_PER_SPARE: u64 = 50;

/// How much comes together at most: for so long nobody else has a turn, in nanoseconds.
const MAX_NS: i64 = 1_000_000;

/// The spare time of a thread. What takes longer than there was of it is paid for out of what
/// comes next.
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
    /// Whether there is some.
    pub(super) fn is_left(&self) -> bool {
        self.left_ns > 0
    }

    /// It was used for so long.
    pub(super) fn spend(&mut self, ns: u64) {
        let ns = i64::try_from(ns).unwrap_or(i64::MAX);
        self.left_ns = self.left_ns.saturating_sub(ns);
    }

    /// The thread has waited for so long. As much may be used, which is half of both together.
    pub(super) fn was_idle(&mut self, ns: u64) {
        let ns = i64::try_from(ns).unwrap_or(i64::MAX);
        self.left_ns = self.left_ns.saturating_add(ns).min(MAX_NS);
    }

    /// The thread has worked for so long.
    pub(super) fn was_busy(&mut self, ns: u64) {
        self.was_idle(ns / BUSY_PER_SPARE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// How much of a thread's time is used, if each use takes so long and there is always one
    /// more to do.
    fn used(use_ns: u64, turn_ns: Option<u64>) -> f64 {
        let mut spare = SpareTime::default();
        let (mut now, mut used) = (0, 0);
        while now < 10_000 * MS {
            if spare.is_left() {
                spare.spend(use_ns);
                used += use_ns;
                now += use_ns;
            } else if let Some(turn_ns) = turn_ns {
                spare.was_busy(turn_ns);
                now += turn_ns;
            } else {
                spare.was_idle(MS);
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
        spare.was_idle(u64::MAX);
        spare.spend(MS);
        assert!(!spare.is_left());
    }
}
