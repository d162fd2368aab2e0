//! How an owner sends messages to its standbys.

use super::{Mutation, Replica, ReplicaOutput};
use crate::Output;
use crate::fleet::standby_message::{StandbyContent, StandbyMessage, pieces};

impl Replica {
    /// Tells the standbys what is about to be published, and then has it published.
    pub(super) fn tell(&mut self, outputs: Vec<Output>, out: &mut Vec<ReplicaOutput>) {
        let records = self.shard.take_standby_records();
        if !records.is_empty() {
            self.relay_news(out);
            let changes = self.told_viewers.note(&records, &self.names);
            self.send_next(StandbyContent::Changes(changes), out);
        }
        out.extend(outputs.into_iter().map(ReplicaOutput::Shard));
    }

    /// Sends a message with the next sequence number. A message that is too long is sent in pieces.
    pub(super) fn send_next(&mut self, content: StandbyContent, out: &mut Vec<ReplicaOutput>) {
        self.seq += 1;
        let Some(whole) = self.encode(self.seq, content) else {
            return;
        };
        if whole.len() <= self.settings.standby_message_bytes_max {
            return out.push(ReplicaOutput::ToStandbys(whole));
        }
        for (seq, piece) in
            (self.seq..).zip(pieces(&whole, self.settings.standby_message_bytes_max))
        {
            self.seq = seq;
            self.send(seq, piece, out);
        }
    }

    pub(super) fn send_digest(&mut self, out: &mut Vec<ReplicaOutput>) {
        self.relay_all(out);
        let content = StandbyContent::Digest {
            ledger: self.ledger_digest(),
            connections: Box::new(self.connections()),
        };
        self.send(self.seq, content, out);
    }

    pub(super) fn send(&self, seq: u64, content: StandbyContent, out: &mut Vec<ReplicaOutput>) {
        out.extend(self.encode(seq, content).map(ReplicaOutput::ToStandbys));
    }

    pub(super) fn encode(&self, seq: u64, content: StandbyContent) -> Option<Vec<u8>> {
        if self.skips(Mutation::NoTelling) && !matches!(content, StandbyContent::Begin(_)) {
            return None;
        }
        let message = StandbyMessage {
            shard: self.number,
            epoch: self.epoch,
            seq,
            node: (&*self.settings.node).into(),
            content,
        };
        Some(message.encode())
    }
}
