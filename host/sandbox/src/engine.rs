//! The engine that compiles and runs components, and the clock that ends calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wasmtime::Config;

use crate::LoadError;

/// How often the clock ticks. A deadline is kept to within one tick.
pub(crate) const TICK_MS: u64 = 10;

/// Compiles and runs components. Cloning it shares it.
#[derive(Clone)]
pub struct Engine {
    pub(crate) wasmtime: wasmtime::Engine,
    _ticker: Arc<Ticker>,
}

impl Engine {
    /// An engine with its clock running.
    ///
    /// # Errors
    /// [`LoadError::Engine`] where this machine can't run one.
    pub fn new() -> Result<Self, LoadError> {
        let mut config = Config::new();
        config
            .wasm_component_model(true)
            .consume_fuel(true)
            .epoch_interruption(true)
            // A failure is said in one line, and this takes long.
            .wasm_backtrace_max_frames(None);
        let engine = wasmtime::Engine::new(&config);
        let wasmtime = engine.map_err(|error| LoadError::Engine(format!("{error:#}")))?;
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
