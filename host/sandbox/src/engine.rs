//! The engine that compiles and runs components, and the clock that ends calls.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wasmtime::{Cache, CacheConfig, Config};

use crate::LoadError;
use crate::error::one_line;

/// How often the clock ticks. A deadline is kept to within one tick.
pub(crate) const TICK_MS: u64 = 10;

/// Compiles and runs components. Cloning it shares it.
#[derive(Clone)]
pub struct Engine {
    pub(crate) wasmtime: wasmtime::Engine,
    cache: Option<Cache>,
    _ticker: Arc<Ticker>,
}

impl Engine {
    /// An engine with its clock running.
    ///
    /// # Errors
    /// [`LoadError::Engine`] where this machine can't run one.
    pub fn new() -> Result<Self, LoadError> {
        Self::with(None)
    }

    /// As [`new`](Self::new). What it compiles is kept in a folder, and taken from there
    /// when the same bytes are loaded again. Whoever can write there can have the host run
    /// any code.
    ///
    /// # Errors
    /// [`LoadError::Engine`], also when the folder can't be used.
    pub fn caching(folder: &Path) -> Result<Self, LoadError> {
        let mut config = CacheConfig::new();
        config.with_directory(folder);
        let cache = Cache::new(config);
        Self::with(Some(
            cache.map_err(|error| LoadError::Engine(one_line(error)))?,
        ))
    }

    /// How often something was taken from the folder rather than compiled.
    pub fn cache_hits(&self) -> usize {
        self.cache.as_ref().map_or(0, Cache::cache_hits)
    }

    fn with(cache: Option<Cache>) -> Result<Self, LoadError> {
        let mut config = Config::new();
        config
            .cache(cache.clone())
            .wasm_component_model(true)
            .consume_fuel(true)
            .epoch_interruption(true)
            // A failure is said in one line, and this takes long.
            .wasm_backtrace_max_frames(None);
        let engine = wasmtime::Engine::new(&config);
        let wasmtime = engine.map_err(|error| LoadError::Engine(one_line(error)))?;
        let stopped = Arc::new(AtomicBool::new(false));
        let (engine, stop) = (wasmtime.clone(), Arc::clone(&stopped));
        // A thread of its own: a component that spins must not keep it from ticking.
        std::thread::Builder::new()
            .name("epochs".into())
            .spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(TICK_MS));
                    engine.increment_epoch();
                }
            })
            .map_err(|error| LoadError::Engine(error.to_string()))?;
        Ok(Self {
            wasmtime,
            cache,
            _ticker: Arc::new(Ticker(stopped)),
        })
    }
}

/// Stops the clock with the last engine that shares it.
struct Ticker(Arc<AtomicBool>);

impl Drop for Ticker {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
