//! Reloads plugins, the directory and the configuration while a tenant runs. A change that can't be
//! taken leaves everything as it is, and the reason is reported.
//!
//! One loop puts changes in force, one at a time. Work that may take long or hang is done on other
//! threads: checking files, reading them, and loading plugins. The loop takes the results.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use presence_config::causes::Causes;
use presence_config::regular_file::{Stamp, Unreadable};
use presence_config::{self as config, Config, Effect};
use presence_core::directory::{Changes, Directory};
use presence_rules::loader::{self, Loader};
use tokio::sync::mpsc;
use tokio::sync::watch as watch_channel;

use crate::clock;
use crate::directory::{kv, request::AnswerFetcher};
use crate::link::alerts::Alerts;
use crate::link::connection::Connection;
use crate::link::login::Login;
use crate::ops::http::Status;
use crate::reload::on_disk::{FileKind, OnDisk};
use crate::reload::watch::{FileWatch, Paths, Watches};
use crate::signals::Signals;
use crate::tasks::Tasks;
use crate::tenant::Tenant;

mod candidate;
mod directory;
mod job;
mod loads;
pub(crate) mod on_disk;
mod pipeline;
mod refusal_log;
mod store;
pub(crate) mod watch;

pub(crate) use pipeline::note_in_force;

pub(crate) use store::StoreSource;

pub(crate) use candidate::{PipelineChange, Shadow, ShadowOrder, has_ended};

use candidate::{Canary, ShadowTime};
use job::Job;
use loads::Loads;
use pipeline::LoadResult;
use refusal_log::RefusalLog;

/// How often unused ids are freed, and drops and hanging files are logged.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// How far apart two readings of the configuration file are that must agree, and how many readings
/// are tried.
pub(crate) const REREAD_AFTER: Duration = Duration::from_millis(150);
const REREAD_TRIES: usize = 20;

/// The files' size and modification time at the last read. `None`: they must be read again.
#[derive(Default)]
pub(crate) struct FileStamps {
    config: Option<Stamp>,
    directory: Option<Stamp>,
    /// The stamp of the last load of the pipeline.
    pipeline: Option<u64>,
}

impl FileStamps {
    /// The configuration file's stamp at the start, and that of the pipeline loaded by it.
    pub(crate) fn at_start(config: Stamp, pipeline: u64) -> Self {
        Self {
            config: Some(config),
            directory: None,
            pipeline: Some(pipeline),
        }
    }
}

/// The result of checking the files.
struct FileCheck {
    /// The revision of the configuration that names the files.
    revision: u64,
    /// `None` if another task follows the configuration file.
    config: Option<Stamp>,
    directory: Option<Stamp>,
    pipeline: u64,
    /// The plugins in the folder that the pipeline doesn't name.
    unused: BTreeSet<String>,
}

/// The directory file's path, and its text. The text is `None` if there is no file.
type Read = (PathBuf, Result<Option<String>, Unreadable>);

/// Where a tenant's configuration comes from.
#[derive(Clone)]
pub(crate) enum ConfigSource {
    /// The configuration file.
    File {
        /// The path that the operator has named, if any.
        path: Option<PathBuf>,
        /// The text as it was last taken. `None` if there was no file.
        text: Option<config::Text>,
    },
    /// A task follows the file for all tenants, and sends each its configuration.
    Watched(watch_channel::Receiver<Arc<Config>>),
}

