//! The copy of the directory on disk, which outlives a restart: the known content stays in force
//! even if the source is away when the node starts.
//!
//! It is a file of entries in the state's folder. Only changes are written, by a task of its own,
//! and each change in one transaction: the copy never holds half of a change. Between two writes
//! the task rests for as long as the last one took. So a large directory that changes all the time
//! takes at most half of a disk's time, and changes that come meanwhile are written together.
//!
//! Most directories seldom change. So the file is read without being opened for writing, and is
//! closed again some time after the last change. A checksum over all entries, which is kept with
//! them, shows whether the file holds what was written.

mod content;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use presence_config::directory::entry;
use presence_core::directory::{Changes, Directory};
use presence_core::names::Names;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::health::DirectoryHealth;
use crate::state::database::{self, Fault, guarded};
use crate::tasks::{Tasks, run_blocking};
use content::OpenFile;

/// The shortest rest after a write.
const REST: Duration = Duration::from_millis(100);

/// The file is closed after this time without a change, or after this many times the time that it
/// takes to open it, if that is longer.
const IDLE: Duration = Duration::from_secs(10);
const IDLE_OPENINGS: u32 = 100;

/// The rest before a failed write is tried again, at first and at most. The file is opened anew
/// then, which checks all of it.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Where the directory comes from, as noted in the copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The source: a file's path or a bucket's name. A copy of another source isn't used.
    pub(crate) source: String,
    /// Tells buckets of the same name apart; empty for a file.
    pub(crate) identity: String,
}

/// The content of the copy.
pub(crate) struct DirectoryCopy {
    pub(crate) origin: Origin,
    pub(crate) directory: Directory,
    pub(crate) changes: Changes,
}

/// Writes the copy.
pub(crate) struct CopyWriter {
    shared: Arc<Shared>,
    origin: Origin,
    /// Whether the origin differs from the one in the file.
    moved: bool,
}

struct Shared {
    pending: Mutex<Pending>,
    changed: Notify,
    health: Arc<DirectoryHealth>,
}

/// What has yet to be written.
#[derive(Default)]
struct Pending {
    /// Whether the file's entries must be removed first: they are of another source.
    clear: bool,
    entries: BTreeMap<String, Option<String>>,
    origin: Option<Origin>,
    /// Signalled when everything is written.
    closing: Option<oneshot::Sender<()>>,
    /// Whether the [`CopyWriter`] was dropped, so that nothing more comes.
    is_left: bool,
}

impl CopyWriter {
    /// Opens the copy, and reads it if it is of this source.
    ///
    /// # Errors
    /// If the file can't be used. A damaged file is set aside, and isn't an error.
    pub(crate) fn open(
        path: &Path,
        source: &str,
        names: &Names,
        health: &Arc<DirectoryHealth>,
        tasks: &Tasks,
    ) -> anyhow::Result<(Self, Option<DirectoryCopy>)> {
        let (kept, file) = match content::open(path, source, names, health) {
            Ok(opened) => opened,
            Err(Fault::Damaged(why)) => {
                let aside = database::set_aside(path, "damaged")?;
                tracing::error!(
                    "the copy of the directory can't be read, and was set aside as {}: {why:#}",
                    aside.display()
                );
                (None, None)
            }
            Err(fault) => return Err(unusable(fault)),
        };
        health.copy.wait_for_room();
        let shared = Arc::new(Shared {
            pending: Mutex::new(Pending {
                clear: kept.is_none(),
                ..Pending::default()
            }),
            changed: Notify::new(),
            health: Arc::clone(health),
        });
        let writing = Arc::clone(&shared).run(file, path.into());
        tasks.spawn_ending("directory", writing);
        let origin = kept.as_ref().map(|kept| kept.origin.clone());
        let origin = origin.unwrap_or_default();
        let copy_writer = Self {
            shared,
            origin,
            moved: false,
        };
        Ok((copy_writer, kept))
    }

