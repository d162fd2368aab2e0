//! A worker's side of the state: what has changed is handed over now and then,
//! and never waited for.

use std::sync::{Arc, Weak};

use presence_core::Shard;
use presence_core::record::Record;
use roaring::RoaringBitmap;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::writer::Job;
use crate::clock;

/// How old what is stored of a connection's last heartbeat may be, in
/// milliseconds.
const HEARD_MS: u64 = 5_000;

/// Hands a shard's changes over to the writer.
#[derive(Debug)]
pub(crate) struct Saver {
    /// Bounded: when it is full, changes stay where they are and gather.
    jobs: mpsc::Sender<Job>,
    flush_ms: u64,
    /// When changes are next handed over, in milliseconds since the Unix epoch.
    at: u64,
    /// What the writer may not have read yet.
    handed_over: Vec<Weak<Vec<Record>>>,
}

impl Saver {
    pub(super) fn new(jobs: mpsc::Sender<Job>, flush_ms: u64) -> Self {
        Self {
            jobs,
            flush_ms,
            at: 0,
            handed_over: Vec::new(),
        }
    }

    /// When [`Self::save`] is to be called, if it is.
    pub(crate) fn due(&self, shard: &Shard) -> Option<u64> {
        shard.has_records().then_some(self.at)
    }

    /// Hands over what has changed, if it is time and the writer has room. Says
    /// whether there is a writer.
    pub(crate) fn save(&mut self, shard: &mut Shard) -> bool {
        let now = clock::now_ms();
        if now < self.at {
            return true;
        }
        self.at = now + self.flush_ms;
        match self.jobs.try_reserve() {
            Ok(permit) => {
                let parts = HEARD_MS / self.flush_ms;
                let records = shard.take_records(usize::try_from(parts).unwrap_or(1));
                if !records.is_empty() {
                    let records = Arc::new(records);
                    self.handed_over.retain(|batch| batch.strong_count() > 0);
                    self.handed_over.push(Arc::downgrade(&records));
                    permit.send(Job::Write(now, records));
                }
                true
            }
            Err(TrySendError::Full(())) => true,
            Err(TrySendError::Closed(())) => false,
        }
    }

    /// Hands over all that the shard knows and the store doesn't, when there is
    /// room.
    pub(crate) async fn save_all(&mut self, shard: &mut Shard) {
        let records = Arc::new(shard.take_records(1));
        // A writer that is gone has said so.
        let _ = self.jobs.send(Job::Write(clock::now_ms(), records)).await;
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
