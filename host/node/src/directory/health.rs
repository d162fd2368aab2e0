//! Whether the directory's source can be read. An unavailable source doesn't count as an empty one:
//! the last known content stays in force until the source can be read again.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::clock;
use crate::state::database::Disk;

/// The state of the source, shared by its readers and by what reports on it.
#[derive(Debug)]
pub(crate) struct DirectoryHealth {
    unavailable: Mutex<Option<Unavailable>>,
    /// Whether the directory in force has any entry.
    has_entries: AtomicBool,
    /// The tenant's limit for the number of entries from the source.
    entries_max: AtomicU64,
    /// Wakes the reader of a bucket when it has to read the whole bucket again.
    reread: Notify,
    /// When content was last taken from the source, by the host's clock. 0: never.
    read_at: AtomicU64,
    /// How many entries of a bucket have an invalid key.
    pub(crate) refused_keys: AtomicUsize,
    /// How many entries of a bucket have a value that can't be read.
    pub(crate) refused_values: AtomicUsize,
    /// How many changed entries have yet to be written to the copy on disk.
    pub(crate) unsaved: AtomicUsize,
    /// Whether the copy on disk can be written.
    pub(crate) copy: Arc<Disk>,
}

#[derive(Debug)]
struct Unavailable {
    since: Instant,
    why: String,
}

impl Default for DirectoryHealth {
    fn default() -> Self {
        Self {
            unavailable: Mutex::default(),
            has_entries: AtomicBool::default(),
            entries_max: AtomicU64::new(u64::MAX),
            reread: Notify::new(),
            read_at: AtomicU64::default(),
            refused_keys: AtomicUsize::default(),
            refused_values: AtomicUsize::default(),
            unsaved: AtomicUsize::default(),
            copy: Arc::new(Disk::of("the copy of the directory")),
        }
    }
}

impl DirectoryHealth {
    /// The source can't be read for the reason `why`. `known`: whether content from before is in
    /// force.
    pub(crate) fn set_unavailable(&self, why: &str, known: bool) {
        let mut unavailable = self.lock();
        if unavailable.as_ref().is_some_and(|it| it.why == why) {
            return;
        }
        let what = if known {
            "what was known of it stays in force"
        } else {
            "nothing is known from before, and no viewer is told about any user"
        };
        // An error of several lines becomes one line of the log.
        tracing::error!(
            "the directory is unavailable, {what}; it is tried again within seconds: {}",
            why.replace('\n', ", ")
        );
        let since = unavailable
            .as_ref()
            .map_or_else(Instant::now, |it| it.since);
        let why = why.to_owned();
        *unavailable = Some(Unavailable { since, why });
    }

    /// The source has been read. `is_same`: its content was in force already.
    pub(crate) fn set_available(&self, is_same: bool) {
        if let Some(before) = self.lock().take() {
            let seconds = before.since.elapsed().as_secs();
            let how = if is_same { ", unchanged" } else { "" };
            tracing::info!("the directory is available again{how}, after {seconds} s");
        }
    }

    /// For how long the source has been unavailable, and why. `None` if it is available.
    pub(crate) fn outage(&self) -> Option<(Duration, String)> {
        let unavailable = self.lock();
        let outage = unavailable.as_ref();
        outage.map(|it| (it.since.elapsed(), it.why.clone()))
    }

    /// Whether the directory in force has any entry.
    pub(crate) fn has_entries(&self) -> bool {
        self.has_entries.load(Ordering::Relaxed)
    }

    /// The tenant's limit for the number of entries from the source.
    pub(crate) fn entries_max(&self) -> u64 {
        self.entries_max.load(Ordering::Relaxed)
    }

    /// Sets the limit for the number of entries from the source.
    pub(crate) fn set_entries_max(&self, entries_max: u64) {
        self.entries_max.store(entries_max, Ordering::Relaxed);
    }

    /// Has the whole bucket read again.
    pub(crate) fn request_reread(&self) {
        self.reread.notify_one();
    }

    /// Waits until the whole bucket has to be read again.
    pub(super) async fn reread_requested(&self) {
        self.reread.notified().await;
    }

    /// Notes that content has just been taken from the source.
    pub(crate) fn note_read(&self) {
        self.read_at.store(clock::now_ms(), Ordering::Relaxed);
    }

    /// The seconds since content was last taken from the source. `None` if that never happened.
    pub(crate) fn age_s(&self) -> Option<u64> {
        match self.read_at.load(Ordering::Relaxed) {
            0 => None,
            at => Some(clock::now_ms().saturating_sub(at) / 1_000),
        }
    }

    /// Notes whether the directory in force has any entry.
    pub(crate) fn set_has_entries(&self, has_entries: bool) {
        self.has_entries.store(has_entries, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Unavailable>> {
        let lock = self.unavailable.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_lasts_from_its_first_reason_until_the_source_is_read() {
        let health = DirectoryHealth::default();
        assert!(health.outage().is_none());
        health.set_unavailable("gone", true);
        let (first, why) = health.outage().unwrap();
        assert_eq!(why, "gone");
        health.set_unavailable("empty", true);
        let (second, why) = health.outage().unwrap();
        assert!(why == "empty" && second >= first);
        health.set_available(true);
        assert!(health.outage().is_none());
    }
}
