//! Any amount of work may become due at the same time. It is done in small portions, in order, and
//! makes no difference to what comes after it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod early;

use std::sync::Arc;

use bytes::Bytes;
use presence_core::audience::Audience;
use presence_core::dead_letter_limit::{DeadLetterLimit, Rates};
use presence_core::directory::Directory;
use presence_core::message::{Cause, Kind, Rejection};
use presence_core::names::Names;
use presence_core::rules::{Context, Decision, Enriched, Reads, Rules};
use presence_core::tracker::{self, Damping};
use presence_core::{Input, Output, Settings, Shard, status};
use serde_json::{Value, json};

/// Nobody may see anybody.
struct Nobody;

impl Rules for Nobody {
    fn enrich(&mut self, _: Context<'_>) -> Enriched {
        Enriched::default()
    }

    fn decide(&mut self, _: Context<'_>) -> Decision {
        Decision::Decided(Vec::new(), Reads::default())
    }

    fn redact(&mut self, _: Context<'_>, _: &Audience) -> Decision {
        Decision::Decided(Vec::new(), Reads::default())
    }
}

struct World {
    shard: Shard,
    now: u64,
}

impl World {
    fn new(settings: Settings) -> Self {
        let directory = Arc::new(Directory::new());
        Self {
            shard: Shard::new(settings, Arc::new(Names::new()), directory),
            now: 1_000,
        }
    }

    fn send(&mut self, kind: Kind, body: &Value) -> Vec<Output> {
        let mut out = Vec::new();
        let input = Input::Message {
            message: early::message(kind, body),
            reply: Some("_INBOX.1".into()),
        };
        self.shard.handle(self.now, input, &mut Nobody, &mut out);
        out
    }

    fn connect(&mut self, user: &str, conn: &str) -> Vec<Output> {
        let body = json!({"userId": user, "connId": conn, "timestamp": self.now});
        self.send(Kind::Connect, &body)
    }

    fn disconnect(&mut self, user: &str, conn: &str) -> Vec<Output> {
        let body = json!({"userId": user, "connId": conn, "timestamp": self.now});
        self.send(Kind::Disconnect, &body)
    }

    /// Lets time pass, and does all work that becomes due.
    fn wait(&mut self, ms: u64) -> Vec<Output> {
        let end = self.now + ms;
        let mut out = Vec::new();
        while let Some(at) = self.shard.next_deadline()
            && at <= end
        {
            self.now = self.now.max(at);
            self.shard.advance(self.now, &mut Nobody, &mut out);
        }
        self.now = end;
        out
    }

    fn advance(&mut self) -> Vec<Output> {
        let mut out = Vec::new();
        self.shard.advance(self.now, &mut Nobody, &mut out);
        out
    }
}

/// The users of the events on a subject.
fn users(out: &[Output], on: &str) -> Vec<String> {
    let published = out.iter().filter_map(|output| match output {
        Output::Publish(publication) if publication.subject.as_str() == on => {
            let body: Value = serde_json::from_slice(&publication.body).unwrap();
            Some(body["userId"].as_str().unwrap().to_owned())
        }
        _ => None,
    });
    published.collect()
}

const ONLINE: &str = "presence.events.user_online";
const OFFLINE: &str = "presence.events.user_offline";
const DLQ: &str = "presence.dlq";

/// The reasons in the replies; `ok` for an accepted input.
fn replies(out: &[Output]) -> Vec<String> {
    let replied = out.iter().filter_map(|output| match output {
        Output::Reply(_, body) => {
            let body: Value = serde_json::from_slice(body).unwrap();
            Some(body["reason"].as_str().unwrap_or("ok").to_owned())
        }
        _ => None,
    });
    replied.collect()
}

fn letters(out: &[Output]) -> Vec<(u64, Value)> {
    let published = out.iter().filter_map(|output| match output {
        Output::Publish(publication) if publication.subject.as_str() == DLQ => Some((
            publication.seq,
            serde_json::from_slice(&publication.body).unwrap(),
        )),
        _ => None,
    });
    published.collect()
}

