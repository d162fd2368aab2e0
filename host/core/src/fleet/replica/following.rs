//! A replica that doesn't lead: it handles the same input, and applies the owner's messages.

use super::{Difference, Mutation, Out, Replica, Role};
use crate::Input;
use crate::digest::{PARTS, digest};
use crate::fleet::told::{Mismatch, Pieces, Said, Told};
use crate::message::Payload;
use crate::statements::Statement;

/// How many times in a row connections must differ before the replica catches up. Messages in
/// transit cause differences that are gone at the next comparison.
const DIFFER_TIMES: u8 = 3;

/// The maximum size of the held messages of an epoch that the bucket hasn't named yet, in bytes.
/// Those beyond are dropped, and the replica catches up later.
const EARLY_BYTES_MAX: usize = 1 << 24;

/// Held messages of an epoch that the bucket hasn't named yet. An owner's messages may arrive
/// sooner than the change of the bucket. If the bucket never names the epoch, no owner sent them.
#[derive(Debug, Default)]
pub(super) struct Early {
    told: Vec<(Told, usize)>,
    bytes: usize,
}

impl Early {
    fn hold(&mut self, told: Told, bytes: usize) {
        if self.bytes + bytes <= EARLY_BYTES_MAX {
            self.bytes += bytes;
            self.told.push((told, bytes));
        }
    }

    /// Takes the messages of epochs up to `known`. `None`: the replica listens to no owner, and all
    /// messages are dropped.
    pub(super) fn take(&mut self, known: Option<u64>) -> Vec<Told> {
        let held = std::mem::take(self);
        let Some(known) = known else {
            return Vec::new();
        };
        let mut taken = Vec::new();
        for (told, bytes) in held.told {
            match told.epoch <= known {
                true => taken.push(told),
                false => self.hold(told, bytes),
            }
        }
        taken
    }
}

impl Replica {
    /// Handles a message of the owner.
    ///
    /// # Errors
    /// If it can't be decoded, or is about another shard.
    pub fn told(&mut self, now: u64, bytes: &[u8], out: &mut Vec<Out>) -> Result<(), Mismatch> {
        let told = Told::decode(bytes)?;
        if told.shard != self.number {
            return Err(Mismatch::Unreadable);
        }
        self.settle(now, out);
        match self.known_epoch() {
            Some(known) if told.epoch > known => self.early.hold(told, bytes.len()),
            // This node has told everything of its own epoch itself.
            Some(_) if matches!(self.role, Role::Resign { .. }) => {}
            Some(_) => self.hear_told(now, told, out),
            None => {}
        }
        Ok(())
    }

    /// The epoch of the owner that this replica listens to, as the bucket names it. `None` if it
    /// listens to none.
    pub(super) fn known_epoch(&self) -> Option<u64> {
        match &self.role {
            Role::Follow { epoch, .. } => Some(*epoch),
            // The previous owner may still have something to tell.
            Role::Lead { epoch, before } => (self.epoch != *epoch).then_some(before.epoch),
            // The next owner may begin before this node sees in the bucket who owns the shard.
            Role::Resign { epoch } => Some(*epoch),
            Role::None => None,
        }
    }

    pub(super) fn hear_told(&mut self, now: u64, told: Told, out: &mut Vec<Out>) {
        if told.epoch < self.epoch {
            return;
        }
        self.digest_at = self.digest_at.max(now + self.settings.fleet.answer_ms);
        if let Some(catching_up) = &mut self.catching_up {
            catching_up.hold(told);
        } else if let Err(difference) = self.take(now, told, out) {
            self.catch_up(now, difference, out);
        }
        self.settle(now, out);
    }

    /// Applies a message of the owner, if it is the expected next one.
    pub(super) fn take(
        &mut self,
        now: u64,
        told: Told,
        out: &mut Vec<Out>,
    ) -> Result<(), Difference> {
        if told.epoch > self.epoch {
            return match told.said {
                Said::Begin(digest)
                    if self.is_sure && told.seq == 1 && digest == self.books.digest() =>
                {
                    (self.epoch, self.seq) = (told.epoch, told.seq);
                    self.pieces = Pieces::default();
                    self.differed = [0; PARTS];
                    self.report(&told.node, out);
                    Ok(())
                }
                Said::Begin(_) => Err(Difference::Ledger),
                _ => Err(Difference::Gap),
            };
        }
        match told.said {
            Said::Begin(_) => Ok(()),
            Said::Digest { .. } if told.seq < self.seq => Ok(()),
            Said::Digest {
                ledger,
                connections,
            } if told.seq == self.seq || self.skips(Mutation::NoCatchUp) => {
                if self.skips(Mutation::NoCatchUp) {
                    self.seq = told.seq;
                    self.report(&told.node, out);
                    return Ok(());
                }
                if ledger != self.ledger_digest() {
                    return Err(Difference::Ledger);
                }
                self.compare(&connections)?;
                self.report(&told.node, out);
                Ok(())
            }
            Said::Digest { .. } => Err(Difference::Gap),
            _ if told.seq <= self.seq => Ok(()),
            _ if told.seq > self.seq + 1 => Err(Difference::Gap),
            said => {
                let taken = self.take_next(now, said);
                taken.map_err(|_| Difference::Mismatch)?;
                self.seq = told.seq;
                Ok(())
            }
        }
    }

