//! A replica that catches up: it takes a snapshot of what the owner holds, and goes on by what it
//! has heard itself since before it asked.
//!
//! It begins to listen some time before it asks: what reached it before then has reached the owner
//! by the time that the snapshot is taken, though it may come there later. What both have handled
//! is handled twice here: that makes no difference, since each message has its sender's time, and
//! all of them come again in their order.

use std::sync::Arc;

use roaring::RoaringBitmap;

use super::sending::Snapshots;
use super::{Difference, Out, Replica, Role};
use crate::Input;
use crate::digest::PARTS;
use crate::fleet::snapshot::{Assembly, Refusal};
use crate::fleet::told::{Pieces, Told};

/// How many messages are held while a snapshot is awaited. With more, it is asked for again.
const HELD_MAX: usize = 1 << 18;

/// How often the time for an answer is doubled, from the second question on.
const DOUBLINGS_MAX: u32 = 2;

/// What is held while a snapshot is awaited.
#[derive(Debug)]
pub(super) struct CatchingUp {
    /// Since when it has listened.
    since: u64,
    /// When to ask, or to ask again.
    ask_at: u64,
    /// How often it has asked in vain.
    tries: u32,
    assembly: Option<Assembly>,
    /// With when each arrived.
    inputs: Vec<(u64, Input)>,
    told: Vec<Told>,
}

impl CatchingUp {
    fn new(now: u64, ask_at: u64) -> Self {
        Self {
            since: now,
            ask_at,
            tries: 0,
            assembly: None,
            inputs: Vec::new(),
            told: Vec::new(),
        }
    }

    pub(super) fn next_deadline(&self) -> u64 {
        self.ask_at
    }

    pub(super) fn hear(&mut self, now: u64, input: &Input, delay_ms: u64) {
        if matches!(input, Input::Message { .. } | Input::Excess { .. }) {
            self.inputs.push((now, input.clone()));
            if self.held() > HELD_MAX {
                self.begin_again(now, delay_ms);
            }
        } else if let Some(assembly) = &mut self.assembly {
            // It was made with what held until now.
            assembly.change(now, input.clone());
        }
    }

    fn held(&self) -> usize {
        self.inputs.len() + self.told.len()
    }

    /// All the numbers of ids that are held here.
    pub(super) fn ids(&self) -> RoaringBitmap {
        let assembly = self.assembly.as_ref().map(Assembly::ids);
        assembly.unwrap_or_default()
    }

    pub(super) fn hold(&mut self, told: Told) {
        self.told.push(told);
    }

    /// What is held is of no use. It listens for so long before it asks again.
    pub(super) fn begin_again(&mut self, now: u64, delay_ms: u64) {
        *self = Self {
            tries: self.tries,
            ..Self::new(now, self.ask_at.max(now + delay_ms))
        };
    }
}

impl Replica {
    /// Takes a chunk of a snapshot. One that is complete takes the place of what is held.
    ///
    /// # Errors
    /// Why it is refused. It is asked for again.
    pub fn chunk(&mut self, now: u64, bytes: &[u8], out: &mut Vec<Out>) -> Result<(), Refusal> {
        let catching_up = self.catching_up.as_mut();
        let Some(assembly) = catching_up.and_then(|it| it.assembly.as_mut()) else {
            return Ok(());
        };
        match assembly.add(now, bytes, &self.names) {
            Ok(None) => {
                // It is on its way, however long it is.
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
                // It is of an owner before the one that is known, or of one that the bucket
                // doesn't know of.
                let known = self.known_epoch().unwrap_or_default();
                if snapshot.epoch < self.epoch || snapshot.epoch > known {
                    self.catching_up = Some(CatchingUp {
                        assembly: None,
                        ..catching_up
                    });
                    return Ok(());
                }
                let mut shard = snapshot.shard;
                shard.count_on(&self.shard);
                shard.is_copy();
                self.exchange(shard, snapshot.books, out);
                // What is being sent is of the one before.
                self.snapshots = Snapshots::default();
                (self.epoch, self.seq) = (snapshot.epoch, snapshot.seq);
                self.pieces = Pieces::default();
                self.is_first = snapshot.is_first;
                self.shard.is_first(self.is_first);
                self.is_sure = true;
                self.differed = [0; PARTS];
                self.replay(now, catching_up, out);
                self.settle(now, out);
                Ok(())
            }
            Err(refusal) => {
                let delay_ms = self.delay_ms();
                if let Some(catching_up) = &mut self.catching_up {
                    catching_up.assembly = None;
                    catching_up.ask_at = catching_up.ask_at.min(now + delay_ms);
                }
                Err(refusal)
            }
        }
    }