#[test]
fn all_who_time_out_at_one_moment_are_told_of_bit_by_bit_and_in_order() {
    let mut world = World::new(Settings::default());
    let all: Vec<_> = (0..10_000).map(|number| format!("user-{number}")).collect();
    for user in &all {
        world.connect(user, "c");
    }
    world.now += 30_000;
    let mut told = Vec::new();
    while world.shard.has_expiries(world.now) {
        let out = world.advance();
        assert!(out.len() < 2_000, "{} at once", out.len());
        told.extend(users(&out, OFFLINE));
        assert!(
            told.len() == all.len() || world.shard.next_deadline().unwrap() <= world.now,
            "the rest is due"
        );
    }
    assert_eq!(told, all);
}

#[test]
fn all_statements_that_end_at_one_moment_are_told_of_bit_by_bit() {
    let mut world = World::new(Settings::default());
    for number in 0..5_000 {
        let user = format!("user-{number}");
        world.send(
            Kind::Online,
            &json!({"userId": user, "timestamp": world.now}),
        );
    }
    world.now += Settings::default().statement_ttl_ms;
    let mut told = 0;
    while world.shard.has_expiries(world.now) {
        let out = world.advance();
        assert!(out.len() < 2_000, "{} at once", out.len());
        told += users(&out, OFFLINE).len();
    }
    assert_eq!(told, 5_000);
}

#[test]
fn a_user_has_so_many_connections_and_what_would_open_one_more_is_a_dead_letter() {
    let mut world = World::new(Settings::default());
    for conn in 0..256 {
        assert_eq!(replies(&world.connect("ann", &conn.to_string())), ["ok"]);
    }
    let heartbeat = json!({"userId": "ann", "connId": "one more", "timestamp": world.now});
    for out in [
        world.connect("ann", "one more"),
        world.send(Kind::Heartbeat, &heartbeat),
    ] {
        assert_eq!(replies(&out), ["quota-exceeded"]);
        let (_, letter) = letters(&out).remove(0);
        assert_eq!(letter["reason"], "quota-exceeded");
        let error = letter["error"].as_str().unwrap();
        assert!(error.contains("connections_per_user_max"), "{error}");
        let payload = letter["payload"].as_str().unwrap();
        assert!(payload.contains("one more"), "as it was sent: {payload}");
    }
    assert_eq!(world.shard.connections(), 256);
    // Connections that are already live, and those of other users, are still accepted.
    assert_eq!(replies(&world.connect("ann", "7")), ["ok"]);
    assert_eq!(replies(&world.connect("ben", "one more")), ["ok"]);
    world.disconnect("ann", "7");
    assert_eq!(replies(&world.connect("ann", "one more")), ["ok"]);
}

#[test]
fn closes_are_remembered_of_so_many_connections_and_those_of_live_ones_always_count() {
    let mut world = World::new(Settings {
        tracker: tracker::TrackerSettings {
            closes_max: 10,
            ..tracker::TrackerSettings::default()
        },
        ..Settings::default()
    });
    for user in 0..10 {
        let out = world.disconnect(&format!("stranger-{user}"), "c");
        assert_eq!(replies(&out), ["ok"]);
    }
    let out = world.disconnect("one more", "c");
    assert_eq!(replies(&out), ["quota-exceeded"]);
    world.connect("ann", "c");
    let out = world.disconnect("ann", "c");
    assert_eq!(
        (replies(&out), users(&out, OFFLINE)),
        (vec!["ok".into()], vec!["ann".into()])
    );
    assert_eq!(world.shard.counters().closes_forgotten, 1);
    // The oldest close was forgotten: a late heartbeat of the last one is recognized as late.
    world.now += 1;
    let late = json!({"userId": "ann", "connId": "c", "timestamp": world.now - 2});
    assert_eq!(replies(&world.send(Kind::Heartbeat, &late)), ["stale"]);
    assert!(world.wait(60_000).is_empty());
    assert_eq!(replies(&world.disconnect("one more", "c")), ["ok"]);
}

#[test]
fn one_user_takes_no_room_of_closes_from_others() {
    let mut world = World::new(Settings::default());
    for conn in 0..1_000 {
        let conn = conn.to_string();
        world.connect("ann", &conn);
        world.disconnect("ann", &conn);
    }
    let forgotten = world.shard.counters().closes_forgotten;
    assert_eq!(forgotten, 1_000 - 256);
    let out = world.disconnect("ann", "never seen");
    assert_eq!(replies(&out), ["quota-exceeded"]);
}

