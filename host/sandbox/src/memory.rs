//! The memory of one instance: its linear memories and tables together, and what the host needs for
//! its declarations. The number of memories is limited as well, since each reserves address space,
//! however small it is.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use wasmtime::{ResourceLimiter, Result};

use crate::bounds;

/// The size of an element of a table.
const ELEMENT_BYTES: usize = size_of::<usize>();

/// An instance that has grown beyond this by its calls is replaced by a new one. Above this size,
/// the garbage collector of a JavaScript engine begins to run, which takes more than the fuel of a
/// call.
const USED_UP_BYTES: usize = 48 << 20;

/// How much memory the instances of several plugins may have together. Clones share one budget.
#[derive(Clone, Debug, Default)]
pub struct MemoryBudget(Arc<Budget>);

#[derive(Default)]
struct Budget {
    /// 0: no limit.
    bytes_max: AtomicUsize,
    used: AtomicUsize,
    refusals: AtomicU64,
    on_refusal: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget")
            .field("bytes_max", &self.bytes_max)
            .field("used", &self.used)
            .finish_non_exhaustive()
    }
}

impl MemoryBudget {
    /// Changes the limit, in bytes. 0: no limit. Instances keep what they have.
    pub fn change(&self, bytes_max: usize) {
        self.0.bytes_max.store(bytes_max, Ordering::Relaxed);
    }

    /// The limit in bytes. 0: no limit.
    pub fn bytes_max(&self) -> usize {
        self.0.bytes_max.load(Ordering::Relaxed)
    }

    /// How many bytes are in use.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// How often this limit refused memory to an instance.
    pub fn refusals(&self) -> u64 {
        self.0.refusals.load(Ordering::Relaxed)
    }

    /// Sets what is called at each refusal. Only the first call of this method counts.
    pub fn on_refusal(&self, callback: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.on_refusal.set(Box::new(callback));
    }

    fn take(&self, bytes: usize) -> bool {
        let max = match self.bytes_max() {
            0 => usize::MAX,
            max => max,
        };
        let more = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= max);
        let relaxed = Ordering::Relaxed;
        let taken = self.0.used.fetch_update(relaxed, relaxed, more).is_ok();
        if !taken {
            self.0.refusals.fetch_add(1, relaxed);
            if let Some(callback) = self.0.on_refusal.get() {
                callback();
            }
        }
        taken
    }

    fn give_back(&self, bytes: usize) {
        self.0.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The memory of one instance, and how much it may still take.
pub(crate) struct Memory {
    /// The budget that it shares with other instances.
    budget: MemoryBudget,
    bytes_max: usize,
    left: usize,
    /// How many bytes it had before its first call.
    baseline_bytes: usize,
    /// Whether its own limit has refused it memory: a later failure may come from this.
    pub(crate) refused: bool,
    /// The limit of the shared budget in bytes, if this has refused it memory.
    pub(crate) refused_by_budget: Option<usize>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.budget.give_back(self.taken());
    }
}

impl Memory {
    pub(crate) fn new(bytes_max: usize, budget: &MemoryBudget) -> Self {
        Self {
            budget: budget.clone(),
            bytes_max,
            left: bytes_max,
            baseline_bytes: 0,
            refused: false,
            refused_by_budget: None,
        }
    }

    /// How many bytes the instance has. It never gives memory back.
    pub(crate) fn taken(&self) -> usize {
        self.bytes_max - self.left
    }

    /// Takes what the host needs for the instance besides its memories and tables. Returns whether
    /// the limits allow it.
    pub(crate) fn take_fixed(&mut self, bytes: usize) -> bool {
        self.take(bytes)
    }

    /// Notes how many bytes the instance has before its first call.
    pub(crate) fn mark_baseline(&mut self) {
        self.baseline_bytes = self.taken();
    }

    /// Whether its calls have used up so much memory that a new instance should replace it before a
    /// call fails: some languages keep garbage, and some leak.
    pub(crate) fn is_used_up(&self) -> bool {
        let taken = self.taken();
        taken > (self.bytes_max / 4 * 3).min(USED_UP_BYTES) && taken / 2 > self.baseline_bytes
    }

    fn take(&mut self, bytes: usize) -> bool {
        let Some(left) = self.left.checked_sub(bytes) else {
            self.refused = true;
            return false;
        };
        if !self.budget.take(bytes) {
            self.refused_by_budget = Some(self.budget.bytes_max());
            return false;
        }
        self.left = left;
        true
    }
}

impl ResourceLimiter for Memory {
    fn instances(&self) -> usize {
        bounds::INSTANCES_MAX
    }

    fn memories(&self) -> usize {
        bounds::MEMORIES_MAX
    }

    fn tables(&self) -> usize {
        bounds::TABLES_MAX
    }

    fn memory_growing(&mut self, now: usize, then: usize, max: Option<usize>) -> Result<bool> {
        Ok(max.is_none_or(|max| then <= max) && self.take(then - now))
    }

    fn table_growing(&mut self, now: usize, then: usize, max: Option<usize>) -> Result<bool> {
        let bytes = (then - now).saturating_mul(ELEMENT_BYTES);
        Ok(max.is_none_or(|max| then <= max) && self.take(bytes))
    }
}
