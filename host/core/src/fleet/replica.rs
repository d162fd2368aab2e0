//! A shard as one node has it: it leads, it follows the node that leads, or it catches up.
//!
//! The state is one [`Shard`] in all of these, so that one that follows can lead at once. It
//! *leads* while its node owns the shard and may rely on its lease: it decides, and tells those that
//! follow what it is about to publish. Otherwise it takes in the same input, and decides nothing. One
//! that follows knows the number of the last that it was told. If one is missing, or what it holds
//! isn't what the owner holds, it *catches up*: it takes a fresh snapshot, and goes on by what it has
//! heard since it asked. Until then it isn't *sure*, and what it would make of a takeover is
//! cautious: it takes nobody for gone whom it may not have heard, and answers no query before it has
//! heard for a whole time-out.

mod answering;
mod catching_up;
mod following;
mod hearing;
mod sending;
mod telling;

use std::sync::Arc;

use roaring::RoaringBitmap;

use self::catching_up::CatchingUp;
use self::following::Early;
use self::hearing::Hearing;
use self::sending::Snapshots;
use super::FleetSettings;
use super::told::{Books, Pieces, Said};
use crate::digest::PARTS;
use crate::names::Names;
use crate::record::Record;
use crate::rules::Rules;
use crate::{Input, Output, Shard};

/// What a node's part in a shard is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// None.
    None,
    /// It stands by.
    Follow {
        /// The owner's epoch.
        epoch: u64,
        /// The owner.
        owner: Arc<str>,
    },
    /// It owns it.
    Lead {
        /// Its epoch.
        epoch: u64,
        /// Whom it succeeds.
        before: Before,
    },
    /// It owns it, and hands it over: it decides nothing any more.
    Resign {
        /// Its epoch.
        epoch: u64,
    },
}

/// The owner before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// Its epoch; 0 if there was none.
    pub epoch: u64,
    /// Where it handed the shard over: which node that is, and the number of the last that it
    /// told.
    pub told: Option<(Arc<str>, u64)>,
}

/// What a replica held that is of no use any more. It takes long to free, where it is of many users.
#[derive(Clone, Debug)]
pub struct Discarded(Arc<(Shard, Books)>);

impl PartialEq for Discarded {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Discarded {}

/// What a replica wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Out {
    /// Do what the shard wants. What it publishes is of [`Replica::epoch`].
    Shard(Output),
    /// Publish this to those who follow, before all that comes after it.
    Told(Vec<u8>),
    /// Ask a node for a snapshot, by a question of this number.
    Ask {
        /// The node.
        node: Arc<str>,
        /// The number.
        nonce: u64,
    },
    /// Send a chunk of a snapshot to the node that asked.
    Chunk(Arc<str>, Vec<u8>),
    /// Tell the owner that all is held here that it had told by then.
    Synced {
        /// The owner.
        node: Arc<str>,
        /// The epoch.
        epoch: u64,
        /// The number of the last that it told.
        seq: u64,
    },
    /// All has been told: once what was published before has reached the broker, the shard may
    /// be handed over.
    Resigned {
        /// The epoch.
        epoch: u64,
        /// The number of the last that was told.
        seq: u64,
    },
    /// Count that what is held here was not what the owner holds.
    Differed(Difference),
    /// Free this where no event waits for it.
    Discard(Discarded),
}

/// Why a replica catches up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// It has just begun to follow.
    Begins,
    /// Something that was told is missing.
    Gap,
    /// What was told doesn't fit what is held here.
    Mismatch,
    /// The ledgers differ.
    Ledger,
    /// The connections differ.
    Connections,
    /// Inputs were lost on the way here.
    LostInput,
    /// Another owner has begun, and nothing was heard of it.
    Silence,
}

/// What a replica is, beside its shard.
#[derive(Clone, Debug)]
pub struct ReplicaSettings {
    /// The fleet's figures.
    pub fleet: FleetSettings,
    /// This node.
    pub node: Arc<str>,
    /// The tracker's timeout: for so long a shard that isn't sure answers no query.
    pub timeout_ms: u64,
    /// How long the chunks of a snapshot are.
    pub chunk_bytes: usize,
    /// How long a message to those who follow may be, in bytes. A longer one goes in pieces.
    pub told_bytes: usize,
    /// From how many heartbeats within `heard_ms` on those who follow are told of them, and needn't
    /// take them in.
    pub told_from: usize,
    /// What is left out, for tests of the tests.
    pub mutation: Mutation,
}

