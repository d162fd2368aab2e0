//! The messages by which a leading replica tells its standbys, before it publishes, what they can't
//! derive from the shard's input.
//!
//! Each message has the shard, the epoch and a sequence number, without gaps within the epoch. The
//! first message of an epoch is [`StandbyContent::Begin`]. A change is a record in the format of a
//! restart, except that a user's viewers are given as the difference to the last message about
//! them, with a digest before and after. So a correction for one viewer costs one viewer, however
//! many there are. The viewers of a user who goes offline are kept with the departure, as long as
//! the departure is remembered. So no viewer is named when a user goes offline, or comes back to
//! the same viewers.
//!
//! Where there are many heartbeats, the owner also tells the standbys of these, in batches, so that
//! the standbys needn't receive them.

use hashbrown::HashMap;
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use super::as_bytes;
use crate::audience::{Audience, VisitedSets};
use crate::departed::Departure;
use crate::digest::{PARTS, digest};
use crate::ledger::LedgerEntry;
use crate::names::{Id, Names};
use crate::recipients::{Recipients, ShownDigest};
use crate::record::Record;

/// A message to the standbys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyMessage {
    /// The shard.
    pub shard: u32,
    /// The epoch of its owner.
    pub epoch: u64,
    /// The sequence number within the epoch, from 1. A digest has the number of the message before
    /// it.
    pub seq: u64,
    /// The node that sends the message.
    pub node: Box<str>,
    /// The content.
    pub content: StandbyContent,
}

/// The content of a message to the standbys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StandbyContent {
    /// An owner begins. The number is the digest of its ledger.
    Begin(u64),
    /// These changes are about to be published.
    Changes(Vec<RecordChange>),
    /// Digests of what the owner holds, for the standbys to compare.
    Digest {
        /// The digest of the ledger.
        ledger: u64,
        /// The digests of live connections, statuses and applications' statements, in parts.
        connections: Box<[u64; PARTS]>,
    },
    /// A piece of a message that is too long to be sent at once.
    Piece {
        /// Whether it is the last piece.
        is_last: bool,
        /// The bytes of the piece.
        #[serde(with = "as_bytes")]
        bytes: Vec<u8>,
    },
    /// What the owner has received from connections.
    Heartbeats {
        /// The owner's receive clock, in milliseconds: when a lease starts that is renewed now.
        clock: u64,
        /// Whether the owner sends the next such message soon, so that standbys needn't receive
        /// heartbeats.
        goes_on: bool,
        /// The encoded [`HeartbeatBatch`](crate::HeartbeatBatch).
        #[serde(with = "as_bytes")]
        entries: Vec<u8>,
    },
}

/// A record that has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordChange {
    key: Vec<u8>,
    /// The record, without viewers. `None`: the record is removed.
    value: Option<Vec<u8>>,
    viewers: Option<ViewersDelta>,
}

/// How the viewers who were told of a user, and what they were shown, have changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ViewersDelta {
    /// The digests of all viewers, before and after.
    before: u64,
    after: u64,
    lost: Vec<String>,
    /// Viewers who are new, or are shown something else than before, by the digest of what they are
    /// shown.
    shown: Vec<([u8; 8], Vec<String>)>,
}

/// The maximum length of a message in pieces, in bytes.
const PIECES_BYTES_MAX: usize = 1 << 28;

/// The pieces of an incomplete message.
#[derive(Debug, Default)]
pub struct PartialMessage(Vec<u8>);

/// Why a message can't be applied. A fresh snapshot repairs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// It can't be read.
    Unreadable,
    /// The difference has another base than the state here.
    Base,
    /// The result has another digest than the message says.
    Result,
}

impl StandbyMessage {
    /// Encodes the message.
    pub fn encode(&self) -> Vec<u8> {
        // Plain data in memory can always be encoded.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// Decodes a message of [`Self::encode`].
    ///
    /// # Errors
    /// If the bytes aren't such a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, Mismatch> {
        match postcard::take_from_bytes(bytes) {
            Ok((message, [])) => Ok(message),
            Ok(_) | Err(_) => Err(Mismatch::Unreadable),
        }
    }
}

/// Cuts a message into pieces of at most `bytes_max` bytes.
pub fn pieces(message: &[u8], bytes_max: usize) -> impl Iterator<Item = StandbyContent> {
    let parts = message.chunks(bytes_max.max(1));
    let last = parts.len().saturating_sub(1);
    parts
        .enumerate()
        .map(move |(number, part)| StandbyContent::Piece {
            is_last: number == last,
            bytes: part.to_vec(),
        })
}