/// The reloading of one tenant: its sources, and the work in progress.
pub(crate) struct Reload {
    source: ConfigSource,
    pub(crate) config: Config,
    /// How often the configuration has changed.
    revision: u64,
    pub(crate) loader: Arc<Loader>,
    pub(crate) tenant: Tenant,
    status: Arc<Status>,
    connection: Connection,
    login: Login,
    tasks: Tasks,
    watch: FileWatch,
    seen: FileStamps,
    /// The paths that have had an event since the last check of the files.
    touched: BTreeSet<PathBuf>,
    checking: Job<FileCheck>,
    check_again: bool,
    /// The plugins in the folder that the pipeline doesn't name, at the last check.
    unused: BTreeSet<String>,
    /// Whether a configuration was taken, and the log hasn't said so yet.
    is_reload_unlogged: bool,
    reading_config: Job<anyhow::Result<Option<config::Text>>>,
    reading_directory: Job<Read>,
    parsing_directory: Job<anyhow::Result<Option<(Directory, Changes)>>>,
    read_again: bool,
    loads: Loads<LoadResult>,
    /// Whether the last load failed for a reason that may pass by itself, so that it must be
    /// retried.
    load_again: bool,
    /// The plugin store. `None` if the pipeline comes from the folder.
    store: Option<StoreSource>,
    canary: Canary,
    /// The last error about a canary that doesn't run, and the number of its revision.
    canary_refused: Option<(u64, String)>,
    shadow: ShadowTime,
    /// The channel for orders to begin or end a shadow.
    shadows: (mpsc::Sender<ShadowOrder>, mpsc::Receiver<ShadowOrder>),
    alerts: Alerts,
    /// The configuration, for other tasks that use it.
    known_config: watch_channel::Sender<Config>,
    /// Updates from a KV bucket. Nothing comes if the directory is a file.
    updates: mpsc::Receiver<kv::DirectoryUpdate>,
    /// The bucket's entries that can't be taken.
    refusals: kv::Refusals,
    refused: RefusalLog,
}

impl Reload {
    /// `config` and `seen` were read at the start.
    pub(crate) fn new(
        source: ConfigSource,
        (config, seen): (Config, FileStamps),
        loader: Arc<Loader>,
        tenant: Tenant,
        status: Arc<Status>,
        (connection, login): (Connection, Login),
        (store, alerts, tasks, watches): (Option<StoreSource>, Alerts, Tasks, &Watches),
    ) -> Self {
        // Nothing comes here until a bucket is followed.
        let (_, updates) = mpsc::channel(1);
        let known = store.as_ref().map(|store| &store.state);
        Self {
            canary_refused: known.and_then(|state| state.without_canary()),
            source,
            known_config: watch_channel::Sender::new(config.clone()),
            config,
            store,
            canary: Canary::new(Arc::clone(loader.store_cache())),
            shadow: ShadowTime::default(),
            shadows: mpsc::channel(1),
            alerts,
            revision: 0,
            loader,
            tenant,
            status,
            connection,
            login,
            tasks,
            watch: watches.watch(),
            seen,
            touched: BTreeSet::new(),
            checking: Job::default(),
            check_again: false,
            unused: BTreeSet::new(),
            is_reload_unlogged: false,
            reading_config: Job::default(),
            reading_directory: Job::default(),
            parsing_directory: Job::default(),
            read_again: false,
            loads: Loads::new(),
            load_again: false,
            updates,
            refusals: kv::Refusals::default(),
            refused: RefusalLog::default(),
        }
    }

    /// Follows all sources while it is polled.
    pub(crate) async fn follow(&mut self, signals: &Signals) {
        // Takes changes that were made during the start.
        self.check_files();
        self.watch_canary().await;
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        let mut reloads = signals.reloads();
        let fetcher = self.tenant.fetcher.clone();
        loop {
            tokio::select! {
                touched = self.watch.due() => {
                    self.touched.extend(touched);
                    self.check_files();
                }
                Ok(()) = reloads.changed() => self.reload_all(),
                checked = self.checking.done() => self.on_files_checked(checked),
                config = watched_config(&mut self.source) => self.apply_config(config).await,
                text = self.reading_config.done() => self.on_config_text(text.flatten()).await,
                read = self.reading_directory.done() => {
                    self.apply_directory_text(read);
                    self.read_again_if_changed();
                }
                content = self.parsing_directory.done() => {
                    self.apply_directory(content).await;
                    self.read_again_if_changed();
                }
                loaded = self.loads.done() => self.apply_pipeline(loaded).await,
                Some(update) = self.updates.recv() => self.update(update).await,
                Some(update) = store::next(&mut self.store) => self.apply_revision(update),
                end = self.canary.next_end() => self.end_canary(end).await,
                Some(order) = self.shadows.1.recv() => self.on_shadow_order(order).await,
                () = self.shadow.until_over() => drop(self.end_shadow().await),
                () = answers(fetcher.as_deref()) => self.apply_answers().await,
                _ = sweep.tick() => {
                    self.status.broker.drops.report();
                    self.log_stuck_files();
                    // While a file is parsed, its new ids aren't referenced yet, and must not be
                    // freed.
                    if self.parsing_directory.is_idle() {
                        self.tenant.sweep().await;
                    }
                }
            }
        }
    }

