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
    /// The memory of one instance of each stage before its first call, in bytes.
    memory_bytes: usize,
    /// How long decisions took, over this generation and the ones before it.
    latency: Arc<Latency>,
    /// Pipelines whose instances are made already, so that threads needn't wait for that.
    spares: Mutex<Vec<Pipeline>>,
}

impl Blueprint {
    /// Checks grants and order, configures every plugin, and runs its self-tests. `before` is the
    /// running generation. If a plugin's policy is `last-good`, the working stage of `before` that
    /// it replaces becomes its fallback.
    ///
    /// # Errors
    /// All problems, in the order of the chain, each with the index of its stage.
    pub fn prepare(
        stages: Vec<Stage>,
        limits: Limits,
        before: Option<&Self>,
    ) -> Result<Self, Vec<(usize, LoadError)>> {
        Self::checked(stages, limits, before, false)
    }

    /// As [`Self::prepare`], for a pipeline that runs beside the active one: a canary or a shadow.
    /// It has circuit breakers of its own, so that its failures take nothing out of service in the
    /// active one.
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
            let running = stage.take_replaced(&mut running);
            stage.inherit_from(running, has_tested);
            if is_beside {
                stage.use_own_breaker();
            }
            stage.check(&mut redacted, &mut problems);
            // Withdraws a fallback that asks for more than is granted now.
            let stage = Arc::new(stage).with_withdrawals(&|_| None);
            let mut alone = Pipeline::new(std::slice::from_ref(&stage), limits);
            problems.extend(alone.make().err());
            memory_bytes = memory_bytes.saturating_add(alone.memory_bytes());
            let plugin = &stage.plugin;
            // A plugin that runs already within the same limits has passed its self-tests.
            let has_passed = has_tested && running.is_some_and(|it| it.is_of(plugin))
                || plugin.has_passed(&limits);
            if !has_passed {
                let failed = self_test::problems(plugin, limits);
                if failed.is_empty() {
                    plugin.mark_passed(limits);
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

    /// A pipeline whose instances are all made now.
    ///
    /// # Errors
    /// If a plugin can't be started, or refuses its configuration.
    pub fn instantiate(&self) -> Result<Pipeline, LoadError> {
        let mut pipeline = self.pipeline();
        pipeline.make()?;
        Ok(pipeline)
    }

    /// A pipeline of these stages. If [`Self::make_spares`] has made one that is still there, its
    /// instances exist; else each is made when it is first called.
    pub fn pipeline(&self) -> Pipeline {
        let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
        spares.pop().unwrap_or_else(|| self.without_instances())
    }

    /// The stateful enrichers of one shard. Shards may share a [`Self::pipeline`], but not these.
    pub fn stateful_enrichers(&self) -> StatefulEnrichers {
        StatefulEnrichers::new(&self.stages, self.limits)
    }

    fn without_instances(&self) -> Pipeline {
        Pipeline::new(&self.stages, self.limits).with_latency(&self.latency)
    }

    /// Makes instances for this many threads now, so that no event waits for them when this
    /// blueprint replaces `running`. Only filters and redactors that `running` doesn't have are
    /// made: the threads keep the instances of the others. If making one fails, no more are made
    /// now. They are then made at their first call, whose error says why it failed.
    pub fn make_spares(&self, running: &Self, threads: usize) {
        match self.limits == running.limits {
            true => self.make_missing_instances(&running.stages, threads),
            false => self.make_missing_instances(&[], threads),
        }
    }

    /// As [`Self::make_spares`], with all filters and the redactor: for a pipeline that runs beside
    /// another one, and takes no instances from it.
    pub fn make_all_spares(&self, threads: usize) {
        self.make_missing_instances(&[], threads);
    }

    fn make_missing_instances(&self, others: &[Arc<Stage>], threads: usize) {
        for _ in 0..threads {
            let mut pipeline = self.without_instances();
            if pipeline.make_missing_instances(others).is_err() {
                return;
            }
            let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
            spares.push(pipeline);
        }
    }

    /// Makes calls of the plugins pause. `None` if the pipeline has no stages.
    pub fn pauser(&self) -> Option<Pauser> {
        let stage = self.stages.first()?;
        Some(Pauser(stage.plugin.ticks.clone()))
    }

    /// How long decisions took, over this generation and the ones before it.
    pub fn latency(&self) -> Histogram {
        self.latency.histogram()
    }

    /// The memory of one instance of each stage before its first call, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// The limits of every call.
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

    /// The names of the stages that only hide (filters that may add nobody, and redactors) and that
    /// `other` lacks. A name is listed once for each such stage of this name that `other` has fewer.
    pub fn narrowing_missing_in(&self, other: &Self) -> Vec<Arc<str>> {
        let narrows = |stage: &&Stage| match stage.plugin.manifest.role {
            Role::Enricher => false,
            Role::Filter => stage.plugin.manifest.effect == Effect::Narrow,
            Role::Redactor => true,
        };
        let others = other.stages().filter(narrows);
        let mut others: Vec<_> = others.map(|stage| &stage.plugin.name).collect();
        let mut missing = Vec::new();
        for stage in self.stages().filter(narrows) {
            match others.iter().position(|name| **name == stage.plugin.name) {
                Some(place) => drop(others.swap_remove(place)),
                None => missing.push(Arc::clone(&stage.plugin.name)),
            }
        }
        missing
    }

    /// Whether its enrichers do the same as those of another blueprint.
    pub fn has_same_enrichers(&self, other: &Self) -> bool {
        let is_same = |(a, b): (&Stage, &Stage)| a.is_same(b) && a.is_withdrawn_as(b);
        self.enrichers().count() == other.enrichers().count()
            && self.enrichers().zip(other.enrichers()).all(is_same)
    }

    /// A digest of what its enrichers do, in hexadecimal. `None` if it has no enrichers.
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

    /// Whether one of its stages does the same as this stage.
    pub fn has_same(&self, stage: &Stage) -> bool {
        self.stages().any(|own| own.is_same(stage))
    }

    /// Checks again whether each stage may run, and each fallback. `why_not` returns why a stage
    /// may not run: the stage is then in quarantine, and its plugin isn't called. `None` if this
    /// changes nothing.
    #[must_use]
    pub fn with_withdrawals(&self, why_not: &dyn Fn(&Stage) -> Option<String>) -> Option<Self> {
        let stages: Vec<_> = self
            .stages
            .iter()
            .map(|it| it.with_withdrawals(why_not))
            .collect();
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

    /// Whether two blueprints do the same within the same limits.
    pub fn is_same(&self, other: &Self) -> bool {
        let is_same = |(a, b): (&Stage, &Stage)| a.is_same(b) && a.is_withdrawn_as(b);
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