/// What can be left out of the protocol, to see that this is noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutation {
    /// Nothing.
    #[default]
    None,
    /// One that begins to follow takes no snapshot.
    NoCatchUp,
    /// One that takes over announces and decides nothing.
    NoDecisions,
    /// An owner goes on when its lease has ended.
    NoLease,
    /// Those who follow are told nothing.
    NoTelling,
    /// Those who follow are told of no heartbeats, though they take in none.
    NoHeartbeats,
    /// Those who follow take in nothing that applications state, and nobody compares that.
    NoStatements,
    /// Those who follow compare no connections, statuses and statements.
    NoComparison,
}

/// A shard as one node has it.
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
    /// Whether all is held that the owner of `epoch` had told up to `seq`, and all has been heard
    /// since.
    is_sure: bool,
    epoch: u64,
    seq: u64,
    books: Books,
    /// Those of a message that isn't whole yet.
    pieces: Pieces,
    /// What is of an epoch of which the bucket hasn't told yet.
    early: Early,
    catching_up: Option<CatchingUp>,
    hearing: Hearing,
    /// Snapshots that are sent.
    snapshots: Snapshots,
    nonce: u64,
    /// When digests are told next, or else when something is to be heard of the owner.
    digest_at: u64,
    /// How often in a row connections have differed, part by part.
    differed: [u8; PARTS],
    /// Whether what was missed before it led is still to be announced.
    is_behind: bool,
    /// Since when it has been to lead, and waits for what the owner before told last.
    waits_since: Option<u64>,
    /// Whether what is held here goes back to the shard's first owner without a break: there was
    /// nothing before that a client could know.
    is_first: bool,
    /// The epoch in which it led last; 0 if it didn't, or has forgotten that.
    led: u64,
    /// Whether all is known that viewers have been told.
    has_ledger: bool,
    /// When what is held here is forgotten, since the node has no part in the shard.
    forget_at: Option<u64>,
}

/// How much may come of what has fallen due at once.
const OUT_MAX: usize = 256;

/// How often a shard is asked at once to do what has fallen due, before inputs have their turn.
/// Each time it decides on a few users.
const ADVANCES_AT_ONCE: usize = 8;

impl Replica {
    /// A replica of a shard that knows nothing yet.
    pub fn new(
        number: u32,
        settings: ReplicaSettings,
        names: Arc<Names>,
        mut shard: Shard,
    ) -> Self {
        shard.keep_told(true);
        Self {
            settings,
            number,
            names,
            shard,
            role: Role::None,
            until: 0,
            is_leading: false,
            is_sure: false,
            epoch: 0,
            seq: 0,
            books: Books::default(),
            pieces: Pieces::default(),
            early: Early::default(),
            catching_up: None,
            hearing: Hearing::default(),
            snapshots: Snapshots::default(),
            nonce: 0,
            digest_at: 0,
            differed: [0; PARTS],
            is_behind: false,
            waits_since: None,
            is_first: false,
            led: 0,
            has_ledger: false,
            forget_at: None,
        }
    }

    /// Puts back what the node's disk has, before anything else: what there is to begin with if
    /// no other node has anything newer. It was stored `down_ms` ago.
    pub fn restore(&mut self, now: u64, down_ms: u64, records: impl IntoIterator<Item = Record>) {
        self.shard.restore(now, down_ms, records);
        self.shard.renew_leases(now);
        self.books = self.books_anew();
    }

