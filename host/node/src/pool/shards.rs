//! A tenant's shards, as the rest of the node sees them: where to send what is for them, and
//! the figures that they tell.

use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use foldhash::fast::FixedState;
use presence_core::fleet::hash;
use presence_core::{Counters, Input};

use super::mailbox::Mailbox;
use super::work::{Batch, FleetTask, ShardQuestion, Size, Task};
use super::{Address, BATCH_MAX};

/// How much may wait for a shard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueLimits {
    /// How many batches of inputs, were all of them full.
    pub(crate) batches: usize,
    /// How many bytes of inputs.
    pub(crate) input_bytes: usize,
    /// How many questions, or pieces of large ones.
    pub(crate) questions: usize,
}

/// How much of what others say of a shard may wait for it. What finds no room is missing, and the
/// shard catches up.
const TOLD_MAX: usize = 4_096;

/// A shard's figures, as it last told them.
#[derive(Debug, Default)]
pub(crate) struct ShardFigures {
    pub(super) counters: Mutex<Counters>,
    pub(crate) online_users: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) published: AtomicU64,
    /// How many users are still to be decided on again.
    pub(crate) backlog: AtomicU64,
    /// The last generation of the pipeline by which everyone has been decided on.
    pub(crate) settled: AtomicU64,
    /// How many decisions are pending.
    pub(crate) pending: AtomicU64,
    /// Since when the oldest of them is, by the monotonic time in milliseconds; 0 for none.
    pub(crate) pending_since: AtomicU64,
    /// How often it has failed, and begun anew from what was stored.
    pub(crate) restarts: AtomicU64,
    /// Whether it is owned here, and decides. In a fleet, of all nodes one has 1.
    pub(crate) leads: AtomicU64,
    /// Whether it is in step with its owner, which is another node of the fleet.
    pub(crate) in_step: AtomicU64,
    /// Whether nothing of it goes by the time up to which everything has been received.
    pub(crate) goes_without_clock: AtomicBool,
}

/// One shard.
#[derive(Debug)]
pub(crate) struct ShardHandle {
    mailbox: Arc<Mailbox>,
    address: Address,
    room: QueueLimits,
    pub(crate) figures: Arc<ShardFigures>,
}

impl ShardHandle {
    pub(super) fn new(mailbox: Arc<Mailbox>, address: Address, room: QueueLimits) -> Self {
        Self {
            mailbox,
            address,
            room,
            figures: Arc::default(),
        }
    }

    /// Hands over inputs if there is room for them now. Where there is none, they are to be
    /// counted as dropped.
    ///
    /// # Errors
    /// With what found no room.
    pub(crate) fn offer(&self, batch: Batch) -> Result<(), Batch> {
        self.mailbox
            .offer_inputs(self.address, batch, self.inputs_max())
    }

    /// Hands over what was refused since there was no room for it: for its answers, there is some
    /// beyond that. Says whether there is.
    pub(crate) fn offer_refused(&self, batch: Batch) -> bool {
        let max = self.inputs_max();
        let more = max.plus(Size {
            messages: max.messages / 8 + BATCH_MAX,
            bytes: max.bytes / 8,
        });
        self.mailbox.offer_inputs(self.address, batch, more).is_ok()
    }

    /// Hands over inputs when there is room for them.
    pub(crate) async fn hand_over(&self, batch: Batch) {
        let max = self.inputs_max();
        self.mailbox.send_inputs(self.address, batch, max).await;
    }

    /// Asks, if there is room for the question now.
    pub(crate) fn ask(&self, ask: ShardQuestion) -> bool {
        self.mailbox
            .offer_question(self.address, ask, self.room.questions)
    }

    /// Hands over a task, when there is room for it. A shard that is gone is one that was
    /// told to stop.
    pub(crate) async fn send(&self, task: Task) {
        self.mailbox.send(self.address, task).await;
    }

    /// Hands over what the shard is to do in the fleet. It waits for nothing.
    pub(crate) fn tell(&self, task: FleetTask) {
        self.mailbox
            .offer(self.address, Task::Fleet(task), usize::MAX);
    }

    /// Hands over what others say of the shard, if there is room for it now.
    pub(crate) fn offer_told(&self, task: FleetTask) -> bool {
        self.mailbox
            .offer(self.address, Task::Fleet(task), TOLD_MAX)
    }

    /// Has the shard be gone, whatever waits for it.
    pub(super) fn discard(&self) {
        self.mailbox.put_first(self.address, Task::Discard);
    }

    /// How many bytes of inputs wait.
    pub(super) fn queued_bytes(&self) -> usize {
        self.mailbox.queued_bytes(self.address)
    }

    fn inputs_max(&self) -> Size {
        Size {
            messages: self.room.batches.saturating_mul(BATCH_MAX),
            bytes: self.room.input_bytes,
        }
    }
}

/// A tenant's shards, shared.
#[derive(Clone, Debug)]
pub(crate) struct Shards {
    each: Arc<[ShardHandle]>,
    /// Whether users are divided as all nodes of a fleet divide them.
    are_fleets: bool,
}

impl Shards {
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &ShardHandle> {
        self.each.iter()
    }

    /// The same, divided as all nodes of a fleet divide them.
    #[must_use]
    pub(crate) fn of_fleet(self) -> Self {
        Self {
            are_fleets: true,
            ..self
        }
    }

    /// The shard at a place.
    pub(crate) fn get(&self, place: usize) -> Option<&ShardHandle> {
        self.each.get(place)
    }

    /// What each of them has counted.
    pub(crate) fn counters(&self) -> impl Iterator<Item = Counters> {
        self.iter().map(|shard| {
            let counters = shard.figures.counters.lock();
            *counters.unwrap_or_else(PoisonError::into_inner)
        })
    }

    /// A figure of all of them together.
    pub(crate) fn total(&self, of: fn(&ShardFigures) -> &AtomicU64) -> u64 {
        let figures = self.iter().map(|shard| of(&shard.figures));
        figures.map(|figure| figure.load(Ordering::Relaxed)).sum()
    }

    /// How many bytes of inputs wait for them.
    pub(crate) fn queued_bytes(&self) -> u64 {
        self.iter().map(|shard| shard.queued_bytes() as u64).sum()
    }

    /// The place of the shard that owns a user.
    pub(crate) fn place_of(&self, user: &str) -> usize {
        match self.are_fleets {
            false => place(user, self.each.len()),
            true => {
                let count = u32::try_from(self.each.len()).unwrap_or(u32::MAX);
                hash::shard_of(user, count) as usize
            }
        }
    }

    /// Hands the same input to every shard.
    pub(crate) async fn broadcast(&self, input: impl Fn() -> Input) {
        for shard in self.iter() {
            shard.send(Task::Input(input())).await;
        }
    }
}

/// Has shards be gone with the tenant, whatever becomes of it: they hold its state open.
pub(crate) struct ShardsGuard(Shards);

impl ShardsGuard {
    pub(crate) fn of(shards: &Shards) -> Self {
        Self(shards.clone())
    }
}

impl Drop for ShardsGuard {
    fn drop(&mut self) {
        // Most have ended.
        self.0.iter().for_each(ShardHandle::discard);
    }
}

/// Which of so many shards has a user, or anything else that can be told by its hash.
pub(crate) fn place(user: impl Hash, shards: usize) -> usize {
    FixedState::default().hash_one(user) as usize % shards.max(1)
}

impl From<Vec<ShardHandle>> for Shards {
    fn from(shards: Vec<ShardHandle>) -> Self {
        Self {
            each: shards.into(),
            are_fleets: false,
        }
    }
}
