//! One node's replica of a shard: it leads, follows the node that leads, or catches up.
//!
//! All of these states use the same [`Shard`], so a replica that follows can lead at once. A
//! replica *leads* while its node owns the shard and may rely on its lease: it decides, and tells
//! the standbys what it is about to publish. Otherwise it handles the same input, and decides
//! nothing. A standby knows the sequence number of the owner's last message. If a message is
//! missing, or the standby's state differs from the owner's, the standby *catches up*: it takes a
//! fresh snapshot, and then applies the input that it has received meanwhile. Until then it isn't
//! *complete*. If it takes over meanwhile, it is cautious: it takes no user for gone whose messages
//! it may have missed, and answers no query until it has received input for a whole timeout.

mod answering;
mod catching_up;
mod following;
mod heartbeat_relay;
mod messaging;
mod snapshots;

use std::sync::Arc;

use roaring::RoaringBitmap;

use self::catching_up::CatchingUp;
use self::following::HeldMessages;
use self::heartbeat_relay::HeartbeatRelay;
use self::snapshots::Snapshots;
use super::FleetSettings;
use super::standby_message::{PartialMessage, StandbyContent, ToldViewers};
use crate::digest::PARTS;
use crate::names::Names;
use crate::record::Record;
use crate::rules::Rules;
use crate::{Input, Output, Shard};

/// A node's part in a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The node has no part in the shard.
    None,
    /// The node is a standby of the shard.
    Follow {
        /// The owner's epoch.
        epoch: u64,
        /// The owner.
        owner: Arc<str>,
    },
    /// The node owns the shard.
    Lead {
        /// The node's own epoch.
        epoch: u64,
        /// The previous owner.
        previous: PreviousOwner,
    },
    /// The node owns the shard and hands it over: it decides nothing any more.
    Resign {
        /// The node's own epoch.
        epoch: u64,
    },
}

/// The previous owner of a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreviousOwner {
    /// The previous owner's epoch; 0 if there was none.
    pub epoch: u64,
    /// If the previous owner handed the shard over: its node, and the sequence number of its last
    /// message to the standbys. `None`: the shard was taken over.
    pub handed_over: Option<(Arc<str>, u64)>,
}

/// Discarded state of a replica. Freeing the state of many users takes long.
#[derive(Clone, Debug)]
pub struct Discarded(Arc<(Shard, ToldViewers)>);

impl PartialEq for Discarded {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Discarded {}

/// What the caller of a replica is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaOutput {
    /// Carry out this output of the shard. What it publishes belongs to the epoch
    /// [`Replica::epoch`].
    Shard(Output),
    /// Publish this message to the standbys, before everything that comes after it.
    ToStandbys(Vec<u8>),
    /// Ask a node for a snapshot.
    Ask {
        /// The node.
        node: Arc<str>,
        /// The number of the question.
        nonce: u64,
    },
    /// Send a chunk of a snapshot to the node that asked for it.
    Chunk(Arc<str>, Vec<u8>),
    /// Tell the owner that this replica has applied all standby messages up to `seq`.
    Synced {
        /// The owner.
        node: Arc<str>,
        /// The owner's epoch.
        epoch: u64,
        /// The sequence number of the owner's last message.
        seq: u64,
    },
    /// The standbys have been told everything. The shard may be handed over once the broker has
    /// everything that was published before.
    Resigned {
        /// The owner's epoch.
        epoch: u64,
        /// The sequence number of the last message to the standbys.
        seq: u64,
    },
    /// Count that this replica's state differed from the owner's.
    Differed(CatchUpReason),
    /// Free this on a thread on which no event waits for it.
    Discard(Discarded),
}

/// Why a replica catches up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatchUpReason {
    /// It has just begun to follow.
    Begins,
    /// A message of the owner is missing.
    Gap,
    /// A message of the owner doesn't fit the state of this replica.
    Mismatch,
    /// The ledgers differ.
    Ledger,
    /// The connections differ.
    Connections,
    /// Inputs were lost on the way here.
    LostInput,
    /// Another owner has begun, and no message of it has arrived.
    Silence,
}