    /// The node has another part in the shard.
    pub fn set_role(&mut self, now: u64, role: Role, out: &mut Vec<Out>) {
        let before = std::mem::replace(&mut self.role, role);
        if matches!(self.role, Role::Resign { .. }) {
            self.tell_no_more(out);
        }
        self.stop_leading();
        self.hear_by_itself(now);
        self.waits_since = None;
        self.forget_at = None;
        match &self.role {
            Role::None => {
                self.catching_up = None;
                self.snapshots = Snapshots::default();
                self.is_sure = false;
                // Until then, it is better than nothing if nobody else has it.
                self.forget_at = Some(now + self.settings.timeout_ms);
            }
            Role::Follow { epoch, .. } => {
                self.digest_at = now + self.settings.fleet.answer_ms;
                if self.skips(Mutation::NoCatchUp) {
                    (self.is_sure, self.epoch) = (true, *epoch);
                } else if before == Role::None || (!self.is_sure && self.catching_up.is_none()) {
                    self.catch_up(now, Difference::Begins, out);
                }
            }
            Role::Lead { .. } => {}
            Role::Resign { epoch } => {
                let (epoch, seq) = (*epoch, self.seq);
                // Who is to have it says that nothing is missing there.
                self.say_digest(out);
                out.push(Out::Resigned { epoch, seq });
            }
        }
        let early = self.early.take(self.known_epoch());
        let was_early = !early.is_empty();
        for told in early {
            self.hear_told(now, told, out);
        }
        if let Role::Follow { epoch, owner } = &self.role
            && was_early
            && self.epoch == *epoch
        {
            self.report(owner, out);
        }
        self.settle(now, out);
    }

    /// The node may rely on its lease until then.
    pub fn renewed(&mut self, now: u64, until: u64, out: &mut Vec<Out>) {
        self.until = until;
        self.settle(now, out);
    }

    /// The node's session is over.
    pub fn session_lost(&mut self) {
        self.until = 0;
        self.stop_leading();
    }

    fn stop_leading(&mut self) {
        // Who has led for so long has told of everyone.
        self.has_ledger |= self.is_leading && self.shard.unsure_ms() == 0;
        self.is_leading = false;
        self.stop_telling();
    }

    /// Takes an input that arrived.
    pub fn input(&mut self, now: u64, input: Input, rules: &mut dyn Rules, out: &mut Vec<Out>) {
        self.settle(now, out);
        if self.is_leading {
            let mut outputs = Vec::new();
            self.shard.handle(now, input, rules, &mut outputs);
            self.tell(outputs, out);
            return self.tell_heard(now, out);
        }
        self.follow_input(now, input, out);
    }

    /// Does what has fallen due, so much of it that what comes of it stays little: where that isn't
    /// all, [`Self::next_deadline`] is no later than `now`.
    pub fn advance(&mut self, now: u64, rules: &mut dyn Rules, out: &mut Vec<Out>) {
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
        self.tell_heard(now, out);
        self.is_behind &= self.shard.is_behind(now);
        if self.is_due(now) {
            return;
        }
        if now >= self.digest_at {
            self.digest_at = now + self.settings.fleet.digest_ms;
            self.say_digest(out);
        }
    }

    /// Whether the shard has something to do.
    fn is_due(&self, now: u64) -> bool {
        self.shard.next_deadline().is_some_and(|at| at <= now)
    }

    /// When [`Self::advance`] is to be called: perhaps early, never too late.
    pub fn next_deadline(&self) -> Option<u64> {
        let sending = self.snapshots.next_at();
        let hearing = self.hearing.next_at(self.settings.fleet.heard_ms);
        if self.is_leading {
            let digest = Some(self.digest_at);
            let deadlines = [self.shard.next_deadline(), digest, hearing, sending];
            return deadlines.into_iter().flatten().min();
        }
        if self.role == Role::None {
            return self.forget_at;
        }
        let catching_up = self.catching_up.as_ref().map(CatchingUp::next_deadline);
        let waits = self.waits_since.map(|_| self.digest_at);
        let following = self.shard.follow_deadline();
        let deadlines = [following, catching_up, waits, hearing, sending];
        deadlines.into_iter().flatten().min()
    }

    /// The epoch of what is published.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether it decides and publishes.
    pub fn is_leading(&self, now: u64) -> bool {
        self.is_leading && (now < self.until || self.skips(Mutation::NoLease))
    }

    /// The epoch whose owner's state is held here in full; none if it isn't.
    pub fn holds(&self) -> Option<u64> {
        (self.is_sure && self.role != Role::None).then_some(self.epoch)
    }

    /// The shard.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// All the numbers of ids that are held here.
    pub fn ids(&self) -> RoaringBitmap {
        let catching_up = self.catching_up.as_ref().map(CatchingUp::ids);
        let known = self.shard.ids() | self.books.ids() | self.snapshots.ids();
        known | catching_up.unwrap_or_default()
    }

    /// The shard, to store what it knows.
    pub fn shard_mut(&mut self) -> &mut Shard {
        &mut self.shard
    }

