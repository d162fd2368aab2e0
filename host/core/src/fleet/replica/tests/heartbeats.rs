//! Heartbeats that a standby is told of instead of receiving them.

use super::*;
use crate::tracker::TrackerSettings;
use crate::{HeartbeatBatch, Settings};

const STEP_MS: u64 = 1_000;
const CONNS: [&str; 5] = ["c1", "c2", "c3", "c4", "c5"];

/// An owner with a user of several connections, and a standby. Both need to be told up to when they
/// have received everything.
fn pair_with_relay() -> (Side, Side) {
    let (mut owner, mut standby) = pair();
    for side in [&mut owner, &mut standby] {
        let settings = Settings {
            tracker: TrackerSettings {
                timeout_ms: 30_000,
                receive_step_ms: Some(STEP_MS),
                // A message that is older than a close counts at once as late, or as one of a
                // sender whose clock is behind.
                reorder_ms: 0,
                ..TrackerSettings::default()
            },
            ..Settings::default()
        };
        side.take(NOW + 1_000, Input::Settings(Box::new(settings)));
        side.take(NOW + 1_000, Input::ReceivedUpTo { at: NOW + 1_000 });
        for conn in CONNS {
            side.handle(NOW + 1_000, Kind::Connect, "ann", conn);
        }
    }
    owner.out.clear();
    (owner, standby)
}

impl Side {
    fn take(&mut self, now: u64, input: Input) {
        self.replica.input(now, input, &mut Everyone, &mut self.out);
    }

    /// The messages that haven't been passed on yet, in order.
    fn contents(&mut self) -> Vec<StandbyContent> {
        let contents = self.out.iter().filter_map(|out| match out {
            ReplicaOutput::ToStandbys(bytes) => {
                Some(StandbyMessage::decode(bytes).unwrap().content)
            }
            _ => None,
        });
        contents.collect()
    }

    /// The time left of a connection's lease.
    fn left(&self, conn: &str) -> Option<u64> {
        let mut leases = self.replica.shard().leases();
        leases.find_map(|(_, id, left)| (id == conn).then_some(left))
    }
}

/// A second passes. All connections are heard from: by both sides, or only by the owner while it
/// tells the standby.
fn second(owner: &mut Side, standby: &mut Side, now: u64, conns: &[&str]) {
    for conn in conns {
        owner.handle(now, Kind::Heartbeat, "ann", conn);
        if standby.replica.receives_heartbeats() {
            standby.handle(now, Kind::Heartbeat, "ann", conn);
        }
    }
    for side in [&mut *owner, &mut *standby] {
        side.take(now, Input::ReceivedUpTo { at: now });
        side.advance(now);
    }
    owner.advance(now + 500);
    owner.tell(standby, now + 500);
    standby.advance(now + 500);
    owner.out.clear();
}

/// Lets time pass until the standby relies on being told of heartbeats. Returns that time.
fn wait_for_relay(owner: &mut Side, standby: &mut Side) -> u64 {
    let mut now = NOW + 2_000;
    while standby.replica.receives_heartbeats() {
        assert!(now < NOW + 20_000, "it still takes in heartbeats");
        second(owner, standby, now, &CONNS);
        now += 1_000;
    }
    assert_eq!(standby.reasons(), []);
    now
}

#[test]
fn leases_go_on_at_a_standby_by_what_it_is_told() {
    let (mut owner, mut standby) = pair_with_relay();
    let begun = wait_for_relay(&mut owner, &mut standby);
    for now in (begun..begun + 40_000).step_by(1_000) {
        second(&mut owner, &mut standby, now, &CONNS[1..]);
    }
    assert!(!standby.replica.receives_heartbeats());
    assert_eq!([&owner, &standby].map(|it| it.left("c1")), [None, None]);
    for conn in &CONNS[1..] {
        let [at_owner, at_standby] = [&owner, &standby].map(|it| it.left(conn).unwrap());
        assert!(at_owner <= at_standby, "{conn}: {at_owner}, {at_standby}");
        assert!(
            at_standby <= at_owner + STEP_MS,
            "{conn}: {at_owner}, {at_standby}"
        );
    }
    assert_eq!(standby.reasons(), []);
    assert_eq!(standby.replica.complete_epoch(), Some(5));
}

#[test]
fn a_standby_takes_in_heartbeats_again_when_its_owner_falls_silent_and_its_clock_stood_still() {
    let (mut owner, mut standby) = pair_with_relay();
    let begun = wait_for_relay(&mut owner, &mut standby);
    let left = standby.left("c1").unwrap();
    // The owner is dead. It doesn't matter that the standby still receives from others.
    let silent = begun + 10_000;
    standby.take(silent, Input::ReceivedUpTo { at: silent });
    assert_eq!(standby.left("c1"), Some(left));
    assert!(standby.replica.next_deadline().unwrap() <= silent);
    standby.advance(silent);
    assert!(standby.replica.receives_heartbeats());
    assert_eq!(standby.left("c1"), Some(left));
    // From now on, the standby's own receive clock counts.
    let later = silent + STEP_MS;
    standby.take(later, Input::ReceivedUpTo { at: later });
    assert_eq!(standby.left("c1"), Some(left - STEP_MS));
}

