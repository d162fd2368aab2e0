//! Says when to check whether files have changed: soon after the system reports an event, and also
//! at intervals. The intervals are needed because the target of a link may change elsewhere, some
//! file systems report no events, and the system's watches may be used up.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// How long the files must be without events before a check, so that a write in several steps
/// counts as one change.
const QUIET: Duration = Duration::from_millis(100);

/// The longest delay of a check while files are written all the time.
const BUSY_MAX: Duration = Duration::from_secs(1);

/// How often files are checked without an event.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// With up to this many watchers, each checks its files every `CHECK_EVERY`. With more, each checks
/// less often. This doesn't matter where the system reports events.
const OFTEN: usize = 20;

/// At this number of watched folders, those that nobody needs are removed for the first time.
const PRUNE: usize = 64;

/// Files and folders to be watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Paths {
    pub(crate) files: Vec<PathBuf>,
    /// Every file directly inside a folder counts.
    pub(crate) folders: Vec<PathBuf>,
}

/// The system's watches, shared by all tenants, because the system has only a few.
#[derive(Clone)]
pub(crate) struct Watches {
    cover: Arc<Mutex<SystemWatches>>,
    all: Arc<Mutex<Watching>>,
}

/// The registered watchers.
#[derive(Default)]
struct Watching {
    each: Vec<Weak<WatchEvents>>,
    /// The watchers of each file or folder, so that an event is passed only to the tenants that it
    /// concerns.
    by_path: HashMap<PathBuf, Vec<Weak<WatchEvents>>>,
}

/// Says when to check the files of one tenant.
pub(crate) struct FileWatch {
    happened: Arc<WatchEvents>,
    watcher: Arc<Mutex<SystemWatches>>,
    all: Arc<Mutex<Watching>>,
    look_at: Instant,
    /// The times of the first and the last event since the last check.
    busy: Option<(Instant, Instant)>,
}

/// The events of one watcher.
#[derive(Default)]
struct WatchEvents {
    /// The watched paths, as absolute paths.
    paths: Mutex<Paths>,
    /// The folders that the system must watch for this.
    folders: Mutex<BTreeSet<PathBuf>>,
    /// The watched paths that have had an event.
    touched: Mutex<BTreeSet<PathBuf>>,
    woken: Notify,
}

/// The system's watches.
struct SystemWatches {
    /// `None` if the system has no watches.
    watcher: Option<RecommendedWatcher>,
    /// The watched folders, with their inode numbers. A folder isn't watched twice, since that
    /// would cause an event in it.
    covered: BTreeMap<PathBuf, u64>,
    /// Folders for which the log has said that they can't be watched.
    refused: BTreeSet<PathBuf>,
    /// The number of folders at which those that nobody needs are removed next.
    prune_at: usize,
}

impl Watches {
    /// Nothing is watched yet.
    pub(crate) fn new() -> Self {
        let all = Arc::<Mutex<Watching>>::default();
        let told = Arc::clone(&all);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Read accesses are no changes. A reload of thousands of tenants makes many of them.
            if let Ok(event) = event
                && !event.kind.is_access()
            {
                let concerned = locked(&told).concerned(&event);
                concerned.iter().for_each(|it| it.take(&event));
            }
        });
        let watcher = watcher.map_err(|error| {
            tracing::warn!(
                "the system can't tell when files change, so they are looked at every {} s: {error}",
                CHECK_EVERY.as_secs()
            );
        });
        Self::with(watcher.ok(), all)
    }

    fn with(watcher: Option<RecommendedWatcher>, all: Arc<Mutex<Watching>>) -> Self {
        Self {
            cover: Arc::new(Mutex::new(SystemWatches {
                watcher,
                covered: BTreeMap::new(),
                refused: BTreeSet::new(),
                prune_at: PRUNE,
            })),
            all,
        }
    }

    /// A new watcher, which watches nothing yet.
    pub(crate) fn watch(&self) -> FileWatch {
        let happened = Arc::<WatchEvents>::default();
        let mut all = locked(&self.all);
        all.each.retain(|it| it.strong_count() > 0);
        all.each.push(Arc::downgrade(&happened));
        let every = every(all.each.len());
        drop(all);
        FileWatch {
            happened,
            watcher: Arc::clone(&self.cover),
            all: Arc::clone(&self.all),
            look_at: Instant::now() + every,
            busy: None,
        }
    }
}

