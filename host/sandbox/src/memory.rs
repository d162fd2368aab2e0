//! The memory of one instance: all its linear memories and tables together, and what
//! the host holds for what it declares. Their number is bounded as well: each memory
//! reserves address space, however small it is.

use wasmtime::{ResourceLimiter, Result};

use crate::bounds;

/// What an element of a table takes.
const ELEMENT_BYTES: usize = size_of::<usize>();

/// An instance that has come to hold so much by its calls is begun afresh. A
/// JavaScript engine's collector sets in beyond that, and takes more than a call's
/// fuel.
const USED_UP_BYTES: usize = 48 << 20;

/// How much memory an instance may still have.
pub(crate) struct Memory {
    bytes_max: usize,
    left: usize,
    /// What it held before its first call.
    at_rest: usize,
    /// Set once the instance was refused some: it may well fail of that.
    pub(crate) refused: bool,
}

impl Memory {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            left: bytes_max,
            at_rest: 0,
            refused: false,
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
        let left = self.left.checked_sub(bytes);
        self.left = left.unwrap_or(self.left);
        self.refused |= left.is_none();
        left.is_some()
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
