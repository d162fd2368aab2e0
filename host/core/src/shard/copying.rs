//! What a shard knows, for another shard that is to begin with the same.

use std::sync::Arc;

use super::Shard;
use super::env::Common;
use super::presence::Presence;
use crate::digest::PartedDigest;
use crate::metadata::Metadata;
use crate::names::Name;
use crate::record::Record;
use crate::statements::Statement;
use crate::step::Step;
use crate::tracker::{Cursor, TrackerRecord};

impl Shard {
    /// All that is known, for another shard to begin with, in an order in which
    /// [`Self::restore`] takes it.
    pub fn all_records(&mut self) -> Vec<Record> {
        let of_tracker = self.common.tracker.all_records();
        let mut records: Vec<_> = of_tracker.into_iter().map(Record::Tracker).collect();
        records.extend(self.presence_records());
        records
    }

    /// The same but for connections, and for what is known of users by them.
    pub fn presence_records(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        self.presence.all_records(&self.common, &mut records);
        records
    }

    /// What [`Self::read_tracker`] is to read.
    pub fn tracker_cursor(&self) -> Cursor {
        self.common.tracker.cursor()
    }

    /// Those of connections and users, of so many slots of the tracker at a time:
    /// [`Tracker::read`](crate::tracker::Tracker::read).
    pub fn read_tracker(
        &mut self,
        cursor: &mut Cursor,
        slots: usize,
        records: &mut Vec<(TrackerRecord<Metadata>, Option<u64>)>,
    ) -> bool {
        self.common.tracker.read(cursor, slots, records)
    }

    /// The stream that connections' numbers are of, as when it was made; 0 for none.
    pub fn stream(&self) -> u64 {
        self.common.tracker.stream()
    }

    /// The numbers of connections that are put back are of this stream. To be said before them.
    pub fn begin_with_stream(&mut self, stream: u64) {
        self.common.tracker.begin_with_stream(stream);
    }

    /// The live connections, and how much is left of the lease of each, in milliseconds.
    pub fn leases(&self) -> impl Iterator<Item = (&Arc<str>, &str, u64)> {
        self.common.tracker.leases()
    }

    /// The digest of the live connections that have an id. It is kept from the first time on.
    pub fn live_digest(&mut self) -> PartedDigest {
        self.common.tracker.live_digest()
    }

    /// What applications have stated of users, as far as it holds.
    pub fn statements(&self) -> impl Iterator<Item = (&Name, Statement)> {
        let statements = self.presence.statements.all();
        statements.map(|(user, _, statement)| (user, statement))
    }

    /// So much is left of the lease of a connection.
    pub fn set_lease(&mut self, now: u64, user: &str, conn: &str, left_ms: u64) {
        self.common.tracker.pass(now);
        self.common.tracker.set_lease(user, conn, left_ms);
    }
}

impl Presence {
    fn all_records(&mut self, common: &Common, records: &mut Vec<Record>) {
        let (queue, updates) = (&self.events.queue, &self.events.updates);
        let ledger = &updates.decisions.ledger;
        let name = |user| common.names.name(user);
        let mut deferred = Vec::new();
        for user in ledger.users() {
            if let Some(entry) = ledger.get(user) {
                let user = entry.event.name.clone();
                if let Some(next) = &entry.next {
                    deferred.push((user.clone(), Arc::clone(next)));
                }
                let entry = Some(entry.clone());
                records.push(Record::Ledger { user, entry });
            }
        }
        for user in updates.statuses.users() {
            if let Some((user, word)) = name(user).zip(updates.statuses.word(user)) {
                let word = Some(word.clone());
                records.push(Record::Status { user, word });
            }
        }
        for id in queue.users() {
            if let Some(user) = name(id) {
                let steps = queue.steps(id).cloned().collect();
                records.push(Record::Waiting { user, steps });
            }
        }
        for (user, next) in deferred {
            if !queue.holds(next.user) {
                let steps = vec![Step::Show(next)];
                records.push(Record::Waiting { user, steps });
            }
        }
        for (user, said_at, statement) in self.statements.all() {
            records.push(Record::Stated {
                user: user.clone(),
                statement: Some((said_at, statement)),
            });
        }
        let mut departures = updates.decisions.departed.stored();
        // They are put back in pieces, the oldest first.
        departures.sort_by_key(|departure| departure.timestamp);
        for departure in departures {
            if let Some(user) = name(departure.user) {
                let departure = Some(departure.clone());
                records.push(Record::Departed { user, departure });
            }
        }
    }
}
