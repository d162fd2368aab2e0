//! The pipeline: enrichers, filters and redactor, in order, with their instances. Shards may take
//! turns with one pipeline, since filters and redactors keep no state. A shard's stateful enrichers
//! are swapped in for its turn.

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
    /// For how many filters and redactors the last good generation is known to have taken over.
    replaced: usize,
    no_keys: Arc<[Box<str>]>,
    last_keys: Arc<[Box<str>]>,
    /// How large enrichers may make an event's metadata.
    metadata: metadata::Limits,
    /// How long decisions take, and which of them are measured.
    latency: Arc<Latency>,
    sampler: Sampler,
    /// The calls so far, while calls are noted. `None` otherwise.
    calls: Option<Vec<StageCall>>,
}

/// The part of a shared pipeline that each shard has of its own: the stateful enrichers.
#[derive(Default)]
pub struct StatefulEnrichers {
    enrichers: Vec<Enricher>,
    /// For how many filters and redactors the shard knows that the last good generation has taken
    /// over.
    replaced: usize,
}

impl StatefulEnrichers {
    /// Instances are made when they are first called.
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

    /// Takes over the state of the enrichers that these replace. `before` isn't used afterwards.
    pub fn take_over(&mut self, before: &mut Self) {
        take_over(&mut self.enrichers, &mut before.enrichers);
    }

    /// Copies the state of the enrichers of an active pipeline, which keeps running. Enrichers that
    /// are the same in both pipelines share one state: see [`Pipeline::exchange_same`].
    pub fn copy(&mut self, active: &mut Self) {
        copy(&mut self.enrichers, &mut active.enrichers);
    }

    /// As [`Pipeline::exchange_same`], when the pipeline that ran beside the active one replaces
    /// it.
    pub fn exchange_same(&mut self, active: &mut Self) {
        exchange_same(&mut self.enrichers, &mut active.enrichers);
    }
}

fn enricher(stage: &Arc<Stage>, limits: Limits) -> Enricher {
    Slot::new(stage, |api| api.enrich, limits)
}

