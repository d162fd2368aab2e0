//! Loads the configured pipeline. A plugin's bytes come from the plugin store, or from the plugin
//! folder and, if there is no file, from the plugins that are built in.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use presence_config::digest::Digest;
use presence_config::regular_file::{self, Limit, Stamp};
use presence_config::{self as config, Config, OnFailure, PluginSource, Plugins, Source};
use presence_sandbox::manifest;
use presence_sandbox::{
    Blueprint, Limits, LoadError, Manifest, MemoryBudget, Plugin, Stage, sha256,
};

use crate::in_force::{BUILT_IN, InForce, InForceEntry};
use crate::limits::limits;
use crate::store_cache::{STORE, StoreCache};

mod attempt;
mod built_in;
mod compile_slots;
mod compiler;
mod engine;
mod grants;
mod quotas;
mod sources;
mod trust;
mod unused;

pub use attempt::Attempt;
pub use built_in::built_in;
pub use engine::engine;
pub use sources::{ResolvedPlugin, describe_sources, misnamed_files, resolve_plugins};
pub use unused::{NO_REDACTOR, folder_warning, unused_files, unused_warning};

use built_in::needed;
use compiler::Compiler;

/// Loads pipelines, and compiles a plugin only when its bytes are new.
pub struct Loader {
    compiler: Arc<Compiler>,
    /// Plugins that take precedence over stored, folder and built-in ones of the same name.
    overrides: HashMap<String, Arc<Plugin>>,
    /// Which plugins are in force, or were when the node last ran.
    in_force: InForce,
    /// This node's cache of the plugin store.
    store_cache: Arc<StoreCache>,
    /// Plugins in force whose files are gone, each with the text of what the next start will do.
    /// Each of them has been logged.
    missing_files: Mutex<BTreeMap<String, &'static str>>,
    /// The memory budget that the instances of all plugins share.
    memory: MemoryBudget,
    /// How many pipelines were refused because they exceeded a quota of plugins.
    over_quota: AtomicU64,
}

/// The text for a next start that will fail, since the file of a plugin in force is missing.
const NEXT_START_FAILS: &str = "the next start refuses: put the file back, or take its \
                                [[pipeline]] entry out";

/// The origin of a plugin whose file was given to a command.
const ORIGIN_COMMAND_LINE: &str = "given";

/// How long compiling a plugin may take while its author waits for it.
const AUTHOR_COMPILE_TIMEOUT: Duration = Duration::from_secs(3_600);

/// A plugin and its origin.
type Found = (Arc<Plugin>, Arc<str>);

/// The compiler that the loaders of several tenants share: each plugin is compiled once for all.
#[derive(Clone, Default)]
pub struct SharedCompiler(Arc<Mutex<Option<Arc<Compiler>>>>);

impl SharedCompiler {
    /// The compiler, made at the first call: that call's configuration names its cache folder.
    fn of(&self, config: &Config) -> anyhow::Result<Arc<Compiler>> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiler) = &*made {
            return Ok(Arc::clone(compiler));
        }
        let compiler = Arc::new(Compiler::new(engine(config)?, config.plugins.compilers));
        Ok(Arc::clone(made.insert(compiler)))
    }
}

