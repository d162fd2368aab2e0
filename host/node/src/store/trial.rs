//! Trying out what isn't in force: a revision before it is written, with all steps of a swap but
//! the swap itself; and a plugin as a shadow.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use presence_config::causes::Causes;
use presence_config::digest::Digest;
use presence_config::escape::join_problems;
use presence_config::revision::Revision;
use presence_config::{Config, PluginSource, Tenant};
use presence_rules::loader::{Attempt, Loader};
use presence_sandbox::Blueprint;
use presence_sandbox::manifest::Role;
use serde::Deserialize;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::timeout;

use super::follow::{PluginFetcher, limit};
use crate::reload::{PipelineChange, Shadow, ShadowOrder, has_ended};
use crate::tasks::blocking;
use crate::tenant::RunningPipelines;

/// Validates revisions, one at a time.
pub(crate) struct RevisionValidator {
    pub(crate) fetcher: PluginFetcher,
    pub(crate) loader: Arc<Loader>,
    pub(crate) config: watch::Receiver<Config>,
    pub(crate) running: watch::Receiver<RunningPipelines>,
    pub(crate) turn: Mutex<()>,
    /// The channel to the task that begins and ends shadows.
    pub(crate) shadows: mpsc::Sender<ShadowOrder>,
}

/// A request to run a plugin as a shadow.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedShadow {
    plugin: String,
    digest: Digest,
    for_ms: u64,
}

/// The shortest and the longest duration of a shadow, in milliseconds.
const SHADOW_MS: RangeInclusive<u64> = 100..=86_400_000;

impl RevisionValidator {
    /// The tenant's configuration.
    pub(crate) fn tenant(&self) -> Tenant {
        self.config.borrow().tenant.clone()
    }

    /// Validates a revision, given as the bytes that would be stored.
    ///
    /// # Errors
    /// Everything that is wrong with it, one problem per line.
    pub(crate) async fn validate(&self, body: &[u8]) -> Result<(), String> {
        let validated = self.validate_revision(body).await;
        validated.map_err(|error| Causes(&error).to_string())
    }

    /// Runs a plugin as a shadow, in place of the pipeline's plugin of the same name.
    ///
    /// # Errors
    /// Everything that is wrong with it, one problem per line.
    pub(crate) async fn shadow(&self, body: &[u8]) -> Result<(), String> {
        let begun = self.begin_shadow(body).await;
        begun.map_err(|error| Causes(&error).to_string())
    }

    /// Ends the running shadow.
    ///
    /// # Errors
    /// If none runs.
    pub(crate) async fn end_shadow(&self) -> Result<(), String> {
        let (answer, ended) = oneshot::channel();
        // If the receiver is gone, the node is ending.
        let _ = self.shadows.send(ShadowOrder::End(answer)).await;
        ended.await.unwrap_or_else(|_| Err("the node ends".into()))
    }

    async fn begin_shadow(&self, body: &[u8]) -> anyhow::Result<()> {
        let wanted: WantedShadow = serde_json::from_slice(body).context("it is no shadow")?;
        ensure!(
            SHADOW_MS.contains(&wanted.for_ms),
            "a shadow lasts from 100 ms to 24 h"
        );
        let _turn = self.turn.lock().await;
        let mut config = self.config.borrow().clone();
        ensure!(
            config.follows_store(),
            "this node's pipeline is its folder's ([plugins] source), and a shadow needs the store"
        );
        let plugin = &wanted.plugin;
        replace_plugin(&mut config, plugin, &wanted.digest)?;
        let most = config.plugins.load_timeout;
        let fetched = self.fetcher.fetch_plugin(&wanted.digest, limit(&config));
        let fetched = timeout(most, fetched).await;
        let _held = fetched.context("the plugin can't be fetched in time")??;
        let running = self.running.borrow().clone();
        let chain: Arc<[_]> = config.pipeline.clone().into();
        let (loader, attempt) = (Arc::clone(&self.loader), Arc::<Attempt>::default());
        let (active, tried) = (Arc::clone(&running.blueprint), Arc::clone(&attempt));
        let loaded = blocking(move || {
            let loaded = loader.load_candidate(&config, &active, &tried);
            loaded.map_err(join_problems)
        });
        let Ok(loaded) = timeout(most, loaded).await else {
            attempt.give_up();
            bail!("not loaded in time ([plugins] load_timeout_ms)");
        };
        let blueprint = loaded??;
        ensure!(
            !is_enricher(&blueprint, plugin),
            "`{plugin}` is an enricher, which changes what is published: only filters and \
             redactors run in a shadow, and an enricher in a canary"
        );
        let (answer, begun) = oneshot::channel();
        let shadow = Shadow {
            plugin: wanted.plugin,
            digest: wanted.digest,
            lasts: Duration::from_millis(wanted.for_ms),
            blueprint,
            chain,
            generation: running.generation,
            answer,
        };
        self.shadows
            .send(ShadowOrder::Begin(Box::new(shadow)))
            .await
            .ok()
            .context("the node ends")?;
        begun.await?.map_err(anyhow::Error::msg)
    }

    async fn validate_revision(&self, body: &[u8]) -> anyhow::Result<()> {
        let revision = Revision::parse(body)?;
        let _turn = self.turn.lock().await;
        if let Some(candidate) = revision.candidate.clone() {
            let cache = Arc::clone(&self.fetcher.cache);
            if let Some(why) = blocking(move || cache.canary_end(&candidate)).await? {
                bail!("its canary doesn't run: {}", has_ended(&why));
            }
        }
        let mut config = self.config.borrow().clone();
        let most = config.plugins.load_timeout;
        let fetched = timeout(most, self.fetcher.fetch(&revision, limit(&config))).await;
        let _held = fetched.context("its plugins can't be fetched in time")??;
        config.plugins.source = PluginSource::Store;
        config.pipeline = revision.stages();
        let running = self.running.borrow().clone();
        let (loader, attempt) = (Arc::clone(&self.loader), Arc::<Attempt>::default());
        let tried = Arc::clone(&attempt);
        let loaded = blocking(move || {
            let loaded = PipelineChange::load(&loader, &config, Some(&revision), &running, &tried);
            loaded.map(drop)
        });
        match timeout(most, loaded).await {
            Ok(loaded) => loaded?,
            Err(_) => {
                attempt.give_up();
                bail!(
                    "not loaded within {} s ([plugins] load_timeout_ms), at last {}",
                    most.as_secs_f32(),
                    attempt.at()
                )
            }
        }
    }
}

/// Replaces a plugin in a configured pipeline by the one with this digest.
fn replace_plugin(config: &mut Config, plugin: &str, digest: &Digest) -> anyhow::Result<()> {
    let mut found = false;
    for stage in &mut config.pipeline {
        if stage.plugin == plugin {
            stage.digest = Some(digest.clone());
            found = true;
        }
    }
    ensure!(
        found,
        "the pipeline has no plugin `{plugin}` whose place a shadow could take"
    );
    Ok(())
}

/// Whether a plugin of a pipeline is an enricher.
fn is_enricher(blueprint: &Blueprint, plugin: &str) -> bool {
    let mut stages = blueprint.stages();
    stages.any(|it| *it.plugin.name == *plugin && it.plugin.manifest.role == Role::Enricher)
}
