//! Departures: who went offline, so that a viewer who may know is told when the user was last seen.
//!
//! A viewer may know if the last verdict on the user while online admitted them, and the current
//! rules do so as well. So a departure is remembered together with those who had been told of the
//! user, and with the metadata of the online event that the rules read.
//!
//! The number of departures is limited: the oldest one is forgotten for the newest. The departure
//! of a user who has come back stays in here; the ledger says that the user is online.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;
use roaring::RoaringBitmap;

use crate::audience::{Audience, VisitedSets};
use crate::directory::Changes;
use crate::event::{Change, Event};
use crate::metadata::Metadata;
use crate::names::{Id, Name, Names};
use crate::read_point::{ReadPoint, SnapshotReads};
use crate::recipients::Recipients;
use crate::rules::{Reads, Rendition};
use crate::tracker::Reason;
use crate::verdicts::{Verdict, Verdicts};

/// The most metadata that is remembered of a departure, in bytes. If there was more, no viewer is
/// told when the user was last seen.
const KNOWN_BYTES_MAX: usize = 2_048;

/// A departure, as it was announced.
#[derive(Clone, Debug)]
pub struct Departure {
    /// The user.
    pub user: Id,
    /// The reason.
    pub reason: Reason,
    /// The time of the offline, in milliseconds since the Unix epoch.
    pub timestamp: u64,
    /// When the user was last seen, in milliseconds since the Unix epoch.
    pub last_seen: u64,
    /// The metadata of the offline event.
    pub metadata: Metadata,
    /// What is remembered of the metadata of the online event.
    pub known: KnownMetadata,
    /// Who had been told of the user, and what each of them was shown. Nobody, if the last decision
    /// was pending.
    pub recipients: Recipients,
}

/// What is remembered of an online event's metadata.
#[derive(Clone, Debug)]
pub struct KnownMetadata {
    metadata: Metadata,
    /// The keys that it has. `None`: all keys.
    keys: Option<Arc<BTreeSet<Box<str>>>>,
}

impl KnownMetadata {
    /// All of the metadata.
    pub fn all(metadata: &Metadata) -> Self {
        Self {
            metadata: metadata.clone(),
            keys: None,
        }
    }

    /// The metadata under these keys, which are all that the rules read.
    pub fn some(metadata: &Metadata, keys: &BTreeSet<Box<str>>) -> Self {
        let mut known = Metadata::default().edit();
        for entry in metadata.entries().filter(|it| keys.contains(it.key)) {
            known.set(entry.key, entry.value, entry.public);
        }
        Self {
            metadata: known.build(),
            keys: Some(Arc::new(keys.clone())),
        }
    }

    pub(crate) fn restored(metadata: Metadata, keys: Option<Vec<&str>>) -> Self {
        let keys = keys.map(|keys| keys.into_iter().map(Box::from).collect());
        Self {
            metadata,
            keys: keys.map(Arc::new),
        }
    }

    pub(crate) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    pub(crate) fn keys(&self) -> Option<impl Iterator<Item = &str>> {
        let keys = self.keys.as_deref()?;
        Some(keys.iter().map(|key| &**key))
    }

    /// Whether all that the rules read is remembered.
    fn covers(&self, reads: &Reads) -> bool {
        let Some(keys) = &self.keys else {
            return true;
        };
        !reads.all_metadata && reads.keys.iter().all(|key| keys.contains(key))
    }

    fn is_small(&self) -> bool {
        let entries = self.metadata.entries();
        let bytes: usize = entries.map(|it| it.key.len() + it.value.len()).sum();
        bytes <= KNOWN_BYTES_MAX
    }
}

impl Departure {
    /// The numbers of all ids in it.
    pub(crate) fn ids(&self) -> RoaringBitmap {
        let mut ids = self.recipients.audience().bitmap();
        ids.insert(self.user.0);
        ids
    }

    /// Whether it is stored. A departure that no viewer may know about is not.
    fn is_stored(&self) -> bool {
        self.recipients.parts().any(|(_, shown)| shown.last_seen())
    }
}

/// The last departures of one shard's users.
#[derive(Debug)]
pub struct Departed {
    departures_max: usize,
    /// The departures. It is a ring once it is full.
    departures: Vec<Departure>,
    /// The next place in the ring.
    next: usize,
    /// Places of departures that were forgotten while this shard followed another one. They are
    /// filled first.
    free: Vec<u32>,
    /// The place of each user's last departure.
    places: HashMap<Id, u32, foldhash::fast::FixedState>,
    /// The verdicts on the users' last departures.
    verdicts: Verdicts,
    changes: UnsavedDepartures,
    /// The readings of departures as they were at a moment, by place in the ring. Each change of a
    /// place calls [`Self::keep_place`] before.
    reads: SnapshotReads<Departure>,
}

