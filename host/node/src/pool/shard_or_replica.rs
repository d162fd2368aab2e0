//! A shard as its thread holds it: alone, or as a replica in a fleet.
//!
//! Both are one [`Shard`], and are used alike where the difference doesn't matter. A replica
//! decides and publishes only while its node owns the shard. Its messages to other nodes are sent
//! by the fleet's task ([`ShardReport`]).

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use presence_config::subjects::EPOCH_STEP;
use presence_core::body::explain::ExplainReport;
use presence_core::body::query::Answers;
use presence_core::fleet::replica::{
    CatchUpReason, Discarded, Replica, ReplicaOutput, ReplicaSettings, Role,
};
use presence_core::names::Names;
use presence_core::query::Explain;
use presence_core::rules::Rules;
use presence_core::{Input, Output, Shard};
use roaring::RoaringBitmap;
use tokio::sync::mpsc;

use super::acknowledged::Acknowledged;
use super::work::FleetTask;
use crate::link::journal::{EpochFence, NodeLease};
use crate::link::shared_input::Receipt;

/// A shard, alone or in a fleet.
#[expect(clippy::large_enum_variant, reason = "it is in a box itself")]
pub(crate) enum ShardOrReplica {
    Alone(Shard),
    Replica(Box<HostedReplica>),
}

/// A shard's links to the rest of the fleet.
#[derive(Clone)]
pub(crate) struct FleetLinks {
    /// The node's lease.
    pub(crate) lease: Arc<NodeLease>,
    /// The channel for the shards' reports, each with the shard's number.
    pub(crate) reports: mpsc::UnboundedSender<(u32, ShardReport)>,
    /// The number from which epochs count.
    pub(crate) epoch_base: u64,
}

/// A report of a shard to the fleet's task.
#[derive(Debug)]
pub(crate) enum ShardReport {
    /// The epoch of the owner whose whole state this replica holds, also if it is the owner itself.
    /// `None` if it doesn't.
    InSync(Option<u64>),
    /// This owner has resigned. The broker has everything that it published, up to the update with
    /// this number.
    Resigned { epoch: u64, seq: u64 },
    /// A node must be asked for a snapshot.
    RequestSnapshot { node: Arc<str>, nonce: u64 },
    /// A piece of a snapshot for a node.
    Chunk(Arc<str>, Vec<u8>),
    /// The owner must be told that this replica holds its whole state, up to the update with this
    /// number.
    Synced {
        node: Arc<str>,
        epoch: u64,
        seq: u64,
    },
    /// Whether it takes in heartbeats from now on. If not, the owner tells it of them.
    TakesHeartbeats(bool),
    /// Its state differs from the owner's, so it catches up.
    Differed(CatchUpReason),
    /// Its old state, which must be freed on another thread, so that no event waits for it.
    Discard(Discarded),
    /// A message of another node was refused: why.
    Refused(String),
    /// It begins to lead. It announces who came and went meanwhile.
    Leads,
    /// It has failed, and has lost its state. `led`: whether the node owned it.
    Failed { led: bool },
}

/// A replica, with the data that its node needs.
pub(crate) struct HostedReplica {
    replica: Replica,
    number: u32,
    settings: ReplicaSettings,
    names: Arc<Names>,
    links: FleetLinks,
    /// Outputs that are still to be carried out.
    outputs: Vec<ReplicaOutput>,
    /// Receipts of the input stream to acknowledge after `outputs`.
    receipts: Vec<Receipt>,
    /// The messages that were acknowledged recently.
    acknowledged: Acknowledged,
    /// The lease's end, as the replica was last told.
    until: u64,
    /// The fence for publishing, and its epoch: the one in which it last led.
    fence: Option<(u64, Arc<EpochFence>)>,
    /// What was last reported.
    synced_epoch: Option<u64>,
    receives_heartbeats: bool,
    role: Role,
    /// The nodes that ask for a snapshot: the node, the number of its question, and when it
    /// arrived. The snapshot is taken when everything that had arrived by then is handled. The node
    /// relies on that.
    snapshot_requests: Vec<(Arc<str>, u64, u64)>,
    /// Set once it has resigned: the epoch, the number of its last update, and the place behind all
    /// that it published.
    resigned: Option<(u64, u64, u64)>,
}

impl Deref for ShardOrReplica {
    type Target = Shard;

    fn deref(&self) -> &Shard {
        match self {
            Self::Alone(shard) => shard,
            Self::Replica(hosted) => hosted.replica.shard(),
        }
    }
}

