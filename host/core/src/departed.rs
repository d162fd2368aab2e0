//! Departures: who went offline, so that a viewer who may know is told when the user was last seen.
//!
//! A viewer may know if the last verdict on the user while online admitted them, and the current
//! rules do so as well. So a departure is remembered together with those who had been told of the
//! user, and with the metadata of the online event that the rules read.
//!
//! Only the last departure of a user is remembered, and the number of departures is limited: the
//! oldest one is forgotten for the newest. So a user who comes and goes all the time costs the
//! others nothing. The departure of a user who has come back stays in here; the ledger says that the
//! user is online.

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

type KnownKeys = Arc<BTreeSet<Box<str>>>;

/// What is remembered of an online event's metadata.
#[derive(Clone, Debug)]
pub struct KnownMetadata {
    metadata: Metadata,
    /// The keys that it has. `None`: all keys.
    keys: Option<KnownKeys>,
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

/// The last departures of one shard's users, one for each user.
#[derive(Debug)]
pub struct Departed {
    departures_max: usize,
    departures: HashMap<Id, Departure, foldhash::fast::FixedState>,
    /// The users by the time of their departure.
    by_age: BTreeSet<(u64, Id)>,
    /// The metadata keys of the newest departure. Most departures have the same ones, and share
    /// them.
    keys: Option<KnownKeys>,
    /// The verdicts on the departures.
    verdicts: Verdicts,
    changes: UnsavedDepartures,
    /// The readings of departures as they were at a moment, by the user's number. Each change of a
    /// departure calls [`Self::keep_read`] before.
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
            departures_max,
            departures: HashMap::default(),
            by_age: BTreeSet::new(),
            keys: None,
            verdicts: Verdicts::default(),
            changes: UnsavedDepartures::default(),
            reads: SnapshotReads::default(),
        }
    }

    /// Changes how many departures are remembered. Of too many, the newest stay.
    pub fn resize(&mut self, departures_max: usize) {
        self.departures_max = departures_max;
        self.forget_oldest();
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
        self.departures.get(&user)
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
        self.departures.values().filter(|it| it.is_stored())
    }

    /// Begins a reading of the stored departures as they are now, for [`Self::read`].
    pub(crate) fn begin_read(&mut self, point: &ReadPoint) {
        let users = self.departures.keys().map(|user| user.0).collect();
        self.reads.begin(point, users);
    }

    /// Reads the next `count` departures at most, as they were at a moment. Returns whether any were
    /// left.
    pub(crate) fn read(
        &mut self,
        point: &ReadPoint,
        count: usize,
        take: impl FnMut(Departure),
    ) -> bool {
        let stored = |user| stored(&self.departures, user);
        self.reads.read(point, count, stored, take)
    }

    /// Call it before a user's departure changes: keeps it for readings that have yet to get to it.
    fn keep_read(&mut self, user: Id) {
        self.reads.keep(user.0, || stored(&self.departures, user.0));
    }

    /// Remembers a departure that has a record: after a restart, or as the owner does. If there are
    /// too many, the record of the one that is forgotten is to be removed.
    pub(crate) fn restore(&mut self, departure: Departure, names: &Names) {
        let user = departure.user;
        if let Some(name) = names.name(user) {
            self.changes.saved.insert(user, name);
        }
        self.insert(departure);
    }

    /// Forgets a user's last departure. The owner has forgotten it, too, or has replaced it by one
    /// that isn't stored.
    pub(crate) fn forget(&mut self, user: Id) {
        self.remove(user);
        self.changes.saved.remove(&user);
    }

    /// Whether a user's last departure is remembered, and stored.
    pub(crate) fn has_stored(&self, user: Id) -> bool {
        self.departure(user).is_some_and(Departure::is_stored)
    }

    /// The numbers of all ids in here.
    pub fn ids(&self) -> RoaringBitmap {
        let mut ids: RoaringBitmap = self.departures.keys().map(|user| user.0).collect();
        let mut seen = VisitedSets::default();
        for departure in self.departures.values() {
            let told = departure.recipients.audience();
            told.add_to(&mut ids, &mut seen);
        }
        let noted = self.changes.users.keys().chain(self.changes.saved.keys());
        ids.extend(noted.map(|user| user.0));
        for departure in self.reads.kept() {
            ids |= departure.ids();
        }
        ids | self.verdicts.ids()
    }

    /// Remembers a departure in the place of its user's last one, and forgets the oldest if there
    /// are too many.
    fn insert(&mut self, mut departure: Departure) {
        let (user, timestamp) = (departure.user, departure.timestamp);
        let keys = &mut departure.known.keys;
        if *keys == self.keys {
            keys.clone_from(&self.keys);
        } else {
            self.keys.clone_from(keys);
        }
        self.keep_read(user);
        self.verdicts.forget(user);
        let last = self.departures.insert(user, departure);
        let last = last.map(|it| it.timestamp);
        if last != Some(timestamp) {
            if let Some(last) = last {
                self.by_age.remove(&(last, user));
            }
            self.by_age.insert((timestamp, user));
        }
        self.forget_oldest();
    }

    fn forget_oldest(&mut self) {
        while self.departures.len() > self.departures_max {
            let Some((_, oldest)) = self.by_age.first().copied() else {
                return;
            };
            self.remove(oldest);
            if let Some(name) = self.changes.saved.get(&oldest) {
                self.changes.users.insert(oldest, name.clone());
            }
        }
    }

    fn remove(&mut self, user: Id) {
        self.keep_read(user);
        self.verdicts.forget(user);
        if let Some(departure) = self.departures.remove(&user) {
            self.by_age.remove(&(departure.timestamp, user));
        }
    }
}

/// A user's departure, if it is stored.
fn stored(
    departures: &HashMap<Id, Departure, foldhash::fast::FixedState>,
    user: u32,
) -> Option<Departure> {
    let departure = departures.get(&Id(user))?;
    departure.is_stored().then(|| departure.clone())
}

#[cfg(test)]
mod tests;
