//! Deciding again on users who are online, when what decided has changed.
//!
//! Within a shard, all losses of a correction are told before any gain of it: each user is
//! decided on, and the losses are told; when no user is left, the gains are, by the verdict
//! of then. Between shards there is no order: who may see one user doesn't depend on who
//! may see another. What goes out keeps to a pace; a decision after which nothing does
//! takes nothing of it, and neither does what is new.

use std::sync::Arc;

use super::{Output, Shard, is_full};
use crate::directory::{Changes, Directory};
use crate::rules::Rules;

/// How many users are decided again before new inputs get their turn.
const CORRECTIONS_AT_ONCE: usize = 64;

impl Shard {
    /// The directory has changed: each user whose verdict read what changed is
    /// decided again, and so is everyone who waits for an answer.
    pub(super) fn directory_changed(&mut self, directory: Arc<Directory>, changes: &Changes) {
        self.directory = directory;
        self.departed.directory_changed(changes);
        for user in self.verdicts.affected(changes) {
            self.verdicts.forget(user);
            if self.ledger.get(user).is_some() {
                self.backlog.changed(user);
            }
        }
        if self.directory.is_on_demand() {
            return self.answered(changes);
        }
        for user in self.agenda.pending() {
            self.backlog.changed(user);
        }
    }

    /// The rules have changed: everyone is decided again.
    pub(super) fn rules_changed(&mut self) {
        self.verdicts.rules_changed();
        self.departed.rules_changed();
        self.backlog.restart(self.ledger.users());
        self.waiting.rules_changed();
    }

    /// The wall clock has moved: each user whose verdict read it is decided again, and
    /// statuses that expire are looked at.
    pub(super) fn wall_clock_moved(&mut self, ahead_ms: i64) {
        self.clock.set_ahead(ahead_ms);
        self.tracker.set_ahead(self.now, ahead_ms);
        self.departed.clock_moved();
        for user in self.verdicts.time_readers() {
            self.verdicts.forget(user);
            if self.ledger.get(user).is_some() {
                self.backlog.changed(user);
            }
        }
        for user in self.statuses.expiring() {
            self.statuses.look_at(user, self.now);
        }
    }

    /// Has everyone decided again if the rules have become others of their own accord.
    pub(super) fn notice_replaced(&mut self, rules: &mut dyn Rules) {
        if rules.take_replaced() {
            self.rules_changed();
        }
    }

    /// Decides again on some of those who need it, as the pace allows.
    pub(super) fn correct(&mut self, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        self.notice_replaced(rules);
        while let Some(user) = self.agenda.due(self.now) {
            self.verdicts.forget(user);
            self.backlog.changed(user);
        }
        for _ in 0..CORRECTIONS_AT_ONCE {
            if is_full(out) || self.pace.next_at() > self.now {
                return;
            }
            let Some((user, whom)) = self.backlog.next() else {
                return;
            };
            let Some(entry) = self.ledger.get(user) else {
                continue;
            };
            let event = Arc::clone(entry.judged());
            let before = out.len();
            self.decide(&event, whom, rules, out);
            let is_message = |it: &&Output| !matches!(it, Output::Fetch(_));
            let messages = out.iter().skip(before).filter(is_message).count();
            self.counters.corrections += messages as u64;
            self.pace.published(self.now, messages);
        }
    }
}
