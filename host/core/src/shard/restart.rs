//! What a shard knows, over a restart.

use super::Shard;
use crate::record::Record;

impl Shard {
    /// Whether changes are noted from now on, for [`Self::take_records`].
    pub fn keep_records(&mut self, keep: bool) {
        self.tracker.keep_records(keep);
        self.ledger.keep_records(keep);
        self.departed.keep_records(keep);
        self.statuses.keep_records(keep);
        self.waiting.keep_records(keep);
        self.statements.keep_records(keep);
    }

    /// Whether there is anything to take, now or soon.
    pub fn has_records(&self) -> bool {
        self.tracker.has_records()
            || self.ledger.has_records()
            || self.departed.has_records()
            || self.statuses.has_records()
            || self.waiting.has_records()
            || self.statements.has_records()
    }

    /// Up to when the graces that run have been heard, by the host's clock; none if none
    /// does. The store is to know this: for how long they ran is not known otherwise.
    pub fn graces_at(&self) -> Option<u64> {
        self.tracker.graces_at()
    }

    /// All that has changed since this was last called, whatever came and went in
    /// between. When connections were last heard from is told of one of so many
    /// `parts` of them at a time. Of two records of the same thing, the later holds.
    pub fn take_records(&mut self, parts: usize) -> Vec<Record> {
        let of_tracker = self.tracker.take_records(parts);
        let mut records: Vec<_> = of_tracker.into_iter().map(Record::Tracker).collect();
        self.ledger.take_records(&mut records);
        self.departed.take_records(&mut records);
        self.statuses.take_records(&mut records);
        self.waiting.take_records(&mut records);
        self.statements.take_records(&mut records);
        records
    }

    /// Puts back what was known before a restart, once the directory is known and
    /// before the first input. The records come in the order of their keys, and
    /// were taken `down_ms` ago. Verdicts are none of them: everyone is decided
    /// again, and the differences are corrected.
    pub fn restore(&mut self, now: u64, down_ms: u64, records: impl IntoIterator<Item = Record>) {
        self.pass(now);
        let mut departures = Vec::new();
        for record in records {
            match record {
                Record::Tracker(record) => self.tracker.restore(self.now, down_ms, record),
                Record::Told { entry, .. } => {
                    if let Some(entry) = entry {
                        self.ledger.restore(entry);
                    }
                }
                Record::Departed { departure, .. } => departures.extend(departure),
                Record::Status { user, word } => {
                    if let Some(word) = word {
                        self.statuses
                            .restore(self.names.intern(user.as_str()), word);
                    }
                }
                Record::Stated { user, statement } => {
                    if let Some((said_at, statement)) = statement {
                        let id = self.names.intern(user.as_str());
                        let said_at = said_at.min(self.now);
                        self.statements.restore(said_at, id, &user, statement);
                    }
                }
                Record::Waiting { steps, .. } => {
                    let until = self.now + self.settings.answer_wait_ms;
                    self.waiting.restore(steps, until);
                }
            }
        }
        self.tracker.restored();
        self.departed.restore(departures, &self.names);
        if self.settings.status.is_some() {
            for user in self.ledger.users() {
                self.statuses.look_at(user, self.now);
            }
        } else {
            self.forget_statuses();
        }
        self.rules_changed();
    }

    /// Every lease begins anew.
    pub fn renew_leases(&mut self, now: u64) {
        self.pass(now);
        self.tracker.renew_leases(self.now);
    }
}
