//! Long work is done in pieces, with inputs in between.

use super::*;

#[test]
fn a_snapshot_is_sent_in_pieces_and_what_happens_meanwhile_is_told_between_them() {
    let (mut owner, _) = pair();
    for user in 0..30 {
        owner.handle(NOW + 2_000, Kind::Connect, &format!("user-{user}"), "c1");
    }
    owner.out.clear();
    let mut standby = Side::new("standby");
    standby.follow(NOW + 3_000, 5, "owner");
    standby.advance(NOW + 4_000);
    let mut now = NOW + 4_000;
    owner
        .replica
        .snapshot_requested(now, &"standby".into(), 1, &mut owner.out);
    assert!(owner.out.is_empty(), "{:?}", owner.out);
    let mut pieces = 0;
    while let Some(at) = owner.replica.snapshots.next_at() {
        assert!(owner.replica.next_deadline() <= Some(at));
        now = now.max(at);
        let user = format!("late-{pieces}");
        both(&mut owner, &mut standby, now, Kind::Connect, &user, "c1");
        owner.advance(now);
        let mut chunks = 0;
        for out in owner.out.drain(..) {
            match out {
                ReplicaOutput::ToStandbys(bytes) => {
                    standby
                        .replica
                        .receive(now, &bytes, &mut standby.out)
                        .unwrap();
                }
                ReplicaOutput::Chunk(_, bytes) => {
                    chunks += 1;
                    standby
                        .replica
                        .chunk(now, &bytes, &mut standby.out)
                        .unwrap();
                }
                _ => {}
            }
        }
        assert!(chunks <= 1);
        pieces += 1;
    }
    assert!(pieces > 10);
    assert_eq!(standby.replica.complete_epoch(), Some(5));
    let users = standby.replica.shard().online_users();
    assert_eq!(users, owner.replica.shard().online_users());
    let digests = [&mut owner, &mut standby].map(|side| side.replica.ledger_digest());
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn one_that_takes_over_decides_on_a_few_users_before_it_takes_the_next_input() {
    let (mut owner, mut standby) = pair();
    for user in 0..300 {
        let user = format!("user-{user}");
        let now = NOW + 2_000;
        both(&mut owner, &mut standby, now, Kind::Connect, &user, "c1");
    }
    owner.tell(&mut standby, NOW + 2_001);
    let previous = PreviousOwner {
        epoch: 5,
        handed_over: None,
    };
    let now = NOW + 9_000;
    standby.lead(now, 8, previous);
    let mut left = standby.replica.shard().backlog();
    assert!(left > 200, "{left}");
    while left > 0 {
        assert!(standby.replica.next_deadline().unwrap() <= now);
        standby.advance(now);
        let next = standby.replica.shard().backlog();
        assert!(next < left && left - next <= 64, "{left} {next}");
        left = next;
    }
    assert_eq!(
        standby.viewers_told(),
        [],
        "nothing has changed for anybody"
    );
    assert!(standby.replica.next_deadline().unwrap() > now);
}

#[test]
fn one_that_gets_no_snapshot_asks_less_and_less_often() {
    let mut standby = Side::new("standby");
    standby.follow(NOW, 5, "owner");
    let mut asked = Vec::new();
    for after in (0..25_000).step_by(100) {
        standby.advance(NOW + after);
        let asks = standby.out.drain(..);
        let asks = asks.filter(|out| matches!(out, ReplicaOutput::Ask { .. }));
        asked.extend(asks.map(|_| after));
    }
    // After half a timeout, the replica listens anew before it asks.
    assert_eq!(asked, [500, 2_500, 4_500, 8_500, 16_500, 24_000]);
}