/// The users whose last departure has changed since records were last taken.
#[derive(Debug, Default)]
struct UnsavedDepartures {
    /// Whether changes are noted.
    wanted: bool,
    users: BTreeMap<Id, Name>,
    /// Users for whom a record was handed out.
    saved: HashMap<Id, Name, foldhash::fast::FixedState>,
}

impl Departed {
    /// Remembers at most `departures_max` departures.
    pub fn new(departures_max: usize) -> Self {
        Self {
            departures_max: departures_max.min(u32::MAX as usize),
            departures: Vec::new(),
            next: 0,
            free: Vec::new(),
            places: HashMap::default(),
            verdicts: Verdicts::default(),
            changes: UnsavedDepartures::default(),
            reads: SnapshotReads::default(),
        }
    }

    /// Changes how many departures are remembered. Of too many, the newest stay.
    pub fn resize(&mut self, departures_max: usize) {
        if departures_max == self.departures_max {
            return;
        }
        let mut before = std::mem::replace(self, Self::new(departures_max));
        self.changes = std::mem::take(&mut before.changes);
        self.reads = std::mem::take(&mut before.reads);
        self.reads.keep_all(|place| before.stored(place));
        let departures = before.departures.into_iter().enumerate();
        let (mut newer, mut older): (Vec<_>, _) = (departures.collect(), Vec::new());
        // Once the ring is full, the oldest is where the next one would go.
        if newer.len() == before.departures_max {
            older = newer.split_off(before.next.min(newer.len()));
        }
        for (place, departure) in older.into_iter().chain(newer) {
            let last = before.places.get(&departure.user);
            if last.is_some_and(|last| *last as usize == place) {
                self.insert(departure);
            }
        }
        // Departures that found no place are forgotten. Their records are to be removed.
        for (user, name) in &self.changes.saved {
            if !self.places.contains_key(user) {
                self.changes.users.insert(*user, name.clone());
            }
        }
    }

    /// Remembers an offline event, what was known of the user while online, and who
    /// had been told of them.
    pub fn note(&mut self, event: &Event, known: KnownMetadata, recipients: Recipients) {
        let Change::Offline { last_seen, reason } = event.change else {
            return;
        };
        let (known, recipients) = if known.is_small() {
            (known, recipients)
        } else {
            (
                KnownMetadata::all(&Metadata::default()),
                Recipients::default(),
            )
        };
        let departure = Departure {
            user: event.user,
            reason,
            timestamp: event.timestamp,
            last_seen,
            metadata: event.metadata.clone(),
            known,
            recipients,
        };
        if self.changes.wanted
            && (departure.is_stored() || self.changes.saved.contains_key(&event.user))
        {
            self.changes.users.insert(event.user, event.name.clone());
        }
        self.insert(departure);
    }

    /// Who had been told of a user who has left, and what each of them was shown.
    pub fn recipients(&self, user: Id) -> Option<&Recipients> {
        self.departure(user).map(|departure| &departure.recipients)
    }

    /// A user's last departure, as rules get to see it: the offline event, with what is remembered
    /// of the metadata of the online event.
    pub fn event(&self, user: Id, names: &Names) -> Option<Event> {
        let departure = self.departure(user)?;
        let mut metadata = departure.known.metadata.edit();
        for entry in departure.metadata.entries() {
            metadata.set(entry.key, entry.value, entry.public);
        }
        Some(Event {
            user,
            name: names.name(user)?,
            timestamp: departure.timestamp,
            change: Change::Offline {
                last_seen: departure.last_seen,
                reason: departure.reason,
            },
            metadata: metadata.build(),
        })
    }

    fn departure(&self, user: Id) -> Option<&Departure> {
        self.departures.get(*self.places.get(&user)? as usize)
    }

    /// The verdict on a user's last departure, if it still holds.
    pub fn verdict(&self, wall: u64, event: &Event) -> Option<Arc<Verdict>> {
        self.verdicts.find(wall, event).map(|(verdict, _)| verdict)
    }