impl PartialMessage {
    /// Whether no piece is waiting for the rest of its message.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the next piece. Returns the content of the message once it is complete.
    ///
    /// # Errors
    /// If the message can't be decoded, or is too long.
    pub fn take(
        &mut self,
        is_last: bool,
        bytes: &[u8],
    ) -> Result<Option<StandbyContent>, Mismatch> {
        if self.0.len() + bytes.len() > PIECES_BYTES_MAX {
            return Err(Mismatch::Unreadable);
        }
        self.0.extend_from_slice(bytes);
        if !is_last {
            return Ok(None);
        }
        let whole = StandbyMessage::decode(&std::mem::take(&mut self.0))?;
        Ok(Some(whole.content))
    }
}

/// What viewers were told last, for each user. Owner and standby hold the same.
#[derive(Debug, Default)]
pub struct ToldViewers {
    users: HashMap<Id, ToldUser, foldhash::fast::FixedState>,
    /// The viewers of users who have gone offline, as far as their departures are remembered.
    departed: HashMap<Id, Viewers, foldhash::fast::FixedState>,
    /// The viewers of users whose removal is part of the message that is being noted or taken.
    leaving: HashMap<Id, Viewers, foldhash::fast::FixedState>,
    /// The digest of everything that is known of online users.
    digest: u64,
}

#[derive(Debug)]
struct ToldUser {
    viewers: Viewers,
    /// The user's share in the digest of all.
    share: u64,
}

/// The viewers of a user, and a digest of them and of what they were shown.
#[derive(Clone, Debug, Default)]
struct Viewers {
    recipients: Recipients,
    digest: u64,
}