impl FileWatch {
    /// Waits until it is time for a check. Returns the watched paths that have had an event.
    /// Dropping the future loses no event.
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
                    self.look_at = Instant::now() + self.every();
                    self.busy = None;
                    return std::mem::take(&mut *locked(&self.happened.touched));
                }
            }
        }
    }

    fn every(&self) -> Duration {
        every(locked(&self.all).each.len())
    }

    /// Returns a function that makes this watcher watch these paths. The function accesses the file
    /// system, so it must not be called on a thread where others wait.
    pub(crate) fn cover(&self, paths: Paths) -> impl FnOnce() + Send + 'static {
        let (happened, watcher) = (Arc::clone(&self.happened), Arc::clone(&self.watcher));
        let all = Arc::clone(&self.all);
        move || {
            let paths = paths.absolute();
            // This runs without a lock, because a file system may hang, and others must be able to
            // set their watches.
            let folders = paths.around();
            let mut watcher = locked(&watcher);
            *locked(&happened.folders) = folders.keys().cloned().collect();
            watcher.cover(folders, &all);
            drop(watcher);
            let before = std::mem::replace(&mut *locked(&happened.paths), paths.clone());
            let mut all = locked(&all);
            all.forget(&happened, &before);
            for path in paths.all() {
                let of_path = all.by_path.entry(path.clone()).or_default();
                of_path.push(Arc::downgrade(&happened));
            }
        }
    }
}

impl Drop for FileWatch {
    fn drop(&mut self) {
        let paths = std::mem::take(&mut *locked(&self.happened.paths));
        locked(&self.all).forget(&self.happened, &paths);
    }
}

impl Watching {
    /// The watchers whose paths an event concerns.
    fn concerned(&self, event: &notify::Event) -> Vec<Arc<WatchEvents>> {
        if event.need_rescan() {
            return self.each.iter().filter_map(Weak::upgrade).collect();
        }
        let at = event.paths.iter();
        let at = at.flat_map(|path| [Some(&**path), path.parent()]).flatten();
        let watching = at.filter_map(|path| self.by_path.get(path)).flatten();
        watching.filter_map(Weak::upgrade).collect()
    }

    /// Removes a watcher from these paths.
    fn forget(&mut self, happened: &Arc<WatchEvents>, paths: &Paths) {
        for path in paths.all() {
            if let Entry::Occupied(mut watching) = self.by_path.entry(path.clone()) {
                let is_other = |it: &Weak<WatchEvents>| it.as_ptr() != Arc::as_ptr(happened);
                watching.get_mut().retain(is_other);
                if watching.get().is_empty() {
                    watching.remove();
                }
            }
        }
    }
}

/// The interval between two checks of one watcher, if this many watch.
fn every(watching: usize) -> Duration {
    CHECK_EVERY.mul_f64((watching as f64 / OFTEN as f64).max(1.0))
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

    /// The folders to watch, with their inode numbers. Folders are watched instead of files,
    /// because a file or a link is often replaced as a whole.
    fn around(&self) -> BTreeMap<PathBuf, u64> {
        let around = self.all().filter_map(|path| path.parent());
        let folders: BTreeSet<_> = around.chain(self.folders.iter().map(|it| &**it)).collect();
        let there = folders.into_iter().filter_map(|folder| {
            let metadata = std::fs::metadata(folder).ok()?;
            metadata
                .is_dir()
                .then(|| (folder.to_owned(), metadata.ino()))
        });
        there.collect()
    }

    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.iter().chain(&self.folders)
    }

    /// The watched path that an event at `at` concerns.
    fn touched_by(&self, at: &Path) -> Option<&PathBuf> {
        let within = |folder: &&PathBuf| at == **folder || at.parent() == Some(folder);
        let file = self.files.iter().find(|file| at == **file);
        file.or_else(|| self.folders.iter().find(within))
    }
}

