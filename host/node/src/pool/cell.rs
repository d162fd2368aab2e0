//! A shard as its thread has it: alone, or as a replica in a fleet.
//!
//! Both are one [`Shard`], and where nothing else matters, they are used as one. A replica decides and
//! publishes only while its node owns it. What it has to say to other nodes, the fleet's task sends
//! ([`Report`]).

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use presence_config::subjects::EPOCH_STEP;
use presence_core::body::explain::ExplainReport;
use presence_core::body::query::Answers;
use presence_core::fleet::replica::{Difference, Discarded, Out, Replica, ReplicaSettings, Role};
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
pub(crate) enum Cell {
    Alone(Shard),
    Replica(Box<HostedReplica>),
}

/// What a shard has to do with the rest of the fleet.
#[derive(Clone)]
pub(crate) struct FleetLinks {
    /// Until when the node may rely on its lease.
    pub(crate) lease: Arc<NodeLease>,
    /// What the shards have to say, each with its number.
    pub(crate) reports: mpsc::UnboundedSender<(u32, Report)>,
    /// What epochs are counted from.
    pub(crate) epoch_base: u64,
}

/// What a shard says to the fleet's task.
#[derive(Debug)]
pub(crate) enum Report {
    /// It is in step with the owner of this epoch, or it is the owner; none if it isn't.
    Holds(Option<u64>),
    /// It has resigned, and the broker has all that it published.
    Resigned { epoch: u64, seq: u64 },
    /// A node is to be asked for a snapshot.
    Ask { node: Arc<str>, nonce: u64 },
    /// A piece of a snapshot, for a node.
    Chunk(Arc<str>, Vec<u8>),
    /// The owner is to be told that all is held here that it had told by then.
    Synced {
        node: Arc<str>,
        epoch: u64,
        seq: u64,
    },
    /// It takes in heartbeats from now on, or is told of them by the owner.
    TakesHeartbeats(bool),
    /// It catches up.
    Differed(Difference),
    /// What it held is to be freed, where no event waits for it.
    Discard(Discarded),
    /// What came from another node can't be used.
    Refused(String),
    /// It begins to lead, and announces who came and went meanwhile.
    Leads,
    /// It has failed, and knows nothing any more. `led`: whether the node owned it.
    Failed { led: bool },
}

/// A replica, with what its node needs beside it.
pub(crate) struct HostedReplica {
    replica: Replica,
    number: u32,
    settings: ReplicaSettings,
    names: Arc<Names>,
    links: FleetLinks,
    /// What is still to be carried out.
    wants: Vec<Out>,
    /// Messages of the input stream that are to be acknowledged behind that.
    receipts: Vec<Receipt>,
    /// Those that were lately.
    acknowledged: Acknowledged,
    /// The lease, as the replica was last told.
    until: u64,
    /// For how long it may publish in the epoch that it last led in.
    fence: Option<(u64, Arc<EpochFence>)>,
    /// As it was last reported.
    holds: Option<u64>,
    takes_heartbeats: bool,
    role: Role,
    /// Nodes that ask for a snapshot, by what number, and since when. It is taken when all is handled
    /// that had arrived by then: a node that asks relies on that.
    asked: Vec<(Arc<str>, u64, u64)>,
    /// The last that it told, once it has resigned, and the place behind all that it published.
    resigned: Option<(u64, u64, u64)>,
}

impl Deref for Cell {
    type Target = Shard;

    fn deref(&self) -> &Shard {
        match self {
            Self::Alone(shard) => shard,
            Self::Replica(hosted) => hosted.replica.shard(),
        }
    }
}

impl DerefMut for Cell {
    fn deref_mut(&mut self) -> &mut Shard {
        match self {
            Self::Alone(shard) => shard,
            Self::Replica(hosted) => hosted.replica.shard_mut(),
        }
    }
}

impl Cell {
    /// A shard that this node alone has.
    pub(crate) fn alone(shard: Shard) -> Self {
        Self::Alone(shard)
    }

