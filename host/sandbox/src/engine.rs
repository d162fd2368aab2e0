//! The engine that compiles and runs components, and the clock that ends calls at their deadline.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use wasmtime::Config;
use wasmtime::component::Component;

use crate::LoadError;
use crate::artefacts::Artefacts;
use crate::error::one_line;
use crate::pause::Ticks;

/// Compiles and runs components. Clones share one engine.
#[derive(Clone)]
pub struct Engine {
    pub(crate) wasmtime: wasmtime::Engine,
    pub(crate) ticks: Ticks,
    artefacts: Option<Arc<Artefacts>>,
    _ticker: Arc<EpochTicker>,
}

impl Engine {
    /// An engine with its clock running.
    ///
    /// # Errors
    /// [`LoadError::Engine`] where this machine can't run one.
    pub fn new() -> Result<Self, LoadError> {
        Self::with(None)
    }

    /// As [`new`](Self::new), with a cache of compiled code in a folder that exists. A component is
    /// taken from the cache if the same bytes were compiled before with the same key, which is a
    /// secret of the node's user. A file that wasn't written with this key is never run.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_cache(folder: &Path, key: &[u8]) -> Result<Self, LoadError> {
        Self::with(Some(Artefacts::new(folder, key).into()))
    }

    /// How often a component was taken from the cache instead of compiled.
    pub fn cache_hits(&self) -> u64 {
        self.count(|artefacts| &artefacts.hits)
    }

    /// How often a file in the cache was refused and replaced, since it isn't what was written
    /// there.
    pub fn cache_refusals(&self) -> u64 {
        self.count(|artefacts| &artefacts.refused)
    }

    /// Compiles a component, or takes it from the cache.
    pub(crate) fn component(&self, bytes: &[u8]) -> wasmtime::Result<Component> {
        match &self.artefacts {
            Some(artefacts) => artefacts.component(&self.wasmtime, bytes),
            None => Component::new(&self.wasmtime, bytes),
        }
    }

    fn count(&self, of: fn(&Artefacts) -> &AtomicU64) -> u64 {
        let artefacts = self.artefacts.as_deref();
        artefacts.map_or(0, |artefacts| of(artefacts).load(Ordering::Relaxed))
    }

    fn with(artefacts: Option<Arc<Artefacts>>) -> Result<Self, LoadError> {
        let mut config = Config::new();
        config
            .wasm_component_model(true)
            .consume_fuel(true)
            .epoch_interruption(true)
            // An error is reported in one line, which names only the function that trapped.
            .wasm_backtrace_max_frames(Some(NonZeroUsize::MIN));
        let engine = wasmtime::Engine::new(&config);
        let wasmtime = engine.map_err(|error| LoadError::Engine(one_line(error)))?;
        let stopped = Arc::new(AtomicBool::new(false));
        let ticks = Ticks::default();
        let (engine, clock, stop) = (wasmtime.clone(), ticks.clone(), Arc::clone(&stopped));
        let ticker = EpochTicker {
            stopped,
            ticks: ticks.clone(),
        };
        std::thread::Builder::new()
            .name("epochs".into())
            .spawn(move || clock.run(&engine, &stop))
            .map_err(|error| LoadError::Engine(error.to_string()))?;
        Ok(Self {
            wasmtime,
            ticks,
            artefacts,
            _ticker: Arc::new(ticker),
        })
    }
}

/// Stops the clock when the last clone of the engine is dropped.
struct EpochTicker {
    stopped: Arc<AtomicBool>,
    ticks: Ticks,
}

impl Drop for EpochTicker {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.ticks.wake();
    }
}
