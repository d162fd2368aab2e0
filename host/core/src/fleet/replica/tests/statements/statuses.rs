//! What connections say about themselves and their users, in a fleet.

use bytes::Bytes;

use super::*;
use crate::Settings;
use crate::message::{Message, StreamPlace};
use crate::record::Record;
use crate::status::StatusSettings;
use crate::tracker::TrackerSettings;

/// An owner with a user of one connection, and a standby, with statuses enabled.
fn pair_with_statuses() -> (Side, Side) {
    let (mut owner, mut standby) = pair();
    with_statuses([&mut owner, &mut standby], 0);
    owner.out.clear();
    (owner, standby)
}

fn with_statuses(sides: [&mut Side; 2], grace_ms: u64) {
    for side in sides {
        let settings = Settings {
            tracker: TrackerSettings {
                timeout_ms: 30_000,
                grace_ms,
                ..TrackerSettings::default()
            },
            status: Some(StatusSettings {
                min_interval_ms: 1_000,
                typing_ms: 10_000,
                users_max: 100,
            }),
            ..Settings::default()
        };
        side.input(NOW + 1_000, Input::Settings(Box::new(settings)));
    }
}

fn says(kind: Kind, conn: &str, timestamp: u64, metadata: &str) -> Input {
    user_says(kind, ("ann", conn), timestamp, metadata)
}

fn user_says(kind: Kind, (user, conn): (&str, &str), timestamp: u64, metadata: &str) -> Input {
    let body = format!(
        r#"{{"userId":"{user}","connId":"{conn}","timestamp":{timestamp},"metadata":{metadata}}}"#
    );
    let message = Message::parse(kind, &Bytes::from(body), 1 << 20).unwrap();
    Input::Message {
        message,
        reply: None,
    }
}

/// Whether the standby finds that connections differ, while both sides receive heartbeats of these
/// connections.
fn differs(owner: &mut Side, standby: &mut Side, since: u64, conns: &[&str]) -> bool {
    owner.out.clear();
    for now in (since + 6_000..since + 24_000).step_by(6_000) {
        for conn in conns {
            both(owner, standby, now, Kind::Heartbeat, "ann", conn);
        }
        owner.advance(now);
        owner.tell(standby, now);
        owner.out.clear();
    }
    let reasons = standby.reasons();
    assert!(
        reasons.is_empty() || reasons == [CatchUpReason::Connections],
        "{reasons:?}"
    );
    !reasons.is_empty()
}

const STATUS: &str = r#"{"status":{"text":"in a meeting"}}"#;

#[test]
fn a_standby_that_missed_what_a_user_says_of_themselves_catches_up() {
    let now = NOW + 2_000;
    for missed in [
        STATUS,
        r#"{"status":null}"#,
        r#"{"activity":"idle"}"#,
        r#"{"status":{"text":"away","expiresAt":2000000000000}}"#,
    ] {
        let (mut owner, mut standby) = pair_with_statuses();
        let before = r#"{"status":{"text":"away"},"activity":"active"}"#;
        for side in [&mut owner, &mut standby] {
            side.input(now, says(Kind::Heartbeat, "c1", now, before));
        }
        owner.tell(&mut standby, now);
        assert!(!differs(&mut owner, &mut standby, now, &["c1"]), "{missed}");
        let now = NOW + 27_000;
        owner.input(now, says(Kind::Heartbeat, "c1", now, missed));
        owner.tell(&mut standby, now);
        assert!(differs(&mut owner, &mut standby, now, &["c1"]), "{missed}");
    }
}