impl ToldViewers {
    /// Those of a ledger and of departures.
    pub fn of<'a>(
        entries: impl Iterator<Item = &'a LedgerEntry>,
        departures: impl Iterator<Item = &'a Departure>,
        names: &Names,
    ) -> Self {
        let mut told_viewers = Self::default();
        entries.for_each(|entry| told_viewers.put(entry, names));
        departures.for_each(|departure| told_viewers.put_departed(departure, names));
        told_viewers
    }

    /// Notes the entry of a ledger record, or the departure of a departure record.
    pub fn put_record(&mut self, record: &Record, names: &Names) {
        match record {
            Record::Ledger {
                entry: Some(entry), ..
            } => self.put(entry, names),
            Record::Departed {
                departure: Some(departure),
                ..
            } => self.put_departed(departure, names),
            _ => {}
        }
    }

    fn put(&mut self, entry: &LedgerEntry, names: &Names) {
        let (key, value) = without_viewers(entry, names);
        let viewers = Viewers::of(&entry.recipients, names);
        self.insert(entry.event.user, viewers, &key, &value);
    }

    fn put_departed(&mut self, departure: &Departure, names: &Names) {
        let viewers = Viewers::of(&departure.recipients, names);
        self.departed.insert(departure.user, viewers);
    }

    /// Forgets the viewers of offline users whose departures this shard doesn't remember: the
    /// standbys may not know them.
    pub fn keep_departed(&mut self, remembers: impl Fn(Id) -> bool) {
        self.departed.retain(|user, _| remembers(*user));
    }

    /// The number of online users in here.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether no online user is in here.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// All ids in here, as numbers.
    pub fn ids(&self) -> RoaringBitmap {
        let mut ids = RoaringBitmap::new();
        let mut seen = VisitedSets::default();
        let online = self.users.iter().map(|(user, it)| (user, &it.viewers));
        for (user, viewers) in online.chain(&self.departed) {
            ids.insert(user.0);
            viewers.recipients.audience().add_to(&mut ids, &mut seen);
        }
        ids
    }

    /// The digest of everything that is known of online users.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Notes the records of one message, and returns them as changes against what was noted before.
    pub fn note(&mut self, records: &[Record], names: &Names) -> Vec<RecordChange> {
        let changes = records.iter().map(|record| self.note_one(record, names));
        let changes = changes.collect();
        self.leaving.clear();
        changes
    }

    fn note_one(&mut self, record: &Record, names: &Names) -> RecordChange {
        let (key, value, viewers) = match record {
            Record::Ledger {
                entry: Some(entry), ..
            } => {
                let user = entry.event.user;
                let (key, value) = without_viewers(entry, names);
                let (difference, viewers) = self.difference(user, &entry.recipients, names);
                self.insert(user, viewers, &key, &value);
                (key, Some(value), Some(difference))
            }
            Record::Departed {
                user,
                departure: Some(departure),
            } => {
                let (difference, viewers) =
                    self.difference(departure.user, &departure.recipients, names);
                self.departed.insert(departure.user, viewers);
                let bare = Record::Departed {
                    user: user.clone(),
                    departure: Some(Departure {
                        recipients: Recipients::default(),
                        ..departure.clone()
                    }),
                };
                let (key, value) = bare.encode(names);
                (key, value, Some(difference))
            }
            other => {
                self.forget(other, names);
                let (key, value) = other.encode(names);
                (key, value, None)
            }
        };
        RecordChange {
            key,
            value,
            viewers,
        }
    }

    /// Applies the changes of one message, and returns the resulting records.
    ///
    /// # Errors
    /// If a change doesn't fit what was noted before.
    pub fn take(
        &mut self,
        changes: &[RecordChange],
        names: &Names,
    ) -> Result<Vec<Record>, Mismatch> {
        let records = changes.iter().map(|change| self.take_one(change, names));
        let records = records.collect();
        self.leaving.clear();
        records
    }

    fn take_one(&mut self, change: &RecordChange, names: &Names) -> Result<Record, Mismatch> {
        let unreadable = |_| Mismatch::Unreadable;
        let Some(value) = &change.value else {
            let record = Record::decode_gone(&change.key, names).map_err(unreadable)?;
            self.forget(&record, names);
            return Ok(record);
        };
        let mut record = Record::decode(&change.key, value, names).map_err(unreadable)?;
        let (user, recipients) = match &mut record {
            Record::Ledger {
                entry: Some(entry), ..
            } => (entry.event.user, &mut entry.recipients),
            Record::Departed {
                departure: Some(departure),
                ..
            } => (departure.user, &mut departure.recipients),
            _ => return Ok(record),
        };
        let difference = change.viewers.as_ref().ok_or(Mismatch::Unreadable)?;
        let viewers = difference.apply(self.known(user), names)?;
        *recipients = viewers.recipients.clone();
        match &record {
            Record::Ledger { .. } => self.insert(user, viewers, &change.key, value),
            _ => drop(self.departed.insert(user, viewers)),
        }
        Ok(record)
    }

    /// The viewers who were last told of a user.
    fn known(&self, user: Id) -> Option<&Viewers> {
        let online = self.users.get(&user).map(|it| &it.viewers);
        let leaving = online.or_else(|| self.leaving.get(&user));
        leaving.or_else(|| self.departed.get(&user))
    }

    /// The difference between the viewers who were last told of a user and `to`.
    fn difference(&self, user: Id, to: &Recipients, names: &Names) -> (ViewersDelta, Viewers) {
        let nobody = Viewers::default();
        let from = self.known(user).unwrap_or(&nobody);
        let difference = match from.recipients.same(to) {
            true => ViewersDelta {
                before: from.digest,
                after: from.digest,
                lost: Vec::new(),
                shown: Vec::new(),
            },
            false => difference(&from.recipients, from.digest, to, names),
        };
        let viewers = Viewers {
            recipients: to.clone(),
            digest: difference.after,
        };
        (difference, viewers)
    }

    fn insert(&mut self, user: Id, viewers: Viewers, key: &[u8], value: &[u8]) {
        let share = digest(&[key, value, &viewers.digest.to_le_bytes()]);
        self.digest = self.digest.wrapping_add(share);
        let booked = ToldUser { viewers, share };
        if let Some(before) = self.users.insert(user, booked) {
            self.digest = self.digest.wrapping_sub(before.share);
        }
    }

    /// Notes that a record was removed.
    fn forget(&mut self, record: &Record, names: &Names) {
        match record {
            Record::Ledger { user, entry: None } => {
                if let Some(user) = names.find(user.as_str())
                    && let Some(before) = self.users.remove(&user)
                {
                    self.digest = self.digest.wrapping_sub(before.share);
                    self.leaving.insert(user, before.viewers);
                }
            }
            Record::Departed {
                user,
                departure: None,
            } => {
                if let Some(user) = names.find(user.as_str()) {
                    self.departed.remove(&user);
                }
            }
            _ => {}
        }
    }
}

