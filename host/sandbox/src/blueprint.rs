//! The blueprint: a chain of plugins that has been checked, and can be
//! instantiated once a worker.

use std::sync::Arc;

use presence_core::metadata;
use serde_json::Value;

use crate::manifest::{Effect, OnFailure, OwnLimits, Role};
use crate::slot::Health;
use crate::{LoadError, Pipeline, Plugin, Quarantine, self_test, wasi};

/// How long a plugin may take for its configuration, and for each of its self-tests,
/// while it is loaded.
const LOADING_MS: u64 = 5_000;

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
    /// How large enrichers may make an event's metadata.
    pub metadata: metadata::Limits,
}

impl Limits {
    /// The limits of a plugin that sets itself lower ones.
    pub fn within(self, own: OwnLimits) -> Self {
        let ms = |ms: u64| own.deadline_ms.unwrap_or(ms).min(ms);
        Self {
            fuel: own.fuel.unwrap_or(self.fuel).min(self.fuel),
            memory_bytes_max: own
                .memory_bytes
                .unwrap_or(self.memory_bytes_max)
                .min(self.memory_bytes_max),
            deadline_ms: self.deadline_ms.map(ms),
            ..self
        }
    }

    /// The limits while a plugin is loaded: nobody waits then, and a machine that is
    /// busy must not have it refused.
    pub(crate) fn while_loading(self) -> Self {
        Self {
            deadline_ms: self.deadline_ms.map(|ms| ms.max(LOADING_MS)),
            ..self
        }
    }
}

/// A plugin in its place in the chain.
pub struct Stage {
    /// The plugin.
    pub plugin: Arc<Plugin>,
    /// Its configuration.
    pub config: Value,
    /// Whether it may add viewers.
    pub widen_granted: bool,
    /// Whether it may import WASI, all of which is denied.
    pub wasi_granted: bool,
    /// What holds once it has failed repeatedly.
    pub on_failure: OnFailure,
    /// Where the plugin comes from, in the words of who loads it. It makes no
    /// difference to what the stage does.
    pub origin: Arc<str>,
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
            wasi_granted: false,
            on_failure,
            origin: "unknown".into(),
            health: Arc::default(),
            last_good: None,
        }
    }

    /// The same stage, where the plugin may import WASI or not.
    #[must_use]
    pub fn with_wasi(self, granted: bool) -> Self {
        Self {
            wasi_granted: granted,
            ..self
        }
    }

    /// The same stage, of a plugin that comes from here.
    #[must_use]
    pub fn from(self, origin: Arc<str>) -> Self {
        Self { origin, ..self }
    }

    /// Which plugin it is of, and where that comes from, in a few words.
    pub fn line(&self) -> String {
        let Plugin {
            name,
            manifest,
            sha256,
            ..
        } = &*self.plugin;
        let digest = sha256.get(..12).unwrap_or_default();
        let (version, origin) = (&manifest.version, &self.origin);
        format!("{name} {version} ({origin}, sha256:{digest})")
    }

    fn is_of(&self, plugin: &Arc<Plugin>) -> bool {
        Arc::ptr_eq(&self.plugin, plugin)
    }

    /// Whether two stages do the same.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.is_of(&other.plugin)
            && self.config == other.config
            && self.widen_granted == other.widen_granted
            && self.wasi_granted == other.wasi_granted
            && self.on_failure == other.on_failure
    }

    /// What is wrong with its grants and its place.
    fn check(&self, redacted: &mut bool, problems: &mut Vec<LoadError>) {
        let manifest = &self.plugin.manifest;
        let plugin = || self.plugin.name.to_string();
        let unknown = |name: &&String| *name != wasi::CAPABILITY;
        let unknown = manifest.capabilities.iter().filter(unknown);
        problems.extend(unknown.map(|name| LoadError::Link {
            plugin: plugin(),
            what: format!("it asks for `{name}`, which this host doesn't give"),
        }));
        for (asks, granted, grant) in [
            (
                manifest.effect == Effect::Widen,
                self.widen_granted,
                "widen",
            ),
            (
                manifest.asks_for(wasi::CAPABILITY),
                self.wasi_granted,
                wasi::CAPABILITY,
            ),
        ] {
            if asks && !granted {
                let plugin = plugin();
                problems.push(LoadError::NotGranted { plugin, grant });
            }
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
        problems.extend(misplaced.map(|what| LoadError::Chain {
            plugin: plugin(),
            what,
        }));
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
        stages: Vec<Stage>,
        limits: Limits,
        before: Option<&Self>,
    ) -> Result<Self, Vec<LoadError>> {
        let mut redacted = false;
        let mut problems = Vec::new();
        let mut checked = Vec::new();
        let has_tested = before.is_some_and(|before| before.limits == limits);
        let mut running: Vec<_> = before.iter().flat_map(|before| &before.stages).collect();
        for mut stage in stages {
            let running = stage.take_place(&mut running);
            stage.follow(running, has_tested);
            stage.check(&mut redacted, &mut problems);
            let stage = Arc::new(stage);
            problems.extend(Pipeline::new(std::slice::from_ref(&stage), limits).err());
            // What runs has passed them already.
            if !has_tested || running.is_none_or(|running| !running.is_of(&stage.plugin)) {
                problems.extend(self_test::problems(&stage.plugin, limits));
            }
            checked.push(stage);
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self {
            stages: checked,
            limits,
        })
    }

    /// Instances of all stages, for one worker.
    ///
    /// # Errors
    /// If one of them doesn't take its configuration.
    pub fn instantiate(&self) -> Result<Pipeline, LoadError> {
        Pipeline::new(&self.stages, self.limits)
    }

    /// The stages in one line, in order: each plugin, its version, where it comes from
    /// and the beginning of its digest.
    pub fn line(&self) -> String {
        let stages: Vec<_> = self.stages().map(Stage::line).collect();
        stages.join(" → ")
    }

    /// The stages, in order.
    pub fn stages(&self) -> impl Iterator<Item = &Stage> {
        self.stages.iter().map(|stage| &**stage)
    }

    /// The names of this one's stages that narrow what is seen, filters that may add
    /// nobody and redactors, and that another lacks: as often as it has fewer of them.
    pub fn narrowing_missing_in(&self, other: &Self) -> Vec<Arc<str>> {
        let narrows = |stage: &&Stage| match stage.plugin.manifest.role {
            Role::Enricher => false,
            Role::Filter => stage.plugin.manifest.effect == Effect::Narrow,
            Role::Redactor => true,
        };
        let mut others: Vec<_> = other.stages().map(|stage| &stage.plugin.name).collect();
        let mut missing = Vec::new();
        for stage in self.stages().filter(narrows) {
            match others.iter().position(|name| **name == stage.plugin.name) {
                Some(place) => drop(others.swap_remove(place)),
                None => missing.push(Arc::clone(&stage.plugin.name)),
            }
        }
        missing
    }

    /// Whether two blueprints do the same.
    pub fn is_same(&self, other: &Self) -> bool {
        self.limits == other.limits
            && self.stages.len() == other.stages.len()
            && self.stages().zip(other.stages()).all(|(a, b)| a.is_same(b))
    }
}

