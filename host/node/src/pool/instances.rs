//! The plugin instances of one thread. The instances of a generation are shared by the shards of the
//! tenant that use it. They are created at the first call, and dropped after some time without one.

use std::collections::HashMap;

use foldhash::fast::FixedState;
use presence_sandbox::Pipeline;

use super::Address;
use super::cell::Cell;
use super::work::Generation;

/// A thread's instances, by tenant and generation.
#[derive(Default)]
pub(super) struct Instances(HashMap<(u32, u64), Shared, FixedState>);

/// What the shards that go by one generation share.
struct Shared {
    pipeline: Pipeline,
    /// How many shards go by it.
    shards: usize,
}

impl Instances {
    fn shared(&mut self, tenant: u32, generation: &Generation) -> &mut Shared {
        let place = (tenant, generation.number);
        self.0.entry(place).or_insert_with(|| Shared {
            pipeline: generation.blueprint.pipeline(),
            shards: 0,
        })
    }

    /// A shard goes by a generation from now on.
    pub(super) fn enter(&mut self, tenant: u32, cell: &mut Cell) {
        let shared = self.shared(tenant, &cell.generation);
        shared.shards += 1;
        cell.own = shared.pipeline.own();
    }

    /// A shard goes by a generation no more.
    pub(super) fn leave(&mut self, tenant: u32, generation: &Generation) {
        let shared = self.shared(tenant, generation);
        shared.shards = shared.shards.saturating_sub(1);
        if shared.shards == 0 {
            self.0.remove(&(tenant, generation.number));
        }
    }

    /// A shard goes from its generation to another. What its enrichers know goes with it.
    pub(super) fn change(&mut self, tenant: u32, cell: &mut Cell, to: Generation) {
        let before = std::mem::replace(&mut cell.generation, to);
        let mut own = std::mem::take(&mut cell.own);
        self.enter(tenant, cell);
        cell.own.take_over(&mut own);
        self.leave(tenant, &before);
    }

    /// A shard's enrichers begin anew, and know nothing.
    pub(super) fn begin_anew(&mut self, tenant: u32, cell: &mut Cell) {
        cell.own = self.shared(tenant, &cell.generation).pipeline.own();
    }

    /// Does something with the rules that a shard goes by.
    pub(super) fn with<T>(
        &mut self,
        address: Address,
        cell: &mut Cell,
        work: impl FnOnce(&mut Cell, &mut Pipeline) -> T,
    ) -> T {
        let mut own = std::mem::take(&mut cell.own);
        let shared = self.shared(address.tenant, &cell.generation);
        let done = work(cell, &mut shared.pipeline.lend(&mut own));
        cell.own = own;
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
