//! Input that is handled again after a snapshot. The snapshot's connections are newer than the rest
//! of it.

use std::collections::BTreeSet;

use super::*;
use crate::Settings;
use crate::audience::Audience;
use crate::directory::Question;
use crate::message::Message;
use crate::record::Record;
use crate::rules::{Context, Decision, Enriched};
use crate::status::StatusSettings;

const AT: u64 = NOW + 2_000;

fn with_statuses(now: u64, sides: [&mut Side; 2]) {
    for side in sides {
        let settings = Settings {
            status: Some(StatusSettings {
                min_interval_ms: 300,
                typing_ms: 500,
                users_max: 100,
            }),
            ..Settings::default()
        };
        side.input(now, Input::Settings(Box::new(settings)));
    }
}

/// An owner of many users, and a standby that has caught up. Both got the inputs `before` before
/// the snapshot was taken, and the inputs `meanwhile` while its chunks were on their way.
fn catches_up(before: &[(Kind, &str)], meanwhile: &[(Kind, &str)]) -> (Side, Side) {
    catches_up_from(false, &[], before, meanwhile)
}

/// As [`catches_up`], but the owner resigns as soon as it is asked.
fn after_resigning(before: &[(Kind, &str)], meanwhile: &[(Kind, &str)]) -> (Side, Side) {
    catches_up_from(true, &[], before, meanwhile)
}

/// `earlier`: input that only the owner has received, since the standby didn't listen yet.
fn catches_up_from(
    resigns: bool,
    earlier: &[(Kind, &str)],
    before: &[(Kind, &str)],
    meanwhile: &[(Kind, &str)],
) -> (Side, Side) {
    let (mut owner, mut standby) = (Side::new("owner"), Side::new("standby"));
    owner.lead(NOW - 40_000, 5, PreviousOwner::default());
    owner.advance(NOW);
    with_statuses(NOW, [&mut owner, &mut standby]);
    // These users are read before all others. Ann has connected and left.
    for number in 0..100 {
        owner.handle(NOW, Kind::Connect, &format!("user-{number}"), "c1");
    }
    owner.handle(NOW, Kind::Connect, "ann", "c1");
    owner.handle(NOW + 1, Kind::Disconnect, "ann", "c1");
    for (kind, user) in earlier {
        let nobody = &mut Side::new("nobody");
        owner.says(nobody, NOW + 2, *kind, user);
    }
    standby.follow(AT, 5, "owner");
    for (kind, user) in before {
        owner.says(&mut standby, AT + 10, *kind, user);
    }
    standby.advance(AT + 1_000);
    let nonce = asked(&standby);
    owner.out.clear();
    if resigns {
        let role = Role::Resign { epoch: 5 };
        owner.replica.set_role(AT + 1_000, role, &mut owner.out);
    }
    owner
        .replica
        .snapshot_requested(AT + 1_000, &"standby".into(), nonce, &mut owner.out);
    owner.advance(AT + 1_000);
    for (kind, user) in meanwhile {
        owner.says(&mut standby, AT + 1_001, *kind, user);
    }
    arrives(&mut owner, &mut standby);
    (owner, standby)
}

/// The number of the question for a snapshot.
fn asked(standby: &Side) -> u64 {
    let asked = standby.out.iter().find_map(|out| match out {
        ReplicaOutput::Ask { nonce, .. } => Some(*nonce),
        _ => None,
    });
    asked.unwrap()
}

/// The rest of the snapshot arrives, and then the owner's messages.
fn arrives(owner: &mut Side, standby: &mut Side) {
    while let Some(at) = owner.replica.snapshots.next_at() {
        owner.advance(at.max(AT + 1_010));
    }
    for out in std::mem::take(&mut owner.out) {
        match out {
            ReplicaOutput::Chunk(_, chunk) => {
                let chunk = standby.replica.chunk(AT + 1_020, &chunk, &mut standby.out);
                chunk.unwrap();
            }
            ReplicaOutput::ToStandbys(told) => {
                let told = standby.replica.receive(AT + 1_005, &told, &mut standby.out);
                told.unwrap();
            }
            _ => {}
        }
    }
    assert_eq!(standby.replica.complete_epoch(), Some(5));
}