    /// Nothing is known here any more.
    fn forget(&mut self, out: &mut Vec<Out>) {
        self.forget_at = None;
        self.is_first = false;
        self.led = 0;
        self.snapshots = Snapshots::default();
        let mut nobody = self.shard.replacement();
        nobody.keep_told(true);
        self.exchange(nobody, Books::default(), out);
    }

    /// Another shard takes the place of the one that there is, with what its viewers have been told.
    fn exchange(&mut self, shard: Shard, books: Books, out: &mut Vec<Out>) {
        let shard = std::mem::replace(&mut self.shard, shard);
        let books = std::mem::replace(&mut self.books, books);
        out.push(Out::Discard(Discarded(Arc::new((shard, books)))));
    }

    /// Begins or ends leading, as the role and the lease have it.
    fn settle(&mut self, now: u64, out: &mut Vec<Out>) {
        let Role::Lead { epoch, before } = &self.role else {
            return;
        };
        let may_lead = now < self.until || self.skips(Mutation::NoLease);
        if self.is_leading == may_lead {
            return;
        }
        if self.is_leading {
            return self.stop_leading();
        }
        let (epoch, before) = (*epoch, before.clone());
        if self.epoch == epoch {
            // The lease had ended, and nobody has taken it. What was lost meanwhile, nobody knows.
            let is_sure = self.is_sure;
            self.is_first &= is_sure;
            self.shard.is_first(self.is_first);
            self.tell_of_break(out);
            return self.lead(now, is_sure);
        }
        if self.waits_for(now, &before, out) {
            return;
        }
        let is_sure = self.is_sure && self.epoch == before.epoch && before.epoch > 0;
        self.is_first = before.epoch == 0 || (is_sure && self.is_first);
        let is_successor = self.led > 0 && self.led == before.epoch;
        self.has_ledger = self.is_first || (is_successor && self.has_ledger);
        self.led = epoch;
        self.catching_up = None;
        self.pieces = Pieces::default();
        self.waits_since = None;
        (self.epoch, self.seq) = (epoch, 1);
        self.shard.renumber();
        let digest = self.ledger_digest();
        debug_assert_eq!(digest, self.books_anew().digest());
        self.say(1, Said::Begin(digest), out);
        self.shard.is_first(self.is_first);
        self.lead(now, is_sure);
    }

    fn lead(&mut self, now: u64, is_sure: bool) {
        let is_sure = is_sure || self.skips(Mutation::NoCatchUp);
        if !self.skips(Mutation::NoDecisions) {
            self.shard.lead(now, is_sure);
        }
        self.books.keep_departed(|user| self.shard.remembers(user));
        self.begin_to_tell(now);
        self.is_leading = true;
        self.is_behind = true;
        self.is_sure = true;
        self.differed = [0; PARTS];
        self.digest_at = now + self.settings.fleet.digest_ms;
    }

    /// Whether it waits for the last that the owner before has told, which handed the shard over
    /// to it. It doesn't for long: rather than nobody, one that isn't sure leads.
    fn waits_for(&mut self, now: u64, before: &Before, out: &mut Vec<Out>) -> bool {
        let Some((_, seq)) = &before.told else {
            return false;
        };
        let has_all = self.epoch == before.epoch && self.seq >= *seq;
        if (self.is_sure && has_all) || self.skips(Mutation::NoCatchUp) {
            return false;
        }
        let since = *self.waits_since.get_or_insert(now);
        let patience_ms = self.settings.fleet.answer_ms;
        if now >= since + patience_ms {
            return false;
        }
        self.digest_at = since + patience_ms;
        // What is on its way comes first.
        if now >= since + patience_ms / 4 && self.catching_up.is_none() {
            self.catch_up(now, Difference::Gap, out);
        }
        true
    }

    /// The digest of the ledger. Books that aren't the ledger's any more are made anew.
    fn ledger_digest(&mut self) -> u64 {
        if self.books.len() != self.shard.online_users() {
            self.books = self.books_anew();
        }
        self.books.digest()
    }

    fn books_anew(&self) -> Books {
        Books::of(self.shard.ledger(), self.shard.departures(), &self.names)
    }

    fn skips(&self, mutation: Mutation) -> bool {
        self.settings.mutation == mutation
    }
}

#[cfg(test)]
mod tests;
