//! Following the directory's source: what it says is put in force, and what it can't say
//! leaves what was known as it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::bail;
use presence_config as config;
use presence_config::regular_file::{Stamp, Unreadable};
use presence_core::directory::{Changes, Directory};
use presence_core::quota::Quota;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Reload;
use super::job::HANGS;
use super::refusal_log::LastRefusal;
use crate::directory::disk_copy::{CopyWriter, Origin};
use crate::directory::{self, kv};
use crate::reload::on_disk::FileKind;
use crate::tasks::{blocking, elsewhere};
use crate::tenant::quotas;

/// How many updates of a directory in a KV bucket may wait.
const QUEUE: usize = 64;

impl Reload {
    /// Reads the directory for the first time: nothing is decided before. Where it is
    /// unavailable, what was known when the node last ran is in force.
    pub(crate) async fn read_directory(&mut self) {
        let accepted = self.remember().await;
        match &self.config.directory {
            config::Directory::File { path, .. } => {
                let path = path.clone();
                let stamp = timeout(HANGS, blocking(move || Stamp::of(&path))).await;
                let stamp = stamp.map(Result::unwrap_or_default);
                self.read_file(stamp.unwrap_or_default());
                match self.reading.done_unless_it_hangs().await {
                    Some(read) => self.take_text(read),
                    // It is taken when it comes.
                    None => self.hanging_directory(),
                }
                if !self.parsing.is_idle() {
                    let content = self.parsing.done().await;
                    self.take_content(content).await;
                }
            }
            config::Directory::Kv { bucket } => {
                let (updated, updates) = mpsc::channel(QUEUE);
                self.updates = updates;
                let health = Arc::clone(&self.tenant.health);
                self.make_room();
                let (connection, bucket) = (&self.connection, bucket.clone());
                let follower =
                    kv::BucketFollower::new(connection, bucket, health, updated, accepted);
                self.tasks.spawn("directory", follower.follow());
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
        let tenant = self.config.tenant.file_name();
        let path = dir.join(format!("{tenant}.directory.redb"));
        let (names, health) = (
            Arc::clone(&self.tenant.names),
            Arc::clone(&self.tenant.health),
        );
        let tasks = self.tasks.clone();
        let opened = elsewhere(move || CopyWriter::open(&path, &source, &names, &health, &tasks));
        match opened.await {
            Ok((copy_writer, kept)) => {
                let mut identity = None;
                if let Some(kept) = kept {
                    identity = Some(kept.origin.identity);
                    tracing::info!(
                        users = kept.directory.len(),
                        "using the stored copy of the directory until its source has been read"
                    );
                    self.tenant
                        .set_directory(kept.directory, kept.changes)
                        .await;
                }
                // Not before: what it holds needn't be written again.
                self.tenant.copy_writer = Some(copy_writer);
                identity.filter(|identity| !identity.is_empty())
            }
            Err(error) => {
                tracing::error!(
                    "the copy of the directory can't be used, so the directory will not survive a restart: {error:#}"
                );
                None
            }
        }
    }

    /// Takes an update of a bucket.
    pub(super) async fn update(&mut self, update: kv::DirectoryUpdate) {
        let mut doubt = None;
        match &update {
            kv::DirectoryUpdate::Whole(_, identity) => self.set_origin(identity.clone()),
            kv::DirectoryUpdate::Doubtful(_, why) => doubt = Some(why.clone()),
            kv::DirectoryUpdate::Unavailable(why) => return self.unavailable(why),
            // Of what it is a part, something is not in force.
            kv::DirectoryUpdate::Part(_) if self.tenant.is_too_large() => {
                return self.tenant.health.read_again();
            }
            kv::DirectoryUpdate::Part(_) => {}
            kv::DirectoryUpdate::TooLarge if self.tenant.is_too_large() => return,
            kv::DirectoryUpdate::TooLarge => return self.refuse_too_large(),
        }
        let is_part = matches!(update, kv::DirectoryUpdate::Part(_));
        let (names, before) = (&self.tenant.names, &self.tenant.directory);
        let mut taken = Ok(());
        if let Some((directory, changes)) = update.apply(&mut self.refusals, names, before) {
            let max = self.config.limits.directory_entries_max;
            let (keys, values) = self.refusals.counts();
            let refused_max = self.tenant.directory_entries_max(max);
            taken = match (keys + values) as u64 > refused_max {
                // They are kept, too.
                true => Err(self.tenant.refuse_directory(max)),
                false => self.tenant.take_directory(directory, changes, max).await,
            };
            self.make_room();
        }
        let (keys, values) = self.refusals.counts();
        let health = &self.tenant.health;
        health.refused_keys.store(keys, Ordering::Relaxed);
        health.refused_values.store(values, Ordering::Relaxed);
        if let Err(why) = taken {
            if is_part {
                self.refusals = kv::Refusals::default();
                self.tenant.health.read_again();
            }
            return self.not_taken(why);
        }
        match doubt {
            // All that it held has been deleted, key by key.
            Some(_) if self.tenant.directory.is_empty() => self.available(false),
            Some(why) => self.unavailable(&why),
            None if is_part => {}
            None => self.available(false),
        }
        if self.tenant.health.outage().is_none() {
            let (keys, values) = self.refusals.counts();
            let refusal = (keys + values > 0).then(|| {
                format!(
                    "entries of the bucket that can't be taken: {keys} for their key, {values} \
                     for their value"
                )
            });
            self.note(FileKind::Directory, refusal, false);
        }
    }

    /// Takes what has come of asking for the directory's answers.
    pub(super) async fn take_answers(&mut self) {
        if let Some(fetcher) = &self.tenant.fetcher {
            let max = self.config.limits.directory_entries_max;
            let before = &self.tenant.directory;
            let (directory, changes, is_over) = fetcher.apply(before, max).await;
            if is_over {
                let why = quotas::directory_entries(max);
                self.tenant.exceeded.note(Quota::DirectoryEntries, &why);
            }
            self.tenant.set_directory(directory, changes).await;
        }
    }

    /// Reads the directory's file, if it is one, unless that is being done.
    pub(super) fn read_file(&mut self, stamp: Stamp) {
        let config::Directory::File { path, .. } = &self.config.directory else {
            return;
        };
        if !self.reading.is_idle() {
            // Behind what is being read.
            self.read_again = true;
            return;
        }
        self.seen.directory = Some(stamp);
        let path = path.clone();
        self.reading.start(move || {
            let text = directory::read_text(&path);
            (path, text)
        });
    }

    /// Takes what has been read of the directory's file: what it says is made out off this
    /// loop as well. No ids are given back meanwhile.
    pub(super) fn take_text(
        &mut self,
        read: anyhow::Result<(PathBuf, Result<Option<String>, Unreadable>)>,
    ) {
        let read = read.and_then(|(path, text)| Ok((path, text?)));
        let (path, text) = match read {
            Ok((path, Some(text))) => (path, text),
            Ok((path, None)) => return self.missing(&path),
            Err(error) => {
                // Nothing need change for another attempt to succeed.
                self.seen.directory = None;
                return self.unavailable(&format!("{error:#}"));
            }
        };
        let (names, before) = (
            Arc::clone(&self.tenant.names),
            Arc::clone(&self.tenant.directory),
        );
        let max = self.config.limits.directory_entries_max;
        let max = self.tenant.directory_entries_max(max);
        self.parsing.start(move || {
            let Some(content) = directory::parse_within(&path, &text, &names, max)? else {
                return Ok(None);
            };
            if content.is_blank() && !before.is_empty() {
                bail!(
                    "{} names no user, although it did before: to empty a directory, write all \
                     of its sections, {{\"contacts\":{{}},\"groups\":{{}},\"blocks\":{{}},\"settings\":{{}}}}",
                    path.display()
                );
            }
            Ok(Some(content.replace(&before)))
        });
    }

    /// Puts in force what the directory's file says.
    pub(super) async fn take_content(
        &mut self,
        content: anyhow::Result<anyhow::Result<Option<(Directory, Changes)>>>,
    ) {
        match content.flatten() {
            Ok(None) => self.refuse_too_large(),
            Ok(Some((directory, changes))) => {
                self.set_origin(String::new());
                let is_same = changes.is_empty();
                let max = self.config.limits.directory_entries_max;
                match self.tenant.take_directory(directory, changes, max).await {
                    Ok(()) => self.available(is_same),
                    Err(why) => self.not_taken(why),
                }
            }
            Err(error) if self.is_refusal(&error) => self.refuse(format!("{error:#}")),
            Err(error) => self.unavailable(&format!("{error:#}")),
        }
    }

    /// The file system that the directory's file is on doesn't answer.
    pub(super) fn hanging_directory(&self) {
        if let config::Directory::File { path, .. } = &self.config.directory {
            let (path, seconds) = (path.display(), HANGS.as_secs());
            self.unavailable(&format!("reading {path} has not ended for {seconds} s"));
        }
    }

    fn missing(&mut self, path: &Path) {
        let config::Directory::File { is_named, .. } = &self.config.directory else {
            return;
        };
        if *is_named || !self.tenant.directory.is_empty() {
            return self.unavailable(&format!("{} does not exist", path.display()));
        }
        if !self.tenant.directory.is_on_demand() {
            return self.available(true);
        }
        tracing::warn!("{}", directory::none(path));
        self.parsing
            .start(|| Ok(Some((Directory::new(), Changes::default()))));
    }

    /// Whether a file was read whole, and something in it can't be taken, while a directory
    /// is in force: that goes on, and the node is as ready as before. A file that is cut off,
    /// or isn't JSON, may have been meant to say anything.
    fn is_refusal(&self, error: &anyhow::Error) -> bool {
        let is_data = |cause: &(dyn std::error::Error + 'static)| {
            let json = cause.downcast_ref::<serde_json::Error>();
            json.is_some_and(serde_json::Error::is_data)
        };
        let is_in_force = !self.tenant.directory.is_on_demand();
        let was_ready = self.tenant.health.outage().is_none();
        is_in_force && was_ready && error.chain().any(is_data)
    }

    /// Reads again what was too large: it may be taken now.
    pub(super) fn retry_directory(&mut self) {
        self.make_room();
        if self.tenant.is_too_large() {
            self.seen.directory = None;
            self.tenant.health.read_again();
        }
    }

    /// Says how many entries may be read of a bucket.
    fn make_room(&self) {
        let max = self.config.limits.directory_entries_max;
        let max = self.tenant.directory_entries_max(max);
        self.tenant.health.set_entries_max(max);
    }

    /// The source has more than may be taken, and was not read to its end.
    fn refuse_too_large(&mut self) {
        let max = self.config.limits.directory_entries_max;
        let why = self.tenant.refuse_directory(max);
        self.not_taken(why);
    }

    /// What the source says is more than may be taken.
    fn not_taken(&mut self, why: String) {
        match self.tenant.directory.is_on_demand() {
            // Nothing is known from before.
            true => self.unavailable(&why),
            false => self.refuse(why),
        }
    }

    /// What the source says can't be taken, and what is known of it stays in force.
    fn refuse(&mut self, why: String) {
        self.note(FileKind::Directory, Some(why.clone()), false);
        let refused = &mut self.refused.directory;
        refused.report("directory not taken", Some(why));
    }

    /// The source has been read, and is in force; as it was before, or something else.
    fn available(&mut self, is_same: bool) {
        self.refused.directory = LastRefusal::default();
        if self.tenant.health.outage().is_some() {
            // That says so.
            self.on_disk().taken(FileKind::Directory);
            return self.tenant.health.available(is_same);
        }
        self.note(FileKind::Directory, None, is_same);
    }

    /// The source can't be read: what is known of it stays in force.
    fn unavailable(&self, why: &str) {
        self.note(FileKind::Directory, Some(why.to_owned()), false);
        let is_known = !self.tenant.directory.is_on_demand();
        self.tenant.health.unavailable(why, is_known);
    }

    /// What is put in force next comes from the configured source, and from this bucket.
    fn set_origin(&mut self, identity: String) {
        if let (Some(copy_writer), Some(source)) =
            (&mut self.tenant.copy_writer, source(&self.config.directory))
        {
            copy_writer.set_origin(Origin { source, identity });
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