impl DerefMut for ShardOrReplica {
    fn deref_mut(&mut self) -> &mut Shard {
        match self {
            Self::Alone(shard) => shard,
            Self::Replica(hosted) => hosted.replica.shard_mut(),
        }
    }
}

impl ShardOrReplica {
    /// A shard outside of a fleet.
    pub(crate) fn alone(shard: Shard) -> Self {
        Self::Alone(shard)
    }

    /// A shard of a fleet. The node has no role for it yet.
    pub(crate) fn replica(
        shard: Shard,
        (number, settings): (u32, ReplicaSettings),
        names: Arc<Names>,
        links: FleetLinks,
    ) -> Self {
        let replica = Replica::new(number, settings.clone(), Arc::clone(&names), shard);
        Self::Replica(Box::new(HostedReplica {
            replica,
            number,
            settings,
            names,
            links,
            outputs: Vec::new(),
            receipts: Vec::new(),
            acknowledged: Acknowledged::default(),
            until: 0,
            fence: None,
            synced_epoch: None,
            receives_heartbeats: true,
            role: Role::None,
            snapshot_requests: Vec::new(),
            resigned: None,
        }))
    }

    pub(super) fn handle(
        &mut self,
        now: u64,
        input: Input,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) {
        match self {
            Self::Alone(shard) => shard.handle(now, input, rules, out),
            Self::Replica(hosted) => {
                hosted.check_lease(now);
                hosted.replica.input(now, input, rules, &mut hosted.outputs);
            }
        }
    }

    pub(super) fn advance(&mut self, now: u64, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        match self {
            Self::Alone(shard) => shard.advance(now, rules, out),
            Self::Replica(hosted) => {
                hosted.check_lease(now);
                hosted.begin_snapshots(now);
                hosted.replica.advance(now, rules, &mut hosted.outputs);
            }
        }
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        match self {
            Self::Alone(shard) => shard.next_deadline(),
            Self::Replica(hosted) => {
                let snapshot_requests = hosted.snapshot_requests.iter().map(|(_, _, at)| *at);
                snapshot_requests
                    .chain(hosted.replica.next_deadline())
                    .min()
            }
        }
    }

    /// Whether something has timed out that must be published before a later input is handled.
    pub(super) fn has_expiries(&self, now: u64) -> bool {
        match self {
            Self::Alone(shard) => shard.has_expiries(now),
            Self::Replica(hosted) => {
                hosted.replica.is_leading(now) && hosted.replica.shard().has_expiries(now)
            }
        }
    }

    /// Answers a viewer. `None` if another node must be asked, or if the shard doesn't know enough
    /// yet.
    pub(super) fn query<'a>(
        &mut self,
        now: u64,
        viewer: &str,
        users: impl Iterator<Item = &'a str>,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) -> Option<Answers> {
        match self {
            Self::Alone(shard) => Some(shard.query(now, viewer, users, rules, out)),
            Self::Replica(hosted) => {
                hosted.check_lease(now);
                let (replica, outputs) = (&mut hosted.replica, &mut hosted.outputs);
                replica.query(now, viewer, users, rules, outputs)
            }
        }
    }

    /// Explains a decision. `None` in the same cases as [`Self::query`].
    pub(super) fn explain(
        &mut self,
        now: u64,
        Explain { viewer, user }: &Explain,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) -> Option<ExplainReport> {
        match self {
            Self::Alone(shard) => Some(shard.explain(now, viewer, user, rules, out)),
            Self::Replica(hosted) => {
                hosted.check_lease(now);
                let (replica, outputs) = (&mut hosted.replica, &mut hosted.outputs);
                replica.explain(now, (viewer, user), rules, outputs)
            }
        }
    }

    /// Stops waiting for answers of the directory. A replica doesn't have to: the next owner waits
    /// for them.
    pub(super) fn give_up(
        &mut self,
        now: u64,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) -> bool {
        match self {
            Self::Alone(shard) => shard.give_up(now, rules, out),
            Self::Replica(_) => false,
        }
    }

    /// The numbers of all ids that it holds.
    pub(super) fn ids(&self) -> RoaringBitmap {
        match self {
            Self::Alone(shard) => shard.ids(),
            Self::Replica(hosted) => hosted.replica.ids(),
        }
    }

    /// Begins again without any state, because it has failed.
    pub(super) fn reset(&mut self, keep_records: bool) {
        match self {
            Self::Alone(shard) => {
                *shard = shard.replacement();
                shard.keep_records(keep_records);
            }
            Self::Replica(hosted) => hosted.reset(),
        }
    }

    /// Whether it needs watermarks of received messages again and again.
    pub(super) fn needs_clock(&self) -> bool {
        match self {
            Self::Alone(shard) => shard.needs_clock(),
            Self::Replica(hosted) => hosted.replica.needs_clock(),
        }
    }

    /// Whether it decides and publishes now.
    pub(super) fn is_leading(&self, now: u64) -> bool {
        match self {
            Self::Alone(_) => true,
            Self::Replica(hosted) => hosted.replica.is_leading(now),
        }
    }

    /// Whether it is a standby that holds the owner's whole state.
    pub(super) fn is_synced(&self) -> bool {
        match self {
            Self::Alone(_) => false,
            Self::Replica(hosted) => {
                matches!(hosted.role, Role::Follow { .. })
                    && hosted.replica.complete_epoch().is_some()
            }
        }
    }

    /// How many outputs of a replica wait to be carried out.
    pub(super) fn waiting_outputs(&self) -> usize {
        match self {
            Self::Alone(_) => 0,
            Self::Replica(hosted) => hosted.outputs.len(),
        }
    }

    /// How many of these outputs are publications for viewers and applications.
    pub(super) fn waiting_publications(&self) -> usize {
        let Self::Replica(hosted) = self else {
            return 0;
        };
        let is_published = |output: &&ReplicaOutput| {
            matches!(
                output,
                ReplicaOutput::Shard(Output::Publish(_) | Output::Deliver(_))
            )
        };
        hosted.outputs.iter().filter(is_published).count()
    }

    /// The replica. `None` if the shard is alone.
    pub(super) fn as_replica(&mut self) -> Option<&mut HostedReplica> {
        match self {
            Self::Alone(_) => None,
            Self::Replica(hosted) => Some(hosted),
        }
    }
}

