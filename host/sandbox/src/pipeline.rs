//! The pipeline: enrichers, filters and redactor, in order, with their instances. Shards
//! may share one, where they take turns: filters and redactors are pure. What a shard
//! has of its own is lent to the pipeline for its turn.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use presence_core::audience::Audience;
use presence_core::event::{Change, Event, Reason};
use presence_core::metadata::{self, MetadataChange};
use presence_core::names::Id;
use presence_core::rules::{
    Context, Decision, Enriched, Explanation, Failure, Rendition, Rules, StageOutcome, StageReport,
};
use wasmtime::format_err;

use crate::api::{EventArg, Kind, RenditionResult};
use crate::call::{Observations, StageCall};
use crate::hand_over::{copy, exchange_same, take_over};
use crate::latency::{Latency, Sampler};
use crate::manifest::{Effect, Role};
use crate::slot::Slot;
use crate::trace::TraceRecorder;
use crate::{Limits, LoadError, Stage};

pub(crate) type Enricher = Slot<EventArg, Vec<MetadataChange>>;
pub(crate) type Filter = Slot<(EventArg, u32), u32>;
pub(crate) type Redactor = Slot<(EventArg, u32), Vec<RenditionResult>>;

/// A generation's instances, each made when it is first called.
pub struct Pipeline {
    pub(crate) enrichers: Vec<Enricher>,
    pub(crate) filters: Vec<Filter>,
    pub(crate) redactor: Option<Redactor>,
    /// From how many stages another generation is known to have taken over.
    replaced: usize,
    no_keys: Arc<[Box<str>]>,
    last_keys: Arc<[Box<str>]>,
    /// How large enrichers may make an event's metadata.
    metadata: metadata::Limits,
    /// How long decisions take, and which of them are measured.
    latency: Arc<Latency>,
    sampler: Sampler,
    /// The calls so far, while somebody wants to know of them.
    calls: Option<Vec<StageCall>>,
}

/// What a shard has of its own of a pipeline that several share: the enrichers that keep a
/// state.
#[derive(Default)]
pub struct StatefulEnrichers {
    enrichers: Vec<Enricher>,
    /// From how many stages the shard knows that another generation has taken over.
    replaced: usize,
}

impl StatefulEnrichers {
    /// Nothing of it is made yet.
    pub(crate) fn new(stages: &[Arc<Stage>], limits: Limits) -> Self {
        let has_state = |stage: &&Arc<Stage>| {
            stage.plugin.manifest.role == Role::Enricher && stage.plugin.keeps_state
        };
        let enrichers = stages.iter().filter(has_state);
        Self {
            enrichers: enrichers.map(|stage| enricher(stage, limits)).collect(),
            replaced: 0,
        }
    }

    /// Has the enrichers take over the state of those whose place they take, which
    /// are of no use afterwards.
    pub fn take_over(&mut self, before: &mut Self) {
        take_over(&mut self.enrichers, &mut before.enrichers);
    }

    /// Has the enrichers take over the state of those of a pipeline that goes on beside, and
    /// that keeps its own. Those that are the same in both have one state: see
    /// [`Pipeline::exchange_same`].
    pub fn copy(&mut self, active: &mut Self) {
        copy(&mut self.enrichers, &mut active.enrichers);
    }

    /// As [`Pipeline::exchange_same`]: the pipeline that went on beside goes on alone.
    pub fn exchange_same(&mut self, active: &mut Self) {
        exchange_same(&mut self.enrichers, &mut active.enrichers);
    }
}

fn enricher(stage: &Arc<Stage>, limits: Limits) -> Enricher {
    Slot::new(stage, |api| api.enrich, limits)
}

/// A pipeline while it is a shard's turn.
pub struct BorrowedPipeline<'a> {
    pipeline: &'a mut Pipeline,
    own: &'a mut StatefulEnrichers,
}

impl BorrowedPipeline<'_> {
    fn exchange(&mut self) {
        std::mem::swap(&mut self.pipeline.replaced, &mut self.own.replaced);
        if self.own.enrichers.is_empty() {
            return;
        }
        let enrichers = self.pipeline.enrichers.iter_mut();
        let enrichers = enrichers.filter(|enricher| enricher.stage.plugin.keeps_state);
        for (shared, own) in enrichers.zip(&mut self.own.enrichers) {
            std::mem::swap(shared, own);
        }
    }
}

