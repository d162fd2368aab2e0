//! The two times that the core goes by, both given to it by the caller.
//!
//! *Now* is monotonic: it is used for durations, retries and rates, and changing the machine's clock
//! does not change it. *Wall time* is the machine's clock: it is used for senders' timestamps, rules
//! and the expiry of statuses. The caller says how far the two are apart.
//! Bodies bear the *stamp*, wall time that never runs back: while the machine's
//! clock is behind what was written already, it goes on at half the speed. It doesn't
//! stand still, since senders' timestamps are taken as no later than it: all that are
//! sent would be equally old, and nothing newer than what came before it.

/// Where the times stand. All are in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    now: u64,
    ahead_ms: i64,
    stamp: u64,
    /// Whether half a millisecond is yet to be added to the stamp.
    half: bool,
}

impl Clock {
    /// It has become `now`, unless it was later already.
    pub fn pass(&mut self, now: u64) {
        let halves = now
            .saturating_sub(self.now)
            .saturating_add(self.half.into());
        self.now = self.now.max(now);
        self.stamp = self.stamp.saturating_add(halves / 2).max(self.wall());
        self.half = halves % 2 == 1;
    }

    /// By how much wall time is ahead of now, in milliseconds.
    pub fn ahead_ms(&self) -> i64 {
        self.ahead_ms
    }

    /// Wall time is this far ahead of now; behind, if negative.
    pub fn set_ahead(&mut self, ahead_ms: i64) {
        self.ahead_ms = ahead_ms;
        self.stamp = self.stamp.max(self.wall());
    }

    /// The monotonic time.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// The wall time, in milliseconds since the Unix epoch.
    pub fn wall(&self) -> u64 {
        self.wall_at(self.now)
    }

    /// The wall time at a monotonic time, as far as is known by now.
    pub fn wall_at(&self, now: u64) -> u64 {
        now.saturating_add_signed(self.ahead_ms)
    }

    /// The monotonic time at a wall time, as far as is known by now.
    pub fn now_at(&self, wall: u64) -> u64 {
        wall.saturating_sub_signed(self.ahead_ms)
    }

    /// The wall time as it is written into bodies: it never runs back.
    pub fn stamp(&self) -> u64 {
        self.stamp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamp_goes_on_at_half_the_speed_while_the_wall_clock_is_behind_it() {
        let mut clock = Clock::default();
        clock.pass(1_000);
        assert_eq!((clock.wall(), clock.stamp()), (1_000, 1_000));
        clock.set_ahead(-300);
        assert_eq!((clock.wall(), clock.stamp()), (700, 1_000));
        // However often it is looked at.
        for now in 1_001..=1_201 {
            clock.pass(now);
        }
        assert_eq!((clock.wall(), clock.stamp()), (901, 1_100));
        clock.pass(1_599);
        assert_eq!((clock.wall(), clock.stamp()), (1_299, 1_299));
        clock.pass(1_700);
        assert_eq!((clock.wall(), clock.stamp()), (1_400, 1_400));
        clock.set_ahead(500);
        assert_eq!((clock.wall(), clock.stamp()), (2_200, 2_200));
        assert_eq!((clock.now(), clock.now_at(2_200)), (1_700, 1_700));
    }
}