    /// A shard of a fleet. The node has no part in it yet.
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
            wants: Vec::new(),
            receipts: Vec::new(),
            acknowledged: Acknowledged::default(),
            until: 0,
            fence: None,
            holds: None,
            takes_heartbeats: true,
            role: Role::None,
            asked: Vec::new(),
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
                hosted.look_at_lease(now);
                hosted.replica.input(now, input, rules, &mut hosted.wants);
            }
        }
    }

    pub(super) fn advance(&mut self, now: u64, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        match self {
            Self::Alone(shard) => shard.advance(now, rules, out),
            Self::Replica(hosted) => {
                hosted.look_at_lease(now);
                hosted.give_snapshots(now);
                hosted.replica.advance(now, rules, &mut hosted.wants);
            }
        }
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        match self {
            Self::Alone(shard) => shard.next_deadline(),
            Self::Replica(hosted) => {
                let asked = hosted.asked.iter().map(|(_, _, at)| *at);
                asked.chain(hosted.replica.next_deadline()).min()
            }
        }
    }

    /// Whether something has ended that is to be told of before a later input.
    pub(super) fn has_expiries(&self, now: u64) -> bool {
        match self {
            Self::Alone(shard) => shard.has_expiries(now),
            Self::Replica(hosted) => {
                hosted.replica.is_leading(now) && hosted.replica.shard().has_expiries(now)
            }
        }
    }

    /// Answers a viewer; nothing where another node is to be asked, or too little is known yet.
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
                hosted.look_at_lease(now);
                let (replica, wants) = (&mut hosted.replica, &mut hosted.wants);
                replica.query(now, viewer, users, rules, wants)
            }
        }
    }

    /// Explains; nothing as of [`Self::query`].
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
                hosted.look_at_lease(now);
                let (replica, wants) = (&mut hosted.replica, &mut hosted.wants);
                replica.explain(now, (viewer, user), rules, wants)
            }
        }
    }

    /// Waits no more for answers of the directory. In a fleet, another node waits for them.
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

    /// All the numbers of ids that it holds.
    pub(super) fn ids(&self) -> RoaringBitmap {
        match self {
            Self::Alone(shard) => shard.ids(),
            Self::Replica(hosted) => hosted.replica.ids(),
        }
    }

    /// Begins anew as a shard of nobody, since it has failed.
    pub(super) fn begin_anew(&mut self, keep_records: bool) {
        match self {
            Self::Alone(shard) => {
                *shard = shard.replacement();
                shard.keep_records(keep_records);
            }
            Self::Replica(hosted) => hosted.begin_anew(),
        }
    }

    /// Whether it is to be told again and again up to when everything has been received.
    pub(super) fn needs_clock(&self) -> bool {
        match self {
            Self::Alone(shard) => shard.needs_clock(),
            Self::Replica(hosted) => hosted.replica.needs_clock(),
        }
    }

    /// Whether it decides and publishes.
    pub(super) fn is_leading(&self, now: u64) -> bool {
        match self {
            Self::Alone(_) => true,
            Self::Replica(hosted) => hosted.replica.is_leading(now),
        }
    }

    /// Whether it is in step with an owner elsewhere.
    pub(super) fn is_in_step(&self) -> bool {
        match self {
            Self::Alone(_) => false,
            Self::Replica(hosted) => {
                matches!(hosted.role, Role::Follow { .. }) && hosted.replica.holds().is_some()
            }
        }
    }

    /// How many outputs of a replica wait to be carried out.
    pub(super) fn waiting_outputs(&self) -> usize {
        match self {
            Self::Alone(_) => 0,
            Self::Replica(hosted) => hosted.wants.len(),
        }
    }

    /// How many of them are for viewers and applications.
    pub(super) fn waiting_publications(&self) -> usize {
        let Self::Replica(hosted) = self else {
            return 0;
        };
        let is_published =
            |want: &&Out| matches!(want, Out::Shard(Output::Publish(_) | Output::Deliver(_)));
        hosted.wants.iter().filter(is_published).count()
    }

    /// As a replica, if it is one.
    pub(super) fn as_replica(&mut self) -> Option<&mut HostedReplica> {
        match self {
            Self::Alone(_) => None,
            Self::Replica(hosted) => Some(hosted),
        }
    }
}

impl HostedReplica {
    /// By which it publishes.
    pub(super) fn lease(&self) -> &Arc<NodeLease> {
        &self.links.lease
    }