impl Deref for BorrowedPipeline<'_> {
    type Target = Pipeline;

    fn deref(&self) -> &Pipeline {
        self.pipeline
    }
}

impl DerefMut for BorrowedPipeline<'_> {
    fn deref_mut(&mut self) -> &mut Pipeline {
        self.pipeline
    }
}

impl Drop for BorrowedPipeline<'_> {
    fn drop(&mut self) {
        self.exchange();
    }
}

impl Pipeline {
    /// Nothing of it is made yet.
    pub(crate) fn new(stages: &[Arc<Stage>], limits: Limits) -> Self {
        let mut pipeline = Self {
            enrichers: Vec::new(),
            filters: Vec::new(),
            redactor: None,
            replaced: 0,
            no_keys: Arc::new([]),
            last_keys: Arc::new([]),
            metadata: limits.metadata,
            latency: Arc::default(),
            sampler: Sampler::default(),
            calls: None,
        };
        for stage in stages {
            match stage.plugin.manifest.role {
                Role::Enricher => pipeline.enrichers.push(enricher(stage, limits)),
                Role::Filter => {
                    let filter = Slot::new(stage, |api| api.filter, limits);
                    pipeline.filters.push(filter);
                }
                Role::Redactor => {
                    pipeline.redactor = Some(Slot::new(stage, |api| api.redact, limits));
                }
            }
        }
        pipeline
    }

    /// The same, whose decisions are counted there.
    pub(crate) fn counting(self, latency: &Arc<Latency>) -> Self {
        Self {
            latency: Arc::clone(latency),
            ..self
        }
    }

    /// Has all of its instances made now, and take their configuration.
    pub(crate) fn make(&mut self) -> Result<(), LoadError> {
        self.enrichers.iter_mut().try_for_each(Slot::make)?;
        self.filters.iter_mut().try_for_each(Slot::make)?;
        self.redactor.iter_mut().try_for_each(Slot::make)
    }

    /// Has the instances of filters and the redactor made now, but for those that another pipeline
    /// has the same of.
    pub(crate) fn make_unlike(&mut self, other: &[Arc<Stage>]) -> Result<(), LoadError> {
        let is_new = |stage: &Stage| !other.iter().any(|it| it.is_same(stage));
        let mut filters = self.filters.iter_mut().filter(|it| is_new(&it.stage));
        filters.try_for_each(Slot::make)?;
        let mut redactor = self.redactor.iter_mut().filter(|it| is_new(&it.stage));
        redactor.try_for_each(Slot::make)
    }

    /// Has filters and the redactor go on with the instances of another pipeline, which is of no
    /// use afterwards, where they do the same: they are pure.
    pub fn take_instances(&mut self, before: &mut Self) {
        Slot::take_instances(&mut self.filters, &mut before.filters);
        let (after, before) = (&mut self.redactor, &mut before.redactor);
        Slot::take_instances(after.as_mut_slice(), before.as_mut_slice());
    }

    /// How many bytes of memory its instances have that are made.
    pub(crate) fn memory_bytes(&self) -> usize {
        let enrichers = self.enrichers.iter().map(Slot::last_cost);
        let filters = self.filters.iter().map(Slot::last_cost);
        let redactor = self.redactor.iter().map(Slot::last_cost);
        let all = enrichers.chain(filters).chain(redactor).flatten();
        all.map(|spent| spent.memory_bytes).sum()
    }

    /// The same for a shard's turn, with what the shard has of its own.
    pub fn lend<'a>(&'a mut self, own: &'a mut StatefulEnrichers) -> BorrowedPipeline<'a> {
        let mut lent = BorrowedPipeline {
            pipeline: self,
            own,
        };
        lent.exchange();
        lent
    }

    /// Gives back the instances that haven't been called since this was last done: the
    /// next call makes them anew. Enrichers are kept, since they may remember something.
    pub fn release_unused(&mut self) {
        self.filters.iter_mut().for_each(Slot::release_unused);
        self.redactor.iter_mut().for_each(Slot::release_unused);
    }

