//! Stages and pipelines of the components in `plugins/dist`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};

use presence_sandbox::{
    Blueprint, Engine, Limits, LoadError, OnFailure, Pipeline, Plugin, Quarantine, Stage,
};
use serde_json::{Value, json};

/// The limits of tests that need no others. There is no deadline.
pub(crate) const LIMITS: Limits = Limits {
    fuel: 2_000_000,
    memory_bytes_max: 4 << 20,
    deadline_ms: None,
    quarantine: Quarantine {
        users: 3,
        window_ms: 10_000,
        ms: 1_000,
    },
    metadata: presence_core::metadata::Limits {
        keys: 256,
        bytes: 16_384,
        depth: 16,
    },
};

pub(crate) static ENGINE: LazyLock<Engine> = LazyLock::new(|| Engine::new().unwrap());

/// A default plugin or a fixture, without a configuration, and with all grants.
pub(crate) fn stage(file: &str) -> Stage {
    configured(file, json!({}))
}

/// As [`stage`], with a configuration.
pub(crate) fn configured(file: &str, config: Value) -> Stage {
    Stage::new(plugin(file), config, true, None)
}

/// A stage named `rule`, with any plugin.
pub(crate) fn rule(file: &str, config: Value, on_failure: Option<OnFailure>) -> Stage {
    Stage::new(loaded("rule", &bytes(file)), config, true, on_failure)
}

/// A stage named `rule`, with a component that a test has made.
pub(crate) fn made(bytes: &[u8]) -> Stage {
    Stage::new(loaded("rule", bytes), json!({}), true, None)
}

/// Instances of a chain, within the usual limits.
pub(crate) fn pipeline(stages: impl IntoIterator<Item = Stage>) -> Pipeline {
    within(LIMITS, stages)
}

/// Instances of a chain, within these limits.
pub(crate) fn within(limits: Limits, stages: impl IntoIterator<Item = Stage>) -> Pipeline {
    blueprint(limits, stages, None).instantiate().unwrap()
}

/// A checked chain.
pub(crate) fn blueprint(
    limits: Limits,
    stages: impl IntoIterator<Item = Stage>,
    before: Option<&Blueprint>,
) -> Blueprint {
    match Blueprint::prepare(stages.into_iter().collect(), limits, before) {
        Ok(blueprint) => blueprint,
        Err(problems) => panic!("{problems:#?}"),
    }
}

/// The problems of a chain.
pub(crate) fn problems(limits: Limits, stages: impl IntoIterator<Item = Stage>) -> Vec<LoadError> {
    match Blueprint::prepare(stages.into_iter().collect(), limits, None) {
        Ok(_) => panic!("nothing is wrong with it"),
        Err(problems) => problems.into_iter().map(|(_, problem)| problem).collect(),
    }
}

/// A plugin, loaded under a name of the test's choice.
pub(crate) fn loaded(name: &str, bytes: &[u8]) -> Arc<Plugin> {
    Arc::new(Plugin::load(&ENGINE, name, bytes).unwrap())
}

/// The file of a default plugin, or of a fixture.
pub(crate) fn bytes(file: &str) -> Vec<u8> {
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/dist");
    let name = format!("{file}.wasm");
    let files = [dist.join(&name), dist.join("fixtures").join(&name)];
    let found = files.iter().find_map(|path| std::fs::read(path).ok());
    found.unwrap_or_else(|| panic!("no {name} in {dist:?}: build it with `cargo xtask plugins`"))
}

/// A plugin under its own name. Each is compiled only once, since that takes long.
fn plugin(file: &str) -> Arc<Plugin> {
    static COMPILED: LazyLock<Mutex<HashMap<String, Arc<Plugin>>>> = LazyLock::new(Mutex::default);
    let mut compiled = COMPILED.lock().unwrap();
    let entry = compiled.entry(file.to_owned());
    Arc::clone(entry.or_insert_with(|| loaded(file, &bytes(file))))
}
