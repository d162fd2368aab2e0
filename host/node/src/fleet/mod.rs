//! This node as one of a fleet: it holds a lease, owns some shards, and stands by for others.
//!
//! What the fleet's bucket decides is in [`Member`](presence_core::fleet::member::Member), and what
//! a shard does is in [`Replica`](presence_core::fleet::replica::Replica). This module connects
//! them with the broker and the other nodes: a task ([`driver`]) owns the member, and [`Fleet`] is
//! what the rest of the node knows of the fleet.

pub(crate) mod deferred_tasks;
pub(crate) mod driver;
mod figures;
pub(crate) mod parts;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use presence_config::causes::Causes;
use presence_config::subjects::Subjects;
use presence_config::{Config, Fleet as FleetConfig};
use presence_core::fleet::FleetSettings;
use presence_core::fleet::replica::{Mutation, ReplicaSettings};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::sleep;

use crate::link::connection::Connection;
use crate::link::fleet_bucket::{BucketError, FleetBucket, Layout};
use crate::link::journal::NodeLease;
use crate::ops::http::StatusBoard;
use crate::pool::{FleetLinks, ShardReport};

pub(crate) use figures::FleetFigures;

/// The wait between two attempts to open the bucket.
const RETRY: Duration = Duration::from_millis(500);

/// The greatest length of a message between nodes, in bytes. Longer ones are split.
const MESSAGE_BYTES_MAX: usize = 256 << 10;

/// The greatest length of a piece of a snapshot, in bytes. A shard takes one in within
/// milliseconds.
const CHUNK_BYTES: usize = 64 << 10;

/// With at least this many heartbeats of a shard in a twelfth of the lease, the owner forwards them
/// to the standbys, which then don't take them in themselves.
const RELAY_HEARTBEATS_MIN: usize = 8;

/// The owner of each shard. `None`: no owner is known.
pub(crate) type Owners = Arc<[Option<Arc<str>>]>;

/// What the rest of the node knows of the fleet.
pub(crate) struct Fleet {
    pub(crate) node: Arc<str>,
    pub(crate) shards: u32,
    pub(crate) settings: FleetSettings,
    /// The node's lease in the fleet: until when the node may rely on it.
    pub(crate) lease: Arc<NodeLease>,
    /// Whether the node has reached the bucket lately, so that it learns of changes by others.
    in_touch: AtomicBool,
    owners: watch::Sender<Owners>,
    /// The nodes that are alive, as far as this one knows.
    living: watch::Sender<Arc<[Arc<str>]>>,
    /// For each shard, whether this node owns it or stands by.
    parts: Box<[AtomicBool]>,
    /// For each shard, whether this node gives it the heartbeats that it reads.
    heartbeats: Box<[AtomicBool]>,
    pub(crate) figures: FleetFigures,
    /// In how many of its shards the node has yet to catch up.
    pub(crate) shards_catching_up: AtomicUsize,
    /// Whether every shard has an owner, and the node has caught up once in all of its shards.
    settled: watch::Sender<bool>,
    leave: Notify,
    left: watch::Sender<bool>,
}

/// What a tenant of a fleet is started with.
pub(crate) struct FleetStart {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) links: FleetLinks,
    pub(crate) replicas: ReplicaSettings,
    pub(crate) bucket: FleetBucket,
    /// The fleet's shared settings, as the bucket has them.
    pub(crate) layout: Layout,
    pub(crate) reports: mpsc::UnboundedReceiver<(u32, ShardReport)>,
}

impl Fleet {
    fn new(node: &str, config: &FleetConfig) -> Self {
        let nobody = (0..config.shards).map(|_| None).collect();
        Self {
            node: node.into(),
            shards: config.shards,
            settings: config.settings(),
            lease: Arc::default(),
            in_touch: AtomicBool::new(false),
            owners: watch::Sender::new(nobody),
            living: watch::Sender::default(),
            parts: (0..config.shards).map(|_| AtomicBool::new(false)).collect(),
            heartbeats: (0..config.shards).map(|_| AtomicBool::new(true)).collect(),
            figures: FleetFigures::default(),
            shards_catching_up: AtomicUsize::new(0),
            settled: watch::Sender::new(false),
            leave: Notify::new(),
            left: watch::Sender::new(false),
        }
    }

    /// The owner of each shard, as far as this node knows. This returns a copy: two borrows of a
    /// watch channel by one thread can deadlock with a sender that waits between them.
    pub(crate) fn owners(&self) -> Owners {
        Arc::clone(&self.owners.borrow())
    }

    /// The nodes that are alive, as far as this one knows.
    pub(crate) fn nodes(&self) -> Arc<[Arc<str>]> {
        Arc::clone(&self.living.borrow())
    }

    /// Whether the node has reached the bucket lately, so that it learns of changes by others.
    pub(crate) fn is_in_touch(&self) -> bool {
        self.in_touch.load(Ordering::Relaxed)
    }

    /// Whether this node owns a shard, or stands by.
    pub(crate) fn has_part(&self, shard: u32) -> bool {
        let part = self.parts.get(shard as usize);
        part.is_some_and(|part| part.load(Ordering::Relaxed))
    }

    fn set_part(&self, shard: u32, has: bool) {
        if let Some(part) = self.parts.get(shard as usize) {
            part.store(has, Ordering::Relaxed);
        }
    }

    /// Whether a shard in which this node has a part takes in heartbeats itself.
    pub(crate) fn receives_heartbeats(&self, shard: u32) -> bool {
        let shard = self.heartbeats.get(shard as usize);
        shard.is_some_and(|takes| takes.load(Ordering::Relaxed))
    }

