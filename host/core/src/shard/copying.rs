//! How all records of a shard are read, for another shard to begin with.

use std::collections::BTreeMap;
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::Shard;
use super::presence::Presence;
use crate::departed::Departure;
use crate::digest::PartedDigest;
use crate::event::Event;
use crate::ledger::LedgerEntry;
use crate::names::{Id, Name, Names};
use crate::read_point::ReadPoint;
use crate::record::Record;
use crate::statements::{HeldStatement, Statement};
use crate::step::Step;
use crate::tracker::Cursor;

/// A reading of all records of a shard.
#[derive(Debug)]
pub struct ShardCursor {
    /// What is left of the tracker. `None`: all of it has been read.
    tracker: Option<Cursor>,
    /// When the reading began. All but the tracker is read as it was then.
    point: ReadPoint,
    /// Events that were to be told later at that moment, of users whose ledger entry has been read.
    deferred: BTreeMap<Id, Arc<Event>>,
}

impl ShardCursor {
    /// The numbers of all ids that are held here.
    pub fn ids(&self) -> RoaringBitmap {
        self.deferred.keys().map(|user| user.0).collect()
    }
}

impl Shard {
    /// All records, for another shard to begin with, in an order that [`Self::restore`] takes.
    pub fn all_records(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        let mut cursor = self.cursor();
        while self.read(&mut cursor, usize::MAX, &mut records) {}
        records.into_iter().map(|(record, _)| record).collect()
    }

    /// A cursor over all records, for [`Self::read`].
    pub fn cursor(&mut self) -> ShardCursor {
        let point = ReadPoint::default();
        self.presence.begin_read(&point);
        ShardCursor {
            tracker: Some(self.common.tracker.cursor()),
            point,
            deferred: BTreeMap::new(),
        }
    }

    /// Reads the next `count` connections or users at most, in the order of [`Self::all_records`].
    /// The tracker's records are as of [`Tracker::read`](crate::tracker::Tracker::read), each live
    /// connection with the end of its lease. The rest is as it was when the cursor was made,
    /// whatever has changed since. Returns whether there is more.
    pub fn read(
        &mut self,
        cursor: &mut ShardCursor,
        count: usize,
        records: &mut Vec<(Record, Option<u64>)>,
    ) -> bool {
        let Some(of_tracker) = &mut cursor.tracker else {
            let mut take = |record| records.push((record, None));
            return self
                .presence
                .read(cursor, count, &self.common.names, &mut take);
        };
        let mut read = Vec::new();
        if !self.common.tracker.read(of_tracker, count, &mut read) {
            cursor.tracker = None;
        }
        let read = read.into_iter();
        records.extend(read.map(|(record, end)| (Record::Tracker(record), end)));
        true
    }

    /// The stream to which the connections' message numbers belong, by when the stream was made; 0:
    /// none.
    pub fn stream(&self) -> u64 {
        self.common.tracker.stream()
    }

    /// Sets the stream to which the numbers of restored connections belong. Call it before they are
    /// restored.
    pub fn set_stream(&mut self, stream: u64) {
        self.common.tracker.set_stream(stream);
    }

    /// The live connections, and how much is left of the lease of each, in milliseconds.
    pub fn leases(&self) -> impl Iterator<Item = (&Arc<str>, &str, u64)> {
        self.common.tracker.leases()
    }

    /// The digest of the live connections that have an id, and of users' statuses. It is kept up to
    /// date from the first call on.
    pub fn live_digest(&mut self) -> PartedDigest {
        let mut digest = self.common.tracker.live_digest();
        digest.add_all(self.presence.events.updates.statuses.digest());
        digest
    }

    /// The statements of applications that hold.
    pub fn statements(&self) -> impl Iterator<Item = (&Name, Statement)> {
        let statements = self.presence.statements.all();
        statements.map(|(user, _, statement)| (user, statement))
    }

    /// Sets how much is left of the lease of a live connection, in milliseconds.
    pub fn set_lease(&mut self, now: u64, user: &str, conn: &str, left_ms: u64) {
        self.common.tracker.advance_to(now);
        self.common.tracker.set_lease(user, conn, left_ms);
    }
}

impl Presence {
    fn begin_read(&mut self, point: &ReadPoint) {
        let (queue, updates) = (&mut self.events.queue, &mut self.events.updates);
        updates.decisions.ledger.begin_read(point);
        updates.statuses.begin_read(point);
        queue.begin_read(point);
        self.statements.begin_read(point);
        updates.decisions.departed.begin_read(point);
    }

    fn read(
        &mut self,
        cursor: &mut ShardCursor,
        count: usize,
        names: &Names,
        take: &mut impl FnMut(Record),
    ) -> bool {
        let (queue, updates) = (&mut self.events.queue, &mut self.events.updates);
        let decisions = &mut updates.decisions;
        let ShardCursor {
            point, deferred, ..
        } = cursor;
        let ledger = |entry: LedgerEntry| {
            if let Some(next) = &entry.untold_event {
                deferred.insert(next.user, Arc::clone(next));
            }
            take(Record::Ledger {
                user: entry.event.name.clone(),
                entry: Some(entry),
            });
        };
        if decisions.ledger.read(point, count, ledger) {
            return true;
        }
        let status = |(user, own_status)| {
            let own_status = Some(own_status);
            take_named(names, user, |user| {
                take(Record::Status { user, own_status })
            });
        };
        if updates.statuses.read(point, count, status) {
            return true;
        }
        // Events that are to be told later are told at once by the other shard.
        let mut waiting = |steps: Vec<Step>, deferred: Option<Arc<Event>>| {
            let steps: Vec<_> = steps
                .into_iter()
                .chain(deferred.map(Step::Reshow))
                .collect();
            if let Some(first) = steps.first() {
                let user = first.event().name.clone();
                take(Record::Waiting { user, steps });
            }
        };
        let steps = |steps: Vec<Step>| {
            let user = steps.first().map(|first| first.event().user);
            let deferred = user.and_then(|user| deferred.remove(&user));
            waiting(steps, deferred);
        };
        if queue.read(point, count, steps) {
            return true;
        }
        for _ in 0..count {
            let Some((_, next)) = deferred.pop_first() else {
                break;
            };
            waiting(Vec::new(), Some(next));
        }
        if !deferred.is_empty() {
            return true;
        }
        let stated = |held: HeldStatement| {
            take(Record::Stated {
                user: held.name,
                statement: Some((held.stated_at, held.statement)),
            });
        };
        if self.statements.read(point, count, stated) {
            return true;
        }
        let departed = |departure: Departure| {
            take_named(names, departure.user, |user| {
                let departure = Some(departure);
                take(Record::Departed { user, departure });
            });
        };
        decisions.departed.read(point, count, departed)
    }
}

/// Takes something of a user, if the user's number is still in use.
fn take_named(names: &Names, user: Id, take: impl FnOnce(Name)) {
    if let Some(name) = names.name(user) {
        take(name);
    }
}