/// A pipeline with the stateful enrichers of one shard, for the shard's turn. Dropping it gives
/// them back to the shard.
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
    /// Instances are made when they are first called.
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

    /// The same pipeline, which counts its decisions in `latency`.
    pub(crate) fn with_latency(self, latency: &Arc<Latency>) -> Self {
        Self {
            latency: Arc::clone(latency),
            ..self
        }
    }

    /// Makes and configures all instances now.
    pub(crate) fn make(&mut self) -> Result<(), LoadError> {
        self.enrichers.iter_mut().try_for_each(Slot::make)?;
        self.filters.iter_mut().try_for_each(Slot::make)?;
        self.redactor.iter_mut().try_for_each(Slot::make)
    }

    /// Makes the instances of filters and redactor now, except for stages that are the same in
    /// `other`.
    pub(crate) fn make_missing_instances(&mut self, other: &[Arc<Stage>]) -> Result<(), LoadError> {
        let is_new = |stage: &Stage| !other.iter().any(|it| it.is_same(stage));
        let mut filters = self.filters.iter_mut().filter(|it| is_new(&it.stage));
        filters.try_for_each(Slot::make)?;
        let mut redactor = self.redactor.iter_mut().filter(|it| is_new(&it.stage));
        redactor.try_for_each(Slot::make)
    }

    /// Takes the instances of `before` for the filters and the redactor that do the same, since
    /// these keep no state. `before` isn't used afterwards.
    pub fn take_instances(&mut self, before: &mut Self) {
        Slot::take_instances(&mut self.filters, &mut before.filters);
        let (after, before) = (&mut self.redactor, &mut before.redactor);
        Slot::take_instances(after.as_mut_slice(), before.as_mut_slice());
    }

    /// The memory of all instances that exist, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        let enrichers = self.enrichers.iter().map(Slot::last_cost);
        let filters = self.filters.iter().map(Slot::last_cost);
        let redactor = self.redactor.iter().map(Slot::last_cost);
        let all = enrichers.chain(filters).chain(redactor).flatten();
        all.map(|spent| spent.memory_bytes).sum()
    }

    /// Lends the pipeline to a shard for its turn, with the shard's stateful enrichers.
    pub fn lend<'a>(&'a mut self, own: &'a mut StatefulEnrichers) -> BorrowedPipeline<'a> {
        let mut lent = BorrowedPipeline {
            pipeline: self,
            own,
        };
        lent.exchange();
        lent
    }

    /// Drops the instances of filters and redactor that weren't called since the last
    /// `release_unused`. Their next call makes new ones. Enrichers are kept, since they may have a
    /// state.
    pub fn release_unused(&mut self) {
        self.filters.iter_mut().for_each(Slot::release_unused);
        self.redactor.iter_mut().for_each(Slot::release_unused);
    }

    /// Takes over the state of the enrichers that these replace. `before` isn't used afterwards.
    pub fn take_over(&mut self, before: &mut Self) {
        take_over(&mut self.enrichers, &mut before.enrichers);
    }

    /// Swaps the instances of the stateful enrichers that are the same in another pipeline, which
    /// runs beside this one. So both share one state: the instances are swapped before the other
    /// pipeline is called, and swapped back afterwards.
    pub fn exchange_same(&mut self, other: &mut Self) {
        exchange_same(&mut self.enrichers, &mut other.enrichers);
    }

    /// Notes each call of a stage from now on, until [`Self::take_calls`].
    pub fn note_calls(&mut self) {
        self.calls = Some(Vec::new());
    }

    /// Stops noting calls, and returns those noted.
    pub fn take_calls(&mut self) -> Vec<StageCall> {
        self.calls.take().unwrap_or_default()
    }

    /// Calls `call` with new observations, which note the calls of stages if calls are noted.
    fn noting<T>(&mut self, call: impl FnOnce(&mut Self, &mut Observations) -> T) -> T {
        let mut observed = Observations {
            calls: self.calls.take(),
            ..Observations::default()
        };
        let done = call(self, &mut observed);
        self.calls = observed.calls;
        done
    }

    /// As [`Rules::decide`], and returns the fuel that the calls used. Unless `is_counted`, the
    /// calls don't count for the health of the plugins: this is for decisions that nobody is told
    /// of.
    pub fn decide_measured(&mut self, context: Context<'_>, is_counted: bool) -> (Decision, u64) {
        let mut observed = Observations {
            is_uncounted: !is_counted,
            ..Observations::default()
        };
        let decision = self.run(context, &mut observed);
        (decision, observed.fuel)
    }

    /// As [`Rules::explain`], but the calls don't count for the health of the plugins.
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

    /// Whether the last good generation has taken over for another filter or redactor since the
    /// last [`Rules::take_replaced`]: then all users must be decided again.
    pub fn is_replaced(&self) -> bool {
        self.replaced_now() > self.replaced
    }

    /// For how many filters and redactors the last good generation has taken over, or will at their
    /// next call. Enrichers don't count, since their results aren't part of a cached verdict.
    fn replaced_now(&self) -> usize {
        let filters = self.filters.iter().filter(|slot| slot.is_replaced());
        let redactor = self.redactor.iter().filter(|slot| slot.is_replaced());
        filters.count() + redactor.count()
    }

    /// Gives calls the longer deadline of loading.
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
                trace.add_filter(filter.report(), &before, &after);
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
            trace.add_redactor(redactor.report(), audience, &renditions);
        }
        renditions
    }

    /// Asks the filters and the redactor, and makes a decision of their answers. `observed`
    /// collects what the calls read and cost.
    pub(crate) fn run(&mut self, context: Context<'_>, observed: &mut Observations) -> Decision {
        let renditions = self
            .filter(context, Audience::nobody(), observed)
            .and_then(|audience| {
                let renditions = self.split(context, &audience, observed)?;
                Ok(self.as_departing(context, &audience, renditions, observed))
            });
        decision(renditions, observed)
    }

    /// Sets `last_seen` in the renditions of an online event: who will be told when the user was
    /// last seen, once the user is gone. For this, the redactor is asked about an offline event of
    /// the user. So the answer is there before the user goes offline or is hidden, and needn't come
    /// from other rules later. If the redactor fails on the offline event, nobody will be told.
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
        // An explanation doesn't include this second call of the redactor.
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
            // An enricher in quarantine is skipped.
            let Some(changed) = changed else {
                continue;
            };
            // An answer wasn't cached, so the changes are discarded.
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

/// An event with an enricher's changes. Fails if a changed value or the metadata exceeds its
/// limits.
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
    // Checked only if it grows: the event may exceed the limits already by what the host added.
    if after.len() > before.len() || after.bytes() > before.bytes() {
        let checked = limits.check_size(after.len(), after.bytes());
        checked.map_err(|error| format_err!("made metadata that {error}"))?;
    }
    Ok(changed)
}

/// The decision that follows from the answers of the stages.
fn decision(renditions: Result<Vec<Rendition>, Failure>, observed: &mut Observations) -> Decision {
    match renditions {
        // If an answer wasn't cached, a component may have failed because of it, or a redactor may
        // show too much. The decision is made again.
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

/// A list of keys. Shares the memory of the last list if the keys are the same.
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
