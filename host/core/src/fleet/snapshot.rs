//! The snapshot that a replica gets when it begins to follow: the records in the format of a
//! restart, and the time left of each connection's lease.
//!
//! The snapshot is read, encoded, sent and applied to the receiving shard chunk by chunk, so that
//! neither shard has much to do between two inputs. What viewers have been told is read as it was
//! when the snapshot began, since later messages are differences to that. A connection is read as
//! it is when its turn comes: the receiver has also received what has changed the connection
//! meanwhile, and handles it again, which makes no difference. Each chunk has the digest of all
//! chunks up to it. A damaged chunk is refused before it is applied, and a truncated snapshot never
//! becomes complete.

use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::vec;

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::as_bytes;
use super::standby_message::ToldViewers;
use crate::names::{Id, Names};
use crate::record::{FORMAT, Record};
use crate::tracker::TrackerRecord;
use crate::{Input, Shard, ShardCursor};

/// The maximum number of chunks in a snapshot.
const CHUNKS_MAX: u32 = 1 << 16;

/// How many connections or users are read at a time.
const READ_AT_ONCE: usize = 64;

/// A chunk of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The format of the records.
    pub format: u32,
    /// The shard.
    pub shard: u32,
    /// The number of the question that the snapshot answers.
    pub nonce: u64,
    /// The epoch of the state.
    pub epoch: u64,
    /// The sequence number of the last message that was sent before the snapshot.
    pub seq: u64,
    /// When the snapshot was taken, by the clock of the node that took it.
    pub at: u64,
    /// The number of the chunk, from 0.
    pub index: u32,
    /// The digest of all chunks up to this one: [`next_digest`].
    pub digest: [u8; 32],
    /// The bytes of the chunk.
    #[serde(with = "as_bytes")]
    pub part: Vec<u8>,
}

/// An item of a snapshot. The parts of all chunks, put together, are a sequence of items, each
/// preceded by its length in four bytes. So an item may begin in one chunk and end in another.
#[derive(Serialize, Deserialize)]
enum Item {
    Record(
        #[serde(with = "as_bytes")] Vec<u8>,
        #[serde(with = "as_bytes")] Vec<u8>,
    ),
    /// A connection, by the ids of its user and its own, and the time left of its lease, in
    /// milliseconds.
    Lease(String, String, u64),
    /// The last item.
    End(End),
    /// The input stream to which the connections' positions refer. It is the first item, if there
    /// is a stream.
    Stream(u64),
    /// A user all of whose connections are known, though the shard is unsure.
    FullyKnown(String),
    /// A record of the event by which a user seems to have left. Other connections of the user may
    /// be unknown.
    PendingDeparture(
        #[serde(with = "as_bytes")] Vec<u8>,
        #[serde(with = "as_bytes")] Vec<u8>,
    ),
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct End {
    unsure_ms: u64,
    is_first: bool,
}

/// A shard as it was on another node when a snapshot was taken.
#[derive(Debug)]
pub struct Snapshot {
    /// The epoch of the state.
    pub epoch: u64,
    /// The sequence number of the last message that was sent before the snapshot.
    pub seq: u64,
    /// Whether the state goes back to the shard's first owner without a break.
    pub is_first: bool,
    /// The shard, made from the snapshot.
    pub shard: Shard,
    /// What viewers have been told.
    pub told_viewers: ToldViewers,
}

/// Why a chunk, or a snapshot, was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It can't be decoded as a chunk.
    Unreadable,
    /// It is a chunk of another shard.
    OtherShard,
    /// Its records have another format.
    OtherFormat,
    /// It doesn't belong to the chunks before it.
    Inconsistent,
    /// The digest of the chunks up to it doesn't match.
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

/// What a snapshot answers, and from when it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// The shard.
    pub shard: u32,
    /// The number of the question that the snapshot answers.
    pub nonce: u64,
    /// The epoch of the state.
    pub epoch: u64,
    /// The sequence number of the last message that was sent before the snapshot.
    pub seq: u64,
    /// When the snapshot is taken.
    pub at: u64,
}