    /// Has a change of the directory written, with its origin if that is new.
    pub(crate) fn note(&mut self, directory: &Directory, changes: &Changes, names: &Names) {
        // The text is made here and not by the task: the numbers of ids may be given to others
        // later.
        let entries = changes.others().filter_map(|question| {
            let key = entry::key_of(question, names)?;
            let value = match directory.has(question) {
                true => entry::value_of(directory, question, names),
                false => Some(String::new()),
            };
            Some((key, value))
        });
        let mut pending = self.shared.lock();
        pending.entries.extend(entries);
        if std::mem::take(&mut self.moved) {
            pending.origin = Some(self.origin.clone());
        }
        self.shared.notify(&pending);
    }

    /// Sets the origin of the changes that are noted next.
    pub(crate) fn set_origin(&mut self, origin: Origin) {
        if self.origin != origin {
            self.origin = origin;
            self.moved = true;
        }
    }

    /// Ends all waits for a disk that can't be written: the node is about to stop.
    pub(crate) fn give_up_waiting(&self) {
        self.shared.health.copy.give_up();
    }

    /// Returns when everything has been written, or a last attempt has failed. Later changes are
    /// not written.
    pub(crate) async fn finish(&self) {
        let (done, written) = oneshot::channel();
        {
            let mut pending = self.shared.lock();
            pending.closing = Some(done);
            self.shared.notify(&pending);
        }
        // If the task is gone, nothing more can be written.
        let _ = written.await;
    }
}

/// Without [`CopyWriter::finish`], as after a failure, the task ends and may leave changes
/// unwritten.
impl Drop for CopyWriter {
    fn drop(&mut self) {
        let mut pending = self.shared.lock();
        pending.is_left = true;
        self.shared.notify(&pending);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self, pending: &Pending) {
        self.health
            .unsaved
            .store(pending.entries.len(), Ordering::Relaxed);
        self.changed.notify_one();
    }

    async fn run(self: Arc<Self>, mut file: Option<OpenFile>, path: Arc<Path>) {
        let disk = &self.health.copy;
        let mut retry = RETRY.0;
        let mut failed = false;
        loop {
            let idle = file.as_ref().map(|it| IDLE.max(it.opening * IDLE_OPENINGS));
            let job = match idle {
                Some(idle) => timeout(idle, self.next()).await,
                None => Ok(self.next().await),
            };
            let Ok(job) = job else {
                let idle = file.take();
                run_blocking(move || drop(idle)).await;
                continue;
            };
            let mut rest = REST;
            if !job.is_empty() {
                let (shared, at) = (Arc::clone(&self), Arc::clone(&path));
                let (back, job, written, took) = run_blocking(move || {
                    let begun = Instant::now();
                    let written = shared.write(&mut file, &at, &job);
                    (file, job, written, begun.elapsed())
                })
                .await;
                file = back;
                failed = written.is_err();
                match written {
                    Ok(()) => {
                        disk.note_success();
                        retry = RETRY.0;
                        rest = rest.max(took);
                        let left = self.lock().entries.len();
                        self.health.unsaved.store(left, Ordering::Relaxed);
                    }
                    Err(error) => {
                        disk.note_failure(format!("{error:#}"));
                        rest = retry;
                        retry = (retry * 2).min(RETRY.1);
                        self.lock().put_back(job);
                    }
                }
            }
            // Whether the rest is over or the writer is closing makes no difference here.
            let _ = timeout(rest, self.until(|pending| pending.closing.is_some())).await;
            let closing = {
                let mut pending = self.lock();
                let is_over = pending.is_empty() || failed;
                pending.closing.take_if(|_| is_over)
            };
            if let Some(done) = closing {
                run_blocking(move || drop(file)).await;
                // The receiver may have given up waiting.
                let _ = done.send(());
                return;
            }
            if self.lock().is_left {
                return;
            }
        }
    }

    /// Waits until the pending changes satisfy a condition.
    async fn until(&self, is: impl Fn(&Pending) -> bool) {
        loop {
            let changed = self.changed.notified();
            if is(&self.lock()) {
                return;
            }
            changed.await;
        }
    }

    /// Writes the pending changes. After a failure the file is opened anew.
    fn write(&self, file: &mut Option<OpenFile>, path: &Path, job: &Pending) -> anyhow::Result<()> {
        let mut written = match file.take() {
            Some(file) => file,
            None => OpenFile::open(path, &self.health.copy).map_err(unusable)?,
        };
        let write = guarded(|| content::write(&mut written.file, job).map_err(Fault::Unusable));
        write.map_err(unusable)?;
        *file = Some(written);
        Ok(())
    }

