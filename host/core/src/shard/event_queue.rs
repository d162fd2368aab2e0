//! Events that wait for answers of the directory. Enrichers may ask for answers before an event is
//! announced, and a redactor before viewers are told that a user is offline.
//!
//! All later events of the user wait behind, so that events are told in their order. No event waits
//! for longer than the settings say.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;
use roaring::RoaringBitmap;

use crate::changed::ChangedUsers;
use crate::directory::{Changes, Directory, Question};
use crate::event::Event;
use crate::names::{Id, Name};
use crate::pending_fetches::PendingFetches;
use crate::read_point::{ReadPoint, SnapshotReads};
use crate::step::Step;

/// The waiting steps of the shard's users.
#[derive(Debug, Default)]
pub(super) struct EventQueue {
    /// The steps of each user, in their order, and until when each waits at most. No queue is
    /// empty.
    queues: Queues,
    /// The answers that the first step of a queue waits for.
    fetches: PendingFetches,
    /// When the first step of a queue has waited for long enough.
    timers: BTreeSet<(u64, Id)>,
    /// Users whose first step is to be tried again.
    retriable: BTreeSet<Id>,
    changed: ChangedUsers,
    /// The readings of the queues as they were at a moment. Each change of a queue calls
    /// [`Self::keep`] before.
    reads: SnapshotReads<Vec<Step>>,
}

impl EventQueue {
    /// Whether a step of a user waits.
    pub(super) fn holds(&self, user: Id) -> bool {
        !self.queues.is_empty() && self.queues.contains_key(&user)
    }

    /// Adds a step behind all others of its user.
    pub(super) fn push(&mut self, step: Step, until: u64) {
        self.keep(step.event().user);
        self.note(step.event());
        let queue = self.queues.entry(step.event().user).or_default();
        queue.push_back((step, until));
    }

    /// Puts a step before all others of its user, where it waits for these answers.
    pub(super) fn put_first(&mut self, step: Step, until: u64, questions: BTreeSet<Question>) {
        self.note(step.event());
        let user = step.event().user;
        self.keep(user);
        self.queues
            .entry(user)
            .or_default()
            .push_front((step, until));
        self.timers.insert((until, user));
        self.fetches.note(user, questions);
    }