    /// Where to send orders to begin or end a shadow.
    pub(crate) fn shadows(&self) -> mpsc::Sender<ShadowOrder> {
        self.shadows.0.clone()
    }

    /// A receiver of the configuration.
    pub(crate) fn known_config(&self) -> watch_channel::Receiver<Config> {
        self.known_config.subscribe()
    }

    /// The path of the configuration file: the named or the usual one. `None` if another task
    /// follows the file.
    fn config_path(&self) -> Option<&Path> {
        match &self.source {
            ConfigSource::File { path, .. } => {
                let usual = Path::new(config::FILE_NAME);
                Some(path.as_deref().unwrap_or(usual))
            }
            ConfigSource::Watched(_) => None,
        }
    }

    /// Has everything read again, and all problems logged again.
    fn reload_all(&mut self) {
        tracing::info!("SIGHUP: configuration, directory and plugins are read again");
        self.seen = FileStamps::default();
        self.refused = RefusalLog::default();
        self.store
            .iter()
            .for_each(|store| store.state.forget_alerted());
        self.check_files();
    }

    /// Starts a check of the files.
    fn check_files(&mut self) {
        if !self.checking.is_idle() {
            self.check_again = true;
            return;
        }
        let (path, config) = (self.config_path().map(Path::to_owned), self.config.clone());
        let revision = self.revision;
        let directory = match &config.directory {
            config::Directory::File { path, .. } => Some(path.clone()),
            config::Directory::Kv { .. } | config::Directory::Request(_) => None,
        };
        let files = [path.as_ref(), directory.as_ref()];
        let cover = self.watch.cover(Paths {
            files: files.into_iter().flatten().cloned().collect(),
            folders: match config.follows_store() {
                true => Vec::new(),
                false => vec![config.plugins.dir.clone()],
            },
        });
        self.checking.start(move || {
            // Watches first, so that no later change is missed.
            cover();
            FileCheck {
                revision,
                config: path.as_deref().map(Stamp::of),
                directory: directory.as_deref().map(Stamp::of),
                pipeline: Loader::fingerprint(&config),
                unused: match config.follows_store() {
                    true => BTreeSet::new(),
                    false => loader::unused_files(&config).into_iter().collect(),
                },
            }
        });
    }

    /// Has the files read that have changed, according to a check.
    fn on_files_checked(&mut self, checked: anyhow::Result<FileCheck>) {
        let checked = match checked {
            Ok(checked) if checked.revision == self.revision => checked,
            Ok(_) => return self.check_files(),
            Err(error) => return tracing::error!("files can't be looked at: {error:#}"),
        };
        let touched = std::mem::take(&mut self.touched);
        let touched = |path: &Path| {
            let absolute = std::path::absolute(path);
            absolute.is_ok_and(|path| touched.contains(&path))
        };
        if let (Some(stamp), Some(path)) = (checked.config, self.config_path())
            && (self.seen.config != Some(stamp) || touched(path))
        {
            self.read_config(stamp);
        }
        if let (config::Directory::File { path, .. }, Some(stamp)) =
            (&self.config.directory, checked.directory)
            && (self.seen.directory != Some(stamp) || touched(path))
        {
            self.read_file(stamp);
        }
        if self.seen.pipeline != Some(checked.pipeline) || std::mem::take(&mut self.load_again) {
            self.load_pipeline(checked.pipeline);
        }
        // The pipeline in force is already the configured one.
        if self.loads.is_idle() {
            self.log_reloaded(self.refused.pipeline.is_nothing());
        }
        self.unused = checked.unused;
        // The configuration that is being read may name an unused plugin.
        if self.reading_config.is_idle() {
            self.log_unused();
        }
        if std::mem::take(&mut self.check_again) {
            self.check_files();
        }
    }

