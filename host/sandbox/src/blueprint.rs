//! The blueprint: a chain of plugins that has been checked, and is instantiated once per thread
//! (stateful enrichers: once per shard).

use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use crate::latency::{Histogram, Latency};
use crate::manifest::{Effect, Role};
use crate::pause::Pauser;
use crate::pipeline::StatefulEnrichers;
use crate::{Limits, LoadError, Pipeline, Stage, self_test};

/// A chain that has been checked: one generation of the whole pipeline.
pub struct Blueprint {
    stages: Vec<Arc<Stage>>,
    limits: Limits,
    /// How many bytes one instance of each has before its first call.
    memory_bytes: usize,
    /// How long decisions take, by this generation and those before.
    latency: Arc<Latency>,
    /// Pipelines whose instances have been made, for threads that don't wait for that.
    spares: Mutex<Vec<Pipeline>>,
}

impl Blueprint {
    /// Checks grants and order, and has every plugin take its configuration
    /// and pass its self-tests. `before` is the generation that runs: what
    /// worked in it takes over where a plugin's policy is `last-good`.
    ///
    /// # Errors
    /// All that is wrong, in the order of the chain, with the number of the stage that it is
    /// about, from 0.
    pub fn prepare(
        stages: Vec<Stage>,
        limits: Limits,
        before: Option<&Self>,
    ) -> Result<Self, Vec<(usize, LoadError)>> {
        Self::checked(stages, limits, before, false)
    }

