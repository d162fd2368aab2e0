//! A tenant's share of the threads: how much of their time it gets beside others, and how much at
//! most.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use presence_core::quota::{Quota, Rate};

use crate::tenant::quotas::Exceeded;

/// For how long a tenant's plugins are taken for slow, after a call that was, in nanoseconds.
const SLOW_NS: u64 = 10_000_000_000;

/// Until when they are taken for slow while nothing is known of them.
const UNKNOWN_NS: u64 = u64::MAX;

/// A tenant's share of the threads.
#[derive(Debug)]
pub(crate) struct ThreadShare {
    /// How many parts of the time it gets, where others get one.
    weight: AtomicU64,
    /// How much time it may use, in microseconds.
    cpu: Rate,
    /// Until when its plugins are taken for slow: for ever, until it has had a turn that wasn't.
    slow_until_ns: AtomicU64,
    /// On how many threads it waits, since it has used that up.
    resting: AtomicUsize,
    exceeded: Arc<Exceeded>,
}

impl Default for ThreadShare {
    fn default() -> Self {
        Self::new(1, Rate::default(), Arc::default())
    }
}

impl ThreadShare {
    /// So many parts, and no more than this time.
    pub(crate) fn new(weight: u64, cpu: Rate, exceeded: Arc<Exceeded>) -> Self {
        Self {
            weight: weight.into(),
            cpu,
            slow_until_ns: AtomicU64::new(UNKNOWN_NS),
            resting: AtomicUsize::new(0),
            exceeded,
        }
    }

    /// It gets so many parts from now on.
    pub(crate) fn change_weight(&self, weight: u64) {
        self.weight.store(weight, Ordering::Relaxed);
    }

    /// It may use any time: it is to end.
    pub(crate) fn lift(&self) {
        self.cpu.change(0, 0);
    }

    /// Whether it waits now, since it has used up its time.
    pub(crate) fn is_resting(&self) -> bool {
        self.resting.load(Ordering::Relaxed) > 0
    }

    /// How much time it may use, in milliseconds a second.
    pub(crate) fn cpu_ms_per_s(&self) -> u64 {
        self.cpu.per_s() / 1_000
    }

    pub(super) fn weight(&self) -> i64 {
        let weight = self.weight.load(Ordering::Relaxed).max(1);
        i64::try_from(weight).unwrap_or(i64::MAX)
    }

    /// When it may go on.
    pub(super) fn free_at_ns(&self) -> u64 {
        self.cpu.free_at_ns()
    }

    pub(super) fn spend(&self, now_ns: u64, us: u64) {
        self.cpu.spend(now_ns, us);
    }

    /// A call of its plugins has taken long: the next ones may.
    pub(super) fn note_slow(&self, now_ns: u64) {
        let until_ns = now_ns.saturating_add(SLOW_NS);
        self.slow_until_ns.store(until_ns, Ordering::Relaxed);
    }

    /// Whether it has had no turn yet that shows how long its calls take.
    pub(super) fn is_unknown(&self) -> bool {
        self.slow_until_ns.load(Ordering::Relaxed) == UNKNOWN_NS
    }

    /// It has had a turn with inputs that wasn't slow.
    pub(super) fn note_quick(&self) {
        let relaxed = Ordering::Relaxed;
        // One that is known to be slow stays so.
        let _ = self
            .slow_until_ns
            .compare_exchange(UNKNOWN_NS, 0, relaxed, relaxed);
    }

    /// Whether calls of its plugins may take long.
    pub(super) fn is_slow(&self, now_ns: u64) -> bool {
        now_ns < self.slow_until_ns.load(Ordering::Relaxed)
    }

    /// It waits on a thread.
    pub(super) fn rest(&self) {
        self.resting.fetch_add(1, Ordering::Relaxed);
        let ms = self.cpu_ms_per_s();
        let error = format!(
            "{ms} ms of processor time a second are used up ([limits] cpu_ms_per_s): the tenant's \
             messages wait"
        );
        self.exceeded.note(Quota::Cpu, &error);
    }

    /// It goes on, on a thread.
    pub(super) fn wake(&self) {
        self.resting.fetch_sub(1, Ordering::Relaxed);
    }
}