impl Stage {
    /// The running stage whose place it takes, which no other takes then: a
    /// plugin may stand in a chain more than once.
    fn take_place<'a>(&self, running: &mut Vec<&'a Arc<Self>>) -> Option<&'a Arc<Self>> {
        let same = running.iter().position(|stage| self.is_same(stage));
        let alike = || running.iter().position(|stage| self.is_alike(stage));
        let place = same.or_else(alike)?;
        Some(running.remove(place))
    }

    /// Whether one can take the place of the other.
    pub(crate) fn is_alike(&self, other: &Self) -> bool {
        self.plugin.name == other.plugin.name
            && self.plugin.manifest.role == other.plugin.manifest.role
    }

    /// Takes the place of a running stage: knows who was good last, and, if it does
    /// the same within the same limits, how it fares.
    fn follow(&mut self, running: Option<&Arc<Self>>, within_same_limits: bool) {
        let Some(running) = running else {
            return;
        };
        let is_same = self.is_same(running);
        if is_same && within_same_limits {
            self.health = Arc::clone(&running.health);
        }
        if self.on_failure != OnFailure::LastGood {
            return;
        }
        let last_good = if !is_same && !running.health.in_quarantine() {
            Some(Arc::new(running.alone()))
        } else {
            running.last_good.clone()
        };
        // Taking the grant away is meant for the older one, too.
        self.last_good = last_good
            .filter(|last| last.plugin.manifest.effect == Effect::Narrow || self.widen_granted);
    }

    /// The same, with nobody to take over from it.
    fn alone(&self) -> Self {
        Self {
            plugin: Arc::clone(&self.plugin),
            config: self.config.clone(),
            origin: Arc::clone(&self.origin),
            last_good: None,
            health: Arc::default(),
            ..*self
        }
    }
}
