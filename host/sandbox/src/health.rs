//! How a stage's plugin fares.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::breaker::Breaker;

/// How a stage's plugin fares, in all workers together.
#[derive(Debug, Default)]
pub struct Health {
    pub(crate) breaker: Breaker,
    /// How many of its calls have failed, also before it was last configured or replaced.
    pub(crate) failures: Arc<AtomicU64>,
    /// Whether the last good generation has taken over, which it does for good.
    pub(crate) replaced: AtomicBool,
}

impl Health {
    /// Of a stage that takes the place of another and does something else: what is counted
    /// goes on.
    pub(crate) fn follow(before: &Self) -> Self {
        Self {
            failures: Arc::clone(&before.failures),
            ..Self::default()
        }
    }

    /// How many calls of the plugin have failed since its name came into the pipeline.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Whether the plugin is in quarantine.
    pub fn in_quarantine(&self) -> bool {
        self.breaker.is_open()
    }

    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }
}
