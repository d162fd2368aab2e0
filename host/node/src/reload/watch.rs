//! When to look whether files have changed: soon after the system says that something
//! happened to one of them, and every so often all the same. What a link points to may
//! change elsewhere, not every file system tells, and the system may have no watches left.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
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

/// How many may have their files looked at so often. Of more, each has it less often: where the
/// system tells what happens, that makes no difference.
const OFTEN: usize = 20;

/// With how many watched folders it is first looked which of them are needed.
const PRUNE: usize = 64;

/// Files to be watched, and folders of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Paths {
    pub(crate) files: Vec<PathBuf>,
    /// Every file in one counts.
    pub(crate) folders: Vec<PathBuf>,
}

/// What the system tells, for all who watch something: it has few to give.
#[derive(Clone)]
pub(crate) struct Watches {
    cover: Arc<Mutex<SystemWatches>>,
    all: Arc<Mutex<Watching>>,
}

/// All who watch something.
#[derive(Default)]
struct Watching {
    each: Vec<Weak<WatchEvents>>,
    /// Who watches a file or a folder: what happens to one tenant's files is no matter of thousands of
    /// others.
    by_path: HashMap<PathBuf, Vec<Weak<WatchEvents>>>,
}

/// Says when to look.
pub(crate) struct FileWatch {
    happened: Arc<WatchEvents>,
    watcher: Arc<Mutex<SystemWatches>>,
    all: Arc<Mutex<Watching>>,
    look_at: Instant,
    /// When something first and last happened since the last look.
    busy: Option<(Instant, Instant)>,
}

/// What the system has told of.
#[derive(Default)]
struct WatchEvents {
    /// What counts, as absolute paths.
    paths: Mutex<Paths>,
    /// The folders that the system has to tell of for that.
    folders: Mutex<BTreeSet<PathBuf>>,
    /// What has had something happen to it, each path once.
    touched: Mutex<BTreeSet<PathBuf>>,
    woken: Notify,
}

/// The system's watches.
struct SystemWatches {
    /// None where the system has none to give.
    watcher: Option<RecommendedWatcher>,
    /// The folders that are watched, and which they were: to watch one again is an
    /// event in it.
    covered: BTreeMap<PathBuf, u64>,
    /// Folders of which it has been said that they can't be watched.
    refused: BTreeSet<PathBuf>,
    /// With how many folders it is next looked which of them nobody needs any more.
    prune_at: usize,
}

impl Watches {
    /// Watches nothing yet.
    pub(crate) fn new() -> Self {
        let all = Arc::<Mutex<Watching>>::default();
        let told = Arc::clone(&all);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the files, as a reload of thousands of tenants does, is no change.
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
                LOOK.as_secs()
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

    /// Says when to look at files of one's own, of which there are none yet.
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

    /// What has these watched from now on when it is called. It looks at the files, so it
    /// isn't called where others wait.
    pub(crate) fn cover(&self, paths: Paths) -> impl FnOnce() + Send + 'static {
        let (happened, watcher) = (Arc::clone(&self.happened), Arc::clone(&self.watcher));
        let all = Arc::clone(&self.all);
        move || {
            let paths = paths.absolute();
            // Without the lock, since a file system may hang: others have theirs watched.
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
    /// Those whose files or folders an event is about.
    fn concerned(&self, event: &notify::Event) -> Vec<Arc<WatchEvents>> {
        if event.need_rescan() {
            return self.each.iter().filter_map(Weak::upgrade).collect();
        }
        let at = event.paths.iter();
        let at = at.flat_map(|path| [Some(&**path), path.parent()]).flatten();
        let watching = at.filter_map(|path| self.by_path.get(path)).flatten();
        watching.filter_map(Weak::upgrade).collect()
    }

    /// One watches these no more.
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

/// How often each of so many has its files looked at.
fn every(watching: usize) -> Duration {
    LOOK.mul_f64((watching as f64 / OFTEN as f64).max(1.0))
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

    /// The folders to watch, rather than the files: a file is often replaced whole, and the
    /// link to it may be.
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

    /// Which of them something that happened at a path has happened to.
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

impl SystemWatches {
    /// Watches folders. One that was removed and made again is watched again. Once there are many, those
    /// are given back that none of all who watch something needs.
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
                // One that was removed isn't watched any more.
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
        assert_eq!(one.every(), LOOK);
        let begun = Instant::now();
        let many: Vec<_> = (0..3 * OFTEN).map(|_| watches.watch()).collect();
        assert!(one.every() > 2 * LOOK);
        // They don't all look at the same moment at first.
        let first = |watch: &FileWatch| watch.look_at.saturating_duration_since(begun);
        assert!(first(&many[0]) < 2 * LOOK && first(&many[3 * OFTEN - 1]) > 2 * LOOK);
        drop(many);
        let _another = watches.watch();
        assert_eq!(one.every(), LOOK);
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
        // Where the machine has no watches left, the next look is all there is.
        std::fs::write(&file, "").unwrap();
        let touched = watch.due().await;
        assert!(touched.is_empty() || touched.contains(&file));
    }
}
