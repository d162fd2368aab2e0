//! The ledger: for each online user, who was told, and what they were shown.
//!
//! A user's offline is sent to exactly the viewers who were notified of the online. Corrections in
//! between change this set of viewers.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;
use roaring::RoaringBitmap;

use crate::audience::VisitedSets;
use crate::changed::ChangedUsers;
use crate::event::Event;
use crate::names::{Id, Name, Names};
use crate::read_point::{ReadPoint, SnapshotReads};
use crate::recipients::Recipients;

/// What is known of an online user, and what viewers were told.
#[derive(Clone, Debug)]
pub struct LedgerEntry {
    /// The user's online event, as viewers were last told.
    pub event: Arc<Event>,
    /// The event as it is now, if viewers are still to be told of a change. Rules use this one
    /// already.
    pub untold_event: Option<Arc<Event>>,
    /// Who has been told, and what each of them was shown last.
    pub recipients: Recipients,
    /// How much later than its timestamp the message arrived with which the user came online, in
    /// milliseconds. A disconnect is assumed to take as long.
    pub connect_delay_ms: u64,
    /// Whether a change of something that rules may read had not been decided on when the user
    /// left.
    pub was_undecided: bool,
    /// Whether an application has stated the event. Until the user's connections change, it is
    /// shown in place of what they say.
    pub is_stated: bool,
}

impl LedgerEntry {
    /// An entry for a user who is online with this event, which these recipients were told.
    pub fn new(event: Arc<Event>, recipients: Recipients) -> Self {
        Self {
            event,
            untold_event: None,
            recipients,
            connect_delay_ms: 0,
            was_undecided: false,
            is_stated: false,
        }
    }

    /// The event that rules use.
    pub fn current(&self) -> &Arc<Event> {
        self.untold_event.as_ref().unwrap_or(&self.event)
    }
}

/// The online users of one shard.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: HashMap<Id, LedgerEntry, foldhash::fast::FixedState>,
    changes: UnsavedEntries,
    /// Users whose `untold_event` has changed since it was last taken.
    deferred: ChangedUsers,
    /// The readings of the ledger as it was at a moment. Each change of an entry calls
    /// [`Self::preserve_for_readers`] before.
    reads: SnapshotReads<LedgerEntry>,
}

/// What has changed in the ledger since that was last taken.
#[derive(Debug, Default)]
struct UnsavedEntries {
    /// Whether changes are noted.
    wanted: bool,
    changed: RoaringBitmap,
    /// Users for whom a record was handed out.
    saved: RoaringBitmap,
    /// Users who went offline after a record of them was handed out.
    gone: Vec<Name>,
}

impl Ledger {
    /// A user's entry, if they are online.
    pub fn get(&self, user: Id) -> Option<&LedgerEntry> {
        self.entries.get(&user)
    }

    /// As [`Self::get`], to change it.
    pub fn get_mut(&mut self, user: Id) -> Option<&mut LedgerEntry> {
        self.preserve_for_readers(user);
        self.entries.get_mut(&user)
    }

    /// Notes that a user is online with this event. Earlier recipients stay.
    pub fn online(&mut self, event: Arc<Event>) -> &mut LedgerEntry {
        self.preserve_for_readers(event.user);
        let fresh = LedgerEntry::new(Arc::clone(&event), Recipients::default());
        let entry = self.entries.entry(event.user).or_insert(fresh);
        entry.event = event;
        if entry.untold_event.take().is_some() {
            self.deferred.note(entry.event.user, &entry.event.name);
        }
        self.changes.mark_changed(entry.event.user);
        entry
    }

    /// Whether a user is shown as an application has stated, whatever the connections say.
    pub fn is_stated(&self, user: &str, names: &Names) -> bool {
        let entry = names.find(user).and_then(|user| self.get(user));
        entry.is_some_and(|entry| entry.is_stated)
    }

    /// Notes that a user's connections have changed: from now on, they say how the user is shown.
    pub fn end_stated(&mut self, user: Id) {
        if self.get(user).is_some_and(|entry| entry.is_stated)
            && let Some(entry) = self.get_mut(user)
        {
            entry.is_stated = false;
            self.changes.mark_changed(user);
        }
    }

    /// Replaces the event of an online user. Returns whether the user is online.
    pub fn show(&mut self, event: &Arc<Event>) -> bool {
        let is_online = self.entries.contains_key(&event.user);
        if is_online {
            self.online(Arc::clone(event));
        }
        is_online
    }

    /// As [`Self::show`], but viewers are told later. After a restart, they are told at once.
    pub fn defer(&mut self, event: &Arc<Event>) -> bool {
        let Some(entry) = self.get_mut(event.user) else {
            return false;
        };
        entry.untold_event = Some(Arc::clone(event));
        self.deferred.note(event.user, &event.name);
        true
    }

