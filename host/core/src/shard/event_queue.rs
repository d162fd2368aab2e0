//! Events that wait for answers of the directory: those that enrichers ask for
//! before an event is announced, and those that a redactor asks for before
//! viewers are told that a user is gone.
//!
//! Whatever else happens to the user waits behind, so that everything is told of
//! in its order. Nothing waits for longer than the settings say: then the event
//! goes on without those enrichers, or without anything that is shown of it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;
use roaring::RoaringBitmap;

use super::tell::{Whom, context};
use super::{Output, Shard, is_full};
use crate::changed::Changed;
use crate::directory::{Changes, Question};
use crate::event::{Change, Event};
use crate::names::Id;
use crate::record::Record;
use crate::rules::{Decision, Enriched, Failure, Rules};
use crate::told::Told;
use crate::unanswered::Unanswered;

/// How many users' events go on before new inputs get their turn.
const RESUMED_AT_ONCE: usize = 256;

/// What is next for an event.
#[derive(Clone, Debug)]
pub enum Step {
    /// To be enriched and broadcast. Where it is not ours, an application has
    /// published it on its own subject.
    Announce(Arc<Event>, bool),
    /// To be told to those who believe that the user is online.
    Tell(Arc<Event>, Told),
    /// The user is to be shown by what the newest of their connections says by then.
    Show(Arc<Event>),
}

impl Step {
    /// What it is about.
    pub fn event(&self) -> &Arc<Event> {
        match self {
            Self::Announce(event, _) | Self::Tell(event, _) | Self::Show(event) => event,
        }
    }

    /// All the numbers of ids in it.
    pub(crate) fn ids(&self) -> RoaringBitmap {
        let mut ids = match self {
            Self::Announce(..) | Self::Show(_) => RoaringBitmap::new(),
            Self::Tell(_, told) => told.audience().bitmap(),
        };
        ids.insert(self.event().user.0);
        ids
    }
}

/// The steps that wait.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Of each user, in their order, and until when each waits at most. Where there
    /// is a queue, it isn't empty.
    queues: HashMap<Id, VecDeque<(Step, u64)>, foldhash::fast::FixedState>,
    /// What the first of each queue waits for.
    unanswered: Unanswered,
    /// When the first of each queue has waited for long enough.
    agenda: BTreeSet<(u64, Id)>,
    /// Those whose first is to be tried again.
    served: BTreeSet<Id>,
    /// Users that nobody has been told of for want of answers that are at hand now.
    undecided: BTreeSet<Id>,
    /// Users whose change to another shown connection is told later, and
    /// how they are to be shown then. After a restart it is told at once.
    put_off: HashMap<Id, Arc<Event>, foldhash::fast::FixedState>,
    changed: Changed,
}

impl Waiting {
    /// Whether something of a user's waits.
    fn holds(&self, user: Id) -> bool {
        !self.queues.is_empty() && self.queues.contains_key(&user)
    }

    /// Adds a step behind all others of its user.
    fn push(&mut self, step: Step, until: u64) {
        self.note(step.event());
        let queue = self.queues.entry(step.event().user).or_default();
        queue.push_back((step, until));
    }

    /// Has a step wait for these answers, before all others of its user.
    fn put_first(&mut self, step: Step, until: u64, questions: BTreeSet<Question>) {
        self.note(step.event());
        let user = step.event().user;
        self.queues
            .entry(user)
            .or_default()
            .push_front((step, until));
        self.agenda.insert((until, user));
        self.unanswered.note(user, questions);
    }