/// The settings of a replica, beside those of its shard.
#[derive(Clone, Debug)]
pub struct ReplicaSettings {
    /// The settings of the fleet.
    pub fleet: FleetSettings,
    /// The name of this node.
    pub node: Arc<str>,
    /// The tracker's timeout. A shard that isn't sure answers no query for this long.
    pub timeout_ms: u64,
    /// The maximum length of a snapshot's chunk, in bytes.
    pub chunk_bytes: usize,
    /// The maximum length of a message to the standbys, in bytes. A longer one is sent in pieces.
    pub standby_message_bytes_max: usize,
    /// The number of heartbeats within `relay_ms` from which on the owner tells the standbys of
    /// them, so that the standbys needn't receive them.
    pub relay_heartbeats_min: usize,
    /// A deliberate fault, with which the tests are tested.
    pub mutation: Mutation,
}

/// A part of the protocol that is left out, so that tests can check that this is noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutation {
    /// Nothing.
    #[default]
    None,
    /// A replica that begins to follow takes no snapshot.
    NoCatchUp,
    /// A replica that takes over announces and decides nothing.
    NoDecisions,
    /// An owner goes on after its lease has ended.
    NoLease,
    /// The standbys are told nothing.
    NoTelling,
    /// The standbys are told of no heartbeats, though they receive none.
    NoHeartbeats,
    /// The standbys ignore applications' statements, and the digests leave these out.
    NoStatements,
    /// The standbys don't compare connections, statuses and statements.
    NoComparison,
}

/// One node's replica of a shard.
#[derive(Debug)]
pub struct Replica {
    settings: ReplicaSettings,
    number: u32,
    names: Arc<Names>,
    shard: Shard,
    role: Role,
    /// Until when the node may rely on its lease.
    until: u64,
    is_leading: bool,
    /// Whether the replica holds everything that the owner of `epoch` had told up to `seq`, and has
    /// missed no input since.
    is_complete: bool,
    epoch: u64,
    seq: u64,
    told_viewers: ToldViewers,
    /// The pieces of a message that isn't complete yet.
    partial: PartialMessage,
    /// Messages of an epoch that the bucket hasn't named yet.
    held_messages: HeldMessages,
    catching_up: Option<CatchingUp>,
    relay: HeartbeatRelay,
    /// The snapshots that are being sent.
    snapshots: Snapshots,
    nonce: u64,
    /// While leading: when to send the next digest. Otherwise: by when a message of the owner is
    /// expected.
    digest_at: u64,
    /// For each part of the digest: how often in a row the connections have differed.
    differed: [u8; PARTS],
    /// Whether transitions that the replica saw before it led are still to be announced.
    is_behind: bool,
    /// Since when it has had the role `Lead` and waited for the last messages of the previous
    /// owner.
    waits_since: Option<u64>,
    /// Whether the state goes back to the shard's first owner without a break: no client knows
    /// anything from before that.
    is_first: bool,
    /// The epoch in which this replica led last; 0 if it never led, or has forgotten its state
    /// since.
    last_led_epoch: u64,
    /// Whether the replica knows everything that viewers have been told.
    has_ledger: bool,
    /// When to forget the state, since the node has no part in the shard.
    forget_at: Option<u64>,
}

/// The number of outputs after which [`Replica::advance`] stops, so that the list stays short.
const OUT_MAX: usize = 256;

/// How often one call of [`Replica::advance`] lets the shard do due work before inputs have their
/// turn. Each time, the shard decides on a few users.
const ADVANCES_AT_ONCE: usize = 8;

