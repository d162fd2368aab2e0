//! Statements, leases and messages that end, are lost, or come too early at a standby.

use bytes::Bytes;

use super::*;
use crate::Settings;
use crate::message::Message;
use crate::quota::Cap;
use crate::record::Record;
use crate::tracker::TrackerSettings;

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// Takes over from the owner of epoch 5, which didn't hand the shard over.
fn take_over(standby: &mut Side, now: u64) {
    standby.out.clear();
    let previous = PreviousOwner {
        epoch: 5,
        handed_over: None,
    };
    standby.lead(now, 8, previous);
}

fn pair_with(settings: &Settings) -> (Side, Side) {
    let (mut owner, mut standby) = pair();
    for side in [&mut owner, &mut standby] {
        let settings = Input::Settings(Box::new(settings.clone()));
        side.replica
            .input(NOW + 1_500, settings, &mut Everyone, &mut side.out);
    }
    (owner, standby)
}

/// As [`pair`], with a grace of 5 s for users who leave.
fn pair_with_graces() -> (Side, Side) {
    let settings = Settings::default();
    let tracker = TrackerSettings {
        grace_ms: 5_000,
        ..settings.tracker
    };
    pair_with(&Settings {
        tracker,
        ..settings
    })
}

fn publications(side: &Side) -> usize {
    let is_published =
        |out: &&ReplicaOutput| matches!(out, ReplicaOutput::Shard(Output::Publish(_)));
    side.out.iter().filter(is_published).count()
}

fn statements(side: &Side) -> usize {
    side.replica.shard().statements().count()
}

#[test]
fn a_statement_that_nobody_repeats_ends_at_a_standby_as_it_does_at_the_owner() {
    let (mut owner, mut standby) = pair();
    let now = NOW + 2_000;
    for (kind, user) in [
        (Kind::Online, "bob"),
        (Kind::Offline, "cyd"),
        (Kind::Offline, "ann"),
    ] {
        both(&mut owner, &mut standby, now, kind, user, "c1");
    }
    owner.tell(&mut standby, now);
    owner.out.clear();
    assert_eq!([&owner, &standby].map(statements), [3, 3]);
    let end = now + DAY_MS;
    // Ann is still connected, and the statement that she is offline continues.
    both(&mut owner, &mut standby, end, Kind::Heartbeat, "ann", "c1");
    both(&mut owner, &mut standby, end, Kind::Heartbeat, "ann", "c1");
    for _ in 0..4 {
        owner.advance(end);
    }
    owner.tell(&mut standby, end);
    standby.advance(end);
    assert_eq!([&owner, &standby].map(statements), [1, 1]);
    assert!(owner.viewers_told().contains(&("bob".to_owned(), false)));
    take_over(&mut standby, end + 9_000);
    assert_eq!(publications(&standby), 0, "{:?}", standby.out);
}

#[test]
fn a_statement_is_over_at_a_standby_too_once_its_user_connects() {
    let (mut owner, mut standby) = pair();
    let now = NOW + 2_000;
    both(&mut owner, &mut standby, now, Kind::Online, "bob", "c1");
    assert_eq!([&owner, &standby].map(statements), [1, 1]);
    both(
        &mut owner,
        &mut standby,
        now + 1,
        Kind::Connect,
        "bob",
        "c1",
    );
    assert_eq!([&owner, &standby].map(statements), [0, 0]);
}

#[test]
fn a_statement_that_ends_while_nobody_owns_the_shard_is_announced_by_the_next_owner() {
    let (mut owner, mut standby) = pair();
    let now = NOW + 2_000;
    both(&mut owner, &mut standby, now, Kind::Online, "bob", "c1");
    owner.tell(&mut standby, now);
    standby.handle(now, Kind::Disconnect, "ann", "c1");
    let end = now + DAY_MS;
    // For a while, ann's close is remembered. Later, nothing of her is.
    for _ in 0..4 {
        standby.advance(now + 100_000);
    }
    assert_eq!(standby.replica.next_deadline(), Some(end));
    standby.advance(end);
    assert_eq!(statements(&standby), 0);
    take_over(&mut standby, end + 1_000);
    assert!(standby.viewers_told().contains(&("bob".to_owned(), false)));
}

