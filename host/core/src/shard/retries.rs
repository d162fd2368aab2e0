//! Decisions that are made again at a given time: those that failed or lack an answer of the
//! directory, and those for which a plugin asked to be called again. Few online users have one.

use std::collections::BTreeSet;

use hashbrown::HashMap;

use crate::names::Id;
use crate::pending_fetches::PendingFetches;

/// A decision that is to be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Retry {
    /// When, in milliseconds by the monotonic time.
    pub(super) at: u64,
    /// Set while the decision is pending, since it failed or lacks an answer:
    /// how long to wait after the next failure, in milliseconds.
    pub(super) next_wait_ms: Option<u64>,
    /// Since when it has been pending, if it is, by the monotonic time.
    pub(super) pending_since: Option<u64>,
    /// Whether a dead letter was made for it. There is only one, however often the decision fails.
    pub(super) has_letter: bool,
}

/// The decisions that are to be made again.
#[derive(Debug, Default)]
pub(super) struct Retries {
    users: HashMap<Id, Retry, foldhash::fast::FixedState>,
    /// The times of those that are not yet due.
    times: BTreeSet<(u64, Id)>,
    /// Those that are pending, by since when.
    waiting: BTreeSet<(u64, Id)>,
    /// The answers of the directory that some of them lack, until another decision is noted.
    pub(super) fetches: PendingFetches,
}

impl Retries {
    /// When to decide on a user again; `None` if that isn't needed.
    pub(super) fn get(&self, user: Id) -> Option<Retry> {
        if self.users.is_empty() {
            return None;
        }
        self.users.get(&user).copied()
    }

    /// When a user's pending decision is made again: it failed, or lacks an answer. `None` if the
    /// last decision holds.
    pub(super) fn pending_until(&self, user: Id) -> Option<u64> {
        let pending = self.get(user).filter(|again| again.next_wait_ms.is_some());
        pending.map(|again| again.at)
    }

    /// Notes when to decide on a user again; `None` if that isn't needed.
    pub(super) fn set(&mut self, user: Id, again: Option<Retry>) {
        let before = match again {
            Some(again) => {
                self.times.insert((again.at, user));
                self.users.insert(user, again)
            }
            None if self.users.is_empty() => return,
            None => self.users.remove(&user),
        };
        if let Some(before) = before
            && again.is_none_or(|again| again.at != before.at)
        {
            self.times.remove(&(before.at, user));
        }
        if let Some(since) = before.and_then(|before| before.pending_since) {
            self.waiting.remove(&(since, user));
        }
        if let Some(since) = again.and_then(|again| again.pending_since) {
            self.waiting.insert((since, user));
        }
        self.fetches.forget(user);
    }

    /// How many decisions are pending, and since when the oldest is, by the monotonic time.
    pub(super) fn waiting(&self) -> (usize, Option<u64>) {
        let oldest = self.waiting.first().map(|(since, _)| *since);
        (self.waiting.len(), oldest)
    }

    /// Has a pending decision made now. If it fails again, there is another dead letter.
    pub(super) fn redrive(&mut self, user: Id, now: u64) {
        if let Some(pending) = self.get(user).filter(|again| again.next_wait_ms.is_some()) {
            let again = Retry {
                at: now,
                has_letter: false,
                ..pending
            };
            self.set(user, Some(again));
        }
    }

    /// When the next decision is to be made.
    pub(super) fn next_at(&self) -> Option<u64> {
        self.times.first().map(|(at, _)| *at)
    }

    /// Takes a user on whom to decide now. [`Self::get`] still has the entry until the decision is
    /// noted.
    pub(super) fn pop_due(&mut self, now: u64) -> Option<Id> {
        let (at, user) = *self.times.first()?;
        if at > now {
            return None;
        }
        self.times.pop_first();
        Some(user)
    }

    /// The users whose decision is pending, in a stable order.
    pub(super) fn pending(&self) -> impl Iterator<Item = Id> {
        let users = self.times.iter().map(|(_, user)| *user);
        users.filter(|user| self.pending_until(*user).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_one_time_and_a_decision_that_is_due_is_pending_until_it_is_noted() {
        let (mut retries, user) = (Retries::default(), Id(7));
        let again = |at, next_wait_ms: Option<u64>| {
            let pending_since = next_wait_ms.map(|_| 7);
            Some(Retry {
                at,
                next_wait_ms,
                has_letter: false,
                pending_since,
            })
        };
        retries.set(user, again(20, None));
        retries.set(user, again(10, Some(5)));
        assert_eq!(retries.next_at(), Some(10));
        assert_eq!(retries.pop_due(9), None);
        assert_eq!(retries.pop_due(10), Some(user));
        assert_eq!((retries.pop_due(99), retries.next_at()), (None, None));
        assert_eq!(retries.pending_until(user), Some(10));
        retries.set(user, again(10, Some(10)));
        assert_eq!(retries.pending().collect::<Vec<_>>(), [user]);
        assert_eq!(retries.waiting(), (1, Some(7)));
        assert_eq!(retries.pop_due(10), Some(user));
        retries.set(user, None);
        assert_eq!((retries.get(user), retries.next_at()), (None, None));
        assert_eq!(retries.waiting(), (0, None));
    }
}
