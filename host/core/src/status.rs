//! Statuses: what a connection says that its user is doing (the activity), and what users say about
//! themselves (their own status), as two keys of the metadata.
//!
//! The tracker keeps activities, since they end with connections. A user's own status is kept here.
//! It outlives the connection that set it, as long as the user is online: the newest one, by its
//! sender's timestamp, is valid until it expires or is replaced.

use std::collections::BTreeSet;

use hashbrown::HashMap;
use roaring::RoaringBitmap;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::changed::ChangedUsers;
use crate::digest::{PartedDigest, digest};
use crate::json::{self, push_number};
use crate::metadata::{CheckedMetadata, Metadata};
use crate::names::{Id, Name};
use crate::read_point::{ReadPoint, SnapshotReads};
use crate::tracker::Activity;

/// The metadata key of the activity.
pub const ACTIVITY: &str = "activity";

/// The metadata key of the user's own status.
pub const STATUS: &str = "status";

/// The maximum length of a status text, in bytes.
pub const TEXT_BYTES_MAX: usize = 256;

/// The settings of statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusSettings {
    /// The minimum time between two updates of a user.
    pub min_interval_ms: u64,
    /// How long a user counts as typing after a connection last said so.
    pub typing_ms: u64,
    /// The maximum number of users whose own status is kept.
    pub users_max: usize,
}

/// What a message says about its user's activity and own status.
#[derive(Debug, Default)]
pub struct StatusUpdate<'a> {
    /// The activity, if the message has one.
    pub activity: Option<Activity>,
    /// The user's own status, if the message has one. `Some(None)`: the status is cleared.
    pub status: Option<Option<StatusRef<'a>>>,
    /// How many of the two were invalid.
    pub unknown: u64,
}

/// A user's own status, borrowed from a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRef<'a> {
    /// A JSON string.
    pub text: &'a str,
    /// When the status expires, in milliseconds since the Unix epoch. `None`: never.
    pub expires_at: Option<u64>,
}

/// A user's own status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// A JSON string.
    pub text: Box<str>,
    /// When the status expires, in milliseconds since the Unix epoch. `None`: never.
    pub expires_at: Option<u64>,
}

/// What a user last said about themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnStatus {
    /// The sender's timestamp, in milliseconds since the Unix epoch.
    pub timestamp: u64,
    /// The status. `None`: the user has cleared it.
    pub status: Option<Status>,
}

/// The values of the two status keys in an event's metadata, as JSON text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusKeys {
    /// The value under [`ACTIVITY`].
    pub activity: Option<Box<str>>,
    /// The value under [`STATUS`].
    pub status: Option<Box<str>>,
}

impl<'a> StatusUpdate<'a> {
    /// Reads the metadata of a connect or heartbeat. Nothing is copied.
    pub fn read(metadata: CheckedMetadata<'a>) -> Self {
        let mut update = Self::default();
        for (key, json) in metadata.entries() {
            let is_unknown = match &*key {
                ACTIVITY => {
                    update.activity = Activity::parse(json);
                    update.activity.is_none()
                }
                STATUS => {
                    update.status = StatusRef::parse(json);
                    update.status.is_none()
                }
                _ => false,
            };
            update.unknown += u64::from(is_unknown);
        }
        update
    }
}

impl Activity {
    /// The activity as JSON text.
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
    /// `None` if it is invalid. `Some(None)` if it clears the status.
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
        // serde would also accept an array for the struct.
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
    /// The status as a JSON object.
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
    /// The status that is still valid at a wall time.
    fn at(&self, wall: u64) -> Option<&Status> {
        let expired = |status: &&Status| status.expires_at.is_some_and(|at| at <= wall);
        self.status.as_ref().filter(|status| !expired(status))
    }

    /// The digest of the user's status. `None` if there is no status.
    fn digest(&self, user: &Name) -> Option<u64> {
        let Status { text, expires_at } = self.status.as_ref()?;
        let expires_at = expires_at.unwrap_or_default().to_le_bytes();
        let user = user.as_str().as_bytes();
        Some(digest(&[user, &[], text.as_bytes(), &expires_at]))
    }
}

