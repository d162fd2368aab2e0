//! A circuit breaker: a component that fails for several users is taken out of service for some
//! time. All workers share it. The time is an argument, so that a replay makes the same decisions.
//! It is the monotonic time, since setting the machine's clock must neither prolong nor end a
//! quarantine.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The breaker's `retry_at` while the component is in service.
const IN_SERVICE: u64 = u64::MAX;

/// For how many windows a user for whom the component failed is remembered. Failed decisions are
/// retried, so one user's failures repeat until their cause ends. Failures for a remembered user
/// don't count again.
const WINDOWS_REMEMBERED: u64 = 10;

/// When a component is taken out of service, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// For how many users the component must begin to fail.
    pub users: u64,
    /// The window within which these failures must begin, in milliseconds.
    pub window_ms: u64,
    /// How long no call is made before one is tried, in milliseconds.
    pub ms: u64,
}

/// The failures of one component, over all workers.
#[derive(Debug)]
pub(crate) struct Breaker {
    /// When the next call may be tried while the component is in quarantine, in
    /// milliseconds; [`IN_SERVICE`] otherwise.
    retry_at: AtomicU64,
    /// Locked only when a call has failed, or a quarantine ends.
    failures: Mutex<FailureLog>,
}

/// The users for whom the component fails.
#[derive(Debug, Default)]
struct FailureLog {
    /// The time of the last failure, for each user.
    known: HashMap<Box<str>, u64>,
    /// When the component began to fail for a user: the times within the window, in order.
    began: VecDeque<u64>,
    /// The size of `known` after old users were last removed.
    kept: usize,
    /// The last failure.
    last: Option<LastFailure>,
}

/// The last call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastFailure {
    /// The monotonic time of the failure, in milliseconds.
    pub at: u64,
    /// The error, in one line. It may name users.
    pub error: Box<str>,
}

/// Whether a call may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// The component is in service.
    InService,
    /// The component is in quarantine, and this call tries whether it works again. There is one
    /// such call at a time. The value is the time at which the trial was due.
    Trial(u64),
    /// The component is in quarantine.
    Refused,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            retry_at: IN_SERVICE.into(),
            failures: Mutex::default(),
        }
    }
}