impl Side {
    /// Both sides receive a message. A connect sets a status.
    fn says(&mut self, other: &mut Self, now: u64, kind: Kind, user: &str) {
        let body = serde_json::json!({
            "userId": user,
            "connId": "c1",
            "timestamp": now,
            "metadata": { "status": { "text": "busy" } },
        });
        for side in [self, other] {
            let message = Message::parse(kind, &body.to_string().into(), 1 << 20).unwrap();
            side.input(
                now,
                Input::Message {
                    message,
                    reply: None,
                },
            );
        }
    }
}

#[test]
fn more_than_can_be_held_while_a_snapshot_is_on_its_way_has_it_asked_for_again() {
    let (mut owner, mut standby) = (Side::new("owner"), Side::new("standby"));
    owner.lead(NOW - 40_000, 5, PreviousOwner::default());
    owner.handle(NOW, Kind::Connect, "ann", "c1");
    standby.follow(AT, 5, "owner");
    let mut asks = |side: &mut Side, now: u64| {
        side.advance(now);
        let asked = side.out.drain(..).find_map(|out| match out {
            ReplicaOutput::Ask { nonce, .. } => Some(nonce),
            _ => None,
        });
        asked.map(|nonce| owner.sends(now, nonce))
    };
    let chunks = asks(&mut standby, AT + 1_000).unwrap();
    let input = message(Kind::Heartbeat, "ann", "c1", AT + 1_001);
    for _ in 0..=1 << 18 {
        standby.input(AT + 1_001, input.clone());
    }
    for chunk in chunks {
        standby
            .replica
            .chunk(AT + 1_002, &chunk, &mut standby.out)
            .unwrap();
    }
    assert_eq!(standby.replica.complete_epoch(), None);
    let chunks = asks(&mut standby, AT + 9_000).unwrap();
    for chunk in chunks {
        standby
            .replica
            .chunk(AT + 9_000, &chunk, &mut standby.out)
            .unwrap();
    }
    assert_eq!(standby.replica.complete_epoch(), Some(5));
}

fn stated(side: &Side) -> Vec<String> {
    let statements = side.replica.shard().statements();
    statements.map(|(user, _)| user.as_str().into()).collect()
}

#[test]
fn who_connects_while_the_snapshot_is_read_is_stated_to_be_online_no_longer() {
    let stays = [(Kind::Connect, "ann")];
    let leaves = [(Kind::Connect, "ann"), (Kind::Disconnect, "ann")];
    for meanwhile in [&stays[..], &leaves] {
        let (owner, standby) = catches_up_from(false, &[(Kind::Online, "ann")], &[], meanwhile);
        assert_eq!(stated(&owner), Vec::<String>::new());
        assert_eq!(stated(&standby), stated(&owner), "{meanwhile:?}");
    }
}

#[test]
fn what_was_stated_of_a_connected_user_who_has_left_since_holds_nowhere() {
    let said = [
        (Kind::Connect, "ann"),
        (Kind::Online, "ann"),
        (Kind::Disconnect, "ann"),
    ];
    for parted in 0..=3 {
        let (before, meanwhile) = said.split_at(parted);
        let (owner, mut standby) = catches_up(before, meanwhile);
        assert_eq!(stated(&owner), Vec::<String>::new());
        assert_eq!(stated(&standby), stated(&owner), "{parted}");
        standby.out.clear();
        let previous = PreviousOwner {
            epoch: 5,
            handed_over: None,
        };
        standby.lead(AT + 9_000, 8, previous);
        assert_eq!(standby.viewers_told(), [], "{parted}: nothing differs");
    }
}

#[test]
fn what_is_stated_of_a_user_who_has_left_holds() {
    let said = [
        (Kind::Connect, "ann"),
        (Kind::Disconnect, "ann"),
        (Kind::Online, "ann"),
    ];
    for parted in 0..=3 {
        let (before, meanwhile) = said.split_at(parted);
        let (owner, standby) = catches_up(before, meanwhile);
        assert_eq!(stated(&owner), ["ann"]);
        assert_eq!(stated(&standby), stated(&owner), "{parted}");
    }
}

#[test]
fn who_leaves_while_the_snapshot_is_read_has_no_status() {
    let (_, mut standby) = catches_up(&[(Kind::Connect, "ann")], &[(Kind::Disconnect, "ann")]);
    let records = standby.replica.shard.all_records();
    let has_status = |record: &Record| matches!(record, Record::Status { .. });
    assert!(!records.iter().any(has_status));
}