    /// Takes a user's first step.
    fn pop(&mut self, user: Id) -> Option<(Step, u64)> {
        let queue = self.queues.get_mut(&user)?;
        let first = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&user);
        }
        let (step, until) = first?;
        self.note(step.event());
        self.agenda.remove(&(until, user));
        self.served.remove(&user);
        self.unanswered.forget(user);
        Some((step, until))
    }

    /// It is told later that a user is shown by another connection.
    pub(super) fn put_off(&mut self, event: &Arc<Event>) {
        self.note(event);
        self.put_off.insert(event.user, Arc::clone(event));
    }

    /// It has been told, or isn't to be any more.
    pub(super) fn put_off_no_more(&mut self, user: Id) {
        if !self.put_off.is_empty()
            && let Some(event) = self.put_off.remove(&user)
        {
            self.note(&event);
        }
    }

    fn note(&mut self, event: &Event) {
        self.changed.note(event.user, &event.name);
    }

    /// A user whose first step is to be tried again by now.
    fn due(&self, now: u64) -> Option<Id> {
        let late = self.agenda.first().filter(|(at, _)| *at <= now);
        self.served.first().or(late.map(|(_, user)| user)).copied()
    }

    /// When somebody is to go on.
    pub(super) fn next_deadline(&self, now: u64) -> Option<u64> {
        if !(self.served.is_empty() && self.undecided.is_empty()) {
            return Some(now);
        }
        self.agenda.first().map(|(at, _)| *at)
    }

    /// The rules have changed, and may ask for something else.
    pub(super) fn rules_changed(&mut self) {
        self.served.extend(self.queues.keys());
    }

    /// Whether something waits for an answer.
    pub(super) fn lacks(&self, question: &Question) -> bool {
        self.unanswered.has(question)
    }

    /// Whether changes are noted from now on, for [`Self::take_records`].
    pub(super) fn keep_records(&mut self, keep: bool) {
        self.changed.keep(keep);
    }

    /// Whether there is anything to take.
    pub(super) fn has_records(&self) -> bool {
        !self.changed.is_empty()
    }

    /// All that has changed since this was last called: of each user, all that waits.
    pub(super) fn take_records(&mut self, records: &mut Vec<Record>) {
        for (id, user) in self.changed.take() {
            let queue = self.queues.get(&id).into_iter().flatten();
            let put_off = self.put_off.get(&id).cloned().map(Step::Show);
            let steps = queue.map(|(step, _)| step.clone());
            let steps = steps.chain(put_off).collect();
            records.push(Record::Waiting { user, steps });
        }
    }

    /// Puts a user's steps back, to be tried at once.
    pub(super) fn restore(&mut self, steps: Vec<Step>, until: u64) {
        let Some(user) = steps.first().map(|first| first.event().user) else {
            return;
        };
        self.agenda.insert((until, user));
        self.served.insert(user);
        let queue = steps.into_iter().map(|step| (step, until)).collect();
        self.queues.insert(user, queue);
    }

    /// All the numbers of ids in here.
    pub(super) fn ids(&self) -> RoaringBitmap {
        let mut ids = self.unanswered.ids();
        ids.extend(self.changed.ids());
        ids.extend(self.put_off.keys().map(|user| user.0));
        for (step, _) in self.queues.values().flatten() {
            ids |= step.ids();
        }
        ids
    }
}

/// A step that can't be taken yet, and what it waits for.
pub(super) type Lack = (Step, BTreeSet<Question>);

impl Shard {
    /// Something happened to a user, as the tracker found or an application states.
    pub(super) fn happened(
        &mut self,
        event: Event,
        ours: bool,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) {
        self.begin(Step::Announce(Arc::new(event), ours), rules, out);
    }

    /// Has a step go on, behind all others of its user.
    pub(super) fn begin(&mut self, step: Step, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        let until = self.now + self.settings.answer_wait_ms;
        let user = step.event().user;
        if self.waiting.holds(user) {
            return self.waiting.push(step, until);
        }
        self.go(step, until, rules, out);
    }

    /// The directory, which is asked question by question, has changed: those who find
    /// all that they waited for go on.
    pub(super) fn answered(&mut self, changes: &Changes) {
        let served = self.waiting.unanswered.served(changes, &self.directory);
        self.waiting.served.extend(served);
        for user in self.agenda.unanswered.served(changes, &self.directory) {
            match self.ledger.get(user) {
                // What is told first is news, and no correction.
                Some(entry) if entry.told.is_empty() => drop(self.waiting.undecided.insert(user)),
                _ => self.backlog.changed(user),
            }
        }
    }

