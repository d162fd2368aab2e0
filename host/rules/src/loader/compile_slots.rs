//! Limits how many plugins compile at a time, and decides whose turn it is. A compilation that is
//! given up can't be stopped. It gives its slot back and goes on, as long as few do.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::compiler::lock;

/// The slots in which plugins are compiled.
pub(super) struct CompileSlots {
    state: Mutex<State>,
    freed: Condvar,
}

struct State {
    /// The number of slots. Also how many compilations that are given up may go on without one.
    count: usize,
    /// All compilations that are going on, by number.
    compiling: BTreeMap<u64, Compiling>,
    /// The number and owner of each compilation that waits, in order of arrival.
    queue: VecDeque<(u64, Arc<str>)>,
    next_ticket: u64,
}

struct Compiling {
    owner: Arc<str>,
    is_given_up: bool,
}

/// The slot of one compilation.
#[derive(Clone)]
pub(super) struct CompileSlot {
    slots: Arc<CompileSlots>,
    number: u64,
}

impl CompileSlots {
    pub(super) fn new(count: usize) -> Self {
        Self {
            state: Mutex::new(State {
                count,
                compiling: BTreeMap::new(),
                queue: VecDeque::new(),
                next_ticket: 0,
            }),
            freed: Condvar::new(),
        }
    }

    /// Waits for a slot. The owner with the fewest running compilations goes first.
    pub(super) fn take(self: &Arc<Self>, owner: &str) -> CompileSlot {
        let owner: Arc<str> = owner.into();
        let mut state = lock(&self.state);
        let number = state.next_ticket;
        state.next_ticket += 1;
        state.queue.push_back((number, Arc::clone(&owner)));
        let waits = |state: &mut State| !state.has_room() || state.next() != Some(number);
        let waited = self.freed.wait_while(state, waits);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.queue.retain(|(waiting, _)| *waiting != number);
        let is_given_up = false;
        state
            .compiling
            .insert(number, Compiling { owner, is_given_up });
        drop(state);
        // A second slot may be free for the next one in the queue.
        self.freed.notify_all();
        CompileSlot {
            slots: Arc::clone(self),
            number,
        }
    }

    /// How many compilations wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        lock(&self.state).queue.len()
    }
}

impl State {
    /// Whether a slot is free. Up to `count` compilations that are given up need no slot; each
    /// further one takes one.
    fn has_room(&self) -> bool {
        let given_up = self.compiling.values().filter(|it| it.is_given_up).count();
        let active = self.compiling.len() - given_up;
        active + given_up.saturating_sub(self.count) < self.count
    }

    /// The number of the compilation whose turn it is.
    fn next(&self) -> Option<u64> {
        let has = |owner: &Arc<str>| {
            let own = self.compiling.values().filter(|it| it.owner == *owner);
            own.count()
        };
        let waiting = self.queue.iter();
        let next = waiting.min_by_key(|(number, owner)| (has(owner), *number));
        next.map(|(number, _)| *number)
    }
}

impl CompileSlot {
    /// Marks the compilation as given up: it goes on, but nobody waits for it.
    pub(super) fn give_up(&self) {
        if let Some(own) = lock(&self.slots.state).compiling.get_mut(&self.number) {
            own.is_given_up = true;
        }
        self.slots.freed.notify_all();
    }

    /// Frees the slot: the compilation has ended.
    pub(super) fn end(&self) {
        lock(&self.slots.state).compiling.remove(&self.number);
        self.slots.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    #[test]
    fn who_has_a_place_waits_for_who_has_none() {
        let slots = Arc::new(CompileSlots::new(2));
        let (first, second) = (slots.take("many"), slots.take("many"));
        let (came, order) = channel();
        thread::scope(|scope| {
            for (number, owner) in ["many", "many", "other"].into_iter().enumerate() {
                let (slots, came) = (Arc::clone(&slots), came.clone());
                let own = Arc::clone(&slots);
                scope.spawn(move || {
                    let slot = own.take(owner);
                    came.send(owner).unwrap();
                    slot.end();
                });
                while slots.waiting() <= number {
                    thread::yield_now();
                }
            }
            first.end();
            assert_eq!(order.recv().unwrap(), "other");
            second.end();
        });
        assert_eq!(order.try_iter().collect::<Vec<_>>(), ["many", "many"]);
    }

    #[test]
    fn those_that_are_given_up_take_places_once_they_are_too_many() {
        let slots = Arc::new(CompileSlots::new(1));
        let has_room = || lock(&slots.state).has_room();
        let first = slots.take("a");
        assert!(!has_room());
        first.give_up();
        let second = slots.take("a");
        second.give_up();
        assert!(!has_room());
        first.end();
        assert!(has_room());
        let third = slots.take("a");
        assert!(!has_room());
        for slot in [third, second] {
            slot.end();
        }
        assert!(lock(&slots.state).compiling.is_empty());
    }
}
