//! The rules that a shard uses in its turn: the active pipeline and, if there is one, the candidate
//! beside it. Each user is decided on by one of them alone. Nothing of the candidate reaches users
//! of the active pipeline.
//!
//! What both would decide is compared later, when the thread has time: a decision is noted with
//! everything that it was made from, and both pipelines decide again. Both are pure except for
//! their enrichers, which are not called.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use presence_core::audience::Audience;
use presence_core::comparison::{Difference, first_difference};
use presence_core::directory::{Directory, Question};
use presence_core::event::Event;
use presence_core::names::{Id, Names};
use presence_core::rules::{Context, Decision, Enriched, Explanation, Failure, Rules};
use presence_core::verdicts::Verdict;
use presence_sandbox::{Began, BorrowedPipeline, StageCall};
use tracing::Span;

use crate::beside::meter::Side;
use crate::beside::report::{Example, StageDifference};
use crate::beside::{CandidatePipeline, Mode};

/// How many decisions of a shard may wait to be compared.
const COMPARISONS_MAX: usize = 256;

/// Decisions that wait to be compared.
#[derive(Default)]
pub(super) struct Comparisons(VecDeque<Comparison>);

/// A decision to compare, with everything that it was made from.
struct Comparison {
    now: u64,
    monotonic: u64,
    event: Arc<Event>,
    directory: Arc<Directory>,
    names: Arc<Names>,
}

impl Comparisons {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Comparison {
    fn of(context: Context<'_>) -> Self {
        Self {
            now: context.now,
            monotonic: context.monotonic,
            event: Arc::clone(context.event),
            directory: Arc::clone(context.directory),
            names: Arc::clone(context.names),
        }
    }

    fn context(&self) -> Context<'_> {
        Context {
            now: self.now,
            monotonic: self.monotonic,
            event: &self.event,
            directory: &self.directory,
            names: &self.names,
        }
    }
}

/// The rules of a shard.
pub(super) struct ShardRules<'a> {
    pub(super) active: BorrowedPipeline<'a>,
    pub(super) number: u64,
    pub(super) beside: Option<CandidateRules<'a>>,
    /// Whether any rule has been called.
    pub(super) is_called: bool,
}

/// The candidate pipeline, which runs beside the active one.
pub(super) struct CandidateRules<'a> {
    pub(super) rules: BorrowedPipeline<'a>,
    /// The span of the candidate's log lines, which is not that of the active pipeline.
    pub(super) span: &'a Span,
    pub(super) beside: CandidatePipeline,
    pub(super) comparisons: Comparisons,
}

impl CandidateRules<'_> {
    /// Whether the candidate decides on a user.
    fn has(&self, user: &str) -> bool {
        match self.beside.mode {
            Mode::Canary(share) => share.has(user),
            Mode::Shadow => false,
        }
    }

    /// Whether the candidate decides on any user.
    fn decides(&self) -> bool {
        matches!(self.beside.mode, Mode::Canary(_))
    }

    /// Notes a decision to compare it later. A canary compares only users in its share.
    fn note(&mut self, context: Context<'_>) {
        if self.decides() && !self.has(context.event.name.as_str()) {
            return;
        }
        if self.comparisons.0.len() < COMPARISONS_MAX {
            self.comparisons.0.push_back(Comparison::of(context));
        } else {
            self.beside.meter.skip(1);
        }
    }
}

