//! A shard's side of the state: what has changed is handed over now and then,
//! and never waited for.

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
    owner: Arc<Owner>,
    figures: Arc<WriterFigures>,
    flush_ms: u64,
    /// When changes are next taken, by the host's clock.
    at: u64,
    /// When they were last.
    last: u64,
    /// Up to when the store knows that graces have run.
    graces_at: u64,
    /// Up to where the store knows the input stream to be taken.
    position: Option<ShardPosition>,
    /// What was taken, and waits for the broker.
    taken: Option<PendingSave>,
    /// Whether it waits for room at the writer's instead.
    is_refused: bool,
    /// What is handed over at the end; none before.
    last_of_all: Option<VecDeque<PendingSave>>,
    /// What the writer may not have read yet.
    handed_over: Vec<Weak<Vec<Record>>>,
}

#[derive(Debug)]
struct PendingSave {
    /// When, by the host's clock.
    at: u64,
    /// The place behind what had been published by then.
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
            taken: None,
            is_refused: false,
            last_of_all: None,
            handed_over: Vec::new(),
        }
    }

    /// When [`Self::save`] is to be called, if it is. `position`: up to where the shard has taken
    /// the input stream.
    pub(crate) fn due(&self, shard: &Shard, position: Option<ShardPosition>) -> Option<u64> {
        let is_due = match &self.taken {
            None => shard.has_records() || shard.graces_at().is_some() || position != self.position,
            Some(_) => self.is_refused,
        };
        is_due.then_some(self.at)
    }

    /// Behind which place the broker is to have all for what was taken to be handed over;
    /// none if nothing waits for that.
    pub(crate) fn waits_for(&self) -> Option<u64> {
        let taken = self.taken.as_ref().filter(|_| !self.is_refused);
        taken.map(|taken| taken.end)
    }

    /// Whether something has been taken that hasn't been handed over.
    pub(crate) fn is_waiting(&self) -> bool {
        self.taken.is_some()
    }

    /// Takes what has changed, if it is time, and hands it over if the broker has all
    /// that was published before, and the writer has room. `end` is the place behind what
    /// the shard has published, and `acknowledged` up to which place the broker has all.
    /// `position`: up to where it has taken the input stream. Says whether there is a writer.
    pub(crate) fn save(
        &mut self,
        shard: &mut Shard,
        position: Option<ShardPosition>,
        (end, acknowledged): (u64, u64),
    ) -> bool {
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
            let parts = usize::try_from(parts).unwrap_or(1);
            self.take(shard, position, end, parts);
        }
        let Some(taken) = self.taken.take_if(|taken| taken.end <= acknowledged) else {
            return true;
        };
        match self.jobs.try_reserve() {
            Ok(permit) => {
                self.is_refused = false;
                permit.send(taken.job(&self.owner));
            }
            Err(TrySendError::Full(())) => {
                self.taken = Some(taken);
                self.is_refused = true;
                self.at = now + self.flush_ms;
            }
            Err(TrySendError::Closed(())) => return false,
        }
        true
    }

    /// Hands over all that the shard knows and the store doesn't, as far as there is room.
    /// The broker has all that was published, and the shard does nothing more. Says whether
    /// all has been handed over.
    pub(crate) fn save_all(
        &mut self,
        shard: &mut Shard,
        position: Option<ShardPosition>,
        end: u64,
    ) -> bool {
        if self.last_of_all.is_none() {
            let waiting = self.taken.take();
            self.graces_at = 0;
            self.take(shard, position, end, 1);
            self.last_of_all = Some(waiting.into_iter().chain(self.taken.take()).collect());
        }
        let last_of_all = self.last_of_all.get_or_insert_default();
        while !last_of_all.is_empty() {
            match self.jobs.try_reserve() {
                Ok(permit) => {
                    if let Some(taken) = last_of_all.pop_front() {
                        permit.send(taken.job(&self.owner));
                    }
                }
                Err(TrySendError::Full(())) => return false,
                // A writer that is gone has said so.
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
        self.taken = Some(PendingSave {
            at: graces_at.unwrap_or_else(clock::now_ms),
            end,
            records,
            position,
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

#[cfg(test)]
impl Saver {
    /// Makes savers without a writer, and counts what they would have it write.
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
