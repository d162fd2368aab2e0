//! A tenant's shards, as the rest of the node sees them: handles for sending to them, and their
//! figures.

use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use foldhash::fast::FixedState;
use presence_core::fleet::hash;
use presence_core::{Counters, Input};

use super::mailbox::Mailbox;
use super::work::{Batch, FleetTask, ShardQuestion, Size, Task};
use super::{Address, BATCH_MAX};

/// Limits on what may wait for a shard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueLimits {
    /// How many full batches of inputs.
    pub(crate) batches: usize,
    /// How many bytes of inputs.
    pub(crate) input_bytes: usize,
    /// How many questions, or pieces of large questions.
    pub(crate) questions: usize,
}

/// How many messages from other nodes of the fleet may wait for a shard. Without room, a message is
/// lost, and the shard catches up.
const UPDATES_MAX: usize = 4_096;

/// A shard's figures, as it last updated them.
#[derive(Debug, Default)]
pub(crate) struct ShardFigures {
    pub(super) counters: Mutex<Counters>,
    pub(crate) online_users: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) published: AtomicU64,
    /// How many users must be decided again.
    pub(crate) backlog: AtomicU64,
    /// The newest generation of the pipeline that has decided on everyone.
    pub(crate) settled: AtomicU64,
    /// How many decisions are pending.
    pub(crate) pending: AtomicU64,
    /// Since when the oldest of them has been pending, in milliseconds of the host's clock; 0 if
    /// there is none.
    pub(crate) pending_since: AtomicU64,
    /// How often it has failed and was restarted from the stored state.
    pub(crate) restarts: AtomicU64,
    /// Whether this node owns it: 1 on one node of a fleet, 0 on the others.
    pub(crate) leads: AtomicU64,
    /// Whether it is a standby that holds the owner's whole state.
    pub(crate) synced: AtomicU64,
    /// Whether nothing in it depends on watermarks.
    pub(crate) needs_no_watermark: AtomicBool,
}

/// A handle for one shard.
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

    /// Hands over inputs, if there is room for them now. If not, the caller must count them as
    /// dropped.
    ///
    /// # Errors
    /// Returns the batch if there is no room.
    pub(crate) fn offer(&self, batch: Batch) -> Result<(), Batch> {
        self.mailbox
            .offer_inputs(self.address, batch, self.inputs_max())
    }

    /// Hands over messages that were refused for lack of room, so that their senders get answers.
    /// There is some extra room for this. Returns whether it was enough.
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

    /// Asks a question, if there is room for it now. Returns whether there was.
    pub(crate) fn ask(&self, ask: ShardQuestion) -> bool {
        self.mailbox
            .offer_question(self.address, ask, self.room.questions)
    }

    /// Hands over a task when there is room for it. It is dropped if the shard is gone, which
    /// happens only after a stop.
    pub(crate) async fn send(&self, task: Task) {
        self.mailbox.send(self.address, task).await;
    }

    /// Hands over a task of the fleet, whether there is room or not.
    pub(crate) fn send_fleet_task(&self, task: FleetTask) {
        self.mailbox
            .offer(self.address, Task::Fleet(task), usize::MAX);
    }

    /// Hands over a message of another node, if there is room for it now. Returns whether there
    /// was.
    pub(crate) fn offer_update(&self, task: FleetTask) -> bool {
        self.mailbox
            .offer(self.address, Task::Fleet(task), UPDATES_MAX)
    }

    /// Removes the shard, whatever waits for it.
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

/// A tenant's shards. Cloning shares them.
#[derive(Clone, Debug)]
pub(crate) struct Shards {
    each: Arc<[ShardHandle]>,
    /// Whether users are divided among shards as on all nodes of a fleet.
    are_fleets: bool,
}

impl Shards {
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &ShardHandle> {
        self.each.iter()
    }

    /// The same shards, with users divided as on all nodes of a fleet.
    #[must_use]
    pub(crate) fn of_fleet(self) -> Self {
        Self {
            are_fleets: true,
            ..self
        }
    }

    /// The shard with this number.
    pub(crate) fn get(&self, place: usize) -> Option<&ShardHandle> {
        self.each.get(place)
    }

    /// The counters of each shard.
    pub(crate) fn counters(&self) -> impl Iterator<Item = Counters> {
        self.iter().map(|shard| {
            let counters = shard.figures.counters.lock();
            *counters.unwrap_or_else(PoisonError::into_inner)
        })
    }

    /// The sum of a figure over all shards.
    pub(crate) fn total(&self, of: fn(&ShardFigures) -> &AtomicU64) -> u64 {
        let figures = self.iter().map(|shard| of(&shard.figures));
        figures.map(|figure| figure.load(Ordering::Relaxed)).sum()
    }

    /// How many bytes of inputs wait for all shards.
    pub(crate) fn queued_bytes(&self) -> u64 {
        self.iter().map(|shard| shard.queued_bytes() as u64).sum()
    }

    /// The number of the shard that owns a user.
    pub(crate) fn place_of(&self, user: &str) -> usize {
        match self.are_fleets {
            false => place(user, self.each.len()),
            true => {
                let count = u32::try_from(self.each.len()).unwrap_or(u32::MAX);
                hash::shard_of(user, count) as usize
            }
        }
    }

    /// Sends an input to every shard.
    pub(crate) async fn broadcast(&self, input: impl Fn() -> Input) {
        for shard in self.iter() {
            shard.send(Task::Input(input())).await;
        }
    }
}

/// Removes a tenant's shards when the tenant is dropped, however it ended. Shards hold its state
/// open.
pub(crate) struct ShardsGuard(Shards);

impl ShardsGuard {
    pub(crate) fn of(shards: &Shards) -> Self {
        Self(shards.clone())
    }
}

impl Drop for ShardsGuard {
    fn drop(&mut self) {
        // Most have ended already.
        self.0.iter().for_each(ShardHandle::discard);
    }
}

/// The number of the shard, out of `shards`, to which a user or another hashed value belongs.
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
