//! Loads the pipeline again, and puts it in force.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use presence_config::causes::Causes;
use presence_config::regular_file::Unreadable;
use presence_config::revision::Revision;
use presence_config::{Config, Stage};
use presence_rules::loader::{self, Loader};
use presence_sandbox::Blueprint;
use tokio::sync::watch;

use super::Reload;
use super::candidate::{ApplyResult, PipelineChange, Shadow};
use super::refusal_log::LastRefusal;
use crate::candidate::{CandidatePipeline, Pipelines};
use crate::reload::on_disk::FileKind;
use crate::tasks::blocking;
use crate::tenant::RunningPipelines;

/// The result of loading the pipeline: the revision, if it comes from the store, and the change.
/// The change is `None` if the loaded pipeline is the running one.
pub(super) type LoadResult = (
    Option<Arc<Revision>>,
    anyhow::Result<Option<PipelineChange>>,
);

impl Reload {
    /// Loads the configured pipeline. This replaces a load in progress.
    pub(super) fn load_pipeline(&mut self, stamp: u64) {
        // After another change, a refusal is logged again, even for the same reason.
        if self.seen.pipeline.replace(stamp) != Some(stamp) {
            self.refused.pipeline = LastRefusal::default();
        }
        let (config, loader) = (self.config.clone(), Arc::clone(&self.loader));
        let running = self.tenant.running.subscribe();
        let limit = config.plugins.load_timeout;
        let revision = self.wanted_revision();
        // One set of instances for each thread on which shards of the tenant live.
        let threads = self.tenant.pool.len().min(self.tenant.shards.iter().len());
        self.loads.start(limit, move |attempt| {
            let running = running.borrow().clone();
            let loaded =
                PipelineChange::load(&loader, &config, revision.as_deref(), &running, attempt);
            let loaded = loaded.inspect(|change| change.make_ready(&running, threads));
            let loaded = loaded.map(|change| (!change.is_none()).then_some(change));
            Ok((revision, loaded))
        });
    }

    /// Puts a loaded pipeline in force, or reports why it can't be.
    pub(super) async fn apply_pipeline(&mut self, loaded: anyhow::Result<LoadResult>) {
        let (revision, loaded) = match loaded {
            Ok(loaded) => loaded,
            // It has timed out or panicked.
            Err(error) => (self.wanted_revision(), Err(error)),
        };
        let error = loaded.as_ref().err();
        let is_same = matches!(loaded, Ok(None));
        self.load_again = error.is_some_and(|error| error.chain().any(may_pass));
        let mut without_canary = None;
        let refusal = match loaded {
            Ok(loaded) => {
                let candidate = revision.as_ref().and_then(|it| it.candidate.clone());
                match self.apply(loaded.unwrap_or_default(), candidate).await {
                    ApplyResult::Done => {}
                    ApplyResult::WithoutCanary(why) => without_canary = Some(why),
                    ApplyResult::Again => return,
                }
                None
            }
            Err(error) => Some(Causes(&error).to_string()),
        };
        let is_taken = refusal.is_none();
        // This is done after every load, even a failed one: a key or a permission may have been
        // withdrawn, although the new files were refused. A shadow is not part of the load.
        self.withdraw().await;
        match revision {
            Some(revision) => {
                let number = revision.revision;
                self.note_revision(revision, refusal.as_deref()).await;
                if let Some(why) = without_canary {
                    self.note_without_canary(number, &why);
                }
            }
            None => {
                // A plugin whose file is gone continues to run, but the next start would fail.
                let gone = self.loader.missing_files_report(&self.config);
                self.note(FileKind::Pipeline, refusal.clone().or(gone), is_same);
            }
        }
        self.refuse_pipeline(refusal);
        self.log_reloaded(is_taken);
    }