impl Replica {
    /// A replica of an empty shard.
    pub fn new(
        number: u32,
        settings: ReplicaSettings,
        names: Arc<Names>,
        mut shard: Shard,
    ) -> Self {
        shard.keep_standby_records(true);
        Self {
            settings,
            number,
            names,
            shard,
            role: Role::None,
            until: 0,
            is_leading: false,
            is_complete: false,
            epoch: 0,
            seq: 0,
            told_viewers: ToldViewers::default(),
            partial: PartialMessage::default(),
            held_messages: HeldMessages::default(),
            catching_up: None,
            relay: HeartbeatRelay::default(),
            snapshots: Snapshots::default(),
            nonce: 0,
            digest_at: 0,
            differed: [0; PARTS],
            is_behind: false,
            waits_since: None,
            is_first: false,
            last_led_epoch: 0,
            has_ledger: false,
            forget_at: None,
        }
    }

    /// Restores the records on the node's disk, which were stored `down_ms` ago. To be called
    /// before anything else. The replica starts with this state if no other node has a newer one.
    pub fn restore(&mut self, now: u64, down_ms: u64, records: impl IntoIterator<Item = Record>) {
        self.shard.restore(now, down_ms, records);
        self.shard.renew_leases(now);
        self.told_viewers = self.rebuilt_told_viewers();
    }

    /// Gives the node another part in the shard.
    pub fn set_role(&mut self, now: u64, role: Role, out: &mut Vec<ReplicaOutput>) {
        let before = std::mem::replace(&mut self.role, role);
        if matches!(self.role, Role::Resign { .. }) {
            self.end_relay(out);
        }
        self.stop_leading();
        self.resume_heartbeats(now);
        self.waits_since = None;
        self.forget_at = None;
        match &self.role {
            Role::None => {
                self.catching_up = None;
                self.snapshots = Snapshots::default();
                self.is_complete = false;
                // Until then, the state is better than nothing if no other node has it.
                self.forget_at = Some(now + self.settings.timeout_ms);
            }
            Role::Follow { epoch, .. } => {
                self.digest_at = now + self.settings.fleet.answer_ms;
                if self.skips(Mutation::NoCatchUp) {
                    (self.is_complete, self.epoch) = (true, *epoch);
                } else if before == Role::None || (!self.is_complete && self.catching_up.is_none())
                {
                    self.catch_up(now, CatchUpReason::Begins, out);
                }
            }
            Role::Lead { .. } => {}
            Role::Resign { epoch } => {
                let (epoch, seq) = (*epoch, self.seq);
                // The new owner can compare this digest, and confirm that it has missed nothing.
                self.send_digest(out);
                out.push(ReplicaOutput::Resigned { epoch, seq });
            }
        }
        let held = self.held_messages.take(self.known_epoch());
        let had_held = !held.is_empty();
        for message in held {
            self.receive_decoded(now, message, out);
        }
        if let Role::Follow { epoch, owner } = &self.role
            && had_held
            && self.epoch == *epoch
        {
            self.report_synced(owner, out);
        }
        self.settle(now, out);
    }

    /// The node may rely on its lease until `until`.
    pub fn renewed(&mut self, now: u64, until: u64, out: &mut Vec<ReplicaOutput>) {
        self.until = until;
        self.settle(now, out);
    }

    /// The node's session is over.
    pub fn session_lost(&mut self) {
        self.until = 0;
        self.stop_leading();
    }

    fn stop_leading(&mut self) {
        // An owner that is no longer unsure has told viewers of every user.
        self.has_ledger |= self.is_leading && self.shard.unsure_ms() == 0;
        self.is_leading = false;
        self.stop_relay();
    }

    /// Handles an input that arrived.
    pub fn input(
        &mut self,
        now: u64,
        input: Input,
        rules: &mut dyn Rules,
        out: &mut Vec<ReplicaOutput>,
    ) {
        self.settle(now, out);
        if self.is_leading {
            let mut outputs = Vec::new();
            self.shard.handle(now, input, rules, &mut outputs);
            self.tell(outputs, out);
            return self.relay_heartbeats(now, out);
        }
        self.follow_input(now, input, out);
    }