impl StatusKeys {
    /// The values in an event's metadata that may be broadcast.
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

    /// A copy of the metadata with these values. Its text is written anew, so it doesn't keep the
    /// text of the old values in memory.
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

/// The state of one user.
#[derive(Debug, Default)]
struct StatusEntry {
    own_status: Option<OwnStatus>,
    /// When the last update was broadcast, by the monotonic time.
    broadcast_at: Option<u64>,
    /// When to look at the user again.
    check_at: Option<u64>,
    /// Whether the user must be shown by another connection then.
    reshow: bool,
}

impl StatusEntry {
    fn is_empty(&self) -> bool {
        self.own_status.is_none()
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
    /// The number of users with an own status, or a cleared one.
    own_statuses: usize,
    changed: ChangedUsers,
    /// The digest of users' own statuses.
    digest: PartedDigest,
    /// The readers of own statuses as of a moment. So [`Self::keep`] must be called before any
    /// change of one.
    reads: SnapshotReads<(Id, OwnStatus)>,
}

impl Statuses {
    /// Whether a user's own status can be kept, if those of at most `users_max` users are kept.
    pub fn has_room(&self, user: Id, users_max: usize) -> bool {
        let is_kept = |entry: &StatusEntry| entry.own_status.is_some();
        self.own_statuses < users_max || self.users.get(&user).is_some_and(is_kept)
    }

