//! Statuses: what a connection says that its user is doing, and what users say of
//! themselves, as two keys of the metadata.
//!
//! What users are doing is the tracker's to know, since it ends with their
//! connections. What they say of themselves is kept here, and outlives the
//! connection that said it for as long as the user is online: the newest word
//! holds, by its sender's timestamp, until it expires or another takes its place.

use std::collections::BTreeSet;

use hashbrown::HashMap;
use roaring::RoaringBitmap;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::changed::ChangedUsers;
use crate::digest::{PartedDigest, digest};
use crate::json::{self, push_number};
use crate::metadata::{CheckedMetadata, Metadata};
use crate::moment::{Moment, Readings};
use crate::names::{Id, Name};
use crate::tracker::Activity;

/// The key of what a user is doing.
pub const ACTIVITY: &str = "activity";

/// The key of what a user says of themselves.
pub const STATUS: &str = "status";

/// The longest text of a status, in bytes.
pub const TEXT_BYTES_MAX: usize = 256;

/// How statuses are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusSettings {
    /// How long after an update of a user the next one is told, at the earliest.
    pub min_interval_ms: u64,
    /// How long after a connection last said that its user is typing this ends.
    pub typing_ms: u64,
    /// Of how many users is kept what they say of themselves.
    pub users_max: usize,
}

/// What a message says of its user's status.
#[derive(Debug, Default)]
pub struct StatusUpdate<'a> {
    /// What the user is doing, if it says so.
    pub activity: Option<Activity>,
    /// What the user says of themselves, if anything: none takes it back.
    pub status: Option<Option<StatusRef<'a>>>,
    /// How many of the two were not understood.
    pub unknown: u64,
}

/// What a user says of themselves, as a message has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRef<'a> {
    /// A JSON string.
    pub text: &'a str,
    /// Until when it holds, in milliseconds since the Unix epoch; for good if none.
    pub expires_at: Option<u64>,
}

/// What a user says of themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// A JSON string.
    pub text: Box<str>,
    /// Until when it holds, in milliseconds since the Unix epoch; for good if none.
    pub expires_at: Option<u64>,
}

/// A user's own status, as last set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnStatus {
    /// Its sender's time, in milliseconds since the Unix epoch.
    pub timestamp: u64,
    /// What it says; none takes back what was said before.
    pub status: Option<Status>,
}

/// How an event's metadata is to read: the two keys, as JSON text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusKeys {
    /// Under [`ACTIVITY`].
    pub activity: Option<Box<str>>,
    /// Under [`STATUS`].
    pub status: Option<Box<str>>,
}

impl<'a> StatusUpdate<'a> {
    /// Reads the metadata of a connect or heartbeat. Nothing is copied.
    pub fn read(metadata: &'a CheckedMetadata) -> Self {
        let mut said = Self::default();
        if let Some(json) = metadata.get(ACTIVITY) {
            said.activity = Activity::parse(json);
            said.unknown += u64::from(said.activity.is_none());
        }
        if let Some(json) = metadata.get(STATUS) {
            said.status = StatusRef::parse(json);
            said.unknown += u64::from(said.status.is_none());
        }
        said
    }
}

impl Activity {
    /// As JSON text.
    pub fn json(self) -> &'static str {
        match self {
            Self::Idle => "\"idle\"",
            Self::Active => "\"active\"",
            Self::Typing => "\"typing\"",
        }
    }

    fn parse(json: &str) -> Option<Self> {
        let text = json::text(json)?;
        let mut all = Self::ALL.into_iter();
        all.find(|activity| json::text(activity.json()).as_deref() == Some(&*text))
    }
}