    /// Keeps the verdict on a user's last departure.
    pub fn keep(
        &mut self,
        now: u64,
        event: &Event,
        renditions: Vec<Rendition>,
        mut reads: Reads,
    ) -> Arc<Verdict> {
        let verdict = Arc::new(self.admitted(event.user, renditions, &reads));
        // The event stays the same for as long as the verdict is kept.
        reads.timestamp = false;
        reads.all_metadata = false;
        self.verdicts.keep(now, event, Arc::clone(&verdict), reads);
        verdict
    }

    /// The current verdict on a user's last departure, restricted to those whom the last verdict on
    /// the user while online admitted, and to what that verdict let them know. It admits nobody if
    /// the rules read something that isn't remembered.
    pub fn admitted(&self, user: Id, renditions: Vec<Rendition>, reads: &Reads) -> Verdict {
        let Some(departure) = self.departure(user).filter(|it| it.known.covers(reads)) else {
            return Verdict::default();
        };
        let may_know = departure.recipients.may_know_last_seen();
        let verdict = Verdict::new(user, renditions);
        let renditions = verdict.renditions.into_iter().flat_map(|rendition| {
            let told = rendition
                .audience
                .intersection(departure.recipients.audience());
            let knows = match rendition.last_seen {
                true => told.intersection(&may_know),
                false => Audience::nobody(),
            };
            let part = |audience, last_seen| Rendition {
                audience,
                last_seen,
                keys: Arc::clone(&rendition.keys),
            };
            [
                part(told.difference(&knows), false),
                part(knows.clone(), true),
            ]
        });
        Verdict::new(user, renditions.collect())
    }

    /// The directory has changed: forgets the verdicts that read what changed. They are made again
    /// when they are asked for.
    pub fn directory_changed(&mut self, changes: &Changes) {
        if self.verdicts.is_empty() {
            return;
        }
        for user in self.verdicts.affected(changes) {
            self.verdicts.forget(user);
        }
    }

    /// The wall clock has moved: forgets the verdicts that read it. They are made again when they
    /// are asked for.
    pub fn clock_moved(&mut self) {
        for user in self.verdicts.time_readers() {
            self.verdicts.forget(user);
        }
    }

    /// The rules have changed: no verdict holds any longer. Verdicts are made again when they are
    /// asked for.
    pub fn rules_changed(&mut self) {
        self.verdicts.rules_changed();
    }

    /// Some users are decided on by other rules: forgets the verdicts on their departures. They are
    /// made again when they are asked for.
    pub fn reassigned(&mut self, moves: impl Fn(Id) -> bool) {
        self.verdicts.forget_where(moves);
    }

    /// Sets whether changes are noted from now on, for [`Self::take_changed`].
    pub fn keep_records(&mut self, keep: bool) {
        self.changes = UnsavedDepartures {
            wanted: keep,
            ..UnsavedDepartures::default()
        };
    }

    /// Whether there are changes to take.
    pub fn has_records(&self) -> bool {
        !self.changes.users.is_empty()
    }

    /// Takes the users whose last departure has changed since the last call, and that departure;
    /// `None` if it is forgotten, or isn't stored. That a user has come back is no change.
    pub fn take_changed(&mut self, mut take: impl FnMut(Name, Option<Departure>)) {
        for (id, user) in std::mem::take(&mut self.changes.users) {
            let departure = self.departure(id).filter(|it| it.is_stored()).cloned();
            match &departure {
                Some(_) => drop(self.changes.saved.insert(id, user.clone())),
                None => drop(self.changes.saved.remove(&id)),
            }
            take(user, departure);
        }
    }

    /// All stored departures, in no order.
    pub(crate) fn all_stored(&self) -> impl Iterator<Item = &Departure> {
        let last = self.places.values();
        let last = last.filter_map(|place| self.departures.get(*place as usize));
        last.filter(|departure| departure.is_stored())
    }

    /// Begins a reading of the stored departures as they are now, for [`Self::read`].
    pub(crate) fn begin_read(&mut self, point: &ReadPoint) {
        let mut places = RoaringBitmap::new();
        // There are at most `u32::MAX` places.
        places.insert_range(0..self.departures.len() as u32);
        self.reads.begin(point, places, self.next as u32);
    }

    /// Reads the next `count` departures at most, as they were at a moment, the oldest first.
    /// Returns whether any were left.
    pub(crate) fn read(
        &mut self,
        point: &ReadPoint,
        count: usize,
        take: impl FnMut(Departure),
    ) -> bool {
        let mut reads = std::mem::take(&mut self.reads);
        let were_left = reads.read(point, count, |place| self.stored(place), take);
        self.reads = reads;
        were_left
    }

