//! One node of a fleet: its view of the fleet's bucket, what it writes there, and its part in each
//! shard.
//!
//! The bucket has an entry per node, which is the node's lease, and an entry per shard, which names
//! the owner. Only leases are renewed, so the number of writes doesn't grow with the number of
//! shards. An owner's entry is valid as long as the *session* that it names: the lease of one run
//! of one node. A node that sees that a lease has not been renewed in time deletes it. Then the
//! session is over for good, and its shards may be taken, each by one compare-and-swap. The
//! revision of that write is the new owner's epoch.
//!
//! The run loop's contract: pass on every observed change of the bucket, the outcome of each write
//! and read, and what other nodes report; call [`Member::advance`] when [`Member::next_deadline`]
//! has come; carry out all outputs in order.

mod entries;
mod shards;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use self::entries::{Key, NodeEntry, OwnerEntry};
use self::shards::ShardView;
use super::FleetSettings;
use super::lease::{Lease, Renewal, WriteOutcome};
use super::replica::Role;

/// What the node is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberOutput {
    /// Write this into the bucket, if `revision` is still the key's last revision. Report the
    /// outcome by [`Member::written`].
    Write {
        /// The number of the write.
        id: u64,
        /// The key.
        key: Key,
        /// The value, as JSON. `None`: delete the key.
        value: Option<String>,
        /// The key's last revision; 0 for a key that never existed.
        revision: u64,
    },
    /// Read this key, and report its value by [`Member::read`].
    Read(Key),
    /// The node has this part in the shard of this number from now on.
    Role(u32, Role),
    /// The node may rely on its lease until this time.
    Until(u64),
    /// The session is over, and a new one has begun. The node owns nothing any more.
    SessionLost,
    /// The node has left, and may stop.
    Left,
}

/// What a node knows of a key of the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known<T> {
    /// None if the key was deleted, or never existed.
    entry: Option<T>,
    revision: u64,
    /// When this node saw that revision.
    seen_at: u64,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self {
            entry: None,
            revision: 0,
            seen_at: 0,
        }
    }
}

/// A node of a fleet.
#[derive(Debug)]
pub struct Member {
    settings: FleetSettings,
    name: Arc<str>,
    session: u64,
    /// Which placement of shards the fleet uses: it enters the hash, beside the shard's number and
    /// the nodes' names.
    placement: u64,
    lease: Lease,
    nodes: BTreeMap<Arc<str>, Known<NodeEntry>>,
    shards: Vec<ShardView>,
    /// The nodes that live and don't leave, in a stable order, and whether each is closed.
    candidates: Vec<(Arc<str>, bool)>,
    /// The writes whose outcome is still unknown.
    writes: BTreeMap<u64, Write>,
    write_id: u64,
    leaving: Leaving,
    is_closed: bool,
    /// The earliest time for deleting the own lease, while the node leaves.
    delete_lease_from: u64,
    /// Whether the node has begun to delete its lease: it has no part in any shard any more.
    is_retired: bool,
    until: Option<u64>,
    /// Whether the bucket was reached recently, as of the last check.
    was_in_touch: bool,
    out: Vec<MemberOutput>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Write {
    Renewal(u64),
    Owner(u32),
    ExpiredLeaseDeletion,
    OwnLeaseDeletion,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    Stays,
    /// The node hands over the shards that it owns.
    Leaves,
    /// The node owns nothing any more, and its lease is being deleted.
    DeletesLease,
    Left,
}

impl Member {
    /// A node that joins in this session. No two sessions of a node have the same number.
    pub fn new(settings: FleetSettings, name: &str, session: u64, shards: u32) -> Self {
        Self {
            settings,
            name: name.into(),
            session,
            placement: 0,
            lease: Lease::new(settings, 0),
            nodes: BTreeMap::new(),
            shards: (0..shards).map(ShardView::new).collect(),
            candidates: Vec::new(),
            writes: BTreeMap::new(),
            write_id: 0,
            leaving: Leaving::Stays,
            is_closed: false,
            delete_lease_from: 0,
            is_retired: false,
            until: None,
            was_in_touch: false,
            out: Vec::new(),
        }
    }

    /// Sets the number by which the fleet places its shards. All nodes of a fleet use the same
    /// number.
    pub fn placed_by(self, placement: u64) -> Self {
        Self { placement, ..self }
    }

    /// Sets whether the node begins as closed: see [`Self::set_closed`].
    pub fn begins_closed(self, is_closed: bool) -> Self {
        Self { is_closed, ..self }
    }

