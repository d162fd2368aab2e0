//! A replica that doesn't lead: it handles the same input, and applies the owner's messages.

use super::{CatchUpReason, Mutation, Replica, ReplicaOutput, Role};
use crate::Input;
use crate::digest::{PARTS, digest};
use crate::fleet::standby_message::{Mismatch, PartialMessage, StandbyContent, StandbyMessage};
use crate::message::Kind;
use crate::statements::Statement;

/// How many times in a row connections must differ before the replica catches up. Messages in
/// transit cause differences that are gone at the next comparison.
const DIFFER_TIMES: u8 = 3;

/// The maximum size of the held messages of an epoch that the bucket hasn't named yet, in bytes.
/// Those beyond are dropped, and the replica catches up later.
const HELD_BYTES_MAX: usize = 1 << 24;

/// Held messages of an epoch that the bucket hasn't named yet. An owner's messages may arrive
/// sooner than the change of the bucket. If the bucket never names the epoch, no owner sent them.
#[derive(Debug, Default)]
pub(super) struct HeldMessages {
    messages: Vec<(StandbyMessage, usize)>,
    bytes: usize,
}

impl HeldMessages {
    fn hold(&mut self, message: StandbyMessage, bytes: usize) {
        if self.bytes + bytes <= HELD_BYTES_MAX {
            self.bytes += bytes;
            self.messages.push((message, bytes));
        }
    }

