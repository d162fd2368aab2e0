//! Events that wait for answers of the directory: those that enrichers ask for
//! before an event is announced, and those that a redactor asks for before
//! viewers are told that a user is gone.
//!
//! Whatever else happens to the user waits behind, so that everything is told of
//! in its order. Nothing waits for longer than the settings say.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;
use roaring::RoaringBitmap;

use crate::changed::ChangedUsers;
use crate::directory::{Changes, Directory, Question};
use crate::event::Event;
use crate::moment::{Moment, Readings};
use crate::names::{Id, Name};
use crate::pending_fetches::PendingFetches;
use crate::step::Step;

/// The steps that wait.
#[derive(Debug, Default)]
pub(super) struct EventQueue {
    /// Of each user, in their order, and until when each waits at most. Where there
    /// is a queue, it isn't empty.
    queues: Queues,
    /// What the first of each queue waits for.
    fetches: PendingFetches,
    /// When the first of each queue has waited for long enough.
    timers: BTreeSet<(u64, Id)>,
    /// Those whose first is to be tried again.
    served: BTreeSet<Id>,
    changed: ChangedUsers,
    /// Who reads it as it was at some moment: no queue changes but behind [`Self::keep`].
    readings: Readings<Vec<Step>>,
}

impl EventQueue {
    /// Whether something of a user's waits.
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

    /// Has a step wait for these answers, before all others of its user.
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
        self.served.remove(&user);
        self.fetches.forget(user);
        Some((step, until))
    }

    fn note(&mut self, event: &Event) {
        self.changed.note(event.user, &event.name);
    }

    /// A user whose first step is to be tried again by now.
    pub(super) fn due(&self, now: u64) -> Option<Id> {
        let late = self.timers.first().filter(|(at, _)| *at <= now);
        self.served.first().or(late.map(|(_, user)| user)).copied()
    }

    /// The users whose first step waits, in the order of their times.
    pub(super) fn waiting(&self) -> impl Iterator<Item = Id> {
        self.timers.iter().map(|(_, user)| *user)
    }

    /// When somebody is to go on.
    pub(super) fn next_deadline(&self, now: u64) -> Option<u64> {
        if !self.served.is_empty() {
            return Some(now);
        }
        self.timers.first().map(|(at, _)| *at)
    }

    /// The rules have changed, and may ask for something else.
    pub(super) fn rules_changed(&mut self) {
        self.served.extend(self.queues.keys());
    }

    /// Some users are decided on by other rules, which may ask for something else.
    pub(super) fn reassigned(&mut self, moves: impl Fn(Id) -> bool) {
        let moved = self.queues.keys().filter(|user| moves(**user));
        self.served.extend(moved);
    }

    /// The directory, which is asked question by question, has changed: those who find
    /// all that they waited for go on.
    pub(super) fn directory_changed(&mut self, directory: &Directory, changes: &Changes) {
        let served = self.fetches.served(changes, directory);
        self.served.extend(served);
    }

    /// Whether something waits for an answer.
    pub(super) fn waits_for(&self, question: &Question) -> bool {
        self.fetches.has(question)
    }

    /// Whether changes are noted from now on, for [`Self::take_changed`].
    pub(super) fn keep_records(&mut self, keep: bool) {
        self.changed.keep(keep);
    }

    /// Whether there is anything to take.
    pub(super) fn has_records(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The users whose waiting steps have changed since this was last called.
    pub(super) fn take_changed(&mut self) -> BTreeMap<Id, Name> {
        self.changed.take()
    }

    /// It is to be read as it is now, by [`Self::read`].
    pub(super) fn begin_reading(&mut self, moment: &Moment) {
        let users = self.queues.keys().map(|user| user.0).collect();
        self.readings.begin(moment, users, 0);
    }

    /// Reads on as of a moment, the steps of so many users at most. Says whether any were left.
    pub(super) fn read(
        &mut self,
        moment: &Moment,
        count: usize,
        take: impl FnMut(Vec<Step>),
    ) -> bool {
        let steps = |user| waiting(&self.queues, Id(user));
        self.readings.read(moment, count, steps, take)
    }

    /// What waits of a user is about to change.
    fn keep(&mut self, user: Id) {
        let queues = &self.queues;
        self.readings.keep(user.0, || waiting(queues, user));
    }

    /// All that waits of a user, in its order.
    pub(super) fn steps(&self, user: Id) -> impl Iterator<Item = &Step> {
        let queue = self.queues.get(&user).into_iter().flatten();
        queue.map(|(step, _)| step)
    }

    /// The last of a user's that waits to be announced.
    pub(super) fn last_announced(&self, user: Id) -> Option<&Arc<Event>> {
        let mut steps = self.queues.get(&user)?.iter().rev();
        steps.find_map(|(step, _)| match step {
            Step::Announce(event, _) => Some(event),
            Step::Tell(..) | Step::Show(_) => None,
        })
    }

    /// The last that waits to be announced of a user is not to be announced any more.
    pub(super) fn drop_last_announced(&mut self, user: Id, until: u64) {
        let mut steps: Vec<_> = self.steps(user).cloned().collect();
        let is_announced = |step: &Step| matches!(step, Step::Announce(..));
        if let Some(place) = steps.iter().rposition(is_announced) {
            steps.remove(place);
            self.forget(user);
            self.restore(steps, until);
        }
    }

    /// The users with waiting transitions, in a stable order.
    pub(super) fn users(&self) -> Vec<Id> {
        let mut users: Vec<_> = self.queues.keys().copied().collect();
        users.sort_unstable();
        users
    }

    /// Nothing of a user's waits any more.
    pub(super) fn forget(&mut self, user: Id) {
        while self.pop(user).is_some() {}
    }

    /// Puts a user's steps back, to be tried at once.
    pub(super) fn restore(&mut self, steps: Vec<Step>, until: u64) {
        let Some(user) = steps.first().map(|first| first.event().user) else {
            return;
        };
        self.keep(user);
        self.timers.insert((until, user));
        self.served.insert(user);
        let queue = steps.into_iter().map(|step| (step, until)).collect();
        self.queues.insert(user, queue);
    }

    /// All the numbers of ids in here.
    pub(super) fn ids(&self) -> RoaringBitmap {
        let mut ids = self.fetches.ids();
        ids.extend(self.changed.ids());
        let waiting = self.queues.values().flatten().map(|(step, _)| step);
        for step in waiting.chain(self.readings.kept().flatten()) {
            ids |= step.ids();
        }
        ids
    }
}

type Queues = HashMap<Id, VecDeque<(Step, u64)>, foldhash::fast::FixedState>;

/// What waits of a user, if anything does.
fn waiting(queues: &Queues, user: Id) -> Option<Vec<Step>> {
    let queue = queues.get(&user)?;
    Some(queue.iter().map(|(step, _)| step.clone()).collect())
}
