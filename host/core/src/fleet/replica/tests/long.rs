//! Messages that are too long, and are told in pieces.

use super::*;

/// An owner that tells everything in pieces, and a standby with the same state.
fn pair_of_pieces() -> (Side, Side) {
    let (mut owner, standby) = pair();
    owner.replica.settings.standby_message_bytes_max = 40;
    (owner, standby)
}

fn standby_messages(side: &mut Side) -> Vec<Vec<u8>> {
    let standby_messages = side.out.drain(..).filter_map(|out| match out {
        ReplicaOutput::ToStandbys(bytes) => Some(bytes),
        _ => None,
    });
    standby_messages.collect()
}

#[test]
fn a_long_message_goes_in_pieces_that_come_to_the_same() {
    let (mut owner, mut standby) = pair_of_pieces();
    let now = NOW + 2_000;
    both(&mut owner, &mut standby, now, Kind::Connect, "bob", "c1");
    let pieces = standby_messages(&mut owner);
    assert!(pieces.len() > 2, "{}", pieces.len());
    let (last, others) = pieces.split_last().unwrap();
    for piece in others {
        standby
            .replica
            .receive(now, piece, &mut standby.out)
            .unwrap();
        assert!(piece.len() < 80, "{}", piece.len());
        assert_eq!(standby.replica.shard().online_users(), 1);
    }
    // While a message is incomplete, nobody gets a snapshot.
    standby
        .replica
        .snapshot_requested(now, &"other".into(), 1, &mut Vec::new());
    assert_eq!(standby.replica.snapshots.next_at(), None);
    standby
        .replica
        .receive(now, last, &mut standby.out)
        .unwrap();
    assert_eq!(standby.replica.shard().online_users(), 2);
    assert_eq!(standby.replica.complete_epoch(), Some(5));

    // Both hold the same, so the digests agree, and the next message fits.
    both(
        &mut owner,
        &mut standby,
        now + 1,
        Kind::Disconnect,
        "bob",
        "c1",
    );
    owner.advance(now + 10_000);
    owner.tell(&mut standby, now + 10_000);
    assert_eq!(standby.reasons(), []);
    assert_eq!(standby.replica.shard().online_users(), 1);
}

#[test]
fn a_piece_that_is_missing_is_a_gap_and_half_a_message_is_no_harm() {
    let (mut owner, mut standby) = pair_of_pieces();
    let now = NOW + 2_000;
    both(&mut owner, &mut standby, now, Kind::Connect, "bob", "c1");
    let mut pieces = standby_messages(&mut owner);
    pieces.remove(1);
    for piece in &pieces {
        standby
            .replica
            .receive(now, piece, &mut standby.out)
            .unwrap();
    }
    assert_eq!(standby.reasons(), [CatchUpReason::Gap]);

    // The owner dies in the middle of a message: no viewer was told of Bob by then.
    let (mut owner, mut standby) = pair_of_pieces();
    both(&mut owner, &mut standby, now, Kind::Connect, "bob", "c1");
    let pieces = standby_messages(&mut owner);
    standby
        .replica
        .receive(now, &pieces[0], &mut standby.out)
        .unwrap();
    let previous = PreviousOwner {
        epoch: 5,
        handed_over: None,
    };
    standby.lead(now + 9_000, 8, previous);
    assert_eq!(standby.viewers_told(), [("bob".to_owned(), true)]);
}

#[test]
fn pieces_of_something_else_are_refused() {
    let (_, mut standby) = pair();
    let seq = standby.replica.seq + 1;
    let piece = StandbyMessage {
        shard: 3,
        epoch: 5,
        seq,
        node: "owner".into(),
        content: StandbyContent::Piece {
            is_last: true,
            bytes: vec![1, 2, 3],
        },
    };
    standby
        .replica
        .receive(NOW, &piece.encode(), &mut standby.out)
        .unwrap();
    assert_eq!(standby.reasons(), [CatchUpReason::Mismatch]);
}
