//! Following the directory's source: what it says is put in force, and what it can't say
//! leaves what was known as it is.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use presence_core::directory::{Changes, Directory};
use tokio::sync::mpsc;

use super::Reload;
use crate::config;
use crate::directory::kept::{Keeper, Origin};
use crate::directory::{self, File, kv};

/// How many updates of a directory in a KV bucket may wait.
const QUEUE: usize = 64;

impl Reload {
    /// Reads the directory for the first time: nothing is decided before. Where it is
    /// unavailable, what was known when the node last ran is in force.
    pub(crate) async fn read_directory(&mut self) {
        let accepted = self.remember().await;
        match &self.config.directory {
            config::Directory::File { .. } => self.reload_directory().await,
            config::Directory::Kv { bucket } => {
                let (updated, updates) = mpsc::channel(QUEUE);
                self.updates = updates;
                let health = Arc::clone(&self.tenant.health);
                let (client, bucket) = (self.client.clone(), bucket.clone());
                let follower = kv::Follower::new(client, bucket, health, updated, accepted);
                tokio::spawn(follower.follow());
                if let Some(update) = self.updates.recv().await {
                    self.update(update).await;
                }
            }
            // It is asked when something is to be decided.
            config::Directory::Request(_) => {}
        }
    }

    /// Puts the copy of the directory in force that the last run has left. Says which
    /// bucket it was taken from, if it was one.
    async fn remember(&mut self) -> Option<String> {
        let source = source(&self.config.directory)?;
        let dir = self.config.state.dir.as_ref();
        let dir = dir.filter(|_| self.tenant.state.is_some())?;
        let tenant = self.config.tenant.prefix.as_deref().unwrap_or("presence");
        let path = dir.join(format!("{tenant}.directory.redb"));
        let opened = Keeper::open(&path, &source, &self.tenant.names, &self.tenant.health);
        match opened {
            Ok((keeper, kept)) => {
                let mut identity = None;
                if let Some(kept) = kept {
                    identity = Some(kept.origin.identity);
                    tracing::info!(
                        users = kept.directory.len(),
                        "the directory is as it was last known, until it is read"
                    );
                    self.tenant
                        .set_directory(kept.directory, kept.changes)
                        .await;
                }
                // Not before: what it holds needn't be written again.
                self.tenant.keeper = Some(keeper);
                identity.filter(|identity| !identity.is_empty())
            }
            Err(error) => {
                tracing::error!("the directory won't outlive a restart: {error:#}");
                None
            }
        }
    }

    /// Takes an update of a bucket.
    pub(super) async fn update(&mut self, update: kv::Update) {
        let mut doubt = None;
        match &update {
            kv::Update::Whole(_, identity) => self.set_origin(identity.clone()),
            kv::Update::Doubtful(_, why) => doubt = Some(why.clone()),
            kv::Update::Unavailable(why) => return self.unavailable(why),
            kv::Update::Part(_) => {}
        }
        let is_part = matches!(update, kv::Update::Part(_));
        let (names, before) = (&self.tenant.names, &self.tenant.directory);
        if let Some((directory, changes)) = update.apply(&mut self.refusals, names, before) {
            self.tenant.set_directory(directory, changes).await;
        }
        let (keys, values) = self.refusals.counts();
        let health = &self.tenant.health;
        health.refused_keys.store(keys, Ordering::Relaxed);
        health.refused_values.store(values, Ordering::Relaxed);
        match doubt {
            // All that it held has been deleted, key by key.
            Some(_) if self.tenant.directory.is_empty() => health.available(),
            Some(why) => self.unavailable(&why),
            None if is_part => {}
            None => health.available(),
        }
    }

    /// Takes what has come of asking for the directory's answers.
    pub(super) async fn take_answers(&mut self) {
        if let Some(fetcher) = &self.tenant.fetcher {
            let (directory, changes) = fetcher.apply(&self.tenant.directory).await;
            self.tenant.set_directory(directory, changes).await;
        }
    }

    /// Reads the directory's file, if it is one.
    pub(super) async fn reload_directory(&mut self) {
        let config::Directory::File { path, is_named } = &self.config.directory else {
            return;
        };
        let holds = !self.tenant.directory.is_empty();
        match directory::read_file(path, &self.tenant.names) {
            Ok(File::Content(content)) if holds && content.is_blank() => {
                let why = format!(
                    "{} says nothing of anybody, where it did: to empty a directory, write all \
                     of its sections, {{\"contacts\":{{}},\"groups\":{{}},\"blocks\":{{}},\"settings\":{{}}}}",
                    path.display()
                );
                self.unavailable(&why);
            }
            Ok(File::Content(content)) => {
                self.set_origin(String::new());
                self.tenant.replace_directory(content).await;
                self.tenant.health.available();
            }
            Ok(File::Missing) if !is_named && !holds => {
                if self.tenant.directory.is_on_demand() {
                    tracing::warn!("{}", directory::none(path));
                    self.tenant
                        .set_directory(Directory::new(), Changes::default())
                        .await;
                }
                self.tenant.health.available();
            }
            Ok(File::Missing) => self.unavailable(&format!("{} does not exist", path.display())),
            Err(error) => self.unavailable(&format!("{error:#}")),
        }
    }

    /// The source can't be read: what is known of it stays in force.
    fn unavailable(&self, why: &str) {
        let is_known = !self.tenant.directory.is_on_demand();
        self.tenant.health.unavailable(why, is_known);
    }

    /// What is put in force next comes from the configured source, and from this bucket.
    fn set_origin(&mut self, identity: String) {
        if let (Some(keeper), Some(source)) =
            (&mut self.tenant.keeper, source(&self.config.directory))
        {
            keeper.set_origin(Origin { source, identity });
        }
    }
}

/// What names a source among others; none if nothing is kept of it.
fn source(directory: &config::Directory) -> Option<String> {
    match directory {
        config::Directory::File { path, .. } => {
            let path = std::path::absolute(path).unwrap_or_else(|_| Path::new("").join(path));
            Some(format!("file {}", path.display()))
        }
        config::Directory::Kv { bucket } => Some(format!("kv {bucket}")),
        config::Directory::Request(_) => None,
    }
}