/// The digest of a part and of everything before it.
pub fn next_digest(before: &[u8; 32], part: &[u8]) -> [u8; 32] {
    let digest = Sha256::new().chain_update(before).chain_update(part);
    digest.finalize().into()
}

/// A snapshot that is being sent.
#[derive(Debug)]
pub struct SnapshotWriter {
    header: SnapshotHeader,
    /// The receive clock at the beginning. All remaining lease times are relative to it.
    receive_clock_ms: u64,
    /// What is still to be read. `None`: everything has been read.
    cursor: Option<ShardCursor>,
    /// Records that have been read, but not encoded yet.
    read: vec::IntoIter<(Record, Option<u64>)>,
    /// Users still to be written as [`Item::FullyKnown`].
    fully_known: Vec<Id>,
    /// Records still to be written as [`Item::PendingDeparture`].
    departures: Vec<Record>,
    end: Option<End>,
    /// Bytes that have been encoded, but not sent yet.
    written: Vec<u8>,
    index: u32,
    digest: [u8; 32],
}

impl SnapshotWriter {
    /// Begins a snapshot of a shard. `is_first`: whether the shard's state goes back to its first
    /// owner without a break.
    pub fn begin(shard: &mut Shard, header: SnapshotHeader, is_first: bool) -> Self {
        let end = End {
            unsure_ms: shard.unsure_ms(),
            is_first,
        };
        // Connections that are read later may have positions in a newer stream. The receiver
        // forgets those.
        let stream = shard.stream();
        let mut writer = Self {
            header,
            receive_clock_ms: shard.receive_clock_ms(header.at),
            cursor: Some(shard.cursor()),
            read: Vec::new().into_iter(),
            fully_known: match is_first {
                true => shard.fully_known_users(),
                false => Vec::new(),
            },
            departures: shard.pending_departures(),
            end: Some(end),
            written: Vec::new(),
            index: 0,
            digest: [0; 32],
        };
        if stream != 0 {
            writer.write(&Item::Stream(stream));
        }
        writer
    }

