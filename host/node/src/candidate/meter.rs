//! Counters of the active pipeline and the one beside it, shared by all threads: the calls that
//! decide while a canary runs, and the comparisons of both.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use foldhash::fast::FixedState;
use presence_core::comparison::{Difference, Pairs};
use presence_core::names::Id;
use presence_core::rules::Failure;
use roaring::RoaringBitmap;

use super::latency::FineLatency;
use super::report::Example;

/// How many examples of differences are kept.
pub(crate) const EXAMPLES_MAX: usize = 20;

/// How many pairs of a viewer and a user are kept of each kind. Further differences are only
/// counted.
const PAIRS_MAX: u64 = 1_000_000;

/// For how many users the last comparison is kept.
const USERS_MAX: usize = 100_000;

/// One of the two pipelines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Active,
    Candidate,
}

/// The counters of both pipelines.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// While a canary runs: the calls that decided, of the active pipeline and of the canary.
    active: Calls,
    candidate: Calls,
    /// Decisions that were not compared, because there was no time.
    skipped: AtomicU64,
    compared: Mutex<ComparisonTotals>,
}

/// The calls of one pipeline.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    pub(crate) calls: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) latency: FineLatency,
    last_failure: Mutex<Option<Failure>>,
}

/// The results of comparisons.
#[derive(Debug, Default)]
pub(crate) struct ComparisonTotals {
    /// Events that both have decided.
    pub(crate) decisions: u64,
    /// Events on which both have decided alike.
    pub(crate) same: u64,
    /// Events for which one of them lacked an answer of the directory.
    pub(crate) unanswered: u64,
    pub(crate) lost: Pairs,
    pub(crate) gained: Pairs,
    pub(crate) otherwise: Pairs,
    /// Differences whose pairs weren't kept.
    pub(crate) left_out: u64,
    pub(crate) examples: Vec<Example>,
    pub(crate) active: PipelineTotals,
    pub(crate) candidate: PipelineTotals,
    /// The last comparison for each user.
    users: HashMap<Id, Last, FixedState>,
}

/// The calls of one pipeline in comparisons.
#[derive(Debug, Default)]
pub(crate) struct PipelineTotals {
    pub(crate) calls: u64,
    pub(crate) failures: u64,
    pub(crate) last_failure: Option<Failure>,
    pub(crate) fuel: u64,
    pub(crate) fuel_max: u64,
    pub(crate) latency: FineLatency,
}

/// The last comparison for a user.
#[derive(Clone, Copy, Debug)]
struct Last {
    /// When it was, in milliseconds of the host's clock.
    at: u64,
    is_hidden: bool,
    is_shown: bool,
}

/// Users who were compared recently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Users {
    pub(crate) compared: u64,
    /// Users whom the candidate hides from a viewer who would see them.
    pub(crate) hidden: u64,
    /// Users whom the candidate shows to a viewer who would not see them.
    pub(crate) shown: u64,
}

impl Meter {
    /// The calls of a pipeline that decided.
    pub(crate) fn calls(&self, side: Side) -> &Calls {
        match side {
            Side::Active => &self.active,
            Side::Candidate => &self.candidate,
        }
    }

