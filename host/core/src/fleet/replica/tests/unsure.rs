//! Owners that may not know of all connections: since there was no owner before them, or since they
//! have missed something.

use super::*;
use crate::Settings;
use crate::message::Message;
use crate::tracker::TrackerSettings;

const GRACE_MS: u64 = 5_000;
const STATEMENT_MS: u64 = 3_000;

/// The first owner of a shard, and a standby that has caught up in the first seconds.
fn first_pair(earlier: impl FnOnce(&mut Side)) -> (Side, Side) {
    let (mut owner, mut standby) = (Side::new("owner"), Side::new("standby"));
    owner.lead(NOW, 5, PreviousOwner::default());
    owner.advance(NOW);
    for side in [&mut owner, &mut standby] {
        let tracker = TrackerSettings {
            timeout_ms: 30_000,
            grace_ms: GRACE_MS,
            ..TrackerSettings::default()
        };
        let settings = Settings {
            tracker,
            statement_ttl_ms: STATEMENT_MS,
            ..Settings::default()
        };
        side.input(NOW, Input::Settings(Box::new(settings)));
    }
    earlier(&mut owner);
    owner.out.clear();
    standby.follow(NOW + 10, 5, "owner");
    standby.catch_up(&mut owner, NOW + 1_000);
    standby.out.clear();
    (owner, standby)
}

/// A disconnect of the only known connection of a user.
fn logout(user: &str, at: u64) -> Input {
    let body = serde_json::json!({
        "userId": user,
        "connId": "c1",
        "timestamp": at,
        "reason": "logout",
    });
    let message = Message::parse(Kind::Disconnect, &body.to_string().into(), 1 << 20);
    Input::Message {
        message: message.unwrap(),
        reply: None,
    }
}

fn take_over(side: &mut Side, now: u64) {
    let previous = PreviousOwner {
        epoch: 5,
        handed_over: None,
    };
    side.lead(now, 8, previous);
    settle(side, now);
}

fn settle(side: &mut Side, now: u64) {
    side.advance(now);
    while side.replica.is_due(now) {
        side.advance(now);
    }
}

/// The bodies of the published departures.
fn departures(side: &mut Side) -> Vec<serde_json::Value> {
    let published = side.out.drain(..).filter_map(|out| match out {
        ReplicaOutput::Shard(Output::Publish(it)) if it.subject == Subject::Offline => {
            Some(it.body)
        }
        _ => None,
    });
    published
        .map(|body| serde_json::from_slice(&body).unwrap())
        .collect()
}

fn reason(body: &serde_json::Value) -> &str {
    body["reason"].as_str().unwrap()
}

#[test]
fn who_came_by_a_connect_goes_as_they_leave_also_after_the_shard_has_changed_hands() {
    // Ann came before the standby listened, and bob after that.
    let (mut owner, mut standby) =
        first_pair(|owner| owner.handle(NOW + 5, Kind::Connect, "ann", "c1"));
    let at = NOW + 2_000;
    both(&mut owner, &mut standby, at, Kind::Connect, "bob", "c1");
    owner.tell(&mut standby, at);
    for user in ["ann", "bob"] {
        owner.input(at + 10, logout(user, at + 10));
        standby.input(at + 10, logout(user, at + 10));
    }
    take_over(&mut standby, at + 1_000);
    assert!(standby.replica.shard().unsure_ms() > 20_000);
    assert_eq!(departures(&mut standby), Vec::<serde_json::Value>::new());
    settle(&mut standby, at + 10 + GRACE_MS);
    let gone = departures(&mut standby);
    assert_eq!(gone.iter().map(reason).collect::<Vec<_>>(), ["logout"; 2]);
}

#[test]
fn who_is_waited_for_has_left_as_they_seemed_to() {
    // She may have other connections that haven't been heard from yet.
    let (mut owner, mut standby) =
        first_pair(|owner| owner.handle(NOW + 5, Kind::Heartbeat, "ann", "c1"));
    let at = NOW + 2_000;
    owner.tell(&mut standby, at);
    take_over(&mut standby, at + 1_000);
    standby.out.clear();
    standby.input(at + 1_100, logout("ann", at + 1_100));
    settle(&mut standby, at + 1_100 + GRACE_MS);
    // Viewers are told nothing at first, and nothing else later.
    assert_eq!(standby.viewers_told(), []);
    let mut gone = Vec::new();
    for second in 1..=60 {
        settle(&mut standby, at + second * 1_000);
        gone.extend(departures(&mut standby));
    }
    assert_eq!(gone.len(), 1);
    assert_eq!(reason(&gone[0]), "logout");
    assert_eq!(gone[0]["lastSeen"], at + 1_100);
    assert!(gone[0]["metadata"].get("timeoutDuration").is_none());
}

#[test]
fn whom_an_application_stated_goes_when_that_is_over_also_after_a_takeover() {
    let (mut owner, mut standby) =
        first_pair(|owner| owner.handle(NOW + 5, Kind::Connect, "zoe", "c1"));
    let at = NOW + 2_000;
    both(&mut owner, &mut standby, at, Kind::Online, "ann", "c1");
    owner.tell(&mut standby, at);
    let ends = at + STATEMENT_MS;
    standby.advance(ends);
    take_over(&mut standby, ends);
    assert!(standby.replica.shard().unsure_ms() > 0);
    assert_eq!(departures(&mut standby).len(), 1);
}

