//! What a replica that begins to follow is sent: the records that a restart uses, and how much is
//! left of each connection's lease.
//!
//! All is read, written, sent, and put into the other shard chunk by chunk, so that neither shard has to
//! do much between two inputs. What viewers have been told is read as it was when the snapshot began,
//! since what is told later is the difference to that. Connections are read each as it is then: what has
//! changed of it meanwhile, the other shard has heard as well, and handles again, which makes no
//! difference. Each chunk bears the
//! digest of all up to it. One that is damaged is refused before anything is made of it, and one
//! that is cut off is never complete.

use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::vec;

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::as_bytes;
use super::told::Books;
use crate::names::{Id, Names};
use crate::record::{FORMAT, Record};
use crate::tracker::TrackerRecord;
use crate::{Input, Shard, ShardCursor};

/// How many chunks a snapshot may have.
const CHUNKS_MAX: u32 = 1 << 16;

/// Of how many connections or users is read at once.
const READ_AT_ONCE: usize = 64;

/// A piece of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The format of the records.
    pub format: u32,
    /// The shard.
    pub shard: u32,
    /// The number that the question had.
    pub nonce: u64,
    /// Of what epoch it is.
    pub epoch: u64,
    /// The number of the last that was told before it was taken.
    pub seq: u64,
    /// When it was taken, by the clock of the node that took it.
    pub at: u64,
    /// Which one this is, from 0.
    pub index: u32,
    /// The digest of all up to this one: [`next_digest`].
    pub digest: [u8; 32],
    /// What it has.
    #[serde(with = "as_bytes")]
    pub part: Vec<u8>,
}

/// What the parts of all chunks together are a row of, each behind its length in four bytes. So one may
/// begin in one chunk and end in another.
#[derive(Serialize, Deserialize)]
enum Item {
    Record(
        #[serde(with = "as_bytes")] Vec<u8>,
        #[serde(with = "as_bytes")] Vec<u8>,
    ),
    /// So much is left of the lease of a connection, in milliseconds.
    Lease(String, String, u64),
    /// There is nothing more.
    End(End),
    /// The stream that connections' numbers are of. It is the first, where there is one.
    Stream(u64),
    /// All connections of a user are known, though the shard is unsure.
    Came(String),
    /// How a user has left, as it seems, whose other connections may not be known: a record of the event.
    Left(
        #[serde(with = "as_bytes")] Vec<u8>,
        #[serde(with = "as_bytes")] Vec<u8>,
    ),
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct End {
    unsure_ms: u64,
    is_first: bool,
}

/// A shard as it was at some moment on another node.
#[derive(Debug)]
pub struct Snapshot {
    /// Of what epoch it is.
    pub epoch: u64,
    /// The number of the last that was told before it was taken.
    pub seq: u64,
    /// Whether it goes back to the shard's first owner without a break.
    pub is_first: bool,
    /// What it makes.
    pub shard: Shard,
    /// What viewers have been told.
    pub books: Books,
}

/// Why a chunk, or a snapshot, was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It isn't a chunk.
    Unreadable,
    /// It is of another shard.
    OtherShard,
    /// Its records have another format.
    OtherFormat,
    /// It doesn't belong to the chunks before it.
    Inconsistent,
    /// The digest of all up to it is another.
    Damaged,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreadable => "it can't be read",
            Self::OtherShard => "it is of another shard",
            Self::OtherFormat => {
                "its records have another format: the other node is of another version"
            }
            Self::Inconsistent => "it doesn't belong to the chunks before it",
            Self::Damaged => "it is damaged: its digest is another",
        })
    }
}

/// What a snapshot is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// The shard.
    pub shard: u32,
    /// The number that the question had.
    pub nonce: u64,
    /// Of what epoch it is.
    pub epoch: u64,
    /// The number of the last that was told.
    pub seq: u64,
    /// When it is taken.
    pub at: u64,
}

/// The digest of a part, and of all before it.
pub fn next_digest(before: &[u8; 32], part: &[u8]) -> [u8; 32] {
    let digest = Sha256::new().chain_update(before).chain_update(part);
    digest.finalize().into()
}

/// A snapshot that is sent.
#[derive(Debug)]
pub struct Sending {
    label: Label,
    /// What the receive clock showed at the beginning: all leases are told as of then.
    heard_ms: u64,
    /// What is still to be read; none once all has been.
    cursor: Option<ShardCursor>,
    /// What has been read, and not written.
    read: vec::IntoIter<(Record, Option<u64>)>,
    /// Users who are still to be told of as ones whose connections are all known.
    came: Vec<Id>,
    /// How users have left, as it seems, who are waited for.
    left: Vec<Record>,
    end: Option<End>,
    /// What has been written, and not sent.
    written: Vec<u8>,
    index: u32,
    digest: [u8; 32],
}

