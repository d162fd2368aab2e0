//! Work that may take long, or hang: it is done on a thread where nobody waits, one of a
//! kind at a time.

use std::time::Duration;

use anyhow::anyhow;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::tasks::{self, blocking};

/// From when on something hangs that reads no more than a file.
pub(super) const HANGS: Duration = Duration::from_secs(30);

/// Work of one kind.
#[derive(Debug)]
pub(super) struct Job<T>(Option<(JoinHandle<T>, Instant)>);

impl<T> Default for Job<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Send + 'static> Job<T> {
    /// Whether nothing of its kind is being done.
    pub(super) fn is_idle(&self) -> bool {
        self.0.is_none()
    }

    /// Begins. Nothing of its kind may be being done.
    pub(super) fn start(&mut self, work: impl FnOnce() -> T + Send + 'static) {
        self.0 = Some((blocking(work), Instant::now()));
    }

    /// Whether it has been being done for so long that it hangs.
    pub(super) fn hangs(&self) -> bool {
        let began = self.0.as_ref().map(|(_, began)| began);
        began.is_some_and(|began| began.elapsed() > HANGS)
    }

    /// Waits for what comes of it; for ever while nothing is being done. It may be dropped
    /// and called again.
    ///
    /// # Errors
    /// If it has panicked.
    pub(super) async fn done(&mut self) -> anyhow::Result<T> {
        let Some((running, _)) = &mut self.0 else {
            return std::future::pending().await;
        };
        let outcome = running.await;
        self.0 = None;
        outcome.map_err(|error| match error.try_into_panic() {
            Ok(panic) => anyhow!("an error of the program: {}", tasks::message(&*panic)),
            Err(error) => error.into(),
        })
    }
}