#[test]
fn so_many_dead_letters_are_published_the_others_are_counted_and_the_numbers_have_no_gap() {
    let limit = DeadLetterLimit::new(Rates {
        letters_per_s: 10,
        bytes_per_s: 1 << 20,
    });
    let mut shards = [(), ()].map(|()| {
        World::new(Settings {
            dead_letters: limit.clone(),
            ..Settings::default()
        })
    });
    let reject = |world: &mut World| {
        let mut out = Vec::new();
        let input = Input::Rejected {
            kind: Kind::Connect,
            payload: Bytes::from_static(b"?"),
            rejection: Rejection::new(Cause::InvalidJson, "no".into()),
            reply: Some("_INBOX.1".into()),
        };
        world.shard.handle(world.now, input, &mut Nobody, &mut out);
        assert_eq!(replies(&out), ["invalid-json"], "the sender is told");
        letters(&out)
    };
    let mut seqs: [Vec<u64>; 2] = Default::default();
    for second in 0..2 {
        for (world, seqs) in shards.iter_mut().zip(&mut seqs) {
            world.now = 10_000 + second * 1_000;
            for _ in 0..15 {
                seqs.extend(reject(world).into_iter().map(|(seq, _)| seq));
            }
        }
    }
    assert_eq!(
        seqs.each_ref().map(Vec::len),
        [25, 5],
        "20 at once, and 10 a second later"
    );
    for (seqs, world) in seqs.iter().zip(&shards) {
        let counters = world.shard.counters();
        assert_eq!(*seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
        assert_eq!(counters.dead_letters[Cause::InvalidJson as usize], 30);
        assert_eq!(counters.dead_letters_left_out, 30 - seqs.len() as u64);
    }
}

#[test]
fn statements_and_statuses_are_kept_of_so_many_users() {
    let mut world = World::new(Settings {
        statements_max: 2,
        status: Some(status::StatusSettings {
            min_interval_ms: 0,
            typing_ms: 1_000,
            users_max: 2,
        }),
        ..Settings::default()
    });
    for (user, reply) in [
        ("a", "ok"),
        ("b", "ok"),
        ("c", "quota-exceeded"),
        ("a", "ok"),
    ] {
        let body = json!({"userId": user, "timestamp": world.now});
        assert_eq!(replies(&world.send(Kind::Online, &body)), [reply], "{user}");
    }
    for (user, reply) in [
        ("x", "ok"),
        ("y", "ok"),
        ("z", "quota-exceeded"),
        ("x", "ok"),
    ] {
        let status = json!({"status": {"text": "at work"}});
        let body =
            json!({"userId": user, "connId": "c", "timestamp": world.now, "metadata": status});
        let out = world.send(Kind::Connect, &body);
        assert_eq!(replies(&out), [reply], "{user}");
    }
    // Everything but the status is accepted.
    assert_eq!(world.shard.connections(), 3);
    world.disconnect("x", "c");
    let body = json!({"userId": "z", "connId": "c", "timestamp": world.now,
        "metadata": {"status": {"text": "at work"}}});
    assert_eq!(replies(&world.send(Kind::Heartbeat, &body)), ["ok"]);
}

/// A user goes online and offline this many times, at this pace. Returns how often they were
/// announced as online and as offline.
fn flip(world: &mut World, user: &str, times: usize, every_ms: u64) -> (usize, usize) {
    let (mut online, mut offline) = (0, 0);
    for _ in 0..times {
        let mut out = world.connect(user, "c");
        world.now += every_ms / 2;
        out.extend(world.disconnect(user, "c"));
        out.extend(world.wait(every_ms - every_ms / 2));
        online += users(&out, ONLINE).len();
        offline += users(&out, OFFLINE).len();
    }
    (online, offline)
}

#[test]
fn a_user_who_flips_hundreds_of_times_a_second_is_held_online_and_then_offline_for_good() {
    let mut world = World::new(Settings::default());
    let (online, offline) = flip(&mut world, "flapper", 2_000, 2);
    assert_eq!((online, offline), (101, 100));
    assert!(world.shard.counters().damped_offlines >= 1_800);
    let last_seen = world.now - 1;
    // Other users aren't damped because of this.
    world.connect("ann", "c");
    assert_eq!(users(&world.disconnect("ann", "c"), OFFLINE), ["ann"]);
    let out = world.wait(60_000);
    let body = out.iter().find_map(|output| match output {
        Output::Publish(publication) if publication.subject.as_str() == OFFLINE => {
            let body: Value = serde_json::from_slice(&publication.body).unwrap();
            Some(body)
        }
        _ => None,
    });
    let body = body.expect("no longer than a minute");
    assert_eq!(
        (&body["userId"], &body["reason"]),
        (&json!("flapper"), &json!("disconnect"))
    );
    assert_eq!(body["lastSeen"], last_seen);
    assert!(body["timestamp"].as_u64().unwrap() > last_seen + 50_000);
    // After a while, the user is no longer damped.
    world.wait(600_000);
    assert_eq!(flip(&mut world, "flapper", 30, 100), (30, 30));
}

#[test]
fn a_user_on_a_bad_line_is_told_of_each_time() {
    let mut world = World::new(Settings::default());
    assert_eq!(flip(&mut world, "ann", 100, 20), (100, 100));
    let mut world = World::new(Settings::default());
    assert_eq!(flip(&mut world, "ann", 1_000, 2_000), (1_000, 1_000));
    let mut world = World::new(Settings {
        tracker: tracker::TrackerSettings {
            damping: Damping::OFF,
            ..tracker::TrackerSettings::default()
        },
        ..Settings::default()
    });
    assert_eq!(flip(&mut world, "ann", 2_000, 2), (2_000, 2_000));
}

#[test]
fn a_grace_is_at_least_as_long_as_it_is_set_and_an_absence_within_it_is_told_to_nobody() {
    let mut world = World::new(Settings {
        tracker: tracker::TrackerSettings {
            grace_ms: 5_000,
            ..tracker::TrackerSettings::default()
        },
        ..Settings::default()
    });
    assert_eq!(flip(&mut world, "ann", 50, 1_000), (1, 0));
    // The user left half a second ago.
    assert!(users(&world.wait(4_499), OFFLINE).is_empty());
    assert_eq!(users(&world.wait(1), OFFLINE), ["ann"]);
}

/// A world in which users have a grace of 5 s, with this lifetime of statements.
fn with_grace(statement_ttl_ms: u64) -> World {
    World::new(Settings {
        tracker: tracker::TrackerSettings {
            grace_ms: 5_000,
            ..tracker::TrackerSettings::default()
        },
        statement_ttl_ms,
        ..Settings::default()
    })
}

/// A world in which Ann is within her grace, and an application has stated that she is online. The
/// statement holds for an hour.
fn stated_within_a_grace() -> World {
    let mut world = with_grace(3_600_000);
    world.connect("ann", "c");
    world.disconnect("ann", "c");
    world.wait(1_000);
    world.send(
        Kind::Online,
        &json!({"userId": "ann", "timestamp": world.now}),
    );
    world
}

#[test]
fn an_application_that_states_a_user_online_within_a_grace_keeps_them_online_after_it() {
    let mut world = stated_within_a_grace();
    assert!(users(&world.wait(3_598_999), OFFLINE).is_empty());
    assert_eq!(users(&world.wait(1_001), OFFLINE), ["ann"]);
    assert!(world.wait(100_000).is_empty(), "once");
}

#[test]
fn who_connects_again_within_a_grace_is_online_by_the_connection_alone() {
    let mut world = stated_within_a_grace();
    assert!(users(&world.connect("ann", "d"), ONLINE).is_empty());
    world.wait(1_000);
    world.disconnect("ann", "d");
    assert!(users(&world.wait(4_999), OFFLINE).is_empty());
    assert_eq!(users(&world.wait(1), OFFLINE), ["ann"]);
}

#[test]
fn a_statement_that_ends_within_a_grace_ends_nothing() {
    let mut world = with_grace(1_000);
    world.connect("ann", "c");
    world.disconnect("ann", "c");
    world.send(
        Kind::Online,
        &json!({"userId": "ann", "timestamp": world.now}),
    );
    assert!(users(&world.wait(4_999), OFFLINE).is_empty());
    assert_eq!(users(&world.wait(1), OFFLINE), ["ann"]);
}