    /// A key has changed. `value` is None if it was deleted. Changes that are seen twice, or late,
    /// are ignored.
    pub fn changed(&mut self, now: u64, key: &Key, value: Option<&str>, revision: u64) {
        match key {
            Key::Node(node) => self.node_changed(now, node, value, revision),
            Key::Owner(shard) => {
                let entry = value.and_then(OwnerEntry::parse);
                if let Some(view) = self.shards.get_mut(*shard as usize) {
                    view.changed(now, entry, revision);
                }
            }
        }
        self.review(now);
    }

    /// Takes the outcome of a write.
    pub fn written(&mut self, now: u64, id: u64, outcome: WriteOutcome) {
        match self.writes.remove(&id) {
            Some(Write::Renewal(count)) => {
                self.lease.written(count, outcome);
                self.renew(now);
            }
            Some(Write::Owner(shard)) => {
                if let Some(view) = self.shards.get_mut(shard as usize) {
                    view.written(now, outcome);
                    if outcome != WriteOutcome::Unknown {
                        self.out.push(MemberOutput::Read(Key::Owner(shard)));
                    }
                }
            }
            Some(Write::OwnLeaseDeletion) => match outcome {
                WriteOutcome::Stored(_) | WriteOutcome::Refused => {
                    self.leaving = Leaving::Left;
                    self.out.push(MemberOutput::Left);
                }
                WriteOutcome::Unknown => {
                    self.leaving = Leaving::Leaves;
                    self.delete_lease_from = now + self.settings.lease_ms / 6;
                }
            },
            Some(Write::ExpiredLeaseDeletion) | None => {}
        }
        self.review(now);
    }

    /// Takes the result of [`MemberOutput::Read`]: the key's value, None if it was deleted, and its
    /// revision, 0 if it never existed. `None`: the key couldn't be read.
    pub fn read(&mut self, now: u64, key: &Key, found: Option<(Option<&str>, u64)>) {
        if let Some((value, revision)) = found {
            if matches!(key, Key::Node(node) if *node == self.name) {
                self.lease.read();
            }
            if revision == 0 {
                self.removed(now, key);
            }
            self.changed(now, key, value, revision);
        } else {
            self.review(now);
        }
    }

    /// A node reports that it holds everything that the shard's owner of this epoch had told up to
    /// this sequence number.
    pub fn synced(&mut self, now: u64, shard: u32, (epoch, seq): (u64, u64), node: &str) {
        if let Some(view) = self.shards.get_mut(shard as usize) {
            view.synced(now, (epoch, seq), node);
        }
        self.review(now);
    }

    /// The replica of a shard on this node holds the complete state of the owner of this epoch.
    /// `None`: it holds no complete state.
    pub fn holds(&mut self, shard: u32, epoch: Option<u64>) {
        if let Some(view) = self.shards.get_mut(shard as usize) {
            view.holds = epoch;
        }
    }

    /// A replica on this node has resigned. `seq` is the number of its last message to the standbys
    /// in its epoch, and the broker has everything that it published.
    pub fn resigned(&mut self, now: u64, shard: u32, epoch: u64, seq: u64) {
        if let Some(view) = self.shards.get_mut(shard as usize) {
            view.resigned(epoch, seq);
        }
        self.review(now);
    }

    /// Sets whether the node can't decide on anybody, for example because it has no directory.
    /// Other nodes then own the shards, as long as one of them can decide. Returns whether this is
    /// a change.
    pub fn set_closed(&mut self, now: u64, is_closed: bool) -> bool {
        let is_new = std::mem::replace(&mut self.is_closed, is_closed) != is_closed;
        if is_new {
            self.lease.write_again();
            self.review(now);
        }
        is_new
    }

    /// The node leaves: it hands over the shards that it owns, and then outputs
    /// [`MemberOutput::Left`].
    pub fn leave(&mut self, now: u64) {
        if self.leaving == Leaving::Stays {
            self.leaving = Leaving::Leaves;
            self.lease.write_again();
        }
        self.review(now);
    }

    /// Does what is due.
    pub fn advance(&mut self, now: u64) {
        self.review(now);
    }

    /// What the node is to do, in order.
    pub fn outputs(&mut self) -> impl Iterator<Item = MemberOutput> {
        self.out.drain(..)
    }

    /// Gives up the session, because the state on this node can't be relied on any more. A new
    /// session begins, and other nodes take the shards that this node owned.
    pub fn give_up_session(&mut self, now: u64) {
        if self.leaving == Leaving::Stays {
            self.begin_session();
        }
        self.review(now);
    }

    /// The owner of each shard, as far as this node knows. `None`: nobody owns it.
    pub fn owners(&self) -> impl Iterator<Item = Option<&Arc<str>>> {
        self.shards.iter().map(|shard| {
            let owner = shard.owner()?;
            let (name, known) = self.nodes.get_key_value(&*owner.node)?;
            let session = known.entry.as_ref()?.session;
            (session == owner.session).then_some(name)
        })
    }

