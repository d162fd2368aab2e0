//! Decisions that don't hold any longer, because something that they were made from has changed.
//! Their users are marked, to be decided on again.

use super::decisions::Decisions;
use crate::directory::{Changes, Directory};
use crate::names::Id;

impl Decisions {
    /// The directory has changed: each user whose verdict read what changed is decided on again,
    /// and so is everyone who waits for an answer.
    pub(super) fn directory_changed(&mut self, directory: &Directory, changes: &Changes) {
        self.departed.directory_changed(changes);
        for user in self.verdicts.affected(changes) {
            self.verdicts.forget(user);
            if self.ledger.get(user).is_some() {
                self.dirty.mark(user);
            }
        }
        if !directory.is_on_demand() {
            for user in self.retries.pending() {
                self.dirty.mark(user);
            }
            return;
        }
        for user in self.retries.fetches.answered(changes, directory) {
            match self.ledger.get(user) {
                // If no viewer has been told of the user yet, that is news, and no correction.
                Some(entry) if entry.recipients.is_empty() => drop(self.undecided.insert(user)),
                _ => self.dirty.mark(user),
            }
        }
    }

    /// The rules have changed: everyone is decided on again.
    pub(super) fn rules_changed(&mut self) {
        self.verdicts.rules_changed();
        self.departed.rules_changed();
        self.dirty.mark_all(self.ledger.users());
    }

    /// Some users are decided on by other rules: no verdict on them holds any longer, and those of
    /// them who are online are decided on again.
    pub(super) fn reassigned(&mut self, moves: impl Fn(Id) -> bool) {
        self.verdicts.forget_where(&moves);
        self.departed.reassigned(&moves);
        let mut online = self.ledger.users();
        online.retain(|user| moves(*user));
        self.dirty.mark_some(online);
    }

    /// The wall clock has moved: each user whose verdict read it is decided on again.
    pub(super) fn clock_moved(&mut self) {
        self.departed.clock_moved();
        for user in self.verdicts.time_readers() {
            self.verdicts.forget(user);
            if self.ledger.get(user).is_some() {
                self.dirty.mark(user);
            }
        }
    }
}
