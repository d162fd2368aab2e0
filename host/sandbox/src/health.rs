//! How a stage's plugin fares.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::breaker::Breaker;

/// How a stage's plugin fares, in all workers together.
#[derive(Debug, Default)]
pub struct Health {
    pub(crate) breaker: Breaker,
    /// Whether the last good generation has taken over, which it does for good.
    pub(crate) replaced: AtomicBool,
}

impl Health {
    /// Whether the plugin is in quarantine.
    pub fn in_quarantine(&self) -> bool {
        self.breaker.is_open()
    }

    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }
}
