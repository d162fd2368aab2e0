//! A replica that catches up: it takes a snapshot of the owner's state, and then applies the input
//! that it has received itself since before it asked.
//!
//! The replica begins to listen some time before it asks. So what reached it before it began to
//! listen has reached the owner when the snapshot is taken, even if it takes longer to get there.
//! What both have handled is handled twice here. That makes no difference, since each message has
//! its sender's timestamp, and all of them are handled again in their order.

use std::sync::Arc;

use roaring::RoaringBitmap;

use super::snapshots::Snapshots;
use super::{CatchUpReason, Replica, ReplicaOutput, Role};
use crate::Input;
use crate::digest::PARTS;
use crate::fleet::snapshot::{Refusal, SnapshotReader};
use crate::fleet::standby_message::{PartialMessage, StandbyMessage};

/// How many messages are held while the replica waits for a snapshot. With more, it asks again.
const HELD_MAX: usize = 1 << 18;

/// How often the time for an answer is doubled, from the second question on.
const DOUBLINGS_MAX: u32 = 2;

/// The input and messages that are held while the replica waits for a snapshot.
#[derive(Debug)]
pub(super) struct CatchingUp {
    /// Since when the replica has listened.
    since: u64,
    /// When to ask, or to ask again.
    ask_at: u64,
    /// How often the replica has asked.
    tries: u32,
    reader: Option<SnapshotReader>,
    /// The inputs, and when each arrived.
    inputs: Vec<(u64, Input)>,
    messages: Vec<StandbyMessage>,
}

impl CatchingUp {
    fn new(now: u64, ask_at: u64) -> Self {
        Self {
            since: now,
            ask_at,
            tries: 0,
            reader: None,
            inputs: Vec::new(),
            messages: Vec::new(),
        }
    }

    pub(super) fn next_deadline(&self) -> u64 {
        self.ask_at
    }

    pub(super) fn hold_input(&mut self, now: u64, input: &Input, delay_ms: u64) {
        if matches!(input, Input::Message { .. } | Input::Excess { .. }) {
            self.inputs.push((now, input.clone()));
            if self.held_count() > HELD_MAX {
                self.restart(now, delay_ms);
            }
        } else if let Some(reader) = &mut self.reader {
            // The reader made its shard with the settings, directory and rules before this input.
            reader.change(now, input.clone());
        }
    }

    fn held_count(&self) -> usize {
        self.inputs.len() + self.messages.len()
    }

    /// All ids in the snapshot that is being received, as numbers.
    pub(super) fn ids(&self) -> RoaringBitmap {
        let reader = self.reader.as_ref().map(SnapshotReader::ids);
        reader.unwrap_or_default()
    }

    pub(super) fn hold_message(&mut self, message: StandbyMessage) {
        self.messages.push(message);
    }

    /// Drops what is held, and listens for at least `delay_ms` before the replica asks again.
    pub(super) fn restart(&mut self, now: u64, delay_ms: u64) {
        *self = Self {
            tries: self.tries,
            ..Self::new(now, self.ask_at.max(now + delay_ms))
        };
    }
}

impl Replica {
    /// Takes a chunk of a snapshot. A complete snapshot replaces the replica's state.
    ///
    /// # Errors
    /// If the chunk is refused. The replica asks for the snapshot again.
    pub fn chunk(
        &mut self,
        now: u64,
        bytes: &[u8],
        out: &mut Vec<ReplicaOutput>,
    ) -> Result<(), Refusal> {
        let catching_up = self.catching_up.as_mut();
        let Some(reader) = catching_up.and_then(|it| it.reader.as_mut()) else {
            return Ok(());
        };
        match reader.add(now, bytes, &self.names) {
            Ok(None) => {
                // The snapshot is arriving, however long it is.
                let answer_ms = self.settings.fleet.answer_ms;
                if let Some(catching_up) = &mut self.catching_up {
                    catching_up.ask_at = catching_up.ask_at.max(now + answer_ms);
                }
                Ok(())
            }
            Ok(Some(snapshot)) => {
                let Some(catching_up) = self.catching_up.take() else {
                    return Ok(());
                };
                // The snapshot is of an earlier owner than the known one, or of one that the bucket
                // doesn't name yet.
                let known = self.known_epoch().unwrap_or_default();
                if snapshot.epoch < self.epoch || snapshot.epoch > known {
                    self.catching_up = Some(CatchingUp {
                        reader: None,
                        ..catching_up
                    });
                    return Ok(());
                }
                let mut shard = snapshot.shard;
                shard.continue_counters(&self.shard);
                shard.set_from_snapshot();
                self.replace_shard(shard, snapshot.told_viewers, out);
                // The snapshots that are being sent are of the replaced shard.
                self.snapshots = Snapshots::default();
                (self.epoch, self.seq) = (snapshot.epoch, snapshot.seq);
                self.partial = PartialMessage::default();
                self.is_first = snapshot.is_first;
                self.shard.set_first_owner(self.is_first);
                self.is_complete = true;
                self.differed = [0; PARTS];
                self.replay(now, catching_up, out);
                self.settle(now, out);
                Ok(())
            }
            Err(refusal) => {
                let delay_ms = self.delay_ms();
                if let Some(catching_up) = &mut self.catching_up {
                    catching_up.reader = None;
                    catching_up.ask_at = catching_up.ask_at.min(now + delay_ms);
                }
                Err(refusal)
            }
        }
    }

