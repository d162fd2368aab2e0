//! The result of a load: the pipelines of a configuration and a revision, to be put in force
//! together.

use std::sync::Arc;

use presence_config::escape::join_problems;
use presence_config::revision::Revision;
use presence_config::{Config, Stage};
use presence_rules::loader::{Attempt, Loader};
use presence_sandbox::Blueprint;

use crate::candidate::Mode;
use crate::reload::pipeline::with_chain;
use crate::tenant::RunningPipelines;

/// The change that a load has found.
#[derive(Default)]
pub(crate) struct PipelineChange {
    pub(super) active: ActiveChoice,
    pub(super) candidate: CanaryChoice,
}

/// Which pipeline becomes the active one.
#[derive(Default)]
pub(super) enum ActiveChoice {
    /// The current one.
    #[default]
    Same,
    /// The canary, which is promoted.
    Candidate,
    New(Blueprint),
}

/// Which pipeline becomes the canary.
#[derive(Default)]
pub(super) enum CanaryChoice {
    #[default]
    None,
    /// The current one.
    Same,
    New(Blueprint, Arc<[Stage]>),
}

impl PipelineChange {
    /// Whether the change keeps the active pipeline and leaves nothing beside it.
    pub(in crate::reload) fn is_none(&self) -> bool {
        matches!(
            (&self.active, &self.candidate),
            (ActiveChoice::Same, CanaryChoice::None)
        )
    }

    /// Makes instances of new pipelines in advance, one set for each of `threads` threads.
    pub(in crate::reload) fn make_ready(&self, running: &RunningPipelines, threads: usize) {
        let active = &*running.blueprint;
        if let ActiveChoice::New(new) = &self.active {
            new.make_spares(active, threads);
        }
        if let CanaryChoice::New(new, _) = &self.candidate {
            // It runs beside the active pipeline, so it can't take over its instances.
            new.make_all_spares(threads);
        }
    }

    /// Loads the pipelines of a configuration and a revision, as far as they differ from the
    /// running ones.
    ///
    /// # Errors
    /// All problems of the pipelines.
    pub(crate) fn load(
        loader: &Loader,
        config: &Config,
        revision: Option<&Revision>,
        running: &RunningPipelines,
        attempt: &Attempt,
    ) -> anyhow::Result<Self> {
        let candidate = running.candidate.as_ref();
        let canary = candidate.filter(|it| matches!(it.mode, Mode::Canary(_)));
        // A canary that may not run any more is loaded again, and the load reports why it may not.
        let canary = canary.filter(|it| {
            let with = with_chain(config, &it.chain);
            loader.permits(&with, &it.generation.blueprint)
        });
        let promoted = canary.filter(|it| *it.chain == *config.pipeline);
        let active = match promoted {
            Some(_) => ActiveChoice::Candidate,
            None => {
                let before = Some(&*running.blueprint);
                let loaded = loader.attempt(config, true, before, attempt);
                match loaded.map_err(join_problems)? {
                    same if same.is_same(&running.blueprint) => ActiveChoice::Same,
                    new => ActiveChoice::New(new),
                }
            }
        };
        let Some(chain) = revision.and_then(Revision::candidate_stages) else {
            return Ok(Self {
                active,
                candidate: CanaryChoice::None,
            });
        };
        let goes_on = canary.is_some_and(|it| *it.chain == *chain);
        if goes_on && matches!(active, ActiveChoice::Same) {
            return Ok(Self {
                active,
                candidate: CanaryChoice::Same,
            });
        }
        let before = match (&active, promoted) {
            (ActiveChoice::New(new), _) => new,
            (ActiveChoice::Candidate, Some(promoted)) => &promoted.generation.blueprint,
            (ActiveChoice::Same | ActiveChoice::Candidate, _) => &*running.blueprint,
        };
        let with = with_chain(config, &chain);
        let loaded = loader.load_candidate(&with, before, attempt);
        Ok(Self {
            active,
            candidate: CanaryChoice::New(loaded.map_err(join_problems)?, chain.into()),
        })
    }
}
