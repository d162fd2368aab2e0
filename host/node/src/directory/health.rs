//! Whether the directory's source can be read. One that can't is unavailable, which is
//! not to be empty: what was known of it stays in force until it can be read again.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::clock;
use crate::state::database::Disk;

/// What is said of the source, shared by what reads it and what reports on it.
#[derive(Debug)]
pub(crate) struct DirectoryHealth {
    unavailable: Mutex<Option<Unavailable>>,
    /// Whether the directory in force holds something that could be lost.
    holds: AtomicBool,
    /// How many entries may be taken of the source.
    entries_max: AtomicU64,
    /// Told when a bucket is to be read whole again.
    again: Notify,
    /// When something was last taken from the source, by the host's clock; 0 for never.
    taken_at: AtomicU64,
    /// How many entries of a bucket have a key that is none.
    pub(crate) refused_keys: AtomicUsize,
    /// How many entries of a bucket have a value that can't be read.
    pub(crate) refused_values: AtomicUsize,
    /// How many changed entries are still to be written to the copy that outlives a
    /// restart.
    pub(crate) unsaved: AtomicUsize,
    /// Whether that copy can be written.
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
            holds: AtomicBool::default(),
            entries_max: AtomicU64::new(u64::MAX),
            again: Notify::new(),
            taken_at: AtomicU64::default(),
            refused_keys: AtomicUsize::default(),
            refused_values: AtomicUsize::default(),
            unsaved: AtomicUsize::default(),
            copy: Arc::new(Disk::of("the copy of the directory")),
        }
    }
}

impl DirectoryHealth {
    /// The source can't be read, and why. `known` says whether anything is known of it.
    pub(crate) fn unavailable(&self, why: &str, known: bool) {
        let mut unavailable = self.lock();
        if unavailable.as_ref().is_some_and(|it| it.why == why) {
            return;
        }
        let what = if known {
            "what was known of it stays in force"
        } else {
            "nothing is known from before, and no viewer is told about any user"
        };
        // Several lines of an error are one of the log.
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

    /// The source has been read, and says what is in force already, or something else.
    pub(crate) fn available(&self, is_same: bool) {
        if let Some(before) = self.lock().take() {
            let seconds = before.since.elapsed().as_secs();
            let how = if is_same { ", unchanged" } else { "" };
            tracing::info!("the directory is available again{how}, after {seconds} s");
        }
    }

    /// For how long the source can't be read, and why; none where it can.
    pub(crate) fn outage(&self) -> Option<(Duration, String)> {
        let unavailable = self.lock();
        let outage = unavailable.as_ref();
        outage.map(|it| (it.since.elapsed(), it.why.clone()))
    }

    /// Whether the directory in force holds something.
    pub(crate) fn holds_something(&self) -> bool {
        self.holds.load(Ordering::Relaxed)
    }

    /// How many entries may be taken of the source.
    pub(crate) fn entries_max(&self) -> u64 {
        self.entries_max.load(Ordering::Relaxed)
    }

    /// So many entries may be taken of the source.
    pub(crate) fn set_entries_max(&self, entries_max: u64) {
        self.entries_max.store(entries_max, Ordering::Relaxed);
    }

    /// Has a bucket be read whole again.
    pub(crate) fn read_again(&self) {
        self.again.notify_one();
    }

    /// Waits until a bucket is to be read whole again.
    pub(super) async fn again(&self) {
        self.again.notified().await;
    }

    /// Something has been taken from the source.
    pub(crate) fn taken(&self) {
        self.taken_at.store(clock::now_ms(), Ordering::Relaxed);
    }

    /// For how many seconds nothing has been taken from the source; none if nothing ever was.
    pub(crate) fn age_s(&self) -> Option<u64> {
        match self.taken_at.load(Ordering::Relaxed) {
            0 => None,
            at => Some(clock::now_ms().saturating_sub(at) / 1_000),
        }
    }

    /// The directory in force has changed.
    pub(crate) fn set_holds(&self, holds: bool) {
        self.holds.store(holds, Ordering::Relaxed);
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
        health.unavailable("gone", true);
        let (first, why) = health.outage().unwrap();
        assert_eq!(why, "gone");
        health.unavailable("empty", true);
        let (second, why) = health.outage().unwrap();
        assert!(why == "empty" && second >= first);
        health.available(true);
        assert!(health.outage().is_none());
    }
}
