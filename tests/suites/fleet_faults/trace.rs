//! What happened, as it can be seen from outside: what users did, and what viewers were told.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fact {
    /// A user is about to open a connection.
    Opens {
        user: usize,
        conn: u64,
    },
    /// A message of the connection has reached a broker.
    Spoke {
        user: usize,
        conn: u64,
    },
    /// The user is about to close it, or won't say anything more.
    Closes {
        user: usize,
        conn: u64,
    },
    /// The last of its messages has reached a broker.
    Closed {
        user: usize,
        conn: u64,
    },
    /// The test makes something fail, until the fault of this name ends.
    FaultBegins(&'static str),
    FaultEnds(&'static str),
    /// Something was held up that the test had not caused: this process, a node, or the bucket.
    Stall(&'static str),
    /// A client has received a message about a user, whether it uses it or not.
    Received {
        client: usize,
        source: String,
        epoch: u64,
        seq: u64,
        online: bool,
        user: usize,
        viewers: Vec<usize>,
    },
    /// A client has received a beacon, with the numbers of onlines and offlines that a source has
    /// published.
    Beacon {
        client: usize,
        source: String,
        epoch: u64,
        seqs: [u64; 2],
    },
    /// The client's own connection was lost, and perhaps messages with it.
    Missed {
        client: usize,
    },
    /// From now on, the client shows a user to a viewer as online, or as offline, for this reason.
    ViewChanged {
        viewer: usize,
        user: usize,
        online: bool,
        why: &'static str,
    },
}

/// A fact, and how many milliseconds after the beginning it was noted.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) at: u64,
    pub(super) fact: Fact,
}

/// All that has happened so far, in order.
#[derive(Debug)]
pub(super) struct Trace {
    began: Instant,
    entries: Mutex<Vec<Entry>>,
}

impl Trace {
    pub(super) fn begin() -> Self {
        Self {
            began: Instant::now(),
            entries: Mutex::default(),
        }
    }

    pub(super) fn note(&self, fact: Fact) {
        self.note_all([fact]);
    }

    /// Notes what happens at one time.
    pub(super) fn note_all(&self, facts: impl IntoIterator<Item = Fact>) {
        // The time is taken under the lock, so that entries are in order.
        let mut entries = self.lock();
        let at = self.now();
        entries.extend(facts.into_iter().map(|fact| Entry { at, fact }));
    }

    /// Milliseconds since the beginning.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// How many messages were told to clients so far.
    pub(super) fn received_count(&self) -> usize {
        let entries = self.lock();
        let is_received = |entry: &&Entry| matches!(entry.fact, Fact::Received { .. });
        entries.iter().filter(is_received).count()
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