    /// Logs that a configuration is in force, with its pipeline or without.
    fn log_reloaded(&mut self, with_pipeline: bool) {
        match (std::mem::take(&mut self.is_reload_unlogged), with_pipeline) {
            (false, _) => {}
            (true, true) => tracing::info!("configuration reloaded"),
            (true, false) => tracing::warn!(
                "configuration reloaded without its pipeline, which was refused: the running one \
                 stays"
            ),
        }
    }

    /// Logs what to do about plugins in the folder that no pipeline names, if they weren't logged
    /// before.
    fn log_unused(&mut self) {
        let said = std::mem::replace(&mut self.refused.unused, self.unused.clone());
        let news = self.unused.difference(&said);
        for name in news {
            tracing::warn!("{}", loader::unused_warning(&self.config, name));
        }
    }

    /// Logs that files can't be read, if their file system doesn't answer.
    fn log_stuck_files(&mut self) {
        let is_stuck = self.checking.is_stuck() || self.reading_config.is_stuck();
        let why = is_stuck.then(|| {
            format!(
                "files are no longer followed: looking at them, or reading {}, has not ended \
                 for {} s",
                self.config_path()
                    .unwrap_or(Path::new(config::FILE_NAME))
                    .display(),
                job::STUCK_AFTER.as_secs()
            )
        });
        if let Some(why) = &why
            && !self.refused.is_stuck
        {
            tracing::error!("{why}");
        }
        self.refused.is_stuck = is_stuck;
        self.on_disk().set_unfollowed(why);
        if self.reading_directory.is_stuck() {
            self.report_stuck_directory();
        }
    }

    /// Reads the directory's file again, if it has changed while it was read.
    fn read_again_if_changed(&mut self) {
        let is_idle = self.reading_directory.is_idle() && self.parsing_directory.is_idle();
        if is_idle && std::mem::take(&mut self.read_again) {
            self.seen.directory = None;
            self.check_files();
        }
    }

    fn read_config(&mut self, stamp: Stamp) {
        if !self.reading_config.is_idle() {
            // It is read again after the current read.
            self.seen.config = None;
            return;
        }
        let ConfigSource::File { path, text } = &self.source else {
            return;
        };
        self.seen.config = Some(stamp);
        let (path, running) = (path.clone(), text.clone());
        self.reading_config.start(move || {
            let read = || config::Text::read_again(path.as_deref());
            changed(running.as_ref(), REREAD_AFTER, read)
        });
    }

