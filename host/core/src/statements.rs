//! Statements: what applications have stated of users, as far as it still holds.
//!
//! An offline holds until the user's next connect, or the application's own online. An online is
//! about a user without connections; it holds until the user connects. A statement about a user
//! without connections expires if the application doesn't repeat it.

mod order;

use std::collections::BTreeSet;

use hashbrown::HashMap;
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use crate::changed::ChangedUsers;
use crate::names::{Id, Name};
use crate::read_point::{ReadPoint, SnapshotReads};

use self::order::StatementOrder;
pub use self::order::{MessageTime, ReorderLimits};

/// What an application stated of a user.
// Records store the index of a variant: a new variant comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Statement {
    /// That the user is online.
    Online {
        /// The statement's own time, in milliseconds since the Unix epoch.
        timestamp: u64,
    },
    /// That the user is offline.
    Offline,
}

/// The statements about one shard's users that hold.
#[derive(Debug, Default)]
pub struct Statements {
    users: HashMap<Id, HeldStatement, foldhash::fast::FixedState>,
    /// The times of the statements and their users, the oldest first.
    by_time: BTreeSet<(u64, Id)>,
    changed: ChangedUsers,
    /// The order in which users were lately said to be online or offline. `None`: the order of
    /// arrival counts.
    order: Option<StatementOrder>,
    /// The readings of the statements as they were at a moment. Each change of one calls
    /// [`Self::keep`] before.
    reads: SnapshotReads<HeldStatement>,
}

#[derive(Clone, Debug)]
pub(crate) struct HeldStatement {
    pub(crate) name: Name,
    pub(crate) stated_at: u64,
    pub(crate) statement: Statement,
}

impl Statements {
    /// The statement about a user that holds.
    pub fn get(&self, user: Id) -> Option<Statement> {
        if self.users.is_empty() {
            return None;
        }
        self.users.get(&user).map(|entry| entry.statement)
    }

    /// Whether an application has stated that a user is offline, and that holds.
    pub fn is_offline(&self, user: Id) -> bool {
        self.get(user) == Some(Statement::Offline)
    }

    /// Notes a statement about a user, at a monotonic time.
    pub fn state(&mut self, now: u64, user: Id, name: &Name, statement: Statement) {
        self.forget(user);
        self.put(now, user, name, statement);
        self.changed.note(user, name);
    }

    /// Forgets the statement about a user, which doesn't hold any longer.
    pub fn forget(&mut self, user: Id) {
        self.keep(user);
        if let Some(entry) = self.users.remove(&user) {
            self.by_time.remove(&(entry.stated_at, user));
            self.changed.note(user, &entry.name);
        }
    }

    /// The numbers of all users about whom a statement holds.
    pub(crate) fn users(&self) -> impl Iterator<Item = u32> {
        self.users.keys().map(|user| user.0)
    }

    /// How many statements hold.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether no statement holds.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// The monotonic time of the oldest statement.
    pub fn oldest(&self) -> Option<u64> {
        self.by_time.first().map(|(stated_at, _)| *stated_at)
    }

    /// The oldest statement.
    pub fn first(&self) -> Option<(Id, &Name, Statement)> {
        let (_, user) = self.by_time.first()?;
        let entry = self.users.get(user)?;
        Some((*user, &entry.name, entry.statement))
    }

    /// All statements and their times, the oldest first.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Name, u64, Statement)> {
        let by_time = self.by_time.iter();
        by_time.filter_map(|(stated_at, user)| {
            let entry = self.users.get(user)?;
            Some((&entry.name, *stated_at, entry.statement))
        })
    }

    /// Restores a statement that held before a restart.
    pub fn restore(&mut self, stated_at: u64, user: Id, name: &Name, statement: Statement) {
        self.put(stated_at, user, name, statement);
    }

    /// Sets whether senders' clocks decide from now on in which order statements were made.
    pub fn order_by_clocks(&mut self, by_clocks: bool) {
        self.order = by_clocks.then(StatementOrder::default);
    }

    /// Whether senders' clocks decide the order.
    pub fn orders_by_clocks(&self) -> bool {
        self.order.is_some()
    }

    /// Takes a message by which a user is offline, or online. Returns whether the opposite was said
    /// later, and arrived before this message, no longer ago than messages may be under way.
    /// `None`: it isn't remembered whether the opposite was said.
    pub fn check_overtaken(
        &mut self,
        user: Id,
        is_offline: bool,
        time: MessageTime,
        limits: ReorderLimits,
    ) -> Option<bool> {
        self.order.as_mut()?.take(user, is_offline, time, limits)
    }

    /// The statement about a user and its time, if it was made at this monotonic time or later.
    pub fn since(&self, at: u64, user: Id) -> Option<(u64, Statement)> {
        let held = self.users.get(&user).filter(|held| held.stated_at >= at)?;
        Some((held.stated_at, held.statement))
    }

    /// Sets whether changes are noted from now on, for [`Self::take_changed`].
    pub fn keep_records(&mut self, keep: bool) {
        self.changed.keep(keep);
    }

    /// Whether there are changes to take.
    pub fn has_records(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Takes the users whose statement has changed since the last call, with the statement and its
    /// time; `None` if no statement holds. Of two for the same user, the later one holds.
    pub fn take_changed(&mut self) -> impl Iterator<Item = (Name, Option<(u64, Statement)>)> {
        self.changed.take().into_iter().map(|(id, user)| {
            let entry = self.users.get(&id);
            let statement = entry.map(|entry| (entry.stated_at, entry.statement));
            (user, statement)
        })
    }

    /// The numbers of all ids in here.
    pub fn ids(&self) -> RoaringBitmap {
        let users = self.users();
        let ordered = self.order.iter().flat_map(StatementOrder::ids);
        users.chain(self.changed.ids()).chain(ordered).collect()
    }

    /// Begins a reading of the statements as they are now, for [`Self::read`].
    pub(crate) fn begin_read(&mut self, point: &ReadPoint) {
        let users = self.users().collect();
        self.reads.begin(point, users);
    }

    /// Reads the next `count` statements at most, as they were at a moment. Returns whether any
    /// were left.
    pub(crate) fn read(
        &mut self,
        point: &ReadPoint,
        count: usize,
        take: impl FnMut(HeldStatement),
    ) -> bool {
        let held = |user| self.users.get(&Id(user)).cloned();
        self.reads.read(point, count, held, take)
    }

    /// Call it before the statement about a user changes: keeps it for readings that have yet
    /// to get to it.
    fn keep(&mut self, user: Id) {
        let users = &self.users;
        self.reads.keep(user.0, || users.get(&user).cloned());
    }

    fn put(&mut self, stated_at: u64, user: Id, name: &Name, statement: Statement) {
        self.keep(user);
        let name = name.clone();
        self.by_time.insert((stated_at, user));
        let entry = HeldStatement {
            name,
            stated_at,
            statement,
        };
        self.users.insert(user, entry);
    }
}
