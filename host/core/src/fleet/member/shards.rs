//! A node's view of one shard in the fleet's bucket: who owns it, who should own it, and what this
//! node does about it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Known;
use super::entries::OwnerEntry;
use crate::fleet::FleetSettings;
use crate::fleet::hash;
use crate::fleet::lease::WriteOutcome;
use crate::fleet::replica::{PreviousOwner, Role};

/// The previous epoch in the entry of an owner who can't know it. No owner ever has this epoch:
/// revision 1 of the bucket is its configuration.
const UNKNOWN_EPOCH: u64 = 1;

/// What this node knows of the fleet.
pub(super) struct Fleet<'a> {
    pub(super) settings: &'a FleetSettings,
    pub(super) me: &'a Arc<str>,
    pub(super) my_session: u64,
    /// Whether this node may rely on its lease.
    pub(super) is_held: bool,
    /// The session of a node, if the node lives.
    pub(super) session: &'a dyn Fn(&str) -> Option<u64>,
}

/// The outcome of reviewing a shard.
#[derive(Debug, Default)]
pub(super) struct ReviewOutcome {
    pub(super) role: Option<Role>,
    pub(super) write: Option<(OwnerEntry, u64)>,
    pub(super) read: bool,
}

/// One shard.
#[derive(Debug)]
pub(super) struct ShardView {
    number: u32,
    /// The nodes that live and don't leave, by descending rank for this shard.
    ranks: Vec<Arc<str>>,
    owner: Known<OwnerEntry>,
    /// Whether there was an entry, and it has vanished without a trace.
    was_removed: bool,
    role: Role,
    /// The epoch of the owner whose complete state the replica on this node holds.
    pub(super) holds: Option<u64>,
    /// For each node that reported that it holds everything that the owner has told: the epoch, the
    /// sequence number, and when it reported.
    synced: BTreeMap<Arc<str>, (u64, u64, u64)>,
    /// Since when nobody has owned the shard.
    vacant_since: Option<u64>,
    /// When a write was sent whose outcome is still unknown.
    writing_since: Option<u64>,
    /// Whether the outcome of a write is unknown, so that the entry must be read.
    is_doubtful: bool,
    hand_over: Option<HandOver>,
    /// Since when the shard could be handed to the node that should own it, while some of the
    /// future standbys don't hold its state yet.
    waits_since: Option<u64>,
    /// When to review the shard again.
    due: Option<u64>,
}

/// A hand-over in progress.
#[derive(Debug)]
struct HandOver {
    to: Arc<str>,
    since: u64,
    epoch: u64,
    /// The sequence number of the last message, once the replica has resigned.
    last_seq: Option<u64>,
    /// Whether a write that names the new owner was sent. It may still be stored.
    is_written: bool,
}

impl ShardView {
    pub(super) fn new(number: u32) -> Self {
        Self {
            number,
            ranks: Vec::new(),
            owner: Known::default(),
            was_removed: false,
            role: Role::None,
            holds: None,
            synced: BTreeMap::new(),
            vacant_since: None,
            writing_since: None,
            is_doubtful: false,
            hand_over: None,
            waits_since: None,
            due: None,
        }
    }

