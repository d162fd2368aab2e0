use std::sync::Arc;

use super::*;
use crate::fleet::testing::{Everyone, message, shard};
use crate::message::Kind;

const NOW: u64 = 1_700_000_000_000;

fn label(nonce: u64) -> Label {
    Label {
        shard: 3,
        nonce,
        epoch: 17,
        seq: 4,
        at: NOW + 10_000,
    }
}

/// A shard of two users, one online and one who has left, at `NOW + 10_000`.
fn known(names: &Arc<Names>) -> Shard {
    let mut shard = shard(names);
    let mut out = Vec::new();
    for (at, kind, user) in [
        (0, Kind::Connect, "ann"),
        (1_000, Kind::Connect, "bob"),
        (9_000, Kind::Disconnect, "bob"),
    ] {
        let input = message(kind, user, "c1", NOW + at);
        shard.handle(NOW + at, input, &mut Everyone, &mut out);
    }
    shard.advance(NOW + 10_000, &mut Everyone, &mut out);
    shard
}

fn chunks() -> (Vec<Vec<u8>>, Arc<Names>) {
    let names = Arc::new(Names::new());
    (take(&mut known(&names), label(8), false, &names, 20), names)
}

#[test]
fn a_shard_comes_back_with_what_is_left_of_its_leases() {
    let (chunks, _) = chunks();
    assert!(chunks.len() > 5);
    let names = Arc::new(Names::new());
    let mut assembly = Assembly::new(3, 8);
    let mut found = None;
    // Chunks of one sender come in their order; nothing depends on it.
    for chunk in chunks.iter().rev().chain(&chunks) {
        found = found.or(assembly.add(chunk, &names).unwrap());
    }
    let snapshot = found.unwrap();
    assert_eq!((snapshot.epoch, snapshot.seq), (17, 4));
    // The clock of this node is an hour ahead.
    let now = NOW + 3_610_000;
    let mut copy = shard(&names);
    copy.keep_records(true);
    snapshot.restore(now, &mut copy);
    let leases: Vec<_> = copy
        .leases()
        .map(|(user, conn, left)| (&**user, conn, left))
        .collect();
    assert_eq!(leases, [("ann", "c1", 20_000)]);
    let told: Vec<_> = copy
        .ledger()
        .map(|entry| entry.recipients.audience().len())
        .collect();
    assert_eq!(told, [2]);
    // Who has left stays gone: a late heartbeat is known to be late.
    copy.follow(
        now + 500,
        message(Kind::Heartbeat, "bob", "c1", NOW + 8_000),
    );
    assert_eq!(copy.connections(), 1);
    copy.follow_time(now + 20_001);
    assert_eq!(copy.connections(), 0);
}

#[test]
fn what_is_cut_off_is_never_complete() {
    let (chunks, names) = chunks();
    let mut assembly = Assembly::new(3, 8);
    for chunk in &chunks[1..] {
        assert!(assembly.add(chunk, &names).unwrap().is_none());
    }
    let last = &chunks[0];
    let cut = &last[..last.len() - 1];
    assert_eq!(assembly.add(cut, &names).unwrap_err(), Refusal::Unreadable);
    // Another answer to the same question isn't mixed with this one.
    let names_of_other = Arc::new(Names::new());
    let mut other = known(&names_of_other);
    let later = Label { seq: 5, ..label(8) };
    let other = take(&mut other, later, false, &names_of_other, 20);
    assert_eq!(
        assembly.add(&other[0], &names).unwrap_err(),
        Refusal::Inconsistent
    );
    assert!(assembly.add(last, &names).unwrap().is_some());
}

#[test]
fn what_is_damaged_is_refused_wherever_it_is() {
    let (chunks, names) = chunks();
    for place in 0..chunks.len() {
        let mut chunk: Chunk = postcard::from_bytes(&chunks[place]).unwrap();
        for byte in 0..chunk.part.len() {
            chunk.part[byte] ^= 1;
            let damaged = postcard::to_allocvec(&chunk).unwrap();
            chunk.part[byte] ^= 1;
            let mut assembly = Assembly::new(3, 8);
            let mut refused = Ok(());
            for (other, chunk) in chunks.iter().enumerate() {
                let chunk = if other == place { &damaged } else { chunk };
                refused = refused.and(assembly.add(chunk, &names).map(|found| {
                    assert!(found.is_none());
                }));
            }
            assert_eq!(
                refused,
                Err(Refusal::Damaged),
                "byte {byte} of chunk {place}"
            );
        }
    }
}

#[test]
fn another_question_shard_or_format_is_told_apart() {
    let (chunks, names) = chunks();
    let mut assembly = Assembly::new(3, 9);
    assert!(assembly.add(&chunks[0], &names).unwrap().is_none());
    let mut assembly = Assembly::new(4, 8);
    assert_eq!(
        assembly.add(&chunks[0], &names).unwrap_err(),
        Refusal::OtherShard
    );
    let mut chunk: Chunk = postcard::from_bytes(&chunks[0]).unwrap();
    chunk.format += 1;
    let newer = postcard::to_allocvec(&chunk).unwrap();
    let mut assembly = Assembly::new(3, 8);
    let refusal = assembly.add(&newer, &names).unwrap_err();
    assert_eq!(refusal, Refusal::OtherFormat);
    assert!(refusal.to_string().contains("another version"));
    chunk.format = FORMAT;
    chunk.index = chunk.chunks;
    let beyond = postcard::to_allocvec(&chunk).unwrap();
    assert_eq!(
        assembly.add(&beyond, &names).unwrap_err(),
        Refusal::Inconsistent
    );
}
