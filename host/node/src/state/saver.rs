//! A shard's side of the state: hands over changed records from time to time, without waiting.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use presence_core::Shard;
use presence_core::record::Record;
use roaring::RoaringBitmap;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::position::ShardPosition;
use super::writer::{Job, Owner, WriterFigures};
use crate::clock;

/// How old a stored time of a connection's last heartbeat may become, in milliseconds.
const HEARD_MS: u64 = 5_000;

/// How often the store is told up to when running grace periods have been observed, in
/// milliseconds.
const GRACES_MS: u64 = 500;

/// Hands a shard's changes over to the writer, once the broker has what the shard published before.
/// So the state never says that viewers were told of something that they were not told.
#[derive(Debug)]
pub(crate) struct Saver {
    /// The writer's queue. While it is full, changes stay in the shard.
    jobs: mpsc::Sender<Job>,
    owner: Arc<Owner>,
    figures: Arc<WriterFigures>,
    flush_ms: u64,
    /// When changes are taken next, by the host's clock.
    at: u64,
    /// When changes were taken last.
    last: u64,
    /// Up to when the store knows that running grace periods have been observed; 0 if none runs.
    graces_at: u64,
    /// How far the shard has read the input stream, as last taken for the store.
    position: Option<ShardPosition>,
    /// Changes that were taken, and wait for the broker or for room in the queue.
    pending: Option<PendingSave>,
    /// Whether they wait for room in the writer's queue, and not for the broker.
    is_refused: bool,
    /// What is still to be handed over at the end. `None` before the end.
    final_batches: Option<VecDeque<PendingSave>>,
    /// Batches that the writer may not have encoded yet.
    handed_over: Vec<Weak<Vec<Record>>>,
}

#[derive(Debug)]
struct PendingSave {
    /// When the changes were taken, by the host's clock.
    at: u64,
    /// The end of what the shard had published by then.
    end: u64,
    records: Arc<Vec<Record>>,
    position: Option<ShardPosition>,
}

impl PendingSave {
    fn job(self, owner: &Arc<Owner>) -> Job {
        Job::Write(self.at, Arc::clone(owner), self.records, self.position)
    }
}

impl Saver {
    pub(super) fn new(
        jobs: mpsc::Sender<Job>,
        owner: Arc<Owner>,
        figures: Arc<WriterFigures>,
        flush_ms: u64,
    ) -> Self {
        Self {
            jobs,
            owner,
            figures,
            flush_ms,
            at: 0,
            last: clock::now_ms(),
            graces_at: 0,
            position: None,
            pending: None,
            is_refused: false,
            final_batches: None,
            handed_over: Vec::new(),
        }
    }

    /// When [`Self::save`] should be called next. `None`: there is nothing to do. `position`: how
    /// far the shard has read the input stream.
    pub(crate) fn due(&self, shard: &Shard, position: Option<ShardPosition>) -> Option<u64> {
        let is_due = match &self.pending {
            None => shard.has_records() || shard.graces_at().is_some() || position != self.position,
            Some(_) => self.is_refused,
        };
        is_due.then_some(self.at)
    }

    /// Up to which place the broker must have acknowledged the output, so that the taken changes
    /// can be handed over. `None` if nothing waits for the broker.
    pub(crate) fn waits_for(&self) -> Option<u64> {
        let pending = self.pending.as_ref().filter(|_| !self.is_refused);
        pending.map(|pending| pending.end)
    }

    /// Whether changes were taken and haven't been handed over.
    pub(crate) fn is_waiting(&self) -> bool {
        self.pending.is_some()
    }

    /// Takes the changes, if it is time, and hands them over, if the broker has acknowledged all
    /// earlier output and the writer has room. `end`: the end of what the shard has published;
    /// `acknowledged`: up to where the broker has acknowledged it; `position`: how far the shard
    /// has read the input stream. Returns whether the writer still exists.
    pub(crate) fn save(
        &mut self,
        shard: &mut Shard,
        position: Option<ShardPosition>,
        (end, acknowledged): (u64, u64),
    ) -> bool {
        let now = clock::now_ms();
        if self.pending.is_none() {
            if now < self.at {
                return true;
            }
            self.at = now + self.flush_ms;
            // While the writer rests, changes gather in the shard, each connection and user once.
            if self.figures.rests(now) {
                return true;
            }
            let parts = HEARD_MS / (now - self.last).max(self.flush_ms);
            self.last = now;
            let parts = usize::try_from(parts).unwrap_or(1);
            self.take(shard, position, end, parts);
        }
        let Some(pending) = self.pending.take_if(|pending| pending.end <= acknowledged) else {
            return true;
        };
        match self.jobs.try_reserve() {
            Ok(permit) => {
                self.is_refused = false;
                permit.send(pending.job(&self.owner));
            }
            Err(TrySendError::Full(())) => {
                self.pending = Some(pending);
                self.is_refused = true;
                self.at = now + self.flush_ms;
            }
            Err(TrySendError::Closed(())) => return false,
        }
        true
    }

    /// Hands over everything that the store doesn't know yet, as far as there is room. It is called
    /// at the end, when the shard does nothing more and the broker has all of its output. Returns
    /// whether everything has been handed over.
    pub(crate) fn save_all(
        &mut self,
        shard: &mut Shard,
        position: Option<ShardPosition>,
        end: u64,
    ) -> bool {
        if self.final_batches.is_none() {
            let waiting = self.pending.take();
            self.graces_at = 0;
            self.take(shard, position, end, 1);
            self.final_batches = Some(waiting.into_iter().chain(self.pending.take()).collect());
        }
        let final_batches = self.final_batches.get_or_insert_default();
        while !final_batches.is_empty() {
            match self.jobs.try_reserve() {
                Ok(permit) => {
                    if let Some(pending) = final_batches.pop_front() {
                        permit.send(pending.job(&self.owner));
                    }
                }
                Err(TrySendError::Full(())) => return false,
                // The writer has failed, and has logged that.
                Err(TrySendError::Closed(())) => return true,
            }
        }
        true
    }

    fn take(&mut self, shard: &mut Shard, position: Option<ShardPosition>, end: u64, parts: usize) {
        let records = shard.take_records(parts);
        let graces_at = shard.graces_at();
        let is_due = graces_at.is_some_and(|at| at >= self.graces_at + GRACES_MS);
        if records.is_empty() && !is_due && position == self.position {
            return;
        }
        self.position = position;
        self.graces_at = graces_at.unwrap_or(0);
        let records = Arc::new(records);
        self.handed_over.retain(|batch| batch.strong_count() > 0);
        self.handed_over.push(Arc::downgrade(&records));
        self.pending = Some(PendingSave {
            at: graces_at.unwrap_or_else(clock::now_ms),
            end,
            records,
            position,
        });
    }

    /// The numbers of all ids in batches that are on their way to the writer.
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

#[cfg(test)]
impl Saver {
    /// Makes savers without a writer. The returned function counts the jobs that the writer would
    /// get.
    pub(crate) fn channel() -> (Jobs, impl FnMut() -> usize) {
        let (jobs, mut inbox) = mpsc::channel(16);
        (Jobs(jobs), move || {
            std::iter::from_fn(|| inbox.try_recv().ok()).count()
        })
    }
}

#[cfg(test)]
pub(crate) struct Jobs(mpsc::Sender<Job>);

#[cfg(test)]
impl Jobs {
    pub(crate) fn saver(&self) -> Saver {
        let owner = Owner {
            name: "presence".into(),
            names: Arc::default(),
        };
        Saver::new(self.0.clone(), owner.into(), Arc::default(), 1)
    }
}
