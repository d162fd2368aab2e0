//! When to look whether files have changed: soon after the system says that something
//! happened to one of them, and every so often all the same. What a link points to may
//! change elsewhere, not every file system tells, and the system may have no watches left.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// How long the files must have been quiet: a write in several steps is one change.
const QUIET: Duration = Duration::from_millis(100);

/// How long is waited for quiet, where files are written all the time.
const BUSY_MAX: Duration = Duration::from_secs(1);

/// How often files are looked at in any case.
const LOOK: Duration = Duration::from_secs(2);

/// Files to be watched, and folders of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Paths {
    pub(crate) files: Vec<PathBuf>,
    /// Every file in one counts.
    pub(crate) folders: Vec<PathBuf>,
}

/// Says when to look.
pub(crate) struct Watch {
    happened: Arc<Happened>,
    watcher: Arc<Mutex<Cover>>,
    look_at: Instant,
    /// When something first and last happened since the last look.
    busy: Option<(Instant, Instant)>,
}

/// What the system has told of.
#[derive(Default)]
struct Happened {
    /// What counts, as absolute paths.
    paths: Mutex<Paths>,
    /// What has had something happen to it, each path once.
    touched: Mutex<BTreeSet<PathBuf>>,
    woken: Notify,
}

/// The system's watches.
struct Cover {
    /// None where the system has none to give.
    watcher: Option<RecommendedWatcher>,
    /// The folders that are watched, and which they were: to watch one again is an
    /// event in it.
    covered: BTreeMap<PathBuf, u64>,
    /// Folders of which it has been said that they can't be watched.
    refused: BTreeSet<PathBuf>,
}

impl Watch {
    /// Watches nothing yet but the clock.
    pub(crate) fn new() -> Self {
        let happened = Arc::<Happened>::default();
        let told = Arc::clone(&happened);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if let Ok(event) = event {
                told.take(&event);
            }
        });
        let watcher = watcher.map_err(|error| {
            tracing::warn!(
                "the system can't tell when files change, so they are looked at every {} s: {error}",
                LOOK.as_secs()
            );
        });
        Self::with(watcher.ok(), happened)
    }

    fn with(watcher: Option<RecommendedWatcher>, happened: Arc<Happened>) -> Self {
        Self {
            happened,
            watcher: Arc::new(Mutex::new(Cover {
                watcher,
                covered: BTreeMap::new(),
                refused: BTreeSet::new(),
            })),
            look_at: Instant::now() + LOOK,
            busy: None,
        }
    }

    /// Returns when it is time to look, and to which of the paths something has happened. It
    /// may be dropped and called again without losing any.
    pub(crate) async fn due(&mut self) -> BTreeSet<PathBuf> {
        loop {
            let wake_at = match self.busy {
                Some((first, last)) => (first + BUSY_MAX).min(last + QUIET),
                None => self.look_at,
            };
            tokio::select! {
                () = self.happened.woken.notified() => {
                    let now = Instant::now();
                    self.busy = Some((self.busy.map_or(now, |(first, _)| first), now));
                }
                () = sleep_until(wake_at) => {
                    self.look_at = Instant::now() + LOOK;
                    self.busy = None;
                    return std::mem::take(&mut *locked(&self.happened.touched));
                }
            }
        }
    }

    /// What has these watched from now on when it is called. It looks at the files, so it
    /// isn't called where others wait.
    pub(crate) fn cover(&self, paths: Paths) -> impl FnOnce() + Send + 'static {
        let (happened, watcher) = (Arc::clone(&self.happened), Arc::clone(&self.watcher));
        move || {
            let paths = paths.absolute();
            locked(&watcher).cover(&paths);
            *locked(&happened.paths) = paths;
        }
    }
}

impl Paths {
    fn absolute(&self) -> Self {
        let absolute = |paths: &[PathBuf]| {
            let paths = paths.iter();
            let absolute = paths.filter_map(|path| std::path::absolute(path).ok());
            absolute.collect()
        };
        Self {
            files: absolute(&self.files),
            folders: absolute(&self.folders),
        }
    }

    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.iter().chain(&self.folders)
    }

    /// Which of them something that happened at a path has happened to.
    fn touched_by(&self, at: &Path) -> Option<&PathBuf> {
        let within = |folder: &&PathBuf| at == **folder || at.parent() == Some(folder);
        let file = self.files.iter().find(|file| at == **file);
        file.or_else(|| self.folders.iter().find(within))
    }
}

