//! In which order it was said whether users are online, where messages overtake each other.
//!
//! Several nodes pass on messages side by side, so that two of them may arrive the other way round, and
//! at two nodes in two orders. So the senders' clocks decide which was said later, if both arrive
//! within a short time. Of the same time, the offline is the later one: nobody who is to be hidden
//! is shown by chance, and all nodes come to the same.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::names::Id;

/// When something was said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// By the sender's clock, in milliseconds since the Unix epoch.
    pub timestamp: u64,
    /// When it arrived, by the monotonic time.
    pub at: u64,
}

/// What was said lately.
#[derive(Debug, Default)]
pub(super) struct Order {
    users: HashMap<Id, Newest, foldhash::fast::FixedState>,
    /// When to look whether what was said of a user can be forgotten.
    looks: VecDeque<(u64, Id)>,
}

/// What was said last of a user.
#[derive(Clone, Copy, Debug, Default)]
struct Newest {
    online: Said,
    offline: Said,
}

impl Order {
    /// Takes what is said of a user. Says whether it counts: the opposite was not said later.
    pub(super) fn take(&mut self, user: Id, is_offline: bool, said: Said, within_ms: u64) -> bool {
        self.forget(said.at, within_ms);
        let is_new = !self.users.contains_key(&user);
        let newest = self.users.entry(user).or_default();
        let (same, opposite) = match is_offline {
            true => (&mut newest.offline, newest.online),
            false => (&mut newest.online, newest.offline),
        };
        let is_recent = opposite.timestamp > 0 && said.at <= opposite.at.saturating_add(within_ms);
        let is_later = match is_offline {
            true => opposite.timestamp > said.timestamp,
            false => opposite.timestamp >= said.timestamp,
        };
        if said.timestamp >= same.timestamp || said.at > same.at.saturating_add(within_ms) {
            *same = said;
        }
        if is_new {
            self.looks.push_back((said.at, user));
        }
        !(is_recent && is_later)
    }

    /// The numbers of ids in here.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.users.keys().map(|user| user.0)
    }

    /// Forgets what decides nothing any more.
    fn forget(&mut self, now: u64, within_ms: u64) {
        while let Some((at, user)) = self.looks.front().copied() {
            if now <= at.saturating_add(within_ms) {
                return;
            }
            self.looks.pop_front();
            let newest = self.users.get(&user).copied().unwrap_or_default();
            let last = newest.online.at.max(newest.offline.at);
            match now <= last.saturating_add(within_ms) {
                true => self.looks.push_back((last, user)),
                false => {
                    self.users.remove(&user);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: Id = Id(1);
    const BOB: Id = Id(2);
    const WITHIN_MS: u64 = 2_000;

    fn said(timestamp: u64, at: u64) -> Said {
        Said { timestamp, at }
    }

    #[test]
    fn what_was_said_later_counts_in_whatever_order_it_arrives() {
        for (first, second) in [((false, 10), (true, 11)), ((true, 10), (false, 11))] {
            let mut order = Order::default();
            assert!(order.take(ANN, first.0, said(first.1, 100), WITHIN_MS));
            assert!(order.take(ANN, second.0, said(second.1, 101), WITHIN_MS));
            let mut order = Order::default();
            assert!(order.take(ANN, second.0, said(second.1, 100), WITHIN_MS));
            assert!(!order.take(ANN, first.0, said(first.1, 101), WITHIN_MS));
            // Another user's order is their own.
            assert!(order.take(BOB, first.0, said(first.1, 101), WITHIN_MS));
        }
    }

    #[test]
    fn of_the_same_time_the_offline_is_the_later_one() {
        let mut order = Order::default();
        assert!(order.take(ANN, false, said(10, 100), WITHIN_MS));
        assert!(order.take(ANN, true, said(10, 101), WITHIN_MS));
        assert!(!order.take(ANN, false, said(10, 102), WITHIN_MS));
    }

    #[test]
    fn after_a_while_what_arrives_counts_and_nothing_is_kept() {
        let mut order = Order::default();
        assert!(order.take(ANN, true, said(10, 100), WITHIN_MS));
        assert!(!order.take(ANN, false, said(9, 2_100), WITHIN_MS));
        assert!(order.take(ANN, false, said(9, 2_101), WITHIN_MS));
        assert_eq!(order.ids().count(), 1);
        assert!(order.take(BOB, false, said(9, 9_000), WITHIN_MS));
        assert_eq!(order.ids().collect::<Vec<_>>(), [BOB.0]);
        assert_eq!(order.looks.len(), 1);
    }
}