#[test]
fn who_leaves_an_owner_that_has_resigned_is_gone_as_soon_as_another_leads() {
    let (_, mut standby) = after_resigning(&[(Kind::Connect, "ann")], &[(Kind::Disconnect, "ann")]);
    standby.out.clear();
    let previous = PreviousOwner {
        epoch: 5,
        handed_over: None,
    };
    standby.lead(AT + 9_000, 8, previous);
    assert_eq!(standby.viewers_told(), [("ann".to_owned(), false)]);
}

/// Everyone may see everyone, and events wait for the directory.
struct Waiting;

impl Rules for Waiting {
    fn enrich(&mut self, context: Context<'_>) -> Enriched {
        Enriched {
            cache_misses: BTreeSet::from([Question::Groups(context.event.user)]),
            ..Enriched::default()
        }
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        Everyone.decide(context)
    }

    fn redact(&mut self, context: Context<'_>, told: &Audience) -> Decision {
        Everyone.redact(context, told)
    }
}

#[test]
fn a_snapshot_is_what_was_told_though_a_user_is_back_before_it_is_told_that_they_left() {
    let mut owner = Side::new("owner");
    owner.lead(NOW - 40_000, 5, PreviousOwner::default());
    owner.advance(NOW);
    owner.handle(NOW, Kind::Connect, "ann", "c1");
    for (kind, conn) in [(Kind::Disconnect, "c1"), (Kind::Connect, "c2")] {
        let input = message(kind, "ann", conn, AT + 1_000);
        let out = &mut owner.out;
        owner.replica.input(AT + 1_500, input, &mut Waiting, out);
    }
    let mut standby = Side::new("standby");
    standby.follow(AT, 5, "owner");
    owner.out.clear();
    standby.catch_up(&mut owner, AT + 1_501);
    standby.out.clear();
    owner.replica.send_digest(&mut owner.out);
    owner.tell(&mut standby, AT + 1_502);
    assert_eq!(standby.reasons(), []);
}

/// A connect with the device in its metadata.
fn connect(user: &str, conn: &str, now: u64) -> Input {
    let body = serde_json::json!({
        "userId": user,
        "connId": conn,
        "timestamp": now,
        "metadata": { "device": conn },
    });
    let message = Message::parse(Kind::Connect, &body.to_string().into(), 1 << 20);
    Input::Message {
        message: message.unwrap(),
        reply: None,
    }
}

#[test]
fn the_newest_of_two_connections_stays_that_though_only_one_of_them_is_in_the_snapshot() {
    let (mut owner, mut standby) = (Side::new("owner"), Side::new("standby"));
    let begin = AT - 100_000;
    with_statuses(begin, [&mut owner, &mut standby]);
    owner.lead(begin - 40_000, 5, PreviousOwner::default());
    owner.advance(begin);
    let users: Vec<_> = (0..100).map(|number| format!("user-{number}")).collect();
    for user in &users {
        owner.handle(begin, Kind::Connect, user, "c1");
    }
    owner.input(begin, connect("ann", "c1", begin));
    // The slots of two closed connections are reused, that of the first one last.
    owner.handle(begin + 1, Kind::Disconnect, "user-99", "c1");
    owner.handle(begin + 2, Kind::Disconnect, "user-5", "c1");
    for now in (begin..=AT).step_by(10_000) {
        for user in users
            .iter()
            .filter(|user| !["user-5", "user-99"].contains(&&***user))
        {
            owner.handle(now, Kind::Heartbeat, user, "c1");
        }
        owner.handle(now, Kind::Heartbeat, "ann", "c1");
        owner.advance(now);
    }
    standby.follow(AT, 5, "owner");
    standby.advance(AT + 1_000);
    let nonce = asked(&standby);
    owner.out.clear();
    owner
        .replica
        .snapshot_requested(AT + 1_000, &"standby".into(), nonce, &mut owner.out);
    owner.advance(AT + 1_000);
    for (now, conn) in [(AT + 1_001, "c2"), (AT + 1_002, "c3")] {
        for side in [&mut owner, &mut standby] {
            side.input(now, connect("ann", conn, now));
        }
    }
    arrives(&mut owner, &mut standby);
    standby.out.clear();
    let previous = PreviousOwner {
        epoch: 5,
        handed_over: None,
    };
    standby.lead(AT + 9_000, 8, previous);
    while standby.replica.is_due(AT + 9_000) {
        standby.advance(AT + 9_000);
    }
    let device = |side: &Side| {
        let shown = side.replica.shard().shown("ann").unwrap();
        shown.get("device").unwrap().to_owned()
    };
    assert_eq!(device(&owner), r#""c3""#);
    assert_eq!(device(&standby), device(&owner));
}
