//! The only place that loads native code from bytes, instead of compiling it.

use wasmtime::Engine;
use wasmtime::component::Component;

/// Loads a compiled component. The bytes must be exactly what [`Component::serialize`] returned:
/// `artefacts` has verified this by a keyed digest.
#[expect(
    unsafe_code,
    reason = "wasmtime has no other way to take a component that was compiled before; its \
              `cache` feature calls this too, and verifies nothing"
)]
pub(crate) fn component(engine: &Engine, artefact: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: the bytes come from `Component::serialize` in a process of this user who
    // holds the key of their digest, and nobody can change them here: they are in memory.
    unsafe { Component::deserialize(engine, artefact) }
}