    /// Has the enrichers take over the state of those whose place they take, which
    /// are of no use afterwards.
    pub fn take_over(&mut self, before: &mut Self) {
        take_over(&mut self.enrichers, &mut before.enrichers);
    }

    /// Exchanges the instances of the enrichers that keep a state and are the same in another
    /// pipeline, which runs beside. So there is one state for both: it is exchanged before
    /// the other one is called, and again afterwards.
    pub fn exchange_same(&mut self, other: &mut Self) {
        exchange_same(&mut self.enrichers, &mut other.enrichers);
    }

    /// Notes each call of a stage from now on, until [`Self::take_calls`].
    pub fn note_calls(&mut self) {
        self.calls = Some(Vec::new());
    }

    /// The calls that were noted, of which no more are.
    pub fn take_calls(&mut self) -> Vec<StageCall> {
        self.calls.take().unwrap_or_default()
    }

    /// Does something, and has its calls of stages noted if they are wanted.
    fn noting<T>(&mut self, call: impl FnOnce(&mut Self, &mut Observations) -> T) -> T {
        let mut observed = Observations {
            calls: self.calls.take(),
            ..Observations::default()
        };
        let done = call(self, &mut observed);
        self.calls = observed.calls;
        done
    }

    /// As [`Rules::decide`], with what the calls took of fuel. Unless `is_counted`, a plugin
    /// fares as if it had not been called: this is for what decides on nobody.
    pub fn decide_measured(&mut self, context: Context<'_>, is_counted: bool) -> (Decision, u64) {
        let mut observed = Observations {
            is_uncounted: !is_counted,
            ..Observations::default()
        };
        let decision = self.run(context, &mut observed);
        (decision, observed.fuel)
    }

    /// As [`Rules::explain`], and a plugin fares as if it had not been called.
    pub fn explain_uncounted(&mut self, context: Context<'_>, viewer: Id) -> Explanation {
        self.explain_as(context, viewer, true)
    }

    fn explain_as(&mut self, context: Context<'_>, viewer: Id, is_uncounted: bool) -> Explanation {
        let mut observed = Observations {
            trace: Some(Box::new(TraceRecorder::new(viewer))),
            is_uncounted,
            ..Observations::default()
        };
        let decision = self.run(context, &mut observed);
        let asked = observed.trace.map(|trace| trace.into_stages());
        let asked = asked.unwrap_or_default();
        let filters = self.filters.iter().map(Slot::report);
        let unreached = filters.chain(self.redactor.iter().map(Slot::report));
        let unreached = unreached.skip(asked.len()).map(|report| StageReport {
            outcome: StageOutcome::NotReached,
            ..report
        });
        let unreached: Vec<_> = unreached.collect();
        let enrichers = self.enrichers.iter().map(Slot::report);
        Explanation {
            stages: enrichers.chain(asked).chain(unreached).collect(),
            decision,
        }
    }

    /// Whether a last good generation is taking over from one of its stages, so that
    /// everyone is to be decided on again.
    pub fn is_replaced(&self) -> bool {
        self.replaced_now() > self.replaced
    }

    /// From how many stages another generation has taken over, or is to at their next call.
    /// Metadata as it is broadcast is no verdict that is reused: enrichers don't count.
    fn replaced_now(&self) -> usize {
        let filters = self.filters.iter().filter(|slot| slot.is_replaced());
        let redactor = self.redactor.iter().filter(|slot| slot.is_replaced());
        filters.count() + redactor.count()
    }

    /// Gives calls as much time as there is while a plugin is loaded.
    pub(crate) fn with_load_limits(mut self) -> Self {
        self.enrichers.iter_mut().for_each(Slot::use_load_limits);
        self.filters.iter_mut().for_each(Slot::use_load_limits);
        self.redactor.iter_mut().for_each(Slot::use_load_limits);
        self
    }

