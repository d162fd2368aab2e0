use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::Settings;
use crate::fleet::testing::{Everyone, message, shard};
use crate::message::{Kind, StreamPlace};
use crate::tracker::TrackerSettings;

const NOW: u64 = 1_700_000_000_000;

fn header(nonce: u64) -> SnapshotHeader {
    SnapshotHeader {
        shard: 3,
        nonce,
        epoch: 17,
        seq: 4,
        at: NOW + 10_000,
    }
}

/// A shard of two users at `NOW + 10_000`: one is online, and one has left.
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

/// All chunks of a snapshot, with at most 20 bytes of it each.
fn take(shard: &mut Shard, header: SnapshotHeader, names: &Names) -> Vec<Vec<u8>> {
    let mut sending = SnapshotWriter::begin(shard, header, false);
    std::iter::from_fn(|| sending.next(shard, names, 20)).collect()
}

fn chunks() -> (Vec<Vec<u8>>, Arc<Names>) {
    let names = Arc::new(Names::new());
    (take(&mut known(&names), header(8), &names), names)
}

fn assembly(number: u32, nonce: u64, names: &Arc<Names>) -> SnapshotReader {
    let mut shard = shard(names);
    shard.keep_records(true);
    SnapshotReader::new(number, nonce, shard)
}

fn decoded(chunk: &[u8]) -> Chunk {
    postcard::from_bytes(chunk).unwrap()
}

fn encoded(chunk: &Chunk) -> Vec<u8> {
    postcard::to_allocvec(chunk).unwrap()
}

#[test]
fn a_shard_comes_back_with_what_is_left_of_its_leases() {
    let (chunks, _) = chunks();
    assert!(chunks.len() > 5);
    let names = Arc::new(Names::new());
    let mut assembly = assembly(3, 8, &names);
    // The clock of this node is an hour ahead.
    let now = NOW + 3_610_000;
    let mut found = None;
    // One sender's chunks come in order, but any order works.
    for chunk in chunks.iter().rev().chain(&chunks) {
        found = found.or(assembly.add(now, chunk, &names).unwrap());
    }
    let snapshot = found.unwrap();
    assert_eq!((snapshot.epoch, snapshot.seq), (17, 4));
    let mut copy = snapshot.shard;
    let told_viewers = ToldViewers::of(copy.ledger(), copy.departures(), &names);
    assert_eq!(snapshot.told_viewers.digest(), told_viewers.digest());
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
    // A user who has left stays offline: a late heartbeat is recognized as late.
    copy.follow(
        now + 500,
        message(Kind::Heartbeat, "bob", "c1", NOW + 8_000),
    );
    assert_eq!(copy.connections(), 1);
    copy.follow_time(now + 20_001);
    assert_eq!(copy.connections(), 0);
}

#[test]
fn what_was_told_is_as_it_was_at_first_and_connections_are_as_they_are_when_they_are_read() {
    let names = Arc::new(Names::new());
    let mut shard = known(&names);
    let handle = |shard: &mut Shard, kind, user: &str| {
        let input = message(kind, user, "c1", NOW + 11_000);
        shard.handle(NOW + 11_000, input, &mut Everyone, &mut Vec::new());
    };
    let user = |number| format!("user-{number}");
    for number in 0..200 {
        handle(&mut shard, Kind::Connect, &user(number));
    }
    let told = |shard: &Shard| -> BTreeSet<_> {
        let users = shard
            .ledger()
            .map(|entry| entry.event.name.as_str().to_owned());
        users.collect()
    };
    let first = told(&shard);
    let mut sending = SnapshotWriter::begin(&mut shard, header(8), false);
    let mut chunks = vec![sending.next(&mut shard, &names, 20).unwrap()];
    handle(&mut shard, Kind::Disconnect, &user(0));
    handle(&mut shard, Kind::Disconnect, &user(199));
    chunks.extend(std::iter::from_fn(|| sending.next(&mut shard, &names, 20)));
    assert!(sending.ids().is_empty());
    let lengths = chunks.iter().map(|chunk| decoded(chunk).part.len());
    assert!(lengths.max() <= Some(20), "however long a record is");

    let names = Arc::new(Names::new());
    let mut assembly = assembly(3, 8, &names);
    let found = chunks
        .iter()
        .find_map(|chunk| assembly.add(NOW + 12_000, chunk, &names).unwrap());
    let copy = found.unwrap().shard;
    assert_eq!(told(&copy), first);
    let is_live = |number| copy.leases().any(|it| **it.0 == *user(number));
    assert_eq!([0, 1, 199].map(is_live), [true, true, false]);
}

