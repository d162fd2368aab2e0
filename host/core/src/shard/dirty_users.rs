//! Dirty users: those on whom to decide again, in order.

use std::collections::VecDeque;

use roaring::RoaringBitmap;

use crate::names::Id;

/// The phase of a correction: which viewers are told now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The viewers who lost sight of the user. Viewers who gain it, or see a change, are
    /// told later.
    Losses,
    /// All viewers who see a difference.
    All,
}

/// Users on whom to decide again, in order. The losses of all of them are told before the gains.
/// Other shards don't matter.
#[derive(Debug, Default)]
pub(super) struct DirtyUsers {
    /// Users whose verdict read something that has changed. They come first: if a user blocks a
    /// viewer, that doesn't wait for everyone.
    changed: Queue,
    /// Users for whom the rules have changed: those who are left, sorted, each once.
    everyone: VecDeque<Id>,
    /// Users whom further viewers may see who haven't been told. They wait until the losses of all
    /// other users of the shard have been told.
    gaining: RoaringBitmap,
}

impl DirtyUsers {
    /// Marks a user whose verdict read something that has changed, or whose decision is due to be
    /// made again. If gains of theirs wait, these are decided on again, too.
    pub(super) fn mark(&mut self, user: Id) {
        self.gaining.remove(user.0);
        self.changed.push(user);
    }

    /// Marks a user whom further viewers may see who haven't been told.
    pub(super) fn mark_gaining(&mut self, user: Id) {
        self.gaining.insert(user.0);
    }

    /// Marks all online users, since the rules have changed. Marks from before are dropped: the
    /// decisions will be made anyway.
    pub(super) fn mark_all(&mut self, online: Vec<Id>) {
        self.everyone = online.into();
        self.changed = Queue::default();
        self.gaining.clear();
    }

    /// Marks some online users, sorted, for whom the rules have changed. They are merged with those
    /// who are left from an earlier change.
    pub(super) fn mark_some(&mut self, online: Vec<Id>) {
        for user in &online {
            self.gaining.remove(user.0);
        }
        let left = std::mem::take(&mut self.everyone);
        self.everyone = match left.is_empty() {
            true => online.into(),
            false => {
                let mut both: Vec<_> = left.into_iter().chain(online).collect();
                both.sort_unstable();
                both.dedup();
                both.into()
            }
        };
    }

    /// Takes the next user, and the phase of the correction.
    pub(super) fn next(&mut self) -> Option<(Id, Phase)> {
        let losses = self.changed.pop().or_else(|| self.everyone.pop_front());
        if let Some(user) = losses {
            return Some((user, Phase::Losses));
        }
        let user = self.gaining.min()?;
        self.gaining.remove(user);
        Some((Id(user), Phase::All))
    }

    /// Whether a user is marked.
    pub(super) fn has(&self, user: Id) -> bool {
        self.changed.waiting.contains(user.0)
            || self.everyone.binary_search(&user).is_ok()
            || self.gaining.contains(user.0)
    }

    /// Whether no user is marked.
    pub(super) fn is_empty(&self) -> bool {
        self.changed.order.is_empty() && self.everyone.is_empty() && self.gaining.is_empty()
    }

    /// How many decisions are still to be made.
    pub(super) fn len(&self) -> usize {
        self.changed.order.len() + self.everyone.len() + self.gaining.len() as usize
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

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(dirty: &mut DirtyUsers) -> Vec<(u32, Phase)> {
        std::iter::from_fn(|| dirty.next())
            .map(|(user, told)| (user.0, told))
            .collect()
    }

    #[test]
    fn what_changed_comes_before_everyone_and_gains_come_last() {
        let mut dirty = DirtyUsers::default();
        dirty.mark_all(vec![Id(1), Id(2), Id(3)]);
        dirty.mark_gaining(Id(2));
        dirty.mark(Id(3));
        dirty.mark(Id(3));
        assert_eq!(dirty.len(), 5);
        let losses = [3, 1, 2, 3].map(|user| (user, Phase::Losses));
        let turns = [&losses[..], &[(2, Phase::All)]].concat();
        assert_eq!(drain(&mut dirty), turns);
        assert_eq!(dirty.len(), 0);
    }

    #[test]
    fn the_newest_rules_begin_anew() {
        let mut dirty = DirtyUsers::default();
        dirty.mark_all(vec![Id(1), Id(2)]);
        dirty.next();
        dirty.mark(Id(7));
        dirty.mark_gaining(Id(1));
        dirty.mark_all(vec![Id(1), Id(4)]);
        assert_eq!(drain(&mut dirty), [1, 4].map(|user| (user, Phase::Losses)));
    }

    #[test]
    fn users_whose_rules_change_join_those_who_are_left_and_are_decided_on_once() {
        let mut dirty = DirtyUsers::default();
        dirty.mark_all(vec![Id(1), Id(3), Id(5)]);
        dirty.next();
        dirty.mark_gaining(Id(4));
        dirty.mark_some(vec![Id(2), Id(3), Id(4)]);
        assert!([2, 3, 4, 5].iter().all(|user| dirty.has(Id(*user))));
        let losses = [2, 3, 4, 5].map(|user| (user, Phase::Losses));
        assert_eq!(drain(&mut dirty), losses);
    }

    #[test]
    fn gains_wait_for_losses_that_come_later_too() {
        let mut dirty = DirtyUsers::default();
        dirty.mark_gaining(Id(1));
        dirty.mark(Id(2));
        assert_eq!(dirty.next(), Some((Id(2), Phase::Losses)));
        dirty.mark_gaining(Id(2));
        assert_eq!(drain(&mut dirty), [1, 2].map(|user| (user, Phase::All)));
        assert!(dirty.is_empty());
    }

    #[test]
    fn gains_of_whom_a_newer_correction_concerns_are_decided_on_anew() {
        let mut dirty = DirtyUsers::default();
        dirty.mark_gaining(Id(1));
        dirty.mark_gaining(Id(2));
        dirty.mark(Id(1));
        assert_eq!(dirty.len(), 2);
        let turns = [(1, Phase::Losses), (2, Phase::All)];
        assert_eq!(drain(&mut dirty), turns);
        assert!(!dirty.has(Id(1)));
        dirty.mark_gaining(Id(1));
        assert!(dirty.has(Id(1)));
    }
}