#[test]
fn a_standby_that_missed_a_statement_catches_up() {
    let (mut owner, mut standby) = pair();
    owner.handle(NOW + 2_000, Kind::Offline, "ann", "c1");
    owner.tell(&mut standby, NOW + 2_001);
    let mut now = NOW + 10_000;
    for round in 0..3 {
        assert_eq!(standby.reasons(), [], "round {round}");
        owner.out.clear();
        both(&mut owner, &mut standby, now, Kind::Heartbeat, "ann", "c1");
        owner.advance(now);
        owner.tell(&mut standby, now);
        now += 6_000;
    }
    assert_eq!(standby.reasons(), [CatchUpReason::Connections]);
    standby.catch_up(&mut owner, now);
    assert_eq!(statements(&standby), 1);
    // The standby hides the user whom the application hid.
    take_over(&mut standby, now + 9_000);
    assert_eq!(standby.viewers_told(), []);
}

/// A new process of the node, with the records that the previous one stored.
fn started_again(side: &mut Side, now: u64) -> Side {
    let before = Arc::clone(&side.replica.names);
    let mut again = Side::new("again");
    let names = Arc::clone(&again.replica.names);
    let records = side.replica.shard_mut().all_records();
    let records = records.iter().filter_map(|record| {
        let (key, value) = record.encode(&before);
        Some(Record::decode(&key, &value?, &names).unwrap())
    });
    let records: Vec<_> = records.collect();
    again.replica.restore(now, 500, records);
    again
}

/// A message of a node that owns nothing.
fn forged(side: &mut Side, epoch: u64, seq: u64) -> Vec<u8> {
    let told = StandbyMessage {
        shard: 3,
        epoch,
        seq,
        node: "nobody".into(),
        content: StandbyContent::Begin(side.replica.ledger_digest()),
    };
    told.encode()
}

#[test]
fn an_epoch_that_the_bucket_does_not_know_makes_nobody_deaf() {
    let (mut owner, mut standby) = pair();
    for (epoch, seq) in [(u64::MAX, 1), (900, 1), (5, u64::MAX)] {
        let bytes = forged(&mut standby, epoch, seq);
        standby
            .replica
            .receive(NOW + 1_500, &bytes, &mut standby.out)
            .unwrap();
    }
    let now = NOW + 2_000;
    both(&mut owner, &mut standby, now, Kind::Connect, "bob", "c1");
    owner.tell(&mut standby, now);
    assert_eq!(standby.replica.complete_epoch(), Some(5));
    assert_eq!(standby.replica.shard().online_users(), 2);
    assert_eq!(standby.reasons(), []);

    // The bucket names the next owner. A forged message has a very high sequence number.
    standby.follow(NOW + 3_000, 8, "next");
    let bytes = forged(&mut standby, 8, u64::MAX - 1);
    standby
        .replica
        .receive(NOW + 3_000, &bytes, &mut standby.out)
        .unwrap();
    assert_eq!(standby.reasons(), [CatchUpReason::Ledger]);
}

#[test]
fn what_an_owner_tells_before_the_bucket_does_is_taken_when_the_bucket_has_told() {
    let (mut owner, mut standby) = pair();
    let (_, mut third) = pair();
    take_over(&mut standby, NOW + 9_000);
    standby.handle(NOW + 9_001, Kind::Connect, "bob", "c1");
    third.handle(NOW + 9_001, Kind::Connect, "bob", "c1");
    assert!(standby.tell(&mut third, NOW + 9_002) > 1);
    assert_eq!(third.replica.complete_epoch(), Some(5));
    third.follow(NOW + 9_010, 8, "standby");
    assert_eq!(third.replica.complete_epoch(), Some(8));
    assert_eq!(third.replica.shard().online_users(), 2);
    assert_eq!(third.reasons(), []);
    // A replica without a part in the shard keeps nothing.
    standby.tell(&mut owner, NOW + 9_020);
    owner
        .replica
        .set_role(NOW + 9_030, Role::None, &mut owner.out);
    assert!(owner.replica.held_messages.take(Some(u64::MAX)).is_empty());
}

#[test]
fn one_that_waits_for_a_snapshot_to_lead_by_begins_again_when_it_loses_inputs() {
    let (mut owner, mut standby) = pair();
    let now = NOW + 2_000;
    // The owner's last message doesn't arrive.
    both(&mut owner, &mut standby, now, Kind::Connect, "bob", "c1");
    let previous = PreviousOwner {
        epoch: 5,
        handed_over: Some(("owner".into(), owner.replica.seq)),
    };
    let role = Role::Lead { epoch: 8, previous };
    standby.out.clear();
    standby.replica.set_role(now, role, &mut standby.out);
    standby.advance(now + 500);
    standby.advance(now + 1_000);
    let asked = standby.out.iter().find_map(|out| match out {
        ReplicaOutput::Ask { nonce, .. } => Some(*nonce),
        _ => None,
    });
    let chunks = owner.sends(now + 1_000, asked.unwrap());
    // Ann's second connection is among the lost inputs.
    let lost = Input::LostUpTo { at: now + 1_100 };
    standby
        .replica
        .input(now + 1_100, lost, &mut Everyone, &mut standby.out);
    for chunk in chunks {
        standby
            .replica
            .chunk(now + 1_200, &chunk, &mut standby.out)
            .unwrap();
    }
    standby.advance(now + 9_000);
    assert!(standby.replica.is_leading(now + 9_000));
    standby.out.clear();
    standby.handle(now + 9_001, Kind::Disconnect, "ann", "c1");
    assert_eq!(standby.viewers_told(), [], "ann may be connected still");
}