    /// Takes a user's first step.
    pub(super) fn pop(&mut self, user: Id) -> Option<(Step, u64)> {
        self.keep(user);
        let queue = self.queues.get_mut(&user)?;
        let first = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&user);
        }
        let (step, until) = first?;
        self.note(step.event());
        self.timers.remove(&(until, user));
        self.retriable.remove(&user);
        self.fetches.forget(user);
        Some((step, until))
    }

    fn note(&mut self, event: &Event) {
        self.changed.note(event.user, &event.name);
    }

    /// A user whose first step is to be tried again by now.
    pub(super) fn due(&self, now: u64) -> Option<Id> {
        let late = self.timers.first().filter(|(at, _)| *at <= now);
        self.retriable
            .first()
            .or(late.map(|(_, user)| user))
            .copied()
    }

    /// The users whose first step waits, in the order of its deadline.
    pub(super) fn waiting(&self) -> impl Iterator<Item = Id> {
        self.timers.iter().map(|(_, user)| *user)
    }

    /// When a step is to be tried again.
    pub(super) fn next_deadline(&self, now: u64) -> Option<u64> {
        if !self.retriable.is_empty() {
            return Some(now);
        }
        self.timers.first().map(|(at, _)| *at)
    }

    /// The rules have changed, and may ask for other answers: all first steps are tried again.
    pub(super) fn rules_changed(&mut self) {
        self.retriable.extend(self.queues.keys());
    }

    /// Some users are decided on by other rules, which may ask for other answers: their first steps
    /// are tried again.
    pub(super) fn reassigned(&mut self, moves: impl Fn(Id) -> bool) {
        let moved = self.queues.keys().filter(|user| moves(**user));
        self.retriable.extend(moved);
    }

    /// The directory, which is asked on demand, has changed: steps that have got all of their
    /// answers are tried again.
    pub(super) fn directory_changed(&mut self, directory: &Directory, changes: &Changes) {
        let served = self.fetches.answered(changes, directory);
        self.retriable.extend(served);
    }

    /// Whether a step waits for an answer.
    pub(super) fn waits_for(&self, question: &Question) -> bool {
        self.fetches.has(question)
    }

    /// Sets whether changes are noted from now on, for [`Self::take_changed`].
    pub(super) fn keep_records(&mut self, keep: bool) {
        self.changed.keep(keep);
    }

    /// Whether there are changes to take.
    pub(super) fn has_records(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Takes the users whose waiting steps have changed since the last call.
    pub(super) fn take_changed(&mut self) -> BTreeMap<Id, Name> {
        self.changed.take()
    }

    /// Begins a reading of the queues as they are now, for [`Self::read`].
    pub(super) fn begin_read(&mut self, point: &ReadPoint) {
        let users = self.queues.keys().map(|user| user.0).collect();
        self.reads.begin(point, users);
    }

    /// Reads the steps of the next `count` users at most, as they were at a moment. Returns whether
    /// any were left.
    pub(super) fn read(
        &mut self,
        point: &ReadPoint,
        count: usize,
        take: impl FnMut(Vec<Step>),
    ) -> bool {
        let steps = |user| waiting(&self.queues, Id(user));
        self.reads.read(point, count, steps, take)
    }

    /// Call it before a user's queue changes: keeps the queue for readings that have yet to get to
    /// it.
    fn keep(&mut self, user: Id) {
        let queues = &self.queues;
        self.reads.keep(user.0, || waiting(queues, user));
    }

    /// All waiting steps of a user, in their order.
    pub(super) fn steps(&self, user: Id) -> impl Iterator<Item = &Step> {
        let queue = self.queues.get(&user).into_iter().flatten();
        queue.map(|(step, _)| step)
    }

    /// The last event of a user that waits to be announced.
    pub(super) fn last_announced(&self, user: Id) -> Option<&Arc<Event>> {
        let mut steps = self.queues.get(&user)?.iter().rev();
        steps.find_map(|(step, _)| match step {
            Step::Announce(event, _) => Some(event),
            Step::Notify(..) | Step::Reshow(_) => None,
        })
    }

    /// Drops the last event of a user that waits to be announced. The other steps are tried at
    /// once.
    pub(super) fn drop_last_announced(&mut self, user: Id, until: u64) {
        let mut steps: Vec<_> = self.steps(user).cloned().collect();
        let is_announced = |step: &Step| matches!(step, Step::Announce(..));
        if let Some(place) = steps.iter().rposition(is_announced) {
            steps.remove(place);
            self.forget(user);
            self.restore(steps, until);
        }
    }

    /// The users with waiting steps, in a stable order.
    pub(super) fn users(&self) -> Vec<Id> {
        let mut users: Vec<_> = self.queues.keys().copied().collect();
        users.sort_unstable();
        users
    }

    /// Drops all waiting steps of a user.
    pub(super) fn forget(&mut self, user: Id) {
        while self.pop(user).is_some() {}
    }

    /// Restores the steps of a user, which are tried at once.
    pub(super) fn restore(&mut self, steps: Vec<Step>, until: u64) {
        let Some(user) = steps.first().map(|first| first.event().user) else {
            return;
        };
        self.keep(user);
        self.timers.insert((until, user));
        self.retriable.insert(user);
        let queue = steps.into_iter().map(|step| (step, until)).collect();
        self.queues.insert(user, queue);
    }

    /// The numbers of all ids in here.
    pub(super) fn ids(&self) -> RoaringBitmap {
        let mut ids = self.fetches.ids();
        ids.extend(self.changed.ids());
        let waiting = self.queues.values().flatten().map(|(step, _)| step);
        for step in waiting.chain(self.reads.kept().flatten()) {
            ids |= step.ids();
        }
        ids
    }
}

type Queues = HashMap<Id, VecDeque<(Step, u64)>, foldhash::fast::FixedState>;

/// The waiting steps of a user, if there are any.
fn waiting(queues: &Queues, user: Id) -> Option<Vec<Step>> {
    let queue = queues.get(&user)?;
    Some(queue.iter().map(|(step, _)| step.clone()).collect())
}