#[test]
fn who_owns_or_hands_over_a_shard_takes_in_heartbeats() {
    let (mut owner, mut standby) = pair_with_relay();
    let now = wait_for_relay(&mut owner, &mut standby) - 100;
    owner.handle(now, Kind::Heartbeat, "ann", "c1");
    owner
        .replica
        .set_role(now, Role::Resign { epoch: 5 }, &mut owner.out);
    let contents = owner.contents();
    assert!(
        matches!(
            &contents[..],
            [
                StandbyContent::Heartbeats { goes_on: false, entries, .. },
                StandbyContent::Digest { .. },
            ] if !entries.is_empty()
        ),
        "{contents:?}"
    );
    owner.tell(&mut standby, now + 1);
    assert!(standby.replica.receives_heartbeats());

    let (mut owner, mut standby) = pair_with_relay();
    let now = wait_for_relay(&mut owner, &mut standby);
    let previous = PreviousOwner {
        epoch: 5,
        handed_over: None,
    };
    standby.lead(now + 5_000, 8, previous);
    assert!(standby.replica.receives_heartbeats());
    assert!(owner.replica.receives_heartbeats());
}

#[test]
fn few_heartbeats_are_not_told() {
    let (mut owner, mut standby) = pair_with_relay();
    let begun = wait_for_relay(&mut owner, &mut standby);
    let mut now = begun;
    while !standby.replica.receives_heartbeats() {
        assert!(now < begun + 20_000, "it is still told");
        second(&mut owner, &mut standby, now, &[]);
        now += 500;
    }
    for _ in 0..10 {
        owner.handle(now, Kind::Heartbeat, "ann", "c1");
        now += 1_000;
        owner.advance(now);
    }
    let is_heard = |content: &StandbyContent| matches!(content, StandbyContent::Heartbeats { .. });
    assert!(!owner.contents().iter().any(is_heard), "{:?}", owner.out);
}

#[test]
fn what_viewers_are_told_for_a_heartbeat_comes_after_it() {
    let (mut owner, mut standby) = pair_with_relay();
    let now = wait_for_relay(&mut owner, &mut standby) - 100;
    owner.handle(now, Kind::Heartbeat, "bob", "c1");
    let contents = owner.contents();
    assert!(
        matches!(
            &contents[..],
            [
                StandbyContent::Heartbeats { .. },
                StandbyContent::Changes(_)
            ]
        ),
        "{contents:?}"
    );
    owner.tell(&mut standby, now + 1);
    assert!(standby.replica.shard().leases().any(|it| &**it.0 == "bob"));
    assert_eq!(standby.replica.shard().connections(), CONNS.len() + 1);
}

#[test]
fn who_has_timed_out_is_not_shown_again_by_a_standby_whose_clock_is_behind() {
    for sender_ahead_ms in [0, 5_000] {
        times_out(sender_ahead_ms);
    }
}

fn times_out(sender_ahead_ms: u64) {
    let (mut owner, mut standby) = pair_with_relay();
    let mut now = wait_for_relay(&mut owner, &mut standby);
    // The connection will time out between two messages of the owner.
    let came = now - 500;
    let connect = |at| message(Kind::Connect, "bob", "c1", at + sender_ahead_ms);
    owner.take(came, connect(came));
    standby.take(came + 5, connect(came));
    owner.tell(&mut standby, came + 5);
    now -= 1_000;
    let mut contents = Vec::new();
    while contents.is_empty() {
        assert!(now < came + 40_000, "it hasn't ended");
        now += 1_000;
        second(&mut owner, &mut standby, now, &CONNS);
        let end = now + 900;
        owner.take(end, Input::ReceivedUpTo { at: end });
        owner.advance(end);
        contents = owner.contents();
        contents.retain(|it| matches!(it, StandbyContent::Changes(_)));
        owner.tell(&mut standby, end);
    }
    assert_eq!(owner.viewers_told(), [("bob".to_owned(), false)]);
    assert!(!standby.replica.receives_heartbeats());
    standby.out.clear();
    let previous = PreviousOwner {
        epoch: 5,
        handed_over: None,
    };
    standby.lead(now + 1_000, 8, previous);
    assert_eq!(standby.viewers_told(), [], "ahead by {sender_ahead_ms} ms");
}

