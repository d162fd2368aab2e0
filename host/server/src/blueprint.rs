//! Loading the configured pipeline: each plugin's bytes, from the plugin folder
//! or, failing that, from those built in.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use presence_sandbox::{Blueprint, Engine, Limits, Plugin, Stage};

use crate::config::{Config, Grant};

/// The default components, built from `plugins/` and committed in `plugins/dist`.
const BUILT_IN: [(&str, &[u8]); 4] = [
    (
        "blocklist",
        include_bytes!("../../../plugins/dist/blocklist.wasm"),
    ),
    (
        "contacts",
        include_bytes!("../../../plugins/dist/contacts.wasm"),
    ),
    (
        "groups",
        include_bytes!("../../../plugins/dist/groups.wasm"),
    ),
    (
        "redact",
        include_bytes!("../../../plugins/dist/redact.wasm"),
    ),
];

/// Loads pipelines, and compiles a plugin only when its bytes are new.
pub(crate) struct Loader {
    engine: Engine,
    compiled: Mutex<HashMap<String, (Vec<u8>, Arc<Plugin>)>>,
}

impl Loader {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            engine: Engine::new()?,
            compiled: Mutex::default(),
        })
    }

    /// Loads the pipeline that a configuration names. Without `clock`, calls
    /// are limited by fuel alone. With the pipeline comes a text that differs
    /// whenever the pipeline does.
    pub(crate) fn load(&self, config: &Config, clock: bool) -> anyhow::Result<(Blueprint, String)> {
        let mut stages = Vec::new();
        let mut fingerprint = format!("{:?}", config.engine);
        for stage in &config.pipeline {
            let plugin = self
                .plugin(&config.plugins.dir, &stage.plugin)
                .with_context(|| format!("{}.wasm can't be used", stage.plugin))?;
            fingerprint += &format!("{stage:?}{:p}", Arc::as_ptr(&plugin));
            stages.push(Stage {
                plugin,
                config: stage.config.clone(),
                widen_granted: stage.grants.contains(&Grant::Widen),
            });
        }
        let limits = Limits {
            fuel: config.engine.fuel,
            memory_bytes_max: config.engine.memory_bytes_max,
            deadline_ms: clock.then_some(config.engine.deadline_ms),
        };
        Ok((
            Blueprint::prepare(&self.engine, stages, limits)?,
            fingerprint,
        ))
    }

    /// All that is wrong with the files that a configuration names or watches.
    pub(crate) fn problems(&self, config: &Config) -> Vec<anyhow::Error> {
        let dir = &config.plugins.dir;
        let mut names: Vec<_> = config
            .pipeline
            .iter()
            .map(|stage| stage.plugin.clone())
            .collect();
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "wasm")
            {
                names.extend(
                    path.file_stem()
                        .map(|name| name.to_string_lossy().into_owned()),
                );
            }
        }
        names.sort_unstable();
        names.dedup();
        let problem = |name: &String| {
            let loaded = self.plugin(dir, name);
            loaded
                .with_context(|| format!("{name}.wasm can't be used"))
                .err()
        };
        names.iter().filter_map(problem).collect()
    }

    fn plugin(&self, dir: &Path, name: &str) -> anyhow::Result<Arc<Plugin>> {
        let path = dir.join(format!("{name}.wasm"));
        let mut compiled = self
            .compiled
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            // A deleted file never brings back a default behind the operator's back.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if let Some((_, plugin)) = compiled.get(name) {
                    return Ok(Arc::clone(plugin));
                }
                let built_in = BUILT_IN.iter().find(|(built_in, _)| *built_in == name);
                let (_, bytes) = built_in.with_context(|| {
                    let names = BUILT_IN.map(|(name, _)| name).join(", ");
                    format!(
                        "{} does not exist, and built in are only {names}",
                        path.display()
                    )
                })?;
                bytes.to_vec()
            }
            Err(error) => {
                return Err(error).with_context(|| format!("can't read {}", path.display()));
            }
        };
        if let Some((known, plugin)) = compiled.get(name)
            && *known == bytes
        {
            return Ok(Arc::clone(plugin));
        }
        let plugin = Arc::new(Plugin::load(&self.engine, name, &bytes)?);
        compiled.insert(name.into(), (bytes, Arc::clone(&plugin)));
        Ok(plugin)
    }
}
