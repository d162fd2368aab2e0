//! What a leading replica tells those that follow it, before it publishes: what they can't derive
//! from the shard's input.
//!
//! Each message has the shard, the epoch and a number, without gaps within the epoch. The first of
//! an epoch is [`Said::Begin`]. A change is a record as a restart would use it, except that an
//! online user's viewers are given as the difference to what was told before, with a digest of both:
//! a correction of one viewer costs one viewer, however many there are. Of a user who comes online,
//! all viewers are named; of one who goes, none.
//!
//! Where there are many heartbeats, those who follow are told of them, too, many at a time: then they
//! needn't take them in.

use hashbrown::HashMap;
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use super::as_bytes;
use crate::audience::{Audience, VisitedSets};
use crate::digest::{PARTS, digest};
use crate::ledger::LedgerEntry;
use crate::names::{Id, Names};
use crate::recipients::{Recipients, ShownDigest};
use crate::record::Record;

/// A message to those who follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The shard.
    pub shard: u32,
    /// The epoch of its owner.
    pub epoch: u64,
    /// Its number within the epoch, from 1; of a digest, that of the message before it.
    pub seq: u64,
    /// The node that says so.
    pub node: Box<str>,
    /// What it says.
    pub said: Said,
}

/// What is said to those who follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    /// An owner begins with a ledger of this digest.
    Begin(u64),
    /// This is about to be published.
    Changes(Vec<Change>),
    /// What the owner holds, to compare.
    Digest {
        /// The ledger's.
        ledger: u64,
        /// That of the live connections, and of what applications have stated, in parts.
        connections: Box<[u64; PARTS]>,
    },
    /// A piece of a message that is too long for one.
    Piece {
        /// Whether it is the last of them.
        is_last: bool,
        /// Its part of the message.
        #[serde(with = "as_bytes")]
        bytes: Vec<u8>,
    },
    /// What has been heard of connections.
    Heard {
        /// From when on a lease counts that begins now, by the owner's receive clock, in milliseconds.
        clock: u64,
        /// Whether it says so again soon: those who follow needn't take in heartbeats.
        goes_on: bool,
        /// What was heard.
        #[serde(with = "as_bytes")]
        entries: Vec<u8>,
    },
}

/// A record that has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    key: Vec<u8>,
    /// Without viewers. None where nothing is known any more.
    value: Option<Vec<u8>>,
    viewers: Option<Difference>,
}

/// What has changed of who was told of a user, and of what they were shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Difference {
    /// The digests of all of them, before and after.
    before: u64,
    after: u64,
    lost: Vec<String>,
    /// Those who were shown nothing or something else before.
    shown: Vec<([u8; 8], Vec<String>)>,
}

/// How long a message in pieces may be, in bytes.
const PIECES_BYTES_MAX: usize = 1 << 28;

/// The pieces of a message that arrives.
#[derive(Debug, Default)]
pub struct Pieces(Vec<u8>);

/// Why what was told can't be taken in. A fresh snapshot mends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// It can't be read.
    Unreadable,
    /// It is a difference to something else than what is known here.
    Base,
    /// It comes to something else than it says.
    Result,
}

impl Told {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        // Plain data in memory always has such a form.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// When it is something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, Mismatch> {
        match postcard::take_from_bytes(bytes) {
            Ok((told, [])) => Ok(told),
            Ok(_) | Err(_) => Err(Mismatch::Unreadable),
        }
    }
}

/// Cuts a message into pieces of so many bytes.
pub fn pieces(message: &[u8], bytes_max: usize) -> impl Iterator<Item = Said> {
    let parts = message.chunks(bytes_max.max(1));
    let last = parts.len().saturating_sub(1);
    parts.enumerate().map(move |(number, part)| Said::Piece {
        is_last: number == last,
        bytes: part.to_vec(),
    })
}

impl Pieces {
    /// Whether there are none of a message that isn't whole.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the next piece. Gives what was said once the message is whole.
    ///
    /// # Errors
    /// When it can't be read, or is too long.
    pub fn take(&mut self, is_last: bool, bytes: &[u8]) -> Result<Option<Said>, Mismatch> {
        if self.0.len() + bytes.len() > PIECES_BYTES_MAX {
            return Err(Mismatch::Unreadable);
        }
        self.0.extend_from_slice(bytes);
        if !is_last {
            return Ok(None);
        }
        let whole = Told::decode(&std::mem::take(&mut self.0))?;
        Ok(Some(whole.said))
    }
}

/// What viewers have been told, as it was told last: owner and standby keep the same.
#[derive(Debug, Default)]
pub struct Books {
    users: HashMap<Id, Booked, foldhash::fast::FixedState>,
    /// The digest of all.
    digest: u64,
}

#[derive(Debug)]
struct Booked {
    recipients: Recipients,
    viewers: u64,
    /// What the user adds to the digest of all.
    share: u64,
}