    /// The nodes that live, as far as this one knows.
    pub fn living(&self) -> impl Iterator<Item = &Arc<str>> {
        let living = self.nodes.iter().filter(|(_, known)| known.entry.is_some());
        living.map(|(name, _)| name)
    }

    /// Until when the node may rely on its lease. `None` if it doesn't hold one.
    pub fn until(&self) -> Option<u64> {
        self.lease.until()
    }

    /// The name of the node.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether the node has reached the bucket recently, so that messages of others can reach it,
    /// too. While it hasn't, it can't distinguish a silent connection from one whose messages it
    /// doesn't receive.
    pub fn is_in_touch(&self, now: u64) -> bool {
        self.lease.is_in_touch(now)
    }

    /// When to call [`Self::advance`]. It may be earlier than necessary, but never later.
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        let lasts_ms = self.settings.lease_ms + self.settings.margin_ms;
        let deaths = self
            .nodes
            .iter()
            .filter(|(name, known)| known.entry.is_some() && **name != self.name);
        let deaths = deaths.map(|(_, known)| known.seen_at.saturating_add(lasts_ms));
        let shards = self.shards.iter().filter_map(ShardView::next_deadline);
        let lease = self.lease.next_deadline(now).into_iter();
        let lease_deletion = (self.leaving == Leaving::Leaves).then_some(self.delete_lease_from);
        let lease_deletion = lease_deletion.filter(|at| *at > now);
        deaths
            .chain(shards)
            .chain(lease)
            .chain(lease_deletion)
            .min()
    }

    fn node_changed(&mut self, now: u64, node: &Arc<str>, value: Option<&str>, revision: u64) {
        let entry = value.and_then(NodeEntry::parse);
        if *node == self.name {
            let ours = entry.as_ref().filter(|entry| entry.session == self.session);
            self.lease.seen(revision, ours.map(|entry| entry.count));
        }
        let known = self.nodes.entry(Arc::clone(node)).or_default();
        if revision > known.revision {
            let session = |entry: &Option<NodeEntry>| entry.as_ref().map(|entry| entry.session);
            let session_changed = session(&known.entry) != session(&entry);
            *known = Known {
                entry,
                revision,
                seen_at: now,
            };
            if session_changed {
                // What the node held in its earlier session, it doesn't hold now.
                for shard in &mut self.shards {
                    shard.session_changed(node);
                }
            }
        }
    }

    /// The bucket has no trace of a key: it never existed, or it was removed in a way other than a
    /// deletion, of which the watch doesn't tell.
    fn removed(&mut self, now: u64, key: &Key) {
        match key {
            Key::Node(node) => {
                if *node == self.name {
                    self.lease.removed();
                }
                if let Some(known) = self.nodes.get_mut(node) {
                    *known = Known {
                        seen_at: now,
                        ..Known::default()
                    };
                    for shard in &mut self.shards {
                        shard.session_changed(node);
                    }
                }
            }
            Key::Owner(shard) => {
                if let Some(view) = self.shards.get_mut(*shard as usize) {
                    view.removed(now);
                }
            }
        }
    }

    /// Checks everything that may have changed.
    fn review(&mut self, now: u64) {
        if self.leaving == Leaving::Left {
            return;
        }
        if self.lease.is_lost() && self.leaving != Leaving::DeletesLease {
            self.begin_session();
        }
        self.renew(now);
        self.end_dead_leases(now);
        let until = self.lease.until();
        if until != self.until
            && let Some(until) = until
        {
            self.out.push(MemberOutput::Until(until));
        }
        self.until = until;
        if !self.is_retired {
            self.review_shards(now);
        }
        self.delete_own_lease(now);
    }

    fn begin_session(&mut self) {
        self.session += 1;
        self.writes
            .retain(|_, write| !matches!(write, Write::Renewal(_)));
        let revision = self.nodes.get(&self.name).map_or(0, |known| known.revision);
        self.lease = Lease::new(self.settings, revision);
        self.until = None;
        self.out.push(MemberOutput::SessionLost);
    }

    fn renew(&mut self, now: u64) {
        if matches!(self.leaving, Leaving::DeletesLease | Leaving::Left) {
            return;
        }
        match self.lease.poll(now) {
            Renewal::Send { count, revision } => {
                let entry = NodeEntry {
                    session: self.session,
                    count,
                    leaving: self.leaving != Leaving::Stays,
                    closed: self.is_closed,
                };
                let key = Key::Node(Arc::clone(&self.name));
                self.write(Write::Renewal(count), key, Some(entry.to_json()), revision);
            }
            Renewal::Read => {
                let key = Key::Node(Arc::clone(&self.name));
                self.out.push(MemberOutput::Read(key));
            }
            Renewal::Wait => {}
        }
    }

