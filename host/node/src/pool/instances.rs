//! The plugin instances of one thread. The instances of a generation are shared by the shards of the
//! tenant that use it. They are created at the first call, and dropped after some time without one.

use std::collections::HashMap;

use foldhash::fast::FixedState;
use presence_sandbox::Pipeline;
use tracing::Span;

use super::Address;
use super::cell::Cell;
use super::rules::{BesideRules, CellRules};
use super::work::Generation;
use crate::beside::{Mode, Pipelines};
use crate::ops::plugin_lines::span;

/// A thread's instances, by tenant and generation.
#[derive(Default)]
pub(super) struct Instances(HashMap<(u32, u64), Shared, FixedState>);

/// What the shards that go by one generation share.
struct Shared {
    pipeline: Pipeline,
    /// What is logged in it bears the tenant and the generation.
    span: Span,
    /// How many shards go by it.
    shards: usize,
}

impl Shared {
    fn new(cell: &Cell, generation: &Generation) -> Self {
        Self {
            pipeline: generation.blueprint.pipeline(),
            span: span(&cell.tenant.lines_key, generation.number),
            shards: 0,
        }
    }
}

impl Instances {
    fn shared(&mut self, tenant: u32, cell: &Cell, generation: &Generation) -> &mut Shared {
        let place = (tenant, generation.number);
        let shared = self.0.entry(place);
        shared.or_insert_with(|| Shared::new(cell, generation))
    }

    /// A shard goes by its pipelines from now on.
    pub(super) fn enter(&mut self, tenant: u32, cell: &mut Cell) {
        for generation in generations(&cell.pipelines) {
            self.shared(tenant, cell, generation).shards += 1;
        }
        self.begin_anew(tenant, cell);
    }

    /// A shard goes by some pipelines no more.
    pub(super) fn leave(&mut self, tenant: u32, pipelines: &Pipelines) {
        self.leave_for(tenant, pipelines, None);
    }

    /// As [`Self::leave`]. What no shard goes by any more hands its instances on, where the
    /// pipeline that takes its place does the same: so no event waits for new ones.
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
            if let (Some(mut left), Some(next)) = (left, next) {
                next.pipeline.take_instances(&mut left.pipeline);
            }
        }
    }

    /// A shard goes from its pipelines to others. What its enrichers know goes with it.
    pub(super) fn change(&mut self, tenant: u32, cell: &mut Cell, to: Pipelines) {
        let before = std::mem::replace(&mut cell.pipelines, to);
        let mut own = std::mem::take(&mut cell.own);
        let mut own_beside = std::mem::take(&mut cell.own_beside);
        self.enter(tenant, cell);
        let number = |generation: &Generation| generation.number;
        let was_beside = before.beside.as_ref().map(|it| number(&it.generation));
        let active = number(&cell.pipelines.active);
        if active == number(&before.active) {
            cell.own = own;
        } else if Some(active) == was_beside {
            // What both had in common goes on there.
            own_beside.exchange_same(&mut own);
            cell.own = own_beside;
            own_beside = own;
        } else {
            cell.own.take_over(&mut own);
        }
        if let Some(beside) = &cell.pipelines.beside
            && let Mode::Canary(_) = beside.mode
        {
            match was_beside {
                Some(was) if was == number(&beside.generation) => cell.own_beside = own_beside,
                // The state of the users who are in the share.
                Some(was) if was != active => cell.own_beside.take_over(&mut own_beside),
                _ => cell.own_beside.copy(&mut cell.own),
            }
        }
        self.leave_for(tenant, &before, Some(active));
    }

    /// A shard's enrichers begin anew, and know nothing; what waits to be compared is not.
    pub(super) fn begin_anew(&mut self, tenant: u32, cell: &mut Cell) {
        let active = self.shared(tenant, cell, &cell.pipelines.active);
        let own = active.pipeline.own();
        if let Some(beside) = &cell.pipelines.beside {
            let beside = self.shared(tenant, cell, &beside.generation);
            cell.own_beside = beside.pipeline.own();
        }
        cell.own = own;
        cell.comparisons.clear();
    }

    /// Does something with the rules that a shard goes by.
    pub(super) fn with<T>(
        &mut self,
        address: Address,
        cell: &mut Cell,
        work: impl FnOnce(&mut Cell, &mut CellRules<'_>) -> T,
    ) -> T {
        let tenant = address.tenant;
        let mut own = std::mem::take(&mut cell.own);
        let Some(beside) = cell.pipelines.beside.clone() else {
            let active = &cell.pipelines.active;
            let number = active.number;
            let Shared { pipeline, span, .. } = self.shared(tenant, cell, active);
            let mut rules = CellRules {
                active: pipeline.lend(&mut own),
                number,
                beside: None,
            };
            let done = span.in_scope(|| work(cell, &mut rules));
            drop(rules);
            cell.own = own;
            return done;
        };
        // Two at a time: one is taken out meanwhile. It is made anew where that panics.
        let place = (tenant, beside.generation.number);
        let taken = self.0.remove(&place);
        let mut taken = taken.unwrap_or_else(|| Shared::new(cell, &beside.generation));
        let mut own_beside = std::mem::take(&mut cell.own_beside);
        let active = &cell.pipelines.active;
        let number = active.number;
        let Shared { pipeline, span, .. } = self.shared(tenant, cell, active);
        let mut rules = CellRules {
            active: pipeline.lend(&mut own),
            number,
            beside: Some(BesideRules {
                rules: taken.pipeline.lend(&mut own_beside),
                span: &taken.span,
                beside,
                comparisons: std::mem::take(&mut cell.comparisons),
            }),
        };
        let done = span.in_scope(|| work(cell, &mut rules));
        if let Some(beside) = &mut rules.beside {
            cell.comparisons = std::mem::take(&mut beside.comparisons);
        }
        drop(rules);
        (cell.own, cell.own_beside) = (own, own_beside);
        self.0.insert(place, taken);
        done
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Gives back what nobody has called since this was last done.
    pub(super) fn give_back_unused(&mut self) {
        for shared in self.0.values_mut() {
            shared.pipeline.give_back_unused();
        }
    }
}

fn generations(pipelines: &Pipelines) -> impl Iterator<Item = &Generation> {
    let beside = pipelines.beside.as_ref().map(|beside| &beside.generation);
    std::iter::once(&pipelines.active).chain(beside)
}
