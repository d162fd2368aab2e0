//! The times that the core uses. The caller provides them.
//!
//! *Now* is monotonic: it is used for durations, retries and rates, and changing the machine's
//! clock does not change it. *Wall time* is the machine's clock: it is used for senders'
//! timestamps, rules and the expiry of statuses. The caller says how far the two are apart. Message
//! bodies have the *stamp*, which is wall time that never runs back: while the machine's clock is
//! behind the last stamp, the stamp advances at half speed. It doesn't stand still, since senders'
//! timestamps are limited to it: otherwise all messages sent in that time would count as equally
//! old, and none as newer than what came before.

/// The current times, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    now: u64,
    ahead_ms: i64,
    stamp: u64,
    /// Whether half a millisecond is still to be added to the stamp.
    half: bool,
}

impl Clock {
    /// Advances the time to `now`. An earlier time is ignored.
    pub fn advance_to(&mut self, now: u64) {
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

    /// Sets how far wall time is ahead of now, in milliseconds. Negative: it is behind.
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

    /// The wall time at a monotonic time, by the current difference of the two.
    pub fn wall_at(&self, now: u64) -> u64 {
        now.saturating_add_signed(self.ahead_ms)
    }

    /// The monotonic time at a wall time, by the current difference of the two.
    pub fn now_at(&self, wall: u64) -> u64 {
        wall.saturating_sub_signed(self.ahead_ms)
    }

    /// The wall time for message bodies: it never runs back.
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
        clock.advance_to(1_000);
        assert_eq!((clock.wall(), clock.stamp()), (1_000, 1_000));
        clock.set_ahead(-300);
        assert_eq!((clock.wall(), clock.stamp()), (700, 1_000));
        // The result doesn't depend on how often the clock is advanced.
        for now in 1_001..=1_201 {
            clock.advance_to(now);
        }
        assert_eq!((clock.wall(), clock.stamp()), (901, 1_100));
        clock.advance_to(1_599);
        assert_eq!((clock.wall(), clock.stamp()), (1_299, 1_299));
        clock.advance_to(1_700);
        assert_eq!((clock.wall(), clock.stamp()), (1_400, 1_400));
        clock.set_ahead(500);
        assert_eq!((clock.wall(), clock.stamp()), (2_200, 2_200));
        assert_eq!((clock.now(), clock.now_at(2_200)), (1_700, 1_700));
    }
}