    /// In how many shards owners forward heartbeats to this node.
    pub(crate) fn forwarded_shards(&self) -> usize {
        let takes = self.heartbeats.iter();
        takes.filter(|takes| !takes.load(Ordering::Relaxed)).count()
    }

    fn set_heartbeats(&self, shard: u32, takes: bool) {
        if let Some(shard) = self.heartbeats.get(shard as usize) {
            shard.store(takes, Ordering::Relaxed);
        }
    }

    /// Returns once every shard has an owner, and the node has caught up once in all of its shards.
    /// Then other nodes may leave.
    pub(crate) async fn until_settled(&self) {
        let mut settled = self.settled.subscribe();
        // It can't fail: the sender is in `self`.
        let _ = settled.wait_for(|settled| *settled).await;
    }

    /// How many shards have no known owner.
    pub(crate) fn ownerless(&self) -> usize {
        let owners = self.owners();
        owners.iter().filter(|owner| owner.is_none()).count()
    }

    /// The fleet's bucket is gone: ends the lease, and counts the node as having left.
    fn lose_bucket(&self) {
        self.lease.end();
        self.left.send_replace(true);
    }

    /// Hands over all shards that the node owns, and returns when the node has left the fleet.
    pub(crate) async fn leave(&self) {
        self.leave.notify_one();
        let mut left = self.left.subscribe();
        // It can't fail: the sender is in `self`.
        let _ = left.wait_for(|left| *left).await;
    }
}

/// Joins the configured fleet: opens its bucket, or creates it if this is the first node. The node
/// owns no shard yet. `None` if no fleet is configured.
///
/// # Errors
/// If this node can't be part of the fleet.
pub(crate) async fn join(
    config: &Config,
    connection: &Connection,
    board: &StatusBoard,
) -> anyhow::Result<Option<FleetStart>> {
    if !config.fleet.enabled {
        return Ok(None);
    }
    let prefix = config.tenant.prefix.as_deref();
    let settings = config.fleet.settings();
    let answer = Duration::from_millis(settings.lease_ms / 6);
    let mine = Layout::new(
        config.fleet.shards,
        config.fleet.lease_ms,
        config.tenant.name.as_deref(),
    );
    let (bucket, layout) = loop {
        match FleetBucket::open(connection, prefix, mine, answer.max(RETRY)).await {
            Ok(opened) => break opened,
            Err(BucketError::Fatal(error)) => {
                return Err(error).context("this node can't be one of a fleet ([fleet])");
            }
            Err(BucketError::Retryable(error)) => {
                board.set_wait_reason(format!(
                    "waiting for the fleet's bucket: {}",
                    Causes(&error)
                ));
                sleep(RETRY).await;
            }
        }
    };
    let fleet = Arc::new(Fleet::new(&config.node.name, &config.fleet));
    let (tell, reports) = mpsc::unbounded_channel();
    let links = FleetLinks {
        lease: Arc::clone(&fleet.lease),
        reports: tell,
        epoch_base: layout.epoch_base,
    };
    let message_bytes = MESSAGE_BYTES_MAX.min(connection.body_bytes_max() / 2);
    let replicas = ReplicaSettings {
        fleet: settings,
        node: Arc::clone(&fleet.node),
        timeout_ms: config.tracker.timeout_ms,
        chunk_bytes: message_bytes.min(CHUNK_BYTES),
        standby_message_bytes_max: message_bytes,
        relay_heartbeats_min: RELAY_HEARTBEATS_MIN,
        mutation: Mutation::None,
    };
    Ok(Some(FleetStart {
        fleet,
        links,
        replicas,
        bucket,
        layout,
        reports,
    }))
}

/// The kinds of messages that other nodes send to this one.
pub(crate) enum NodeSubject {
    /// A standby asks for a snapshot.
    Snapshot,
    /// A piece of a snapshot.
    Chunk,
    /// A standby has everything that the owner told it.
    Synced,
}

impl NodeSubject {
    const ALL: [Self; 3] = [Self::Snapshot, Self::Chunk, Self::Synced];

    fn as_str(&self) -> &'static str {
        match self {
            Self::Snapshot => "fleet.snapshot",
            Self::Chunk => "fleet.chunk",
            Self::Synced => "fleet.synced",
        }
    }

    /// The subject of this kind of message for a node and a shard.
    pub(crate) fn of(&self, subjects: &Subjects, node: &str, shard: u32) -> String {
        let subject = subjects.of_node(node, self.as_str());
        format!("{subject}.{shard}")
    }

    /// Reads the kind of message and the shard from a subject below the node's own.
    pub(crate) fn read(subjects: &Subjects, node: &str, subject: &str) -> Option<(Self, u32)> {
        Self::ALL.into_iter().find_map(|it| {
            let begin = subjects.of_node(node, it.as_str());
            let shard = subject.strip_prefix(&begin)?.strip_prefix('.')?;
            Some((it, shard.parse().ok()?))
        })
    }
}

/// The subject by which a node subscribes to the messages of other nodes.
pub(crate) fn node_subject(subjects: &Subjects, node: &str) -> String {
    subjects.of_node(node, "fleet.>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_is_told_says_of_which_shard_it_is() {
        let subjects = Subjects::new(Some("acme"));
        for what in NodeSubject::ALL {
            let subject = what.of(&subjects, "node-1", 63);
            let read = NodeSubject::read(&subjects, "node-1", &subject);
            let (read, shard) = read.unwrap();
            assert_eq!((read.as_str(), shard), (what.as_str(), 63));
            assert!(NodeSubject::read(&subjects, "node-2", &subject).is_none());
        }
        let other = subjects.of_node("node-1", "fleet.chunk.x");
        assert!(NodeSubject::read(&subjects, "node-1", &other).is_none());
    }
}
