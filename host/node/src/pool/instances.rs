//! The plugin instances of one thread. The instances of a generation are shared by the shards of the
//! tenant that use it. They are created at the first call, and dropped after some time without one.

use std::collections::HashMap;

use foldhash::fast::FixedState;
use presence_sandbox::Pipeline;

use super::Address;
use super::cell::Cell;
use super::rules::{BesideRules, CellRules};
use super::work::Generation;
use crate::beside::{Mode, Pipelines};

/// A thread's instances, by tenant and generation.
#[derive(Default)]
pub(super) struct Instances(HashMap<(u32, u64), Shared, FixedState>);

/// What the shards that go by one generation share.
struct Shared {
    pipeline: Pipeline,
    /// How many shards go by it.
    shards: usize,
}

impl Shared {
    fn new(generation: &Generation) -> Self {
        Self {
            pipeline: generation.blueprint.pipeline(),
            shards: 0,
        }
    }
}

impl Instances {
    fn shared(&mut self, tenant: u32, generation: &Generation) -> &mut Shared {
        let place = (tenant, generation.number);
        let shared = self.0.entry(place);
        shared.or_insert_with(|| Shared::new(generation))
    }

    /// A shard goes by its pipelines from now on.
    pub(super) fn enter(&mut self, tenant: u32, cell: &mut Cell) {
        for generation in generations(&cell.pipelines) {
            self.shared(tenant, generation).shards += 1;
        }
        self.begin_anew(tenant, cell);
    }

    /// A shard goes by some pipelines no more.
    pub(super) fn leave(&mut self, tenant: u32, pipelines: &Pipelines) {
        for generation in generations(pipelines) {
            let shared = self.shared(tenant, generation);
            shared.shards = shared.shards.saturating_sub(1);
            if shared.shards == 0 {
                self.0.remove(&(tenant, generation.number));
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
        self.leave(tenant, &before);
    }

    /// A shard's enrichers begin anew, and know nothing; what waits to be compared is not.
    pub(super) fn begin_anew(&mut self, tenant: u32, cell: &mut Cell) {
        cell.own = self.shared(tenant, &cell.pipelines.active).pipeline.own();
        if let Some(beside) = &cell.pipelines.beside {
            cell.own_beside = self.shared(tenant, &beside.generation).pipeline.own();
        }
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
            let shared = self.shared(tenant, &cell.pipelines.active);
            let mut rules = CellRules {
                active: shared.pipeline.lend(&mut own),
                number: cell.pipelines.active.number,
                beside: None,
            };
            let done = work(cell, &mut rules);
            drop(rules);
            cell.own = own;
            return done;
        };
        // Two at a time: one is taken out meanwhile. It is made anew where that panics.
        let place = (tenant, beside.generation.number);
        let taken = self.0.remove(&place);
        let mut taken = taken.unwrap_or_else(|| Shared::new(&beside.generation));
        let mut own_beside = std::mem::take(&mut cell.own_beside);
        let shared = self.shared(tenant, &cell.pipelines.active);
        let mut rules = CellRules {
            active: shared.pipeline.lend(&mut own),
            number: cell.pipelines.active.number,
            beside: Some(BesideRules {
                rules: taken.pipeline.lend(&mut own_beside),
                beside,
                comparisons: std::mem::take(&mut cell.comparisons),
            }),
        };
        let done = work(cell, &mut rules);
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
