//! Users on whom to decide again, in the order of their turns.

use std::collections::{BTreeMap, VecDeque};

use roaring::RoaringBitmap;

use super::tell::Whom;
use crate::names::Id;

/// Users on whom to decide again, in the order of their turns.
///
/// Corrections are counted as they are handed in. All shards of a tenant are handed
/// the same ones in the same order, so that their numbers mean the same to all.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// What their verdict read has changed. A block doesn't wait for everyone.
    changed: Queue,
    /// The rules have changed for everyone: those who are left, sorted.
    everyone: VecDeque<Id>,
    /// The earliest correction that isn't done before they are.
    everyone_of: u64,
    /// More may see them than have been told, by the correction after which they were
    /// decided on. They wait until all others have lost sight of those whom they may
    /// not see any more, in this shard and in all others.
    gaining: BTreeMap<u64, RoaringBitmap>,
    /// How many corrections have been handed in.
    corrections: u64,
    /// Up to which of them the other shards have told who loses sight, if there are any.
    told_elsewhere: Option<u64>,
}

impl Backlog {
    /// What a user's verdict read has changed, or the decision is made again of its
    /// own accord. Gains that wait are decided on anew.
    pub(super) fn changed(&mut self, user: Id) {
        self.forget_gains(user);
        self.changed.push(user, self.corrections + 1);
    }

    /// More may see a user than have been told.
    pub(super) fn gaining(&mut self, user: Id) {
        self.forget_gains(user);
        let gaining = self.gaining.entry(self.corrections).or_default();
        gaining.insert(user.0);
    }

    /// The rules have changed for all who are online: what waited for a decision by
    /// earlier ones needn't be made. What earlier corrections had left to tell is
    /// now among what everyone is told.
    pub(super) fn restart(&mut self, online: Vec<Id>) {
        self.everyone_of = self.losses_told() + 1;
        self.everyone = online.into();
        self.changed = Queue::default();
        self.gaining.clear();
    }

    /// A correction has been handed in, and whom it concerns is in here.
    pub(super) fn handed_in(&mut self) {
        self.corrections += 1;
    }

    /// Up to which correction all those concerned have been decided on, and who loses
    /// sight of them has been told. A decision that has failed has been made, for this
    /// purpose, and what is decided again without a correction holds nobody up.
    pub(super) fn losses_told(&self) -> u64 {
        let everyone = (!self.everyone.is_empty()).then_some(self.everyone_of);
        let untold = self.changed.earliest().into_iter().chain(everyone).min();
        untold.map_or(self.corrections, |correction| correction - 1)
    }

    /// The other shards have told who loses sight, up to this correction.
    pub(super) fn told_elsewhere(&mut self, correction: u64) {
        self.told_elsewhere = Some(correction);
    }

    /// Whether nothing is to be done but to wait for other shards.
    pub(super) fn waits(&self) -> bool {
        !self.gaining.is_empty() && !self.is_due()
    }

    /// Whether it is somebody's turn.
    pub(super) fn is_due(&self) -> bool {
        let gaining = self.gaining.keys().next();
        let may_gain = |of: &u64| self.told_elsewhere.is_none_or(|told| *of <= told);
        !(self.changed.order.is_empty() && self.everyone.is_empty())
            || gaining.is_some_and(may_gain)
    }

    /// Whose turn it is, and who is told of them.
    pub(super) fn next(&mut self) -> Option<(Id, Whom)> {
        let losses = self.changed.pop().or_else(|| self.everyone.pop_front());
        if let Some(user) = losses {
            return Some((user, Whom::Losses));
        }
        if !self.is_due() {
            return None;
        }
        let mut gaining = self.gaining.first_entry()?;
        let user = gaining.get().min()?;
        gaining.get_mut().remove(user);
        if gaining.get().is_empty() {
            gaining.remove();
        }
        Some((Id(user), Whom::All))
    }

    /// Whether a user has a turn to come.
    pub(super) fn has(&self, user: Id) -> bool {
        self.changed.waiting.contains(user.0)
            || self.everyone.binary_search(&user).is_ok()
            || self.gaining.values().any(|users| users.contains(user.0))
    }

    /// How many turns there are to come.
    pub(super) fn len(&self) -> usize {
        let gaining = self.gaining.values().map(RoaringBitmap::len).sum::<u64>();
        self.changed.order.len() + self.everyone.len() + gaining as usize
    }

    fn forget_gains(&mut self, user: Id) {
        self.gaining.retain(|_, users| {
            users.remove(user.0);
            !users.is_empty()
        });
    }
}