impl Breaker {
    /// Whether the component may be called now. After a trial, the caller reports how it went with
    /// `close`, `reopen_trial` or `failed`.
    pub(crate) fn admit(&self, now: u64, quarantine: Quarantine) -> Admission {
        let due = self.retry_at.load(Ordering::Relaxed);
        if due == IN_SERVICE {
            return Admission::InService;
        }
        let next = now.saturating_add(quarantine.ms);
        let is_first = || {
            let claimed =
                self.retry_at
                    .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed);
            claimed.is_ok()
        };
        if now >= due && is_first() {
            Admission::Trial(due)
        } else {
            Admission::Refused
        }
    }

    /// Whether the component is in quarantine.
    pub(crate) fn is_open(&self) -> bool {
        self.retry_at.load(Ordering::Relaxed) != IN_SERVICE
    }

    /// Puts the component into service again after a successful trial. The users for whom it is
    /// known to fail don't count towards the next quarantine.
    pub(crate) fn close(&self) {
        self.failures().began.clear();
        self.retry_at.store(IN_SERVICE, Ordering::Relaxed);
    }

    /// Makes the next call a trial again, after a trial without a result.
    pub(crate) fn reopen_trial(&self, due: u64) {
        self.retry_at.store(due, Ordering::Relaxed);
    }

    /// The last failure, if there has been one.
    pub(crate) fn last_failure(&self) -> Option<LastFailure> {
        self.failures().last.clone()
    }

    /// Records that a call about a user failed with this error. Returns whether this puts the
    /// component into quarantine.
    pub(crate) fn failed(
        &self,
        now: u64,
        (user, error): (&str, &str),
        admission: Admission,
        quarantine: Quarantine,
    ) -> bool {
        let mut failures = self.failures();
        failures.last = Some(LastFailure {
            at: now,
            error: error.into(),
        });
        let is_news = failures.note(now, user, quarantine.window_ms);
        if let Admission::Trial(due) = admission {
            // Repeated failures for one user don't prolong the quarantine for everyone.
            if !is_news {
                self.reopen_trial(due);
            }
            return false;
        }
        if !is_news || (failures.began.len() as u64) < quarantine.users {
            return false;
        }
        let until = now.saturating_add(quarantine.ms);
        let opened =
            self.retry_at
                .compare_exchange(IN_SERVICE, until, Ordering::Relaxed, Ordering::Relaxed);
        opened.is_ok()
    }

    fn failures(&self) -> MutexGuard<'_, FailureLog> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FailureLog {
    /// Records a failure. Returns whether it is the first one for this user, or the first since the
    /// user was forgotten.
    fn note(&mut self, now: u64, user: &str, window_ms: u64) -> bool {
        let remembered_ms = window_ms.saturating_mul(WINDOWS_REMEMBERED);
        let is_past = |at: u64, ms: u64| now.saturating_sub(at) >= ms;
        while let Some(began) = self.began.front()
            && is_past(*began, window_ms)
        {
            self.began.pop_front();
        }
        if let Some(last) = self.known.get_mut(user) {
            let is_forgotten = is_past(*last, remembered_ms);
            *last = now;
            if !is_forgotten {
                return false;
            }
        } else {
            // Old users are removed only once the map has about doubled, so that this costs little
            // on average.
            if self.known.len() > 2 * self.kept + 64 {
                self.known.retain(|_, last| !is_past(*last, remembered_ms));
                self.kept = self.known.len();
            }
            self.known.insert(user.into(), now);
        }
        self.began.push_back(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUARANTINE: Quarantine = Quarantine {
        users: 3,
        window_ms: 1_000,
        ms: 100,
    };

    fn fails(breaker: &Breaker, now: u64, user: &str) -> bool {
        breaker.failed(now, (user, "trapped"), Admission::InService, QUARANTINE)
    }

    /// A breaker that the failures of three users have put into quarantine at time 0.
    fn open() -> Breaker {
        let breaker = Breaker::default();
        let opened = ["ada", "ben", "cleo"].map(|user| fails(&breaker, 0, user));
        assert_eq!(opened, [false, false, true]);
        breaker
    }

    #[test]
    fn as_many_users_within_the_window_open_it_and_one_user_never_does() {
        let breaker = Breaker::default();
        for now in 0..5_000 {
            assert!(!fails(&breaker, now, "ada"));
        }
        assert_eq!(breaker.admit(5_000, QUARANTINE), Admission::InService);
        assert!(!fails(&breaker, 5_000, "ben"));
        assert!(!fails(&breaker, 5_001, "cleo"));
        // The failure for "ben" has left the window by then.
        assert!(!fails(&breaker, 6_000, "dan"));
        assert!(fails(&breaker, 6_000, "eve"));
        assert!(breaker.is_open());
    }

    #[test]
    fn users_on_whom_it_goes_on_failing_count_once() {
        let breaker = Breaker::default();
        for now in (0..100_000).step_by(500) {
            assert!(!fails(&breaker, now, "ada"));
            assert!(!fails(&breaker, now, "ben"));
        }
        assert!(!fails(&breaker, 100_000, "cleo"));
        assert!(!breaker.is_open());
        // After ten windows, these users count again.
        assert!(!fails(&breaker, 120_000, "ada"));
        assert!(!fails(&breaker, 120_000, "ben"));
        assert!(fails(&breaker, 120_000, "dan"));
    }

    #[test]
    fn in_quarantine_one_call_is_tried_at_a_time() {
        let breaker = open();
        assert_eq!(breaker.admit(99, QUARANTINE), Admission::Refused);
        let trial = breaker.admit(100, QUARANTINE);
        assert_eq!(trial, Admission::Trial(100));
        assert_eq!(breaker.admit(100, QUARANTINE), Admission::Refused);
        breaker.reopen_trial(100);
        assert_eq!(breaker.admit(101, QUARANTINE), Admission::Trial(100));
        breaker.close();
        assert_eq!(breaker.admit(101, QUARANTINE), Admission::InService);
        // A failure for a user who is known to fail doesn't count again.
        assert!(!fails(&breaker, 102, "ada"));
        assert!(!fails(&breaker, 102, "dan"));
        assert!(!breaker.is_open());
    }

    #[test]
    fn a_trial_prolongs_it_if_it_fails_on_yet_another_user() {
        let breaker = open();
        let trial = breaker.admit(100, QUARANTINE);
        assert!(!breaker.failed(100, ("ada", "trapped"), trial, QUARANTINE));
        let trial = breaker.admit(101, QUARANTINE);
        assert_eq!(trial, Admission::Trial(100), "ada says nothing new");
        assert!(!breaker.failed(101, ("dan", "trapped"), trial, QUARANTINE));
        assert_eq!(breaker.admit(200, QUARANTINE), Admission::Refused);
        assert_eq!(breaker.admit(201, QUARANTINE), Admission::Trial(201));
    }

    #[test]
    fn a_late_failure_of_a_call_from_before_does_not_prolong_it() {
        let breaker = open();
        assert!(!fails(&breaker, 50, "dan"));
        assert_eq!(breaker.admit(100, QUARANTINE), Admission::Trial(100));
    }

    #[test]
    fn users_of_long_ago_are_forgotten() {
        let breaker = Breaker::default();
        for now in 0..100_000 {
            fails(&breaker, 1_000 * now, &now.to_string());
        }
        assert!(breaker.failures().known.len() < 200);
        assert!(!breaker.is_open());
    }
}