impl ShardRules<'_> {
    /// The generation number of the pipeline that decides on a user.
    pub(super) fn number_of(&self, user: &str) -> u64 {
        match &self.beside {
            Some(beside) if beside.has(user) => beside.beside.generation.number,
            _ => self.number,
        }
    }

    /// Records each call of a stage, until [`Self::take_calls`].
    pub(super) fn note_calls(&mut self) {
        self.active.note_calls();
        if let Some(beside) = &mut self.beside {
            beside.rules.note_calls();
        }
    }

    /// The recorded calls.
    pub(super) fn take_calls(&mut self) -> Vec<StageCall> {
        let mut calls = self.active.take_calls();
        if let Some(beside) = &mut self.beside {
            calls.append(&mut beside.rules.take_calls());
        }
        calls
    }

    /// Whether a stage's last good version has taken over, so that users must be decided again.
    pub(super) fn is_replaced(&self) -> bool {
        let beside = self.beside.as_ref().filter(|beside| beside.decides());
        self.active.is_replaced() || beside.is_some_and(|beside| beside.rules.is_replaced())
    }

    /// Drops the decisions that wait to be compared, and counts them as skipped.
    pub(super) fn skip_comparisons(&mut self) {
        if let Some(beside) = &mut self.beside {
            let count = beside.comparisons.0.len() as u64;
            beside.beside.meter.skip(count);
            beside.comparisons.clear();
        }
    }

    /// Compares what both pipelines decide on the event that has waited longest. Returns the
    /// questions to the directory whose answers are missing.
    pub(super) fn compare(&mut self) -> Option<BTreeSet<Question>> {
        let beside = self.beside.as_mut()?;
        let compared = beside.comparisons.0.pop_front()?;
        let context = compared.context();
        // Failures here don't count towards quarantine, except for a shadow, which has no other
        // calls.
        let is_counted = !beside.decides();
        let begun = Instant::now();
        let (old, old_fuel) = self.active.decide_measured(context, false);
        let between = Instant::now();
        let (new, new_fuel) = beside
            .span
            .in_scope(|| beside.rules.decide_measured(context, is_counted));
        let times = [between - begun, between.elapsed()];
        let meter = &beside.beside.meter;
        let Some(mut counted) = meter.try_compared() else {
            meter.skip(1);
            return None;
        };
        if let Decision::CacheMiss(questions) = old {
            counted.unanswered += 1;
            return Some(questions);
        }
        if let Decision::CacheMiss(questions) = new {
            counted.unanswered += 1;
            return Some(questions);
        }
        let user = context.event.user;
        let [old_took, new_took] = times;
        counted.active.count(old_took, old_fuel, failure(&old));
        counted.candidate.count(new_took, new_fuel, failure(&new));
        let (Decision::Decided(old, _), Decision::Decided(new, _)) = (old, new) else {
            return None;
        };
        let [old, new] = [old, new].map(|renditions| Verdict::new(user, renditions));
        let difference = Difference::between(&old, &new);
        let is_wanted = counted.decided(context.monotonic, user, &difference);
        drop(counted);
        if is_wanted {
            let example = self.example(context, &difference);
            let beside = self.beside.as_ref();
            if let Some(mut counted) = beside.and_then(|it| it.beside.meter.try_compared()) {
                counted.examples.extend(example);
            }
        }
        None
    }

    /// An example of a difference, with the stages in which both pipelines part. It has one viewer
    /// of each kind.
    fn example(&mut self, context: Context<'_>, difference: &Difference) -> Option<Example> {
        let beside = self.beside.as_mut()?;
        let of_each = [
            &difference.lost,
            &difference.gained,
            &difference.shown_differently,
        ];
        let mut whys = Vec::new();
        for viewer in of_each.into_iter().filter_map(|viewers| viewers.min()) {
            let viewer = Id(viewer);
            let old = self.active.explain_uncounted(context, viewer).stages;
            let new = beside
                .span
                .in_scope(|| beside.rules.explain_uncounted(context, viewer).stages);
            let first_difference = first_difference(&old, &new);
            if let (Some(stages), Some(name)) = (first_difference, context.names.name(viewer)) {
                whys.push(StageDifference::new(name.as_str(), stages));
            }
        }
        let user = context.event.name.as_str();
        Some(Example::new(user, difference, context.names, whys))
    }

    /// Calls the rules of the pipeline that decides on the event's user. If there is a canary,
    /// calls of both pipelines are counted. A call without a needed answer of the directory is
    /// repeated later, and counts then.
    fn call(
        &mut self,
        context: Context<'_>,
        call: impl FnOnce(&mut BorrowedPipeline<'_>) -> Decision,
    ) -> Decision {
        self.is_called = true;
        let Some(beside) = self.beside.as_mut().filter(|beside| beside.decides()) else {
            return call(&mut self.active);
        };
        let begun = Began::now();
        let (side, done) = match beside.has(context.event.name.as_str()) {
            true => {
                let done = beside.span.in_scope(|| call(&mut beside.rules));
                (Side::Candidate, done)
            }
            false => (Side::Active, call(&mut self.active)),
        };
        if !matches!(done, Decision::CacheMiss(_)) {
            let calls = beside.beside.meter.calls(side);
            calls.count(begun.elapsed(), failure(&done));
        }
        done
    }
}

impl Rules for ShardRules<'_> {
    fn enrich(&mut self, context: Context<'_>) -> Enriched {
        self.is_called = true;
        // A stateful enricher that is in both pipelines has one state.
        if let Some(beside) = &mut self.beside
            && beside.has(context.event.name.as_str())
        {
            beside.rules.exchange_same(&mut self.active);
            let enriched = beside.span.in_scope(|| beside.rules.enrich(context));
            beside.rules.exchange_same(&mut self.active);
            for failure in &enriched.failures {
                let calls = beside.beside.meter.calls(Side::Candidate);
                calls.failed(failure);
            }
            return enriched;
        }
        self.active.enrich(context)
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        let decision = self.call(context, |rules| rules.decide(context));
        if let Some(beside) = &mut self.beside
            && !matches!(decision, Decision::CacheMiss(_))
        {
            beside.note(context);
        }
        decision
    }

    fn reused(&mut self, context: Context<'_>) {
        if let Some(beside) = &mut self.beside {
            beside.note(context);
        }
    }

    fn redact(&mut self, context: Context<'_>, told: &Audience) -> Decision {
        self.call(context, |rules| rules.redact(context, told))
    }

    fn explain(&mut self, context: Context<'_>, viewer: Id) -> Explanation {
        self.is_called = true;
        match &mut self.beside {
            Some(beside) if beside.has(context.event.name.as_str()) => beside
                .span
                .in_scope(|| beside.rules.explain(context, viewer)),
            _ => self.active.explain(context, viewer),
        }
    }

    fn take_replaced(&mut self) -> bool {
        let active = self.active.take_replaced();
        let beside = self.beside.as_mut().filter(|beside| beside.decides());
        beside.is_some_and(|beside| beside.rules.take_replaced()) || active
    }
}

fn failure(decision: &Decision) -> Option<&Failure> {
    match decision {
        Decision::Failed(failure) => Some(failure),
        Decision::Decided(..) | Decision::CacheMiss(_) => None,
    }
}