    /// Applies the message with the next sequence number.
    fn take_next(&mut self, now: u64, said: Said) -> Result<(), Mismatch> {
        match said {
            Said::Piece { is_last, bytes } => match self.pieces.take(is_last, &bytes)? {
                Some(said) => self.take_whole(now, said),
                None => Ok(()),
            },
            // The rest of the previous message is missing.
            _ if !self.pieces.is_empty() => Err(Mismatch::Unreadable),
            said => self.take_whole(now, said),
        }
    }

    fn take_whole(&mut self, now: u64, said: Said) -> Result<(), Mismatch> {
        match said {
            Said::Changes(changes) => {
                let records = self.books.take(&changes, &self.names)?;
                records.into_iter().for_each(|it| self.shard.apply(it));
                Ok(())
            }
            Said::Heard {
                clock,
                goes_on,
                entries,
            } => self.take_heard(now, (clock, goes_on), entries),
            Said::Begin(_) | Said::Digest { .. } | Said::Piece { .. } => Err(Mismatch::Unreadable),
        }
    }

    pub(super) fn follow_input(&mut self, now: u64, input: Input, out: &mut Vec<Out>) {
        if self.role == Role::None && matches!(input, Input::Message { .. } | Input::Excess { .. })
        {
            return;
        }
        if self.goes_by_told(&input) || (self.skips(Mutation::NoStatements) && is_stated(&input)) {
            return;
        }
        let is_lost = matches!(input, Input::LostUpTo { .. });
        let delay_ms = self.delay_ms();
        if let Some(catching_up) = &mut self.catching_up {
            catching_up.hear(now, &input, delay_ms);
        }
        self.shard.follow(now, input);
        // A replica that doesn't publish needs no changes for standbys.
        self.shard.take_told();
        if !is_lost {
            return;
        }
        // The snapshot in progress lacks the lost input.
        if let Some(catching_up) = &mut self.catching_up {
            catching_up.begin_again(now, delay_ms);
        }
        match &self.role {
            Role::Follow { .. } if self.is_sure => {
                self.catch_up(now, Difference::LostInput, out);
            }
            Role::Lead { .. } | Role::Resign { .. } => self.is_sure = false,
            Role::Follow { .. } | Role::None => {}
        }
    }

    pub(super) fn follow_time(&mut self, now: u64, out: &mut Vec<Out>) {
        if self.role == Role::None {
            if self.forget_at.is_some_and(|at| at <= now) {
                self.forget(out);
            }
            return;
        }
        self.look_for_silence(now);
        self.shard.follow_time(now);
        self.shard.take_told();
        if let Role::Follow { epoch, .. } = &self.role
            && self.epoch < *epoch
            && self.is_sure
            && now >= self.digest_at
        {
            self.catch_up(now, Difference::Silence, out);
        }
        self.ask(now, out);
    }

    pub(super) fn report(&self, owner: &str, out: &mut Vec<Out>) {
        if self.is_sure && matches!(self.role, Role::Follow { .. }) {
            out.push(Out::Synced {
                node: owner.into(),
                epoch: self.epoch,
                seq: self.seq,
            });
        }
    }

    fn compare(&mut self, theirs: &[u64; PARTS]) -> Result<(), Difference> {
        let ours = self.connections();
        let parts = ours.iter().zip(theirs).zip(&mut self.differed);
        let mut differ = false;
        for ((ours, theirs), times) in parts {
            *times = match ours == theirs {
                true => 0,
                false => *times + 1,
            };
            differ |= *times >= DIFFER_TIMES;
        }
        if differ && !self.skips(Mutation::NoComparison) {
            self.differed = [0; PARTS];
            return Err(Difference::Connections);
        }
        Ok(())
    }

    /// The digests of live connections, statuses and applications' statements, in parts.
    pub(super) fn connections(&mut self) -> [u64; PARTS] {
        let mut all = self.shard.live_digest();
        let compares = !self.skips(Mutation::NoStatements);
        for (user, statement) in self.shard.statements().filter(|_| compares) {
            let is_offline = u8::from(statement == Statement::Offline);
            all.add(digest(&[user.as_str().as_bytes(), &[], &[is_offline]]));
        }
        *all.parts()
    }
}

/// Whether an input is an application's statement about a user.
fn is_stated(input: &Input) -> bool {
    let Input::Message { message, .. } = input else {
        return false;
    };
    matches!(
        message.payload,
        Payload::Online { .. } | Payload::Offline { .. }
    )
}
