//! Snapshots of a shard. The first byte says what the others are: 0, a chunk; another number, a
//! whole snapshot in so many chunks, whose digest is right. A snapshot that is taken can be put
//! into a shard, and one of which a chunk was changed is refused.
#![no_main]

use std::sync::Arc;

use presence_core::directory::Directory;
use presence_core::fleet::snapshot::{Assembly, Chunk};
use presence_core::names::Names;
use presence_core::record::FORMAT;
use presence_core::{Settings, Shard};
use sha2::{Digest, Sha256};

const SHARD: u32 = 3;
const NONCE: u64 = 8;
const NOW_MS: u64 = 1_700_000_000_000;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else {
        return;
    };
    let names = Arc::new(Names::new());
    let mut assembly = Assembly::new(SHARD, NONCE);
    if *kind == 0 {
        // By itself it may be anything, and is at most the only chunk of a snapshot.
        let _ = assembly.add(rest, &names);
        return;
    }
    let mut chunks = chunks(rest, usize::from(*kind));
    let (last, first) = chunks.split_last_mut().expect("there is one");
    for chunk in first {
        assert!(
            assembly
                .add(&encoded(chunk), &names)
                .is_ok_and(|it| it.is_none())
        );
    }
    let taken = assembly.add(&encoded(last), &names);
    if let Ok(snapshot) = taken {
        let snapshot = snapshot.expect("all chunks are there");
        let mut shard = Shard::new(
            Settings::default(),
            Arc::clone(&names),
            Arc::new(Directory::new()),
        );
        snapshot.restore(NOW_MS, &mut shard);
        let _ = (shard.connections(), shard.online_users(), shard.ids());
    }

    // The same with a bit that is another: no snapshot comes of it.
    if let Some(byte) = last.part.last_mut() {
        *byte ^= 1;
        let mut damaged = Assembly::new(SHARD, NONCE);
        let (last, first) = chunks.split_last().expect("there is one");
        for chunk in first {
            assert!(damaged.add(&encoded(chunk), &names).is_ok());
        }
        assert!(damaged.add(&encoded(last), &names).is_err());
    }
});

fn chunks(whole: &[u8], count: usize) -> Vec<Chunk> {
    let size = whole.len().div_ceil(count).max(1);
    let mut parts: Vec<_> = whole.chunks(size).map(<[u8]>::to_vec).collect();
    if parts.is_empty() {
        parts.push(Vec::new());
    }
    let chunks = u32::try_from(parts.len()).expect("at most 255");
    let chunk = |(index, part)| Chunk {
        format: FORMAT,
        shard: SHARD,
        nonce: NONCE,
        epoch: 17,
        seq: 4,
        at: NOW_MS,
        chunks,
        index,
        digest: Sha256::digest(whole).into(),
        part,
    };
    (0..).zip(parts).map(chunk).collect()
}

fn encoded(chunk: &Chunk) -> Vec<u8> {
    postcard::to_allocvec(chunk).expect("plain data in memory")
}
