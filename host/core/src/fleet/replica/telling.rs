//! How an owner sends messages to its standbys.

use super::{Mutation, Out, Replica};
use crate::Output;
use crate::fleet::told::{Said, Told, pieces};

impl Replica {
    /// Tells the standbys what is about to be published, and then has it published.
    pub(super) fn tell(&mut self, outputs: Vec<Output>, out: &mut Vec<Out>) {
        let records = self.shard.take_told();
        if !records.is_empty() {
            self.tell_news(out);
            let changes = self.books.note(&records, &self.names);
            self.say_next(Said::Changes(changes), out);
        }
        out.extend(outputs.into_iter().map(Out::Shard));
    }

    /// Sends a message with the next sequence number. A message that is too long is sent in pieces.
    pub(super) fn say_next(&mut self, said: Said, out: &mut Vec<Out>) {
        self.seq += 1;
        let Some(whole) = self.encode(self.seq, said) else {
            return;
        };
        if whole.len() <= self.settings.told_bytes {
            return out.push(Out::Told(whole));
        }
        for (seq, piece) in (self.seq..).zip(pieces(&whole, self.settings.told_bytes)) {
            self.seq = seq;
            self.say(seq, piece, out);
        }
    }

    pub(super) fn say_digest(&mut self, out: &mut Vec<Out>) {
        self.tell_all_heard(out);
        let said = Said::Digest {
            ledger: self.ledger_digest(),
            connections: Box::new(self.connections()),
        };
        self.say(self.seq, said, out);
    }

    pub(super) fn say(&self, seq: u64, said: Said, out: &mut Vec<Out>) {
        out.extend(self.encode(seq, said).map(Out::Told));
    }

    pub(super) fn encode(&self, seq: u64, said: Said) -> Option<Vec<u8>> {
        if self.skips(Mutation::NoTelling) && !matches!(said, Said::Begin(_)) {
            return None;
        }
        let told = Told {
            shard: self.number,
            epoch: self.epoch,
            seq,
            node: (&*self.settings.node).into(),
            said,
        };
        Some(told.encode())
    }
}
