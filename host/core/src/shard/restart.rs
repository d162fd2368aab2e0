//! What a shard knows, over a restart: taken piece by piece, and put back.

use std::sync::Arc;

use super::Shard;
use super::presence::Presence;
use crate::record::Record;
use crate::step::Step;

impl Shard {
    /// Whether changes are noted from now on, for [`Self::take_records`].
    pub fn keep_records(&mut self, keep: bool) {
        self.common.tracker.keep_records(keep);
        self.presence.keep_records(keep);
    }

    /// Whether changes of what viewers were told are noted from now on, for
    /// [`Self::take_told`], and nothing else. Then other nodes pass on what arrives here, too, and
    /// senders' clocks say in which order it was said.
    pub fn keep_told(&mut self, keep: bool) {
        self.common.tracker.keep_records(false);
        self.presence.keep_records(keep);
        self.presence.statements.order(keep);
        if keep {
            // Nothing is known yet as a rule: to keep the digest from now on costs nothing.
            self.common.tracker.live_digest();
        }
    }

    /// Whether there is anything to take, now or soon.
    pub fn has_records(&self) -> bool {
        self.common.tracker.has_records() || self.presence.has_records()
    }

    /// Up to when the graces that run have been heard, by the host's clock; none if none
    /// does. The store is to know this: for how long they ran is not known otherwise.
    pub fn graces_at(&self) -> Option<u64> {
        self.common.tracker.graces_at()
    }

    /// All that has changed since this was last called, whatever came and went in
    /// between. When connections were last heard from is told of one of so many
    /// `parts` of them at a time. Of two records of the same thing, the later holds.
    pub fn take_records(&mut self, parts: usize) -> Vec<Record> {
        let of_tracker = self.common.tracker.take_records(parts);
        let mut records: Vec<_> = of_tracker.into_iter().map(Record::Tracker).collect();
        self.presence.take_records(&mut records);
        records
    }

    /// Puts back what was known before a restart, once the directory is known and
    /// before the first input. The records come in the order of their keys, and
    /// were taken `down_ms` ago. Verdicts are none of them: everyone is decided
    /// again, and the differences are corrected.
    pub fn restore(&mut self, now: u64, down_ms: u64, records: impl IntoIterator<Item = Record>) {
        self.restore_part(now, down_ms, records);
        self.restored(now);
    }

    /// As [`Self::restore`], of some of the records. [`Self::restored`] comes after the last.
    pub fn restore_part(
        &mut self,
        now: u64,
        down_ms: u64,
        records: impl IntoIterator<Item = Record>,
    ) {
        self.common.clock.pass(now);
        let now = self.common.now();
        let until = now + self.common.settings.answer_wait_ms;
        let Self {
            common, presence, ..
        } = self;
        let mut departures = Vec::new();
        for record in records {
            if let Record::Tracker(record) = record {
                presence.is_restored(&record, common);
                common.tracker.restore(now, down_ms, record);
                continue;
            }
            let Presence {
                statements, events, ..
            } = &mut *presence;
            let (queue, updates) = (&mut events.queue, &mut events.updates);
            match record {
                Record::Tracker(_) => {}
                Record::Ledger { entry, .. } => {
                    if let Some(entry) = entry {
                        updates.decisions.ledger.restore(entry);
                    }
                }
                Record::Departed { departure, .. } => departures.extend(departure),
                Record::Status { user, word } => {
                    if let Some(word) = word {
                        let id = common.names.intern(user.as_str());
                        updates.statuses.restore(id, &user, word);
                    }
                }
                Record::Stated { user, statement } => {
                    if let Some((said_at, statement)) = statement {
                        let id = common.names.intern(user.as_str());
                        statements.restore(said_at.min(now), id, &user, statement);
                    }
                }
                Record::Waiting { steps, .. } => queue.restore(steps, until),
            }
        }
        let departed = &mut presence.events.updates.decisions.departed;
        departed.restore(departures, &common.names);
    }

    /// All records have been put back.
    pub fn restored(&mut self, now: u64) {
        self.common.clock.pass(now);
        let now = self.common.now();
        let Self {
            common, presence, ..
        } = self;
        common.tracker.restored();
        // The settings may be others than those by which it was kept.
        common.apply_broadcast();
        let events = &mut presence.events;
        let updates = &mut events.updates;
        if common.settings.status.is_some() {
            for user in updates.decisions.ledger.users() {
                updates.statuses.check_at(user, now);
            }
        } else {
            updates.forget_all(common);
        }
        events.rules_changed();
    }

    /// A shard of nobody that goes by the same settings, directory and clock as this one,
    /// and counts on: what is to take its place where it can't be relied on any more.
    pub fn replacement(&self) -> Self {
        let common = &self.common;
        let (settings, names) = (common.settings.clone(), Arc::clone(&common.names));
        let mut shard = Self::new(settings, names, Arc::clone(&common.directory));
        shard.common.clock = common.clock;
        let (now, ahead_ms) = (common.clock.now(), common.clock.ahead_ms());
        shard.common.tracker.set_ahead(now, ahead_ms);
        shard.common.counters = self.counters();
        shard
    }

    /// Counts on from what another one has counted, whose place it takes.
    pub fn count_on(&mut self, other: &Self) {
        self.common.counters = other.counters();
    }

    /// Every lease starts again.
    pub fn renew_leases(&mut self, now: u64) {
        self.common.clock.pass(now);
        self.common.tracker.renew_leases(self.common.clock.now());
    }
}

impl Presence {
    fn keep_records(&mut self, keep: bool) {
        let updates = &mut self.events.updates;
        updates.decisions.ledger.keep_records(keep);
        updates.decisions.departed.keep_records(keep);
        updates.statuses.keep_records(keep);
        self.events.queue.keep_records(keep);
        self.statements.keep_records(keep);
    }

    fn has_records(&self) -> bool {
        let updates = &self.events.updates;
        updates.decisions.ledger.has_records()
            || updates.decisions.departed.has_records()
            || updates.statuses.has_records()
            || self.events.queue.has_records()
            || self.statements.has_records()
    }

    pub(super) fn take_records(&mut self, records: &mut Vec<Record>) {
        let (queue, updates) = (&mut self.events.queue, &mut self.events.updates);
        let decisions = &mut updates.decisions;
        let ledger = &mut decisions.ledger;
        ledger.take_changed(|user, entry| records.push(Record::Ledger { user, entry }));
        let departed = &mut decisions.departed;
        departed.take_changed(|user, departure| records.push(Record::Departed { user, departure }));
        let words = updates.statuses.take_changed();
        records.extend(words.map(|(user, word)| Record::Status { user, word }));
        // What is told later is told at once after a restart.
        let mut waiting = queue.take_changed();
        waiting.extend(ledger.take_deferred());
        records.extend(waiting.into_iter().map(|(id, user)| {
            let entry = ledger.get(id);
            let deferred = entry.and_then(|entry| entry.next.clone()).map(Step::Show);
            let steps = queue.steps(id).cloned().chain(deferred).collect();
            Record::Waiting { user, steps }
        }));
        let statements = self.statements.take_changed();
        records.extend(statements.map(|(user, statement)| Record::Stated { user, statement }));
    }
}