impl Loader {
    /// A loader that caches compiled code in the folder that the configuration names.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        Self::with_compiler(&SharedCompiler::default(), config)
    }

    /// A loader that shares a compiler with other loaders.
    ///
    /// # Errors
    /// If the engine can't be made.
    pub fn with_compiler(shared: &SharedCompiler, config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            compiler: shared.of(config)?,
            overrides: HashMap::new(),
            in_force: InForce::default(),
            store_cache: Arc::new(StoreCache::of(config)),
            missing_files: Mutex::default(),
            memory: MemoryBudget::default(),
            over_quota: AtomicU64::new(0),
        })
    }

    /// How many files of cached compiled code were refused, since their content had changed.
    pub fn cache_refusals(&self) -> u64 {
        self.compiler.cache_refusals()
    }

    /// The memory budget that the instances of all plugins share.
    pub fn memory(&self) -> &MemoryBudget {
        &self.memory
    }

    /// How many pipelines were refused because they exceeded a quota of plugins.
    pub fn over_quota(&self) -> u64 {
        self.over_quota.load(Ordering::Relaxed)
    }

    /// This node's cache of the plugin store.
    pub fn store_cache(&self) -> &Arc<StoreCache> {
        &self.store_cache
    }

    /// The same loader, with the note of what was in force when the node last ran.
    pub fn with_in_force(self, in_force: InForce) -> Self {
        Self { in_force, ..self }
    }

    /// Notes that a pipeline is in force from now on.
    pub fn record_in_force(&self, blueprint: &Blueprint) {
        self.in_force.record(blueprint);
    }

    /// The note of which plugins are in force, or were when the node last ran.
    pub fn in_force(&self) -> &InForce {
        &self.in_force
    }

    /// A hash of everything that a load depends on: the pipeline, other parts of the
    /// configuration, and the plugins' files. It changes when one of these does.
    pub fn fingerprint(config: &Config) -> u64 {
        let mut hasher = DefaultHasher::new();
        let Config {
            pipeline,
            engine,
            plugins,
            tracker,
            limits,
            ..
        } = config;
        let quotas = (
            limits.plugins_max,
            limits.plugin_bytes_max,
            limits.plugin_memory_bytes_max,
        );
        let all = (pipeline, engine, plugins, tracker.metadata, quotas);
        format!("{all:?}").hash(&mut hasher);
        // A plugin of the store has no file to look at: its digest is in the pipeline above.
        let in_folder = |_: &&config::Stage| plugins.source == PluginSource::Folder;
        for stage in pipeline.iter().filter(in_folder) {
            Stamp::of(&file(&plugins.dir, &stage.plugin)).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Loads a plugin from a file, under the name in its manifest.
    ///
    /// # Errors
    /// If the file can't be read, or holds no plugin.
    pub fn plugin_file(&self, path: &Path) -> anyhow::Result<Arc<Plugin>> {
        let bytes = std::fs::read(path);
        let bytes = bytes.with_context(|| format!("can't read {}", path.display()))?;
        let place = || format!("{} can't be used", path.display());
        let file = path.file_stem().unwrap_or_default().to_string_lossy();
        let name = Manifest::read(&file, &bytes).with_context(place)?.name;
        // The plugin's author waits for this, so it may take long.
        let plugin = self
            .compiler
            .compile("", &name, &bytes, AUTHOR_COMPILE_TIMEOUT);
        plugin.with_context(place)
    }

    /// Whether there is an override, a file in the folder, or a built-in one of this name.
    pub fn has(&self, config: &Config, name: &str) -> bool {
        self.overrides.contains_key(name)
            || file(&config.plugins.dir, name).exists()
            || built_in(name).is_some()
    }

    /// Makes later loads use this plugin, whatever other plugins of its name there are.
    pub fn override_plugin(&mut self, plugin: Arc<Plugin>) {
        self.overrides.insert(plugin.name.to_string(), plugin);
    }

    /// Loads the pipeline that a configuration names. Without `clock`, calls
    /// are limited by fuel alone.
    ///
    /// # Errors
    /// Everything that is wrong with the pipeline.
    pub fn load(&self, config: &Config, clock: bool) -> Result<Blueprint, Vec<anyhow::Error>> {
        self.attempt(config, clock, None, &Attempt::default())
    }

    /// As [`load`](Self::load). `running` is the pipeline that the new one will replace.
    ///
    /// # Errors
    /// As [`load`](Self::load), and if the attempt is given up.
    pub fn attempt(
        &self,
        config: &Config,
        clock: bool,
        running: Option<&Blueprint>,
        attempt: &Attempt,
    ) -> Result<Blueprint, Vec<anyhow::Error>> {
        self.prepared(config, clock, running, attempt, |stages, limits| {
            Blueprint::prepare(stages, limits, running)
        })
    }

    /// As [`attempt`](Self::attempt), for a pipeline that will run beside the active one.
    ///
    /// # Errors
    /// As [`attempt`](Self::attempt).
    pub fn load_candidate(
        &self,
        config: &Config,
        active: &Blueprint,
        attempt: &Attempt,
    ) -> Result<Blueprint, Vec<anyhow::Error>> {
        self.prepared(config, true, Some(active), attempt, |stages, limits| {
            Blueprint::prepare_beside(stages, limits, active)
        })
    }

    fn prepared(
        &self,
        config: &Config,
        clock: bool,
        running: Option<&Blueprint>,
        attempt: &Attempt,
        prepare: impl FnOnce(Vec<Stage>, Limits) -> Result<Blueprint, Vec<(usize, LoadError)>>,
    ) -> Result<Blueprint, Vec<anyhow::Error>> {
        let mut stages = Vec::new();
        let mut places = Vec::new();
        let mut problems = Vec::new();
        self.count_refusal(quotas::count(config))
            .map_err(|it| vec![it])?;
        self.memory.change(config.limits.plugin_memory_bytes_max);
        let ceiling = grants::ceiling(config.plugins.grants.as_deref());
        for stage in &config.pipeline {
            let place = stage.place.0.as_ref();
            let plugin = attempt
                .step(format!("reading and compiling `{}`", stage.plugin))
                .and_then(|()| self.plugin(config, stage, running))
                .and_then(|found| check_digest(found, stage.digest.as_ref()))
                .and_then(|found| self.check_trusted(&config.plugins, found));
            match plugin {
                Ok((plugin, origin)) => {
                    let granted = grants::of_stage(&stage.grants);
                    let on_failure = stage.on_failure.map(on_failure);
                    let stage = Stage::new(plugin, stage.config.clone(), false, on_failure);
                    let stage = stage
                        .with_grants(granted, ceiling)
                        .with_memory_budget(&self.memory);
                    stages.push(stage.with_origin(origin));
                    places.push(place);
                }
                Err(problem) => problems.push(with_location(problem, place)),
            }
        }
        problems.extend(
            self.count_refusal(quotas::bytes(config, stages.iter()))
                .err(),
        );
        let limits = limits(config, clock);
        if let Err(given_up) = attempt.step("checking the plugins and their self-tests".into()) {
            return Err(vec![given_up]);
        }
        match prepare(stages, limits) {
            Ok(new) => {
                problems.extend(self.count_refusal(quotas::memory(config, &new)).err());
                match problems.is_empty() {
                    true => Ok(self.reevaluated(config, &new).unwrap_or(new)),
                    false => Err(problems),
                }
            }
            Err(more) => {
                let place = |number: usize| places.get(number).copied().flatten();
                let more = more.into_iter();
                problems.extend(more.map(|(number, it)| with_location(it.into(), place(number))));
                Err(problems)
            }
        }
    }

    /// Counts the pipeline as over a quota if the check of that quota failed.
    fn count_refusal(&self, checked: anyhow::Result<()>) -> anyhow::Result<()> {
        if checked.is_err() {
            self.over_quota.fetch_add(1, Ordering::Relaxed);
        }
        checked
    }

    /// Loads the plugins in the folder that the pipeline doesn't name, and returns what is wrong
    /// with them.
    pub fn check_unused_files(&self, config: &Config) -> Vec<anyhow::Error> {
        let names = unused_files(config);
        let loaded = names.iter().map(|name| {
            let path = file(&config.plugins.dir, name);
            let bytes = regular_file::read(&path, Some(limit(&config.plugins)))?;
            self.load_file(config, name, &path, bytes, None)
        });
        loaded.filter_map(Result::err).collect()
    }

    fn plugin(
        &self,
        config: &Config,
        stage: &config::Stage,
        running: Option<&Blueprint>,
    ) -> anyhow::Result<Found> {
        let (plugins, name) = (&config.plugins, &*stage.plugin);
        if let Some(plugin) = self.overrides.get(name) {
            return Ok((Arc::clone(plugin), ORIGIN_COMMAND_LINE.into()));
        }
        if plugins.source == PluginSource::Store {
            return self.load_stored(config, stage, running);
        }
        let path = file(&plugins.dir, name);
        if stage.source == Some(Source::BuiltIn) {
            return self.load_built_in(config, name, &path);
        }
        match regular_file::read(&path, Some(limit(plugins))) {
            Ok(bytes) => {
                self.missing_files().remove(name);
                self.load_file(config, name, &path, bytes, running)
            }
            Err(error) if error.is_missing() => self.without_file(config, &path, stage, running),
            Err(error) => Err(error.into()),
        }
    }

    /// Loads a plugin of the store, which this node has fetched before.
    fn load_stored(
        &self,
        config: &Config,
        stage: &config::Stage,
        running: Option<&Blueprint>,
    ) -> anyhow::Result<Found> {
        let (plugins, name) = (&config.plugins, &*stage.plugin);
        let digest = stage.digest.as_ref();
        let digest = digest.with_context(|| format!("no digest says which `{name}` is meant"))?;
        if let Some(runs) = running_as(running, name, digest.hex()) {
            return Ok((runs, STORE.into()));
        }
        let cant = || format!("`{name}` ({digest}) can't be used");
        let bytes = self
            .store_cache
            .plugin(digest, limit(plugins))
            .with_context(cant)?;
        let plugin = self.compile(config, name, &bytes).with_context(cant)?;
        let held = &plugin.manifest.name;
        anyhow::ensure!(
            *name == **held,
            "`{name}` ({digest}) is the plugin `{held}`: name it so in the pipeline"
        );
        Ok((plugin, STORE.into()))
    }

    /// The plugin of a stage whose file isn't there: the one that runs, or a built-in one
    /// that no file has overridden.
    fn without_file(
        &self,
        config: &Config,
        path: &Path,
        stage: &config::Stage,
        running: Option<&Blueprint>,
    ) -> anyhow::Result<Found> {
        let name = &*stage.plugin;
        let running = running.into_iter().flat_map(Blueprint::stages);
        let mut running: Vec<_> = running.filter(|it| *it.plugin.name == *name).collect();
        running.sort_by_key(|it| *it.origin == *BUILT_IN);
        match running.first() {
            Some(runs) if *runs.origin != *BUILT_IN => {
                let start = self.start_without(stage, &runs.plugin);
                if self.missing_files().insert(name.into(), start).is_none() {
                    tracing::warn!(
                        "{} is gone: the plugin that it held stays in force while the node runs, \
                         and {start}",
                        path.display()
                    );
                }
                return Ok((Arc::clone(&runs.plugin), Arc::clone(&runs.origin)));
            }
            Some(_) => {}
            None => self.must_not_be_missing(name, path)?,
        }
        anyhow::ensure!(
            stage.source != Some(Source::Folder),
            "`{name}` is to come from the plugin folder ([[pipeline]] source), and {} does not \
             exist",
            path.display()
        );
        self.load_built_in(config, name, path)
    }

    /// What the next start does if a plugin's file is still gone then.
    fn start_without(&self, stage: &config::Stage, runs: &Plugin) -> &'static str {
        match built_in(&stage.plugin) {
            Some(_) if stage.source == Some(Source::Folder) => NEXT_START_FAILS,
            Some(bytes) if *sha256(bytes) == *runs.sha256 => {
                "the next start uses the built-in plugin, which is the same"
            }
            // There is no note, so the next start can't know what was in force.
            Some(_) if self.in_force.path().is_none() => {
                "the next start uses the built-in plugin of that name instead: put the file back, \
                 or set [state] dir"
            }
            _ => NEXT_START_FAILS,
        }
    }

    /// Fails if the plugin of this name was last in force from a file, which is missing now. A
    /// built-in plugin with the same bytes may take its place.
    fn must_not_be_missing(&self, name: &str, path: &Path) -> anyhow::Result<()> {
        let Some(missing) = self.in_force.file_of(name) else {
            return Ok(());
        };
        let InForceEntry {
            version,
            sha256: digest,
            source,
            ..
        } = missing;
        let built_in = built_in(name);
        if built_in.is_some_and(|bytes| *sha256(bytes) == *digest) {
            return Ok(());
        }
        let instead = match built_in {
            Some(_) => {
                ", write `source = \"built-in\"` into its [[pipeline]] entry to have the built-in \
                 plugin of that name"
            }
            None => "",
        };
        let note = self.in_force.path();
        let note = note.map_or_else(String::new, |note| {
            format!(", or remove {} to have it forgotten", note.display())
        });
        let (from, put) = match &*source {
            STORE => ("the plugin store", "put its file there"),
            file => (file, "put the file back"),
        };
        anyhow::bail!(
            "`{name}` {version} (sha256:{digest}) was last in force, from {from}, and {} does not \
             exist: {put}{instead}{note}",
            path.display()
        )
    }

    fn load_built_in(&self, config: &Config, name: &str, path: &Path) -> anyhow::Result<Found> {
        let plugin = self.compile(config, name, needed(name, path)?);
        let plugin = plugin.with_context(|| format!("the built-in plugin {name} can't be used"))?;
        Ok((plugin, BUILT_IN.into()))
    }

    fn load_file(
        &self,
        config: &Config,
        name: &str,
        path: &Path,
        bytes: Vec<u8>,
        running: Option<&Blueprint>,
    ) -> anyhow::Result<Found> {
        let cant = || format!("{} can't be used", path.display());
        let origin = path.display().to_string().into();
        // The file may hold the running plugin again, after one that was refused.
        if let Some(runs) = running_as(running, name, &sha256(&bytes)) {
            return Ok((runs, origin));
        }
        let plugin = self.compile(config, name, &bytes).with_context(cant)?;
        if let Some(warning) = sources::misnamed(path, name, &plugin.manifest.name) {
            tracing::warn!("{warning}");
        }
        Ok((plugin, origin))
    }

    /// Compiles a plugin if it is trusted. If it isn't, nothing else reads its bytes.
    fn compile(&self, config: &Config, name: &str, bytes: &[u8]) -> anyhow::Result<Arc<Plugin>> {
        self.compiler
            .provenance_of(bytes)
            .check_signature(&config.plugins)?;
        // The prefix alone would not do: several accounts may each have a tenant without one.
        let owner = config.tenant.file_name();
        let limit = config.plugins.compile_timeout;
        Ok(self.compiler.compile(owner, name, bytes, limit)?)
    }

    /// A line for each plugin of the pipeline that runs though its file is gone. `None`: there is
    /// no such plugin.
    pub fn missing_files_report(&self, config: &Config) -> Option<String> {
        let missing_files = self.missing_files();
        let is_named = |name: &str| config.pipeline.iter().any(|stage| stage.plugin == name);
        let lines = missing_files.iter().filter(|(name, _)| is_named(name));
        let lines = lines.map(|(name, start)| {
            let path = file(&config.plugins.dir, name);
            let path = path.display();
            format!("{path} is gone: the plugin stays in force while the node runs, and {start}")
        });
        let lines: Vec<_> = lines.collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }

    fn missing_files(&self) -> MutexGuard<'_, BTreeMap<String, &'static str>> {
        self.missing_files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The running plugin of this name, if its bytes have this digest.
fn running_as(running: Option<&Blueprint>, name: &str, sha256: &str) -> Option<Arc<Plugin>> {
    let mut running = running.into_iter().flat_map(Blueprint::stages);
    let is_meant = |it: &&Stage| *it.plugin.name == *name && *it.plugin.sha256 == *sha256;
    running.find(is_meant).map(|it| Arc::clone(&it.plugin))
}

/// Checks that a plugin has the digest that its stage's entry names, if it names one.
fn check_digest(found: Found, digest: Option<&Digest>) -> anyhow::Result<Found> {
    let (plugin, origin) = &found;
    if let Some(digest) = digest {
        anyhow::ensure!(
            *plugin.sha256 == *digest.hex(),
            "`{}` from {origin} is sha256:{}, and its entry says {digest}",
            plugin.name,
            plugin.sha256
        );
    }
    Ok(found)
}

/// The warning that a pipeline has no redactor, if so.
pub fn pipeline_warning(blueprint: &Blueprint) -> Option<&'static str> {
    let mut stages = blueprint.stages();
    let redacts = stages.any(|stage| stage.plugin.manifest.role == manifest::Role::Redactor);
    (!redacts).then_some(NO_REDACTOR)
}

/// Adds the place of the stage's entry to an error, if the stage has an entry.
fn with_location(problem: anyhow::Error, place: Option<&config::Place>) -> anyhow::Error {
    match place {
        Some(place) => problem.context(place.clone()),
        None => problem,
    }
}

/// How long a plugin's file may be.
fn limit(plugins: &Plugins) -> Limit {
    Limit {
        bytes_max: plugins.file_bytes_max,
        key: "[plugins] file_bytes_max",
    }
}

/// The path of a plugin's file in the plugin folder.
fn file(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.wasm"))
}

/// Converts the value to the sandbox's type.
fn on_failure(wanted: OnFailure) -> manifest::OnFailure {
    match wanted {
        OnFailure::Hold => manifest::OnFailure::Hold,
        OnFailure::LastGood => manifest::OnFailure::LastGood,
    }
}
