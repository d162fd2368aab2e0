//! Loading the configured pipeline: each plugin's bytes, from the plugin folder
//! or, failing that, from those built in.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use presence_sandbox::{Blueprint, Engine, Manifest, Plugin, Stage};

use crate::config::{Config, Grant, Plugins};
use crate::private;

/// The default components, built from `plugins/` and committed in `plugins/dist`.
const BUILT_IN: [(&str, &[u8]); 8] = [
    (
        "blocklist",
        include_bytes!("../../../plugins/dist/blocklist.wasm"),
    ),
    (
        "contacts",
        include_bytes!("../../../plugins/dist/contacts.wasm"),
    ),
    (
        "device-class",
        include_bytes!("../../../plugins/dist/device-class.wasm"),
    ),
    (
        "do-not-disturb",
        include_bytes!("../../../plugins/dist/do-not-disturb.wasm"),
    ),
    (
        "groups",
        include_bytes!("../../../plugins/dist/groups.wasm"),
    ),
    (
        "privacy",
        include_bytes!("../../../plugins/dist/privacy.wasm"),
    ),
    (
        "public",
        include_bytes!("../../../plugins/dist/public.wasm"),
    ),
    (
        "redact",
        include_bytes!("../../../plugins/dist/redact.wasm"),
    ),
];

/// Loads pipelines, and compiles a plugin only when its bytes are new.
pub(crate) struct Loader {
    engine: Engine,
    compiled: Mutex<HashMap<String, Compiled>>,
    /// Plugins that win over the folder's and those built in.
    preferred: HashMap<String, Arc<Plugin>>,
}

/// A plugin as it was last loaded.
struct Compiled {
    bytes: Cow<'static, [u8]>,
    plugin: Arc<Plugin>,
    /// Whether it came from a file, and nobody has been told that it is gone.
    file_is_there: bool,
}

impl Loader {
    /// A loader that keeps what it compiles where the configuration says.
    pub(crate) fn new(plugins: &Plugins) -> anyhow::Result<Self> {
        Ok(Self {
            engine: engine(plugins)?,
            compiled: Mutex::default(),
            preferred: HashMap::new(),
        })
    }

    /// Loads a plugin's file under the name that its manifest gives it.
    ///
    /// # Errors
    /// If it can't be read, or is no plugin.
    pub(crate) fn plugin_file(&self, path: &Path) -> anyhow::Result<Arc<Plugin>> {
        let bytes = std::fs::read(path);
        let bytes = bytes.with_context(|| format!("can't read {}", path.display()))?;
        let place = || format!("{} can't be used", path.display());
        let file = path.file_stem().unwrap_or_default().to_string_lossy();
        let name = Manifest::read(&file, &bytes).with_context(place)?.name;
        let plugin = Plugin::load(&self.engine, &name, &bytes);
        plugin.map(Arc::new).with_context(place)
    }

    /// Whether a pipeline that is configured so has a plugin of this name to load.
    pub(crate) fn has(&self, config: &Config, name: &str) -> bool {
        self.preferred.contains_key(name)
            || file(&config.plugins.dir, name).exists()
            || built_in(name).is_some()
    }

    /// Has a plugin win from now on over what else there is of its name.
    pub(crate) fn prefer(&mut self, plugin: Arc<Plugin>) {
        self.preferred.insert(plugin.name.to_string(), plugin);
    }

