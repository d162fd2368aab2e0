//! The pool: one thread per core for the whole node. The shards of all tenants live on these
//! threads.
//!
//! A shard is a value ([`hosted_shard`]). It is moved to its thread in a message, and stays there.
//! While it is idle, it needs no memory but that of its data. A thread ([`thread`]) takes work from
//! its mailbox ([`mailbox`]), schedules the tenants ([`scheduler`]), wakes shards when a timer is
//! due, gives them their turns ([`worker`]), and queues their messages in its outbox ([`outbox`]).

mod acknowledged;
mod hosted_shard;
mod instances;
pub(crate) mod log_limiter;
mod mailbox;
mod outbox;
mod restart;
mod rules;
mod scheduler;
mod shard_or_replica;
mod shards;
mod spare_time;
#[cfg(test)]
mod tests;
mod thread;
mod thread_shards;
mod thread_share;
mod turn;
mod unacknowledged;
mod work;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio::task::unconstrained;

use crate::clock;
use crate::link::progress::DeliveryProgress;
use crate::tasks::Tasks;

pub(crate) use hosted_shard::{HostedShard, TenantContext};
pub(crate) use outbox::Transport;
pub(crate) use shard_or_replica::{FleetLinks, ShardOrReplica, ShardReport};
pub(crate) use shards::{QueueLimits, ShardFigures, Shards, ShardsGuard, place};
pub(crate) use thread_share::ThreadShare;
pub(crate) use work::{BATCH_MAX, Batch, FleetTask, Generation, ShardQuestion, Task};

use mailbox::Mailbox;
use outbox::Outbox;
use shards::ShardHandle;
use worker::Worker;

/// Identifies a shard on this node: its tenant and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Address {
    tenant: u32,
    shard: u32,
}

/// Returns a count of nanoseconds from an arbitrary start.
type Stopwatch = Box<dyn Fn() -> u64 + Send>;

/// How a thread measures time.
struct Clocks {
    /// Elapsed time.
    elapsed: Stopwatch,
    /// The processor time that the thread has used.
    processor: Stopwatch,
}

/// A thread's figures, as it last updated them.
#[derive(Debug, Default)]
pub(crate) struct ThreadFigures {
    /// How many bytes of messages the broker hasn't acknowledged.
    pub(crate) journal_bytes: AtomicU64,
    /// How many messages were published again after a lost connection.
    pub(crate) repeated: AtomicU64,
    /// When the thread began its current piece of work, in milliseconds of the host's clock; 0
    /// while it waits.
    busy_since: AtomicU64,
}

impl ThreadFigures {
    /// How long the thread has been at its current piece of work, in milliseconds.
    pub(crate) fn busy_ms(&self) -> u64 {
        match self.busy_since.load(Ordering::Relaxed) {
            0 => 0,
            since => clock::now_ms().saturating_sub(since),
        }
    }

    fn mark_busy(&self, now: u64) {
        self.busy_since.store(now, Ordering::Relaxed);
    }

    fn mark_idle(&self) {
        self.busy_since.store(0, Ordering::Relaxed);
    }

    fn set_outbox_figures(&self, bytes: usize, repeated: u64) {
        self.journal_bytes.store(bytes as u64, Ordering::Relaxed);
        self.repeated.store(repeated, Ordering::Relaxed);
    }
}

/// How much the outbox of each thread holds, and how often beacons are sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutboxSettings {
    /// How many bytes of messages may wait for the broker's acknowledgement.
    pub(crate) bytes_max: usize,
    /// How many of these bytes may be of one shard while there is a connection. `None`: without a
    /// limit.
    pub(crate) shard_bytes_max: Option<usize>,
    /// The interval between two beacons of a source, in milliseconds.
    pub(crate) beacon_ms: u64,
}

/// The scheduling priority of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    Usual,
    Lower,
}

/// By how much the nice value of threads with lower priority is raised.
const NICE: i32 = 5;