    /// Does what it is told of the fleet.
    pub(super) fn take(&mut self, now: u64, task: FleetTask) {
        self.look_at_lease(now);
        let (replica, wants) = (&mut self.replica, &mut self.wants);
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
                replica.set_role(now, role, wants);
            }
            // It has been looked at.
            FleetTask::Lease => {}
            FleetTask::SessionLost => replica.session_lost(),
            FleetTask::Told(bytes) => {
                if replica.told(now, &bytes, wants).is_err() {
                    let what = "what the owner told can't be read, or is of another shard";
                    self.report(Report::Refused(what.into()));
                }
            }
            FleetTask::Chunk(bytes) => {
                if let Err(refusal) = replica.chunk(now, &bytes, wants) {
                    let what = format!("a snapshot is refused, and asked for again: {refusal}");
                    self.report(Report::Refused(what));
                }
            }
            FleetTask::Asked(node, nonce) => {
                // It asks again: it doesn't wait for an earlier answer any more.
                self.asked.retain(|(other, ..)| *other != node);
                self.asked.push((node, nonce, now));
            }
        }
    }

    /// Begins to give snapshots to those who asked before this time, up to which all that had arrived
    /// is handled.
    fn give_snapshots(&mut self, now: u64) {
        let (replica, wants) = (&mut self.replica, &mut self.wants);
        self.asked.retain(|(node, nonce, at)| {
            let waits = *at > now;
            if !waits {
                replica.asked(now, node, *nonce, wants);
            }
            waits
        });
    }

    /// A message of the input stream has been handled, or is about to be. Only the owner says so.
    pub(super) fn acknowledge(&mut self, now: u64, receipt: Receipt) {
        if self.replica.is_leading(now) {
            let epoch = self.replica.epoch();
            self.acknowledged.add(now, epoch, receipt.place);
            self.receipts.push(receipt);
        }
    }

    /// Whether the owner has acknowledged a message of the input stream that has come again.
    pub(super) fn has_acknowledged(&self, now: u64, receipt: &Receipt) -> bool {
        let epoch = self.replica.epoch();
        self.replica.is_leading(now) && self.acknowledged.has(epoch, receipt.place)
    }

    /// The messages that are to be acknowledged, behind all that is to be carried out.
    pub(super) fn receipts(&mut self) -> Vec<Receipt> {
        std::mem::take(&mut self.receipts)
    }

    /// What is to be carried out.
    pub(super) fn wants(&mut self) -> Vec<Out> {
        std::mem::take(&mut self.wants)
    }

    /// Does what it wants of the rest of the fleet. `place`: behind all that it has published.
    pub(super) fn carry_out(&mut self, want: Out, place: u64) {
        let report = match want {
            // They are published.
            Out::Shard(_) | Out::Told(_) => return,
            Out::Resigned { epoch, seq } => {
                self.resigned = Some((epoch, seq, place));
                return;
            }
            Out::Ask { node, nonce } => Report::Ask { node, nonce },
            Out::Chunk(node, bytes) => Report::Chunk(node, bytes),
            Out::Synced { node, epoch, seq } => Report::Synced { node, epoch, seq },
            Out::Differed(difference) => Report::Differed(difference),
            Out::Discard(discarded) => Report::Discard(discarded),
        };
        self.report(report);
    }

    /// The epoch of what it publishes, and for how long it may, if that hasn't been noted yet.
    pub(super) fn new_epoch(&mut self) -> Option<(u64, Arc<EpochFence>)> {
        let epoch = self.replica.epoch();
        if self.fence.as_ref().is_some_and(|(of, _)| *of == epoch) {
            return None;
        }
        let fence = EpochFence::new(Arc::clone(&self.links.lease));
        self.fence = Some((epoch, Arc::clone(&fence)));
        self.report(Report::Leads);
        // The numbers of viewers' own subjects begin anew in epochs between.
        let epoch = self.links.epoch_base.saturating_add(epoch * EPOCH_STEP);
        Some((epoch, fence))
    }

    /// Behind which place the broker is to have all before the shard may be handed over; none if
    /// it isn't to be.
    pub(super) fn resigns_at(&self) -> Option<u64> {
        self.resigned.map(|(_, _, place)| place)
    }

    /// The broker has all that it published before it resigned.
    pub(super) fn is_acknowledged(&mut self) {
        if let Some((epoch, seq, _)) = self.resigned.take() {
            self.report(Report::Resigned { epoch, seq });
        }
    }

    /// Says whether it is in step, and whether it takes in heartbeats, if that has changed.
    pub(super) fn report_state(&mut self) {
        let holds = self.replica.holds();
        if std::mem::replace(&mut self.holds, holds) != holds {
            self.report(Report::Holds(holds));
        }
        let takes = self.replica.takes_heartbeats();
        if std::mem::replace(&mut self.takes_heartbeats, takes) != takes {
            self.report(Report::TakesHeartbeats(takes));
        }
    }

    fn report(&self, report: Report) {
        // The fleet's task is gone when the node ends.
        let _ = self.links.reports.send((self.number, report));
    }

    fn look_at_lease(&mut self, now: u64) {
        let until = self.links.lease.until();
        if std::mem::replace(&mut self.until, until) != until {
            self.replica.renewed(now, until, &mut self.wants);
        }
    }

    fn begin_anew(&mut self) {
        let fence = self.fence.take();
        if let Some((_, fence)) = &fence {
            fence.end();
        }
        let shard = self.replica.shard().replacement();
        let (settings, names) = (self.settings.clone(), Arc::clone(&self.names));
        self.replica = Replica::new(self.number, settings, names, shard);
        self.wants.clear();
        self.receipts.clear();
        self.acknowledged = Acknowledged::default();
        self.asked.clear();
        (self.until, self.resigned, self.holds) = (0, None, None);
        self.role = Role::None;
        let led = fence.is_some();
        self.report(Report::Failed { led });
    }
}
