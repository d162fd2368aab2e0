//! The plugin instances of one thread. The instances of a generation are shared by the shards of the
//! tenant that use it. They are created at the first call, and dropped after some time without one.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use foldhash::fast::FixedState;
use presence_sandbox::Pipeline;
use tracing::Span;

use super::Address;
use super::hosted_shard::HostedShard;
use super::rules::{CandidateRules, ShardRules};
use super::work::Generation;
use crate::candidate::{Mode, Pipelines};
use crate::ops::plugin_lines::span;

/// A thread's instances, by tenant and generation.
#[derive(Default)]
pub(super) struct Instances(HashMap<(u32, u64), SharedInstances, FixedState>);

/// The instances of one generation, and how many shards use it.
struct SharedInstances {
    used: Rc<RefCell<LentInstances>>,
    /// How many shards use the generation.
    shards: usize,
}

/// The part that is lent to a shard for its turn.
struct LentInstances {
    pipeline: Pipeline,
    /// The span of its log lines, with the tenant and the generation.
    span: Span,
}

impl SharedInstances {
    fn new(hosted: &HostedShard, generation: &Generation) -> Self {
        let used = LentInstances {
            pipeline: generation.blueprint.pipeline(),
            span: span(&hosted.tenant.lines_key, generation.number),
        };
        Self {
            used: Rc::new(RefCell::new(used)),
            shards: 0,
        }
    }
}

impl Instances {
    fn shared(
        &mut self,
        tenant: u32,
        hosted: &HostedShard,
        generation: &Generation,
    ) -> &mut SharedInstances {
        let place = (tenant, generation.number);
        let shared = self.0.entry(place);
        shared.or_insert_with(|| SharedInstances::new(hosted, generation))
    }

    /// Registers a shard for its pipelines.
    pub(super) fn enter(&mut self, tenant: u32, hosted: &mut HostedShard) {
        for generation in generations(&hosted.pipelines) {
            self.shared(tenant, hosted, generation).shards += 1;
        }
        hosted.reset_rules();
    }

    /// Removes a shard's registration for some pipelines.
    pub(super) fn leave(&mut self, tenant: u32, pipelines: &Pipelines) {
        self.leave_for(tenant, pipelines, None);
    }

    /// As [`Self::leave`]. If no shard uses a generation any more, its instances are passed to the
    /// generation `next`, where stages are the same. So no event waits for new instances.
    fn leave_for(&mut self, tenant: u32, pipelines: &Pipelines, next: Option<u64>) {
        for generation in generations(pipelines) {
            let place = (tenant, generation.number);
            let Some(shared) = self.0.get_mut(&place) else {
                continue;
            };
            shared.shards = shared.shards.saturating_sub(1);
            if shared.shards > 0 {
                continue;
            }
            let left = self.0.remove(&place);
            let next = next.and_then(|next| self.0.get_mut(&(tenant, next)));
            if let (Some(left), Some(next)) = (left, next) {
                let left = &mut left.used.borrow_mut().pipeline;
                next.used.borrow_mut().pipeline.take_instances(left);
            }
        }
    }

    /// Moves a shard from its pipelines to others. The states of its enrichers move with it.
    pub(super) fn change(&mut self, tenant: u32, hosted: &mut HostedShard, to: Pipelines) {
        let before = std::mem::replace(&mut hosted.pipelines, to);
        let mut enrichers = std::mem::take(&mut hosted.enrichers);
        let mut candidate_enrichers = std::mem::take(&mut hosted.candidate_enrichers);
        self.enter(tenant, hosted);
        let number = |generation: &Generation| generation.number;
        let old_candidate = before.candidate.as_ref().map(|it| number(&it.generation));
        let active = number(&hosted.pipelines.active);
        if active == number(&before.active) {
            hosted.enrichers = enrichers;
        } else if Some(active) == old_candidate {
            // The candidate becomes the active pipeline. Enrichers that are the same in both keep
            // their state.
            candidate_enrichers.exchange_same(&mut enrichers);
            hosted.enrichers = candidate_enrichers;
            candidate_enrichers = enrichers;
        } else {
            hosted.enrichers.take_over(&mut enrichers);
        }
        if let Some(candidate) = &hosted.pipelines.candidate
            && let Mode::Canary(_) = candidate.mode
        {
            match old_candidate {
                Some(was) if was == number(&candidate.generation) => {
                    hosted.candidate_enrichers = candidate_enrichers
                }
                // It keeps the states of the users in the share.
                Some(was) if was != active => hosted
                    .candidate_enrichers
                    .take_over(&mut candidate_enrichers),
                _ => hosted.candidate_enrichers.copy(&mut hosted.enrichers),
            }
        }
        self.leave_for(tenant, &before, Some(active));
    }

    /// Does some work with a shard's rules. In pauses, shards of other tenants may do so, too.
    pub(super) fn with<T>(
        instances: &RefCell<Self>,
        address: Address,
        hosted: &mut HostedShard,
        work: impl FnOnce(&mut HostedShard, &mut ShardRules<'_>) -> T,
    ) -> T {
        let lent = |hosted: &HostedShard, generation: &Generation| {
            let instances = &mut *instances.borrow_mut();
            let shared = instances.shared(address.tenant, hosted, generation);
            Rc::clone(&shared.used)
        };
        let number = hosted.pipelines.active.number;
        let active = lent(hosted, &hosted.pipelines.active);
        let candidate = hosted.pipelines.candidate.clone();
        let candidate_instances = candidate.as_ref().map(|it| lent(hosted, &it.generation));
        let mut enrichers = std::mem::take(&mut hosted.enrichers);
        let mut candidate_enrichers = std::mem::take(&mut hosted.candidate_enrichers);
        let LentInstances { pipeline, span } = &mut *active.borrow_mut();
        let mut candidate_instances = candidate_instances.as_ref().map(|it| it.borrow_mut());
        let mut rules = ShardRules {
            active: pipeline.lend(&mut enrichers),
            number,
            candidate: candidate_instances
                .as_deref_mut()
                .zip(candidate)
                .map(|(used, pipeline)| CandidateRules {
                    rules: used.pipeline.lend(&mut candidate_enrichers),
                    span: &used.span,
                    pipeline,
                    comparisons: std::mem::take(&mut hosted.comparisons),
                }),
            is_called: false,
        };
        let done = span.in_scope(|| work(hosted, &mut rules));
        if let Some(candidate) = &mut rules.candidate {
            hosted.comparisons = std::mem::take(&mut candidate.comparisons);
        }
        hosted.called_rules |= rules.is_called;
        drop(rules);
        (hosted.enrichers, hosted.candidate_enrichers) = (enrichers, candidate_enrichers);
        done
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Drops the instances that nobody has called since the last time.
    pub(super) fn release_unused(&mut self) {
        for shared in self.0.values_mut() {
            shared.used.borrow_mut().pipeline.release_unused();
        }
    }
}

fn generations(pipelines: &Pipelines) -> impl Iterator<Item = &Generation> {
    let candidate = pipelines
        .candidate
        .as_ref()
        .map(|candidate| &candidate.generation);
    std::iter::once(&pipelines.active).chain(candidate)
}