    /// Takes the text of the configuration file. `None`: it hasn't changed.
    async fn on_config_text(&mut self, text: anyhow::Result<Option<config::Text>>) {
        if text.is_err() {
            // The next attempt may succeed without any change to the file.
            self.seen.config = None;
        }
        let is_same = matches!(text, Ok(None));
        let taken = match text {
            Ok(Some(text)) => self.configure(text).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        let refusal = taken.err().map(|error| Causes(&error).to_string());
        self.note(FileKind::Configuration, refusal.clone(), is_same);
        self.refused
            .config
            .report("configuration not taken", refusal);
        // If the files are being checked, the check logs it.
        if self.checking.is_idle() {
            self.log_unused();
        }
    }

    /// The state of files on disk that are not in force.
    fn on_disk(&self) -> &OnDisk {
        &self.status.on_disk
    }

    /// Notes whether a file on disk is in force, or why not. If it is again, the log says so.
    /// `is_same`: the file is the same as the one in force.
    fn note(&self, what: FileKind, refusal: Option<String>, is_same: bool) {
        if let Some(why) = refusal {
            return self.on_disk().set_refused(what, why);
        }
        if let Some(before) = self.on_disk().mark_applied(what) {
            let seconds = clock::now_ms().saturating_sub(before.since_ms) / 1_000;
            let what = what.as_str();
            let how = match is_same {
                true => "is back, unchanged",
                false => "is in force again",
            };
            tracing::info!("the {what} on disk {how}, after {seconds} s");
        }
    }

    async fn configure(&mut self, text: config::Text) -> anyhow::Result<()> {
        let ConfigSource::File { path, text: known } = &mut self.source else {
            return Ok(());
        };
        if let Some(running) = known {
            text.may_follow(running)?;
        }
        let new = Config::parse(path.as_deref(), Some(&text), config::variables())?;
        anyhow::ensure!(
            new.tenants.is_none(),
            "[[tenant]] sections take the place of the one tenant at the next start only"
        );
        *known = Some(text);
        self.apply_config(new).await;
        Ok(())
    }

    /// Puts a configuration in force, as far as this is possible while the tenant runs.
    async fn apply_config(&mut self, mut new: Config) {
        let changes = self.config.changes(&new);
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
        self.on_disk().set_waiting_for_restart(&restart);
        self.refused.restart = restart;
        new.keep_until_restart(&self.config);
        if self.config != new {
            self.config = new;
            self.known_config.send_replace(self.config.clone());
            self.revision += 1;
            self.login.replace(self.config.nats.auth.clone());
            self.tenant.configure(&self.config).await;
            self.retry_directory();
            // If its pipeline has changed, it is still to be loaded.
            self.is_reload_unlogged = true;
            // It may name other files, and another pipeline.
            self.check_files();
        }
    }
}

/// The next configuration from the task that follows the file. Waits forever if there is none.
async fn watched_config(source: &mut ConfigSource) -> Config {
    if let ConfigSource::Watched(watched_config) = source
        && watched_config.changed().await.is_ok()
    {
        return Config::clone(&watched_config.borrow_and_update());
    }
    std::future::pending().await
}

/// The text of a file. `None` if it equals the running one. Waits until two readings agree: a file
/// may be read while it is being written.
pub(crate) fn changed(
    running: Option<&config::Text>,
    pause: Duration,
    mut read: impl FnMut() -> anyhow::Result<Option<config::Text>>,
) -> anyhow::Result<Option<config::Text>> {
    let mut before = None;
    for _ in 0..REREAD_TRIES {
        let text = read()?;
        if text.as_ref() == running {
            return Ok(None);
        }
        let text = text.context("the file is gone")?;
        if before.as_ref() == Some(&text) {
            return Ok(Some(text));
        }
        before = Some(text);
        std::thread::sleep(pause);
    }
    anyhow::bail!("it is being written all the time")
}

/// Waits for answers of a directory service. Waits forever if there is none.
async fn answers(fetcher: Option<&AnswerFetcher>) {
    match fetcher {
        Some(fetcher) => fetcher.arrived().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result if successive readings of a file return these texts.
    fn read_as(texts: &[Option<&str>]) -> anyhow::Result<Option<config::Text>> {
        let running = text("a");
        let mut texts = texts.iter();
        let read = || Ok(texts.next().and_then(|it| it.map(text)));
        changed(Some(&running), Duration::ZERO, read)
    }

    fn text(text: &str) -> config::Text {
        config::Text::of(text)
    }

    #[test]
    fn a_text_is_taken_when_two_readings_agree() {
        assert_eq!(read_as(&[Some("a")]).unwrap(), None);
        let pieces = [Some("b"), Some("b c"), Some("b c d"), Some("b c d")];
        assert_eq!(read_as(&pieces).unwrap(), Some(text("b c d")));
        assert_eq!(read_as(&[Some("b"), Some("a")]).unwrap(), None);
        for gone in [&[None][..], &[Some("b"), None]] {
            let error = read_as(gone).unwrap_err().to_string();
            assert_eq!(error, "the file is gone");
        }
    }
}
