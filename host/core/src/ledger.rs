//! The ledger: for each online user, who was told, and what they were shown.
//!
//! Anyone who was told that a user came online is told when they go offline, and
//! nobody else is. What the rules say in the meantime changes who has been told.

use std::sync::Arc;

use hashbrown::HashMap;
use roaring::RoaringBitmap;

use crate::audience::Seen;
use crate::event::Event;
use crate::names::{Id, Name};
use crate::record::Record;
use crate::told::Told;

/// What is known and was said of an online user.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The event with which they came online, as it was told last.
    pub event: Arc<Event>,
    /// The event as it is now, where that is still to be told: rules go by it already.
    pub next: Option<Arc<Event>>,
    /// Who has been told, and what each of them was shown last.
    pub told: Told,
    /// By how much the timestamp of the message with which they came was behind its
    /// arrival, in milliseconds: what a disconnect's would be behind, too.
    pub lag_ms: u64,
    /// Whether something that rules may read has changed, and was not decided on
    /// before the user went.
    pub unsettled: bool,
}

impl Entry {
    /// Of a user who is online by this event, and of whom this has been told.
    pub fn new(event: Arc<Event>, told: Told) -> Self {
        Self {
            event,
            next: None,
            told,
            lag_ms: 0,
            unsettled: false,
        }
    }

    /// The event that rules go by.
    pub fn judged(&self) -> &Arc<Event> {
        self.next.as_ref().unwrap_or(&self.event)
    }
}

/// The online users of one worker.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: HashMap<Id, Entry, foldhash::fast::FixedState>,
    changes: Changes,
}

/// What of the ledger has changed since it was last taken.
#[derive(Debug, Default)]
struct Changes {
    /// Whether anybody takes it.
    wanted: bool,
    changed: RoaringBitmap,
    /// Those whose record was handed out.
    saved: RoaringBitmap,
    /// Those of them who went offline.
    gone: Vec<Name>,
}

impl Ledger {
    /// A user's entry, if they are online.
    pub fn get(&self, user: Id) -> Option<&Entry> {
        self.entries.get(&user)
    }

    /// As [`Self::get`], to change it.
    pub fn get_mut(&mut self, user: Id) -> Option<&mut Entry> {
        self.entries.get_mut(&user)
    }

    /// Notes that a user is online. Who had been told of them stays told.
    pub fn online(&mut self, event: Arc<Event>) -> &mut Entry {
        let fresh = Entry::new(Arc::clone(&event), Told::default());
        let entry = self.entries.entry(event.user).or_insert(fresh);
        (entry.event, entry.next) = (event, None);
        self.changes.note(entry.event.user);
        entry
    }

    /// Notes that who has been told of a user is not as it was.
    pub fn note(&mut self, user: Id) {
        self.changes.note(user);
    }

    /// Removes a user who went offline, and says who had been told of them.
    pub fn offline(&mut self, user: Id) -> Option<Entry> {
        let entry = self.entries.remove(&user)?;
        self.changes.changed.remove(user.0);
        if self.changes.saved.remove(user.0) {
            self.changes.gone.push(entry.event.name.clone());
        }
        Some(entry)
    }

    /// Whether changes are noted from now on, for [`Self::take_records`].
    pub fn keep_records(&mut self, keep: bool) {
        self.changes = Changes {
            wanted: keep,
            ..Changes::default()
        };
    }

    /// Whether there is anything to take.
    pub fn has_records(&self) -> bool {
        !(self.changes.changed.is_empty() && self.changes.gone.is_empty())
    }

    /// All that has changed since this was last called. Of two records of the same
    /// user, the later holds.
    pub fn take_records(&mut self, records: &mut Vec<Record>) {
        let gone = self.changes.gone.drain(..);
        records.extend(gone.map(|user| Record::Told { user, entry: None }));
        let changed = std::mem::take(&mut self.changes.changed);
        let entries = changed.iter().filter_map(|id| self.entries.get(&Id(id)));
        records.extend(entries.map(|entry| Record::Told {
            user: entry.event.name.clone(),
            entry: Some(entry.clone()),
        }));
        self.changes.saved |= changed;
    }

    /// Puts an entry back.
    pub fn restore(&mut self, entry: Entry) {
        let user = entry.event.user;
        self.changes.saved.insert(user.0);
        self.entries.insert(user, entry);
    }

    /// The online users, in a stable order.
    pub fn users(&self) -> Vec<Id> {
        let mut users: Vec<_> = self.entries.keys().copied().collect();
        users.sort_unstable();
        users
    }

    /// How many users are online.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody is online.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All the numbers the ledger holds.
    pub fn ids(&self) -> RoaringBitmap {
        let mut ids = RoaringBitmap::new();
        let mut seen = Seen::default();
        for (user, entry) in &self.entries {
            ids.insert(user.0);
            entry.told.audience().keep_in(&mut ids, &mut seen);
        }
        ids
    }
}

impl Changes {
    fn note(&mut self, user: Id) {
        if self.wanted {
            self.changed.insert(user.0);
        }
    }
}