    /// Has those go on who have got what they waited for, or waited for long enough.
    pub(super) fn resume(&mut self, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        for _ in 0..RESUMED_AT_ONCE {
            if is_full(out) {
                return;
            }
            let Some(user) = self.waiting.undecided.pop_first() else {
                break;
            };
            if let Some(entry) = self.ledger.get(user) {
                let event = Arc::clone(entry.judged());
                self.decide(&event, Whom::All, rules, out);
            }
        }
        for _ in 0..RESUMED_AT_ONCE {
            if is_full(out) {
                return;
            }
            let Some(user) = self.waiting.due(self.now) else {
                break;
            };
            while let Some((step, until)) = self.waiting.pop(user)
                && self.go(step, until, rules, out)
            {}
        }
    }

    /// Waits no more: what waits goes on as it would in the end, of some users at a time.
    /// Says whether there are others, for which it is to be called again.
    pub fn give_up(&mut self, now: u64, rules: &mut dyn Rules, out: &mut Vec<Output>) -> bool {
        self.pass(now);
        let first = self.waiting.agenda.iter().take(RESUMED_AT_ONCE);
        let users: Vec<_> = first.map(|(_, user)| *user).collect();
        for user in users {
            if is_full(out) {
                break;
            }
            while let Some((step, _)) = self.waiting.pop(user) {
                self.go(step, self.now, rules, out);
            }
        }
        !self.waiting.agenda.is_empty()
    }

    /// Has an event go on as far as it can. Says whether it got to its end.
    fn go(&mut self, step: Step, until: u64, rules: &mut dyn Rules, out: &mut Vec<Output>) -> bool {
        let lack = match step {
            Step::Announce(event, ours) => self.try_announce(event, ours, until, rules, out),
            Step::Tell(event, told) => self.try_tell(event, told, until, rules, out),
            Step::Show(event) => self.try_show(event, until, rules, out),
        };
        let Err((step, questions)) = lack else {
            return true;
        };
        out.push(Output::Fetch(questions.clone()));
        self.waiting.put_first(step, until, questions);
        false
    }

    /// What the enrichers make of an event, unless they lack answers and there is time
    /// to wait for them.
    pub(super) fn enrich(
        &mut self,
        event: &Arc<Event>,
        until: u64,
        rules: &mut dyn Rules,
    ) -> Result<Enriched, BTreeSet<Question>> {
        let context = context(
            &self.clock,
            self.clock.wall(),
            event,
            &self.directory,
            &self.names,
        );
        let mut enriched = rules.enrich(context);
        if !enriched.not_at_hand.is_empty() {
            if self.now < until {
                return Err(enriched.not_at_hand);
            }
            let late = |plugin| Failure {
                plugin,
                error: "what it asked the directory for could not be had in time".into(),
            };
            let unanswered = enriched.unanswered.drain(..).map(late);
            enriched.failures.extend(unanswered);
        }
        Ok(enriched)
    }

    fn try_announce(
        &mut self,
        event: Arc<Event>,
        ours: bool,
        until: u64,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) -> Result<(), Lack> {
        let event = self.with_status(event);
        let enriched = match self.enrich(&event, until, rules) {
            Ok(enriched) => enriched,
            Err(questions) => return Err((Step::Announce(event, ours), questions)),
        };
        let event = self.announce(event, enriched, ours, out);
        if event.change == Change::Online {
            self.online(&event, rules, out);
            return Ok(());
        }
        let told = self.offline(&event);
        if told.is_empty() {
            return Ok(());
        }
        self.try_tell(event, told, until, rules, out)
    }

    fn try_tell(
        &mut self,
        event: Arc<Event>,
        told: Told,
        until: u64,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) -> Result<(), Lack> {
        let context = context(
            &self.clock,
            self.clock.wall(),
            &event,
            &self.directory,
            &self.names,
        );
        let renditions = match rules.redact(context, told.audience()) {
            Decision::Decided(renditions, _) => renditions,
            Decision::NotAtHand(questions) if self.now < until => {
                return Err((Step::Tell(event, told), questions));
            }
            Decision::NotAtHand(_) => Vec::new(),
            Decision::Failed(failure) => {
                self.failed(&event, &failure, out);
                Vec::new()
            }
        };
        self.tell_gone(&event, &told, renditions, out);
        Ok(())
    }
}