    /// Deletes the leases that were not renewed in time. The first node that does so ends a lease.
    /// If the lease was renewed meanwhile, its revision has changed, and the deletion is refused.
    ///
    /// Only time in which this node itself reached the bucket counts. Otherwise all leases would
    /// seem to have expired after an outage of the bucket.
    fn end_dead_leases(&mut self, now: u64) {
        let lasts_ms = self.settings.lease_ms + self.settings.margin_ms;
        let is_in_touch = self.lease.is_in_touch(now);
        let was_in_touch = std::mem::replace(&mut self.was_in_touch, is_in_touch);
        if is_in_touch && !was_in_touch {
            for known in self.nodes.values_mut() {
                known.seen_at = now;
            }
        }
        if !is_in_touch {
            return;
        }
        let mut dead = Vec::new();
        for (name, known) in &mut self.nodes {
            if *name != self.name
                && known.entry.is_some()
                && now >= known.seen_at.saturating_add(lasts_ms)
            {
                // If this attempt fails, the next one is due then.
                known.seen_at = now.saturating_sub(lasts_ms) + self.settings.lease_ms / 6;
                dead.push((Key::Node(Arc::clone(name)), known.revision));
            }
        }
        for (key, revision) in dead {
            self.write(Write::ExpiredLeaseDeletion, key, None, revision);
        }
    }

    fn review_shards(&mut self, now: u64) {
        let is_held = self.lease.until().is_some_and(|until| now < until);
        let candidates = self.nodes.iter().filter_map(|(node, known)| {
            let entry = known.entry.as_ref().filter(|entry| !entry.leaving)?;
            Some((node, entry.closed))
        });
        let known = self.candidates.iter().map(|(node, closed)| (node, *closed));
        if !candidates.clone().eq(known) {
            let candidates = candidates.map(|(node, closed)| (Arc::clone(node), closed));
            self.candidates = candidates.collect();
            for shard in &mut self.shards {
                shard.rank(self.placement, &self.candidates);
            }
        }
        let nodes = &self.nodes;
        let view = shards::Fleet {
            settings: &self.settings,
            me: &self.name,
            my_session: self.session,
            is_held,
            session: &|node| Some(nodes.get(node)?.entry.as_ref()?.session),
        };
        let mut wanted = Vec::new();
        for shard in &mut self.shards {
            let number = shard.number();
            let done = shard.review(now, &view);
            if let Some(role) = done.role {
                self.out.push(MemberOutput::Role(number, role));
            }
            if let Some((entry, revision)) = done.write {
                wanted.push((number, entry, revision));
            }
            if done.read {
                self.out.push(MemberOutput::Read(Key::Owner(number)));
            }
        }
        for (shard, entry, revision) in wanted {
            let value = Some(entry.to_json());
            self.write(Write::Owner(shard), Key::Owner(shard), value, revision);
        }
    }

    /// Deletes the node's own lease, if the node leaves and owns nothing any more, or no other node
    /// is there to take over. The others then needn't wait for the lease to expire.
    fn delete_own_lease(&mut self, now: u64) {
        if self.leaving != Leaving::Leaves
            || now < self.delete_lease_from
            || !self.is_known_to_leave()
        {
            return;
        }
        let others = self.nodes.iter().any(|(name, known)| {
            *name != self.name && known.entry.as_ref().is_some_and(|entry| !entry.leaving)
        });
        let owns = |shard: &ShardView| shard.is_owned_by(&self.name, self.session);
        if others && self.shards.iter().any(owns) {
            return;
        }
        self.leaving = Leaving::DeletesLease;
        self.is_retired = true;
        let revision = self.nodes.get(&self.name).map_or(0, |known| known.revision);
        let key = Key::Node(Arc::clone(&self.name));
        for shard in &mut self.shards {
            if let Some(role) = shard.retire() {
                self.out.push(MemberOutput::Role(shard.number(), role));
            }
        }
        self.write(Write::OwnLeaseDeletion, key, None, revision);
    }

    /// Whether the node has seen in the bucket that its own entry says that it leaves.
    fn is_known_to_leave(&self) -> bool {
        let known = self
            .nodes
            .get(&self.name)
            .and_then(|known| known.entry.as_ref());
        known.is_some_and(|entry| entry.session == self.session && entry.leaving)
    }

    fn write(&mut self, write: Write, key: Key, value: Option<String>, revision: u64) {
        self.write_id += 1;
        self.writes.insert(self.write_id, write);
        self.out.push(MemberOutput::Write {
            id: self.write_id,
            key,
            value,
            revision,
        });
    }
}

#[cfg(test)]
mod tests;