    /// A user sets or clears their own status. Returns whether that changes anything.
    pub fn set(
        &mut self,
        user: Id,
        name: &Name,
        timestamp: u64,
        status: Option<StatusRef<'_>>,
    ) -> bool {
        self.keep(user);
        let entry = self.users.entry(user).or_default();
        if let Some(own_status) = &mut entry.own_status {
            if timestamp < own_status.timestamp {
                return false;
            }
            let same = match (&own_status.status, status) {
                (Some(before), Some(status)) => before.is(status),
                (before, status) => before.is_none() && status.is_none(),
            };
            if same {
                // This is no change to store. Otherwise, each heartbeat that repeats the status
                // would be one.
                own_status.timestamp = timestamp;
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

    /// Restores what a user last said about themselves.
    pub fn restore(&mut self, user: Id, name: &Name, own_status: OwnStatus) {
        self.keep(user);
        self.put(user, name, Some(own_status));
    }

    /// The digest of users' own statuses.
    pub fn digest(&self) -> &PartedDigest {
        &self.digest
    }

    /// A user's own status at a wall time, as a JSON object. `Some(None)` if it was cleared or has
    /// expired. `None` if the user has never set one.
    pub fn status(&self, wall: u64, user: Id) -> Option<Option<Box<str>>> {
        let own_status = self.users.get(&user)?.own_status.as_ref()?;
        Some(own_status.at(wall).map(Status::json))
    }

    /// The wall time at which a user's own status expires, if it does.
    pub fn expires_at(&self, wall: u64, user: Id) -> Option<u64> {
        let own_status = self.users.get(&user)?.own_status.as_ref()?;
        own_status.at(wall)?.expires_at
    }

    /// When the last update of a user was broadcast, by the monotonic time.
    pub fn broadcast_at(&self, user: Id) -> Option<u64> {
        self.users.get(&user)?.broadcast_at
    }

    /// Notes that an update of a user is broadcast now.
    pub fn note_broadcast(&mut self, now: u64, user: Id) {
        self.users.entry(user).or_default().broadcast_at = Some(now);
    }

    /// The users whose own status has an expiry, in a stable order.
    pub fn expiring(&self) -> Vec<Id> {
        let expires = |entry: &StatusEntry| {
            let status = entry
                .own_status
                .as_ref()
                .and_then(|own_status| own_status.status.as_ref());
            status.is_some_and(|status| status.expires_at.is_some())
        };
        let users = self.users.iter().filter(|(_, entry)| expires(entry));
        let mut users: Vec<_> = users.map(|(user, _)| *user).collect();
        users.sort_unstable();
        users
    }

    /// Has a user looked at again at this monotonic time, or earlier.
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

    /// Has a user be shown by another connection at this time, instead of at once.
    pub fn reshow_at(&mut self, user: Id, at: u64) {
        self.users.entry(user).or_default().reshow = true;
        self.check_at(user, at);
    }

    /// Whether the user must be shown by another connection now, which was delayed. It clears the
    /// flag.
    pub fn take_reshow(&mut self, user: Id) -> bool {
        let entry = self.users.get_mut(&user);
        entry.is_some_and(|entry| std::mem::take(&mut entry.reshow))
    }

    /// Whether a user is looked at again no later than the next update is allowed.
    pub fn waits(&self, user: Id, min_interval_ms: u64) -> bool {
        let entry = self.users.get(&user);
        entry.is_some_and(|entry| match (entry.check_at, entry.broadcast_at) {
            (Some(at), Some(broadcast_at)) => at <= broadcast_at.saturating_add(min_interval_ms),
            (Some(_), None) | (None, _) => false,
        })
    }

    /// When the next user must be looked at.
    pub fn next_check(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Takes a user who must be looked at by now.
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

    /// Forgets a user's own status.
    pub fn clear(&mut self, user: Id, name: &Name) {
        self.keep(user);
        if self.users.contains_key(&user) && self.put(user, name, None) {
            self.changed.note(user, name);
        }
    }

    /// Replaces a user's own status. Returns whether there was one before.
    fn put(&mut self, user: Id, name: &Name, own_status: Option<OwnStatus>) -> bool {
        let after = own_status
            .as_ref()
            .and_then(|own_status| own_status.digest(name));
        let is_kept = own_status.is_some();
        let entry = self.users.entry(user).or_default();
        let before = std::mem::replace(&mut entry.own_status, own_status);
        self.own_statuses += usize::from(is_kept);
        self.own_statuses -= usize::from(before.is_some());
        if let Some(digest) = before
            .as_ref()
            .and_then(|own_status| own_status.digest(name))
        {
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

    /// The users for whom anything is kept, in a stable order.
    pub fn users(&self) -> Vec<Id> {
        let mut users: Vec<_> = self.users.keys().copied().collect();
        users.sort_unstable();
        users
    }

    /// Begins to read users' own statuses as they are now, by [`Self::read`].
    pub(crate) fn begin_read(&mut self, point: &ReadPoint) {
        let users = self.users.keys().map(|user| user.0).collect();
        self.reads.begin(point, users);
    }

    /// Reads the own statuses of at most `count` more users, as of a moment. Returns whether any
    /// were left.
    pub(crate) fn read(
        &mut self,
        point: &ReadPoint,
        count: usize,
        take: impl FnMut((Id, OwnStatus)),
    ) -> bool {
        let own_status = |user| own_status(&self.users, Id(user));
        self.reads.read(point, count, own_status, take)
    }

    /// Keeps a user's own status for readers, since it is about to change.
    fn keep(&mut self, user: Id) {
        let users = &self.users;
        self.reads.keep(user.0, || own_status(users, user));
    }

    /// Sets whether changes are noted from now on, for [`Self::take_changed`].
    pub fn keep_records(&mut self, keep: bool) {
        self.changed.keep(keep);
    }

    /// Whether any change has been noted.
    pub fn has_records(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The users whose own status has changed since the last call, with the current status.
    pub fn take_changed(&mut self) -> impl Iterator<Item = (Name, Option<OwnStatus>)> {
        self.changed.take().into_iter().map(|(id, user)| {
            let entry = self.users.get(&id);
            (user, entry.and_then(|entry| entry.own_status.clone()))
        })
    }

    /// All ids in here, as numbers.
    pub fn ids(&self) -> RoaringBitmap {
        let users = self.users.keys().map(|user| user.0);
        let kept = self.reads.kept().map(|(user, _)| user.0);
        users.chain(self.changed.ids()).chain(kept).collect()
    }
}

type Users = HashMap<Id, StatusEntry, foldhash::fast::FixedState>;

/// What a user last said about themselves.
fn own_status(users: &Users, user: Id) -> Option<(Id, OwnStatus)> {
    let own_status = users.get(&user)?.own_status.clone()?;
    Some((user, own_status))
}
