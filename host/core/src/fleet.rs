//! A fleet: several nodes that share a tenant's users, shard by shard.
//!
//! NATS carries, fans out, and says who owns what (a KV bucket, by JetStream's consensus). What is
//! decided by that is here, without any I/O, clock or randomness, like all of the core:
//!
//! - [`hash`]: which shard a user belongs to, which nodes a shard belongs to;
//! - [`lease`]: a node's lease, and until when the node may rely on it;
//! - [`member`]: one node's view of the fleet, and what it writes into the bucket;
//! - [`replica`]: a shard as one node has it: leading, following, or catching up;
//! - [`told`]: what a leading replica tells those that follow it;
//! - [`snapshot`]: what a replica that begins to follow is sent;
//! - [`sources`]: the client's rule, by which a consumer drops what an earlier owner still says.
//!
//! `docs/design/fleet.md` explains the protocol.

mod as_bytes;
pub mod hash;
pub mod lease;
pub mod member;
pub mod replica;
pub mod snapshot;
pub mod sources;
#[cfg(test)]
pub(crate) mod testing;
pub mod told;

/// The figures of a fleet. All nodes of a fleet go by the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FleetSettings {
    /// How long a lease lasts that isn't renewed, in milliseconds. Well below the tracker's
    /// timeout less an interval between heartbeats: else an owner that was cut off takes
    /// users for gone before its lease ends.
    pub lease_ms: u64,
    /// By how much earlier an owner stops than its lease ends, and by how much later others
    /// take it for ended: what their clocks may differ in speed over a lease, at least.
    pub margin_ms: u64,
    /// How many nodes follow each shard, beside its owner.
    pub standbys: usize,
    /// How often an owner says what it holds, in milliseconds, for those who follow it to
    /// compare.
    pub digest_ms: u64,
    /// How often an owner says what it has heard of connections, in milliseconds, where those who
    /// follow take in no heartbeats.
    pub heard_ms: u64,
    /// How long a question to another node waits for its answer, in milliseconds.
    pub answer_ms: u64,
}

impl FleetSettings {
    /// The figures that go with a lease of this length: those of the default, in proportion.
    pub fn of_lease(lease_ms: u64, standbys: usize) -> Self {
        Self {
            lease_ms,
            margin_ms: lease_ms / 24,
            standbys,
            digest_ms: lease_ms * 5 / 6,
            heard_ms: lease_ms / 12,
            answer_ms: lease_ms / 3,
        }
    }
}

impl Default for FleetSettings {
    fn default() -> Self {
        Self::of_lease(6_000, 1)
    }
}
