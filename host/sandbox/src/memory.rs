//! The memory of one instance: all its linear memories and tables together.

use wasmtime::{ResourceLimiter, Result};

/// What an element of a table takes.
const ELEMENT_BYTES: usize = size_of::<usize>();

/// How much memory an instance may still have.
pub(crate) struct Memory {
    left: usize,
    /// Set once the instance was refused some: it may well fail of that.
    pub(crate) refused: bool,
}

impl Memory {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            left: bytes_max,
            refused: false,
        }
    }

    /// How many bytes it may still have. They never grow again: what an instance
    /// has taken it keeps.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    fn take(&mut self, bytes: usize) -> bool {
        let left = self.left.checked_sub(bytes);
        self.left = left.unwrap_or(self.left);
        self.refused |= left.is_none();
        left.is_some()
    }
}

impl ResourceLimiter for Memory {
    fn memory_growing(&mut self, now: usize, then: usize, max: Option<usize>) -> Result<bool> {
        Ok(max.is_none_or(|max| then <= max) && self.take(then - now))
    }

    fn table_growing(&mut self, now: usize, then: usize, max: Option<usize>) -> Result<bool> {
        let bytes = (then - now).saturating_mul(ELEMENT_BYTES);
        Ok(max.is_none_or(|max| then <= max) && self.take(bytes))
    }
}
