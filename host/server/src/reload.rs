//! What changes while a tenant runs: plugins, directory and configuration take
//! effect as they change. What can't be taken leaves everything as it is, and
//! says why.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::Client;
use tokio::sync::mpsc;

use crate::config::{self, Config, Effect};
use crate::directory::{kv, request::Fetcher};
use crate::http::Status;
use crate::loader::{self, Loader};
use crate::tenant::Tenant;
use crate::watch::Watch;

mod directory;

/// How often is looked whether there is something to tidy up.
const TIDY: Duration = Duration::from_secs(10);

/// How far apart two readings of the configuration file are that must agree, and how
/// often they are tried.
const AGREE: Duration = Duration::from_millis(150);
const AGREE_TRIES: usize = 20;

/// What was last said of what couldn't be taken. Files are looked at whenever
/// something happens near them, and what is wrong is said once.
#[derive(Default)]
struct Refused {
    config: Said,
    pipeline: Said,
    /// What the last load of the pipeline went by.
    asked: u64,
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
    path: Option<PathBuf>,
    /// Its text, as it was last taken; none if there was no file.
    text: Option<config::Text>,
    config: Config,
    loader: Arc<Loader>,
    pub(crate) tenant: Tenant,
    status: Arc<Status>,
    client: Client,
    /// What a KV bucket says; nothing comes where the directory is a file.
    updates: mpsc::Receiver<kv::Update>,
    /// What of the bucket can't be taken.
    refusals: kv::Refusals,
    refused: Refused,
}

impl Reload {
    /// What was read at the start, and what it is now to be followed for.
    pub(crate) fn new(
        path: Option<PathBuf>,
        (config, text): (Config, Option<config::Text>),
        loader: Arc<Loader>,
        tenant: Tenant,
        status: Arc<Status>,
        client: Client,
    ) -> Self {
        // No bucket is followed yet.
        let (_, updates) = mpsc::channel(1);
        Self {
            path,
            text,
            config,
            loader,
            tenant,
            status,
            client,
            updates,
            refusals: kv::Refusals::default(),
            refused: Refused::default(),
        }
    }

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

    fn paths(&self) -> Vec<PathBuf> {
        let usual = || config::FILE_NAME.into();
        let mut paths = vec![
            self.path.clone().unwrap_or_else(usual),
            self.config.plugins.dir.clone(),
        ];
        if let config::Directory::File { path, .. } = &self.config.directory {
            paths.push(path.clone());
        }
        paths
    }

    async fn files(&mut self) {
        let config = self.reload_config().await;
        self.refused.config.say("configuration not taken", config);
        self.reload_directory().await;
        let pipeline = self.reload_pipeline().await;
        if self.refused.pipeline.say("pipeline not swapped", pipeline) {
            self.status.refused_swaps.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn reload_config(&mut self) -> anyhow::Result<()> {
        let read = || Ok(config::Text::read(self.path.as_deref())?);
        let Some(text) = changed(self.text.as_ref(), read).await? else {
            return Ok(());
        };
        if let Some(running) = &self.text {
            ensure!(
                !text.sets_nothing() || running.sets_nothing(),
                "nothing is set in the file any more: write what is to hold"
            );
            ensure!(
                text.has_pipeline() || !running.has_pipeline(),
                "there is no [[pipeline]] in the file any more, and the default one doesn't take \
                 the place of what was configured: write the sections that are to hold"
            );
        }
        let mut new = Config::parse(self.path.as_deref(), Some(&text), std::env::vars())?;
        self.text = Some(text);
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

    async fn reload_pipeline(&mut self) -> anyhow::Result<()> {
        // Compiling takes long, and is done where nobody waits for it.
        let config = self.config.clone();
        let loader = Arc::clone(&self.loader);
        // Another change is refused anew, be it for the same reason.
        let asked = loader.stamp(&config);
        if std::mem::replace(&mut self.refused.asked, asked) != asked {
            self.refused.pipeline = Said::default();
        }
        let running = self.tenant.running.borrow().clone();
        let before = Arc::clone(&running.blueprint);
        let load = move || loader.load(&config, true, Some(&running.blueprint));
        let loaded = tokio::task::spawn_blocking(load).await?;
        if self.tenant.swap(loaded.map_err(loader::together)?).await? {
            tracing::info!(
                generation = self.tenant.running.borrow().generation,
                "pipeline swapped: {}",
                self.tenant.running.borrow().blueprint.line()
            );
            for stage in before.narrowing_missing_in(&self.tenant.running.borrow().blueprint) {
                tracing::warn!(
                    plugin = &*stage,
                    "the stage `{stage}`, which hid users or what is shown of them, is no longer \
                     in the pipeline: more may be seen now"
                );
            }
        }
        let running = Arc::clone(&self.tenant.running.borrow().blueprint);
        self.loader.put_in_force(&running);
        Ok(())
    }
}

/// What is read of a file, where it is another text than the running one, and two
/// readings agree: a file that is being written is read in pieces.
async fn changed(
    running: Option<&config::Text>,
    mut read: impl FnMut() -> anyhow::Result<Option<config::Text>>,
) -> anyhow::Result<Option<config::Text>> {
    let mut before = None;
    for _ in 0..AGREE_TRIES {
        let text = read()?;
        if text.as_ref() == running {
            return Ok(None);
        }
        let text = text.context("the file is gone")?;
        if before.as_ref() == Some(&text) {
            return Ok(Some(text));
        }
        before = Some(text);
        tokio::time::sleep(AGREE).await;
    }
    anyhow::bail!("it is being written all the time")
}

/// Waits for answers of a directory that is asked; for ever where none is.
async fn answers(fetcher: Option<&Fetcher>) {
    match fetcher {
        Some(fetcher) => fetcher.arrived().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a file that is read as these texts, one after the other.
    async fn read_as(texts: &[Option<&str>]) -> anyhow::Result<Option<config::Text>> {
        let running = text("a");
        let mut texts = texts.iter();
        let read = || Ok(texts.next().and_then(|it| it.map(text)));
        changed(Some(&running), read).await
    }

    fn text(text: &str) -> config::Text {
        config::Text::of(text)
    }

    #[tokio::test]
    async fn a_text_is_taken_when_two_readings_agree() {
        assert_eq!(read_as(&[Some("a")]).await.unwrap(), None);
        let pieces = [Some("b"), Some("b c"), Some("b c d"), Some("b c d")];
        assert_eq!(read_as(&pieces).await.unwrap(), Some(text("b c d")));
        assert_eq!(read_as(&[Some("b"), Some("a")]).await.unwrap(), None);
        for gone in [&[None][..], &[Some("b"), None]] {
            let error = read_as(gone).await.unwrap_err().to_string();
            assert_eq!(error, "the file is gone");
        }
    }
}