#[test]
fn who_comes_again_behind_a_time_out_is_not_ended_by_it() {
    let (mut owner, mut standby) = pair_with_relay();
    let mut now = wait_for_relay(&mut owner, &mut standby);
    while owner.left("c1").is_some() {
        assert!(now < NOW + 80_000, "it hasn't ended");
        now += 1_000;
        second(&mut owner, &mut standby, now, &CONNS[1..]);
    }
    // The standby receives the connect before it is told of the timeout.
    let seq = owner.replica.seq + 1;
    let mut heard = HeartbeatBatch::default();
    heard.expired("ann", "c1", NOW + 1_000);
    let content = StandbyContent::Heartbeats {
        clock: 0,
        goes_on: true,
        entries: heard.into_entries(),
    };
    let bytes = owner.replica.encode(seq, content).unwrap();
    standby.handle(now + 600, Kind::Connect, "ann", "c1");
    standby
        .replica
        .receive(now + 610, &bytes, &mut standby.out)
        .unwrap();
    assert!(standby.left("c1").is_some());
}

/// The owner tells of a heartbeat after the connection was closed.
fn closes_behind_a_heartbeat(sender_ahead_ms: u64, standby_ahead_ms: i64) {
    let (mut owner, mut standby) = pair_with_relay();
    let ahead_ms = standby_ahead_ms;
    standby.take(NOW + 1_500, Input::Clock { ahead_ms });
    let now = wait_for_relay(&mut owner, &mut standby) - 100;
    let by_sender = |at| at + sender_ahead_ms;
    owner.take(now, message(Kind::Heartbeat, "ann", "c1", by_sender(now)));
    for side in [&mut owner, &mut standby] {
        let closed = message(Kind::Disconnect, "ann", "c1", by_sender(now + 10));
        side.take(now + 10, closed);
    }
    owner.advance(now + 500);
    assert!(owner.tell(&mut standby, now + 500) > 0);
    let left = [&owner, &standby].map(|it| it.left("c1"));
    assert_eq!(left, [None, None], "{sender_ahead_ms}, {standby_ahead_ms}");
}

#[test]
fn who_was_closed_is_not_live_again_by_a_heartbeat_that_is_told_later() {
    closes_behind_a_heartbeat(0, 0);
    closes_behind_a_heartbeat(5_000, 0);
    closes_behind_a_heartbeat(0, -300);
}

#[test]
fn a_standby_adopts_what_its_owner_adopts_of_a_sender_whose_clock_is_behind() {
    let (mut owner, mut standby) = pair_with_relay();
    let mut now = wait_for_relay(&mut owner, &mut standby);
    both(&mut owner, &mut standby, now, Kind::Disconnect, "ann", "c1");
    let closed = now;
    while now < closed + 3_000 {
        now += 1_000;
        second(&mut owner, &mut standby, now, &CONNS[1..]);
    }
    for behind_ms in [5_000, 4_000] {
        let timestamp = closed - behind_ms;
        owner.take(now, message(Kind::Heartbeat, "ann", "c1", timestamp));
    }
    owner.advance(now + 500);
    owner.tell(&mut standby, now + 500);
    let left = [&owner, &standby].map(|it| it.left("c1").is_some());
    assert_eq!(left, [true, true]);
}

#[test]
fn a_further_connection_that_a_heartbeat_brings_is_told_at_once() {
    let (mut owner, mut standby) = pair_with_relay();
    let now = wait_for_relay(&mut owner, &mut standby) - 100;
    owner.handle(now, Kind::Heartbeat, "ann", "c9");
    owner.tell(&mut standby, now + 1);
    assert!(standby.left("c9").is_some());
    // Later heartbeats of a known connection may wait.
    owner.out.clear();
    owner.handle(now + 2, Kind::Heartbeat, "ann", "c9");
    assert_eq!(owner.contents(), []);
}

#[test]
fn what_an_owner_hears_while_its_lease_is_over_runs_out_no_earlier_at_a_standby() {
    let (mut owner, mut standby) = pair_with_relay();
    let now = wait_for_relay(&mut owner, &mut standby);
    owner.replica.renewed(now, now, &mut owner.out);
    assert!(!owner.replica.is_leading(now));
    owner.handle(now + 100, Kind::Heartbeat, "ann", "c1");
    owner.replica.renewed(now + 300, FOREVER, &mut owner.out);
    second(&mut owner, &mut standby, now + 700, &CONNS[1..]);
    let [at_owner, at_standby] = [&owner, &standby].map(|it| it.left("c1").unwrap());
    assert!(at_owner <= at_standby, "{at_owner}, {at_standby}");
    // The standby is then told of what comes next.
    assert_eq!(standby.reasons(), []);
    wait_for_relay(&mut owner, &mut standby);
}