/// Users in the order in which they came, each once, with the correction for which
/// they came.
#[derive(Debug, Default)]
struct Queue {
    order: VecDeque<(Id, u64)>,
    waiting: RoaringBitmap,
}

impl Queue {
    fn push(&mut self, user: Id, correction: u64) {
        if self.waiting.insert(user.0) {
            self.order.push_back((user, correction));
        }
    }

    fn pop(&mut self) -> Option<Id> {
        let (user, _) = self.order.pop_front()?;
        self.waiting.remove(user.0);
        Some(user)
    }

    /// The earliest correction for which somebody is in here.
    fn earliest(&self) -> Option<u64> {
        self.order.front().map(|(_, correction)| *correction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(backlog: &mut Backlog) -> Vec<(u32, Whom)> {
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
        let losses = [3, 1, 2, 3].map(|user| (user, Whom::Losses));
        let turns = [&losses[..], &[(2, Whom::All)]].concat();
        assert_eq!(drain(&mut backlog), turns);
        assert_eq!(backlog.len(), 0);
    }

    #[test]
    fn the_newest_rules_begin_anew() {
        let mut backlog = Backlog::default();
        backlog.restart(vec![Id(1), Id(2)]);
        backlog.next();
        backlog.changed(Id(7));
        backlog.gaining(Id(1));
        backlog.restart(vec![Id(1), Id(4)]);
        assert_eq!(drain(&mut backlog), [1, 4].map(|user| (user, Whom::Losses)));
    }

    #[test]
    fn gains_wait_until_the_other_shards_have_told_who_loses_by_the_same_correction() {
        let mut backlog = Backlog::default();
        backlog.told_elsewhere(0);
        backlog.changed(Id(1));
        backlog.handed_in();
        assert_eq!(backlog.losses_told(), 0);
        assert_eq!(backlog.next(), Some((Id(1), Whom::Losses)));
        backlog.gaining(Id(1));
        assert_eq!((backlog.losses_told(), backlog.waits()), (1, true));
        // What comes later doesn't hold up what waits.
        backlog.changed(Id(2));
        backlog.handed_in();
        assert!(!backlog.waits());
        assert_eq!(backlog.next(), Some((Id(2), Whom::Losses)));
        backlog.gaining(Id(2));
        assert_eq!((backlog.next(), backlog.is_due()), (None, false));
        backlog.told_elsewhere(1);
        assert!(backlog.is_due());
        assert_eq!(drain(&mut backlog), [(1, Whom::All)]);
        assert!(backlog.waits());
        backlog.told_elsewhere(2);
        assert_eq!(drain(&mut backlog), [(2, Whom::All)]);
        assert!(!backlog.waits());
    }

    #[test]
    fn gains_of_whom_a_newer_correction_concerns_are_decided_on_anew() {
        let mut backlog = Backlog::default();
        backlog.told_elsewhere(0);
        backlog.handed_in();
        backlog.gaining(Id(1));
        backlog.gaining(Id(2));
        backlog.changed(Id(1));
        backlog.handed_in();
        backlog.told_elsewhere(1);
        let turns = [(1, Whom::Losses), (2, Whom::All)];
        assert_eq!(drain(&mut backlog), turns);
        assert!(!backlog.has(Id(1)));
        backlog.gaining(Id(1));
        assert!(backlog.has(Id(1)));
        assert_eq!((drain(&mut backlog), backlog.len()), (Vec::new(), 1));
    }

    #[test]
    fn what_is_decided_again_without_a_correction_holds_no_other_shard_up() {
        let mut backlog = Backlog::default();
        backlog.handed_in();
        backlog.changed(Id(1));
        assert_eq!(backlog.losses_told(), 1);
        backlog.restart(vec![Id(1), Id(2)]);
        assert_eq!(backlog.losses_told(), 1);
        backlog.changed(Id(3));
        backlog.handed_in();
        assert_eq!(backlog.losses_told(), 1);
        backlog.changed(Id(4));
        assert_eq!(drain(&mut backlog).len(), 4);
        assert_eq!(backlog.losses_told(), 2);
    }

    #[test]
    fn what_an_earlier_correction_had_to_tell_is_told_when_everyone_is_decided_on() {
        let mut backlog = Backlog::default();
        backlog.changed(Id(1));
        backlog.handed_in();
        backlog.restart(vec![Id(1), Id(2)]);
        backlog.handed_in();
        backlog.next();
        assert_eq!(backlog.losses_told(), 0);
        backlog.next();
        assert_eq!(backlog.losses_told(), 2);
    }
}