    /// Passes an audience through the filters.
    pub(crate) fn filter(
        &mut self,
        context: Context<'_>,
        mut audience: Audience,
        observed: &mut Observations,
    ) -> Result<Audience, Failure> {
        let event = argument(context.event);
        for filter in &mut self.filters {
            let before = audience;
            let after = filter.call(
                context,
                observed,
                |call| Ok((event.clone(), call.put(before.clone())?)),
                |call, token| Ok(call.audience(token)?.clone()),
            );
            let after = after.map(|after| match filter.in_force().plugin.manifest.effect {
                Effect::Widen => after,
                Effect::Narrow if after.is_subset(&before) => after,
                Effect::Narrow => after.intersection(&before),
            });
            if let Some(trace) = &mut observed.trace {
                trace.filtered(filter.report(), &before, &after);
            }
            audience = after?;
        }
        Ok(audience)
    }

    /// Splits an audience into renditions.
    pub(crate) fn split(
        &mut self,
        context: Context<'_>,
        audience: &Audience,
        observed: &mut Observations,
    ) -> Result<Vec<Rendition>, Failure> {
        let Some(redactor) = &mut self.redactor else {
            let keys = Arc::clone(&self.no_keys);
            return Ok(vec![Rendition {
                audience: audience.clone(),
                keys,
                last_seen: true,
            }]);
        };
        let last_keys = &mut self.last_keys;
        let renditions = redactor.call(
            context,
            observed,
            |call| Ok((argument(context.event), call.put(audience.clone())?)),
            |call, renditions| {
                renditions
                    .into_iter()
                    .map(|rendition| {
                        let part = call.audience(rendition.audience)?;
                        let part = if part.same(audience) {
                            part.clone()
                        } else {
                            part.intersection(audience)
                        };
                        Ok(Rendition {
                            audience: part,
                            keys: share(last_keys, &rendition.keys),
                            last_seen: rendition.last_seen,
                        })
                    })
                    .collect()
            },
        );
        if let Some(trace) = &mut observed.trace {
            trace.redacted(redactor.report(), audience, &renditions);
        }
        renditions
    }

    /// Decides, and adds what the decision reads to what has been observed.
    pub(crate) fn run(&mut self, context: Context<'_>, observed: &mut Observations) -> Decision {
        let renditions = self
            .filter(context, Audience::nobody(), observed)
            .and_then(|audience| {
                let renditions = self.split(context, &audience, observed)?;
                Ok(self.as_departing(context, &audience, renditions, observed))
            });
        decision(renditions, observed)
    }

    /// Has the renditions of an online event say who gets to know when the user was last
    /// seen, once they are gone: what the redactor says of the user's departure. So it is
    /// known before anyone is hidden or gone, and needn't be asked of other rules then.
    /// Where the redactor fails on that, nobody gets to know it.
    fn as_departing(
        &mut self,
        context: Context<'_>,
        audience: &Audience,
        renditions: Vec<Rendition>,
        observed: &mut Observations,
    ) -> Vec<Rendition> {
        let event = context.event;
        if event.change != Change::Online || self.redactor.is_none() || audience.is_empty() {
            return renditions;
        }
        let event = Arc::new(Event {
            change: Change::Offline {
                last_seen: event.timestamp,
                reason: Reason::Disconnect,
            },
            ..Event::clone(event)
        });
        let departing = Context {
            event: &event,
            ..context
        };
        // The redactor's turn is over for who wants to know why.
        let trace = observed.trace.take();
        let departing = self.split(departing, audience, observed);
        observed.trace = trace;
        let (mut named, mut may_know) = (Audience::nobody(), Audience::nobody());
        for part in departing.unwrap_or_default() {
            // A viewer gets the first rendition that names them.
            if part.last_seen {
                may_know = may_know.union(&part.audience.difference(&named));
            }
            named = named.union(&part.audience);
        }
        let parts = renditions.into_iter().flat_map(|rendition| {
            let knows = rendition.audience.intersection(&may_know);
            let others = rendition.audience.difference(&knows);
            let keys = rendition.keys;
            let part = |audience: Audience, last_seen| {
                (!audience.is_empty()).then(|| Rendition {
                    audience,
                    keys: Arc::clone(&keys),
                    last_seen,
                })
            };
            [part(knows, true), part(others, false)]
        });
        parts.flatten().collect()
    }
}

