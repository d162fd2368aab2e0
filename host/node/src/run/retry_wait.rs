//! The wait before a tenant that could not be served is tried again.

use std::time::Duration;

/// The wait at first and at most.
const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The next wait. Each is longer than the one before, unless the tenant was served in between.
pub(super) struct RetryWait(Duration);

impl Default for RetryWait {
    fn default() -> Self {
        Self(WAIT.0)
    }
}

impl RetryWait {
    /// The wait after an attempt that failed after the time `took`.
    pub(super) fn after(&mut self, took: Duration) -> Duration {
        if took > WAIT.1 {
            // The tenant was served for a while, so the failure is a new one.
            *self = Self::default();
        }
        let wait = self.0;
        self.0 = (wait * 2).min(WAIT.1);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_get_longer_until_the_tenant_could_be_served() {
        let (mut wait, at_once) = (RetryWait::default(), Duration::from_millis(5));
        let seconds = |wait: Duration| wait.as_secs();
        let waits: Vec<_> = (0..8).map(|_| seconds(wait.after(at_once))).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(seconds(wait.after(Duration::from_secs(3_600))), 1);
        assert_eq!(seconds(wait.after(at_once)), 2);
    }
}