impl<'a> StatusRef<'a> {
    /// None if it is no status; none within if it takes one back.
    fn parse(json: &'a str) -> Option<Option<Self>> {
        #[derive(Deserialize)]
        struct Object<'a> {
            #[serde(borrow)]
            text: &'a RawValue,
            #[serde(rename = "expiresAt", borrow, default)]
            expires_at: Option<&'a RawValue>,
        }
        if json == "null" {
            return Some(None);
        }
        // A struct may be written as an array elsewhere.
        let object: Object<'a> = json
            .starts_with('{')
            .then(|| serde_json::from_str(json).ok())??;
        let text = json::text(object.text.get())?;
        let expires_at = match object.expires_at {
            None => None,
            Some(raw) => Some(raw.get().parse().ok().filter(|at| *at > 0)?),
        };
        let status = Self {
            text: object.text.get(),
            expires_at,
        };
        (text.len() <= TEXT_BYTES_MAX).then_some(Some(status))
    }
}

impl Status {
    /// As a JSON object.
    fn json(&self) -> Box<str> {
        let mut json = Vec::with_capacity(self.text.len() + 48);
        json.extend_from_slice(b"{\"text\":");
        json.extend_from_slice(self.text.as_bytes());
        if let Some(at) = self.expires_at {
            json.extend_from_slice(b",\"expiresAt\":");
            push_number(&mut json, at);
        }
        json.push(b'}');
        String::from_utf8(json).unwrap_or_default().into()
    }

    fn is(&self, other: StatusRef<'_>) -> bool {
        *self.text == *other.text && self.expires_at == other.expires_at
    }
}

impl OwnStatus {
    /// What holds of it at a wall time.
    fn at(&self, wall: u64) -> Option<&Status> {
        let expired = |status: &&Status| status.expires_at.is_some_and(|at| at <= wall);
        self.status.as_ref().filter(|status| !expired(status))
    }

    /// The digest of what it says; none if that is nothing.
    fn digest(&self, user: &Name) -> Option<u64> {
        let Status { text, expires_at } = self.status.as_ref()?;
        let expires_at = expires_at.unwrap_or_default().to_le_bytes();
        let user = user.as_str().as_bytes();
        Some(digest(&[user, &[], text.as_bytes(), &expires_at]))
    }
}

impl StatusKeys {
    /// What an event's metadata reads as it is broadcast.
    pub fn of(metadata: &Metadata) -> Self {
        let public = |key: &str| {
            let mut entries = metadata.entries();
            let entry = entries.find(|entry| entry.key == key && entry.public);
            entry.map(|entry| entry.value.into())
        };
        Self {
            activity: public(ACTIVITY),
            status: public(STATUS),
        }
    }

    /// Metadata that reads so. It is written again, and so holds nothing of what it
    /// read before.
    pub fn put_into(&self, metadata: &Metadata) -> Metadata {
        let mut changed = Metadata::default().edit();
        let others = metadata.entries();
        for entry in others.filter(|entry| entry.key != ACTIVITY && entry.key != STATUS) {
            changed.set(entry.key, entry.value, entry.public);
        }
        for (key, value) in [(ACTIVITY, &self.activity), (STATUS, &self.status)] {
            if let Some(value) = value {
                changed.set(key, value, true);
            }
        }
        changed.build()
    }
}

/// What is kept of one user.
#[derive(Debug, Default)]
struct StatusEntry {
    word: Option<OwnStatus>,
    /// When the last update was broadcast, by the monotonic time.
    broadcast_at: Option<u64>,
    /// When to look at the user again.
    check_at: Option<u64>,
    /// Whether the user is to be shown by another connection then.
    reshow: bool,
}

impl StatusEntry {
    fn is_empty(&self) -> bool {
        self.word.is_none()
            && self.broadcast_at.is_none()
            && self.check_at.is_none()
            && !self.reshow
    }
}

/// The statuses of one shard's users.
#[derive(Debug, Default)]
pub struct Statuses {
    users: Users,
    /// When to look at which user.
    timers: BTreeSet<(u64, Id)>,
    /// How many users have set one.
    words: usize,
    changed: ChangedUsers,
    /// The digest of what users say of themselves.
    digest: PartedDigest,
    /// Who reads what users say of themselves, as it was at some moment: nothing of it changes but
    /// behind [`Self::keep`].
    readings: Readings<(Id, OwnStatus)>,
}