#[test]
fn a_standby_goes_on_being_told_where_heartbeats_come_all_at_once_and_seldom() {
    let (mut owner, mut standby) = pair_with_relay();
    let begun = wait_for_relay(&mut owner, &mut standby);
    for now in (begun..begun + 60_000).step_by(1_000) {
        let is_time = (now - begun).is_multiple_of(14_000);
        let conns: &[_] = if is_time { &CONNS } else { &[] };
        second(&mut owner, &mut standby, now, conns);
        assert!(!standby.replica.receives_heartbeats(), "{}", now - begun);
    }
}

#[test]
fn what_is_heard_and_cannot_be_read_is_a_reason_to_catch_up() {
    let (mut owner, mut standby) = pair_with_relay();
    let now = wait_for_relay(&mut owner, &mut standby);
    let seq = owner.replica.seq + 1;
    let content = StandbyContent::Heartbeats {
        clock: 0,
        goes_on: true,
        entries: vec![0, 200, 1],
    };
    let bytes = owner.replica.encode(seq, content).unwrap();
    standby
        .replica
        .receive(now, &bytes, &mut standby.out)
        .unwrap();
    assert_eq!(standby.reasons(), [CatchUpReason::Mismatch]);
}

#[test]
fn a_heartbeat_that_is_told_after_its_connection_was_closed_brings_nobody_back() {
    let (mut owner, mut standby) = pair_with_relay();
    let now = wait_for_relay(&mut owner, &mut standby);
    for at in [now - 400, now - 300] {
        owner.handle(at, Kind::Heartbeat, "ann", "c1");
    }
    let closed = now - 200;
    both(
        &mut owner,
        &mut standby,
        closed,
        Kind::Disconnect,
        "ann",
        "c1",
    );
    owner.advance(now);
    let is_heard = |content: &StandbyContent| matches!(content, StandbyContent::Heartbeats { .. });
    assert!(owner.contents().iter().any(is_heard));
    owner.tell(&mut standby, now);
    let connections = [&owner, &standby].map(|it| it.replica.shard().connections());
    assert_eq!(connections, [CONNS.len() - 1; 2]);
}

#[test]
fn what_passed_before_a_snapshot_is_not_counted_again_behind_it() {
    let (mut owner, mut standby) = pair_with_relay();
    let now = wait_for_relay(&mut owner, &mut standby);
    // A message about one connection is lost.
    owner.handle(now - 400, Kind::Heartbeat, "ann", "c8");
    owner.out.clear();
    owner.handle(now - 390, Kind::Heartbeat, "ann", "c9");
    owner.tell(&mut standby, now - 390);
    assert_eq!(standby.reasons(), [CatchUpReason::Gap]);
    owner.take(now, Input::ReceivedUpTo { at: now });
    owner.advance(now + 100);
    owner.tell(&mut standby, now + 100);
    owner.out.clear();
    standby.catch_up(&mut owner, now + 200);
    assert_eq!(standby.replica.complete_epoch(), Some(5));
    owner.advance(now + 600);
    owner.tell(&mut standby, now + 600);
    for conn in CONNS {
        let [at_owner, at_standby] = [&owner, &standby].map(|it| it.left(conn).unwrap());
        assert!(at_owner <= at_standby, "{conn}: {at_owner}, {at_standby}");
    }
}

#[test]
fn metadata_of_a_connection_that_goes_on_is_no_news_where_there_are_no_statuses() {
    let (mut owner, mut standby) = pair_with_relay();
    let now = wait_for_relay(&mut owner, &mut standby) - 100;
    owner.handle(now, Kind::Heartbeat, "ann", "c1");
    owner.handle(now, Kind::Connect, "bob", "c1");
    let contents = owner.contents();
    assert!(
        matches!(&contents[..], [StandbyContent::Changes(_)]),
        "{contents:?}"
    );
}

#[test]
fn what_is_compared_comes_behind_all_that_has_been_heard() {
    let (mut owner, mut standby) = pair_with_relay();
    let begun = wait_for_relay(&mut owner, &mut standby);
    // Digests are sent at this interval, and heartbeats are told ten times as often.
    let digest_at = begun + FleetSettings::default().digest_ms;
    owner.advance(digest_at);
    owner.out.clear();
    let now = digest_at + FleetSettings::default().digest_ms;
    owner.advance(now - 1);
    owner.out.clear();
    owner.handle(now - 1, Kind::Heartbeat, "ann", "c1");
    assert_eq!(owner.contents(), []);
    owner.advance(now);
    let contents = owner.contents();
    assert!(
        matches!(
            contents[..],
            [
                StandbyContent::Heartbeats { .. },
                StandbyContent::Digest { .. }
            ]
        ),
        "{contents:?}"
    );
}
