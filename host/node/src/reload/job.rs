//! Work that may take long or hang. It runs on a thread of its own, and only one piece of a kind at
//! a time.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::anyhow;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::tasks::{self, blocking};

/// After this time, work that only reads files counts as hanging.
pub(super) const STUCK_AFTER: Duration = Duration::from_secs(30);

/// Work of one kind.
#[derive(Debug)]
pub(super) struct Job<T>(Option<(JoinHandle<T>, Began)>);

/// When the work began. `blocking` may start other work first.
type Began = Arc<OnceLock<Instant>>;

impl<T> Default for Job<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Send + 'static> Job<T> {
    /// Whether no work of this kind is in progress.
    pub(super) fn is_idle(&self) -> bool {
        self.0.is_none()
    }

    /// Starts the work. No work of this kind may be in progress.
    pub(super) fn start(&mut self, work: impl FnOnce() -> T + Send + 'static) {
        let began = Began::default();
        let noted = Arc::clone(&began);
        let work = move || {
            // It can't be set already.
            let _ = noted.set(Instant::now());
            work()
        };
        self.0 = Some((blocking(work), began));
    }

    /// Whether the work has run for so long that it counts as hanging.
    pub(super) fn is_stuck(&self) -> bool {
        let began = self.0.as_ref().and_then(|(_, began)| began.get());
        began.is_some_and(|began| began.elapsed() > STUCK_AFTER)
    }

    /// As [`Self::done`]. `None` if the work hangs.
    ///
    /// # Errors
    /// As [`Self::done`].
    pub(super) async fn done_unless_stuck(&mut self) -> Option<anyhow::Result<T>> {
        loop {
            match timeout(STUCK_AFTER, self.done()).await {
                Ok(done) => return Some(done),
                Err(_) if self.is_stuck() => return None,
                // The work has begun late, and isn't hanging.
                Err(_) => {}
            }
        }
    }

    /// Waits for the result. Waits forever while no work is in progress. Dropping the future loses
    /// no result.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_waits_for_its_turn_does_not_hang() {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let mut job = Job(None);
        // The work hasn't begun, because other work goes first.
        job.0 = Some((blocking(move || ended.recv().is_ok()), Began::default()));
        assert!(!job.is_stuck());
        let long_ago = Instant::now().checked_sub(2 * STUCK_AFTER).unwrap();
        if let Some((_, began)) = &job.0 {
            began.set(long_ago).unwrap();
        }
        assert!(job.is_stuck());
        end.send(()).unwrap();
        assert!(job.done_unless_stuck().await.unwrap().unwrap());
        assert!(job.is_idle() && !job.is_stuck());
    }
}
