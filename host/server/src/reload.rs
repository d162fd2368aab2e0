//! Following the files: plugins, directory and configuration take effect as
//! they change. What can't be taken leaves everything as it is, and says why.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use presence_core::Input;
use presence_core::directory::Directory;
use presence_core::names::Names;
use tokio::sync::mpsc;

use crate::blueprint::Loader;
use crate::config::{self, Config, Effect};
use crate::http::Status;
use crate::worker::Task;
use crate::{clock, directory_file, run};

/// How long the files must have been quiet: a write in several steps is one change.
const QUIET: Duration = Duration::from_millis(100);

/// What is reloaded, and who is told.
pub(crate) struct Reload {
    pub(crate) path: Option<PathBuf>,
    pub(crate) config: Config,
    pub(crate) loader: Arc<Loader>,
    /// What the running pipeline was made of.
    pub(crate) running: String,
    pub(crate) names: Arc<Names>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) workers: Arc<[mpsc::Sender<Task>]>,
    pub(crate) status: Arc<Status>,
    pub(crate) client: async_nats::Client,
}

impl Reload {
    /// Follows the files until the node stops.
    pub(crate) async fn follow(mut self) -> anyhow::Result<()> {
        let (changed, mut changes) = mpsc::unbounded_channel();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                // Reading the files, as a reload does, is no change.
                if !event.is_ok_and(|event| event.kind.is_access()) {
                    // Nobody listens any more when the node is stopping.
                    let _ = changed.send(());
                }
            })?;
        loop {
            // A folder that was removed and made again is watched again.
            self.watch(&mut watcher);
            if changes.recv().await.is_none() {
                return Ok(());
            }
            while let Ok(Some(())) = tokio::time::timeout(QUIET, changes.recv()).await {}
            self.reload().await;
        }
    }

    /// Watches folders rather than files: a file is often replaced whole, and
    /// the link to it may be.
    fn watch(&self, watcher: &mut RecommendedWatcher) {
        let mut folders = BTreeSet::from([self.config.plugins.dir.clone()]);
        let file = self
            .path
            .clone()
            .unwrap_or_else(|| config::FILE_NAME.into());
        folders.insert(folder(&file));
        if let config::Directory::File { path } = &self.config.directory {
            folders.insert(folder(path));
        }
        for folder in folders.iter().filter(|folder| folder.is_dir()) {
            if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
                tracing::warn!(folder = %folder.display(), %error, "can't watch a folder");
            }
        }
    }

    async fn reload(&mut self) {
        if let Err(error) = self.reload_config().await {
            tracing::error!("configuration not taken, the running one stays: {error:#}");
        }
        if let Err(error) = self.reload_directory().await {
            tracing::error!("directory not taken, the running one stays: {error:#}");
        }
        if let Err(error) = self.reload_pipeline().await {
            self.status.refused_swaps.fetch_add(1, Ordering::Relaxed);
            tracing::error!("pipeline not swapped, the running one stays: {error:#}");
        }
    }

    async fn reload_config(&mut self) -> anyhow::Result<()> {
        let new = Config::load(self.path.as_deref(), std::env::vars())?;
        let changes = self.config.changes(&new);
        if changes.is_empty() {
            return Ok(());
        }
        for change in changes
            .iter()
            .filter(|change| change.effect == Effect::Restart)
        {
            tracing::warn!(
                "[{}] has changed: it takes effect at the next start",
                change.section
            );
        }
        self.config = new;
        let settings = Box::new(run::settings(
            &self.config,
            run::body_bytes_max(&self.client),
        ));
        self.tell(|| Input::Settings(settings.clone())).await;
        tracing::info!("configuration reloaded");
        Ok(())
    }

    async fn reload_directory(&mut self) -> anyhow::Result<()> {
        let config::Directory::File { path } = &self.config.directory else {
            return Ok(());
        };
        if !path.exists() && !self.directory.is_empty() {
            anyhow::bail!("{} is gone", path.display());
        }
        let (directory, changes) = directory_file::load(path, &self.names, &self.directory)?;
        if !changes.is_empty() {
            tracing::info!(
                users = directory.len(),
                answers = changes.len(),
                "directory reloaded"
            );
            self.directory = Arc::new(directory);
            let changes = Arc::new(changes);
            let directory = Arc::clone(&self.directory);
            self.tell(|| Input::Directory(Arc::clone(&directory), Arc::clone(&changes)))
                .await;
        }
        Ok(())
    }

    async fn reload_pipeline(&mut self) -> anyhow::Result<()> {
        // Compiling takes long, and is done where nobody waits for it.
        let config = self.config.clone();
        let loader = Arc::clone(&self.loader);
        let (blueprint, fingerprint) =
            tokio::task::spawn_blocking(move || loader.load(&config, true)).await??;
        if fingerprint == self.running {
            return Ok(());
        }
        let pipelines: Vec<_> = self
            .workers
            .iter()
            .map(|_| blueprint.instantiate())
            .collect::<Result<_, _>>()?;
        for (worker, pipeline) in self.workers.iter().zip(pipelines) {
            worker
                .send(Task::Pipeline(Box::new(pipeline)))
                .await
                .ok()
                .context("a worker is gone")?;
        }
        self.running = fingerprint;
        self.status.swaps.fetch_add(1, Ordering::Relaxed);
        let plugins: Vec<_> = self
            .config
            .pipeline
            .iter()
            .map(|stage| stage.plugin.as_str())
            .collect();
        tracing::info!("pipeline swapped: {}", plugins.join(" → "));
        Ok(())
    }

    async fn tell(&self, input: impl Fn() -> Input) {
        for worker in self.workers.iter() {
            // A worker that is gone is one that was told to stop.
            let _ = worker
                .send(Task::Inputs(clock::now_ms(), vec![input()]))
                .await;
        }
    }
}

fn folder(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if folder != Path::new("") => folder.into(),
        _ => ".".into(),
    }
}