#[test]
fn no_quota_keeps_a_user_online_who_is_expected_and_does_not_come() {
    let (mut owner, mut standby) = pair_with(&Settings {
        users: Cap::new(1),
        ..Settings::default()
    });
    // The standby misses that ann leaves and that bob comes.
    owner.handle(NOW + 2_000, Kind::Disconnect, "ann", "c1");
    owner.handle(NOW + 2_001, Kind::Connect, "bob", "c1");
    owner.tell(&mut standby, NOW + 2_002);
    let lost = Input::LostUpTo { at: NOW + 2_100 };
    standby
        .replica
        .input(NOW + 2_100, lost, &mut Everyone, &mut standby.out);
    standby.handle(NOW + 2_101, Kind::Heartbeat, "ann", "c1");
    take_over(&mut standby, NOW + 9_000);
    for after in [30_000, 60_000, 90_000] {
        standby.advance(NOW + 9_000 + after);
    }
    let told = standby.viewers_told();
    assert!(told.contains(&("bob".to_owned(), false)), "{told:?}");
}

#[test]
fn whom_an_application_took_offline_before_the_node_ended_is_offline_when_it_owns_the_shard_again()
{
    let (_, mut standby) = pair();
    // The owner dies before it tells the result.
    standby.handle(NOW + 2_000, Kind::Offline, "ann", "c1");
    let mut again = started_again(&mut standby, NOW + 3_000);
    take_over(&mut again, NOW + 3_000);
    for after in [1_000, 31_000, 61_000] {
        again.advance(NOW + 3_000 + after);
    }
    assert_eq!(again.viewers_told(), [("ann".to_owned(), false)]);
}

#[test]
fn a_snapshot_that_takes_long_gives_nobody_more_time() {
    let (mut owner, _) = pair();
    owner.handle(NOW, Kind::Online, "bob", "c1");
    let mut standby = Side::new("standby");
    standby.follow(NOW + 10, 5, "owner");
    standby.advance(NOW + 1_000);
    let nonce = standby.replica.nonce;
    let chunks = owner.sends(NOW + 1_000, nonce);
    let mut now = NOW + 1_000;
    for chunk in &chunks {
        standby.replica.chunk(now, chunk, &mut standby.out).unwrap();
        now += 4_000;
    }
    assert!(now > NOW + 8_000);
    assert_eq!(standby.replica.complete_epoch(), Some(5));
    // Ann was last heard from at `NOW`.
    assert_eq!(standby.replica.shard().connections(), 1);
    standby.advance(NOW + 30_000);
    assert_eq!(standby.replica.shard().connections(), 0);
    // A statement doesn't hold longer, either.
    standby.advance(NOW + DAY_MS - 1);
    assert_eq!(statements(&standby), 1);
    standby.advance(NOW + DAY_MS);
    assert_eq!(statements(&standby), 0);
}

#[test]
fn a_snapshot_of_an_epoch_that_the_bucket_does_not_know_is_not_taken() {
    let mut other = Side::new("owner");
    other.lead(NOW - 40_000, 9, PreviousOwner::default());
    other.handle(NOW, Kind::Connect, "ann", "c1");
    let mut standby = Side::new("standby");
    standby.follow(NOW + 10, 5, "owner");
    standby.catch_up(&mut other, NOW + 1_000);
    assert_eq!(standby.replica.complete_epoch(), None);
    standby.follow(NOW + 1_010, 9, "owner");
    standby.out.clear();
    standby.catch_up(&mut other, NOW + 9_000);
    assert_eq!(standby.replica.complete_epoch(), Some(9));
}

