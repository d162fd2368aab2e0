//! How a stage's plugin fares.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::breaker::{Breaker, LastFailure};
use crate::latency::{Histogram, Latency};

/// How a stage's plugin fares, in all workers together.
#[derive(Debug, Default)]
pub struct PluginHealth {
    pub(crate) breaker: Breaker,
    /// What is counted of its calls, also before it was last configured or replaced.
    pub(crate) calls: Arc<Calls>,
    /// Whether the last good generation has taken over, which it does for good.
    pub(crate) replaced: AtomicBool,
}

/// What is counted of a plugin's calls.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    pub(crate) failures: AtomicU64,
    pub(crate) latency: Latency,
    /// What the calls of which the time is measured took of fuel.
    pub(crate) fuel: AtomicU64,
}

impl PluginHealth {
    /// Of a stage that takes the place of another and does something else: what is counted
    /// goes on.
    pub(crate) fn follow(before: &Self) -> Self {
        Self {
            calls: Arc::clone(&before.calls),
            ..Self::default()
        }
    }

    /// How many calls of the plugin have failed since its name came into the pipeline.
    pub fn failures(&self) -> u64 {
        self.calls.failures.load(Ordering::Relaxed)
    }

    /// Its last failure, if there has been one since it was configured.
    pub fn last_failure(&self) -> Option<LastFailure> {
        self.breaker.last_failure()
    }

    /// How long its calls take.
    pub fn latency(&self) -> Histogram {
        self.calls.latency.histogram()
    }

    /// What the calls in [`Self::latency`] took of fuel, together.
    pub fn fuel(&self) -> u64 {
        self.calls.fuel.load(Ordering::Relaxed)
    }

    /// Whether the plugin is in quarantine.
    pub fn in_quarantine(&self) -> bool {
        self.breaker.is_open()
    }

    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }
}
