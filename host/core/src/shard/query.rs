//! Answering a viewer: what the ledger says, narrowed by the rules of now.
//!
//! An answer changes nothing of what viewers are told. It keeps the verdicts that
//! it had to ask for, which the next event or correction uses.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::tell::context;
use super::{Output, Shard};
use crate::body::query::{Answers, Sight};
use crate::directory::{NotAtHand, Question};
use crate::event::{Change, Event};
use crate::names::{Id, Name};
use crate::rules::{Decision, Rules};
use crate::verdicts::Verdict;

/// How many decisions may fail in one call before no more are asked for. A
/// component that fails may take all of its time to do so.
const FAILURES_MAX: u32 = 3;

/// What one call found out on its way.
#[derive(Default)]
struct Asking {
    failures: u32,
    not_at_hand: BTreeSet<Question>,
}

impl Shard {
    /// Answers a viewer on users of this shard. Where the directory's answers
    /// aren't at hand, they are to be fetched, and the call repeated.
    pub fn query<'a>(
        &mut self,
        now: u64,
        viewer: &str,
        users: impl Iterator<Item = &'a str>,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) -> Answers {
        let now = self.clock.wall_at(self.now.max(now));
        self.notice_replaced(rules);
        // Not merely looked up: a rule may name whom nobody has named before.
        let viewer = self.names.intern(viewer);
        let users: Vec<_> = {
            let names = self.names.read();
            users.map(|user| (user, names.find(user))).collect()
        };
        let mut asking = Asking::default();
        let mut answers = Answers::with_capacity(users.len());
        for (text, user) in users {
            self.counters.queried += 1;
            match user {
                None => answers.push(text, Sight::Nothing),
                Some(user) => {
                    self.answer(now, viewer, text, user, rules, &mut asking, &mut answers);
                }
            }
        }
        self.notice_replaced(rules);
        if !asking.not_at_hand.is_empty() {
            answers.not_at_hand = asking.not_at_hand.clone();
            out.push(Output::Fetch(asking.not_at_hand));
        }
        answers
    }

    /// A viewer's own contacts, in the directory's order.
    ///
    /// # Errors
    /// The question, if its answer is to be fetched first.
    pub fn contacts(&self, viewer: &str, out: &mut Vec<Output>) -> Result<Vec<Name>, Question> {
        let question = Question::Contacts(self.names.intern(viewer));
        match self.directory.audience(&question) {
            Ok(contacts) => {
                let names = self.names.read();
                let contacts = contacts.ids().filter_map(|id| names.name(id).cloned());
                Ok(contacts.collect())
            }
            Err(NotAtHand) => {
                out.push(Output::Fetch(BTreeSet::from([question.clone()])));
                Err(question)
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what one user's answer takes")]
    fn answer(
        &mut self,
        now: u64,
        viewer: Id,
        text: &str,
        user: Id,
        rules: &mut dyn Rules,
        asking: &mut Asking,
        answers: &mut Answers,
    ) {
        if let Some(entry) = self.ledger.get(user) {
            // A decision that is put off isn't taken for a viewer's sake.
            let pending = self.agenda.pending_until(user).is_some();
            let told = entry.told.contains(viewer);
            let (shown, judged) = (Arc::clone(&entry.event), Arc::clone(entry.judged()));
            let verdict = told
                .then(|| self.verdict_on(now, &judged, pending, rules, asking))
                .flatten();
            let rendition = verdict.as_deref().and_then(|all| all.rendition(viewer));
            return match rendition {
                Some(rendition) => answers.push(text, Sight::Online(&shown, rendition)),
                None => answers.push(text, Sight::Nothing),
            };
        }
        let Some(event) = self.departed.event(user, &self.names) else {
            return answers.push(text, Sight::Nothing);
        };
        let event = Arc::new(event);
        // Anyone who wasn't admitted while the user was online isn't now, whatever the rules say.
        let told = self.departed.told(user);
        if !told.is_some_and(|told| told.contains(viewer)) {
            return answers.push(text, Sight::Nothing);
        }
        let verdict = self.verdict_on(now, &event, false, rules, asking);
        let rendition = verdict.as_deref().and_then(|all| all.rendition(viewer));
        match (event.change, rendition) {
            (Change::Offline { last_seen, .. }, Some(rendition)) if rendition.last_seen => {
                answers.push(text, Sight::LastSeen(last_seen));
            }
            _ => answers.push(text, Sight::Nothing),
        }
    }

    /// The verdict of now on an event, kept or asked for; none where it can't be had.
    fn verdict_on(
        &mut self,
        now: u64,
        event: &Arc<Event>,
        pending: bool,
        rules: &mut dyn Rules,
        asking: &mut Asking,
    ) -> Option<Arc<Verdict>> {
        let online = event.change == Change::Online;
        if self.settings.reuse_verdicts {
            let kept = if online {
                self.verdicts.find(now, event).map(|(verdict, _)| verdict)
            } else {
                self.departed.verdict(now, event)
            };
            if kept.is_some() {
                return kept;
            }
        }
        let unanswered = self.agenda.unanswered.of(event.user);
        let missing = unanswered.filter(|question| !self.directory.has(question));
        asking.not_at_hand.extend(missing.cloned());
        // Put off for want of answers that have come, it is about to be taken.
        let pending = pending
            && !self
                .agenda
                .unanswered
                .is_served(event.user, &self.directory);
        if pending || asking.failures >= FAILURES_MAX {
            return None;
        }
        self.counters.decided += 1;
        let context = context(&self.clock, now, event, &self.directory, &self.names);
        match rules.decide(context) {
            Decision::Decided(renditions, reads) if online => {
                let verdict = Arc::new(Verdict::new(event.user, renditions));
                self.verdicts.keep(now, event, Arc::clone(&verdict), reads);
                Some(verdict)
            }
            Decision::Decided(renditions, reads) => {
                Some(self.departed.keep(now, event, renditions, reads))
            }
            Decision::NotAtHand(questions) => {
                asking.not_at_hand.extend(questions);
                None
            }
            Decision::Failed(_) => {
                self.counters.failures += 1;
                asking.failures += 1;
                None
            }
        }
    }
}
