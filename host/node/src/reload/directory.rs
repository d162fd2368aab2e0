//! Follows the source of the directory. A readable state is put in force. If the source can't be
//! read, the last known state stays in force.

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
use super::job::STUCK_AFTER;
use super::refusal_log::LastRefusal;
use crate::directory::disk_copy::{CopyWriter, Origin};
use crate::directory::{self, kv};
use crate::reload::on_disk::FileKind;
use crate::tasks::{blocking, run_blocking};
use crate::tenant::quotas;

/// How many updates of a directory bucket may wait.
const QUEUE: usize = 64;

impl Reload {
    /// Reads the directory for the first time. Nothing is decided before. If the source is
    /// unavailable, the copy from the last run is in force.
    pub(crate) async fn read_directory(&mut self) {
        let accepted = self.remember().await;
        match &self.config.directory {
            config::Directory::File { path, .. } => {
                let path = path.clone();
                let stamp = timeout(STUCK_AFTER, blocking(move || Stamp::of(&path))).await;
                let stamp = stamp.map(Result::unwrap_or_default);
                self.read_file(stamp.unwrap_or_default());
                match self.reading_directory.done_unless_stuck().await {
                    Some(read) => self.apply_directory_text(read),
                    // The text is taken when it arrives.
                    None => self.report_stuck_directory(),
                }
                if !self.parsing_directory.is_idle() {
                    let content = self.parsing_directory.done().await;
                    self.apply_directory(content).await;
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
            // The service is asked when a decision needs an answer.
            config::Directory::Request(_) => {}
        }
    }

    /// Puts the copy of the directory from the last run in force. Returns the identity of the
    /// bucket from which it was taken, if it was a bucket.
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
        let opened =
            run_blocking(move || CopyWriter::open(&path, &source, &names, &health, &tasks));
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
                // Set only now: the copy's content needn't be written again.
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

    /// Applies an update of a bucket.
    pub(super) async fn update(&mut self, update: kv::DirectoryUpdate) {
        let mut doubt = None;
        match &update {
            kv::DirectoryUpdate::Whole(_, identity) => self.set_origin(identity.clone()),
            kv::DirectoryUpdate::Doubtful(_, why) => doubt = Some(why.clone()),
            kv::DirectoryUpdate::Unavailable(why) => return self.report_unavailable(why),
            // The directory that this part belongs to is not in force, so it is read again.
            kv::DirectoryUpdate::Part(_) if self.tenant.is_too_large() => {
                return self.tenant.health.request_reread();
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
                // Refused entries are kept as well, so they count against the limit.
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
                self.tenant.health.request_reread();
            }
            return self.reject(why);
        }
        match doubt {
            // All entries have been deleted, one by one.
            Some(_) if self.tenant.directory.is_empty() => self.report_available(false),
            Some(why) => self.report_unavailable(&why),
            None if is_part => {}
            None => self.report_available(false),
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

    /// Applies the answers of the directory service that have arrived.
    pub(super) async fn apply_answers(&mut self) {
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

    /// Reads the directory's file, if the source is a file. If it is being read already, it is read
    /// again afterwards.
    pub(super) fn read_file(&mut self, stamp: Stamp) {
        let config::Directory::File { path, .. } = &self.config.directory else {
            return;
        };
        if !self.reading_directory.is_idle() {
            // It is read again after the current read.
            self.read_again = true;
            return;
        }
        self.seen.directory = Some(stamp);
        let path = path.clone();
        self.reading_directory.start(move || {
            let text = directory::read_text(&path);
            (path, text)
        });
    }

    /// Takes the text of the directory's file, and has it parsed on another thread. Ids aren't
    /// freed meanwhile.
    pub(super) fn apply_directory_text(
        &mut self,
        read: anyhow::Result<(PathBuf, Result<Option<String>, Unreadable>)>,
    ) {
        let read = read.and_then(|(path, text)| Ok((path, text?)));
        let (path, text) = match read {
            Ok((path, Some(text))) => (path, text),
            Ok((path, None)) => return self.missing(&path),
            Err(error) => {
                // The next attempt may succeed without any change to the file.
                self.seen.directory = None;
                return self.report_unavailable(&format!("{error:#}"));
            }
        };
        let (names, before) = (
            Arc::clone(&self.tenant.names),
            Arc::clone(&self.tenant.directory),
        );
        let max = self.config.limits.directory_entries_max;
        let max = self.tenant.directory_entries_max(max);
        self.parsing_directory.start(move || {
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

    /// Puts the parsed directory in force.
    pub(super) async fn apply_directory(
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
                    Ok(()) => self.report_available(is_same),
                    Err(why) => self.reject(why),
                }
            }
            Err(error) if self.is_refusal(&error) => self.refuse(format!("{error:#}")),
            Err(error) => self.report_unavailable(&format!("{error:#}")),
        }
    }

    /// Reports that the file system of the directory's file doesn't answer.
    pub(super) fn report_stuck_directory(&self) {
        if let config::Directory::File { path, .. } = &self.config.directory {
            let (path, seconds) = (path.display(), STUCK_AFTER.as_secs());
            self.report_unavailable(&format!("reading {path} has not ended for {seconds} s"));
        }
    }

    fn missing(&mut self, path: &Path) {
        let config::Directory::File { is_named, .. } = &self.config.directory else {
            return;
        };
        if *is_named || !self.tenant.directory.is_empty() {
            return self.report_unavailable(&format!("{} does not exist", path.display()));
        }
        if !self.tenant.directory.is_on_demand() {
            return self.report_available(true);
        }
        tracing::warn!("{}", directory::missing_message(path));
        self.parsing_directory
            .start(|| Ok(Some((Directory::new(), Changes::default()))));
    }

    /// Whether the file was read as a whole, something in it can't be taken, and a directory is in
    /// force. That directory stays, and the node's readiness doesn't change. A file that is cut off
    /// or isn't JSON is not meant here: its intended content isn't known.
    fn is_refusal(&self, error: &anyhow::Error) -> bool {
        let is_data = |cause: &(dyn std::error::Error + 'static)| {
            let json = cause.downcast_ref::<serde_json::Error>();
            json.is_some_and(serde_json::Error::is_data)
        };
        let is_in_force = !self.tenant.directory.is_on_demand();
        let was_ready = self.tenant.health.outage().is_none();
        is_in_force && was_ready && error.chain().any(is_data)
    }

    /// Reads a directory again that was too large: it may fit now.
    pub(super) fn retry_directory(&mut self) {
        self.make_room();
        if self.tenant.is_too_large() {
            self.seen.directory = None;
            self.tenant.health.request_reread();
        }
    }

    /// Sets the limit on the entries that are read from a bucket.
    fn make_room(&self) {
        let max = self.config.limits.directory_entries_max;
        let max = self.tenant.directory_entries_max(max);
        self.tenant.health.set_entries_max(max);
    }

    /// The source has too many entries, and was not read to its end.
    fn refuse_too_large(&mut self) {
        let max = self.config.limits.directory_entries_max;
        let why = self.tenant.refuse_directory(max);
        self.reject(why);
    }

    /// The source's content is too large.
    fn reject(&mut self, why: String) {
        match self.tenant.directory.is_on_demand() {
            // No directory is in force that could stay.
            true => self.report_unavailable(&why),
            false => self.refuse(why),
        }
    }

    /// Reports that the source's content can't be taken. The known directory stays in force.
    fn refuse(&mut self, why: String) {
        self.note(FileKind::Directory, Some(why.clone()), false);
        let refused = &mut self.refused.directory;
        refused.report("directory not taken", Some(why));
    }

    /// Reports that the source was read and is in force. `is_same`: its content hasn't changed.
    fn report_available(&mut self, is_same: bool) {
        self.refused.directory = LastRefusal::default();
        if self.tenant.health.outage().is_some() {
            // The next call logs it.
            self.on_disk().mark_applied(FileKind::Directory);
            return self.tenant.health.set_available(is_same);
        }
        self.note(FileKind::Directory, None, is_same);
    }

    /// Reports that the source can't be read. The known directory stays in force.
    fn report_unavailable(&self, why: &str) {
        self.note(FileKind::Directory, Some(why.to_owned()), false);
        let is_known = !self.tenant.directory.is_on_demand();
        self.tenant.health.set_unavailable(why, is_known);
    }

    /// The next directory comes from the configured source, and from the bucket with this identity.
    fn set_origin(&mut self, identity: String) {
        if let (Some(copy_writer), Some(source)) =
            (&mut self.tenant.copy_writer, source(&self.config.directory))
        {
            copy_writer.set_origin(Origin { source, identity });
        }
    }
}

/// Identifies a source among others. `None` if no copy of it is kept.
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