    /// The shard's entry in the bucket.
    pub(super) fn owner(&self) -> Option<&OwnerEntry> {
        self.owner.entry.as_ref()
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Ranks the nodes that live and don't leave. Those that are closed come last.
    pub(super) fn rank(&mut self, placement: u64, nodes: &[(Arc<str>, bool)]) {
        let ranked = |closed| {
            let nodes = nodes.iter().filter(move |(_, is)| *is == closed);
            hash::rank(placement, self.number, nodes.map(|(node, _)| &**node))
        };
        let ranks = [ranked(false), ranked(true)].concat();
        self.ranks = ranks.into_iter().map(Arc::from).collect();
    }

    pub(super) fn changed(&mut self, now: u64, entry: Option<OwnerEntry>, revision: u64) {
        if revision > self.owner.revision {
            self.owner = Known {
                entry,
                revision,
                seen_at: now,
            };
            self.hand_over = None;
            self.vacant_since = None;
        }
        self.writing_since = None;
        self.is_doubtful = false;
    }

    /// The entry has vanished, though nobody has deleted it.
    pub(super) fn removed(&mut self, now: u64) {
        if self.owner.revision == 0 {
            return;
        }
        self.owner = Known {
            seen_at: now,
            ..Known::default()
        };
        self.was_removed = true;
        self.hand_over = None;
        self.vacant_since = None;
    }

    pub(super) fn written(&mut self, now: u64, outcome: WriteOutcome) {
        match outcome {
            // The entry is read next, and says who owns the shard.
            WriteOutcome::Stored(_) | WriteOutcome::Refused => self.writing_since = Some(now),
            WriteOutcome::Unknown => {
                self.writing_since = None;
                self.is_doubtful = true;
            }
        }
    }

    pub(super) fn synced(&mut self, now: u64, (epoch, seq): (u64, u64), node: &str) {
        self.synced.insert(node.into(), (epoch, seq, now));
    }

    /// A node is gone, or has a new session: its reports don't count any more.
    pub(super) fn session_changed(&mut self, node: &str) {
        self.synced.remove(node);
    }

    pub(super) fn resigned(&mut self, epoch: u64, seq: u64) {
        if let Some(hand_over) = self.hand_over.as_mut().filter(|it| it.epoch == epoch) {
            hand_over.last_seq = Some(seq);
        }
    }

    pub(super) fn is_owned_by(&self, node: &str, session: u64) -> bool {
        let entry = self.owner.entry.as_ref();
        entry.is_some_and(|entry| *entry.node == *node && entry.session == session)
    }

    /// This node leaves the fleet, and has no part in the shard any more.
    pub(super) fn retire(&mut self) -> Option<Role> {
        self.set_role(Role::None)
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.due
    }

    /// Decides what to do about the shard now.
    pub(super) fn review(&mut self, now: u64, fleet: &Fleet<'_>) -> ReviewOutcome {
        let ranks = std::mem::take(&mut self.ranks);
        let owner = self.owner.entry.as_ref();
        let owner = owner.filter(|owner| (fleet.session)(&owner.node) == Some(owner.session));
        let owner = owner.cloned();
        let mut outcome = ReviewOutcome::default();
        self.due = None;
        let role = match owner {
            Some(owner) if self.is_owned_by(fleet.me, fleet.my_session) => {
                self.own(now, &owner, &ranks, fleet, &mut outcome)
            }
            Some(owner) => {
                self.hand_over = None;
                self.vacant_since = None;
                self.follow(&owner, &ranks, fleet)
            }
            None => {
                self.hand_over = None;
                self.claim(now, &ranks, fleet, &mut outcome)
            }
        };
        if outcome.write.is_some() {
            self.due = Some(now + fleet.settings.lease_ms / 3);
        }
        self.ranks = ranks;
        outcome.role = self.set_role(role);
        outcome
    }

    fn set_role(&mut self, role: Role) -> Option<Role> {
        if self.role == role {
            return None;
        }
        self.role = role.clone();
        Some(role)
    }

    /// This node owns the shard: it leads, or hands the shard over to the node that should own it,
    /// as soon as that node holds everything.
    fn own(
        &mut self,
        now: u64,
        owner: &OwnerEntry,
        ranks: &[Arc<str>],
        fleet: &Fleet<'_>,
        outcome: &mut ReviewOutcome,
    ) -> Role {
        let epoch = self.owner.revision;
        let handed_over = owner.handed_over.as_ref();
        let lead = Role::Lead {
            epoch,
            previous: PreviousOwner {
                epoch: owner.before,
                handed_over: handed_over.map(|(node, _, seq)| (Arc::from(&**node), *seq)),
            },
        };
        if self.check_writing(now, fleet, outcome) {
            return match self.hand_over {
                Some(_) => Role::Resign { epoch },
                None => lead,
            };
        }
        if let Some(hand_over) = &mut self.hand_over {
            if !fleet.is_held {
                return Role::Resign { epoch };
            }
            let late_at = hand_over.since + fleet.settings.answer_ms;
            let synced = self.synced.get(&hand_over.to);
            let has_all = hand_over.last_seq.is_some_and(|last| {
                synced.is_some_and(|(of, seq, _)| *of == epoch && *seq >= last)
            });
            let session = (fleet.session)(&hand_over.to).filter(|_| ranks.contains(&hand_over.to));
            let entry = |node: &str, session, handed_over| OwnerEntry {
                node: node.into(),
                session,
                handed_over,
                before: epoch,
            };
            match (hand_over.last_seq.filter(|_| has_all), session) {
                (Some(last), Some(session)) if now < late_at => {
                    hand_over.is_written = true;
                    let from = (Box::from(&**fleet.me), epoch, last);
                    outcome.write = Some((entry(&hand_over.to, session, Some(from)), epoch));
                    self.writing_since = Some(now);
                }
                (_, Some(_)) if now < late_at => self.due = Some(late_at),
                // A write that names the other may still be in progress. At most one of the two
                // writes can succeed.
                _ if hand_over.is_written => {
                    outcome.write = Some((entry(fleet.me, fleet.my_session, None), epoch));
                    self.writing_since = Some(now);
                }
                _ => {
                    // The hand-over is tried again when the other node reports that it is in step.
                    let to = self.hand_over.take().map(|hand_over| hand_over.to);
                    to.map(|to| self.synced.remove(&to));
                    return lead;
                }
            }
            return Role::Resign { epoch };
        }
        let meant = ranks.first().filter(|node| **node != *fleet.me);
        let meant = meant.filter(|node| self.is_synced(now, epoch, node, fleet));
        if meant.is_none() {
            self.waits_since = None;
        }
        if fleet.is_held
            && let Some(meant) = meant
            && self.has_standbys(now, epoch, ranks, fleet)
        {
            self.waits_since = None;
            self.hand_over = Some(HandOver {
                to: Arc::clone(meant),
                since: now,
                epoch,
                last_seq: None,
                is_written: false,
            });
            return Role::Resign { epoch };
        }
        lead
    }

    /// Whether the nodes that will be standbys after the hand-over hold the state, so that the next
    /// owner may die at once. This node is one of those that hold it. The owner waits for them at
    /// most half a lease, and not at all if it leaves.
    fn has_standbys(
        &mut self,
        now: u64,
        epoch: u64,
        ranks: &[Arc<str>],
        fleet: &Fleet<'_>,
    ) -> bool {
        let mut standbys = ranks.iter().skip(1).take(fleet.settings.standbys);
        let holds = |node: &Arc<str>| node == fleet.me || self.is_synced(now, epoch, node, fleet);
        if !ranks.contains(fleet.me) || standbys.all(holds) {
            return true;
        }
        let late_at = *self.waits_since.get_or_insert(now) + fleet.settings.lease_ms / 2;
        if now < late_at {
            self.due = Some(late_at);
        }
        now >= late_at
    }

    /// Another node owns the shard: the nodes that rank next follow it. If the owner isn't the node
    /// that should own the shard, one more node follows, so that the present standby isn't given up
    /// before the hand-over.
    fn follow(&self, owner: &OwnerEntry, ranks: &[Arc<str>], fleet: &Fleet<'_>) -> Role {
        let is_settled = ranks.first().is_none_or(|first| **first == *owner.node);
        let count = fleet.settings.standbys + usize::from(!is_settled);
        let mut others = ranks.iter().filter(|node| ***node != *owner.node);
        match others.position(|node| **node == **fleet.me) {
            Some(place) if place < count => Role::Follow {
                epoch: self.owner.revision,
                owner: Arc::from(&*owner.node),
            },
            _ => Role::None,
        }
    }

    /// Nobody owns the shard: a node that holds its state takes it. After a while, any node takes
    /// it, in the order of ranks.
    fn claim(
        &mut self,
        now: u64,
        ranks: &[Arc<str>],
        fleet: &Fleet<'_>,
        outcome: &mut ReviewOutcome,
    ) -> Role {
        let since = *self.vacant_since.get_or_insert(now);
        let role = match &self.role {
            Role::Follow { .. } => self.role.clone(),
            Role::None | Role::Lead { .. } | Role::Resign { .. } => Role::None,
        };
        let place = ranks.iter().position(|node| node == fleet.me);
        let Some(place) = place.filter(|_| fleet.is_held) else {
            return role;
        };
        if self.check_writing(now, fleet, outcome) {
            return role;
        }
        let place = place as u64;
        let wait_ms = match self.holds == Some(self.owner.revision) && self.owner.revision > 0 {
            true => place * (fleet.settings.lease_ms / 20),
            false => (place + 2) * (fleet.settings.lease_ms / 6),
        };
        self.due = Some(since + wait_ms);
        if now >= since + wait_ms {
            let is_unknown = self.owner.revision == 0 && self.was_removed;
            let mine = OwnerEntry {
                node: (&**fleet.me).into(),
                session: fleet.my_session,
                handed_over: None,
                before: match is_unknown {
                    true => UNKNOWN_EPOCH,
                    false => self.owner.revision,
                },
            };
            outcome.write = Some((mine, self.owner.revision));
            self.writing_since = Some(now);
        }
        role
    }

    /// Whether a write is in progress. If its outcome doesn't become known in time, the entry is
    /// read.
    fn check_writing(&mut self, now: u64, fleet: &Fleet<'_>, outcome: &mut ReviewOutcome) -> bool {
        let wait_ms = fleet.settings.lease_ms / 3;
        match self.writing_since {
            Some(since) if now < since + wait_ms => {
                self.due = Some(since + wait_ms);
                true
            }
            None if !self.is_doubtful => false,
            Some(_) | None => {
                self.writing_since = Some(now);
                self.is_doubtful = false;
                self.due = Some(now + wait_ms);
                outcome.read = true;
                true
            }
        }
    }

    fn is_synced(&self, now: u64, epoch: u64, node: &str, fleet: &Fleet<'_>) -> bool {
        let recent_ms = 3 * fleet.settings.digest_ms;
        let synced = self.synced.get(node);
        synced.is_some_and(|(of, _, at)| *of == epoch && now < at + recent_ms)
    }
}