impl Sending {
    /// A snapshot of a shard as it is now. `is_first`: whether what it holds goes back to the
    /// shard's first owner without a break.
    pub fn begin(shard: &mut Shard, label: Label, is_first: bool) -> Self {
        let end = End {
            unsure_ms: shard.unsure_ms(),
            is_first,
        };
        // Of numbers that are read later, the stream may be a newer one: they are forgotten then.
        let stream = shard.stream();
        let mut sending = Self {
            label,
            heard_ms: shard.heard_ms(label.at),
            cursor: Some(shard.cursor()),
            read: Vec::new().into_iter(),
            came: match is_first {
                true => shard.came(),
                false => Vec::new(),
            },
            left: shard.seem_to_have_left(),
            end: Some(end),
            written: Vec::new(),
            index: 0,
            digest: [0; 32],
        };
        if stream != 0 {
            sending.write(&Item::Stream(stream));
        }
        sending
    }

    /// The next chunk, of which so many bytes at most are the snapshot's; none after the last. `shard`:
    /// the same as at the beginning.
    pub fn next(
        &mut self,
        shard: &mut Shard,
        names: &Names,
        chunk_bytes: usize,
    ) -> Option<Vec<u8>> {
        while self.written.len() < chunk_bytes {
            if let Some((record, end)) = self.next_record(shard) {
                let lease = match (&record, end) {
                    (Record::Tracker(TrackerRecord::Connection { user, conn, .. }), Some(end)) => {
                        let left_ms = end.saturating_sub(self.heard_ms);
                        Some(Item::Lease(user.to_string(), conn.to_string(), left_ms))
                    }
                    _ => None,
                };
                if let (key, Some(value)) = record.encode(names) {
                    self.write(&Item::Record(key, value));
                }
                if let Some(lease) = lease {
                    self.write(&lease);
                }
            } else if let Some(user) = self.came.pop() {
                if let Some(name) = names.name(user) {
                    self.write(&Item::Came(name.as_str().to_owned()));
                }
            } else if let Some(left) = self.left.pop() {
                if let (key, Some(value)) = left.encode(names) {
                    self.write(&Item::Left(key, value));
                }
            } else if let Some(end) = self.end.take() {
                self.write(&Item::End(end));
            } else {
                break;
            }
        }
        if self.written.is_empty() {
            return None;
        }
        let bytes = self.written.len().min(chunk_bytes.max(1));
        let part: Vec<_> = self.written.drain(..bytes).collect();
        self.digest = next_digest(&self.digest, &part);
        let Label {
            shard,
            nonce,
            epoch,
            seq,
            at,
        } = self.label;
        let chunk = Chunk {
            format: FORMAT,
            shard,
            nonce,
            epoch,
            seq,
            at,
            index: self.index,
            digest: self.digest,
            part,
        };
        self.index += 1;
        Some(postcard::to_allocvec(&chunk).unwrap_or_default())
    }

    fn write(&mut self, item: &Item) {
        // Plain data in memory always has such a form, and none is so long.
        let item = postcard::to_allocvec(item).unwrap_or_default();
        let length = u32::try_from(item.len()).unwrap_or(u32::MAX);
        self.written.extend(length.to_le_bytes());
        self.written.extend(item);
    }

    fn next_record(&mut self, shard: &mut Shard) -> Option<(Record, Option<u64>)> {
        loop {
            if let Some(next) = self.read.next() {
                return Some(next);
            }
            let mut records = Vec::new();
            let has_more = shard.read(self.cursor.as_mut()?, READ_AT_ONCE, &mut records);
            self.cursor.take_if(|_| !has_more);
            self.read = records.into_iter();
        }
    }

    /// All the numbers of ids that are held here, beside those that the shard holds.
    pub fn ids(&self) -> RoaringBitmap {
        let mut ids = self
            .cursor
            .as_ref()
            .map(ShardCursor::ids)
            .unwrap_or_default();
        let read = self.read.as_slice().iter().map(|(record, _)| record);
        for record in read.chain(&self.left) {
            ids |= record.ids();
        }
        ids.extend(self.came.iter().map(|user| user.0));
        ids
    }
}

/// A snapshot that arrives.
#[derive(Debug)]
pub struct Assembly {
    number: u32,
    nonce: u64,
    /// Of the first chunk that came: the epoch, the number of the last that was told, and the time.
    label: Option<(u64, u64, u64)>,
    /// When that was.
    since: u64,
    /// Chunks that came before one that is to be before them.
    waiting: BTreeMap<u32, Chunk>,
    next: u32,
    digest: [u8; 32],
    /// The beginning of an item whose end is still to come.
    begun: Vec<u8>,
    shard: Shard,
    books: Books,
}