    /// As [`Self::prepare`], of a pipeline that runs beside another one. Whatever fails in it
    /// takes nothing out of service in the other one.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub fn prepare_beside(
        stages: Vec<Stage>,
        limits: Limits,
        active: &Self,
    ) -> Result<Self, Vec<(usize, LoadError)>> {
        Self::checked(stages, limits, Some(active), true)
    }

    fn checked(
        stages: Vec<Stage>,
        limits: Limits,
        before: Option<&Self>,
        is_beside: bool,
    ) -> Result<Self, Vec<(usize, LoadError)>> {
        let mut redacted = false;
        let mut all = Vec::new();
        let mut checked = Vec::new();
        let mut memory_bytes = 0_usize;
        let has_tested = before.is_some_and(|before| before.limits == limits);
        let mut running: Vec<_> = before.iter().flat_map(|before| &before.stages).collect();
        for (number, mut stage) in stages.into_iter().enumerate() {
            let mut problems = Vec::new();
            let running = stage.take_place(&mut running);
            stage.follow(running, has_tested);
            if is_beside {
                stage.fares_alone();
            }
            stage.check(&mut redacted, &mut problems);
            // By what it is granted now.
            let stage = Arc::new(stage).judged(&|_| None);
            let mut alone = Pipeline::new(std::slice::from_ref(&stage), limits);
            problems.extend(alone.make().err());
            memory_bytes = memory_bytes.saturating_add(alone.memory_bytes());
            let plugin = &stage.plugin;
            // What runs has passed them already.
            let has_passed = has_tested && running.is_some_and(|it| it.is_of(plugin))
                || plugin.has_passed(&limits);
            if !has_passed {
                let failed = self_test::problems(plugin, limits);
                if failed.is_empty() {
                    plugin.passes(limits);
                }
                problems.extend(failed);
            }
            all.extend(problems.into_iter().map(|problem| (number, problem)));
            checked.push(stage);
        }
        if !all.is_empty() {
            return Err(all);
        }
        Ok(Self {
            stages: checked,
            limits,
            memory_bytes,
            latency: before.map_or_else(Arc::default, |before| Arc::clone(&before.latency)),
            spares: Mutex::default(),
        })
    }

    /// Instances of all stages, made now.
    ///
    /// # Errors
    /// If one of them doesn't take its configuration.
    pub fn instantiate(&self) -> Result<Pipeline, LoadError> {
        let mut pipeline = self.pipeline();
        pipeline.make()?;
        Ok(pipeline)
    }

    /// The same stages, whose instances are made as they are first called, unless
    /// [`Self::make_spares`] has made some.
    pub fn pipeline(&self) -> Pipeline {
        let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
        spares.pop().unwrap_or_else(|| self.unmade())
    }

    /// What each shard that shares [`Self::pipeline`] has of its own.
    pub fn own(&self) -> StatefulEnrichers {
        StatefulEnrichers::new(&self.stages, self.limits)
    }

    fn unmade(&self) -> Pipeline {
        Pipeline::new(&self.stages, self.limits).counting(&self.latency)
    }

    /// Makes instances for so many threads now, so that no event waits for that when this takes
    /// the place of a pipeline that runs: of what that one doesn't have, since the rest goes on.
    /// What can't be made now is made at its first call, which says why.
    pub fn make_spares(&self, running: &Self, threads: usize) {
        match self.limits == running.limits {
            true => self.make_unlike(&running.stages, threads),
            false => self.make_unlike(&[], threads),
        }
    }

    /// As [`Self::make_spares`], for one that runs beside another pipeline.
    pub fn make_all_spares(&self, threads: usize) {
        self.make_unlike(&[], threads);
    }

    fn make_unlike(&self, others: &[Arc<Stage>], threads: usize) {
        for _ in 0..threads {
            let mut pipeline = self.unmade();
            if pipeline.make_unlike(others).is_err() {
                return;
            }
            let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
            spares.push(pipeline);
        }
    }

    /// What has calls of its plugins pause; none if it has no plugin.
    pub fn pauser(&self) -> Option<Pauser> {
        let stage = self.stages.first()?;
        Some(Pauser(stage.plugin.ticks.clone()))
    }

    /// How long decisions take, since the node has run.
    pub fn latency(&self) -> Histogram {
        self.latency.histogram()
    }

    /// How many bytes one instance of each stage has before its first call.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// What every call is held to.
    pub fn limits(&self) -> Limits {
        self.limits
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

    /// Whether its enrichers do the same as those of another.
    pub fn has_same_enrichers(&self, other: &Self) -> bool {
        let is_same = |(a, b): (&Stage, &Stage)| a.is_same(b) && a.is_judged_as(b);
        self.enrichers().count() == other.enrichers().count()
            && self.enrichers().zip(other.enrichers()).all(is_same)
    }

    /// What stands for what its enrichers do, in hexadecimal; none if it has none.
    pub fn enrichers_digest(&self) -> Option<String> {
        let mut enrichers = self.enrichers().peekable();
        enrichers.peek()?;
        let stages: Vec<_> = enrichers.map(Stage::fingerprint).collect();
        let digest = Sha256::digest(stages.join("\n"));
        Some(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn enrichers(&self) -> impl Iterator<Item = &Stage> {
        let stages = self.stages.iter().map(|it| &**it);
        stages.filter(|it| it.plugin.manifest.role == Role::Enricher)
    }

    /// Whether one of its stages is the same as that.
    pub fn has_same(&self, stage: &Stage) -> bool {
        self.stages().any(|own| own.is_same(stage))
    }

    /// The same stages, judged anew. `why_not` says of a stage why it may not run; such a stage
    /// is in quarantine, and no call of its plugin is made. The same holds for those that would
    /// take over. None where that is how all of them are judged already.
    #[must_use]
    pub fn judged(&self, why_not: &dyn Fn(&Stage) -> Option<String>) -> Option<Self> {
        let stages: Vec<_> = self.stages.iter().map(|it| it.judged(why_not)).collect();
        let pairs = || stages.iter().zip(&self.stages);
        let is_other = pairs().any(|(after, before)| !Arc::ptr_eq(after, before));
        is_other.then(|| Self {
            stages,
            limits: self.limits,
            memory_bytes: self.memory_bytes,
            latency: Arc::clone(&self.latency),
            spares: Mutex::default(),
        })
    }

    /// Whether two blueprints do the same.
    pub fn is_same(&self, other: &Self) -> bool {
        let is_same = |(a, b): (&Stage, &Stage)| a.is_same(b) && a.is_judged_as(b);
        self.limits == other.limits
            && self.stages.len() == other.stages.len()
            && self.stages().zip(other.stages()).all(is_same)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Engine, Plugin, Quarantine};

    fn plugin(engine: &Engine, name: &str, bytes: &[u8]) -> Arc<Plugin> {
        Arc::new(Plugin::load(engine, name, bytes).unwrap())
    }

    #[test]
    fn a_pipeline_that_takes_the_place_of_another_makes_only_what_that_doesnt_have() {
        let engine = Engine::new().unwrap();
        let contacts = include_bytes!("../../../plugins/dist/contacts.wasm");
        let contacts = plugin(&engine, "contacts", contacts);
        let redact = include_bytes!("../../../plugins/dist/redact.wasm");
        let redact = plugin(&engine, "redact", redact);
        let limits = Limits {
            fuel: 10_000_000,
            memory_bytes_max: 1 << 24,
            deadline_ms: None,
            metadata: Default::default(),
            quarantine: Quarantine {
                users: 1,
                window_ms: 1_000,
                ms: 1_000,
            },
        };
        let blueprint = |key: &str, before: Option<&Blueprint>| {
            let stages = vec![
                Stage::new(Arc::clone(&contacts), json!({}), true, None),
                Stage::new(Arc::clone(&redact), json!({"keys": [key]}), true, None),
            ];
            let prepared = Blueprint::prepare(stages, limits, before);
            prepared.unwrap_or_else(|problems| panic!("{problems:?}"))
        };
        let running = blueprint("device", None);
        let next = blueprint("location", Some(&running));
        next.make_spares(&running, 2);
        let made = |pipeline: &Pipeline| {
            let redactor = pipeline.redactor.as_ref().unwrap();
            [pipeline.filters[0].is_made(), redactor.is_made()]
        };
        let mut before = running.instantiate().unwrap();
        let mut after = next.pipeline();
        assert_eq!(made(&after), [false, true]);
        after.take_instances(&mut before);
        assert_eq!(made(&after), [true, true]);
        assert_eq!(made(&before), [false, true], "it has another configuration");
        assert_eq!(made(&next.pipeline()), [false, true]);
        assert_eq!(made(&next.pipeline()), [false, false], "two were made");
        next.make_all_spares(1);
        assert_eq!(made(&next.pipeline()), [true, true]);
    }

    #[test]
    fn what_a_plugin_has_passed_for_one_tenant_it_need_not_pass_again_for_another() {
        let bytes = include_bytes!("../../../plugins/dist/redact.wasm");
        let plugin = Plugin::load(&Engine::new().unwrap(), "redact", bytes).unwrap();
        let plugin = Arc::new(plugin);
        let limits = Limits {
            fuel: 1 << 40,
            memory_bytes_max: 1 << 24,
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
        let stage = |config| Stage::new(Arc::clone(&plugin), config, false, None);
        assert!(!plugin.has_passed(&limits));
        let refused = Blueprint::prepare(vec![stage(json!({"kyes": []}))], limits, None);
        assert!(refused.is_err(), "its configuration is looked at each time");
        let prepared = Blueprint::prepare(vec![stage(json!({"keys": []}))], limits, None);
        assert!(prepared.is_ok() && plugin.has_passed(&limits));
        let lower = Limits { fuel: 1, ..limits };
        assert!(!plugin.has_passed(&lower));
    }
}