#[test]
fn whom_an_application_states_online_while_a_new_owner_expects_them_stays_online() {
    let (mut owner, mut next) = unsure_pair();
    let now = NOW + 6_000;
    both(&mut owner, &mut next, now, Kind::Online, "ann", "c1");
    owner.tell(&mut next, now);
    owner.out.clear();
    assert_eq!([&owner, &next].map(statements), [1, 1]);
    owner.advance(NOW + 40_000);
    next.advance(NOW + 40_000);
    assert_eq!(owner.viewers_told(), []);
    assert_eq!(owner.replica.shard().connections(), 0);
    let previous = PreviousOwner {
        epoch: 8,
        handed_over: None,
    };
    next.out.clear();
    next.lead(NOW + 41_000, 9, previous);
    assert_eq!(next.viewers_told(), []);
    // Once the user connects, the user goes offline when the connections end.
    next.handle(NOW + 42_000, Kind::Connect, "ann", "c2");
    next.handle(NOW + 43_000, Kind::Disconnect, "ann", "c2");
    assert_eq!(next.viewers_told(), [("ann".to_owned(), false)]);
}

#[test]
fn a_user_who_is_back_while_the_lease_is_over_stays_online() {
    let (_, mut standby) = pair();
    standby.handle(NOW + 3_000, Kind::Disconnect, "ann", "c1");
    standby.out.clear();
    let previous = PreviousOwner {
        epoch: 5,
        handed_over: None,
    };
    let role = Role::Lead { epoch: 8, previous };
    let out = &mut standby.out;
    standby.replica.set_role(NOW + 4_000, role, out);
    // The process is stopped before it publishes anything, and continues when its lease is over.
    standby.replica.renewed(NOW + 4_000, NOW + 5_000, out);
    standby.handle(NOW + 9_000, Kind::Connect, "ann", "c2");
    let out = &mut standby.out;
    standby.replica.renewed(NOW + 9_001, FOREVER, out);
    standby.advance(NOW + 9_001);
    assert_eq!(standby.viewers_told(), []);
}

/// A message about a user with another device.
fn by_phone(kind: Kind, user: &str, at: u64) -> Input {
    let body = format!(
        r#"{{"userId":"{user}","connId":"c2","timestamp":{at},"metadata":{{"device":"phone"}}}}"#
    );
    Input::Message {
        message: Message::parse(kind, &Bytes::from(body), 1 << 20).unwrap(),
        reply: None,
    }
}

fn comes_by_phone(side: &mut Side, now: u64) {
    side.input(now, by_phone(Kind::Connect, "ann", now));
}

fn device<'a>(side: &'a Side, user: &str) -> Option<&'a str> {
    side.replica.shard().shown(user).unwrap().get("device")
}

