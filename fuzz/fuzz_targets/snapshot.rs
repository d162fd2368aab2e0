//! Snapshots of a shard. If the first byte is 0, the others are a chunk. Otherwise it is the number
//! of chunks with correct digests, whose parts follow, each behind its length in two bytes. A
//! complete snapshot makes a shard. A chunk with a changed bit is refused.
#![no_main]

use std::sync::Arc;

use presence_core::directory::Directory;
use presence_core::fleet::snapshot::{Chunk, SnapshotReader, next_digest};
use presence_core::names::Names;
use presence_core::record::FORMAT;
use presence_core::{Settings, Shard};

const SHARD: u32 = 3;
const NONCE: u64 = 8;
const NOW_MS: u64 = 1_700_000_000_000;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else {
        return;
    };
    let names = Arc::new(Names::new());
    let mut assembly = assembly(&names);
    if *kind == 0 {
        // Any bytes are possible. At most, they are the only chunk of a snapshot.
        let _ = assembly.add(NOW_MS, rest, &names);
        return;
    }
    let chunks = chunks(rest, *kind);
    for chunk in &chunks {
        match assembly.add(NOW_MS, &encoded(chunk), &names) {
            Err(_) => return,
            Ok(None) => {}
            Ok(Some(snapshot)) => {
                let shard = snapshot.shard;
                let _ = (shard.connections(), shard.online_users(), shard.ids());
                break;
            }
        }
    }

    // The same first chunk with a changed bit.
    let mut chunks = chunks;
    if let Some(first) = chunks.first_mut()
        && let Some(byte) = first.part.last_mut()
    {
        *byte ^= 1;
        let mut damaged = self::assembly(&names);
        assert!(damaged.add(NOW_MS, &encoded(first), &names).is_err());
    }
});

fn assembly(names: &Arc<Names>) -> SnapshotReader {
    let directory = Arc::new(Directory::new());
    let shard = Shard::new(Settings::default(), Arc::clone(names), directory);
    SnapshotReader::new(SHARD, NONCE, shard)
}

fn chunks(mut rest: &[u8], count: u8) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut digest = [0; 32];
    for index in 0..u32::from(count) {
        let Some((length, others)) = rest.split_first_chunk() else {
            break;
        };
        let length = usize::from(u16::from_le_bytes(*length));
        let (part, others) = others.split_at(length.min(others.len()));
        rest = others;
        digest = next_digest(&digest, part);
        chunks.push(Chunk {
            format: FORMAT,
            shard: SHARD,
            nonce: NONCE,
            epoch: 17,
            seq: 4,
            at: NOW_MS,
            index,
            digest,
            part: part.to_vec(),
        });
    }
    chunks
}

fn encoded(chunk: &Chunk) -> Vec<u8> {
    postcard::to_allocvec(chunk).expect("plain data in memory")
}