    /// The departure in a place, if it is stored, and the last one of its user.
    fn stored(&self, place: u32) -> Option<Departure> {
        let departure = self.departures.get(place as usize)?;
        let is_last = self.places.get(&departure.user) == Some(&place);
        (is_last && departure.is_stored()).then(|| departure.clone())
    }

    /// Call it before the departure in a place changes, or stops being its user's last: keeps
    /// it for readings that have yet to get to it.
    fn keep_place(&mut self, place: u32) {
        if self.reads.is_empty() {
            return;
        }
        let mut reads = std::mem::take(&mut self.reads);
        reads.keep(place, || self.stored(place));
        self.reads = reads;
    }

    /// Restores departures. Of too many, the oldest are forgotten, and their records are to be
    /// removed.
    pub fn restore(&mut self, mut departures: Vec<Departure>, names: &Names) {
        departures.sort_by_key(|departure| departure.timestamp);
        for departure in departures {
            let user = departure.user;
            if let Some(name) = names.name(user) {
                if self.departures_max == 0 {
                    self.changes.users.insert(user, name.clone());
                }
                self.changes.saved.insert(user, name);
            }
            self.insert(departure);
        }
    }

    /// Remembers a user's last departure, as the owner does. The owner says which departure is
    /// forgotten for it, see [`Self::forget`]: as a rule, this forgets none.
    pub(crate) fn apply(&mut self, departure: Departure, names: &Names) {
        let user = departure.user;
        let known = self.places.get(&user).copied();
        let Some(place) = known.or_else(|| self.free.pop()) else {
            return self.restore(vec![departure], names);
        };
        self.fill(place, departure);
        if let Some(name) = names.name(user) {
            self.changes.saved.insert(user, name);
        }
    }

    /// Forgets a user's last departure. The owner has forgotten it, too, or has replaced it by one
    /// that isn't stored.
    pub(crate) fn forget(&mut self, user: Id) {
        let Some(place) = self.places.get(&user).copied() else {
            return;
        };
        self.keep_place(place);
        self.places.remove(&user);
        self.free.push(place);
        self.verdicts.forget(user);
        self.changes.saved.remove(&user);
    }

    /// Whether a user's last departure is remembered, and stored.
    pub(crate) fn has_stored(&self, user: Id) -> bool {
        self.departure(user).is_some_and(Departure::is_stored)
    }

    /// The numbers of all ids in here.
    pub fn ids(&self) -> RoaringBitmap {
        let mut ids: RoaringBitmap = self.places.keys().map(|user| user.0).collect();
        let mut seen = VisitedSets::default();
        for user in self.places.keys() {
            if let Some(told) = self.recipients(*user) {
                told.audience().add_to(&mut ids, &mut seen);
            }
        }
        let noted = self.changes.users.keys().chain(self.changes.saved.keys());
        ids.extend(noted.map(|user| user.0));
        for departure in self.reads.kept() {
            ids |= departure.ids();
        }
        ids | self.verdicts.ids()
    }

    fn insert(&mut self, departure: Departure) {
        if self.departures_max == 0 {
            return;
        }
        let place = self.free.pop().unwrap_or_else(|| self.next_in_ring());
        self.fill(place, departure);
    }

    /// Takes the next place in the ring. The departure that is there is forgotten.
    fn next_in_ring(&mut self) -> u32 {
        // There are at most `u32::MAX` places.
        let place = self.next as u32;
        self.next = (self.next + 1) % self.departures_max;
        let oldest = self.departures.get(place as usize).map(|it| it.user);
        if let Some(oldest) = oldest.filter(|user| self.places.get(user) == Some(&place)) {
            self.keep_place(place);
            self.places.remove(&oldest);
            self.verdicts.forget(oldest);
            if let Some(name) = self.changes.saved.get(&oldest) {
                self.changes.users.insert(oldest, name.clone());
            }
        }
        place
    }

    /// Puts a departure into a place. Another user's last departure may not be there.
    fn fill(&mut self, place: u32, departure: Departure) {
        let user = departure.user;
        if let Some(last) = self.places.get(&user) {
            self.keep_place(*last);
        }
        self.keep_place(place);
        self.places.insert(user, place);
        match self.departures.get_mut(place as usize) {
            None => self.departures.push(departure),
            Some(slot) => *slot = departure,
        }
        self.verdicts.forget(user);
    }
}

#[cfg(test)]
mod tests;