impl Happened {
    fn take(&self, event: &notify::Event) {
        // Reading the files, as a reload does, is no change.
        if event.kind.is_access() {
            return;
        }
        let paths = locked(&self.paths);
        let touched: Vec<_> = match event.need_rescan() {
            // Some events have been lost.
            true => paths.all().collect(),
            false => {
                let at = event.paths.iter();
                at.filter_map(|at| paths.touched_by(at)).collect()
            }
        };
        if !touched.is_empty() {
            locked(&self.touched).extend(touched.into_iter().cloned());
            self.woken.notify_one();
        }
    }
}

impl Cover {
    /// Watches folders rather than files: a file is often replaced whole, and
    /// the link to it may be. One that was removed and made again is watched again.
    fn cover(&mut self, paths: &Paths) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let around = paths.all().filter_map(|path| path.parent());
        let folders: BTreeSet<_> = around.chain(paths.folders.iter().map(|it| &**it)).collect();
        for folder in folders {
            let Ok(metadata) = std::fs::metadata(folder) else {
                continue;
            };
            let known = self.covered.get(folder) == Some(&metadata.ino());
            if known || !metadata.is_dir() {
                continue;
            }
            match watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.covered.insert(folder.into(), metadata.ino());
                    self.refused.remove(folder);
                }
                Err(error) if self.refused.insert(folder.into()) => {
                    tracing::warn!(
                        folder = %folder.display(),
                        "the system can't tell when files change here, so they are looked at \
                         every {} s: {error}",
                        LOOK.as_secs()
                    );
                }
                Err(_) => {}
            }
        }
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{CreateKind, Flag};
    use notify::{Event, EventKind};

    #[test]
    fn only_what_happens_to_watched_paths_counts() {
        let paths = Paths {
            files: vec!["/etc/presence/presence.toml".into()],
            folders: vec!["/etc/presence/plugins.d".into()],
        };
        let happened = Happened {
            paths: Mutex::new(paths.clone()),
            ..Happened::default()
        };
        let touched = |event: Event| {
            happened.take(&event);
            std::mem::take(&mut *locked(&happened.touched))
        };
        let made =
            |path: &str| Event::new(EventKind::Create(CreateKind::File)).add_path(path.into());
        for (at, is) in [
            ("/etc/presence/presence.toml", Some(&paths.files[0])),
            ("/etc/presence/presence.toml.new", None),
            ("/etc/presence/other.log", None),
            ("/etc/presence/plugins.d", Some(&paths.folders[0])),
            ("/etc/presence/plugins.d/a.wasm", Some(&paths.folders[0])),
            ("/etc/presence/plugins.d/a/b.wasm", None),
        ] {
            assert_eq!(touched(made(at)).first(), is, "{at}");
        }
        let lost = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        assert_eq!(touched(lost).len(), 2);
    }

    #[tokio::test]
    async fn where_the_system_has_no_watches_it_is_time_to_look_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = Watch::with(None, Arc::default());
        watch.cover(Paths {
            files: vec![folder.path().join("a")],
            folders: vec![folder.path().into()],
        })();
        assert!(watch.due().await.is_empty());
    }

    #[tokio::test]
    async fn it_is_time_to_look_when_a_file_has_changed_and_when_none_has() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        let paths = Paths {
            files: vec![file.clone()],
            folders: Vec::new(),
        };
        let mut watch = Watch::new();
        watch.cover(paths)();
        std::fs::write(folder.path().join("beside"), "").unwrap();
        assert!(watch.due().await.is_empty());
        // Where the machine has no watches left, the next look is all there is.
        std::fs::write(&file, "").unwrap();
        let touched = watch.due().await;
        assert!(touched.is_empty() || touched.contains(&file));
    }
}
