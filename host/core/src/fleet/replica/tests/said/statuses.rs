//! What connections say of themselves and of their users, in a fleet.

use bytes::Bytes;

use super::*;
use crate::Settings;
use crate::message::Message;
use crate::status::StatusSettings;
use crate::tracker::TrackerSettings;

/// An owner with a user of one connection, and a standby, where statuses are told.
fn pair_with_statuses() -> (Side, Side) {
    let (mut owner, mut standby) = pair();
    for side in [&mut owner, &mut standby] {
        let settings = Settings {
            tracker: TrackerSettings {
                timeout_ms: 30_000,
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
    owner.out.clear();
    (owner, standby)
}

fn says(kind: Kind, conn: &str, timestamp: u64, metadata: &str) -> Input {
    let body = format!(
        r#"{{"userId":"ann","connId":"{conn}","timestamp":{timestamp},"metadata":{metadata}}}"#
    );
    let message = Message::parse(kind, &Bytes::from(body), 1 << 20).unwrap();
    Input::Message {
        message,
        reply: None,
    }
}

/// Whether the standby finds that connections differ, while both hear of these that they go on.
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
        reasons.is_empty() || reasons == [Difference::Connections],
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
        owner.hear(now, Kind::Connect, "ann", conn);
    }
    for conn in ["c3", "c2"] {
        standby.hear(now, Kind::Connect, "ann", conn);
    }
    owner.tell(&mut standby, now);
    assert!(differs(&mut owner, &mut standby, now, &["c1", "c2", "c3"]));
    let now = NOW + 21_000;
    standby.catch_up(&mut owner, now);
    assert_eq!(standby.replica.connections(), owner.replica.connections());
    // Whichever goes, the rest is the same.
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
        side.hear(now + 100, Kind::Disconnect, "ann", "c1");
        assert_eq!(side.replica.connections(), [0; 32]);
    }
}
