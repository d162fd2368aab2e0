//! The blueprint: a chain of plugins that has been checked, and can be
//! instantiated once a worker.

use std::sync::Arc;

use serde_json::Value;

use crate::manifest::{Effect, OnFailure, Role};
use crate::slot::Health;
use crate::{LoadError, Pipeline, Plugin, Quarantine, self_test};

/// What every call is held to. A plugin may ask for less, never for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Fuel a call: about one unit an instruction.
    pub fuel: u64,
    /// Memory an instance, in bytes.
    pub memory_bytes_max: usize,
    /// Time a call, in milliseconds. None where time isn't to matter.
    pub deadline_ms: Option<u64>,
    /// When a plugin that fails is taken out of service.
    pub quarantine: Quarantine,
}

/// A plugin in its place in the chain.
pub struct Stage {
    /// The plugin.
    pub plugin: Arc<Plugin>,
    /// Its configuration.
    pub config: Value,
    /// Whether it may add viewers.
    pub widen_granted: bool,
    /// What holds once it has failed repeatedly.
    pub on_failure: OnFailure,
    /// How it fares.
    pub health: Arc<Health>,
    /// Who takes over from it then, if anyone.
    pub(crate) last_good: Option<Arc<Stage>>,
}

impl Stage {
    /// A stage. Where `on_failure` isn't given, the manifest says, or the role.
    pub fn new(
        plugin: Arc<Plugin>,
        config: Value,
        widen_granted: bool,
        on_failure: Option<OnFailure>,
    ) -> Self {
        let manifest = &plugin.manifest;
        let on_failure = on_failure
            .or(manifest.on_failure)
            .unwrap_or_else(|| manifest.role.on_failure());
        Self {
            plugin,
            config,
            widen_granted,
            on_failure,
            health: Arc::default(),
            last_good: None,
        }
    }

    /// Whether two stages do the same.
    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.plugin, &other.plugin)
            && self.config == other.config
            && self.widen_granted == other.widen_granted
            && self.on_failure == other.on_failure
    }

    fn check(&self, redacted: &mut bool) -> Result<(), LoadError> {
        let manifest = &self.plugin.manifest;
        let plugin = self.plugin.name.to_string();
        if let Some(capability) = manifest.capabilities.first() {
            let what = format!("it asks for `{capability}`, which this host doesn't give");
            return Err(LoadError::Link { plugin, what });
        }
        if manifest.effect == Effect::Widen && !self.widen_granted {
            return Err(LoadError::NotGranted { plugin });
        }
        let misplaced = match manifest.role {
            Role::Filter if *redacted => {
                Some("is a filter, and stands after the redactor: put it before")
            }
            Role::Redactor if std::mem::replace(redacted, true) => {
                Some("is a second redactor: there can be one")
            }
            _ => None,
        };
        misplaced.map_or(Ok(()), |what| Err(LoadError::Chain { plugin, what }))
    }
}

/// A chain that has been checked: one generation of the whole pipeline.
pub struct Blueprint {
    stages: Vec<Arc<Stage>>,
    limits: Limits,
}

impl Blueprint {
    /// Checks grants and order, and has every plugin take its configuration
    /// and pass its self-tests. `before` is the generation that runs: what
    /// worked in it takes over where a plugin's policy is `last-good`.
    ///
    /// # Errors
    /// All that is wrong, in the order of the chain.
    pub fn prepare(
        mut stages: Vec<Stage>,
        limits: Limits,
        before: Option<&Self>,
    ) -> Result<Self, Vec<LoadError>> {
        let mut redacted = false;
        let mut problems = Vec::new();
        for stage in &mut stages {
            let running = before.and_then(|before| before.find(stage));
            stage.follow(running);
            if let Err(problem) = stage.check(&mut redacted) {
                problems.push(problem);
                continue;
            }
            // What runs has passed them already.
            if running.is_none_or(|running| !Arc::ptr_eq(&running.plugin, &stage.plugin)) {
                problems.extend(self_test::run(stage, limits).err());
            }
        }
        if problems.is_empty() {
            let blueprint = Self {
                stages: stages.into_iter().map(Arc::new).collect(),
                limits,
            };
            match blueprint.instantiate() {
                Ok(_) => return Ok(blueprint),
                Err(problem) => problems.push(problem),
            }
        }
        Err(problems)
    }

    /// Instances of all stages, for one worker.
    ///
    /// # Errors
    /// If one of them doesn't take its configuration.
    pub fn instantiate(&self) -> Result<Pipeline, LoadError> {
        Pipeline::new(&self.stages, self.limits)
    }

    /// The stages, in order.
    pub fn stages(&self) -> impl Iterator<Item = &Stage> {
        self.stages.iter().map(|stage| &**stage)
    }

    /// Whether two blueprints do the same.
    pub fn is_same(&self, other: &Self) -> bool {
        self.limits == other.limits
            && self.stages.len() == other.stages.len()
            && self.stages().zip(other.stages()).all(|(a, b)| a.is_same(b))
    }

    /// The stage that a new one takes the place of.
    fn find(&self, new: &Stage) -> Option<&Arc<Stage>> {
        self.stages.iter().find(|stage| {
            stage.plugin.name == new.plugin.name
                && stage.plugin.manifest.role == new.plugin.manifest.role
        })
    }
}

impl Stage {
    /// Takes the place of a running stage: knows who was good last.
    fn follow(&mut self, running: Option<&Arc<Self>>) {
        let Some(running) = running.filter(|_| self.on_failure == OnFailure::LastGood) else {
            return;
        };
        let is_good = running.health.in_quarantine() == 0 && !self.is_same(running);
        self.last_good = if is_good {
            Some(Arc::new(running.alone()))
        } else {
            running.last_good.clone()
        };
    }

    /// The same, with nobody to take over from it.
    fn alone(&self) -> Self {
        Self {
            plugin: Arc::clone(&self.plugin),
            config: self.config.clone(),
            last_good: None,
            health: Arc::default(),
            ..*self
        }
    }
}
