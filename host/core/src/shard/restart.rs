//! A shard's records, which survive a restart: how they are taken, and how they are restored.

use std::sync::Arc;

use super::Shard;
use super::presence::Presence;
use crate::record::Record;
use crate::step::Step;

impl Shard {
    /// Sets whether changes are noted from now on, for [`Self::take_records`].
    pub fn keep_records(&mut self, keep: bool) {
        self.common.tracker.keep_records(keep);
        self.presence.keep_records(keep);
    }

    /// Sets whether changes of what viewers were told are noted from now on, for
    /// [`Self::take_standby_records`], and no other changes. With that, other nodes pass on
    /// messages to this shard, too, and senders' clocks decide in which order statements were made.
    pub fn keep_standby_records(&mut self, keep: bool) {
        self.common.tracker.keep_records(false);
        self.presence.keep_records(keep);
        self.presence.statements.order_by_clocks(keep);
        if keep {
            // As a rule, nothing is known yet. So it costs nothing to keep the digest from now on.
            self.common.tracker.live_digest();
        }
    }

    /// Whether there are records to take, now or soon.
    pub fn has_records(&self) -> bool {
        self.common.tracker.has_records() || self.presence.has_records()
    }

    /// Up to when everything has been received, by the host's clock; `None` if no grace runs. The
    /// store has to keep it: how long a stored grace has run is measured up to this moment.
    pub fn graces_at(&self) -> Option<u64> {
        self.common.tracker.graces_at()
    }

    /// Takes the records of all that has changed since the last call, and the newest timestamps of
    /// one part of the connections, of `parts` that take turns. Of two records of the same thing,
    /// the later one holds.
    pub fn take_records(&mut self, parts: usize) -> Vec<Record> {
        let of_tracker = self.common.tracker.take_records(parts);
        let mut records: Vec<_> = of_tracker.into_iter().map(Record::Tracker).collect();
        self.presence.take_records(&mut records);
        records
    }

    /// Restores what was known before a restart. Call it once the directory is known, and before
    /// the first input. The records come in the order of their keys, and were taken `down_ms` ago.
    /// There are no verdicts among them: everyone is decided on again, and differences are
    /// corrected.
    pub fn restore(&mut self, now: u64, down_ms: u64, records: impl IntoIterator<Item = Record>) {
        self.restore_part(now, down_ms, records);
        self.finish_restore(now);
    }

    /// As [`Self::restore`], for some of the records. Call [`Self::finish_restore`] after the last
    /// of them.
    pub fn restore_part(
        &mut self,
        now: u64,
        down_ms: u64,
        records: impl IntoIterator<Item = Record>,
    ) {
        self.common.clock.advance_to(now);
        let now = self.common.now();
        let until = now + self.common.settings.answer_wait_ms;
        let Self {
            common, presence, ..
        } = self;
        for record in records {
            if let Record::Tracker(record) = record {
                presence.restore_placeholder(&record, common);
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
                Record::Departed { departure, .. } => {
                    if let Some(departure) = departure {
                        let departed = &mut updates.decisions.departed;
                        departed.restore(departure, &common.names);
                    }
                }
                Record::Status { user, own_status } => {
                    if let Some(own_status) = own_status {
                        let id = common.names.intern(user.as_str());
                        updates.statuses.restore(id, &user, own_status);
                    }
                }
                Record::Stated { user, statement } => {
                    if let Some((stated_at, statement)) = statement {
                        let id = common.names.intern(user.as_str());
                        statements.restore(stated_at.min(now), id, &user, statement);
                    }
                }
                Record::Waiting { steps, .. } => queue.restore(steps, until),
            }
        }
    }

    /// All records have been restored.
    pub fn finish_restore(&mut self, now: u64) {
        self.common.clock.advance_to(now);
        let now = self.common.now();
        let Self {
            common, presence, ..
        } = self;
        common.tracker.finish_restore();
        // The settings may differ from those of the time when the records were made.
        common.apply_broadcast(&presence.events.updates.decisions.ledger);
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

    /// A shard without users that has the settings, the directory, the clock and the counters of
    /// this one. It takes the place of this one, if its state can't be relied on any more.
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

    /// Continues the counters of another shard, whose place this one takes.
    pub fn continue_counters(&mut self, other: &Self) {
        self.common.counters = other.counters();
    }

    /// Renews all leases, after a start.
    pub fn renew_leases(&mut self, now: u64) {
        self.common.clock.advance_to(now);
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
        let own_statuses = updates.statuses.take_changed();
        records.extend(own_statuses.map(|(user, own_status)| Record::Status { user, own_status }));
        // Events that are to be told later are told at once after a restart.
        let mut waiting = queue.take_changed();
        waiting.extend(ledger.take_deferred());
        records.extend(waiting.into_iter().map(|(id, user)| {
            let entry = ledger.get(id);
            let deferred = entry
                .and_then(|entry| entry.untold_event.clone())
                .map(Step::Reshow);
            let steps = queue.steps(id).cloned().chain(deferred).collect();
            Record::Waiting { user, steps }
        }));
        let statements = self.statements.take_changed();
        records.extend(statements.map(|(user, statement)| Record::Stated { user, statement }));
    }
}
