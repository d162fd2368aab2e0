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

use crate::candidate::meter::Side;
use crate::candidate::report::{Example, StageDifference};
use crate::candidate::{CandidatePipeline, Mode};

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
    pub(super) candidate: Option<CandidateRules<'a>>,
    /// Whether any rule has been called.
    pub(super) is_called: bool,
}

/// The candidate pipeline, which runs beside the active one.
pub(super) struct CandidateRules<'a> {
    pub(super) rules: BorrowedPipeline<'a>,
    /// The span of the candidate's log lines, which is not that of the active pipeline.
    pub(super) span: &'a Span,
    pub(super) pipeline: CandidatePipeline,
    pub(super) comparisons: Comparisons,
}

impl CandidateRules<'_> {
    /// Whether the candidate decides on a user.
    fn has(&self, user: &str) -> bool {
        match self.pipeline.mode {
            Mode::Canary(share) => share.has(user),
            Mode::Shadow => false,
        }
    }

    /// Whether the candidate decides on any user.
    fn decides(&self) -> bool {
        matches!(self.pipeline.mode, Mode::Canary(_))
    }

    /// Notes a decision to compare it later. A canary compares only users in its share.
    fn note(&mut self, context: Context<'_>) {
        if self.decides() && !self.has(context.event.name.as_str()) {
            return;
        }
        if self.comparisons.0.len() < COMPARISONS_MAX {
            self.comparisons.0.push_back(Comparison::of(context));
        } else {
            self.pipeline.meter.skip(1);
        }
    }
}

impl ShardRules<'_> {
    /// The generation number of the pipeline that decides on a user.
    pub(super) fn number_of(&self, user: &str) -> u64 {
        match &self.candidate {
            Some(candidate) if candidate.has(user) => candidate.pipeline.generation.number,
            _ => self.number,
        }
    }

    /// Records each call of a stage, until [`Self::take_calls`].
    pub(super) fn note_calls(&mut self) {
        self.active.note_calls();
        if let Some(candidate) = &mut self.candidate {
            candidate.rules.note_calls();
        }
    }

    /// The recorded calls.
    pub(super) fn take_calls(&mut self) -> Vec<StageCall> {
        let mut calls = self.active.take_calls();
        if let Some(candidate) = &mut self.candidate {
            calls.append(&mut candidate.rules.take_calls());
        }
        calls
    }

    /// Whether a stage's last good version has taken over, so that users must be decided again.
    pub(super) fn is_replaced(&self) -> bool {
        let candidate = self
            .candidate
            .as_ref()
            .filter(|candidate| candidate.decides());
        self.active.is_replaced()
            || candidate.is_some_and(|candidate| candidate.rules.is_replaced())
    }

    /// Drops the decisions that wait to be compared, and counts them as skipped.
    pub(super) fn skip_comparisons(&mut self) {
        if let Some(candidate) = &mut self.candidate {
            let count = candidate.comparisons.0.len() as u64;
            candidate.pipeline.meter.skip(count);
            candidate.comparisons.clear();
        }
    }

    /// Compares what both pipelines decide on the event that has waited longest. Returns the
    /// questions to the directory whose answers are missing.
    pub(super) fn compare(&mut self) -> Option<BTreeSet<Question>> {
        let candidate = self.candidate.as_mut()?;
        let compared = candidate.comparisons.0.pop_front()?;
        let context = compared.context();
        // Failures here don't count towards quarantine, except for a shadow, which has no other
        // calls.
        let is_counted = !candidate.decides();
        let begun = Instant::now();
        let (old, old_fuel) = self.active.decide_measured(context, false);
        let between = Instant::now();
        let (new, new_fuel) = candidate
            .span
            .in_scope(|| candidate.rules.decide_measured(context, is_counted));
        let times = [between - begun, between.elapsed()];
        let meter = &candidate.pipeline.meter;
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
        let is_wanted = counted.count_comparison(context.monotonic, user, &difference);
        drop(counted);
        if is_wanted {
            let example = self.example(context, &difference);
            let candidate = self.candidate.as_ref();
            if let Some(mut counted) = candidate.and_then(|it| it.pipeline.meter.try_compared()) {
                counted.examples.extend(example);
            }
        }
        None
    }

    /// An example of a difference, with the stages in which both pipelines part. It has one viewer
    /// of each kind.
    fn example(&mut self, context: Context<'_>, difference: &Difference) -> Option<Example> {
        let candidate = self.candidate.as_mut()?;
        let of_each = [
            &difference.lost,
            &difference.gained,
            &difference.shown_differently,
        ];
        let mut whys = Vec::new();
        for viewer in of_each.into_iter().filter_map(|viewers| viewers.min()) {
            let viewer = Id(viewer);
            let old = self.active.explain_uncounted(context, viewer).stages;
            let new = candidate
                .span
                .in_scope(|| candidate.rules.explain_uncounted(context, viewer).stages);
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
        let Some(candidate) = self
            .candidate
            .as_mut()
            .filter(|candidate| candidate.decides())
        else {
            return call(&mut self.active);
        };
        let begun = Began::now();
        let (side, done) = match candidate.has(context.event.name.as_str()) {
            true => {
                let done = candidate.span.in_scope(|| call(&mut candidate.rules));
                (Side::Candidate, done)
            }
            false => (Side::Active, call(&mut self.active)),
        };
        if !matches!(done, Decision::CacheMiss(_)) {
            let calls = candidate.pipeline.meter.calls(side);
            calls.count(begun.elapsed(), failure(&done));
        }
        done
    }
}

impl Rules for ShardRules<'_> {
    fn enrich(&mut self, context: Context<'_>) -> Enriched {
        self.is_called = true;
        // A stateful enricher that is in both pipelines has one state.
        if let Some(candidate) = &mut self.candidate
            && candidate.has(context.event.name.as_str())
        {
            candidate.rules.exchange_same(&mut self.active);
            let enriched = candidate.span.in_scope(|| candidate.rules.enrich(context));
            candidate.rules.exchange_same(&mut self.active);
            for failure in &enriched.failures {
                let calls = candidate.pipeline.meter.calls(Side::Candidate);
                calls.count_failure(failure);
            }
            return enriched;
        }
        self.active.enrich(context)
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        let decision = self.call(context, |rules| rules.decide(context));
        if let Some(candidate) = &mut self.candidate
            && !matches!(decision, Decision::CacheMiss(_))
        {
            candidate.note(context);
        }
        decision
    }

    fn reused(&mut self, context: Context<'_>) {
        if let Some(candidate) = &mut self.candidate {
            candidate.note(context);
        }
    }

    fn redact(&mut self, context: Context<'_>, audience: &Audience) -> Decision {
        self.call(context, |rules| rules.redact(context, audience))
    }

    fn explain(&mut self, context: Context<'_>, viewer: Id) -> Explanation {
        self.is_called = true;
        match &mut self.candidate {
            Some(candidate) if candidate.has(context.event.name.as_str()) => candidate
                .span
                .in_scope(|| candidate.rules.explain(context, viewer)),
            _ => self.active.explain(context, viewer),
        }
    }

    fn take_replaced(&mut self) -> bool {
        let active = self.active.take_replaced();
        let candidate = self
            .candidate
            .as_mut()
            .filter(|candidate| candidate.decides());
        candidate.is_some_and(|candidate| candidate.rules.take_replaced()) || active
    }
}

fn failure(decision: &Decision) -> Option<&Failure> {
    match decision {
        Decision::Failed(failure) => Some(failure),
        Decision::Decided(..) | Decision::CacheMiss(_) => None,
    }
}