impl Statuses {
    /// Whether what a user says of themselves can be kept, where it is of so many users at
    /// most.
    pub fn has_room(&self, user: Id, users_max: usize) -> bool {
        let is_kept = |entry: &StatusEntry| entry.word.is_some();
        self.words < users_max || self.users.get(&user).is_some_and(is_kept)
    }

    /// A user says something of themselves. Says whether that changes anything.
    pub fn set(
        &mut self,
        user: Id,
        name: &Name,
        timestamp: u64,
        status: Option<StatusRef<'_>>,
    ) -> bool {
        self.keep(user);
        let entry = self.users.entry(user).or_default();
        if let Some(word) = &mut entry.word {
            if timestamp < word.timestamp {
                return false;
            }
            let same = match (&word.status, status) {
                (Some(before), Some(status)) => before.is(status),
                (before, status) => before.is_none() && status.is_none(),
            };
            if same {
                // No change to store: it would be one with each heartbeat that says so.
                word.timestamp = timestamp;
                return false;
            }
        }
        let status = status.map(|StatusRef { text, expires_at }| Status {
            text: text.into(),
            expires_at,
        });
        self.put(user, name, Some(OwnStatus { timestamp, status }));
        self.changed.note(user, name);
        true
    }

    /// Puts back what a user last said of themselves.
    pub fn restore(&mut self, user: Id, name: &Name, word: OwnStatus) {
        self.keep(user);
        self.put(user, name, Some(word));
    }

    /// The digest of what users say of themselves.
    pub fn digest(&self) -> &PartedDigest {
        &self.digest
    }

    /// What a user says of themselves at a wall time, as a JSON object; none within if that is
    /// nothing, or nothing any more; none if they have never said anything.
    pub fn status(&self, wall: u64, user: Id) -> Option<Option<Box<str>>> {
        let word = self.users.get(&user)?.word.as_ref()?;
        Some(word.at(wall).map(Status::json))
    }

    /// At which wall time what a user says of themselves expires, if it will.
    pub fn expires_at(&self, wall: u64, user: Id) -> Option<u64> {
        let word = self.users.get(&user)?.word.as_ref()?;
        word.at(wall)?.expires_at
    }

    /// When the last update of a user was broadcast, by the monotonic time.
    pub fn broadcast_at(&self, user: Id) -> Option<u64> {
        self.users.get(&user)?.broadcast_at
    }

    /// An update of a user is broadcast now.
    pub fn note_broadcast(&mut self, now: u64, user: Id) {
        self.users.entry(user).or_default().broadcast_at = Some(now);
    }

    /// The users whose status expires, in a stable order.
    pub fn expiring(&self) -> Vec<Id> {
        let expires = |entry: &StatusEntry| {
            let status = entry.word.as_ref().and_then(|word| word.status.as_ref());
            status.is_some_and(|status| status.expires_at.is_some())
        };
        let users = self.users.iter().filter(|(_, entry)| expires(entry));
        let mut users: Vec<_> = users.map(|(user, _)| *user).collect();
        users.sort_unstable();
        users
    }

    /// Looks at a user again at a time, by the monotonic time, or before it.
    pub fn check_at(&mut self, user: Id, at: u64) {
        let entry = self.users.entry(user).or_default();
        if entry.check_at.is_some_and(|before| before <= at) {
            return;
        }
        if let Some(before) = entry.check_at.replace(at) {
            self.timers.remove(&(before, user));
        }
        self.timers.insert((at, user));
    }

    /// Has it be told at a time that a user is shown by another connection.
    pub fn reshow_at(&mut self, user: Id, at: u64) {
        self.users.entry(user).or_default().reshow = true;
        self.check_at(user, at);
    }

    /// Whether it is to be told now that a user is shown by another connection, which
    /// was put off.
    pub fn take_reshow(&mut self, user: Id) -> bool {
        let entry = self.users.get_mut(&user);
        entry.is_some_and(|entry| std::mem::take(&mut entry.reshow))
    }

    /// Whether a user is to be looked at no later than an update may follow the last one.
    pub fn waits(&self, user: Id, min_interval_ms: u64) -> bool {
        let entry = self.users.get(&user);
        entry.is_some_and(|entry| match (entry.check_at, entry.broadcast_at) {
            (Some(at), Some(broadcast_at)) => at <= broadcast_at.saturating_add(min_interval_ms),
            (Some(_), None) | (None, _) => false,
        })
    }