impl HostedReplica {
    /// The lease under which it publishes.
    pub(super) fn lease(&self) -> &Arc<NodeLease> {
        &self.links.lease
    }

    /// Carries out a task of the fleet.
    pub(super) fn handle_task(&mut self, now: u64, task: FleetTask) {
        self.check_lease(now);
        let (replica, outputs) = (&mut self.replica, &mut self.outputs);
        match task {
            FleetTask::Role(role) => {
                let epoch = match &role {
                    Role::Lead { epoch, .. } | Role::Resign { epoch } => Some(*epoch),
                    Role::None | Role::Follow { .. } => None,
                };
                self.fence.take_if(|(of, fence)| {
                    let is_over = epoch != Some(*of);
                    if is_over {
                        fence.end();
                    }
                    is_over
                });
                self.resigned = None;
                self.role = role.clone();
                replica.set_role(now, role, outputs);
            }
            // The lease was checked above.
            FleetTask::Lease => {}
            FleetTask::SessionLost => replica.session_lost(),
            FleetTask::Update(bytes) => {
                if replica.receive(now, &bytes, outputs).is_err() {
                    let what = "what the owner told can't be read, or is of another shard";
                    self.report(ShardReport::Refused(what.into()));
                }
            }
            FleetTask::Chunk(bytes) => {
                if let Err(refusal) = replica.chunk(now, &bytes, outputs) {
                    let what = format!("a snapshot is refused, and asked for again: {refusal}");
                    self.report(ShardReport::Refused(what));
                }
            }
            FleetTask::SnapshotRequest(node, nonce) => {
                // The node asks again, so it doesn't wait for an earlier answer.
                self.snapshot_requests.retain(|(other, ..)| *other != node);
                self.snapshot_requests.push((node, nonce, now));
            }
        }
    }

    /// Begins the snapshots for the nodes that asked at `now` or earlier. Everything that had
    /// arrived by then has been handled.
    fn begin_snapshots(&mut self, now: u64) {
        let (replica, outputs) = (&mut self.replica, &mut self.outputs);
        self.snapshot_requests.retain(|(node, nonce, at)| {
            let waits = *at > now;
            if !waits {
                replica.snapshot_requested(now, node, *nonce, outputs);
            }
            waits
        });
    }

    /// Notes that a message of the input stream has been handled, or is about to be. Only the owner
    /// acknowledges it.
    pub(super) fn acknowledge(&mut self, now: u64, receipt: Receipt) {
        if self.replica.is_leading(now) {
            let epoch = self.replica.epoch();
            self.acknowledged.add(now, epoch, receipt.place);
            self.receipts.push(receipt);
        }
    }