    /// Whether a shadow that was loaded may still run.
    pub(super) fn permits_shadow(&self, shadow: &Shadow) -> bool {
        let with = with_chain(&self.config, &shadow.chain);
        self.loader.permits(&with, &shadow.blueprint)
    }

    /// Takes stages out of service that may not run any more according to the configuration. They
    /// are in quarantine until they may run again or are replaced. A pipeline that differs only in
    /// this is put in force, so that all users are decided again.
    pub(super) async fn withdraw(&mut self) {
        let running = self.tenant.running.borrow().clone();
        let active = self.loader.reevaluated(&self.config, &running.blueprint);
        let judged = running.candidate.as_ref().and_then(|it| {
            let with = with_chain(&self.config, &it.chain);
            self.loader.reevaluated(&with, &it.generation.blueprint)
        });
        if active.is_none() && judged.is_none() {
            return;
        }
        for stage in active.iter().chain(&judged).flat_map(Blueprint::stages) {
            if let Some(why) = stage.withdrawn() {
                let (plugin, line) = (&*stage.plugin.name, stage.line());
                tracing::error!(
                    plugin,
                    "{line} may not run any more, and is in quarantine until it may again, or is \
                     replaced: {why}"
                );
            }
        }
        let before = Pipelines::from(&running);
        let active = match active {
            Some(blueprint) => self.tenant.next_generation(blueprint),
            None => before.active,
        };
        let candidate = before.candidate.map(|candidate| match judged {
            Some(blueprint) => CandidatePipeline {
                generation: self.tenant.next_generation(blueprint),
                ..candidate
            },
            None => candidate,
        });
        self.tenant
            .set_pipelines(Pipelines { active, candidate })
            .await;
    }

    /// Reports why a pipeline was not put in force, unless this was reported already.
    pub(super) fn refuse_pipeline(&mut self, refusal: Option<String>) {
        let why = refusal.clone().unwrap_or_default();
        let last = &mut self.refused.pipeline;
        if last.report("pipeline not swapped", refusal) {
            self.status.refused_swaps.fetch_add(1, Ordering::Relaxed);
            if let Some((what, about)) = self.about_refusal(&why) {
                self.alerts.raise(what, about);
            }
        }
    }

    /// Logs that another pipeline is active.
    pub(super) fn log_swapped(&self, before: &Blueprint) {
        let running = self.tenant.running.borrow().clone();
        tracing::info!(
            generation = running.generation,
            "pipeline swapped: {}",
            running.blueprint.line()
        );
        if let Some(doubt) = loader::pipeline_warning(&running.blueprint) {
            tracing::warn!("{doubt}");
        }
        for stage in before.narrowing_missing_in(&running.blueprint) {
            tracing::warn!(
                plugin = &*stage,
                "the stage `{stage}`, which restricted what viewers see, is no longer in the \
                 pipeline: viewers may see more now"
            );
        }
    }
}

/// The configuration, with the stages of a pipeline beside the active one.
pub(super) fn with_chain(config: &Config, chain: &[Stage]) -> Config {
    Config {
        pipeline: chain.to_vec(),
        ..config.clone()
    }
}

/// Whether the cause of an error may pass by itself.
fn may_pass(cause: &(dyn std::error::Error + 'static)) -> bool {
    matches!(
        cause.downcast_ref(),
        Some(error @ Unreadable::Io(..)) if !error.is_missing()
    )
}

/// Writes down which plugins are in force, whenever this changes.
pub(crate) async fn note_in_force(
    loader: Arc<Loader>,
    mut running: watch::Receiver<RunningPipelines>,
) {
    while running.changed().await.is_ok() {
        let blueprint = Arc::clone(&running.borrow_and_update().blueprint);
        let loader = Arc::clone(&loader);
        // A disk may hang, so this is done on another thread.
        let noted = blocking(move || loader.record_in_force(&blueprint));
        if let Err(error) = noted.await {
            tracing::error!("which plugins are in force can't be noted: {error}");
        }
    }
}
