//! The shards that live on a thread. During a shard's turn, its entry is empty.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use foldhash::fast::FixedState;

use super::Address;
use super::hosted_shard::HostedShard;

/// The shards of one thread.
#[derive(Default)]
pub(super) struct ThreadShards {
    shards: HashMap<Address, Option<Box<HostedShard>>, FixedState>,
    /// How many shards each tenant has on this thread.
    tenants: HashMap<u32, usize, FixedState>,
}

impl ThreadShards {
    /// Adds a shard.
    pub(super) fn place(&mut self, address: Address, hosted: Box<HostedShard>) {
        if self.shards.insert(address, Some(hosted)).is_none() {
            *self.tenants.entry(address.tenant).or_default() += 1;
        }
    }

    /// Whether a shard lives here, even if it has its turn now.
    pub(super) fn has(&self, address: Address) -> bool {
        self.shards.contains_key(&address)
    }

    /// A shard that lives here. `None` while it has its turn.
    pub(super) fn get_mut(&mut self, address: Address) -> Option<&mut HostedShard> {
        self.shards.get_mut(&address)?.as_deref_mut()
    }

    /// Takes a shard out for its turn. It is put back by [`Self::put_back`].
    pub(super) fn take_out(&mut self, address: Address) -> Option<Box<HostedShard>> {
        self.shards.get_mut(&address)?.take()
    }

    /// Puts a shard back after its turn.
    pub(super) fn put_back(&mut self, address: Address, hosted: Box<HostedShard>) {
        if let Some(place) = self.shards.get_mut(&address) {
            *place = Some(hosted);
        }
    }

    /// Removes a shard.
    pub(super) fn remove(&mut self, address: Address) -> Option<Box<HostedShard>> {
        let hosted = self.shards.remove(&address)?;
        if let Entry::Occupied(mut count) = self.tenants.entry(address.tenant) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        hosted
    }

    /// Whether the shards are of more than one tenant.
    pub(super) fn has_several_tenants(&self) -> bool {
        self.tenants.len() > 1
    }

    /// The addresses of all shards that live here.
    pub(super) fn addresses(&self) -> Vec<Address> {
        self.shards.keys().copied().collect()
    }

    /// How many shards live here.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.len()
    }
}
