//! The snapshots that a replica sends to nodes that ask: chunk by chunk, with inputs in between.

use std::sync::Arc;

use roaring::RoaringBitmap;

use super::{Replica, ReplicaOutput, Role};
use crate::fleet::snapshot::{SnapshotHeader, SnapshotWriter};

/// The pause after each chunk, in milliseconds, so that messages to viewers needn't wait for a
/// whole snapshot.
const PAUSE_MS: u64 = 2;

/// How many overdue chunks are sent at once.
const CHUNKS_AT_ONCE: u64 = 4;

/// The snapshots that are being sent.
#[derive(Debug, Default)]
pub(super) struct Snapshots(Vec<Snapshot>);

#[derive(Debug)]
struct Snapshot {
    node: Arc<str>,
    /// The number of the question.
    nonce: u64,
    /// None until the snapshot begins.
    writer: Option<SnapshotWriter>,
    /// When the next chunk is due.
    at: u64,
}

impl Snapshots {
    /// When the next chunk is due.
    pub(super) fn next_at(&self) -> Option<u64> {
        self.0.iter().map(|it| it.at).min()
    }

    /// All ids in the snapshots, as numbers.
    pub(super) fn ids(&self) -> RoaringBitmap {
        let writer = self.0.iter().filter_map(|it| it.writer.as_ref());
        let ids = writer.map(SnapshotWriter::ids);
        ids.fold(RoaringBitmap::new(), |all, ids| all | ids)
    }
}

impl Replica {
    /// Another node asks for a snapshot; `nonce` is the number of its question. [`Self::advance`]
    /// sends the snapshot. None is sent if this replica doesn't hold everything itself.
    pub fn snapshot_requested(
        &mut self,
        now: u64,
        node: &Arc<str>,
        nonce: u64,
        out: &mut Vec<ReplicaOutput>,
    ) {
        self.settle(now, out);
        if !self.may_give_snapshots() {
            return;
        }
        let snapshots = &mut self.snapshots.0;
        // If the node asks again, the snapshot in progress is of no use to it any more.
        snapshots.retain(|it| it.node != *node);
        snapshots.push(Snapshot {
            node: Arc::clone(node),
            nonce,
            writer: None,
            at: now,
        });
        self.begin_snapshots(now);
    }

    fn may_give_snapshots(&self) -> bool {
        match &self.role {
            Role::None => false,
            Role::Follow { .. } => self.is_complete && self.partial.is_empty(),
            // A replica that has stopped leading may still have to announce something that only it
            // knows.
            Role::Lead { epoch, .. } | Role::Resign { epoch } => {
                self.epoch == *epoch && (self.is_leading || !self.shard.is_taking_over())
            }
        }
    }

    /// Begins the snapshots that were asked for. A replica that has just begun to lead first
    /// announces what it missed: until then, only it knows that.
    fn begin_snapshots(&mut self, now: u64) {
        if self.snapshots.0.is_empty() || (self.is_leading && self.shard.is_taking_over()) {
            return;
        }
        let may_give = self.may_give_snapshots();
        let snapshots = &mut self.snapshots.0;
        snapshots.retain(|it| it.writer.is_some() || may_give);
        for snapshot in snapshots.iter_mut().filter(|it| it.writer.is_none()) {
            let header = SnapshotHeader {
                shard: self.number,
                nonce: snapshot.nonce,
                epoch: self.epoch,
                seq: self.seq,
                at: now,
            };
            snapshot.writer = Some(SnapshotWriter::begin(
                &mut self.shard,
                header,
                self.is_first,
            ));
            snapshot.at = now;
        }
    }

    /// Sends the chunks that are due.
    pub(super) fn send_snapshots(&mut self, now: u64, out: &mut Vec<ReplicaOutput>) {
        self.begin_snapshots(now);
        let (names, bytes) = (&self.names, self.settings.chunk_bytes);
        let shard = &mut self.shard;
        self.snapshots.0.retain_mut(|it| {
            let Some(writer) = &mut it.writer else {
                return true;
            };
            it.at = it
                .at
                .max(now.saturating_sub((CHUNKS_AT_ONCE - 1) * PAUSE_MS));
            while it.at <= now {
                let Some(chunk) = writer.next(shard, names, bytes) else {
                    return false;
                };
                out.push(ReplicaOutput::Chunk(Arc::clone(&it.node), chunk));
                it.at += PAUSE_MS;
            }
            true
        });
    }
}
