//! Reads what was stored of one shard while the node runs, behind all that had been handed
//! over to be written.

use std::fmt;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::Restored;
use super::writer::{Job, Owner};

/// Asks for what was stored.
#[derive(Clone, Debug)]
pub(crate) struct Restorer {
    jobs: mpsc::Sender<Job>,
    owner: Arc<Owner>,
}

/// Whether what was stored has been asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestoreRequested {
    /// It has, and comes.
    Yes,
    /// There was no room for that.
    Later,
}

/// A request for what was stored of some users. It is answered in any case: where that
/// can't be read, as if there were nothing.
pub(crate) struct Request {
    wanted: Box<dyn Fn(&str) -> bool + Send>,
    done: Option<Done>,
}

type Done = Box<dyn FnOnce(Restored) + Send>;

impl Restorer {
    pub(super) fn new(jobs: mpsc::Sender<Job>, owner: Arc<Owner>) -> Self {
        Self { jobs, owner }
    }

    /// Has what is stored of these users be handed to `done`.
    pub(crate) fn ask(
        &self,
        wanted: impl Fn(&str) -> bool + Send + 'static,
        done: impl FnOnce(Restored) + Send + 'static,
    ) -> RestoreRequested {
        match self.jobs.try_reserve() {
            Ok(permit) => {
                let request = Request {
                    wanted: Box::new(wanted),
                    done: Some(Box::new(done)),
                };
                permit.send(Job::Read(Arc::clone(&self.owner), request));
                RestoreRequested::Yes
            }
            Err(TrySendError::Full(())) => RestoreRequested::Later,
            Err(TrySendError::Closed(())) => {
                done(Restored::nothing());
                RestoreRequested::Yes
            }
        }
    }
}

impl Request {
    /// Whether a user is among those asked for.
    pub(super) fn wants(&self, user: &str) -> bool {
        (self.wanted)(user)
    }

    /// This is what is stored of them.
    pub(super) fn answer(mut self, restored: Restored) {
        if let Some(done) = self.done.take() {
            done(restored);
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            done(Restored::nothing());
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Request")
    }
}