    /// When somebody is to be looked at.
    pub fn next_check(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Somebody who is to be looked at by now.
    pub fn pop_due(&mut self, now: u64) -> Option<Id> {
        let (at, user) = *self.timers.first().filter(|(at, _)| *at <= now)?;
        self.timers.remove(&(at, user));
        if let Some(entry) = self.users.get_mut(&user) {
            entry.check_at = None;
            if entry.is_empty() {
                self.users.remove(&user);
            }
        }
        Some(user)
    }

    /// Forgets what a user says of themselves.
    pub fn clear(&mut self, user: Id, name: &Name) {
        self.keep(user);
        if self.users.contains_key(&user) && self.put(user, name, None) {
            self.changed.note(user, name);
        }
    }

    /// What a user says of themselves is this from now on. Says whether there was anything before.
    fn put(&mut self, user: Id, name: &Name, word: Option<OwnStatus>) -> bool {
        let after = word.as_ref().and_then(|word| word.digest(name));
        let is_kept = word.is_some();
        let entry = self.users.entry(user).or_default();
        let before = std::mem::replace(&mut entry.word, word);
        self.words += usize::from(is_kept);
        self.words -= usize::from(before.is_some());
        if let Some(digest) = before.as_ref().and_then(|word| word.digest(name)) {
            self.digest.remove(digest);
        }
        if let Some(digest) = after {
            self.digest.add(digest);
        }
        before.is_some()
    }

    /// Forgets a user who has no connection any more.
    pub fn forget(&mut self, user: Id, name: &Name) {
        self.clear(user, name);
        let at = self.users.remove(&user).and_then(|entry| entry.check_at);
        if let Some(at) = at {
            self.timers.remove(&(at, user));
        }
    }

    /// The users with anything known or to be told, in a stable order.
    pub fn users(&self) -> Vec<Id> {
        let mut users: Vec<_> = self.users.keys().copied().collect();
        users.sort_unstable();
        users
    }

    /// What users say of themselves is to be read as it is now, by [`Self::read`].
    pub(crate) fn begin_reading(&mut self, moment: &Moment) {
        let users = self.users.keys().map(|user| user.0).collect();
        self.readings.begin(moment, users, 0);
    }

    /// Reads on as of a moment, of so many users at most. Says whether any were left.
    pub(crate) fn read(
        &mut self,
        moment: &Moment,
        count: usize,
        take: impl FnMut((Id, OwnStatus)),
    ) -> bool {
        let word = |user| word(&self.users, Id(user));
        self.readings.read(moment, count, word, take)
    }

    /// What a user says of themselves is about to change.
    fn keep(&mut self, user: Id) {
        let users = &self.users;
        self.readings.keep(user.0, || word(users, user));
    }

    /// Whether changes are noted from now on, for [`Self::take_changed`].
    pub fn keep_records(&mut self, keep: bool) {
        self.changed.keep(keep);
    }

    /// Whether there is anything to take.
    pub fn has_records(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The users whose own status has changed since this was last called, with the status.
    /// Of two of the same user, the later holds.
    pub fn take_changed(&mut self) -> impl Iterator<Item = (Name, Option<OwnStatus>)> {
        self.changed.take().into_iter().map(|(id, user)| {
            let entry = self.users.get(&id);
            (user, entry.and_then(|entry| entry.word.clone()))
        })
    }

    /// All the numbers of ids in here.
    pub fn ids(&self) -> RoaringBitmap {
        let users = self.users.keys().map(|user| user.0);
        let kept = self.readings.kept().map(|(user, _)| user.0);
        users.chain(self.changed.ids()).chain(kept).collect()
    }
}

type Users = HashMap<Id, StatusEntry, foldhash::fast::FixedState>;

/// What a user last said of themselves.
fn word(users: &Users, user: Id) -> Option<(Id, OwnStatus)> {
    let word = users.get(&user)?.word.clone()?;
    Some((user, word))
}
