//! Loading the pipeline that a node starts with, from the folder or from the plugin store.

use std::sync::Arc;

use presence_config::causes::Causes;
use presence_config::escape::join_problems;
use presence_config::regular_file::Stamp;
use presence_config::revision::Revision;
use presence_config::{self as config, Config, Text};
use presence_rules::in_force::InForce;
use presence_rules::loader::{Attempt, Loader, SharedCompiler};
use presence_sandbox::Blueprint;
use serde_json::json;
use tokio::time::timeout;

use crate::link::admin::Admin;
use crate::link::alerts::Alerts;
use crate::reload::{ConfigSource, has_ended};
use crate::store::follow::PluginFetcher;
use crate::store::{self, Store};
use crate::tasks::blocking;
use crate::tenant::FirstCandidate;

/// The pipeline that a node starts with.
pub(super) struct LoadedPipeline {
    pub(super) loader: Arc<Loader>,
    /// The stamp of the files that it was loaded from.
    pub(super) stamp: u64,
    pub(super) blueprint: Blueprint,
    /// The canary that runs beside it, if any.
    pub(super) candidate: Option<FirstCandidate>,
}

/// Loads the configured pipeline.
pub(super) async fn load(
    config: &Config,
    compiler: &SharedCompiler,
) -> anyhow::Result<LoadedPipeline> {
    load_or(config, compiler, |problems| {
        problems.context("the pipeline can't be loaded")
    })
    .await
}

/// Like [`load`]. `refused` adds context to the error if the pipeline is refused.
async fn load_or(
    config: &Config,
    compiler: &SharedCompiler,
    refused: impl FnOnce(anyhow::Error) -> anyhow::Error + Send + 'static,
) -> anyhow::Result<LoadedPipeline> {
    let (known, compiler) = (config.clone(), compiler.clone());
    // Reading files may hang, and compiling takes long.
    let loaded = blocking(move || {
        let in_force = InForce::read(&known)?;
        let loader = Arc::new(Loader::with_compiler(&compiler, &known)?.with_in_force(in_force));
        let stamp = Loader::fingerprint(&known);
        let blueprint = loader.load(&known, true);
        let blueprint = blueprint.map_err(|problems| refused(join_problems(problems)))?;
        Ok(LoadedPipeline {
            loader,
            stamp,
            blueprint,
            candidate: None,
        })
    });
    let limit = config.plugins.load_timeout;
    let Ok(loaded) = timeout(limit, loaded).await else {
        let limit = limit.as_secs_f32();
        anyhow::bail!("the pipeline is not loaded within {limit} s ([plugins] load_timeout_ms)");
    };
    loaded?
}

/// The configuration that a tenant starts with, and the source of its changes.
pub(super) struct TenantStart {
    pub(super) config: Config,
    pub(super) source: ConfigSource,
    /// The state of the configuration file when it was read.
    pub(super) seen: Stamp,
}

impl TenantStart {
    /// The changes since the start, after the node has waited for its turn: it must serve by the
    /// current rules. `None` if nothing has changed, or if the change can't be taken. What was
    /// loaded then stays, as in a running node, and the log reports the problem once the files are
    /// followed.
    pub(super) async fn changed(&mut self, loaded: Option<&LoadedPipeline>) -> Option<Self> {
        let (before, source) = (self.config.clone(), self.source.clone());
        let (stamp, seen) = (loaded.map(|loaded| loaded.stamp), self.seen);
        let read = blocking(move || {
            let mut config = before.clone();
            let mut source = source;
            match &mut source {
                ConfigSource::File { path, text } => {
                    let now = Text::read(path.as_deref()).ok()?;
                    if now != *text {
                        if let Some(known) = text {
                            // A file that has vanished changes nothing, as in a running node.
                            now.as_ref()?.may_follow(known).ok()?;
                        }
                        let variables = config::variables();
                        config = Config::parse(path.as_deref(), now.as_ref(), variables).ok()?;
                        config.keep_until_restart(&before);
                        *text = now;
                    }
                }
                ConfigSource::Watched(given) => {
                    config = Config::clone(&given.borrow_and_update());
                    config.keep_until_restart(&before);
                }
            }
            let is_new = |stamp| Loader::fingerprint(&config) != stamp;
            let is_changed = config != before || stamp.is_some_and(is_new);
            is_changed.then_some(Self {
                config,
                source,
                seen,
            })
        });
        let newer = read.await.ok()??;
        tracing::info!("files have changed while the node waited, and are read again");
        Some(newer)
    }
}