    /// Does work that is due, in steps that keep the list of outputs short. If some of it is left,
    /// [`Self::next_deadline`] is no later than `now`.
    pub fn advance(&mut self, now: u64, rules: &mut dyn Rules, out: &mut Vec<ReplicaOutput>) {
        self.settle(now, out);
        self.send_snapshots(now, out);
        if !self.is_leading {
            return self.follow_time(now, out);
        }
        for _ in 0..ADVANCES_AT_ONCE {
            if out.len() >= OUT_MAX || !self.is_due(now) {
                break;
            }
            let mut outputs = Vec::new();
            self.shard.advance(now, rules, &mut outputs);
            self.tell(outputs, out);
        }
        self.relay_heartbeats(now, out);
        self.is_behind &= self.shard.is_behind(now);
        if self.is_due(now) {
            return;
        }
        if now >= self.digest_at {
            self.digest_at = now + self.settings.fleet.digest_ms;
            self.send_digest(out);
        }
    }

    /// Whether the shard has work that is due.
    fn is_due(&self, now: u64) -> bool {
        self.shard.next_deadline().is_some_and(|at| at <= now)
    }

    /// When to call [`Self::advance`]. It may be earlier than necessary, but never later.
    pub fn next_deadline(&self) -> Option<u64> {
        let sending = self.snapshots.next_at();
        let relay = self.relay.next_at(self.settings.fleet.relay_ms);
        if self.is_leading {
            let digest = Some(self.digest_at);
            let deadlines = [self.shard.next_deadline(), digest, relay, sending];
            return deadlines.into_iter().flatten().min();
        }
        if self.role == Role::None {
            return self.forget_at;
        }
        let catching_up = self.catching_up.as_ref().map(CatchingUp::next_deadline);
        let waits = self.waits_since.map(|_| self.digest_at);
        let following = self.shard.follow_deadline();
        let deadlines = [following, catching_up, waits, relay, sending];
        deadlines.into_iter().flatten().min()
    }

    /// The epoch of what this replica publishes.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether it decides and publishes.
    pub fn is_leading(&self, now: u64) -> bool {
        self.is_leading && (now < self.until || self.skips(Mutation::NoLease))
    }

    /// The epoch of the owner whose complete state this replica holds. `None` if it holds no
    /// complete state.
    pub fn complete_epoch(&self) -> Option<u64> {
        (self.is_complete && self.role != Role::None).then_some(self.epoch)
    }

    /// The shard.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// All ids that this replica refers to, as numbers.
    pub fn ids(&self) -> RoaringBitmap {
        let catching_up = self.catching_up.as_ref().map(CatchingUp::ids);
        let known = self.shard.ids() | self.told_viewers.ids() | self.snapshots.ids();
        known | catching_up.unwrap_or_default()
    }

    /// The shard, mutable, so that its changed records can be stored.
    pub fn shard_mut(&mut self) -> &mut Shard {
        &mut self.shard
    }

    /// Forgets the whole state.
    fn forget(&mut self, out: &mut Vec<ReplicaOutput>) {
        self.forget_at = None;
        self.is_first = false;
        self.last_led_epoch = 0;
        self.snapshots = Snapshots::default();
        let mut nobody = self.shard.replacement();
        nobody.keep_standby_records(true);
        self.replace_shard(nobody, ToldViewers::default(), out);
    }

    /// Replaces the shard and what its viewers were told, and discards the old ones.
    fn replace_shard(
        &mut self,
        shard: Shard,
        told_viewers: ToldViewers,
        out: &mut Vec<ReplicaOutput>,
    ) {
        let shard = std::mem::replace(&mut self.shard, shard);
        let told_viewers = std::mem::replace(&mut self.told_viewers, told_viewers);
        out.push(ReplicaOutput::Discard(Discarded(Arc::new((
            shard,
            told_viewers,
        )))));
    }