impl Rules for Pipeline {
    fn enrich(&mut self, context: Context<'_>) -> Enriched {
        let mut enriched = Enriched::default();
        let mut event = Arc::clone(context.event);
        for enricher in &mut self.enrichers {
            let context = Context {
                event: &event,
                ..context
            };
            let mut observed = Observations {
                calls: self.calls.take(),
                ..Observations::default()
            };
            let limits = self.metadata;
            let changed = enricher.call_in_service(
                context,
                &mut observed,
                |_| Ok(argument(context.event)),
                |_, changes| Ok((changed(context.event, &changes, limits)?, changes)),
            );
            self.calls = observed.calls.take();
            // Out of service, it is as if it weren't there.
            let Some(changed) = changed else {
                continue;
            };
            // What it makes of answers that it hasn't got is thrown away.
            if observed.is_speculative() {
                enriched.cache_misses.append(&mut observed.cache_misses);
                enriched.unanswered.push(enricher.name());
                continue;
            }
            match changed {
                Ok((_, changes)) if changes.is_empty() => {}
                Ok((changed, changes)) => {
                    event = Arc::new(changed);
                    enriched.changes.extend(changes);
                }
                Err(failure) => enriched.failures.push(failure),
            }
        }
        enriched
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        let began = self.sampler.begin();
        let decision = self.noting(|pipeline, observed| pipeline.run(context, observed));
        if let Some(began) = began {
            self.latency.count(began.elapsed());
        }
        decision
    }

    fn explain(&mut self, context: Context<'_>, viewer: Id) -> Explanation {
        self.explain_as(context, viewer, false)
    }

    fn redact(&mut self, context: Context<'_>, told: &Audience) -> Decision {
        self.noting(|pipeline, observed| {
            let renditions = pipeline.split(context, told, observed);
            decision(renditions, observed)
        })
    }

    fn take_replaced(&mut self) -> bool {
        let replaced = self.replaced_now();
        std::mem::replace(&mut self.replaced, replaced) < replaced
    }
}

/// An event with an enricher's changes, if it may be broadcast so.
fn changed(
    event: &Event,
    changes: &[MetadataChange],
    limits: metadata::Limits,
) -> wasmtime::Result<Event> {
    for (key, value) in changes {
        let checked = value.as_deref().map_or(Ok(()), |it| limits.check_value(it));
        checked.map_err(|error| format_err!("set {key:?} to a value that {error}"))?;
    }
    let changed = event.changed(changes);
    let (before, after) = (&event.metadata, &changed.metadata);
    // What came in is within the limits but for what the host adds.
    if after.len() > before.len() || after.bytes() > before.bytes() {
        let checked = limits.check_size(after.len(), after.bytes());
        checked.map_err(|error| format_err!("made metadata that {error}"))?;
    }
    Ok(changed)
}

/// What comes of the stages' answers, given what they have observed.
fn decision(renditions: Result<Vec<Rendition>, Failure>, observed: &mut Observations) -> Decision {
    match renditions {
        // What isn't cached may well be why a component failed, and what a redactor
        // makes of answers that it hasn't got may show too much.
        _ if observed.is_speculative() => {
            Decision::CacheMiss(std::mem::take(&mut observed.cache_misses))
        }
        Ok(renditions) => Decision::Decided(renditions, std::mem::take(&mut observed.reads)),
        Err(failure) => Decision::Failed(failure),
    }
}

fn argument(event: &Event) -> EventArg {
    let kind = match event.change {
        Change::Online | Change::Updated => Kind::Online,
        Change::Offline { .. } => Kind::Offline,
    };
    EventArg {
        kind,
        user: event.name.as_str().into(),
    }
}

/// A list of keys, shared with the last one where they are the same.
fn share(last: &mut Arc<[Box<str>]>, keys: &[String]) -> Arc<[Box<str>]> {
    if !last
        .iter()
        .map(|key| &**key)
        .eq(keys.iter().map(String::as_str))
    {
        *last = keys.iter().map(|key| key.as_str().into()).collect();
    }
    Arc::clone(last)
}
