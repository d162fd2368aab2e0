//! Reads the stored records of one shard while the node runs, after everything that was handed over
//! before has been written.

use std::fmt;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::Restored;
use super::writer::{Job, Owner};

/// Requests stored records.
#[derive(Clone, Debug)]
pub(crate) struct Restorer {
    jobs: mpsc::Sender<Job>,
    owner: Arc<Owner>,
}

/// Whether a request for stored records could be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestoreRequested {
    /// It was made, and will be answered.
    Yes,
    /// The queue is full: try again later.
    Later,
}

/// A request for the stored records of some users. It is always answered: if they can't be read, as
/// if there were none.
pub(crate) struct Request {
    wanted: Box<dyn Fn(&str) -> bool + Send>,
    done: Option<Done>,
}

type Done = Box<dyn FnOnce(Restored) + Send>;

impl Restorer {
    pub(super) fn new(jobs: mpsc::Sender<Job>, owner: Arc<Owner>) -> Self {
        Self { jobs, owner }
    }

    /// Requests the stored records of these users, to be passed to `done`.
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
    /// Whether this user's records are requested.
    pub(super) fn wants(&self, user: &str) -> bool {
        (self.wanted)(user)
    }

    /// Answers with the records.
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
