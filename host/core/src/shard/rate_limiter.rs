//! The rate limiter of corrections: how many messages a second they may publish.

/// How far back unused capacity may be made up for, in nanoseconds.
const BURST_NS: u64 = 100_000_000;

const NS_PER_MS: u64 = 1_000_000;
const NS_PER_S: u64 = 1_000_000_000;

/// Limits how many messages a second corrections publish.
#[derive(Debug)]
pub(super) struct RateLimiter {
    /// The time that one message takes at the rate; 0: no limit.
    ns_each: u64,
    /// When all messages so far would have been published, at the rate.
    done_ns: u64,
}

impl RateLimiter {
    /// At most `messages_per_s` messages a second; 0: no limit.
    pub(super) fn new(messages_per_s: u64) -> Self {
        Self {
            ns_each: NS_PER_S.checked_div(messages_per_s).unwrap_or(0),
            done_ns: 0,
        }
    }

    /// Changes the rate from now on.
    pub(super) fn change(&mut self, messages_per_s: u64) {
        self.ns_each = Self::new(messages_per_s).ns_each;
        if self.ns_each == 0 {
            self.done_ns = 0;
        }
    }

    /// When the next message may be published, in milliseconds by the monotonic time.
    pub(super) fn next_at(&self) -> u64 {
        self.done_ns.div_ceil(NS_PER_MS)
    }

    /// Counts messages that are published now.
    pub(super) fn published(&mut self, now_ms: u64, messages: usize) {
        let earliest = now_ms.saturating_mul(NS_PER_MS).saturating_sub(BURST_NS);
        let took = self.ns_each.saturating_mul(messages as u64);
        if took > 0 {
            self.done_ns = self.done_ns.max(earliest).saturating_add(took);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_holds_up_the_next_by_the_rate() {
        let mut limiter = RateLimiter::new(1_000);
        let now = 10_000;
        assert!(limiter.next_at() <= now);
        // What wasn't used of the last 100 ms may be made up for.
        limiter.published(now, 100);
        assert_eq!(limiter.next_at(), now);
        limiter.published(now, 1);
        assert_eq!(limiter.next_at(), now + 1);
        limiter.published(now + 1, 50);
        assert_eq!(limiter.next_at(), now + 51);
        limiter.change(0);
        assert_eq!(limiter.next_at(), 0);
        limiter.published(now, 1_000_000);
        assert_eq!(limiter.next_at(), 0);
    }
}
