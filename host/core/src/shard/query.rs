//! Answering a viewer: what the ledger says, narrowed by the current rules.
//!
//! An answer changes nothing that viewers are told. If it had to ask the rules, it keeps the
//! verdict, which the next event or correction uses.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::decisions::Decisions;
use super::env::{Common, Env};
use super::types::Output;
use crate::body::query::{Answers, Visibility};
use crate::directory::{CacheMiss, Question};
use crate::event::{Change, Event};
use crate::names::{Id, Name};
use crate::rules::Decision;
use crate::verdicts::Verdict;

/// How many decisions may fail in one call before no more are asked for. A plugin that fails may
/// take all of its time to do so.
const FAILURES_MAX: u32 = 3;

/// Answers a viewer's query about users of this shard. If answers of the directory are missing in
/// the cache, they have to be fetched, and the call repeated.
pub(super) fn query<'a>(
    wall: u64,
    viewer: &str,
    users: impl Iterator<Item = &'a str>,
    decisions: &mut Decisions,
    env: &mut Env<'_>,
) -> Answers {
    // Interned, not just looked up: a rule may name a viewer that is new here.
    let viewer = env.common.names.intern(viewer);
    let users: Vec<_> = {
        let names = env.common.names.read();
        users.map(|user| (user, names.find(user))).collect()
    };
    let mut run = Run {
        wall,
        viewer,
        failures: 0,
        cache_misses: BTreeSet::new(),
    };
    let mut answers = Answers::with_capacity(users.len());
    for (text, user) in users {
        env.common.counters.queried += 1;
        match user {
            None => answers.push(text, Visibility::Nothing),
            Some(user) => run.answer(text, user, decisions, env, &mut answers),
        }
    }
    if !run.cache_misses.is_empty() {
        answers.cache_misses = run.cache_misses.clone();
        env.out.push(Output::Fetch(run.cache_misses));
    }
    answers
}

/// A viewer's own contacts, in the directory's order.
pub(super) fn contacts(
    viewer: &str,
    common: &Common,
    out: &mut Vec<Output>,
) -> Result<Vec<Name>, Question> {
    let question = Question::Contacts(common.names.intern(viewer));
    match common.directory.audience(&question) {
        Ok(contacts) => {
            let names = common.names.read();
            let contacts = contacts.ids().filter_map(|id| names.name(id).cloned());
            Ok(contacts.collect())
        }
        Err(CacheMiss) => {
            out.push(Output::Fetch(BTreeSet::from([question.clone()])));
            Err(question)
        }
    }
}

/// One call of [`query`], and what it has found so far.
struct Run {
    wall: u64,
    viewer: Id,
    failures: u32,
    cache_misses: BTreeSet<Question>,
}

impl Run {
    fn answer(
        &mut self,
        text: &str,
        user: Id,
        decisions: &mut Decisions,
        env: &mut Env<'_>,
        answers: &mut Answers,
    ) {
        let viewer = self.viewer;
        if let Some(entry) = decisions.ledger.get(user) {
            // A pending decision isn't made early for a query.
            let pending = decisions.retries.pending_until(user).is_some();
            let told = entry.recipients.contains(viewer);
            let (shown, current) = (Arc::clone(&entry.event), Arc::clone(entry.current()));
            let verdict = told
                .then(|| self.verdict_on(&current, pending, decisions, env))
                .flatten();
            let rendition = verdict.as_deref().and_then(|all| all.rendition(viewer));
            return match rendition {
                Some(rendition) => answers.push(text, Visibility::Online(&shown, rendition)),
                None => answers.push(text, Visibility::Nothing),
            };
        }
        let Some(event) = decisions.departed.event(user, &env.common.names) else {
            return answers.push(text, Visibility::Nothing);
        };
        let event = Arc::new(event);
        // A viewer who wasn't admitted while the user was online isn't now, whatever the rules say.
        let told = decisions.departed.recipients(user);
        if !told.is_some_and(|told| told.contains(viewer)) {
            return answers.push(text, Visibility::Nothing);
        }
        let verdict = self.verdict_on(&event, false, decisions, env);
        let rendition = verdict.as_deref().and_then(|all| all.rendition(viewer));
        match (event.change, rendition) {
            (Change::Offline { last_seen, .. }, Some(rendition)) if rendition.last_seen => {
                answers.push(text, Visibility::LastSeen(last_seen));
            }
            _ => answers.push(text, Visibility::Nothing),
        }
    }

    /// The current verdict on an event: the one that is kept, or the rules are asked. `None` if
    /// there is none.
    fn verdict_on(
        &mut self,
        event: &Arc<Event>,
        pending: bool,
        decisions: &mut Decisions,
        env: &mut Env<'_>,
    ) -> Option<Arc<Verdict>> {
        let online = event.change == Change::Online;
        if env.common.settings.reuse_verdicts {
            let kept = if online {
                let kept = decisions.verdicts.find(self.wall, event);
                kept.map(|(verdict, _)| verdict)
            } else {
                decisions.departed.verdict(self.wall, event)
            };
            if kept.is_some() {
                return kept;
            }
        }
        let (fetches, directory) = (&decisions.retries.fetches, &env.common.directory);
        let missing = fetches.of(event.user);
        let missing = missing.filter(|question| !directory.has(question));
        self.cache_misses.extend(missing.cloned());
        // If it was pending for answers, and all of them have come, it is made now.
        let pending = pending && !fetches.is_answered(event.user, directory);
        if pending || self.failures >= FAILURES_MAX {
            return None;
        }
        match env.ask_rules(self.wall, event) {
            Decision::Decided(renditions, reads) if online => {
                let verdict = Arc::new(Verdict::new(event.user, renditions));
                let kept = Arc::clone(&verdict);
                decisions.verdicts.keep(self.wall, event, kept, reads);
                Some(verdict)
            }
            Decision::Decided(renditions, reads) => {
                let departed = &mut decisions.departed;
                Some(departed.keep(self.wall, event, renditions, reads))
            }
            Decision::CacheMiss(questions) => {
                self.cache_misses.extend(questions);
                None
            }
            Decision::Failed(_) => {
                self.failures += 1;
                None
            }
        }
    }
}
