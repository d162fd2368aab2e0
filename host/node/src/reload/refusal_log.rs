//! What of the files couldn't be taken, and was said of it.

use std::collections::BTreeSet;

/// What was last said of what couldn't be taken. Files are looked at whenever
/// something happens near them, and what is wrong is said once.
#[derive(Default)]
pub(super) struct RefusalLog {
    pub(super) config: LastRefusal,
    pub(super) directory: LastRefusal,
    pub(super) pipeline: LastRefusal,
    pub(super) restart: Vec<&'static str>,
    /// The plugins in the folder of which it has been said that no pipeline names them.
    pub(super) unused: BTreeSet<String>,
    /// Whether it has been said that files can't be looked at.
    pub(super) hangs: bool,
}

/// What was last said of one thing; empty if it was taken.
#[derive(Default)]
pub(super) struct LastRefusal(String);

impl LastRefusal {
    /// Whether it was taken.
    pub(super) fn is_nothing(&self) -> bool {
        self.0.is_empty()
    }

    /// Says why something wasn't taken, if that is news, and whether it is.
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