    /// Begins to catch up, if the replica follows.
    pub(super) fn catch_up(
        &mut self,
        now: u64,
        difference: CatchUpReason,
        out: &mut Vec<ReplicaOutput>,
    ) {
        if self.skips(super::Mutation::NoCatchUp) {
            return;
        }
        out.push(ReplicaOutput::Differed(difference));
        self.is_complete = false;
        self.partial = PartialMessage::default();
        // The leases in the snapshot account for the owner's receive clock up to its next message.
        self.relay.forget_clock();
        self.catching_up = Some(CatchingUp::new(now, now + self.delay_ms()));
    }

    /// Asks for a snapshot, if it is time.
    pub(super) fn ask(&mut self, now: u64, out: &mut Vec<ReplicaOutput>) {
        let node = match &self.role {
            Role::Follow { owner, .. } => Arc::clone(owner),
            Role::Lead { previous, .. } => match &previous.handed_over {
                Some((node, _)) => Arc::clone(node),
                None => return,
            },
            Role::None | Role::Resign { .. } => return,
        };
        let (answer_ms, timeout_ms) = (self.settings.fleet.answer_ms, self.settings.timeout_ms);
        let delay_ms = self.delay_ms();
        let Some(catching_up) = &mut self.catching_up else {
            return;
        };
        if now < catching_up.ask_at {
            return;
        }
        // The input that is handled twice must not be older than a connection may be silent.
        if now > catching_up.since + timeout_ms / 2 {
            catching_up.restart(now, delay_ms);
            return;
        }
        self.nonce += 1;
        let mut shard = self.shard.replacement();
        shard.keep_standby_records(true);
        catching_up.reader = Some(SnapshotReader::new(self.number, self.nonce, shard));
        // An owner that is behind answers late, and only the last question.
        let doublings = catching_up.tries.saturating_sub(1).min(DOUBLINGS_MAX);
        let wait_ms = (answer_ms << doublings).min(timeout_ms / 4);
        catching_up.tries += 1;
        catching_up.ask_at = now + wait_ms.max(answer_ms);
        out.push(ReplicaOutput::Ask {
            node,
            nonce: self.nonce,
        });
    }

    /// Applies to the snapshot what the replica has received since it began to listen.
    fn replay(&mut self, now: u64, catching_up: CatchingUp, out: &mut Vec<ReplicaOutput>) {
        for (arrived, input) in catching_up.inputs {
            self.shard
                .follow_replayed(now, later(input, now.saturating_sub(arrived)));
        }
        self.relay.held_ms = now.saturating_sub(catching_up.since);
        let taken = catching_up.messages.into_iter().try_for_each(|message| {
            if message.epoch < self.epoch || (message.epoch == self.epoch && message.seq < self.seq)
            {
                return Ok(());
            }
            self.take(now, message, out)
        });
        self.relay.held_ms = 0;
        if let Err(difference) = taken {
            return self.catch_up(now, difference, out);
        }
        self.shard.take_standby_records();
        if let Role::Follow { owner, epoch } = &self.role
            && self.epoch == *epoch
        {
            out.push(ReplicaOutput::Synced {
                node: Arc::clone(owner),
                epoch: self.epoch,
                seq: self.seq,
            });
        }
    }

    /// How long the replica listens before it asks.
    pub(super) fn delay_ms(&self) -> u64 {
        self.settings.fleet.answer_ms / 4
    }
}

/// The input, for being handled `by_ms` milliseconds after it arrived: if its message has a delay,
/// this is added to it.
fn later(mut input: Input, by_ms: u64) -> Input {
    if let Input::Message { message, .. } | Input::Excess { message, .. } = &mut input
        && message.delayed_ms > 0
    {
        message.delayed_ms = message.delayed_ms.saturating_add(by_ms);
    }
    input
}
