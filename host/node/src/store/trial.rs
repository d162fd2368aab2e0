//! Validating a revision that is not written yet: what a swap would do is done, in its order,
//! but for the swap itself.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use presence_config::causes::Causes;
use presence_config::escape::together;
use presence_config::revision::Revision;
use presence_config::{Config, PluginSource};
use presence_rules::loader::{Attempt, Loader};
use tokio::sync::{Mutex, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::follow::{Fetcher, limit};
use crate::tenant::Running;

/// What validates revisions, one at a time.
pub(crate) struct Trials {
    pub(crate) fetcher: Fetcher,
    pub(crate) loader: Arc<Loader>,
    pub(crate) config: watch::Receiver<Config>,
    pub(crate) running: watch::Receiver<Running>,
    pub(crate) turn: Mutex<()>,
}

impl Trials {
    /// Validates a revision as it is kept.
    ///
    /// # Errors
    /// All that is wrong with it, a line each.
    pub(crate) async fn validate(&self, body: &[u8]) -> Result<(), String> {
        let validated = self.try_out(body).await;
        validated.map_err(|error| Causes(&error).to_string())
    }

    async fn try_out(&self, body: &[u8]) -> anyhow::Result<()> {
        let revision = Revision::parse(body)?;
        let _turn = self.turn.lock().await;
        let mut config = self.config.borrow().clone();
        let most = config.plugins.load_timeout;
        let fetched = timeout(most, self.fetcher.fetch(&revision, limit(&config))).await;
        fetched.context("its plugins can't be fetched in time")??;
        config.plugins.source = PluginSource::Store;
        config.pipeline = revision.stages();
        let running = Arc::clone(&self.running.borrow().blueprint);
        let (loader, attempt) = (Arc::clone(&self.loader), Arc::<Attempt>::default());
        let tried = Arc::clone(&attempt);
        let loaded = spawn_blocking(move || {
            let loaded = loader.attempt(&config, true, Some(&running), &tried);
            loaded.map(drop).map_err(together)
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
