//! A circuit breaker: a component that fails again and again is not called any
//! more. Time is an argument, so that a replay takes the same decisions.

/// When a component is taken out of service, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// How many failures in a row it takes.
    pub failures: u64,
    /// How long the component is left alone before one call is tried, in
    /// milliseconds.
    pub ms: u64,
}

/// What is known of a component's failures.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Breaker {
    failures_in_a_row: u64,
    /// Set while the component is in quarantine: when the next call may be tried.
    retry_at: Option<u64>,
}

/// What a failure led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tripped {
    /// The component goes on being called.
    No,
    /// It has just been put into quarantine.
    Now,
    /// It was in quarantine, failed the trial, and stays there.
    Still,
}

impl Breaker {
    /// Whether the component may be called now.
    pub(crate) fn allows(&self, now: u64) -> bool {
        self.retry_at.is_none_or(|at| now >= at)
    }

    /// Whether the component is in quarantine.
    pub(crate) fn is_open(&self) -> bool {
        self.retry_at.is_some()
    }

    /// A call succeeded. Says whether that ended a quarantine.
    pub(crate) fn succeeded(&mut self) -> bool {
        let was_open = self.is_open();
        *self = Self::default();
        was_open
    }

    /// A call failed.
    pub(crate) fn failed(&mut self, now: u64, quarantine: Quarantine) -> Tripped {
        let was_open = self.is_open();
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        if !was_open && self.failures_in_a_row < quarantine.failures {
            return Tripped::No;
        }
        self.retry_at = Some(now.saturating_add(quarantine.ms));
        if was_open {
            Tripped::Still
        } else {
            Tripped::Now
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUARANTINE: Quarantine = Quarantine {
        failures: 3,
        ms: 100,
    };

    #[test]
    fn failures_in_a_row_open_it_and_one_success_closes_it() {
        let mut breaker = Breaker::default();
        assert_eq!(breaker.failed(1, QUARANTINE), Tripped::No);
        assert!(!breaker.succeeded());
        assert_eq!(breaker.failed(2, QUARANTINE), Tripped::No);
        assert_eq!(breaker.failed(3, QUARANTINE), Tripped::No);
        assert_eq!(breaker.failed(4, QUARANTINE), Tripped::Now);
        assert!(!breaker.allows(103));
        assert!(breaker.allows(104));
        assert_eq!(breaker.failed(104, QUARANTINE), Tripped::Still);
        assert!(!breaker.allows(203));
        assert!(breaker.allows(204));
        assert!(breaker.succeeded());
        assert!(breaker.allows(205));
    }
}