impl Priority {
    /// Gives this priority to the calling thread. If the system refuses, the thread keeps its
    /// priority.
    pub(crate) fn take(self) {
        if self == Self::Lower {
            // On Linux, this changes the calling thread alone.
            let _ = rustix::process::nice(NICE);
        }
    }
}

/// The node's threads. Cloning it shares them. They end when the last clone is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Pool(Arc<Threads>);

#[derive(Debug)]
struct Threads {
    each: Vec<(Arc<Mailbox>, Arc<ThreadFigures>)>,
    /// How many tenants were ever placed. The count numbers the next one.
    tenants: AtomicU32,
}

impl Drop for Threads {
    fn drop(&mut self) {
        for (mailbox, _) in &self.each {
            mailbox.close();
        }
    }
}

impl Pool {
    /// Starts one thread for each element of `handed`.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub(crate) fn start<C: Transport + Clone>(
        transport: &C,
        handed: Vec<Arc<DeliveryProgress>>,
        settings: OutboxSettings,
        priority: Priority,
        tasks: &Tasks,
    ) -> anyhow::Result<Self> {
        let mut each = Vec::new();
        // All threads count time from the same start, because a tenant can have shards on several.
        let began = Instant::now();
        for (number, handed) in handed.into_iter().enumerate() {
            let mailbox = Arc::<Mailbox>::default();
            let figures = Arc::<ThreadFigures>::default();
            let outbox = Outbox::new(transport.clone(), handed, settings);
            let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            let clocks = Clocks {
                elapsed: Box::new(move || ns(began.elapsed())),
                processor: Box::new(move || ns(clock::thread_cpu())),
            };
            let (inbox, thread_figures) = (Arc::clone(&mailbox), Arc::clone(&figures));
            let runtime = Builder::new_current_thread().enable_time().build()?;
            // Without a budget: the worker is the only task of its runtime.
            let run = move || {
                priority.take();
                let worker = Worker::new(inbox, outbox, thread_figures, clocks);
                runtime.block_on(unconstrained(worker.run()));
            };
            let name = match priority {
                Priority::Usual => format!("pool-{number}"),
                Priority::Lower => format!("isolated-{number}"),
            };
            tasks.thread(name, run)?;
            each.push((mailbox, figures));
        }
        Ok(Self(Arc::new(Threads {
            each,
            tenants: AtomicU32::new(0),
        })))
    }

    /// How many threads there are.
    pub(crate) fn len(&self) -> usize {
        self.0.each.len()
    }

    /// The threads' figures.
    pub(crate) fn figures(&self) -> impl Iterator<Item = &ThreadFigures> {
        self.0.each.iter().map(|(_, figures)| &**figures)
    }

    /// The sum of a figure over all threads.
    pub(crate) fn total(&self, of: fn(&ThreadFigures) -> &AtomicU64) -> u64 {
        let figures = self.figures().map(of);
        figures.map(|figure| figure.load(Ordering::Relaxed)).sum()
    }

    /// Places a new tenant's shards: thread by thread, in turn.
    pub(crate) fn place(
        &self,
        shards: usize,
        room: QueueLimits,
        mut shard: impl FnMut(usize, Arc<ShardFigures>) -> HostedShard,
    ) -> Shards {
        let tenant = self.0.tenants.fetch_add(1, Ordering::Relaxed);
        // Each tenant begins at another thread, so that small tenants don't all share the first.
        let threads = self
            .0
            .each
            .iter()
            .cycle()
            .skip(tenant as usize % self.len().max(1));
        let handles = (0..shards).zip(threads).map(|(number, (mailbox, _))| {
            let address = Address {
                tenant,
                shard: u32::try_from(number).unwrap_or(u32::MAX),
            };
            let handle = ShardHandle::new(Arc::clone(mailbox), address, room);
            let hosted = shard(number, Arc::clone(&handle.figures));
            mailbox.put_first(address, Task::Place(Box::new(hosted)));
            handle
        });
        Shards::from(handles.collect::<Vec<_>>())
    }
}
