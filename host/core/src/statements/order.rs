//! The order in which users were said to be online or offline, where messages overtake each other.
//!
//! Several nodes pass on messages side by side. So two messages may arrive in the wrong order, and
//! in different orders at two nodes. The later timestamp wins if both arrive within a short time,
//! and if the second was not under way for more than this time longer than the first. Otherwise the
//! clocks differ too much, and the order of arrival counts. With equal timestamps, the offline is the later one: nobody who is to be hidden
//! is shown by chance, and all nodes decide the same.
//!
//! A timestamp in the future counts as the time of arrival. If those of both messages are in the
//! future, this node's clock is behind, and they count as they are.
//!
//! A node that was stopped passes on what it held when it goes on. It says how late these messages
//! may be. They may have been under way for that much longer.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::names::Id;

/// When something was said of a user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MessageTime {
    /// By the sender's clock, in milliseconds since the Unix epoch.
    pub timestamp: u64,
    /// The latest moment at which it may have been said, by this node's clock.
    pub latest: u64,
    /// When it arrived, by the monotonic time.
    pub at: u64,
    /// How much later than other messages it may have arrived, in milliseconds.
    pub delayed_ms: u64,
}

/// How long messages may be under way.
#[derive(Clone, Copy, Debug)]
pub struct ReorderLimits {
    /// The limit for most messages, in milliseconds.
    pub within_ms: u64,
    /// The limit for messages that are said to be late, in milliseconds. What was said is
    /// remembered for so long.
    pub kept_ms: u64,
}

impl MessageTime {
    /// The timestamps of this and of the other message, each no later than the latest moment,
    /// unless both are later.
    fn times(&self, other: &Self) -> (u64, u64) {
        match self.timestamp > self.latest && other.timestamp > other.latest {
            true => (self.timestamp, other.timestamp),
            false => (
                self.timestamp.min(self.latest),
                other.timestamp.min(other.latest),
            ),
        }
    }
}

/// What was lately said of users.
#[derive(Debug, Default)]
pub(super) struct StatementOrder {
    users: HashMap<Id, Newest, foldhash::fast::FixedState>,
    /// When to check whether what was said of a user can be forgotten.
    looks: VecDeque<(u64, Id)>,
}

/// When a user was last said to be online, and to be offline.
#[derive(Clone, Copy, Debug, Default)]
struct Newest {
    online: MessageTime,
    offline: MessageTime,
}

impl StatementOrder {
    /// Takes what is said of a user. Returns whether the opposite was said later. `None`: it isn't
    /// remembered whether the opposite was said.
    pub(super) fn take(
        &mut self,
        user: Id,
        is_offline: bool,
        time: MessageTime,
        limits: ReorderLimits,
    ) -> Option<bool> {
        let kept_ms = limits.kept_ms.max(limits.within_ms);
        self.forget(time.at, kept_ms);
        let within_ms = limits.within_ms.saturating_add(time.delayed_ms);
        let is_new = !self.users.contains_key(&user);
        let newest = self.users.entry(user).or_default();
        let (same, opposite) = match is_offline {
            true => (&mut newest.offline, newest.online),
            false => (&mut newest.online, newest.offline),
        };
        let is_recent = opposite.timestamp > 0 && time.at <= opposite.at.saturating_add(within_ms);
        let (then, now) = opposite.times(&time);
        let is_later = match is_offline {
            true => then > now,
            false => then >= now,
        };
        // How much longer than the opposite this message was under way.
        let longer_ms = then.saturating_sub(now) + time.at.saturating_sub(opposite.at);
        let is_overtaken = is_recent && is_later && longer_ms <= within_ms;
        let (then, now) = same.times(&time);
        if now >= then || time.at > same.at.saturating_add(within_ms) {
            *same = time;
        }
        if is_new {
            self.looks.push_back((time.at, user));
        }
        (opposite.timestamp > 0).then_some(is_overtaken)
    }