    /// The next chunk, with at most `chunk_bytes` bytes of the snapshot. `None` after the last.
    /// `shard` must be the same as at the beginning.
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
                        let left_ms = end.saturating_sub(self.receive_clock_ms);
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
            } else if let Some(user) = self.fully_known.pop() {
                if let Some(name) = names.name(user) {
                    self.write(&Item::FullyKnown(name.as_str().to_owned()));
                }
            } else if let Some(left) = self.departures.pop() {
                if let (key, Some(value)) = left.encode(names) {
                    self.write(&Item::PendingDeparture(key, value));
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
        let SnapshotHeader {
            shard,
            nonce,
            epoch,
            seq,
            at,
        } = self.header;
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
        // Plain data in memory can always be encoded, and no item is too long.
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

    /// All ids in this snapshot, as numbers, except those that the shard itself refers to.
    pub fn ids(&self) -> RoaringBitmap {
        let mut ids = self
            .cursor
            .as_ref()
            .map(ShardCursor::ids)
            .unwrap_or_default();
        let read = self.read.as_slice().iter().map(|(record, _)| record);
        for record in read.chain(&self.departures) {
            ids |= record.ids();
        }
        ids.extend(self.fully_known.iter().map(|user| user.0));
        ids
    }
}

/// A snapshot that is being received.
#[derive(Debug)]
pub struct SnapshotReader {
    number: u32,
    nonce: u64,
    /// From the first chunk that arrived: the epoch, the sequence number, and the time.
    header: Option<(u64, u64, u64)>,
    /// When the first chunk arrived.
    since: u64,
    /// Chunks that arrived before their predecessors.
    waiting: BTreeMap<u32, Chunk>,
    next: u32,
    digest: [u8; 32],
    /// The beginning of an item whose end has not arrived yet.
    partial_item: Vec<u8>,
    shard: Shard,
    told_viewers: ToldViewers,
}

impl SnapshotReader {
    /// Starts to receive the answer to a question. `shard`: an empty shard, to which the snapshot
    /// is applied.
    pub fn new(number: u32, nonce: u64, shard: Shard) -> Self {
        Self {
            number,
            nonce,
            header: None,
            since: 0,
            waiting: BTreeMap::new(),
            next: 0,
            digest: [0; 32],
            partial_item: Vec::new(),
            shard,
            told_viewers: ToldViewers::default(),
        }
    }

    /// Takes a chunk that arrived at `now`. Returns the snapshot once it is complete. An answer to
    /// another question is ignored.
    ///
    /// # Errors
    /// If the chunk is refused. The question must then be asked again.
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
        let header = (chunk.epoch, chunk.seq, chunk.at);
        if self.header.is_none() {
            self.since = now;
        }
        if chunk.index >= CHUNKS_MAX || *self.header.get_or_insert(header) != header {
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
            self.partial_item.extend(&chunk.part);
            if let Some(end) = self.put(now, chunk.at, names)? {
                self.shard.finish_restore(now);
                self.shard.set_unsure(end.unsure_ms);
                let nobody = self.shard.replacement();
                return Ok(Some(Snapshot {
                    epoch: chunk.epoch,
                    seq: chunk.seq,
                    is_first: end.is_first,
                    shard: mem::replace(&mut self.shard, nobody),
                    told_viewers: mem::take(&mut self.told_viewers),
                }));
            }
        }
        Ok(None)
    }

    /// Applies an input that changes settings, directory, rules or clock.
    pub fn change(&mut self, now: u64, input: Input) {
        self.shard.follow(now, input);
    }

    /// All ids in this snapshot, as numbers.
    pub fn ids(&self) -> RoaringBitmap {
        self.shard.ids() | self.told_viewers.ids()
    }

    /// Applies all complete items to the shard.
    fn put(&mut self, now: u64, at: u64, names: &Names) -> Result<Option<End>, Refusal> {
        // The two nodes' clocks may differ. The arrival of the first chunk counts as the time at
        // which the snapshot was taken, also for later chunks.
        let ahead = i128::from(self.since) - i128::from(at);
        let passed_ms = now.saturating_sub(self.since);
        let ahead_ms = i64::try_from(ahead).unwrap_or_default();
        let (mut records, mut leases, mut end) = (Vec::new(), Vec::new(), None);
        let mut left = Vec::new();
        let mut rest = &*self.partial_item;
        while let Some((item, others)) = next_item(rest)? {
            match item {
                _ if end.is_some() => return Err(Refusal::Unreadable),
                Item::Record(key, value) => {
                    let record = Record::decode(&key, &value, names);
                    let mut record = record.map_err(|_| Refusal::Unreadable)?;
                    self.told_viewers.put_record(&record, names);
                    record.shift(ahead_ms);
                    records.push(record);
                }
                Item::Lease(user, conn, left_ms) => leases.push((user, conn, left_ms)),
                Item::End(it) => end = Some(it),
                Item::Stream(it) => self.shard.set_stream(it),
                Item::FullyKnown(user) => self.shard.mark_fully_known(&user),
                Item::PendingDeparture(key, value) => {
                    let record = Record::decode(&key, &value, names);
                    left.push(record.map_err(|_| Refusal::Unreadable)?);
                }
            }
            rest = others;
        }
        let read = self.partial_item.len() - rest.len();
        self.partial_item.drain(..read);
        self.shard.restore_part(now, 0, records);
        for (user, conn, left_ms) in leases {
            let left_ms = left_ms.saturating_sub(passed_ms);
            self.shard.set_lease(now, &user, &conn, left_ms);
        }
        for record in left {
            self.shard.restore_pending_departure(record);
        }
        Ok(end)
    }
}

/// The first item of these bytes, and the bytes behind it. `None` if the item is incomplete.
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
