//! A node that begins to lead handles inputs in between. What it missed about a user is announced
//! before what the user sends.

use super::*;

const AT: u64 = NOW + 9_000;

/// A standby of many users that has begun to lead, and has announced nothing yet. It has seen two
/// of them leave, and another one come.
fn taking_over() -> Side {
    let (mut owner, mut standby) = pair();
    for number in 0..300 {
        let user = format!("user-{number}");
        let at = NOW + 2_000 + number;
        both(&mut owner, &mut standby, at, Kind::Connect, &user, "c1");
    }
    owner.tell(&mut standby, NOW + 2_500);
    for user in ["user-7", "user-250"] {
        standby.handle(NOW + 3_000, Kind::Disconnect, user, "c1");
    }
    standby.handle(NOW + 3_000, Kind::Connect, "new", "c1");
    standby.out.clear();
    let previous = PreviousOwner {
        epoch: 5,
        handed_over: None,
    };
    let role = Role::Lead { epoch: 8, previous };
    standby.replica.set_role(AT, role, &mut standby.out);
    assert!(standby.replica.shard().is_taking_over());
    standby
}

/// What the replica tells viewers until nothing is due any more.
fn tells(side: &mut Side) -> Vec<(String, bool)> {
    while side.replica.is_due(AT) {
        side.advance(AT);
    }
    side.viewers_told()
}

fn events(events: &[(&str, bool)]) -> Vec<(String, bool)> {
    let events = events.iter();
    events
        .map(|(user, online)| ((*user).to_owned(), *online))
        .collect()
}

#[test]
fn who_comes_meanwhile_is_told_of_at_once() {
    let mut side = taking_over();
    side.handle(AT, Kind::Connect, "late", "c1");
    assert_eq!(side.viewers_told(), events(&[("late", true)]));
    assert!(side.replica.shard().is_taking_over());
    let mut others = tells(&mut side);
    others.sort();
    assert_eq!(
        others,
        events(&[("new", true), ("user-250", false), ("user-7", false)])
    );
}

#[test]
fn what_was_missed_of_a_user_comes_before_what_they_send() {
    let mut side = taking_over();
    side.handle(AT, Kind::Connect, "user-250", "c2");
    side.handle(AT, Kind::Disconnect, "new", "c1");
    let told_of = |events: &[(String, bool)], user: &str| -> Vec<_> {
        let of_user = events.iter().filter(|(it, _)| it == user);
        of_user.map(|(_, online)| *online).collect()
    };
    let all = tells(&mut side);
    assert_eq!(told_of(&all, "user-250"), [false, true]);
    assert_eq!(told_of(&all, "new"), [true, false]);
    assert_eq!(told_of(&all, "user-7"), [false]);
    assert_eq!(all.len(), 5);
}

#[test]
fn viewers_are_answered_once_what_was_missed_is_announced_though_all_are_still_to_be_decided_on() {
    let mut side = taking_over();
    let is_answered = |side: &mut Side, user: &str| {
        let users = [user].into_iter();
        let answers = side
            .replica
            .query(AT, "anyone", users, &mut Everyone, &mut side.out);
        answers.is_some()
    };
    assert!(!is_answered(&mut side, "user-1"));
    while side.replica.shard().is_behind(AT) {
        assert!(!is_answered(&mut side, "user-1"));
        side.advance(AT);
    }
    assert!(side.replica.shard().backlog() > 100);
    assert!(is_answered(&mut side, "user-1"));
}

#[test]
fn a_snapshot_is_given_once_everyone_has_been_looked_after() {
    let mut side = taking_over();
    let node: Arc<str> = "next".into();
    side.replica.snapshot_requested(AT, &node, 1, &mut side.out);
    let is_chunk = |out: &ReplicaOutput| matches!(out, ReplicaOutput::Chunk(..));
    side.replica.send_snapshots(AT, &mut side.out);
    assert!(!side.out.iter().any(is_chunk));
    while side.replica.is_due(AT) {
        side.advance(AT);
    }
    side.replica.send_snapshots(AT, &mut side.out);
    assert!(side.out.iter().any(is_chunk));
}

#[test]
fn one_that_leads_no_longer_gives_no_snapshot_without_what_it_has_still_to_announce() {
    let resigns = |side: &mut Side| {
        let role = Role::Resign { epoch: 8 };
        side.replica.set_role(AT + 1, role, &mut side.out);
    };
    let loses_its_lease = |side: &mut Side| side.replica.renewed(AT + 1, AT, &mut side.out);
    for ends in [&resigns as &dyn Fn(&mut Side), &loses_its_lease] {
        for is_asked_before in [false, true] {
            let mut side = taking_over();
            let asked = |side: &mut Side| {
                let other = "other".into();
                side.replica
                    .snapshot_requested(AT + 1, &other, 1, &mut side.out);
            };
            if is_asked_before {
                asked(&mut side);
            }
            ends(&mut side);
            asked(&mut side);
            side.advance(AT + 2);
            assert_eq!(side.replica.snapshots.next_at(), None);
            let gives = |out: &ReplicaOutput| matches!(out, ReplicaOutput::Chunk(..));
            assert!(!side.out.iter().any(gives));
        }
    }
}
