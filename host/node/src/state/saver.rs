//! A worker's side of the state: what has changed is handed over now and then,
//! and never waited for.

use std::sync::{Arc, Weak};

use presence_core::Shard;
use presence_core::record::Record;
use roaring::RoaringBitmap;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::writer::{Figures, Job};
use crate::clock;
use crate::link::publisher::Publisher;

/// How old what is stored of a connection's last heartbeat may be, in
/// milliseconds.
const HEARD_MS: u64 = 5_000;

/// How often the store is told that graces run on, in milliseconds.
const GRACES_MS: u64 = 500;

/// Hands a shard's changes over to the writer, once the broker has what the shard
/// published before: what the state says that viewers have been told, they have.
#[derive(Debug)]
pub(crate) struct Saver {
    /// Bounded: when it is full, changes stay where they are and gather.
    jobs: mpsc::Sender<Job>,
    figures: Arc<Figures>,
    flush_ms: u64,
    /// When changes are next taken, by the host's clock.
    at: u64,
    /// When they were last.
    last: u64,
    /// Up to when the store knows that graces have run.
    graces_at: u64,
    /// What was taken, and waits for the broker.
    taken: Option<Taken>,
    /// What the writer may not have read yet.
    handed_over: Vec<Weak<Vec<Record>>>,
}

#[derive(Debug)]
struct Taken {
    /// When, by the host's clock.
    at: u64,
    /// The place behind what had been published by then.
    end: u64,
    records: Arc<Vec<Record>>,
}

impl Saver {
    pub(super) fn new(jobs: mpsc::Sender<Job>, figures: Arc<Figures>, flush_ms: u64) -> Self {
        Self {
            jobs,
            figures,
            flush_ms,
            at: 0,
            last: clock::now_ms(),
            graces_at: 0,
            taken: None,
            handed_over: Vec::new(),
        }
    }

    /// When [`Self::save`] is to be called, if it is.
    pub(crate) fn due(&self, shard: &Shard) -> Option<u64> {
        let is_due = shard.has_records() || shard.graces_at().is_some();
        (self.taken.is_none() && is_due).then_some(self.at)
    }

    /// Takes what has changed, if it is time, and hands it over if the broker has all
    /// that was published before, and the writer has room. Says whether there is a
    /// writer.
    pub(crate) fn save(&mut self, shard: &mut Shard, publisher: &Publisher) -> bool {
        let now = clock::now_ms();
        if self.taken.is_none() {
            if now < self.at {
                return true;
            }
            self.at = now + self.flush_ms;
            // Until then they gather where they are, each connection and user once.
            if self.figures.rests(now) {
                return true;
            }
            let parts = HEARD_MS / (now - self.last).max(self.flush_ms);
            self.last = now;
            self.take(shard, publisher, usize::try_from(parts).unwrap_or(1));
        }
        let acknowledged = publisher.acknowledged();
        let Some(taken) = self.taken.take_if(|taken| taken.end <= acknowledged) else {
            return true;
        };
        match self.jobs.try_reserve() {
            Ok(permit) => permit.send(Job::Write(taken.at, taken.records)),
            Err(TrySendError::Full(())) => {
                self.taken = Some(taken);
                self.at = now + self.flush_ms;
            }
            Err(TrySendError::Closed(())) => return false,
        }
        true
    }

    /// Hands over all that the shard knows and the store doesn't, when there is room.
    /// The broker has all that was published.
    pub(crate) async fn save_all(&mut self, shard: &mut Shard, publisher: &Publisher) {
        let waiting = self.taken.take();
        self.graces_at = 0;
        self.take(shard, publisher, 1);
        for taken in waiting.into_iter().chain(self.taken.take()) {
            // A writer that is gone has said so.
            let _ = self.jobs.send(Job::Write(taken.at, taken.records)).await;
        }
    }

    fn take(&mut self, shard: &mut Shard, publisher: &Publisher, parts: usize) {
        let records = shard.take_records(parts);
        let graces_at = shard.graces_at();
        let is_due = graces_at.is_some_and(|at| at >= self.graces_at + GRACES_MS);
        if records.is_empty() && !is_due {
            return;
        }
        self.graces_at = graces_at.unwrap_or(0);
        let records = Arc::new(records);
        self.handed_over.retain(|batch| batch.strong_count() > 0);
        self.handed_over.push(Arc::downgrade(&records));
        self.taken = Some(Taken {
            at: graces_at.unwrap_or_else(clock::now_ms),
            end: publisher.end(),
            records,
        });
    }

    /// All the numbers of ids that are on the way to the writer.
    pub(crate) fn ids(&self) -> RoaringBitmap {
        let mut ids = RoaringBitmap::new();
        for batch in self.handed_over.iter().filter_map(Weak::upgrade) {
            for record in &*batch {
                ids |= record.ids();
            }
        }
        ids
    }
}