#[test]
fn a_change_of_what_a_shard_goes_by_holds_for_one_that_arrives() {
    let (chunks, names) = chunks();
    let mut assembly = assembly(3, 8, &names);
    let (first, others) = chunks.split_first().unwrap();
    assert!(assembly.add(NOW, first, &names).unwrap().is_none());
    let settings = Settings {
        tracker: TrackerSettings {
            timeout_ms: 5_000,
            ..TrackerSettings::default()
        },
        ..Settings::default()
    };
    assembly.change(NOW, Input::Settings(Box::new(settings)));
    let mut found = None;
    for chunk in others {
        found = found.or(assembly.add(NOW, chunk, &names).unwrap());
    }
    let mut copy = found.unwrap().shard;
    copy.follow_time(NOW + 5_000);
    assert_eq!(copy.connections(), 0);
}

#[test]
fn what_is_cut_off_is_never_complete() {
    let (chunks, names) = chunks();
    let mut assembly = assembly(3, 8, &names);
    for chunk in &chunks[1..] {
        assert!(assembly.add(NOW, chunk, &names).unwrap().is_none());
    }
    let first = &chunks[0];
    let cut = &first[..first.len() - 1];
    let refusal = assembly.add(NOW, cut, &names).unwrap_err();
    assert_eq!(refusal, Refusal::Unreadable);
    // Another answer to the same question isn't mixed with this one.
    let names_of_other = Arc::new(Names::new());
    let mut other = known(&names_of_other);
    let later = SnapshotHeader {
        seq: 5,
        ..header(8)
    };
    let other = take(&mut other, later, &names_of_other);
    let refusal = assembly.add(NOW, &other[0], &names).unwrap_err();
    assert_eq!(refusal, Refusal::Inconsistent);
    assert!(assembly.add(NOW, first, &names).unwrap().is_some());
}

#[test]
fn what_is_damaged_is_refused_wherever_it_is() {
    let (chunks, names) = chunks();
    for place in 0..chunks.len() {
        let mut chunk = decoded(&chunks[place]);
        for byte in 0..chunk.part.len() {
            chunk.part[byte] ^= 1;
            let damaged = encoded(&chunk);
            chunk.part[byte] ^= 1;
            let mut assembly = assembly(3, 8, &names);
            for chunk in &chunks[..place] {
                assert!(assembly.add(NOW, chunk, &names).unwrap().is_none());
            }
            let refusal = assembly.add(NOW, &damaged, &names).unwrap_err();
            assert_eq!(refusal, Refusal::Damaged, "byte {byte} of chunk {place}");
        }
    }
}

#[test]
fn another_question_shard_or_format_is_told_apart() {
    let (chunks, names) = chunks();
    let refused = |chunk: &Chunk, number| {
        let mut assembly = assembly(number, 8, &names);
        assembly.add(NOW, &encoded(chunk), &names).unwrap_err()
    };
    let mut other = assembly(3, 9, &names);
    for chunk in &chunks {
        assert!(other.add(NOW, chunk, &names).unwrap().is_none());
    }
    let mut chunk = decoded(&chunks[0]);
    assert_eq!(refused(&chunk, 4), Refusal::OtherShard);
    chunk.format += 1;
    let refusal = refused(&chunk, 3);
    assert_eq!(refusal, Refusal::OtherFormat);
    assert!(refusal.to_string().contains("another version"));
    chunk.format = FORMAT;
    chunk.index = CHUNKS_MAX;
    assert_eq!(refused(&chunk, 3), Refusal::Inconsistent);
}

/// A message from a stream, by the stream's number and the sequence number.
fn stored(kind: Kind, user: &str, at: u64, (stream, sequence): (u64, u64)) -> Input {
    let Input::Message { mut message, reply } = message(kind, user, "c1", at) else {
        unreachable!("it is a message");
    };
    message.stream_place = Some(StreamPlace { stream, sequence });
    Input::Message { message, reply }
}

#[test]
fn a_copy_knows_which_messages_of_which_stream_were_taken() {
    let names = Arc::new(Names::new());
    let mut first = shard(&names);
    for (kind, user, place) in [
        (Kind::Connect, "ann", (7, 500)),
        (Kind::Connect, "bob", (7, 501)),
        (Kind::Disconnect, "bob", (7, 502)),
    ] {
        let input = stored(kind, user, NOW, place);
        first.handle(NOW, input, &mut Everyone, &mut Vec::new());
    }
    let chunks = take(&mut first, header(8), &names);
    let mut assembly = assembly(3, 8, &names);
    let mut added = chunks.iter().map(|it| assembly.add(NOW, it, &names));
    let mut copy = added.find_map(Result::unwrap).unwrap().shard;
    let now = NOW + 12_000;
    let mut take = |kind, user, place| {
        copy.follow(now, stored(kind, user, now, place));
        copy.connections()
    };
    assert_eq!(
        take(Kind::Disconnect, "ann", (7, 499)),
        1,
        "it is an old one"
    );
    assert_eq!(take(Kind::Connect, "bob", (7, 501)), 1, "so is this");
    // The sequence numbers of a recreated stream start at 1.
    assert_eq!(take(Kind::Connect, "bob", (8, 1)), 2);
    assert_eq!(take(Kind::Disconnect, "ann", (8, 2)), 1);
}