/// Also loads the canary of a revision, if it has one. Returns what is wrong with the canary, if
/// anything.
async fn with_candidate(
    config: &Config,
    revision: &Revision,
    loaded: LoadedPipeline,
) -> anyhow::Result<(LoadedPipeline, Option<anyhow::Error>)> {
    let (Some(candidate), Some(chain)) = (&revision.candidate, revision.candidate_stages()) else {
        return Ok((loaded, None));
    };
    let (kept, which) = (Arc::clone(loaded.loader.store_cache()), candidate.clone());
    if let Some(why) = blocking(move || kept.canary_end(&which)).await? {
        return Ok((loaded, Some(anyhow::Error::msg(has_ended(&why)))));
    }
    let (mut with, share) = (config.clone(), candidate.percent);
    with.pipeline.clone_from(&chain);
    let both = blocking(move || {
        let active = &loaded.blueprint;
        let attempt = Attempt::default();
        match loaded.loader.load_candidate(&with, active, &attempt) {
            Ok(blueprint) => {
                let candidate = Some(FirstCandidate {
                    blueprint,
                    share,
                    chain: chain.into(),
                });
                (
                    LoadedPipeline {
                        candidate,
                        ..loaded
                    },
                    None,
                )
            }
            Err(problems) => (loaded, Some(join_problems(problems))),
        }
    });
    Ok(both.await?)
}

/// The state of the plugin store at the start, and the revision that is in force.
pub(super) type StoreStart = (Arc<store::state::StoreState>, Option<Arc<Revision>>);

/// Fetches plugins from the store to this node.
pub(super) fn fetcher(config: &Config, admin: &Admin, loader: &Loader) -> PluginFetcher {
    PluginFetcher {
        store: Store::new(&admin.client, config.tenant.prefix.as_deref()),
        cache: Arc::clone(loader.store_cache()),
    }
}

/// Loads the newest pipeline of the plugin store, or else the one that was last in force. If there
/// is neither, the pipeline has no stages, and nobody is visible until there is one.
pub(super) async fn load_stored(
    config: &mut Config,
    compiler: &SharedCompiler,
    admin: &Admin,
    alerts: &Alerts,
) -> anyhow::Result<(LoadedPipeline, StoreStart)> {
    config.pipeline = Vec::new();
    let state = Arc::<store::state::StoreState>::default();
    let (known, shared) = (config.clone(), compiler.clone());
    let loader = blocking(move || Loader::with_compiler(&shared, &known)).await??;
    let fetcher = fetcher(config, admin, &loader);
    let begin = store::follow::begin(&fetcher, store::follow::limit(config), &state).await;
    let alert = |revision: u64, why: &str| {
        if state.mark_alerted(revision, why) {
            let about = json!({"revision": revision, "error": why});
            alerts.raise("revision-refused", about);
        }
    };
    if let Some((revision, why)) = state.refused() {
        alert(revision, &why);
    }
    // The kept revision may be the newest one.
    let kept = begin.kept.filter(|it| begin.newest.as_ref() != Some(it));
    for revision in [begin.newest, kept].into_iter().flatten() {
        let mut with = config.clone();
        with.pipeline = revision.stages();
        // The error has the same text as in a running node, so that there is one alert and not two.
        match load_or(&with, compiler, |problems| problems).await {
            Ok(loaded) => {
                let (loaded, refused) = with_candidate(&with, &revision, loaded).await?;
                let refused = refused.map(|error| {
                    let why = format!("its canary doesn't run: {}", Causes(&error));
                    tracing::error!("revision {}: {why}", revision.revision);
                    let about = json!({"revision": revision.revision, "error": why});
                    alerts.raise("canary-refused", about);
                    why
                });
                *config = with;
                let (kept, keep) = (
                    Arc::clone(loaded.loader.store_cache()),
                    Arc::clone(&revision),
                );
                blocking(move || kept.record_in_force(&keep)).await?;
                state.set_in_force(Arc::clone(&revision));
                if let Some(why) = refused {
                    state.refuse(revision.revision, why);
                }
                tracing::info!(revision = revision.revision, "pipeline revision in force");
                return Ok((loaded, (state, Some(revision))));
            }
            Err(error) => {
                let (revision, why) = (revision.revision, Causes(&error).to_string());
                tracing::error!("revision {revision} is refused: {why}");
                alert(revision, &why);
                state.refuse(revision, why);
            }
        }
    }
    tracing::error!("{}", state.why_none_in_force().unwrap_or_default());
    Ok((load(config, compiler).await?, (state, None)))
}
