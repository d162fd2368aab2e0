//! The memory of one instance: all its linear memories and tables together, and what
//! the host holds for what it declares. Their number is bounded as well: each memory
//! reserves address space, however small it is.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use wasmtime::{ResourceLimiter, Result};

use crate::bounds;

/// What an element of a table takes.
const ELEMENT_BYTES: usize = size_of::<usize>();

/// An instance that has come to hold so much by its calls is begun afresh. A
/// JavaScript engine's collector sets in beyond that, and takes more than a call's
/// fuel.
const USED_UP_BYTES: usize = 48 << 20;

/// How much memory the instances of several plugins may have together. Cloning it shares it.
#[derive(Clone, Debug, Default)]
pub struct MemoryBudget(Arc<Budget>);

#[derive(Default)]
struct Budget {
    /// 0 without a limit.
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
    /// From now on they may have so many bytes, or as many as they take, for 0. What they have
    /// they keep.
    pub fn change(&self, bytes_max: usize) {
        self.0.bytes_max.store(bytes_max, Ordering::Relaxed);
    }

    /// How many bytes they may have; 0 for as many as they take.
    pub fn bytes_max(&self) -> usize {
        self.0.bytes_max.load(Ordering::Relaxed)
    }

    /// How many bytes they have.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// How often one was refused memory for that.
    pub fn refusals(&self) -> u64 {
        self.0.refusals.load(Ordering::Relaxed)
    }

    /// What is to be done each time that one is refused memory. It is said once.
    pub fn on_refusal(&self, tell: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.on_refusal.set(Box::new(tell));
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
            if let Some(tell) = self.0.on_refusal.get() {
                tell();
            }
        }
        taken
    }

    fn give_back(&self, bytes: usize) {
        self.0.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// How much memory an instance may still have.
pub(crate) struct Memory {
    /// What it has together with others.
    join_problems: MemoryBudget,
    bytes_max: usize,
    left: usize,
    /// What it held before its first call.
    at_rest: usize,
    /// Set once the instance was refused some: it may well fail of that.
    pub(crate) refused: bool,
    /// Set once it was refused some that others have: how many bytes all may have.
    pub(crate) refused_together: Option<usize>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.join_problems.give_back(self.taken());
    }
}

impl Memory {
    pub(crate) fn new(bytes_max: usize, join_problems: &MemoryBudget) -> Self {
        Self {
            join_problems: join_problems.clone(),
            bytes_max,
            left: bytes_max,
            at_rest: 0,
            refused: false,
            refused_together: None,
        }
    }

    /// How many bytes it has. What an instance has taken it keeps.
    pub(crate) fn taken(&self) -> usize {
        self.bytes_max - self.left
    }

    /// Takes what the host holds for it beside its memories and tables. Says whether
    /// there is so much.
    pub(crate) fn take_fixed(&mut self, bytes: usize) -> bool {
        self.take(bytes)
    }

    /// Notes what an instance holds before its first call.
    pub(crate) fn rest(&mut self) {
        self.at_rest = self.taken();
    }

    /// Whether its calls have left it so little that it had better be begun afresh,
    /// before one fails: some languages keep garbage, and some leak.
    pub(crate) fn is_used_up(&self) -> bool {
        let taken = self.taken();
        taken > (self.bytes_max / 4 * 3).min(USED_UP_BYTES) && taken / 2 > self.at_rest
    }

    fn take(&mut self, bytes: usize) -> bool {
        let Some(left) = self.left.checked_sub(bytes) else {
            self.refused = true;
            return false;
        };
        if !self.join_problems.take(bytes) {
            self.refused_together = Some(self.join_problems.bytes_max());
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