    /// Begins to catch up, if it follows.
    pub(super) fn catch_up(&mut self, now: u64, difference: Difference, out: &mut Vec<Out>) {
        if self.skips(super::Mutation::NoCatchUp) {
            return;
        }
        out.push(Out::Differed(difference));
        self.is_sure = false;
        self.pieces = Pieces::default();
        // What the owner's clock shows next is of leases that are in the snapshot.
        self.hearing.forget_clock();
        self.catching_up = Some(CatchingUp::new(now, now + self.delay_ms()));
    }

    /// Asks for a snapshot, if it is time.
    pub(super) fn ask(&mut self, now: u64, out: &mut Vec<Out>) {
        let node = match &self.role {
            Role::Follow { owner, .. } => Arc::clone(owner),
            Role::Lead { before, .. } => match &before.told {
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
        // What is handled twice is not to be older than a connection may be silent.
        if now > catching_up.since + timeout_ms / 2 {
            catching_up.begin_again(now, delay_ms);
            return;
        }
        self.nonce += 1;
        let mut shard = self.shard.replacement();
        shard.keep_told(true);
        catching_up.assembly = Some(Assembly::new(self.number, self.nonce, shard));
        // An owner that is behind answers late, and to the last question alone.
        let doublings = catching_up.tries.saturating_sub(1).min(DOUBLINGS_MAX);
        let wait_ms = (answer_ms << doublings).min(timeout_ms / 4);
        catching_up.tries += 1;
        catching_up.ask_at = now + wait_ms.max(answer_ms);
        out.push(Out::Ask {
            node,
            nonce: self.nonce,
        });
    }

    /// Goes on from a snapshot by what has been heard since.
    fn replay(&mut self, now: u64, catching_up: CatchingUp, out: &mut Vec<Out>) {
        for (arrived, input) in catching_up.inputs {
            self.shard
                .follow_again(now, later(input, now.saturating_sub(arrived)));
        }
        self.hearing.held_ms = now.saturating_sub(catching_up.since);
        let taken = catching_up.told.into_iter().try_for_each(|told| {
            if told.epoch < self.epoch || (told.epoch == self.epoch && told.seq < self.seq) {
                return Ok(());
            }
            self.take(now, told, out)
        });
        self.hearing.held_ms = 0;
        if let Err(difference) = taken {
            return self.catch_up(now, difference, out);
        }
        self.shard.take_told();
        if let Role::Follow { owner, epoch } = &self.role
            && self.epoch == *epoch
        {
            out.push(Out::Synced {
                node: Arc::clone(owner),
                epoch: self.epoch,
                seq: self.seq,
            });
        }
    }

    /// For how long it listens before it asks.
    pub(super) fn delay_ms(&self) -> u64 {
        self.settings.fleet.answer_ms / 4
    }
}

/// What is handled so much later than it arrived, in milliseconds.
fn later(mut input: Input, by_ms: u64) -> Input {
    if let Input::Message { message, .. } | Input::Excess { message, .. } = &mut input
        && message.delayed_ms > 0
    {
        message.delayed_ms = message.delayed_ms.saturating_add(by_ms);
    }
    input
}
