//! Snapshots that a replica sends to those who ask: chunk by chunk, with inputs in between.

use std::sync::Arc;

use roaring::RoaringBitmap;

use super::{Out, Replica, Role};
use crate::fleet::snapshot::{Label, Sending};

/// How long is waited after each chunk, in milliseconds: what viewers are told is not to wait
/// behind all of a snapshot.
const PAUSE_MS: u64 = 2;

/// How many chunks are made up for at once, where there was no time for them.
const CHUNKS_AT_ONCE: u64 = 4;

/// The snapshots that are sent.
#[derive(Debug, Default)]
pub(super) struct Snapshots(Vec<Snapshot>);

#[derive(Debug)]
struct Snapshot {
    node: Arc<str>,
    /// The number of the question.
    nonce: u64,
    /// None until it begins.
    sending: Option<Sending>,
    /// When the next chunk is.
    at: u64,
}

impl Snapshots {
    /// When the next chunk is.
    pub(super) fn next_at(&self) -> Option<u64> {
        self.0.iter().map(|it| it.at).min()
    }

    /// All the numbers of ids that are still to be sent.
    pub(super) fn ids(&self) -> RoaringBitmap {
        let sending = self.0.iter().filter_map(|it| it.sending.as_ref());
        let ids = sending.map(Sending::ids);
        ids.fold(RoaringBitmap::new(), |all, ids| all | ids)
    }
}

impl Replica {
    /// Another node asks for a snapshot, by a question of this number. It gets none from one
    /// that doesn't hold everything itself. It is sent by [`Self::advance`].
    pub fn asked(&mut self, now: u64, node: &Arc<str>, nonce: u64, out: &mut Vec<Out>) {
        self.settle(now, out);
        if !self.may_give_snapshots() {
            return;
        }
        let snapshots = &mut self.snapshots.0;
        // It asks again: what was under way is of no use any more.
        snapshots.retain(|it| it.node != *node);
        snapshots.push(Snapshot {
            node: Arc::clone(node),
            nonce,
            sending: None,
            at: now,
        });
        self.begin_snapshots(now);
    }

    fn may_give_snapshots(&self) -> bool {
        match &self.role {
            Role::None => false,
            Role::Follow { .. } => self.is_sure && self.pieces.is_empty(),
            // One that leads no longer has perhaps still to announce what it alone knows.
            Role::Lead { epoch, .. } | Role::Resign { epoch } => {
                self.epoch == *epoch && (self.is_leading || !self.shard.is_beginning())
            }
        }
    }

    /// Begins with those that were asked for. One that begins to lead has to look after everyone
    /// first: what it hasn't announced yet is known only to it.
    fn begin_snapshots(&mut self, now: u64) {
        if self.snapshots.0.is_empty() || (self.is_leading && self.shard.is_beginning()) {
            return;
        }
        let may_give = self.may_give_snapshots();
        let snapshots = &mut self.snapshots.0;
        snapshots.retain(|it| it.sending.is_some() || may_give);
        for snapshot in snapshots.iter_mut().filter(|it| it.sending.is_none()) {
            let label = Label {
                shard: self.number,
                nonce: snapshot.nonce,
                epoch: self.epoch,
                seq: self.seq,
                at: now,
            };
            snapshot.sending = Some(Sending::begin(&mut self.shard, label, self.is_first));
            snapshot.at = now;
        }
    }

    /// Sends the chunks that are due.
    pub(super) fn send_snapshots(&mut self, now: u64, out: &mut Vec<Out>) {
        self.begin_snapshots(now);
        let (names, bytes) = (&self.names, self.settings.chunk_bytes);
        let shard = &mut self.shard;
        self.snapshots.0.retain_mut(|it| {
            let Some(sending) = &mut it.sending else {
                return true;
            };
            it.at = it
                .at
                .max(now.saturating_sub((CHUNKS_AT_ONCE - 1) * PAUSE_MS));
            while it.at <= now {
                let Some(chunk) = sending.next(shard, names, bytes) else {
                    return false;
                };
                out.push(Out::Chunk(Arc::clone(&it.node), chunk));
                it.at += PAUSE_MS;
            }
            true
        });
    }
}