impl WatchEvents {
    fn take(&self, event: &notify::Event) {
        let paths = locked(&self.paths);
        let touched: Vec<_> = match event.need_rescan() {
            // Some events have been lost, so every path counts.
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

impl SystemWatches {
    /// Watches folders. A folder that was removed and made again is watched again. If there are
    /// many, those that no watcher needs are released.
    fn cover(&mut self, folders: BTreeMap<PathBuf, u64>, all: &Mutex<Watching>) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        if self.covered.len() >= self.prune_at {
            let live: Vec<_> = locked(all).each.iter().filter_map(Weak::upgrade).collect();
            let needed: HashSet<_> = live
                .iter()
                .flat_map(|it| locked(&it.folders).clone())
                .collect();
            let is_needless = |folder: &PathBuf, _: &mut u64| !needed.contains(folder);
            for (folder, _) in self.covered.extract_if(.., is_needless) {
                // If the folder was removed, its watch has ended already.
                let _ = watcher.unwatch(&folder);
            }
            self.refused.retain(|folder| needed.contains(folder));
            self.prune_at = PRUNE.max(2 * self.covered.len());
        }
        for (folder, number) in folders {
            if self.covered.get(&folder) == Some(&number) {
                continue;
            }
            match watcher.watch(&folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.refused.remove(&folder);
                    self.covered.insert(folder, number);
                }
                Err(error) if self.refused.insert(folder.clone()) => {
                    tracing::warn!(
                        folder = %folder.display(),
                        "the system can't tell when files change here, so they are looked at \
                         every {} s: {error}",
                        CHECK_EVERY.as_secs()
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
        let happened = WatchEvents {
            paths: Mutex::new(paths.clone()),
            ..WatchEvents::default()
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
        let mut watch = Watches::with(None, Arc::default()).watch();
        watch.cover(Paths {
            files: vec![folder.path().join("a")],
            folders: vec![folder.path().into()],
        })();
        assert!(watch.due().await.is_empty());
    }

    #[tokio::test]
    async fn where_many_watch_each_looks_less_often() {
        let watches = Watches::with(None, Arc::default());
        let one = watches.watch();
        assert_eq!(one.every(), CHECK_EVERY);
        let begun = Instant::now();
        let many: Vec<_> = (0..3 * OFTEN).map(|_| watches.watch()).collect();
        assert!(one.every() > 2 * CHECK_EVERY);
        // The first checks are spread over time.
        let first = |watch: &FileWatch| watch.look_at.saturating_duration_since(begun);
        assert!(first(&many[0]) < 2 * CHECK_EVERY && first(&many[3 * OFTEN - 1]) > 2 * CHECK_EVERY);
        drop(many);
        let _another = watches.watch();
        assert_eq!(one.every(), CHECK_EVERY);
    }

    #[tokio::test]
    async fn what_happens_concerns_those_alone_whose_files_it_is_about() {
        let folder = tempfile::tempdir().unwrap();
        let watches = Watches::with(None, Arc::default());
        let file = |name: &str| folder.path().join(name);
        let watch = |files: &[&str], folders: &[&str]| {
            let watch = watches.watch();
            let all = |names: &[&str]| names.iter().map(|it| file(it)).collect();
            watch.cover(Paths {
                files: all(files),
                folders: all(folders),
            })();
            watch
        };
        let one = watch(&["a", "c"], &["plugins"]);
        let other = watch(&["b"], &["plugins"]);
        let concerned = |path: &str| {
            let event = Event::new(EventKind::Create(CreateKind::File)).add_path(file(path));
            locked(&watches.all).concerned(&event).len()
        };
        let counts = || ["a", "b", "c", "plugins/x.wasm", "plugins", "d"].map(&concerned);
        assert_eq!(counts(), [1, 1, 1, 2, 2, 0]);
        one.cover(Paths {
            files: vec![file("d")],
            folders: Vec::new(),
        })();
        assert_eq!(counts(), [0, 1, 0, 1, 1, 1]);
        drop((one, other));
        assert_eq!(counts(), [0; 6]);
        assert!(locked(&watches.all).by_path.is_empty());
    }

    #[test]
    fn folders_that_nobody_needs_any_more_are_given_back() {
        let top = tempfile::tempdir().unwrap();
        let watches = Watches::new();
        let kept = watches.watch();
        let paths = |name: &str| {
            let folder = top.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            Paths {
                files: vec![folder.join("a.json")],
                folders: Vec::new(),
            }
        };
        kept.cover(paths("kept"))();
        for nth in 0..3 * PRUNE {
            watches.watch().cover(paths(&nth.to_string()))();
        }
        let covered = &locked(&watches.cover).covered;
        assert!(covered.len() <= PRUNE, "{}", covered.len());
        assert!(covered.contains_key(&top.path().join("kept")));
    }

    #[tokio::test]
    async fn it_is_time_to_look_when_a_file_has_changed_and_when_none_has() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        let paths = Paths {
            files: vec![file.clone()],
            folders: Vec::new(),
        };
        let mut watch = Watches::new().watch();
        watch.cover(paths)();
        std::fs::write(folder.path().join("beside"), "").unwrap();
        assert!(watch.due().await.is_empty());
        // If the system has no watches left, only the next regular check finds the change.
        std::fs::write(&file, "").unwrap();
        let touched = watch.due().await;
        assert!(touched.is_empty() || touched.contains(&file));
    }
}
