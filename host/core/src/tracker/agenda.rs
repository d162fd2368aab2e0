//! What is to be looked at, and when.
//!
//! An entry may be early but is never late: whoever moves a deadline further
//! away leaves the entry where it is, so a heartbeat costs nothing here, and
//! whoever pops it early puts it back at the real deadline, even if that has
//! passed as well: what is due comes in the order of its deadlines. There is at
//! most one entry for each task of each connection and user. What is popped may
//! be out of date, its connection long forgotten: the key tells.
//!
//! Due at the same moment, tasks come in the order of `Task`: graces before
//! leases, the older user or connection first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

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
pub(super) struct Agenda {
    /// Apart from the rest, since a pause skips them all.
    leases: Heap,
    others: Heap,
}

type Heap = BinaryHeap<Reverse<(u64, Task)>>;

impl Agenda {
    pub(super) fn push(&mut self, at: u64, task: Task) {
        match task {
            Task::Lease(_) => self.leases.push(Reverse((at, task))),
            Task::EndGrace(_) | Task::Forget(_) => self.others.push(Reverse((at, task))),
        }
    }

    pub(super) fn next_lease(&self) -> Option<u64> {
        self.leases.peek().map(|Reverse((at, _))| *at)
    }

    pub(super) fn next_other(&self) -> Option<u64> {
        self.others.peek().map(|Reverse((at, _))| *at)
    }

    /// The first entry that is due, and since when.
    pub(super) fn pop_due(&mut self, now: u64, with_leases: bool) -> Option<(u64, Task)> {
        // The heaps are reversed: the greater is the earlier.
        let leases_first = with_leases && self.leases.peek() > self.others.peek();
        let heap = if leases_first {
            &mut self.leases
        } else {
            &mut self.others
        };
        heap.peek().filter(|Reverse((at, _))| *at <= now)?;
        heap.pop().map(|Reverse(entry)| entry)
    }

    pub(super) fn clear(&mut self) {
        self.leases.clear();
        self.others.clear();
    }
}