impl Books {
    /// Those of a ledger.
    pub fn of<'a>(entries: impl Iterator<Item = &'a LedgerEntry>, names: &Names) -> Self {
        let mut books = Self::default();
        for entry in entries {
            books.put(entry, names);
        }
        books
    }

    /// Notes what is in a ledger.
    pub fn put(&mut self, entry: &LedgerEntry, names: &Names) {
        let (key, value) = without_viewers(entry, names);
        let recipients = entry.recipients.clone();
        let viewers = recipients.parts().fold(0, |sum: u64, (viewers, shown)| {
            sum.wrapping_add(viewers_digest(viewers, *shown, names))
        });
        self.book(entry.event.user, recipients, viewers, &key, &value);
    }

    /// Of how many users they are.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether they are of nobody.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// All the numbers of ids that they hold.
    pub fn ids(&self) -> RoaringBitmap {
        let mut ids = RoaringBitmap::new();
        let mut seen = VisitedSets::default();
        for (user, booked) in &self.users {
            ids.insert(user.0);
            booked.recipients.audience().keep_in(&mut ids, &mut seen);
        }
        ids
    }

    /// The digest of all.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Notes a record, and writes it as the change that it is.
    pub fn note(&mut self, record: &Record, names: &Names) -> Change {
        let Record::Ledger { user, entry } = record else {
            let (key, value) = record.encode(names);
            return Change {
                key,
                value,
                viewers: None,
            };
        };
        let Some(entry) = entry else {
            if let Some(id) = names.find(user.as_str()) {
                self.forget(id);
            }
            let (key, value) = record.encode(names);
            return Change {
                key,
                value,
                viewers: None,
            };
        };
        let id = entry.event.user;
        let (key, value) = without_viewers(entry, names);
        let before = self.users.get(&id);
        let nobody = Recipients::default();
        let (from, before) = before.map_or((&nobody, 0), |it| (&it.recipients, it.viewers));
        let viewers = match from.same(&entry.recipients) {
            true => Difference {
                before,
                after: before,
                lost: Vec::new(),
                shown: Vec::new(),
            },
            false => difference(from, before, &entry.recipients, names),
        };
        self.book(id, entry.recipients.clone(), viewers.after, &key, &value);
        Change {
            key,
            value: Some(value),
            viewers: Some(viewers),
        }
    }

    /// Takes in a change, and says which record it makes.
    ///
    /// # Errors
    /// When it doesn't fit what is known here.
    pub fn take(&mut self, change: &Change, names: &Names) -> Result<Record, Mismatch> {
        let unreadable = |_| Mismatch::Unreadable;
        let Some(value) = &change.value else {
            let record = Record::decode_gone(&change.key, names).map_err(unreadable)?;
            if let Record::Ledger { user, .. } = &record
                && let Some(id) = names.find(user.as_str())
            {
                self.forget(id);
            }
            return Ok(record);
        };
        let mut record = Record::decode(&change.key, value, names).map_err(unreadable)?;
        if let Record::Ledger {
            entry: Some(entry), ..
        } = &mut record
        {
            let viewers = change.viewers.as_ref().ok_or(Mismatch::Unreadable)?;
            let before = self.users.get(&entry.event.user);
            let nobody = Recipients::default();
            let (from, digest) = before.map_or((&nobody, 0), |it| (&it.recipients, it.viewers));
            if digest != viewers.before {
                return Err(Mismatch::Base);
            }
            entry.recipients = viewers.apply(from, digest, names)?;
            let recipients = entry.recipients.clone();
            let user = entry.event.user;
            self.book(user, recipients, viewers.after, &change.key, value);
        }
        Ok(record)
    }

    fn book(&mut self, user: Id, recipients: Recipients, viewers: u64, key: &[u8], value: &[u8]) {
        let share = digest(&[key, value, &viewers.to_le_bytes()]);
        self.digest = self.digest.wrapping_add(share);
        let booked = Booked {
            recipients,
            viewers,
            share,
        };
        if let Some(before) = self.users.insert(user, booked) {
            self.digest = self.digest.wrapping_sub(before.share);
        }
    }

    fn forget(&mut self, user: Id) {
        if let Some(before) = self.users.remove(&user) {
            self.digest = self.digest.wrapping_sub(before.share);
        }
    }
}

impl Difference {
    fn apply(&self, from: &Recipients, digest: u64, names: &Names) -> Result<Recipients, Mismatch> {
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
        let mut after = digest;
        for (viewers, shown) in from.parts() {
            let leaving = viewers.intersection(&gone);
            after = after.wrapping_sub(viewers_digest(&leaving, *shown, names));
        }
        for (viewers, shown) in &parts {
            after = after.wrapping_add(viewers_digest(viewers, *shown, names));
        }
        if after != self.after {
            return Err(Mismatch::Result);
        }
        let kept = from.without(&gone);
        Ok(Recipients::new(kept.parts().cloned().chain(parts)))
    }
}

fn difference(from: &Recipients, before: u64, to: &Recipients, names: &Names) -> Difference {
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
    Difference {
        before,
        after,
        lost,
        shown: parts,
    }
}

/// The sum of what each viewer adds: so a difference is all that has to be added up.
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