    /// The numbers of all ids in here.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.users.keys().map(|user| user.0)
    }

    /// Forgets users if nothing was said of them for `kept_ms`.
    fn forget(&mut self, now: u64, kept_ms: u64) {
        while let Some((at, user)) = self.looks.front().copied() {
            if now <= at.saturating_add(kept_ms) {
                return;
            }
            self.looks.pop_front();
            let newest = self.users.get(&user).copied().unwrap_or_default();
            let last = newest.online.at.max(newest.offline.at);
            match now <= last.saturating_add(kept_ms) {
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
    const LIMITS: ReorderLimits = ReorderLimits {
        within_ms: 2_000,
        kept_ms: 9_000,
    };

    fn time_of(timestamp: u64, at: u64) -> MessageTime {
        MessageTime {
            timestamp,
            latest: u64::MAX,
            at,
            delayed_ms: 0,
        }
    }

    fn received(timestamp: u64, latest: u64, at: u64) -> MessageTime {
        MessageTime {
            timestamp,
            latest,
            at,
            delayed_ms: 0,
        }
    }

    /// Whether a message counts.
    fn counts(
        order: &mut StatementOrder,
        user: Id,
        is_offline: bool,
        time: MessageTime,
        limits: ReorderLimits,
    ) -> bool {
        order.take(user, is_offline, time, limits) != Some(true)
    }

    #[test]
    fn a_node_whose_clock_is_behind_comes_to_the_same_order() {
        for (first, second) in [
            ((false, 900_010), (true, 900_011)),
            ((true, 900_010), (false, 900_011)),
        ] {
            let mut order = StatementOrder::default();
            assert!(counts(
                &mut order,
                ANN,
                second.0,
                received(second.1, 600, 100),
                LIMITS
            ));
            assert!(!counts(
                &mut order,
                ANN,
                first.0,
                received(first.1, 601, 101),
                LIMITS
            ));
            let mut order = StatementOrder::default();
            assert!(counts(
                &mut order,
                ANN,
                first.0,
                received(first.1, 600, 100),
                LIMITS
            ));
            assert!(counts(
                &mut order,
                ANN,
                second.0,
                received(second.1, 601, 101),
                LIMITS
            ));
        }
    }

    #[test]
    fn senders_whose_clocks_differ_by_more_than_messages_are_under_way_count_as_they_arrive() {
        // The second clock is a minute behind. Its sender hides a user who came just before.
        let mut order = StatementOrder::default();
        assert!(counts(
            &mut order,
            ANN,
            false,
            received(900_000, 900_100, 100),
            LIMITS
        ));
        assert!(counts(
            &mut order,
            ANN,
            true,
            received(840_500, 900_600, 600),
            LIMITS
        ));
        // The first clock is a second ahead.
        let mut order = StatementOrder::default();
        assert!(counts(
            &mut order,
            ANN,
            false,
            received(901_000, 900_100, 100),
            LIMITS
        ));
        assert!(counts(
            &mut order,
            ANN,
            true,
            received(900_500, 900_600, 600),
            LIMITS
        ));
        // Of two messages that say the same, the later one is found in the same way.
        assert!(counts(
            &mut order,
            ANN,
            false,
            received(900_600, 900_700, 700),
            LIMITS
        ));
        assert!(!counts(
            &mut order,
            ANN,
            true,
            received(900_590, 900_710, 710),
            LIMITS
        ));
    }

    #[test]
    fn what_was_said_later_counts_in_whatever_order_it_arrives() {
        for (first, second) in [((false, 10), (true, 11)), ((true, 10), (false, 11))] {
            let mut order = StatementOrder::default();
            assert!(counts(
                &mut order,
                ANN,
                first.0,
                time_of(first.1, 100),
                LIMITS
            ));
            assert!(counts(
                &mut order,
                ANN,
                second.0,
                time_of(second.1, 101),
                LIMITS
            ));
            let mut order = StatementOrder::default();
            assert!(counts(
                &mut order,
                ANN,
                second.0,
                time_of(second.1, 100),
                LIMITS
            ));
            assert!(!counts(
                &mut order,
                ANN,
                first.0,
                time_of(first.1, 101),
                LIMITS
            ));
            // Another user has an order of their own.
            assert!(counts(
                &mut order,
                BOB,
                first.0,
                time_of(first.1, 101),
                LIMITS
            ));
        }
    }

    #[test]
    fn of_the_same_time_the_offline_is_the_later_one() {
        let mut order = StatementOrder::default();
        assert!(counts(&mut order, ANN, false, time_of(10, 100), LIMITS));
        assert!(counts(&mut order, ANN, true, time_of(10, 101), LIMITS));
        assert!(!counts(&mut order, ANN, false, time_of(10, 102), LIMITS));
    }

    #[test]
    fn after_a_while_what_arrives_counts_and_nothing_is_kept() {
        let mut order = StatementOrder::default();
        assert!(counts(&mut order, ANN, true, time_of(10, 100), LIMITS));
        assert!(!counts(&mut order, ANN, false, time_of(10, 2_100), LIMITS));
        assert!(counts(&mut order, ANN, false, time_of(10, 2_101), LIMITS));
        assert_eq!(order.ids().count(), 1);
        assert!(counts(&mut order, BOB, false, time_of(9, 11_102), LIMITS));
        assert_eq!(order.ids().collect::<Vec<_>>(), [BOB.0]);
        assert_eq!(order.looks.len(), 1);
    }

    #[test]
    fn what_a_stopped_node_held_counts_by_when_it_was_said() {
        let late = |timestamp, at, delayed_ms| MessageTime {
            delayed_ms,
            ..time_of(timestamp, at)
        };
        for is_offline in [true, false] {
            let mut order = StatementOrder::default();
            assert!(counts(
                &mut order,
                ANN,
                is_offline,
                time_of(900_300, 400),
                LIMITS
            ));
            assert!(!counts(
                &mut order,
                ANN,
                !is_offline,
                late(900_000, 7_000, 6_900),
                LIMITS
            ));
            // This is later than all that was said before, and nobody else may know of it.
            assert!(counts(
                &mut order,
                ANN,
                !is_offline,
                late(900_400, 7_000, 6_900),
                LIMITS
            ));
            assert!(counts(
                &mut order,
                BOB,
                !is_offline,
                late(900_000, 7_000, 6_900),
                LIMITS
            ));
            // What was said meanwhile is forgotten after a while.
            let forgotten = late(900_200, 16_001, 15_900);
            assert_eq!(order.take(ANN, is_offline, forgotten, LIMITS), None);
        }
    }
}
