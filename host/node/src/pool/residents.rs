//! The shards that live on a thread. One that has its turn is out meanwhile.

use std::collections::HashMap;

use foldhash::fast::FixedState;

use super::Address;
use super::hosted_shard::HostedShard;

/// The shards of one thread.
#[derive(Default)]
pub(super) struct Residents(HashMap<Address, Option<Box<HostedShard>>, FixedState>);

impl Residents {
    /// A shard lives here from now on.
    pub(super) fn place(&mut self, address: Address, hosted: Box<HostedShard>) {
        self.0.insert(address, Some(hosted));
    }

    /// Whether a shard lives here.
    pub(super) fn has(&self, address: Address) -> bool {
        self.0.contains_key(&address)
    }

    /// A shard that lives here and is in.
    pub(super) fn get_mut(&mut self, address: Address) -> Option<&mut HostedShard> {
        self.0.get_mut(&address)?.as_deref_mut()
    }

    /// Takes a shard out for its turn. It is put back by [`Self::put_back`].
    pub(super) fn take_out(&mut self, address: Address) -> Option<Box<HostedShard>> {
        self.0.get_mut(&address)?.take()
    }

    /// A shard's turn is over.
    pub(super) fn put_back(&mut self, address: Address, hosted: Box<HostedShard>) {
        if let Some(place) = self.0.get_mut(&address) {
            *place = Some(hosted);
        }
    }

    /// A shard lives here no more.
    pub(super) fn remove(&mut self, address: Address) -> Option<Box<HostedShard>> {
        self.0.remove(&address)?
    }

    /// All that live here.
    pub(super) fn addresses(&self) -> Vec<Address> {
        self.0.keys().copied().collect()
    }

    /// How many live here.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
