//! The tasks of the tracker, and when each is to be looked at.
//!
//! An entry may be early, but is never late. Code that moves a deadline further away leaves the
//! entry where it is, so a heartbeat costs nothing here. Code that pops an early entry puts it back
//! at the real deadline, even if that has passed as well: tasks come in the order of their
//! deadlines. If a deadline comes nearer, which is rare, a second, earlier entry is added.
//! Connections and users know which of their entries counts. A popped entry may be out of date, and
//! its connection forgotten long ago: then the key finds nothing.
//!
//! Leases and graces are due by the receive clock, all else by the host's. The task that is overdue
//! for longest comes first. Tasks that are due at the same moment come in the order of `Task`:
//! graces before leases, and the older user or connection first.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use super::slab::Key;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Task {
    /// A user's grace may be over.
    EndGrace(Key),
    /// A connection's lease may have run out.
    Lease(Key),
    /// A connection's close need not be remembered any longer.
    Forget(Key),
}

#[derive(Debug, Default)]
pub(super) struct TimerQueue {
    /// Leases and graces, by the receive clock.
    by_receive_clock: Heap,
    /// Closes to be forgotten, by the host's clock.
    by_host_clock: Heap,
    /// Connections whose lease may have to be cut, and when, by the host's clock. As a rule, none.
    cuts: BTreeSet<(u64, Key)>,
}

/// The latest moment of an entry. A later deadline is set to this one: no clock gets that far.
pub(super) const LATEST: u64 = u64::MAX >> 2;

type Heap = BinaryHeap<Reverse<Entry>>;

/// The moment and the [`Task`], in 16 bytes: there is an entry for each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// The moment, and in the last two bits the kind of task.
    at_and_kind: u64,
    key: Key,
}

impl Entry {
    fn new(at: u64, task: Task) -> Self {
        let (kind, key) = match task {
            Task::EndGrace(key) => (0, key),
            Task::Lease(key) => (1, key),
            Task::Forget(key) => (2, key),
        };
        Self {
            at_and_kind: at.min(LATEST) << 2 | kind,
            key,
        }
    }

    fn at(self) -> u64 {
        self.at_and_kind >> 2
    }

    fn task(self) -> Task {
        match self.at_and_kind & 3 {
            0 => Task::EndGrace(self.key),
            1 => Task::Lease(self.key),
            _ => Task::Forget(self.key),
        }
    }
}

impl TimerQueue {
    pub(super) fn push(&mut self, at: u64, task: Task) {
        match task {
            Task::EndGrace(_) | Task::Lease(_) => &mut self.by_receive_clock,
            Task::Forget(_) => &mut self.by_host_clock,
        }
        .push(Reverse(Entry::new(at, task)));
    }

    /// The first moment of the receive clock at which something is due.
    pub(super) fn next_by_receive_clock(&self) -> Option<u64> {
        self.by_receive_clock
            .peek()
            .map(|Reverse(entry)| entry.at())
    }

    /// The first moment of the host's clock at which something is due.
    pub(super) fn next_by_host_clock(&self) -> Option<u64> {
        self.by_host_clock.peek().map(|Reverse(entry)| entry.at())
    }

    /// Takes the first task that is due, and returns its deadline, by its own clock.
    pub(super) fn pop_due(&mut self, now: u64, receive_clock: u64) -> Option<(u64, Task)> {
        let order = |heap: &Heap, clock: u64| {
            let Reverse(entry) = *heap.peek()?;
            let overdue_ms = clock.checked_sub(entry.at())?;
            Some((Reverse(overdue_ms), entry.task()))
        };
        let heard = order(&self.by_receive_clock, receive_clock);
        let other = order(&self.by_host_clock, now);
        let heap = match (heard, other) {
            (None, None) => return None,
            (Some(heard), Some(other)) if other < heard => &mut self.by_host_clock,
            (Some(_), _) => &mut self.by_receive_clock,
            (None, Some(_)) => &mut self.by_host_clock,
        };
        let Reverse(entry) = heap.pop()?;
        Some((entry.at(), entry.task()))
    }

    /// Takes the connection whose close is to be forgotten next, even if that isn't due.
    pub(super) fn pop_forgetting(&mut self) -> Option<Key> {
        // These entries are of `Task::Forget` alone.
        self.by_host_clock.pop().map(|Reverse(entry)| entry.key)
    }

    /// Notes when a connection's lease may have to be cut.
    pub(super) fn cut_at(&mut self, at: u64, key: Key) {
        self.cuts.insert((at, key));
    }

    /// Takes a connection whose lease may have to be cut by `now`.
    pub(super) fn pop_cut(&mut self, now: u64) -> Option<Key> {
        let first = *self.cuts.first().filter(|(at, _)| *at <= now)?;
        self.cuts.remove(&first);
        Some(first.1)
    }

    pub(super) fn clear(&mut self) {
        self.by_receive_clock.clear();
        self.by_host_clock.clear();
        self.cuts.clear();
    }
}