impl Assembly {
    /// Nothing yet of the answer to a question. `shard`: one of nobody, which is to become what the
    /// other one was.
    pub fn new(number: u32, nonce: u64, shard: Shard) -> Self {
        Self {
            number,
            nonce,
            label: None,
            since: 0,
            waiting: BTreeMap::new(),
            next: 0,
            digest: [0; 32],
            begun: Vec::new(),
            shard,
            books: Books::default(),
        }
    }

    /// Takes a chunk that came at `now`. Says what the snapshot is once it is complete; an answer to
    /// another question is passed over.
    ///
    /// # Errors
    /// Why it is refused: the question is to be asked anew.
    pub fn add(
        &mut self,
        now: u64,
        bytes: &[u8],
        names: &Names,
    ) -> Result<Option<Snapshot>, Refusal> {
        let Ok((chunk, [])) = postcard::take_from_bytes::<Chunk>(bytes) else {
            return Err(Refusal::Unreadable);
        };
        if chunk.nonce != self.nonce {
            return Ok(None);
        }
        if chunk.shard != self.number {
            return Err(Refusal::OtherShard);
        }
        if chunk.format != FORMAT {
            return Err(Refusal::OtherFormat);
        }
        let label = (chunk.epoch, chunk.seq, chunk.at);
        if self.label.is_none() {
            self.since = now;
        }
        if chunk.index >= CHUNKS_MAX || *self.label.get_or_insert(label) != label {
            return Err(Refusal::Inconsistent);
        }
        if chunk.index >= self.next {
            self.waiting.insert(chunk.index, chunk);
        }
        while let Some(chunk) = self.waiting.remove(&self.next) {
            self.next += 1;
            self.digest = next_digest(&self.digest, &chunk.part);
            if self.digest != chunk.digest {
                return Err(Refusal::Damaged);
            }
            self.begun.extend(&chunk.part);
            if let Some(end) = self.put(now, chunk.at, names)? {
                self.shard.restored(now);
                self.shard.set_unsure(end.unsure_ms);
                let nobody = self.shard.replacement();
                return Ok(Some(Snapshot {
                    epoch: chunk.epoch,
                    seq: chunk.seq,
                    is_first: end.is_first,
                    shard: mem::replace(&mut self.shard, nobody),
                    books: mem::take(&mut self.books),
                }));
            }
        }
        Ok(None)
    }

    /// What a shard goes by has changed.
    pub fn change(&mut self, now: u64, input: Input) {
        self.shard.follow(now, input);
    }

    /// All the numbers of ids that are held here.
    pub fn ids(&self) -> RoaringBitmap {
        self.shard.ids() | self.books.ids()
    }

    /// Puts into the shard what is there in full.
    fn put(&mut self, now: u64, at: u64, names: &Names) -> Result<Option<End>, Refusal> {
        // The two nodes' clocks may differ. What came later is as old as what came first.
        let ahead = i128::from(self.since) - i128::from(at);
        let passed_ms = now.saturating_sub(self.since);
        let ahead_ms = i64::try_from(ahead).unwrap_or_default();
        let (mut records, mut leases, mut end) = (Vec::new(), Vec::new(), None);
        let mut left = Vec::new();
        let mut rest = &*self.begun;
        while let Some((item, others)) = next_item(rest)? {
            match item {
                _ if end.is_some() => return Err(Refusal::Unreadable),
                Item::Record(key, value) => {
                    let record = Record::decode(&key, &value, names);
                    let mut record = record.map_err(|_| Refusal::Unreadable)?;
                    self.books.put_record(&record, names);
                    record.shift(ahead_ms);
                    records.push(record);
                }
                Item::Lease(user, conn, left_ms) => leases.push((user, conn, left_ms)),
                Item::End(it) => end = Some(it),
                Item::Stream(it) => self.shard.begin_with_stream(it),
                Item::Came(user) => self.shard.has_come(&user),
                Item::Left(key, value) => {
                    let record = Record::decode(&key, &value, names);
                    left.push(record.map_err(|_| Refusal::Unreadable)?);
                }
            }
            rest = others;
        }
        let read = self.begun.len() - rest.len();
        self.begun.drain(..read);
        self.shard.restore_part(now, 0, records);
        for (user, conn, left_ms) in leases {
            let left_ms = left_ms.saturating_sub(passed_ms);
            self.shard.set_lease(now, &user, &conn, left_ms);
        }
        for record in left {
            self.shard.seems_to_have_left(record);
        }
        Ok(end)
    }
}

/// The first item of these bytes, and what is behind it; none if its end is still to come.
fn next_item(bytes: &[u8]) -> Result<Option<(Item, &[u8])>, Refusal> {
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*length) as usize;
    let Some((item, rest)) = rest.split_at_checked(length) else {
        return Ok(None);
    };
    match postcard::take_from_bytes(item) {
        Ok((item, [])) => Ok(Some((item, rest))),
        Ok(_) | Err(_) => Err(Refusal::Unreadable),
    }
}

#[cfg(test)]
mod tests;
