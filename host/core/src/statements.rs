//! What applications have stated of users, as far as it still holds.
//!
//! An offline holds until the user's next connect, or the application's own online. An
//! online is about a user without connections; it holds until the user connects, or expires if
//! the application doesn't repeat it.

mod order;

use std::collections::BTreeSet;

use hashbrown::HashMap;
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use crate::changed::ChangedUsers;
use crate::moment::{Moment, Readings};
use crate::names::{Id, Name};

use self::order::Order;
pub use self::order::{Periods, Said};

/// What an application stated of a user.
// Records hold it by its place: what is added comes last.
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

/// The statements of one shard's users that hold.
#[derive(Debug, Default)]
pub struct Statements {
    users: HashMap<Id, HeldStatement, foldhash::fast::FixedState>,
    /// Whose was said when, the longest ago first.
    said: BTreeSet<(u64, Id)>,
    changed: ChangedUsers,
    /// In which order it was said lately whether users are online; none if by arrival.
    order: Option<Order>,
    /// Who reads it as it was at some moment: no statement changes but behind [`Self::keep`].
    readings: Readings<HeldStatement>,
}

#[derive(Clone, Debug)]
pub(crate) struct HeldStatement {
    pub(crate) name: Name,
    pub(crate) said_at: u64,
    pub(crate) statement: Statement,
}

impl Statements {
    /// What holds of a user.
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

    /// An application states something of a user, at a monotonic time.
    pub fn state(&mut self, now: u64, user: Id, name: &Name, statement: Statement) {
        self.forget(user);
        self.put(now, user, name, statement);
        self.changed.note(user, name);
    }

    /// What was stated of a user holds no longer.
    pub fn forget(&mut self, user: Id) {
        self.keep(user);
        if let Some(entry) = self.users.remove(&user) {
            self.said.remove(&(entry.said_at, user));
            self.changed.note(user, &entry.name);
        }
    }

    /// The numbers of all users who have a statement.
    pub(crate) fn users(&self) -> impl Iterator<Item = u32> {
        self.users.keys().map(|user| user.0)
    }

    /// How many statements hold.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Since when the statement holds that was made longest ago.
    pub fn oldest(&self) -> Option<u64> {
        self.said.first().map(|(said_at, _)| *said_at)
    }

    /// The statement that was made longest ago.
    pub fn first(&self) -> Option<(Id, &Name, Statement)> {
        let (_, user) = self.said.first()?;
        let entry = self.users.get(user)?;
        Some((*user, &entry.name, entry.statement))
    }

    /// All that hold, the one made longest ago first, and when each was made.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Name, u64, Statement)> {
        let said = self.said.iter();
        said.filter_map(|(said_at, user)| {
            let entry = self.users.get(user)?;
            Some((&entry.name, *said_at, entry.statement))
        })
    }

    /// Puts a statement back that held before a restart.
    pub fn restore(&mut self, said_at: u64, user: Id, name: &Name, statement: Statement) {
        self.put(said_at, user, name, statement);
    }

    /// Whether senders' clocks say from now on in which order something was said.
    pub fn order(&mut self, by_clocks: bool) {
        self.order = by_clocks.then(Order::default);
    }

    /// Whether senders' clocks say so.
    pub fn is_ordered(&self) -> bool {
        self.order.is_some()
    }

    /// It is said of a user that they are offline, or that they are online. Says whether the
    /// opposite was said later, and arrived before, no longer ago than messages may be under way; none
    /// if it isn't remembered that it was said.
    pub fn overtakes(
        &mut self,
        user: Id,
        is_offline: bool,
        said: Said,
        periods: Periods,
    ) -> Option<bool> {
        self.order.as_mut()?.take(user, is_offline, said, periods)
    }

    /// What holds of a user, if it was stated at this monotonic time or later: and when it was.
    pub fn since(&self, at: u64, user: Id) -> Option<(u64, Statement)> {
        let held = self.users.get(&user).filter(|held| held.said_at >= at)?;
        Some((held.said_at, held.statement))
    }

    /// Whether changes are noted from now on, for [`Self::take_changed`].
    pub fn keep_records(&mut self, keep: bool) {
        self.changed.keep(keep);
    }

    /// Whether there is anything to take.
    pub fn has_records(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The users whose statement has changed since this was last called, with the statement
    /// and its time; none where none holds. Of two of the same user, the later holds.
    pub fn take_changed(&mut self) -> impl Iterator<Item = (Name, Option<(u64, Statement)>)> {
        self.changed.take().into_iter().map(|(id, user)| {
            let entry = self.users.get(&id);
            let statement = entry.map(|entry| (entry.said_at, entry.statement));
            (user, statement)
        })
    }

    /// All the numbers of ids in here.
    pub fn ids(&self) -> RoaringBitmap {
        let users = self.users();
        let ordered = self.order.iter().flat_map(Order::ids);
        users.chain(self.changed.ids()).chain(ordered).collect()
    }

    /// It is to be read as it is now, by [`Self::read`].
    pub(crate) fn begin_reading(&mut self, moment: &Moment) {
        let users = self.users().collect();
        self.readings.begin(moment, users, 0);
    }

    /// Reads on as of a moment, so many statements at most. Says whether any were left.
    pub(crate) fn read(
        &mut self,
        moment: &Moment,
        count: usize,
        take: impl FnMut(HeldStatement),
    ) -> bool {
        let held = |user| self.users.get(&Id(user)).cloned();
        self.readings.read(moment, count, held, take)
    }

    /// What holds of a user is about to change.
    fn keep(&mut self, user: Id) {
        let users = &self.users;
        self.readings.keep(user.0, || users.get(&user).cloned());
    }

    fn put(&mut self, said_at: u64, user: Id, name: &Name, statement: Statement) {
        self.keep(user);
        let name = name.clone();
        self.said.insert((said_at, user));
        let entry = HeldStatement {
            name,
            said_at,
            statement,
        };
        self.users.insert(user, entry);
    }
}
