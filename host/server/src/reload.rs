//! What changes while a tenant runs: plugins, directory and configuration take
//! effect as they change. What can't be taken leaves everything as it is, and
//! says why.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc;

use crate::config::{self, Config, Effect};
use crate::directory::{self, kv, request::Fetcher};
use crate::http::Status;
use crate::loader::{self, Loader};
use crate::tenant::Tenant;
use crate::watch::Watch;

/// How often is looked whether there is something to tidy up.
const TIDY: Duration = Duration::from_secs(10);

/// What was last said of what couldn't be taken. Files are looked at whenever
/// something happens near them, and what is wrong is said once.
#[derive(Default)]
pub(crate) struct Refused {
    config: Said,
    directory: Said,
    pipeline: Said,
    restart: Vec<&'static str>,
}

/// What was last said of one thing; empty if it was taken.
#[derive(Default)]
struct Said(String);

impl Said {
    /// Says why something wasn't taken, if that is news, and whether it is.
    fn say(&mut self, what: &str, outcome: anyhow::Result<()>) -> bool {
        let error = outcome.err().map(|error| format!("{error:#}"));
        let is_news = error.as_ref().is_some_and(|error| *error != self.0);
        self.0 = error.unwrap_or_default();
        if is_news {
            for line in self.0.lines() {
                tracing::error!("{what}, the running one stays: {line}");
            }
        }
        is_news
    }
}

/// What is reloaded, and from where.
pub(crate) struct Reload {
    /// The configuration file that was named, if one was.
    pub(crate) path: Option<PathBuf>,
    pub(crate) config: Config,
    pub(crate) loader: Arc<Loader>,
    pub(crate) tenant: Tenant,
    pub(crate) status: Arc<Status>,
    /// What a KV bucket says; nothing comes where the directory is a file.
    pub(crate) updates: mpsc::Receiver<kv::Update>,
    pub(crate) refused: Refused,
}

impl Reload {
    /// Follows all of it for as long as it is polled.
    pub(crate) async fn follow(&mut self) -> anyhow::Result<()> {
        let mut watch = Watch::new(self.paths()).context("can't watch files")?;
        // What changed while the node started.
        self.files().await;
        let mut tidy = tokio::time::interval(TIDY);
        let fetcher = self.tenant.fetcher.clone();
        loop {
            tokio::select! {
                () = watch.changed() => {
                    self.files().await;
                    watch.set_paths(self.paths());
                }
                Some(update) = self.updates.recv() => self.update(update).await,
                () = answers(fetcher.as_deref()) => self.take_answers().await,
                _ = tidy.tick() => {
                    self.status.broker.report_drops();
                    self.tenant.tidy().await;
                }
            }
        }
    }

    /// Reads the directory for the first time: nothing is decided before.
    pub(crate) async fn read_directory(&mut self) -> anyhow::Result<()> {
        match self.config.directory {
            config::Directory::File { ref path } => {
                if let Some(what) = directory::missing(path) {
                    tracing::warn!("{what}");
                }
                self.reload_directory().await
            }
            config::Directory::Kv { .. } => {
                if let Some(update) = self.updates.recv().await {
                    self.update(update).await;
                }
                Ok(())
            }
            // It is asked when something is to be decided.
            config::Directory::Request(_) => Ok(()),
        }
    }

    /// Takes an update of the directory.
    async fn update(&mut self, update: kv::Update) {
        let (directory, changes) = update.apply(&self.tenant.names, &self.tenant.directory);
        self.tenant.set_directory(directory, changes).await;
    }

    /// Takes what has come of asking for the directory's answers.
    async fn take_answers(&mut self) {
        if let Some(fetcher) = &self.tenant.fetcher {
            let (directory, changes) = fetcher.apply(&self.tenant.directory).await;
            self.tenant.set_directory(directory, changes).await;
        }
    }

    fn paths(&self) -> Vec<PathBuf> {
        let usual = || config::FILE_NAME.into();
        let mut paths = vec![
            self.path.clone().unwrap_or_else(usual),
            self.config.plugins.dir.clone(),
        ];
        if let config::Directory::File { path } = &self.config.directory {
            paths.push(path.clone());
        }
        paths
    }

    async fn files(&mut self) {
        let config = self.reload_config().await;
        self.refused.config.say("configuration not taken", config);
        let directory = self.reload_directory().await;
        self.refused.directory.say("directory not taken", directory);
        let pipeline = self.reload_pipeline().await;
        if self.refused.pipeline.say("pipeline not swapped", pipeline) {
            self.status.refused_swaps.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn reload_config(&mut self) -> anyhow::Result<()> {
        let mut new = Config::load(self.path.as_deref(), std::env::vars())?;
        let changes = self.config.changes(&new);
        if changes.is_empty() {
            return Ok(());
        }
        let restart = changes
            .iter()
            .filter(|change| change.effect == Effect::Restart);
        let restart: Vec<_> = restart.map(|change| change.section).collect();
        for section in restart
            .iter()
            .filter(|section| !self.refused.restart.contains(section))
        {
            tracing::warn!("[{section}] has changed: it takes effect at the next start");
        }
        self.refused.restart = restart;
        new.keep_until_restart(&self.config);
        if self.config != new {
            self.config = new;
            self.tenant.configure(&self.config).await;
            tracing::info!("configuration reloaded");
        }
        Ok(())
    }

    async fn reload_directory(&mut self) -> anyhow::Result<()> {
        let config::Directory::File { path } = &self.config.directory else {
            return Ok(());
        };
        if !path.exists() && !self.tenant.directory.is_empty() {
            anyhow::bail!("{} is gone", path.display());
        }
        let content = directory::read_file(path, &self.tenant.names)?;
        self.tenant.replace_directory(content).await;
        Ok(())
    }

    async fn reload_pipeline(&mut self) -> anyhow::Result<()> {
        // Compiling takes long, and is done where nobody waits for it.
        let config = self.config.clone();
        let loader = Arc::clone(&self.loader);
        let running = self.tenant.running.borrow().clone();
        let load = move || loader.load(&config, true, Some(&running.blueprint));
        let loaded = tokio::task::spawn_blocking(load).await?;
        if self.tenant.swap(loaded.map_err(loader::together)?).await? {
            tracing::info!(
                generation = self.tenant.running.borrow().generation,
                "pipeline swapped: {}",
                self.config.pipeline_line()
            );
        }
        Ok(())
    }
}

/// Waits for answers of a directory that is asked; for ever where none is.
async fn answers(fetcher: Option<&Fetcher>) {
    match fetcher {
        Some(fetcher) => fetcher.arrived().await,
        None => std::future::pending().await,
    }
}
