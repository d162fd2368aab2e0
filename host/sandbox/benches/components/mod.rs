//! Pipelines of the committed components, as the program runs them.

use std::path::Path;
use std::sync::Arc;

use presence_sandbox::{Blueprint, Engine, Limits, Plugin, Quarantine, Stage};
use serde_json::Value;

// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const LIMITS: Limits = Limits {
    fuel: 10_000_000,
    memory_bytes_max: 64 << 20,
    // Kept, and long: on a busy machine a call that is measured mustn't be ended.
    deadline_ms: Some(60_000),
    quarantine: Quarantine {
        users: 5,
        window_ms: 60_000,
        ms: 60_000,
    },
    metadata: presence_core::metadata::Limits {
        keys: 256,
        bytes: 16_384,
        depth: 16,
    },
};

/// A pipeline of these plugins, each with its configuration.
pub(crate) fn blueprint(engine: &Engine, chain: &[(&str, &Value)]) -> Blueprint {
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/dist");
    let stages = chain.iter().map(|(name, config)| {
        let bytes = std::fs::read(dist.join(format!("{name}.wasm"))).expect("a built plugin");
        let plugin = Plugin::load(engine, name, &bytes).expect("a plugin");
        Stage::new(Arc::new(plugin), (*config).clone(), true, None)
    });
    Blueprint::prepare(stages.collect(), LIMITS, None).expect("a pipeline")
}