    /// Counts decisions that are not compared, because there is no time.
    pub(crate) fn skip(&self, count: u64) {
        self.skipped.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    pub(crate) fn compared(&self) -> MutexGuard<'_, ComparisonTotals> {
        self.compared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Self::compared`]. `None` if the totals are locked: making a report may take long, and a
    /// thread of the pool must not wait for it.
    pub(crate) fn try_compared(&self) -> Option<MutexGuard<'_, ComparisonTotals>> {
        match self.compared.try_lock() {
            Ok(compared) => Some(compared),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The numbers of all ids that are referenced here.
    pub(crate) fn ids(&self) -> RoaringBitmap {
        let compared = self.compared();
        let users = compared.users.keys().map(|user| user.0);
        let users: RoaringBitmap = users.collect();
        users | compared.lost.ids() | compared.gained.ids() | compared.otherwise.ids()
    }
}

impl Calls {
    /// Counts a call, and its failure if it failed.
    pub(crate) fn count(&self, took: Duration, failure: Option<&Failure>) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.latency.count(took);
        if let Some(failure) = failure {
            self.note_failure(failure);
        }
    }

    /// Counts a failed enricher. The event continued without it.
    pub(crate) fn count_failure(&self, failure: &Failure) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.note_failure(failure);
    }

    fn note_failure(&self, failure: &Failure) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        *self.lock_last() = Some(failure.clone());
    }

    /// The last failure, if there was one.
    pub(crate) fn last_failure(&self) -> Option<Failure> {
        self.lock_last().clone()
    }

    fn lock_last(&self) -> MutexGuard<'_, Option<Failure>> {
        self.last_failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl PipelineTotals {
    /// Counts a decision, and its failure if it failed.
    pub(crate) fn count(&mut self, took: Duration, fuel: u64, failure: Option<&Failure>) {
        self.calls += 1;
        self.fuel = self.fuel.saturating_add(fuel);
        self.fuel_max = self.fuel_max.max(fuel);
        self.latency.count(took);
        if let Some(failure) = failure {
            self.failures += 1;
            self.last_failure = Some(failure.clone());
        }
    }
}

impl ComparisonTotals {
    /// Counts a comparison. Returns whether an example of it is wanted.
    pub(crate) fn count_comparison(&mut self, now: u64, user: Id, difference: &Difference) -> bool {
        self.decisions += 1;
        let last = Last {
            at: now,
            is_hidden: !difference.lost.is_empty(),
            is_shown: !difference.gained.is_empty(),
        };
        if self.users.len() < USERS_MAX || self.users.contains_key(&user) {
            self.users.insert(user, last);
        }
        if difference.is_empty() {
            self.same += 1;
            return false;
        }
        for (pairs, viewers) in [
            (&mut self.lost, &difference.lost),
            (&mut self.gained, &difference.gained),
            (&mut self.otherwise, &difference.shown_differently),
        ] {
            if pairs.len() + viewers.len() <= PAIRS_MAX {
                pairs.add(user, viewers);
            } else {
                self.left_out += 1;
            }
        }
        self.examples.len() < EXAMPLES_MAX
    }

    /// The users who were compared since a time. Older comparisons are forgotten.
    pub(crate) fn users_since(&mut self, since: u64) -> Users {
        self.users.retain(|_, last| last.at >= since);
        let count = |is: fn(&Last) -> bool| self.users.values().filter(|it| is(it)).count() as u64;
        Users {
            compared: self.users.len() as u64,
            hidden: count(|last| last.is_hidden),
            shown: count(|last| last.is_shown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(lost: &[u32], gained: &[u32]) -> Difference {
        Difference {
            lost: lost.iter().copied().collect(),
            gained: gained.iter().copied().collect(),
            shown_differently: RoaringBitmap::new(),
        }
    }

    #[test]
    fn a_user_counts_as_they_were_last_decided_on_and_only_for_a_while() {
        let mut compared = ComparisonTotals::default();
        assert!(compared.count_comparison(10, Id(1), &difference(&[7], &[])));
        assert!(!compared.count_comparison(20, Id(1), &difference(&[], &[])));
        assert!(compared.count_comparison(30, Id(2), &difference(&[7], &[8])));
        let users = Users {
            compared: 2,
            hidden: 1,
            shown: 1,
        };
        assert_eq!(compared.users_since(20), users);
        assert_eq!(compared.users_since(21).compared, 1);
        assert_eq!((compared.decisions, compared.same), (3, 1));
        assert_eq!(compared.lost.count().pairs, 2);
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_left_out_is_counted() {
        let mut compared = ComparisonTotals::default();
        let many = Difference {
            lost: (0..600_000).collect(),
            ..Difference::default()
        };
        for user in 0..3 {
            compared.count_comparison(1, Id(user), &many);
        }
        assert_eq!((compared.lost.len(), compared.left_out), (600_000, 2));
        for user in 0..200_000 {
            compared.count_comparison(1, Id(user), &Difference::default());
        }
        assert_eq!(compared.users.len(), USERS_MAX);
    }
}