    /// Whether this owner has acknowledged a message of the input stream before.
    pub(super) fn has_acknowledged(&self, now: u64, receipt: &Receipt) -> bool {
        let epoch = self.replica.epoch();
        self.replica.is_leading(now) && self.acknowledged.has(epoch, receipt.place)
    }

    /// Takes the receipts to acknowledge, after everything in `outputs`.
    pub(super) fn take_receipts(&mut self) -> Vec<Receipt> {
        std::mem::take(&mut self.receipts)
    }

    /// Takes the outputs to carry out.
    pub(super) fn take_outputs(&mut self) -> Vec<ReplicaOutput> {
        std::mem::take(&mut self.outputs)
    }

    /// Carries out an output for the rest of the fleet. `place`: the place behind all that the
    /// shard has published.
    pub(super) fn carry_out(&mut self, output: ReplicaOutput, place: u64) {
        let report = match output {
            // These are published by the caller.
            ReplicaOutput::Shard(_) | ReplicaOutput::ToStandbys(_) => return,
            ReplicaOutput::Resigned { epoch, seq } => {
                self.resigned = Some((epoch, seq, place));
                return;
            }
            ReplicaOutput::Ask { node, nonce } => ShardReport::RequestSnapshot { node, nonce },
            ReplicaOutput::Chunk(node, bytes) => ShardReport::Chunk(node, bytes),
            ReplicaOutput::Synced { node, epoch, seq } => ShardReport::Synced { node, epoch, seq },
            ReplicaOutput::Differed(difference) => ShardReport::Differed(difference),
            ReplicaOutput::Discard(discarded) => ShardReport::Discard(discarded),
        };
        self.report(report);
    }

    /// If the shard leads in a new epoch: the epoch of its publications, and the fence for it.
    pub(super) fn new_epoch(&mut self) -> Option<(u64, Arc<EpochFence>)> {
        let epoch = self.replica.epoch();
        if self.fence.as_ref().is_some_and(|(of, _)| *of == epoch) {
            return None;
        }
        let fence = EpochFence::new(Arc::clone(&self.links.lease));
        self.fence = Some((epoch, Arc::clone(&fence)));
        self.report(ShardReport::Leads);
        // The steps between leave room for epochs of viewers' own subjects, whose numbers can start
        // again.
        let epoch = self.links.epoch_base.saturating_add(epoch * EPOCH_STEP);
        Some((epoch, fence))
    }

    /// The place before which the broker must have everything before the shard is handed over.
    /// `None` if it hasn't resigned.
    pub(super) fn resigns_at(&self) -> Option<u64> {
        self.resigned.map(|(_, _, place)| place)
    }

    /// The broker has everything that it published before it resigned.
    pub(super) fn report_resigned(&mut self) {
        if let Some((epoch, seq, _)) = self.resigned.take() {
            self.report(ShardReport::Resigned { epoch, seq });
        }
    }

    /// Reports whether it holds the owner's state, and whether it takes in heartbeats, if that has
    /// changed.
    pub(super) fn report_state(&mut self) {
        let synced_epoch = self.replica.complete_epoch();
        if std::mem::replace(&mut self.synced_epoch, synced_epoch) != synced_epoch {
            self.report(ShardReport::InSync(synced_epoch));
        }
        let takes = self.replica.receives_heartbeats();
        if std::mem::replace(&mut self.receives_heartbeats, takes) != takes {
            self.report(ShardReport::TakesHeartbeats(takes));
        }
    }

    fn report(&self, report: ShardReport) {
        // The fleet's task ends only with the node.
        let _ = self.links.reports.send((self.number, report));
    }

    fn check_lease(&mut self, now: u64) {
        let until = self.links.lease.until();
        if std::mem::replace(&mut self.until, until) != until {
            self.replica.renewed(now, until, &mut self.outputs);
        }
    }

    fn reset(&mut self) {
        let fence = self.fence.take();
        if let Some((_, fence)) = &fence {
            fence.end();
        }
        let shard = self.replica.shard().replacement();
        let (settings, names) = (self.settings.clone(), Arc::clone(&self.names));
        self.replica = Replica::new(self.number, settings, names, shard);
        self.outputs.clear();
        self.receipts.clear();
        self.acknowledged = Acknowledged::default();
        self.snapshot_requests.clear();
        (self.until, self.resigned, self.synced_epoch) = (0, None, None);
        self.role = Role::None;
        let led = fence.is_some();
        self.report(ShardReport::Failed { led });
    }
}