    /// Takes the messages of epochs up to `known`. `None`: the replica listens to no owner, and all
    /// messages are dropped.
    pub(super) fn take(&mut self, known: Option<u64>) -> Vec<StandbyMessage> {
        let held = std::mem::take(self);
        let Some(known) = known else {
            return Vec::new();
        };
        let mut taken = Vec::new();
        for (message, bytes) in held.messages {
            match message.epoch <= known {
                true => taken.push(message),
                false => self.hold(message, bytes),
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
    pub fn receive(
        &mut self,
        now: u64,
        bytes: &[u8],
        out: &mut Vec<ReplicaOutput>,
    ) -> Result<(), Mismatch> {
        let message = StandbyMessage::decode(bytes)?;
        if message.shard != self.number {
            return Err(Mismatch::Unreadable);
        }
        self.settle(now, out);
        match self.known_epoch() {
            Some(known) if message.epoch > known => self.held_messages.hold(message, bytes.len()),
            // This node has told everything of its own epoch itself.
            Some(_) if matches!(self.role, Role::Resign { .. }) => {}
            Some(_) => self.receive_decoded(now, message, out),
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
            Role::Lead { epoch, previous } => (self.epoch != *epoch).then_some(previous.epoch),
            // The next owner may begin before this node sees in the bucket who owns the shard.
            Role::Resign { epoch } => Some(*epoch),
            Role::None => None,
        }
    }

    pub(super) fn receive_decoded(
        &mut self,
        now: u64,
        message: StandbyMessage,
        out: &mut Vec<ReplicaOutput>,
    ) {
        if message.epoch < self.epoch {
            return;
        }
        self.digest_at = self.digest_at.max(now + self.settings.fleet.answer_ms);
        if let Some(catching_up) = &mut self.catching_up {
            catching_up.hold_message(message);
        } else if let Err(difference) = self.take(now, message, out) {
            self.catch_up(now, difference, out);
        }
        self.settle(now, out);
    }

    /// Applies a message of the owner, if it is the expected next one.
    pub(super) fn take(
        &mut self,
        now: u64,
        message: StandbyMessage,
        out: &mut Vec<ReplicaOutput>,
    ) -> Result<(), CatchUpReason> {
        if message.epoch > self.epoch {
            return match message.content {
                StandbyContent::Begin(digest)
                    if self.is_complete
                        && message.seq == 1
                        && digest == self.told_viewers.digest() =>
                {
                    (self.epoch, self.seq) = (message.epoch, message.seq);
                    self.partial = PartialMessage::default();
                    self.differed = [0; PARTS];
                    self.report_synced(&message.node, out);
                    Ok(())
                }
                StandbyContent::Begin(_) => Err(CatchUpReason::Ledger),
                _ => Err(CatchUpReason::Gap),
            };
        }
        match message.content {
            StandbyContent::Begin(_) => Ok(()),
            StandbyContent::Digest { .. } if message.seq < self.seq => Ok(()),
            StandbyContent::Digest {
                ledger,
                connections,
            } if message.seq == self.seq || self.skips(Mutation::NoCatchUp) => {
                if self.skips(Mutation::NoCatchUp) {
                    self.seq = message.seq;
                    self.report_synced(&message.node, out);
                    return Ok(());
                }
                if ledger != self.ledger_digest() {
                    return Err(CatchUpReason::Ledger);
                }
                self.compare(&connections)?;
                self.report_synced(&message.node, out);
                Ok(())
            }
            StandbyContent::Digest { .. } => Err(CatchUpReason::Gap),
            _ if message.seq <= self.seq => Ok(()),
            _ if message.seq > self.seq + 1 => Err(CatchUpReason::Gap),
            content => {
                let taken = self.apply_next(now, content);
                taken.map_err(|_| CatchUpReason::Mismatch)?;
                self.seq = message.seq;
                Ok(())
            }
        }
    }

    /// Applies the message with the next sequence number.
    fn apply_next(&mut self, now: u64, content: StandbyContent) -> Result<(), Mismatch> {
        match content {
            StandbyContent::Piece { is_last, bytes } => match self.partial.take(is_last, &bytes)? {
                Some(content) => self.apply_content(now, content),
                None => Ok(()),
            },
            // The rest of the previous message is missing.
            _ if !self.partial.is_empty() => Err(Mismatch::Unreadable),
            content => self.apply_content(now, content),
        }
    }

    fn apply_content(&mut self, now: u64, content: StandbyContent) -> Result<(), Mismatch> {
        match content {
            StandbyContent::Changes(changes) => {
                let records = self.told_viewers.take(&changes, &self.names)?;
                records.into_iter().for_each(|it| self.shard.apply(it));
                Ok(())
            }
            StandbyContent::Heartbeats {
                clock,
                goes_on,
                entries,
            } => self.apply_heartbeats(now, (clock, goes_on), entries),
            StandbyContent::Begin(_)
            | StandbyContent::Digest { .. }
            | StandbyContent::Piece { .. } => Err(Mismatch::Unreadable),
        }
    }

    pub(super) fn follow_input(&mut self, now: u64, input: Input, out: &mut Vec<ReplicaOutput>) {
        if self.role == Role::None && matches!(input, Input::Message { .. } | Input::Excess { .. })
        {
            return;
        }
        if self.ignores_input(&input) || (self.skips(Mutation::NoStatements) && is_stated(&input)) {
            return;
        }
        let is_lost = matches!(input, Input::LostUpTo { .. });
        let delay_ms = self.delay_ms();
        if let Some(catching_up) = &mut self.catching_up {
            catching_up.hold_input(now, &input, delay_ms);
        }
        self.shard.follow(now, input);
        // A replica that doesn't publish needs no changes for standbys.
        self.shard.take_standby_records();
        if !is_lost {
            return;
        }
        // The snapshot in progress lacks the lost input.
        if let Some(catching_up) = &mut self.catching_up {
            catching_up.restart(now, delay_ms);
        }
        match &self.role {
            Role::Follow { .. } if self.is_complete => {
                self.catch_up(now, CatchUpReason::LostInput, out);
            }
            Role::Lead { .. } | Role::Resign { .. } => self.is_complete = false,
            Role::Follow { .. } | Role::None => {}
        }
    }

    pub(super) fn follow_time(&mut self, now: u64, out: &mut Vec<ReplicaOutput>) {
        if self.role == Role::None {
            if self.forget_at.is_some_and(|at| at <= now) {
                self.forget(out);
            }
            return;
        }
        self.check_for_silence(now);
        self.shard.follow_time(now);
        self.shard.take_standby_records();
        if let Role::Follow { epoch, .. } = &self.role
            && self.epoch < *epoch
            && self.is_complete
            && now >= self.digest_at
        {
            self.catch_up(now, CatchUpReason::Silence, out);
        }
        self.ask(now, out);
    }

    pub(super) fn report_synced(&self, owner: &str, out: &mut Vec<ReplicaOutput>) {
        if self.is_complete && matches!(self.role, Role::Follow { .. }) {
            out.push(ReplicaOutput::Synced {
                node: owner.into(),
                epoch: self.epoch,
                seq: self.seq,
            });
        }
    }

    fn compare(&mut self, theirs: &[u64; PARTS]) -> Result<(), CatchUpReason> {
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
            return Err(CatchUpReason::Connections);
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
    matches!(message.kind, Kind::Online | Kind::Offline)
}