#[test]
fn one_that_owns_a_shard_again_knows_what_it_has_told_and_answers() {
    let (mut owner, _) = first_pair(|owner| owner.handle(NOW + 5, Kind::Connect, "ann", "c1"));
    // The owner stopped being unsure long ago.
    owner.replica.shard_mut().set_unsure(0);
    let ask = |side: &mut Side, at: u64| {
        let (replica, users) = (&mut side.replica, ["ann"].into_iter());
        let answers = replica.query(at, "v1", users, &mut Everyone, &mut side.out);
        answers.is_some()
    };
    let again = |side: &mut Side, at: u64, epoch: u64, before: u64| {
        side.replica.set_role(at, Role::None, &mut side.out);
        side.input(at, Input::LostUpTo { at });
        let previous = PreviousOwner {
            epoch: before,
            handed_over: None,
        };
        side.lead(at, epoch, previous);
        settle(side, at);
        assert!(side.replica.shard().unsure_ms() > 0);
    };
    again(&mut owner, NOW + 4_000, 8, 5);
    assert!(ask(&mut owner, NOW + 4_000));
    // Another node owned the shard meanwhile, and may have told anything.
    again(&mut owner, NOW + 8_000, 15, 11);
    assert!(!ask(&mut owner, NOW + 8_000));
}

#[test]
fn whom_an_application_no_longer_states_may_have_connected_before_it_was_known() {
    let mut owner = Side::new("owner");
    let previous = PreviousOwner {
        epoch: 4,
        handed_over: None,
    };
    owner.lead(NOW, 5, previous);
    let settings = Settings {
        statement_ttl_ms: STATEMENT_MS,
        ..Settings::default()
    };
    owner.input(NOW, Input::Settings(Box::new(settings)));
    for user in ["ann", "bob"] {
        owner.handle(NOW + 1_000, Kind::Online, user, "c1");
    }
    assert_eq!(owner.viewers_told().len(), 2);
    settle(&mut owner, NOW + 1_000 + STATEMENT_MS);
    assert_eq!(owner.viewers_told(), []);
    // Ann has connected while nobody owned the shard.
    for seconds in [10, 20, 30] {
        owner.handle(NOW + seconds * 1_000, Kind::Heartbeat, "ann", "c1");
        settle(&mut owner, NOW + seconds * 1_000);
    }
    let gone = departures(&mut owner);
    assert_eq!(gone.len(), 1);
    assert_eq!(gone[0]["userId"], "bob");
    assert_eq!(reason(&gone[0]), "timeout");
    assert_eq!(gone[0]["metadata"]["timeoutDuration"], STATEMENT_MS);
    assert_eq!(gone[0]["lastSeen"], NOW + 1_000);
}

#[test]
fn who_is_waited_for_leaves_as_they_seemed_to_also_by_a_standby_that_caught_up_later() {
    let (mut owner, mut standby) = (Side::new("owner"), Side::new("standby"));
    let previous = PreviousOwner {
        epoch: 4,
        handed_over: None,
    };
    owner.lead(NOW, 5, previous);
    for user in ["ann", "bob"] {
        owner.handle(NOW + 1_000, Kind::Connect, user, "c1");
        owner.input(NOW + 2_000, logout(user, NOW + 2_000));
    }
    // The standby's clock is an hour ahead.
    let later = |at| at + 3_600_000;
    standby.follow(later(NOW + 2_500), 5, "owner");
    standby.advance(later(NOW + 6_000));
    let asked = standby.out.iter().find_map(|out| match out {
        ReplicaOutput::Ask { nonce, .. } => Some(*nonce),
        _ => None,
    });
    for chunk in owner.sends(NOW + 6_000, asked.unwrap()) {
        let replica = &mut standby.replica;
        replica
            .chunk(later(NOW + 6_000), &chunk, &mut standby.out)
            .unwrap();
    }
    take_over(&mut standby, later(NOW + 7_000));
    standby.out.clear();
    // Bob has another connection.
    standby.handle(later(NOW + 8_000), Kind::Heartbeat, "bob", "c2");
    settle(&mut standby, later(NOW + 37_000));
    let gone = departures(&mut standby);
    assert_eq!(gone.len(), 1);
    assert_eq!(gone[0]["userId"], "ann");
    assert_eq!(reason(&gone[0]), "logout");
    assert_eq!(gone[0]["lastSeen"], NOW + 2_000);
    assert!(gone[0]["metadata"].get("timeoutDuration").is_none());
}

#[test]
fn who_is_told_to_have_left_is_expected_no_longer() {
    let (mut owner, mut next) = unsure_pair();
    owner.follow(NOW + 6_000, 9, "next");
    let previous = PreviousOwner {
        epoch: 8,
        handed_over: None,
    };
    next.lead(NOW + 6_000, 9, previous);
    next.advance(NOW + 40_000);
    next.tell(&mut owner, NOW + 40_001);
    assert_eq!(next.viewers_told(), [("ann".to_owned(), false)]);
    assert_eq!(owner.replica.complete_epoch(), Some(9));
    assert_eq!(owner.replica.shard().connections(), 0);
}
