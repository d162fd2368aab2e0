//! Users on whom to decide again, and how fast what comes of it is published.

use std::collections::VecDeque;

use roaring::RoaringBitmap;

use super::tell::Told;
use crate::names::Id;

/// For how long unused capacity may be made up for, in nanoseconds.
const BURST_NS: u64 = 100_000_000;

const NS_PER_MS: u64 = 1_000_000;
const NS_PER_S: u64 = 1_000_000_000;

/// Users on whom to decide again, in the order of their turns.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// What their verdict read has changed. A block doesn't wait for everyone.
    changed: Queue,
    /// The rules have changed for everyone.
    everyone: Queue,
    /// More may see them than have been told. They wait until all others have
    /// lost sight of those whom they may not see any more.
    gaining: Queue,
}

impl Backlog {
    /// What a user's verdict read has changed.
    pub(super) fn changed(&mut self, user: Id) {
        self.changed.push(user);
    }

    /// More may see a user than have been told.
    pub(super) fn gaining(&mut self, user: Id) {
        self.gaining.push(user);
    }

    /// The rules have changed for all who are online: what waited for a decision by
    /// earlier ones needn't be made.
    pub(super) fn restart(&mut self, online: Vec<Id>) {
        *self = Self {
            everyone: online.into(),
            ..Self::default()
        };
    }

    /// Whose turn it is, and who is told of them.
    pub(super) fn next(&mut self) -> Option<(Id, Told)> {
        let losses = self.changed.pop().or_else(|| self.everyone.pop());
        match losses {
            Some(user) => Some((user, Told::Losses)),
            None => self.gaining.pop().map(|user| (user, Told::All)),
        }
    }

    /// How many turns there are to come.
    pub(super) fn len(&self) -> usize {
        let queues = [&self.changed, &self.everyone, &self.gaining];
        queues.iter().map(|queue| queue.order.len()).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Users in the order in which they came, each once.
#[derive(Debug, Default)]
struct Queue {
    order: VecDeque<Id>,
    waiting: RoaringBitmap,
}

impl Queue {
    fn push(&mut self, user: Id) {
        if self.waiting.insert(user.0) {
            self.order.push_back(user);
        }
    }

    fn pop(&mut self) -> Option<Id> {
        let user = self.order.pop_front()?;
        self.waiting.remove(user.0);
        Some(user)
    }
}

impl From<Vec<Id>> for Queue {
    /// The users are distinct.
    fn from(users: Vec<Id>) -> Self {
        Self {
            waiting: users.iter().map(|user| user.0).collect(),
            order: users.into(),
        }
    }
}

/// A limit to how many messages a second corrections take.
#[derive(Debug)]
pub(super) struct Pace {
    /// What one message takes; 0 without a limit.
    ns_each: u64,
    /// When all that has been published would have been, at the pace.
    done_ns: u64,
}

impl Pace {
    /// So many messages a second, or as many as come, for 0.
    pub(super) fn new(messages_per_s: u64) -> Self {
        Self {
            ns_each: NS_PER_S.checked_div(messages_per_s).unwrap_or(0),
            done_ns: 0,
        }
    }

    /// Goes at another pace from here on.
    pub(super) fn change(&mut self, messages_per_s: u64) {
        self.ns_each = Self::new(messages_per_s).ns_each;
        if self.ns_each == 0 {
            self.done_ns = 0;
        }
    }

    /// When the next message may be published, in milliseconds since the Unix epoch.
    pub(super) fn next_at(&self) -> u64 {
        self.done_ns.div_ceil(NS_PER_MS)
    }

    /// So many messages are published now.
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

    fn drain(backlog: &mut Backlog) -> Vec<(u32, Told)> {
        std::iter::from_fn(|| backlog.next())
            .map(|(user, told)| (user.0, told))
            .collect()
    }

    #[test]
    fn what_changed_comes_before_everyone_and_gains_come_last() {
        let mut backlog = Backlog::default();
        backlog.restart(vec![Id(1), Id(2), Id(3)]);
        backlog.gaining(Id(2));
        backlog.changed(Id(3));
        backlog.changed(Id(3));
        assert_eq!(backlog.len(), 5);
        let losses = [3, 1, 2, 3].map(|user| (user, Told::Losses));
        let turns = [&losses[..], &[(2, Told::All)]].concat();
        assert_eq!(drain(&mut backlog), turns);
        assert!(backlog.is_empty());
    }

    #[test]
    fn the_newest_rules_begin_anew() {
        let mut backlog = Backlog::default();
        backlog.restart(vec![Id(1), Id(2)]);
        backlog.next();
        backlog.changed(Id(7));
        backlog.gaining(Id(1));
        backlog.restart(vec![Id(1), Id(4)]);
        assert_eq!(drain(&mut backlog), [1, 4].map(|user| (user, Told::Losses)));
    }

    #[test]
    fn what_is_published_holds_up_the_next_by_the_pace() {
        let mut pace = Pace::new(1_000);
        let now = 10_000;
        assert!(pace.next_at() <= now);
        // What wasn't used of the last 100 ms may be made up for.
        pace.published(now, 100);
        assert_eq!(pace.next_at(), now);
        pace.published(now, 1);
        assert_eq!(pace.next_at(), now + 1);
        pace.published(now + 1, 50);
        assert_eq!(pace.next_at(), now + 51);
        pace.change(0);
        assert_eq!(pace.next_at(), 0);
        pace.published(now, 1_000_000);
        assert_eq!(pace.next_at(), 0);
    }
}