    /// Begins or stops leading, according to the role and the lease.
    fn settle(&mut self, now: u64, out: &mut Vec<ReplicaOutput>) {
        let Role::Lead { epoch, previous } = &self.role else {
            return;
        };
        let may_lead = now < self.until || self.skips(Mutation::NoLease);
        if self.is_leading == may_lead {
            return;
        }
        if self.is_leading {
            return self.stop_leading();
        }
        let (epoch, previous) = (*epoch, previous.clone());
        if self.epoch == epoch {
            // The lease had expired, and no other node has taken the shard. If an input was lost
            // meanwhile, `is_complete` is false.
            let is_complete = self.is_complete;
            self.is_first &= is_complete;
            self.shard.set_first_owner(self.is_first);
            self.announce_break(out);
            return self.lead(now, is_complete);
        }
        if self.wait_for_previous_owner(now, &previous, out) {
            return;
        }
        let is_complete = self.is_complete && self.epoch == previous.epoch && previous.epoch > 0;
        self.is_first = previous.epoch == 0 || (is_complete && self.is_first);
        let is_successor = self.last_led_epoch > 0 && self.last_led_epoch == previous.epoch;
        self.has_ledger = self.is_first || (is_successor && self.has_ledger);
        self.last_led_epoch = epoch;
        self.catching_up = None;
        self.partial = PartialMessage::default();
        self.waits_since = None;
        (self.epoch, self.seq) = (epoch, 1);
        self.shard.renumber();
        let digest = self.ledger_digest();
        debug_assert_eq!(digest, self.rebuilt_told_viewers().digest());
        self.send(1, StandbyContent::Begin(digest), out);
        self.shard.set_first_owner(self.is_first);
        self.lead(now, is_complete);
    }

    fn lead(&mut self, now: u64, is_complete: bool) {
        let is_complete = is_complete || self.skips(Mutation::NoCatchUp);
        if !self.skips(Mutation::NoDecisions) {
            self.shard.lead(now, is_complete);
        }
        self.told_viewers
            .keep_departed(|user| self.shard.remembers(user));
        self.begin_relay(now);
        self.is_leading = true;
        self.is_behind = true;
        self.is_complete = true;
        self.differed = [0; PARTS];
        self.digest_at = now + self.settings.fleet.digest_ms;
    }

    /// Whether to wait for the last messages of the previous owner, which handed the shard over to
    /// this node. The wait is short: an owner that isn't sure is better than none.
    fn wait_for_previous_owner(
        &mut self,
        now: u64,
        previous: &PreviousOwner,
        out: &mut Vec<ReplicaOutput>,
    ) -> bool {
        let Some((_, seq)) = &previous.handed_over else {
            return false;
        };
        let has_all = self.epoch == previous.epoch && self.seq >= *seq;
        if (self.is_complete && has_all) || self.skips(Mutation::NoCatchUp) {
            return false;
        }
        let since = *self.waits_since.get_or_insert(now);
        let wait_ms = self.settings.fleet.answer_ms;
        if now >= since + wait_ms {
            return false;
        }
        self.digest_at = since + wait_ms;
        // Messages that are still on their way get some time to arrive first.
        if now >= since + wait_ms / 4 && self.catching_up.is_none() {
            self.catch_up(now, CatchUpReason::Gap, out);
        }
        true
    }

    /// The digest of the ledger. Rebuilds `told_viewers` if they no longer match the ledger.
    fn ledger_digest(&mut self) -> u64 {
        if self.told_viewers.len() != self.shard.online_users() {
            self.told_viewers = self.rebuilt_told_viewers();
        }
        self.told_viewers.digest()
    }

    fn rebuilt_told_viewers(&self) -> ToldViewers {
        ToldViewers::of(self.shard.ledger(), self.shard.departures(), &self.names)
    }

    fn skips(&self, mutation: Mutation) -> bool {
        self.settings.mutation == mutation
    }
}

#[cfg(test)]
mod tests;
