//! Deciding again on users who are online, when what decided has changed.
//!
//! All who are to lose sight of somebody are told before anyone gains it: each
//! user is decided on, and the losses are told; when no user is left, the gains
//! are, by the verdict of then.

use std::sync::Arc;

use super::tell::Told;
use super::{Output, Shard};
use crate::directory::{Changes, Directory};
use crate::names::Id;
use crate::rules::Rules;

/// How many users are decided again before new inputs get their turn.
const CORRECTIONS_AT_ONCE: usize = 256;

impl Shard {
    /// The directory has changed: whoever's verdict read what changed is
    /// decided again, and so is everyone who waits for an answer.
    pub(super) fn directory_changed(&mut self, directory: Arc<Directory>, changes: &Changes) {
        self.directory = directory;
        self.departed.directory_changed(changes);
        for user in self.verdicts.affected(changes) {
            self.verdicts.forget(user);
            if self.ledger.get(user).is_some() {
                self.redecide.push_back(user);
            }
        }
        let pending = |user: &Id| {
            let entry = self.ledger.get(*user);
            entry.is_some_and(|entry| entry.pending_until().is_some())
        };
        let waiting = self.agenda.iter().map(|(_, user)| *user);
        self.redecide.extend(waiting.filter(pending));
    }

    /// The rules have changed: everyone is decided again.
    pub(super) fn rules_changed(&mut self) {
        self.verdicts.clear();
        self.departed.rules_changed();
        self.redecide = self.ledger.users().into();
        self.gaining.clear();
    }

    /// Has everyone decided again if the rules have become others of their own accord.
    pub(super) fn notice_replaced(&mut self, rules: &mut dyn Rules) {
        if rules.take_replaced() {
            self.rules_changed();
        }
    }

    /// Decides again on some of those who need it.
    pub(super) fn correct(&mut self, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        self.notice_replaced(rules);
        while let Some((at, user)) = self.agenda.first().copied()
            && at <= self.now
        {
            self.agenda.remove(&(at, user));
            self.verdicts.forget(user);
            self.redecide.push_back(user);
        }
        for _ in 0..CORRECTIONS_AT_ONCE {
            let (user, told) = match self.redecide.pop_front() {
                Some(user) => (user, Told::Losses),
                None => match self.gaining.pop_front() {
                    Some(user) => (user, Told::All),
                    None => break,
                },
            };
            if let Some(entry) = self.ledger.get(user) {
                let event = Arc::clone(&entry.event);
                self.decide(&event, told, rules, out);
            }
        }
    }
}
