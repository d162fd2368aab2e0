//! The health of a stage's plugin: its circuit breaker, and counters of its calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::breaker::{Breaker, LastFailure};
use crate::latency::{Histogram, Latency};

/// The health of a stage's plugin, over all workers.
#[derive(Debug, Default)]
pub struct PluginHealth {
    pub(crate) breaker: Breaker,
    /// The counters of its calls. They go on when the plugin is configured anew or replaced.
    pub(crate) calls: Arc<Calls>,
    /// Whether the last good generation has taken over. It doesn't hand back.
    pub(crate) replaced: AtomicBool,
}

/// Counters of a plugin's calls.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    pub(crate) failures: AtomicU64,
    pub(crate) latency: Latency,
    /// The fuel of the calls whose time is measured.
    pub(crate) fuel: AtomicU64,
}

impl PluginHealth {
    /// The health of a stage that replaces another one and does something else: the counters go on,
    /// and the circuit breaker starts anew.
    pub(crate) fn with_counters_of(before: &Self) -> Self {
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

    /// The fuel that the calls in [`Self::latency`] used in all.
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
