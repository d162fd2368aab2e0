//! A tenant's share of the threads: its weight among other tenants, and its limit on processor
//! time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use presence_core::quota::{Quota, Rate};

use crate::tenant::quotas::ExceededLog;

/// How long a tenant's plugins count as slow after a slow call, in nanoseconds.
const SLOW_NS: u64 = 10_000_000_000;

/// The value of `slow_until_ns` while nothing is known about the plugins' speed.
const UNKNOWN_NS: u64 = u64::MAX;

/// A tenant's share of the threads.
#[derive(Debug)]
pub(crate) struct ThreadShare {
    /// How much of the time it gets, as a multiple of a tenant with weight 1.
    weight: AtomicU64,
    /// Its limit on processor time, in microseconds per second.
    cpu: Rate,
    /// Until when its plugins count as slow. At first they do without a limit, until a turn has
    /// shown that they aren't.
    slow_until_ns: AtomicU64,
    /// On how many threads it rests, because its processor time is used up.
    resting: AtomicUsize,
    exceeded: Arc<ExceededLog>,
}

impl Default for ThreadShare {
    fn default() -> Self {
        Self::new(1, Rate::default(), Arc::default())
    }
}

impl ThreadShare {
    /// With this weight, and this limit on processor time.
    pub(crate) fn new(weight: u64, cpu: Rate, exceeded: Arc<ExceededLog>) -> Self {
        Self {
            weight: weight.into(),
            cpu,
            slow_until_ns: AtomicU64::new(UNKNOWN_NS),
            resting: AtomicUsize::new(0),
            exceeded,
        }
    }

    /// Changes its weight.
    pub(crate) fn change_weight(&self, weight: u64) {
        self.weight.store(weight, Ordering::Relaxed);
    }

    /// Removes the limit on processor time: the tenant is about to end.
    pub(crate) fn remove_cpu_limit(&self) {
        self.cpu.change(0, 0);
    }

    /// Whether it rests now, because its processor time is used up.
    pub(crate) fn is_resting(&self) -> bool {
        self.resting.load(Ordering::Relaxed) > 0
    }

    /// Its limit on processor time, in milliseconds per second; 0 if there is none.
    pub(crate) fn cpu_ms_per_s(&self) -> u64 {
        self.cpu.per_s() / 1_000
    }

    pub(super) fn weight(&self) -> i64 {
        let weight = self.weight.load(Ordering::Relaxed).max(1);
        i64::try_from(weight).unwrap_or(i64::MAX)
    }

    /// From when on it may use processor time again.
    pub(super) fn free_at_ns(&self) -> u64 {
        self.cpu.free_at_ns()
    }

    pub(super) fn spend(&self, now_ns: u64, us: u64) {
        self.cpu.spend(now_ns, us);
    }

    /// Notes that a call of its plugins was slow: the next ones may be slow, too.
    pub(super) fn note_slow(&self, now_ns: u64) {
        let until_ns = now_ns.saturating_add(SLOW_NS);
        self.slow_until_ns.store(until_ns, Ordering::Relaxed);
    }

    /// Whether no turn has shown yet how long its calls take.
    pub(super) fn is_unknown(&self) -> bool {
        self.slow_until_ns.load(Ordering::Relaxed) == UNKNOWN_NS
    }

    /// Notes a turn that called its rules and wasn't slow.
    pub(super) fn note_quick(&self) {
        let relaxed = Ordering::Relaxed;
        // Plugins that are known to be slow stay so until the time is over.
        let _ = self
            .slow_until_ns
            .compare_exchange(UNKNOWN_NS, 0, relaxed, relaxed);
    }

    /// Whether calls of its plugins may be slow.
    pub(super) fn is_slow(&self, now_ns: u64) -> bool {
        now_ns < self.slow_until_ns.load(Ordering::Relaxed)
    }

    /// Notes that it rests on a thread.
    pub(super) fn rest(&self) {
        self.resting.fetch_add(1, Ordering::Relaxed);
        let ms = self.cpu_ms_per_s();
        let error = format!(
            "{ms} ms of processor time a second are used up ([limits] cpu_ms_per_s): the tenant's \
             messages wait"
        );
        self.exceeded.note(Quota::Cpu, &error);
    }

    /// Notes that it continues on a thread.
    pub(super) fn wake(&self) {
        self.resting.fetch_sub(1, Ordering::Relaxed);
    }
}