    /// Loads the pipeline that a configuration names. Without `clock`, calls
    /// are limited by fuel alone. `running` is what it is to take the place of.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub(crate) fn load(
        &self,
        config: &Config,
        clock: bool,
        running: Option<&Blueprint>,
    ) -> Result<Blueprint, Vec<anyhow::Error>> {
        let mut stages = Vec::new();
        let mut problems = Vec::new();
        for stage in &config.pipeline {
            match self.plugin(&config.plugins.dir, &stage.plugin) {
                Ok(plugin) => {
                    let widen = stage.grants.contains(&Grant::Widen);
                    let wasi = stage.grants.contains(&Grant::Wasi);
                    let config = stage.config.clone();
                    let stage = Stage::new(plugin, config, widen, stage.on_failure);
                    stages.push(stage.with_wasi(wasi));
                }
                Err(problem) => problems.push(problem),
            }
        }
        let limits = config.engine.limits(clock, config.tracker.metadata);
        match Blueprint::prepare(stages, limits, running) {
            Ok(blueprint) if problems.is_empty() => Ok(blueprint),
            Ok(_) => Err(problems),
            Err(more) => {
                problems.extend(more.into_iter().map(anyhow::Error::from));
                Err(problems)
            }
        }
    }

    /// What is wrong with the plugins that lie in the folder and that the
    /// pipeline doesn't name.
    pub(crate) fn problems_beside(&self, config: &Config) -> Vec<anyhow::Error> {
        let files = std::fs::read_dir(&config.plugins.dir);
        let paths = files
            .into_iter()
            .flatten()
            .flatten()
            .map(|file| file.path());
        let names = paths.filter_map(|path| {
            let is_plugin = path.extension().is_some_and(|ending| ending == "wasm");
            is_plugin.then_some(path.file_stem()?.to_string_lossy().into_owned())
        });
        let is_named = |name: &String| config.pipeline.iter().any(|stage| stage.plugin == *name);
        let mut names: Vec<_> = names.filter(|name| !is_named(name)).collect();
        names.sort_unstable();
        let loaded = names
            .iter()
            .map(|name| self.plugin(&config.plugins.dir, name));
        loaded.filter_map(Result::err).collect()
    }

    fn plugin(&self, dir: &Path, name: &str) -> anyhow::Result<Arc<Plugin>> {
        if let Some(plugin) = self.preferred.get(name) {
            return Ok(Arc::clone(plugin));
        }
        let path = file(dir, name);
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let known = compiled.get_mut(name);
        let (bytes, is_file) = match (std::fs::read(&path), &known) {
            (Ok(bytes), _) => (Cow::Owned(bytes), true),
            (Err(error), _) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("can't read {}", path.display()));
            }
            // A deleted file never brings back a default behind the operator's back.
            (Err(_), Some(known)) => (known.bytes.clone(), false),
            (Err(_), None) => (Cow::Borrowed(needed(name, &path)?), false),
        };
        if let Some(known) = known
            && known.bytes == bytes
        {
            if known.file_is_there && !is_file {
                tracing::warn!(
                    "{} is gone: the plugin that it held stays in force until it is replaced",
                    path.display()
                );
            }
            known.file_is_there = is_file;
            return Ok(Arc::clone(&known.plugin));
        }
        let before = self.engine.cache_hits();
        let plugin = Plugin::load(&self.engine, name, &bytes);
        let from_cache = self.engine.cache_hits() > before;
        tracing::debug!(plugin = name, from_cache, "plugin compiled");
        let plugin = Arc::new(plugin.with_context(|| match is_file {
            true => format!("{} can't be used", path.display()),
            false => format!("the built-in plugin {name} can't be used"),
        })?);
        let new = Compiled {
            bytes,
            plugin: Arc::clone(&plugin),
            file_is_there: is_file,
        };
        compiled.insert(name.into(), new);
        Ok(plugin)
    }
}

/// Where a plugin's file lies in the plugin folder.
fn file(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.wasm"))
}

/// An engine that keeps what it compiles where the configuration says, if it can be kept
/// there safely.
pub(crate) fn engine(plugins: &Plugins) -> anyhow::Result<Engine> {
    let Some(folder) = &plugins.cache else {
        return Ok(Engine::new()?);
    };
    let engine = private::trusted_folder(folder)
        .and_then(|()| Engine::caching(folder).map_err(anyhow::Error::from));
    engine.or_else(|error| {
        tracing::warn!("compiled plugins are not kept ([plugins] cache): {error:#}");
        Ok(Engine::new()?)
    })
}

/// The bytes of a default component, if there is one of this name.
pub(crate) fn built_in(name: &str) -> Option<&'static [u8]> {
    let built_in = BUILT_IN.iter().find(|(built_in, _)| *built_in == name);
    built_in.map(|(_, bytes)| *bytes)
}

fn needed(name: &str, path: &Path) -> anyhow::Result<&'static [u8]> {
    built_in(name).with_context(|| {
        let names = BUILT_IN.map(|(name, _)| name).join(", ");
        format!(
            "there is no plugin `{name}`: {} does not exist, and built in are only {names}",
            path.display()
        )
    })
}

/// Several problems as one error, a line each.
pub(crate) fn together(problems: Vec<anyhow::Error>) -> anyhow::Error {
    let lines: Vec<_> = problems
        .iter()
        .map(|problem| format!("{problem:#}"))
        .collect();
    anyhow::anyhow!(lines.join("\n"))
}
