//! What a load has made of a configuration and a revision, to be put in force as a whole.

use std::sync::Arc;

use presence_config::escape::join_problems;
use presence_config::revision::Revision;
use presence_config::{Config, Stage};
use presence_rules::loader::{Attempt, Loader};
use presence_sandbox::Blueprint;

use crate::beside::Mode;
use crate::reload::pipeline::with_chain;
use crate::tenant::RunningPipelines;

/// What a load has to put in force.
#[derive(Default)]
pub(crate) struct PipelineChange {
    pub(super) active: ActiveChoice,
    pub(super) candidate: CanaryChoice,
}

/// Which pipeline is the active one.
#[derive(Default)]
pub(super) enum ActiveChoice {
    /// The one that is.
    #[default]
    Same,
    /// The canary: it is promoted.
    Candidate,
    New(Blueprint),
}

/// Which pipeline is the canary's.
#[derive(Default)]
pub(super) enum CanaryChoice {
    #[default]
    None,
    /// The one that is.
    Same,
    New(Blueprint, Arc<[Stage]>),
}

impl PipelineChange {
    /// Whether what runs is left alone: the active pipeline, and that nothing runs beside it.
    pub(in crate::reload) fn is_none(&self) -> bool {
        matches!(
            (&self.active, &self.candidate),
            (ActiveChoice::Same, CanaryChoice::None)
        )
    }

    /// Makes instances of what is new for so many threads, before they need them.
    pub(in crate::reload) fn make_ready(&self, running: &RunningPipelines, threads: usize) {
        let active = &*running.blueprint;
        if let ActiveChoice::New(new) = &self.active {
            new.make_spares(active, threads);
        }
        if let CanaryChoice::New(new, _) = &self.candidate {
            // It runs beside the other one, and takes no instances of it.
            new.make_all_spares(threads);
        }
    }

    /// Loads what a configuration and a revision say, where it isn't what runs.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub(crate) fn load(
        loader: &Loader,
        config: &Config,
        revision: Option<&Revision>,
        running: &RunningPipelines,
        attempt: &Attempt,
    ) -> anyhow::Result<Self> {
        let beside = running.beside.as_ref();
        let canary = beside.filter(|it| matches!(it.mode, Mode::Canary(_)));
        // One that may not run any more is loaded anew, which says why it can't be.
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
        let loaded = loader.attempt_beside(&with, before, attempt);
        Ok(Self {
            active,
            candidate: CanaryChoice::New(loaded.map_err(join_problems)?, chain.into()),
        })
    }
}
