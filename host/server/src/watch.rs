//! Noticing that files have changed.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// How long the files must have been quiet: a write in several steps is one change.
const QUIET: Duration = Duration::from_millis(100);

/// How long is waited for quiet, where something else keeps a folder busy.
const BUSY_MAX: Duration = Duration::from_secs(1);

/// How often files are looked at all the same: what a link points to may
/// change elsewhere, and not every file system tells.
const LOOK: Duration = Duration::from_secs(2);

/// Watches some files, and folders of them.
pub(crate) struct Watch {
    watcher: RecommendedWatcher,
    events: mpsc::UnboundedReceiver<()>,
    paths: Vec<PathBuf>,
    /// The folders that are watched, and which they were: to watch one again is an
    /// event in it.
    covered: BTreeMap<PathBuf, u64>,
    /// What the files were like when they were last looked at.
    stamps: Vec<Stamp>,
    look_at: Instant,
    /// When something first and last happened that hasn't been reported yet.
    busy: Option<(Instant, Instant)>,
}

/// What tells one state of a file from another; none if it isn't there.
type Stamp = (PathBuf, Option<(u64, u64, SystemTime)>);

impl Watch {
    pub(crate) fn new(paths: Vec<PathBuf>) -> notify::Result<Self> {
        let (changed, events) = mpsc::unbounded_channel();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the files, as a reload does, is no change.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                // Nobody listens any more when the node is stopping.
                let _ = changed.send(());
            }
        })?;
        let mut watch = Self {
            watcher,
            events,
            stamps: stamps(&paths),
            paths,
            covered: BTreeMap::new(),
            look_at: Instant::now() + LOOK,
            busy: None,
        };
        watch.cover();
        Ok(watch)
    }

    /// Watches these from now on.
    pub(crate) fn set_paths(&mut self, paths: Vec<PathBuf>) {
        if paths != self.paths {
            self.paths = paths;
            self.stamps = stamps(&self.paths);
        }
        self.cover();
    }

    /// Returns when something may have changed since the last time. It may be
    /// dropped and called again without losing a change.
    pub(crate) async fn changed(&mut self) {
        loop {
            let wake_at = match self.busy {
                Some((first, last)) => (first + BUSY_MAX).min(last + QUIET),
                None => self.look_at,
            };
            tokio::select! {
                Some(()) = self.events.recv() => {
                    let now = Instant::now();
                    self.busy = Some((self.busy.map_or(now, |(first, _)| first), now));
                }
                () = sleep_until(wake_at) => {
                    self.look_at = Instant::now() + LOOK;
                    let stamps = stamps(&self.paths);
                    let differ = stamps != self.stamps;
                    self.stamps = stamps;
                    if self.busy.take().is_some() || differ {
                        return;
                    }
                }
            }
        }
    }

    /// Watches folders rather than files: a file is often replaced whole, and
    /// the link to it may be. One that was removed and made again is watched again.
    fn cover(&mut self) {
        let paths = self.paths.iter();
        let folders: BTreeSet<_> = paths.flat_map(|path| [folder(path), path]).collect();
        for folder in folders {
            let Ok(metadata) = std::fs::metadata(folder) else {
                continue;
            };
            let known = self.covered.get(folder) == Some(&metadata.ino());
            if known || !metadata.is_dir() {
                continue;
            }
            match self.watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => drop(self.covered.insert(folder.into(), metadata.ino())),
                Err(error) => {
                    tracing::warn!(folder = %folder.display(), %error, "can't watch a folder");
                }
            }
        }
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    let mut files = paths.to_vec();
    for path in paths {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        files.extend(entries.map(|entry| entry.path()));
    }
    files.sort_unstable();
    let stamp = |path: PathBuf| {
        let metadata = std::fs::metadata(&path).ok();
        let state = metadata.and_then(|file| Some((file.ino(), file.len(), file.modified().ok()?)));
        (path, state)
    };
    files.into_iter().map(stamp).collect()
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}