#[test]
fn one_that_is_not_sure_shows_users_by_the_connections_that_it_knows() {
    let (_, mut standby) = pair();
    standby.handle(NOW + 3_000, Kind::Disconnect, "ann", "c1");
    comes_by_phone(&mut standby, NOW + 3_100);
    let mut again = started_again(&mut standby, NOW + 3_500);
    take_over(&mut again, NOW + 3_600);
    assert_eq!(again.viewers_told(), [("ann".to_owned(), true)]);
    assert_eq!(device(&again, "ann"), Some(r#""phone""#));
}

#[test]
fn one_that_catches_up_with_an_owner_that_has_resigned_shows_users_by_the_connections_that_it_knows()
 {
    let (mut owner, _) = pair();
    owner
        .replica
        .set_role(NOW + 3_000, Role::Resign { epoch: 5 }, &mut owner.out);
    owner.handle(NOW + 3_000, Kind::Disconnect, "ann", "c1");
    comes_by_phone(&mut owner, NOW + 3_100);
    let mut next = Side::new("next");
    next.follow(NOW + 3_200, 5, "owner");
    next.catch_up(&mut owner, NOW + 5_000);
    take_over(&mut next, NOW + 9_000);
    assert_eq!(next.viewers_told(), [("ann".to_owned(), true)]);
    assert_eq!(device(&next, "ann"), Some(r#""phone""#));
}

#[test]
fn what_an_owner_tells_before_it_hears_of_another_device_leaves_that_to_the_next_owner() {
    let (mut owner, mut standby) = pair();
    // The owner is slower than the standby.
    standby.handle(NOW + 3_000, Kind::Disconnect, "ann", "c1");
    comes_by_phone(&mut standby, NOW + 3_100);
    owner.handle(NOW + 3_101, Kind::Connect, "ann", "c3");
    owner.handle(NOW + 3_102, Kind::Disconnect, "ann", "c1");
    assert!(owner.tell(&mut standby, NOW + 3_103) > 0);
    take_over(&mut standby, NOW + 9_000);
    assert_eq!(standby.viewers_told(), [("ann".to_owned(), true)]);
    assert_eq!(device(&standby, "ann"), Some(r#""phone""#));
}

#[test]
fn a_user_who_leaves_and_comes_back_by_another_device_while_nobody_owns_the_shard_is_shown_by_it() {
    let (_, mut standby) = pair();
    standby.handle(NOW + 3_000, Kind::Disconnect, "ann", "c1");
    comes_by_phone(&mut standby, NOW + 3_100);
    take_over(&mut standby, NOW + 9_000);
    assert_eq!(device(&standby, "ann"), Some(r#""phone""#));
    assert_eq!(standby.viewers_told(), [("ann".to_owned(), true)]);
}

#[test]
fn what_an_owner_tells_of_the_end_of_a_grace_ends_no_later_one() {
    let (mut owner, mut standby) = pair_with_graces();
    let now = NOW + 2_000;
    both(&mut owner, &mut standby, now, Kind::Disconnect, "ann", "c1");
    owner.advance(NOW + 7_000);
    // The owner's message is still on its way.
    let (connect, leave) = (NOW + 7_001, NOW + 7_002);
    both(
        &mut owner,
        &mut standby,
        connect,
        Kind::Connect,
        "ann",
        "c2",
    );
    both(
        &mut owner,
        &mut standby,
        leave,
        Kind::Disconnect,
        "ann",
        "c2",
    );
    assert_eq!(owner.tell(&mut standby, NOW + 7_003), 3);
    let told = [("ann".to_owned(), false), ("ann".to_owned(), true)];
    assert_eq!(owner.viewers_told(), told);
    take_over(&mut standby, NOW + 9_000);
    standby.advance(NOW + 12_001);
    assert_eq!(standby.viewers_told(), []);
    standby.advance(NOW + 12_002);
    assert_eq!(standby.viewers_told(), [("ann".to_owned(), false)]);
}

#[test]
fn a_grace_of_a_user_whom_viewers_know_as_offline_is_announced_by_no_owner() {
    let (mut owner, mut standby) = pair_with_graces();
    owner.handle(NOW + 2_000, Kind::Disconnect, "ann", "c1");
    owner.advance(NOW + 7_000);
    // The standby receives the disconnect late, and doesn't know which grace has ended.
    standby.handle(NOW + 6_900, Kind::Disconnect, "ann", "c1");
    owner.tell(&mut standby, NOW + 7_001);
    // No owner has told anything of bob, who came and left.
    standby.handle(NOW + 7_500, Kind::Connect, "bob", "c1");
    standby.handle(NOW + 7_600, Kind::Disconnect, "bob", "c1");
    take_over(&mut standby, NOW + 8_000);
    assert_eq!(standby.viewers_told(), []);
    for user in ["ann", "bob"] {
        standby.handle(NOW + 8_100, Kind::Connect, user, "c2");
    }
    let told = ["ann", "bob"].map(|user| (user.to_owned(), true));
    assert_eq!(standby.viewers_told(), told);
}

#[test]
fn whom_an_application_states_online_while_nobody_announces_it_is_announced_by_the_next_owner() {
    let (mut owner, _) = pair();
    owner
        .replica
        .set_role(NOW + 3_000, Role::Resign { epoch: 5 }, &mut owner.out);
    owner.handle(NOW + 3_000, Kind::Online, "bob", "c1");
    let mut next = Side::new("next");
    next.follow(NOW + 3_200, 5, "owner");
    next.catch_up(&mut owner, NOW + 5_000);
    take_over(&mut next, NOW + 9_000);
    assert_eq!(next.viewers_told(), [("bob".to_owned(), true)]);
    next.handle(NOW + 9_100, Kind::Offline, "bob", "c1");
    assert_eq!(next.viewers_told(), [("bob".to_owned(), false)]);
}

#[test]
fn what_an_application_states_anew_of_a_user_is_shown_by_the_next_owner() {
    let (mut owner, mut standby) = pair();
    let now = NOW + 2_000;
    both(&mut owner, &mut standby, now, Kind::Online, "bob", "c1");
    owner.tell(&mut standby, now);
    standby.input(NOW + 3_000, by_phone(Kind::Online, "bob", NOW + 3_000));
    take_over(&mut standby, NOW + 9_000);
    assert_eq!(standby.viewers_told(), [("bob".to_owned(), true)]);
    assert_eq!(device(&standby, "bob"), Some(r#""phone""#));
    // The owner told of bob before the statement.
    owner.input(NOW + 3_100, by_phone(Kind::Online, "bob", NOW + 3_100));
    let mut third = Side::new("third");
    third.follow(NOW + 9_000, 5, "owner");
    third.catch_up(&mut owner, NOW + 10_000);
    third.input(NOW + 10_100, by_phone(Kind::Online, "bob", NOW + 3_100));
    take_over(&mut third, NOW + 11_000);
    assert_eq!(publications(&third), 0, "{:?}", third.out);
}
