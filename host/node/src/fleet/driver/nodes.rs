//! Messages between the nodes of a fleet.

use std::sync::atomic::Ordering;

use futures_util::future::FutureExt as _;
use presence_config::causes::Causes;
use serde::{Deserialize, Serialize};

use super::super::NodeSubject;
use super::{Completion, Driver};
use crate::clock;
use crate::link::connection::Incoming;
use crate::pool::FleetTask;

/// The shortest time between two log lines about unusable messages of other nodes, in milliseconds.
const LOG_EVERY_MS: u64 = 10_000;

/// A standby asks for a snapshot.
#[derive(Deserialize, Serialize)]
struct SnapshotRequest {
    node: Box<str>,
    nonce: u64,
}

/// A standby has everything that the owner told it up to this number.
#[derive(Deserialize, Serialize)]
struct Synced {
    node: Box<str>,
    epoch: u64,
    seq: u64,
}

impl Driver {
    /// Handles a message of another node.
    pub(super) fn on_node_message(&mut self, message: &Incoming) {
        let subject = message.subject();
        let read = NodeSubject::read(&self.subjects, &self.fleet.node, subject);
        let Some((what, shard)) = read.filter(|(_, shard)| *shard < self.fleet.shards) else {
            return self.refuse(&format!("`{}` is of no shard", subject.escape_debug()));
        };
        let payload = message.payload();
        match what {
            NodeSubject::Chunk => self.send_fleet_task(shard, FleetTask::Chunk(payload.clone())),
            NodeSubject::Snapshot => match serde_json::from_slice(payload) {
                Ok(SnapshotRequest { node, nonce }) => {
                    let task = FleetTask::SnapshotRequest(node.into(), nonce);
                    self.parts.defer(shard, task);
                }
                Err(error) => self.refuse(&format!("a request for a snapshot: {error}")),
            },
            NodeSubject::Synced => match serde_json::from_slice(payload) {
                Ok(Synced { node, epoch, seq }) => {
                    let now = clock::now_ms();
                    self.member.synced(now, shard, (epoch, seq), &node);
                }
                Err(error) => self.refuse(&format!("how far a standby is: {error}")),
            },
        }
    }

    pub(super) fn refuse(&self, what: &str) {
        self.fleet.figures.refused.fetch_add(1, Ordering::Relaxed);
        if let Some(times) = self.refusals.line(LOG_EVERY_MS) {
            tracing::warn!(
                times,
                "a message of another node of the fleet can't be used: {what}"
            );
        }
    }

    /// Asks a node for a snapshot of a shard.
    pub(super) fn ask_for_snapshot(&self, node: &str, shard: u32, nonce: u64) {
        let me = (&*self.fleet.node).into();
        let asked = SnapshotRequest { node: me, nonce };
        self.send_json(node, NodeSubject::Snapshot, shard, &asked);
    }

    /// Tells a shard's owner that this node has everything that the owner told it up to `seq`.
    pub(super) fn send_synced(&self, node: &str, shard: u32, (epoch, seq): (u64, u64)) {
        let synced = Synced {
            node: (&*self.fleet.node).into(),
            epoch,
            seq,
        };
        self.send_json(node, NodeSubject::Synced, shard, &synced);
    }

    /// Sends a piece of a snapshot.
    pub(super) fn send_chunk(&self, node: &str, shard: u32, bytes: Vec<u8>) {
        self.send(node, NodeSubject::Chunk, shard, bytes);
    }

    fn send_json(&self, node: &str, what: NodeSubject, shard: u32, body: &impl Serialize) {
        // Plain data always has a JSON form.
        let body = serde_json::to_vec(body).unwrap_or_default();
        self.send(node, what, shard, body);
    }

    fn send(&self, node: &str, what: NodeSubject, shard: u32, body: Vec<u8>) {
        let (connection, subject) = (
            self.connection.clone(),
            what.of(&self.subjects, node, shard),
        );
        let sent = async move {
            if let Err(error) = connection.publish(subject, body).await {
                tracing::debug!("another node isn't told: {}", Causes(&error));
            }
            Completion::Sent
        };
        self.under_way.push(sent.boxed());
    }
}
