//! The blueprint: a chain of plugins that has been checked, and is instantiated once per thread
//! (stateful enrichers: once per shard).

use std::sync::Arc;

use crate::latency::{Histogram, Latency};
use crate::manifest::{Effect, Role};
use crate::{Limits, LoadError, Pipeline, Stage, self_test};

/// A chain that has been checked: one generation of the whole pipeline.
pub struct Blueprint {
    stages: Vec<Arc<Stage>>,
    limits: Limits,
    /// How long decisions take, by this generation and those before.
    latency: Arc<Latency>,
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
            let stage = Arc::new(stage);
            let mut alone = Pipeline::new(std::slice::from_ref(&stage), limits);
            problems.extend(alone.make().err());
            // What runs has passed them already.
            if !has_tested || running.is_none_or(|running| !running.is_of(&stage.plugin)) {
                problems.extend(self_test::problems(&stage.plugin, limits));
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
            latency: before.map_or_else(Arc::default, |before| Arc::clone(&before.latency)),
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

    /// The same stages, whose instances are made as they are first called.
    pub fn pipeline(&self) -> Pipeline {
        Pipeline::new(&self.stages, self.limits).counting(&self.latency)
    }

    /// How long decisions take, since the node has run.
    pub fn latency(&self) -> Histogram {
        self.latency.histogram()
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

    /// Whether two blueprints do the same.
    pub fn is_same(&self, other: &Self) -> bool {
        self.limits == other.limits
            && self.stages.len() == other.stages.len()
            && self.stages().zip(other.stages()).all(|(a, b)| a.is_same(b))
    }
}