    /// Waits for changes or for the end, and takes the changes.
    async fn next(&self) -> Pending {
        self.until(|pending| !pending.is_empty() || pending.closing.is_some() || pending.is_left)
            .await;
        let mut pending = self.lock();
        Pending {
            // Clearing alone is no reason to write: the old copy may be of use again.
            clear: !pending.is_empty() && std::mem::take(&mut pending.clear),
            entries: std::mem::take(&mut pending.entries),
            origin: pending.origin.take(),
            closing: None,
            is_left: false,
        }
    }
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.origin.is_none()
    }

    /// Puts back changes that couldn't be written. Newer changes of the same entries win.
    fn put_back(&mut self, job: Self) {
        self.clear |= job.clear;
        for (key, value) in job.entries {
            self.entries.entry(key).or_insert(value);
        }
        if self.origin.is_none() {
            self.origin = job.origin;
        }
    }
}

/// The error that is reported for a file that can't be used.
fn unusable(fault: Fault) -> anyhow::Error {
    match fault {
        Fault::InUse => anyhow!("another process uses the file"),
        Fault::Full(error) | Fault::Unusable(error) | Fault::Damaged(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use presence_config::directory::{Content, Export};
    use presence_core::directory::Question;

    const TEXT: &str = r#"{"contacts":{"a":["b","c"]},"groups":{"t":["a","d"]},"blocks":{"a":["c"]},"settings":{"a":{"x":1}}}"#;

    fn file() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("presence.directory.redb");
        (folder, path)
    }

    fn open_copy(path: &Path, source: &str, names: &Names) -> (CopyWriter, Option<DirectoryCopy>) {
        CopyWriter::open(path, source, names, &Arc::default(), &Tasks::new().0).unwrap()
    }

    fn written(kept: &DirectoryCopy, names: &Names) -> String {
        serde_json::to_string(&Export::of(&kept.directory, names)).unwrap()
    }

    fn origin(source: &str) -> Origin {
        Origin {
            source: source.into(),
            identity: "1".into(),
        }
    }

    #[tokio::test]
    async fn a_directory_and_its_changes_are_there_again() {
        let (_folder, path) = file();
        let names = Names::new();
        let (mut copy_writer, kept) = open_copy(&path, "file", &names);
        assert!(kept.is_none());
        let content = Content::parse(TEXT, &names).unwrap();
        let (directory, changes) = content.replace(&Directory::unavailable());
        copy_writer.set_origin(origin("file"));
        copy_writer.note(&directory, &changes, &names);
        copy_writer.finish().await;

        let names = Names::new();
        let (mut copy_writer, kept) = open_copy(&path, "file", &names);
        let kept = kept.unwrap();
        assert_eq!(kept.origin, origin("file"));
        assert_eq!(written(&kept, &names), TEXT);
        let mut edit = kept.directory.edit();
        edit.blocked(names.intern("a"), None);
        edit.unreadable(Question::BlockedBy(names.intern("z")));
        let (changed, changes) = edit.finish();
        copy_writer.note(&changed, &changes, &names);
        copy_writer.finish().await;

        let names = Names::new();
        let (_, kept) = open_copy(&path, "file", &names);
        let kept = kept.unwrap();
        let expected = TEXT.replace(r#"{"a":["c"]}"#, "{}");
        assert_eq!(written(&kept, &names), expected);
        let unreadable = Question::BlockedBy(names.intern("z"));
        assert!(!kept.directory.has(&unreadable));
    }

    #[tokio::test]
    async fn a_copy_of_another_source_is_not_used_and_is_replaced_by_the_first_content() {
        let (_folder, path) = file();
        let names = Names::new();
        let (mut copy_writer, _) = open_copy(&path, "one", &names);
        let read = |text| Content::parse(text, &names).unwrap();
        let (directory, changes) = read(TEXT).replace(&Directory::unavailable());
        copy_writer.set_origin(origin("one"));
        copy_writer.note(&directory, &changes, &names);
        copy_writer.finish().await;

        let (copy_writer, kept) = open_copy(&path, "two", &names);
        assert!(kept.is_none());
        copy_writer.finish().await;
        let (copy_writer, kept) = open_copy(&path, "one", &names);
        assert!(kept.is_some(), "nothing has taken its place yet");
        copy_writer.finish().await;
        let (mut copy_writer, _) = open_copy(&path, "two", &names);
        let (directory, changes) =
            read(r#"{"contacts":{"z":["y"]}}"#).replace(&Directory::unavailable());
        copy_writer.set_origin(origin("two"));
        copy_writer.note(&directory, &changes, &names);
        copy_writer.finish().await;
        let (_, kept) = open_copy(&path, "two", &names);
        let expected = r#"{"contacts":{"z":["y"]},"groups":{},"blocks":{},"settings":{}}"#;
        assert_eq!(written(&kept.unwrap(), &names), expected);
    }

    /// Writes a directory, and closes the file.
    async fn keep(path: &Path, text: &str) {
        let names = Names::new();
        let (mut copy_writer, _) = open_copy(path, "file", &names);
        let content = Content::parse(text, &names).unwrap();
        let (directory, changes) = content.replace(&Directory::unavailable());
        copy_writer.set_origin(origin("file"));
        copy_writer.note(&directory, &changes, &names);
        copy_writer.finish().await;
    }

    #[tokio::test]
    async fn what_is_only_read_is_left_as_it_is_and_what_has_changed_in_it_is_noticed() {
        let (folder, path) = file();
        let (copy_writer, _) = open_copy(&path, "file", &Names::new());
        copy_writer.finish().await;
        assert!(!path.exists(), "there is nothing to keep");
        keep(&path, TEXT).await;
        let sound = std::fs::read(&path).unwrap();
        let (copy_writer, kept) = open_copy(&path, "file", &Names::new());
        assert!(kept.is_some());
        copy_writer.finish().await;
        assert_eq!(std::fs::read(&path).unwrap(), sound);
        // Changes one contact to another, in all pages that hold it.
        let mut changed = sound.clone();
        for at in 0..changed.len() - 8 {
            if changed[at..].starts_with(br#"["b","c"]"#) {
                changed[at + 2] = b'd';
            }
        }
        assert_ne!(changed, sound);
        std::fs::write(&path, changed).unwrap();
        let (copy_writer, kept) = open_copy(&path, "file", &Names::new());
        assert!(kept.is_none());
        copy_writer.finish().await;
        let names = std::fs::read_dir(folder.path()).unwrap();
        let mut names = names.map(|it| it.unwrap().file_name().into_string().unwrap());
        assert!(names.any(|name| name.contains(".damaged-")));
    }

    #[tokio::test]
    async fn one_that_was_not_closed_or_has_no_sum_is_checked_and_taken() {
        let (_folder, path) = file();
        keep(&path, TEXT).await;
        let file = OpenFile::open(&path, &Arc::default()).unwrap().file;
        content::forget_sum(&file);
        // As if the process were killed.
        std::mem::forget(file);
        let copy = path.with_extension("killed");
        std::fs::copy(&path, &copy).unwrap();
        for _ in 0..2 {
            let names = Names::new();
            let (mut copy_writer, kept) = open_copy(&copy, "file", &names);
            let kept = kept.unwrap();
            assert_eq!(written(&kept, &names), TEXT);
            let identity = format!("{}1", kept.origin.identity);
            let source = "file".into();
            copy_writer.set_origin(Origin { source, identity });
            copy_writer.note(&kept.directory, &Changes::default(), &names);
            copy_writer.finish().await;
        }
        let (kept, open) = content::open(&copy, "file", &Names::new(), &DirectoryHealth::default())
            .unwrap_or_else(|fault| panic!("{fault:?}"));
        assert!(kept.is_some() && open.is_none(), "it has a sum now");
    }

    #[tokio::test]
    async fn what_is_damaged_is_set_aside() {
        let (folder, path) = file();
        std::fs::write(&path, "no database").unwrap();
        let (copy_writer, kept) = open_copy(&path, "file", &Names::new());
        assert!(kept.is_none());
        copy_writer.finish().await;
        keep(&path, TEXT).await;
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
