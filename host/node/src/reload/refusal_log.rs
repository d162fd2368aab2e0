//! What was logged about changes that were refused.

use std::collections::BTreeSet;

/// The last log line about each kind of refused change. Files are checked often, and each problem
/// is logged once.
#[derive(Default)]
pub(super) struct RefusalLog {
    pub(super) config: LastRefusal,
    pub(super) directory: LastRefusal,
    pub(super) pipeline: LastRefusal,
    pub(super) restart: Vec<&'static str>,
    /// The plugins in the folder that were logged as unused.
    pub(super) unused: BTreeSet<String>,
    /// Whether it was logged that files can't be checked.
    pub(super) is_stuck: bool,
}

/// The last error about one kind of change; empty if the change was taken.
#[derive(Default)]
pub(super) struct LastRefusal(String);

impl LastRefusal {
    /// Whether the last change was taken.
    pub(super) fn is_nothing(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes why a change was refused, or that it was taken. Logs and returns `true` if the error
    /// is new.
    pub(super) fn report(&mut self, what: &str, error: Option<String>) -> bool {
        let is_news = error.as_ref().is_some_and(|error| *error != self.0);
        self.0 = error.unwrap_or_default();
        if is_news {
            for line in self.0.lines() {
                tracing::error!("{what}, the running one stays: {line}");
            }
        }
        is_news
    }
}