    /// Notes that a user's recipients have changed.
    pub fn mark_changed(&mut self, user: Id) {
        self.changes.mark_changed(user);
    }

    /// Removes a user who went offline. Returns the entry, which says who was told of them.
    pub fn offline(&mut self, user: Id) -> Option<LedgerEntry> {
        self.preserve_for_readers(user);
        let entry = self.entries.remove(&user)?;
        if entry.untold_event.is_some() {
            self.deferred.note(user, &entry.event.name);
        }
        self.changes.changed.remove(user.0);
        if self.changes.saved.remove(user.0) {
            self.changes.gone.push(entry.event.name.clone());
        }
        Some(entry)
    }

    /// Sets whether changes are noted from now on, for [`Self::take_changed`].
    pub fn keep_records(&mut self, keep: bool) {
        self.changes = UnsavedEntries {
            wanted: keep,
            ..UnsavedEntries::default()
        };
        self.deferred.keep(keep);
    }

    /// Whether there are changes to take.
    pub fn has_records(&self) -> bool {
        let unsaved = &self.changes;
        !(unsaved.changed.is_empty() && unsaved.gone.is_empty() && self.deferred.is_empty())
    }

    /// Takes all entries that have changed since the last call; `None` for a user who went offline.
    /// Of two entries of the same user, the later one holds.
    pub fn take_changed(&mut self, mut take: impl FnMut(Name, Option<LedgerEntry>)) {
        for user in self.changes.gone.drain(..) {
            take(user, None);
        }
        let changed = std::mem::take(&mut self.changes.changed);
        for entry in changed.iter().filter_map(|id| self.entries.get(&Id(id))) {
            take(entry.event.name.clone(), Some(entry.clone()));
        }
        self.changes.saved |= changed;
    }

    /// Takes the users whose `untold_event` has changed since the last call.
    pub(crate) fn take_deferred(&mut self) -> BTreeMap<Id, Name> {
        self.deferred.take()
    }

    /// Restores an entry.
    pub fn restore(&mut self, entry: LedgerEntry) {
        let user = entry.event.user;
        self.preserve_for_readers(user);
        self.changes.saved.insert(user.0);
        self.entries.insert(user, entry);
    }

    /// Takes an entry of another ledger, which replaces this ledger's own.
    pub fn put(&mut self, entry: LedgerEntry) {
        let user = entry.event.user;
        self.preserve_for_readers(user);
        let before = self.entries.insert(user, entry);
        if let Some(before) = before.filter(|before| before.untold_event.is_some()) {
            self.deferred.note(user, &before.event.name);
        }
        self.changes.mark_changed(user);
    }

    /// Begins a reading of the ledger as it is now, for [`Self::read`].
    pub(crate) fn begin_read(&mut self, point: &ReadPoint) {
        self.reads.begin(point, self.user_numbers());
    }

    /// Reads the next `count` entries at most, as they were at a moment. Returns whether any were
    /// left.
    pub(crate) fn read(
        &mut self,
        point: &ReadPoint,
        count: usize,
        take: impl FnMut(LedgerEntry),
    ) -> bool {
        let entry = |user| self.entries.get(&Id(user)).cloned();
        self.reads.read(point, count, entry, take)
    }

    /// The online users, in a stable order.
    pub fn users(&self) -> Vec<Id> {
        let mut users: Vec<_> = self.entries.keys().copied().collect();
        users.sort_unstable();
        users
    }

    /// The numbers of the online users' ids.
    pub(crate) fn user_numbers(&self) -> RoaringBitmap {
        self.entries.keys().map(|user| user.0).collect()
    }

    /// How many users are online.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody is online.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The numbers of all ids that the ledger holds.
    pub fn ids(&self) -> RoaringBitmap {
        let mut ids: RoaringBitmap = self.deferred.ids().collect();
        let mut seen = VisitedSets::default();
        for (user, entry) in &self.entries {
            ids.insert(user.0);
            entry.recipients.audience().add_to(&mut ids, &mut seen);
        }
        for entry in self.reads.kept() {
            ids.insert(entry.event.user.0);
            entry.recipients.audience().add_to(&mut ids, &mut seen);
        }
        ids
    }

    /// Call it before a user's entry changes: keeps the entry for readings that have yet to
    /// get to it.
    fn preserve_for_readers(&mut self, user: Id) {
        let entries = &self.entries;
        self.reads.keep(user.0, || entries.get(&user).cloned());
    }
}

impl UnsavedEntries {
    fn mark_changed(&mut self, user: Id) {
        if self.wanted {
            self.changed.insert(user.0);
        }
    }
}
