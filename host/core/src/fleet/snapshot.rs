//! What a replica that begins to follow is sent: the records that a restart uses, and how much is
//! left of each connection's lease.
//!
//! It goes in chunks, each of which says how many there are and the digest of all of them together.
//! One that is cut off is never complete, and one that is damaged is refused as a whole.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Shard;
use crate::names::Names;
use crate::record::{FORMAT, Record};

/// How many chunks a snapshot may have.
const CHUNKS_MAX: u32 = 1 << 16;

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
    /// How many chunks there are.
    pub chunks: u32,
    /// Which one this is, from 0.
    pub index: u32,
    /// The SHA-256 of all of them together.
    pub digest: [u8; 32],
    /// Its part of the whole.
    pub part: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Whole {
    records: Vec<(Vec<u8>, Vec<u8>)>,
    leases: Vec<(String, String, u64)>,
    unsure_ms: u64,
    is_first: bool,
}

/// A shard as it was at some moment.
#[derive(Debug)]
pub struct Snapshot {
    /// Of what epoch it is.
    pub epoch: u64,
    /// The number of the last that was told before it was taken.
    pub seq: u64,
    /// When it was taken, by the clock of the node that took it.
    pub at: u64,
    /// Whether it goes back to the shard's first owner without a break.
    pub is_first: bool,
    records: Vec<Record>,
    leases: Vec<(String, String, u64)>,
    unsure_ms: u64,
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
    /// All of them are there, and their digest is another.
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

/// Takes a snapshot of a shard, in chunks of so many bytes. `is_first`: whether what it holds goes
/// back to the shard's first owner without a break.
pub fn take(
    shard: &mut Shard,
    label: Label,
    is_first: bool,
    names: &Names,
    chunk_bytes: usize,
) -> Vec<Vec<u8>> {
    let records = shard.all_records();
    let stored = records.iter().map(|record| record.encode(names));
    let whole = Whole {
        records: stored
            .filter_map(|(key, value)| Some((key, value?)))
            .collect(),
        leases: shard
            .leases()
            .map(|(user, conn, left)| (user.to_string(), conn.to_string(), left))
            .collect(),
        unsure_ms: shard.unsure_ms(),
        is_first,
    };
    // Plain data in memory always has such a form.
    let whole = postcard::to_allocvec(&whole).unwrap_or_default();
    let digest = Sha256::digest(&whole).into();
    let parts: Vec<_> = whole.chunks(chunk_bytes.max(1)).collect();
    let chunks = u32::try_from(parts.len()).unwrap_or(u32::MAX);
    let chunk = |(index, part): (u32, &&[u8])| Chunk {
        format: FORMAT,
        shard: label.shard,
        nonce: label.nonce,
        epoch: label.epoch,
        seq: label.seq,
        at: label.at,
        chunks,
        index,
        digest,
        part: part.to_vec(),
    };
    let encoded = (0_u32..).zip(&parts).map(chunk);
    encoded
        .map(|chunk| postcard::to_allocvec(&chunk).unwrap_or_default())
        .collect()
}

/// A snapshot that arrives.
#[derive(Debug)]
pub struct Assembly {
    shard: u32,
    nonce: u64,
    parts: BTreeMap<u32, Chunk>,
}

impl Assembly {
    /// Nothing yet of the answer to a question.
    pub fn new(shard: u32, nonce: u64) -> Self {
        Self {
            shard,
            nonce,
            parts: BTreeMap::new(),
        }
    }

    /// Takes a chunk. Says what the snapshot is once it is complete; an answer to another
    /// question is passed over.
    ///
    /// # Errors
    /// Why it is refused: the question is to be asked anew.
    pub fn add(&mut self, bytes: &[u8], names: &Names) -> Result<Option<Snapshot>, Refusal> {
        let Ok((chunk, [])) = postcard::take_from_bytes::<Chunk>(bytes) else {
            return Err(Refusal::Unreadable);
        };
        if chunk.nonce != self.nonce {
            return Ok(None);
        }
        if chunk.shard != self.shard {
            return Err(Refusal::OtherShard);
        }
        if chunk.format != FORMAT {
            return Err(Refusal::OtherFormat);
        }
        let label = |it: &Chunk| (it.epoch, it.seq, it.at, it.chunks, it.digest);
        let is_of_them = |other: &Chunk| label(other) == label(&chunk);
        if chunk.index >= chunk.chunks
            || chunk.chunks > CHUNKS_MAX
            || !self.parts.values().next().is_none_or(is_of_them)
        {
            return Err(Refusal::Inconsistent);
        }
        let (epoch, seq, at, chunks, digest) = label(&chunk);
        self.parts.insert(chunk.index, chunk);
        if self.parts.len() < chunks as usize {
            return Ok(None);
        }
        let parts = std::mem::take(&mut self.parts);
        let whole: Vec<u8> = parts.into_values().flat_map(|chunk| chunk.part).collect();
        if <[u8; 32]>::from(Sha256::digest(&whole)) != digest {
            return Err(Refusal::Damaged);
        }
        let Ok((whole, [])) = postcard::take_from_bytes::<Whole>(&whole) else {
            return Err(Refusal::Unreadable);
        };
        let records = whole
            .records
            .iter()
            .map(|(key, value)| Record::decode(key, value, names))
            .collect::<Result<_, _>>()
            .map_err(|_| Refusal::Unreadable)?;
        Ok(Some(Snapshot {
            epoch,
            seq,
            at,
            records,
            leases: whole.leases,
            unsure_ms: whole.unsure_ms,
            is_first: whole.is_first,
        }))
    }
}

impl Snapshot {
    /// Puts it into a shard that knows nothing yet, at `now`.
    pub fn restore(self, now: u64, shard: &mut Shard) {
        // The two nodes' clocks may differ.
        let ahead = i128::from(now) - i128::from(self.at);
        let ahead_ms = i64::try_from(ahead).unwrap_or_default();
        let records = self.records.into_iter().map(|mut record| {
            record.shift(ahead_ms);
            record
        });
        shard.restore(now, 0, records);
        for (user, conn, left_ms) in self.leases {
            shard.set_lease(&user, &conn, left_ms);
        }
        shard.set_unsure(self.unsure_ms);
    }
}

#[cfg(test)]
mod tests;
