//! A fleet: several nodes that share a tenant's users, shard by shard.
//!
//! NATS carries and fans out the messages, and decides who owns what (in a KV bucket, by
//! JetStream's consensus). The decisions that follow from that are made here, without I/O, clock or
//! randomness, like everywhere in the core:
//!
//! - [`hash`]: which shard a user belongs to, which nodes a shard belongs to;
//! - [`lease`]: a node's lease, and until when the node may rely on it;
//! - [`member`]: one node's view of the fleet, and what it writes into the bucket;
//! - [`replica`]: one node's replica of a shard, which leads, follows, or catches up;
//! - [`standby_message`]: the messages of a leading replica to its standbys;
//! - [`snapshot`]: the snapshot for a replica that begins to follow;
//! - [`sources`]: the client's rule for dropping messages of an earlier owner.
//!
//! `docs/design/fleet.md` explains the protocol.

mod as_bytes;
pub mod hash;
pub mod lease;
pub mod member;
pub mod replica;
pub mod snapshot;
pub mod sources;
pub mod standby_message;
#[cfg(test)]
pub(crate) mod testing;

/// The settings of a fleet. All nodes of a fleet must use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FleetSettings {
    /// How long a lease lasts that isn't renewed, in milliseconds. It must be well below the
    /// tracker's timeout minus a heartbeat interval. Otherwise an owner that is cut off takes users
    /// for gone before its lease expires.
    pub lease_ms: u64,
    /// How much earlier than its lease expires an owner stops, and how much later others consider
    /// it expired. It must be at least what the clocks of two nodes can differ in speed during a
    /// lease.
    pub margin_ms: u64,
    /// The number of standbys of each shard, beside its owner.
    pub standbys: usize,
    /// How often an owner sends its standbys digests of what it holds, in milliseconds.
    pub digest_ms: u64,
    /// How often an owner tells its standbys of heartbeats, in milliseconds, while they don't
    /// receive any.
    pub relay_ms: u64,
    /// How long to wait for another node's answer, in milliseconds.
    pub answer_ms: u64,
}

impl FleetSettings {
    /// The settings for a lease of this length, in the proportions of the default.
    pub fn of_lease(lease_ms: u64, standbys: usize) -> Self {
        Self {
            lease_ms,
            margin_ms: lease_ms / 24,
            standbys,
            digest_ms: lease_ms * 5 / 6,
            relay_ms: lease_ms / 12,
            answer_ms: lease_ms / 3,
        }
    }
}

impl Default for FleetSettings {
    fn default() -> Self {
        Self::of_lease(6_000, 1)
    }
}