impl Viewers {
    fn of(recipients: &Recipients, names: &Names) -> Self {
        let parts = recipients.parts();
        Self {
            recipients: recipients.clone(),
            digest: parts.fold(0, |sum: u64, (viewers, shown)| {
                sum.wrapping_add(viewers_digest(viewers, *shown, names))
            }),
        }
    }
}

impl ViewersDelta {
    /// Applies the difference to the viewers who were last told of the user, if any are known.
    fn apply(&self, known: Option<&Viewers>, names: &Names) -> Result<Viewers, Mismatch> {
        let nobody = Viewers::default();
        // The sender may not remember the viewers of a user who has gone offline. It then starts
        // from none.
        let from = known.filter(|_| self.before != nobody.digest);
        let from = from.unwrap_or(&nobody);
        if from.digest != self.before {
            return Err(Mismatch::Base);
        }
        if self.lost.is_empty() && self.shown.is_empty() {
            return match self.before == self.after {
                true => Ok(from.clone()),
                false => Err(Mismatch::Result),
            };
        }
        let ids = |viewers: &[String]| -> Audience {
            viewers.iter().map(|viewer| names.intern(viewer)).collect()
        };
        let mut gone = ids(&self.lost);
        let mut parts = Vec::new();
        for (shown, viewers) in &self.shown {
            let viewers = ids(viewers);
            gone = gone.union(&viewers);
            parts.push((viewers, ShownDigest::from_bytes(*shown)));
        }
        let mut digest = from.digest;
        for (viewers, shown) in from.recipients.parts() {
            let leaving = viewers.intersection(&gone);
            digest = digest.wrapping_sub(viewers_digest(&leaving, *shown, names));
        }
        for (viewers, shown) in &parts {
            digest = digest.wrapping_add(viewers_digest(viewers, *shown, names));
        }
        if digest != self.after {
            return Err(Mismatch::Result);
        }
        let kept = from.recipients.without(&gone);
        Ok(Viewers {
            recipients: Recipients::new(kept.parts().cloned().chain(parts)),
            digest,
        })
    }
}

fn difference(from: &Recipients, before: u64, to: &Recipients, names: &Names) -> ViewersDelta {
    let named = |viewers: &Audience| -> Vec<String> {
        let names = names.read();
        let named = viewers.ids().filter_map(|id| names.name(id));
        named.map(|name| name.as_str().to_owned()).collect()
    };
    let mut after = before;
    let mut lost = Vec::new();
    for (viewers, shown) in from.parts() {
        let gone = viewers.difference(to.audience());
        after = after.wrapping_sub(viewers_digest(&gone, *shown, names));
        lost.extend(named(&gone));
    }
    let mut parts = Vec::new();
    for (viewers, shown) in to.parts() {
        let same = from.parts().find(|(_, was)| was == shown);
        let new = match same {
            Some((had, _)) => viewers.difference(had),
            None => viewers.clone(),
        };
        if new.is_empty() {
            continue;
        }
        for (had, was) in from.parts() {
            let changed = had.intersection(&new);
            after = after.wrapping_sub(viewers_digest(&changed, *was, names));
        }
        after = after.wrapping_add(viewers_digest(&new, *shown, names));
        parts.push((shown.to_bytes(), named(&new)));
    }
    ViewersDelta {
        before,
        after,
        lost,
        shown: parts,
    }
}

/// The sum of one digest per viewer. So a change of the sum needs only the viewers who changed.
fn viewers_digest(viewers: &Audience, shown: ShownDigest, names: &Names) -> u64 {
    let (names, shown) = (names.read(), shown.to_bytes());
    let ids = viewers.ids().filter_map(|id| names.name(id));
    ids.fold(0, |sum: u64, name| {
        sum.wrapping_add(digest(&[name.as_str().as_bytes(), &shown]))
    })
}

fn without_viewers(entry: &LedgerEntry, names: &Names) -> (Vec<u8>, Vec<u8>) {
    let record = Record::Ledger {
        user: entry.event.name.clone(),
        entry: Some(LedgerEntry {
            recipients: Recipients::default(),
            ..entry.clone()
        }),
    };
    let (key, value) = record.encode(names);
    (key, value.unwrap_or_default())
}

#[cfg(test)]
mod tests;