#[test]
fn a_standby_that_missed_a_connect_and_heard_the_heartbeats_after_it_catches_up() {
    let (mut owner, mut standby) = pair_with_statuses();
    let now = NOW + 2_000;
    let connect = || says(Kind::Connect, "c2", now, r#"{"device":"phone"}"#);
    owner.input(now, connect());
    owner.tell(&mut standby, now);
    assert!(differs(&mut owner, &mut standby, now, &["c1", "c2"]));
}

#[test]
fn a_standby_that_heard_of_two_connections_the_other_way_round_catches_up() {
    let (mut owner, mut standby) = pair_with_statuses();
    let now = NOW + 2_000;
    for conn in ["c2", "c3"] {
        owner.handle(now, Kind::Connect, "ann", conn);
    }
    for conn in ["c3", "c2"] {
        standby.handle(now, Kind::Connect, "ann", conn);
    }
    owner.tell(&mut standby, now);
    assert!(differs(&mut owner, &mut standby, now, &["c1", "c2", "c3"]));
    let now = NOW + 21_000;
    standby.catch_up(&mut owner, now);
    assert_eq!(standby.replica.connections(), owner.replica.connections());
    // In whichever order the connections end, the others stay the same.
    for conn in ["c3", "c1", "c2"] {
        both(&mut owner, &mut standby, now, Kind::Disconnect, "ann", conn);
        assert_eq!(standby.replica.connections(), owner.replica.connections());
    }
    assert_eq!(standby.replica.connections(), [0; 32]);
}

#[test]
fn a_user_who_goes_leaves_nothing_to_compare() {
    let (mut owner, mut standby) = pair_with_statuses();
    let now = NOW + 2_000;
    for side in [&mut owner, &mut standby] {
        side.input(now, says(Kind::Heartbeat, "c1", now, STATUS));
        side.handle(now + 100, Kind::Disconnect, "ann", "c1");
        assert_eq!(side.replica.connections(), [0; 32]);
    }
}

/// Whether any publication contains the status.
fn publishes_status(side: &mut Side) -> bool {
    side.out.drain(..).any(|out| match out {
        ReplicaOutput::Shard(Output::Publish(it)) => {
            String::from_utf8_lossy(&it.body).contains("in a meeting")
        }
        _ => false,
    })
}

/// How many users' own statuses are kept.
fn said(side: &mut Side) -> usize {
    let records = side.replica.shard_mut().all_records();
    let said = |record: &&Record| matches!(record, Record::Status { .. });
    records.iter().filter(said).count()
}

fn take_over(side: &mut Side, now: u64, epoch: u64) {
    let previous = PreviousOwner {
        epoch: side.replica.epoch(),
        handed_over: None,
    };
    side.lead(now, epoch, previous);
    settle(side, now);
}

fn settle(side: &mut Side, now: u64) {
    side.advance(now);
    while side.replica.is_leading && side.replica.is_due(now) {
        side.advance(now);
    }
}

#[test]
fn who_came_and_went_before_a_takeover_leaves_no_status() {
    let (mut owner, mut standby) = pair_with_statuses();
    with_statuses([&mut owner, &mut standby], 5_000);
    let now = NOW + 2_000;
    // The owner has died, and no viewer was told of bob.
    standby.input(now, user_says(Kind::Connect, ("bob", "c1"), now, STATUS));
    standby.handle(now + 100, Kind::Disconnect, "bob", "c1");
    take_over(&mut standby, now + 200, 8);
    assert!(!publishes_status(&mut standby));
    standby.handle(now + 60_000, Kind::Connect, "bob", "c2");
    assert_eq!(standby.viewers_told(), [("bob".to_owned(), true)]);
    assert_eq!(said(&mut standby), 0);
}

/// Two nodes that know nothing of what was before, and a user with a status whose last known
/// connection has ended. She may have other connections that haven't been heard from.
fn pair_that_waits() -> (Side, Side) {
    let (mut first, mut second) = (Side::new("owner"), Side::new("standby"));
    let previous = PreviousOwner {
        epoch: 4,
        handed_over: None,
    };
    first.lead(NOW, 5, previous);
    with_statuses([&mut first, &mut second], 0);
    first.input(NOW + 2_000, says(Kind::Connect, "c1", NOW + 2_000, STATUS));
    assert!(publishes_status(&mut first));
    second.follow(NOW + 3_000, 5, "owner");
    second.catch_up(&mut first, NOW + 4_000);
    assert!(second.replica.shard().unsure_ms() > 0);
    let now = NOW + 5_000;
    both(&mut first, &mut second, now, Kind::Disconnect, "ann", "c1");
    first.tell(&mut second, now);
    assert_eq!(first.viewers_told(), []);
    (first, second)
}

#[test]
fn who_is_waited_for_keeps_their_status_also_after_another_takeover() {
    let (_, mut second) = pair_that_waits();
    take_over(&mut second, NOW + 6_000, 8);
    // She has another connection, which has said nothing about a status.
    let says_idle = r#"{"activity":"idle"}"#;
    second.input(
        NOW + 7_000,
        says(Kind::Heartbeat, "c2", NOW + 7_000, says_idle),
    );
    second.advance(NOW + 9_000);
    let shown = second.replica.shard().shown("ann").unwrap();
    assert_eq!(shown.get("activity"), Some(r#""idle""#));
    assert_eq!(shown.get("status"), Some(r#"{"text":"in a meeting"}"#));
}

#[test]
fn who_was_waited_for_leaves_no_status() {
    let ends = NOW + 35_000;
    let (mut first, mut second) = pair_that_waits();
    assert_ne!(second.replica.connections(), [0; 32]);
    for side in [&mut first, &mut second] {
        settle(side, ends);
    }
    first.tell(&mut second, ends);
    assert_eq!(first.viewers_told(), [("ann".to_owned(), false)]);
    assert_eq!(first.replica.connections(), [0; 32]);
    assert_eq!(second.replica.connections(), [0; 32]);
    // The owner may have died before.
    let (_, mut second) = pair_that_waits();
    settle(&mut second, ends);
    take_over(&mut second, ends, 8);
    assert_eq!(second.viewers_told(), [("ann".to_owned(), false)]);
    assert_eq!(second.replica.connections(), [0; 32]);
}

#[test]
fn who_is_waited_for_is_so_no_longer_because_of_another_takeover() {
    let (_, mut second) = pair_that_waits();
    take_over(&mut second, NOW + 20_000, 8);
    assert!(second.replica.shard().unsure_ms() < 15_000);
    assert_eq!(second.viewers_told(), []);
    settle(&mut second, NOW + 35_000);
    assert_eq!(second.viewers_told(), [("ann".to_owned(), false)]);
}

/// The same message, with a position in a stream.
fn stored(input: Input, sequence: u64) -> Input {
    let Input::Message { mut message, reply } = input else {
        panic!("{input:?}");
    };
    let stream = 1;
    message.stream_place = Some(StreamPlace { stream, sequence });
    Input::Message { message, reply }
}

#[test]
fn what_a_connect_says_of_a_user_counts_though_a_stream_delivers_it_behind_its_disconnect() {
    let (mut owner, mut standby) = pair_with_statuses();
    let now = NOW + 2_000;
    let gone = |user, number| {
        let disconnect = message(Kind::Disconnect, user, "c2", now + number);
        stored(disconnect, number)
    };
    let late = |user, number| {
        let connect = user_says(Kind::Connect, (user, "c2"), now + number, STATUS);
        stored(connect, number)
    };
    for side in [&mut owner, &mut standby] {
        side.input(now + 10, gone("ann", 12));
        side.input(now + 320, late("ann", 11));
        // The late messages make no other user online.
        side.input(now + 320, gone("bob", 14));
        side.input(now + 330, late("bob", 13));
    }
    assert!(publishes_status(&mut owner));
    owner.advance(now + 400);
    assert_eq!(owner.replica.shard().connections(), 1);
    assert_eq!(owner.replica.connections(), standby.replica.connections());
    assert_eq!([said(&mut owner), said(&mut standby)], [1, 1]);
    // The user clears the status. The same late message again makes no difference.
    for side in [&mut owner, &mut standby] {
        let nothing = r#"{"status":null}"#;
        side.input(now + 5_000, says(Kind::Heartbeat, "c1", now + 11, nothing));
        side.out.clear();
        side.input(now + 5_001, late("ann", 11));
    }
    owner.advance(now + 9_000);
    assert!(!publishes_status(&mut owner));
    let shown = owner.replica.shard().shown("ann").unwrap();
    assert_eq!(shown.get("status"), None);
}

#[test]
fn a_connect_that_a_stream_delivers_behind_its_disconnect_lifts_an_applications_offline() {
    let (mut owner, mut standby) = pair_with_statuses();
    let now = NOW + 2_000;
    for side in [&mut owner, &mut standby] {
        side.handle(now, Kind::Offline, "ann", "c1");
        let gone = message(Kind::Disconnect, "ann", "c2", now + 12);
        side.input(now + 10, stored(gone, 12));
        let late = message(Kind::Connect, "ann", "c2", now + 11);
        side.input(now + 320, stored(late, 11));
    }
    let ann = |online| ("ann".to_owned(), online);
    assert_eq!(owner.viewers_told(), [ann(false), ann(true)]);
    take_over(&mut standby, now + 400, 8);
    assert_eq!(standby.shown(now + 401, &["ann"]), [true]);
}
