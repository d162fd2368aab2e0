//! A shard with rules written in Rust: what is published, and to whom.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod early;
#[path = "shard/late.rs"]
mod late;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use presence_core::audience::Audience;
use presence_core::directory::{Directory, Question};
use presence_core::message::{Kind, Message, Redrive};
use presence_core::names::Names;
use presence_core::rules::{Context, Decision, Enriched, Failure, Reads, Rendition, Rules};
use presence_core::{Input, Output, Settings, Shard, status};
use serde_json::{Value, json};

/// Contacts may see a user, and are shown the device. The rules can be set to fail.
#[derive(Default)]
struct Contacts {
    failing: bool,
    closed: bool,
    asked: usize,
    reconsider_at: Option<u64>,
    /// After how long the rules want to be asked again, each time.
    again_in: Option<u64>,
}

fn rendition(audience: Audience) -> Vec<Rendition> {
    vec![Rendition {
        audience,
        keys: ["device".into()].into(),
        last_seen: true,
    }]
}

fn failure() -> Failure {
    Failure {
        plugin: "contacts".into(),
        error: "trapped".into(),
    }
}

impl Rules for Contacts {
    fn enrich(&mut self, _: Context<'_>) -> Enriched {
        Enriched::default()
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        self.asked += 1;
        if self.failing {
            return Decision::Failed(failure());
        }
        let question = Question::Contacts(context.event.user);
        let contacts = context.directory.audience(&question).unwrap();
        let contacts = if self.closed {
            Audience::nobody()
        } else {
            contacts
        };
        let reads = Reads {
            questions: BTreeSet::from([question]),
            reconsider_at: self
                .reconsider_at
                .or_else(|| Some(context.now + self.again_in?)),
            ..Reads::default()
        };
        Decision::Decided(rendition(contacts), reads)
    }

    fn redact(&mut self, _: Context<'_>, told: &Audience) -> Decision {
        if self.failing {
            Decision::Failed(failure())
        } else {
            Decision::Decided(rendition(told.clone()), Reads::default())
        }
    }
}

struct World {
    names: Arc<Names>,
    directory: Arc<Directory>,
    shard: Shard,
    rules: Contacts,
    now: u64,
}

impl World {
    fn new(contacts: &[(&str, &[&str])]) -> Self {
        let names = Arc::new(Names::new());
        let directory = Arc::new(Directory::new());
        let shard = Shard::new(
            Settings::default(),
            Arc::clone(&names),
            Arc::clone(&directory),
        );
        let mut world = Self {
            names,
            directory,
            shard,
            rules: Contacts::default(),
            now: 1_000,
        };
        world.contacts(contacts);
        world
    }

    fn contacts(&mut self, contacts: &[(&str, &[&str])]) -> Vec<(String, Value)> {
        let mut edit = self.directory.edit();
        for (user, list) in contacts {
            let list = list.iter().map(|name| self.names.intern(name).0).collect();
            edit.contacts(self.names.intern(user), Some(list));
        }
        let (directory, changes) = edit.finish();
        self.directory = Arc::new(directory);
        self.input(Input::Directory(
            Arc::clone(&self.directory),
            Arc::new(changes),
        ))
    }

    fn send(&mut self, kind: Kind, body: Value) -> Vec<(String, Value)> {
        let message = early::message(kind, &body);
        self.input(Input::Message {
            message,
            reply: None,
        })
    }

    fn input(&mut self, input: Input) -> Vec<(String, Value)> {
        let mut out = Vec::new();
        self.shard
            .handle(self.now, input, &mut self.rules, &mut out);
        self.shard.advance(self.now, &mut self.rules, &mut out);
        published(out)
    }

    fn wait(&mut self, until: u64) -> Vec<(String, Value)> {
        let mut out = Vec::new();
        self.now = until;
        self.shard.advance(self.now, &mut self.rules, &mut out);
        published(out)
    }

    fn connect(&mut self, user: &str) -> Vec<(String, Value)> {
        let body = json!({"userId": user, "connId": "c", "timestamp": self.now,
            "metadata": {"device": "web", "ip": "::1", "secret": 1}});
        self.send(Kind::Connect, body)
    }

    fn disconnect(&mut self, user: &str) -> Vec<(String, Value)> {
        let body = json!({"userId": user, "connId": "c", "timestamp": self.now,
            "reason": "client_disconnect"});
        self.send(Kind::Disconnect, body)
    }
}

fn published(out: Vec<Output>) -> Vec<(String, Value)> {
    out.into_iter()
        .filter_map(|output| match output {
            Output::Publish(publication) => {
                let body = serde_json::from_slice(&publication.body).unwrap();
                Some((publication.subject.as_str().to_owned(), body))
            }
            _ => None,
        })
        .collect()
}

fn filtered(published: &[(String, Value)]) -> Vec<(&str, &Value)> {
    let filtered = published.iter().filter_map(|(subject, body)| {
        Some((
            subject.strip_prefix("presence.filtered.")?,
            &body["visibleTo"],
        ))
    });
    filtered.collect()
}

#[test]
fn a_first_device_is_announced_broadcast_and_filtered() {
    let mut world = World::new(&[("a", &["b", "c"])]);
    let event = json!({"type": "user_online", "userId": "a", "timestamp": 1000,
        "metadata": {"device": "web", "connId": "c"}});
    let filtered = json!({"type": "user_online", "userId": "a", "timestamp": 1000,
        "visibleTo": ["b", "c"], "metadata": {"device": "web"}});
    let expected = [
        ("presence.events.user_online".to_owned(), event.clone()),
        ("presence.events".to_owned(), event),
        ("presence.filtered.user_online".to_owned(), filtered),
    ];
    assert_eq!(world.connect("a"), expected);
    assert_eq!(world.connect("a"), []);
}

#[test]
fn a_timeout_says_how_long_and_since_when() {
    let mut world = World::new(&[("a", &["b"])]);
    world.connect("a");
    assert_eq!(world.wait(30_999), []);
    let out = world.wait(31_000);
    let expected = json!({"type": "user_offline", "userId": "a", "timestamp": 31_000,
        "lastSeen": 1_000, "reason": "timeout",
        "metadata": {"timeoutDuration": 30_000, "lastHeartbeat": 1_000}});
    assert_eq!(out[1].1, expected);
    let expected = json!({"type": "user_offline", "userId": "a", "timestamp": 31_000,
        "lastSeen": 1_000, "visibleTo": ["b"]});
    assert_eq!(out[2].1, expected);
}

#[test]
fn anyone_who_was_told_online_is_told_offline_whatever_the_rules_say_then() {
    let mut world = World::new(&[("a", &["b"])]);
    world.connect("a");
    world.rules.failing = true;
    world.now += 1;
    let out = world.disconnect("a");
    assert_eq!(filtered(&out), [("user_offline", &json!(["b"]))]);
    let bare = out
        .iter()
        .find(|(subject, _)| subject.ends_with("filtered.user_offline"))
        .unwrap();
    assert_eq!(bare.1.get("lastSeen"), None);
    assert!(
        out.iter().any(|(subject, body)| {
            subject == "presence.dlq" && body["reason"] == "plugin-failed"
        })
    );
}

#[test]
fn a_change_of_the_directory_corrects_exactly_the_difference() {
    let mut world = World::new(&[("a", &["b", "c"]), ("z", &["b"])]);
    world.connect("a");
    world.connect("z");
    let asked = world.rules.asked;
    let out = world.contacts(&[("a", &["c", "d"])]);
    let expected = [
        ("user_offline", &json!(["b"])),
        ("user_online", &json!(["d"])),
    ];
    assert_eq!(filtered(&out), expected);
    assert_eq!(world.rules.asked, asked + 1);
}

#[test]
fn new_rules_are_applied_to_who_is_online() {
    let mut world = World::new(&[("a", &["b"])]);
    world.connect("a");
    world.rules.closed = true;
    let out = world.input(Input::Rules);
    assert_eq!(filtered(&out), [("user_offline", &json!(["b"]))]);
    assert_eq!(filtered(&world.disconnect("a")), []);
}

#[test]
fn a_failed_decision_tells_nobody_and_is_made_later() {
    let mut world = World::new(&[("a", &["b"])]);
    world.rules.failing = true;
    let out = world.connect("a");
    assert_eq!(filtered(&out), []);
    assert_eq!(out.last().unwrap().0, "presence.dlq");
    world.rules.failing = false;
    let retry_at = world.shard.next_deadline().unwrap();
    assert_eq!(
        filtered(&world.wait(retry_at)),
        [("user_online", &json!(["b"]))]
    );
}

#[test]
fn an_event_that_is_redriven_is_decided_again_and_states_nothing() {
    let mut world = World::new(&[("a", &["b"])]);
    world.rules.failing = true;
    let out = world.connect("a");
    let (_, event) = out
        .iter()
        .find(|(subject, _)| subject == "presence.events")
        .unwrap();
    let redrive = |world: &mut World, event: &Value| {
        let event = Redrive::parse(event.to_string().as_bytes());
        let (mut out, reply) = (Vec::new(), "r".into());
        let input = Input::Redrive { event, reply };
        world
            .shard
            .handle(world.now, input, &mut world.rules, &mut out);
        world.shard.advance(world.now, &mut world.rules, &mut out);
        let answers = out.iter().filter_map(|it| match it {
            Output::Reply(_, answer) => Some(serde_json::from_slice::<Value>(answer).unwrap()),
            _ => None,
        });
        let answer = answers.last().unwrap();
        (answer["reason"].clone(), published(out))
    };
    let (reason, out) = redrive(&mut world, event);
    assert_eq!(reason, Value::Null);
    assert_eq!(out.len(), 1, "it fails again: {out:?}");
    assert_eq!(out[0].0, "presence.dlq");
    world.rules.failing = false;
    let (reason, out) = redrive(&mut world, event);
    assert_eq!(reason, Value::Null);
    assert_eq!(filtered(&out), [("user_online", &json!(["b"]))]);
    assert_eq!(out.len(), 1, "it is not announced again: {out:?}");
    let (reason, out) = redrive(&mut world, event);
    assert_eq!((reason, out), (Value::Null, Vec::new()));
    world.now += 1;
    let gone = world.disconnect("a");
    assert_eq!(filtered(&gone), [("user_offline", &json!(["b"]))]);
    // A redrive doesn't bring back a user who has left.
    let (reason, out) = redrive(&mut world, event);
    assert_eq!((reason, out), (json!("stale"), Vec::new()));
    let (_, gone) = gone
        .iter()
        .find(|(subject, _)| subject == "presence.events")
        .unwrap();
    let (reason, out) = redrive(&mut world, gone);
    assert_eq!((reason, out), (json!("stale"), Vec::new()));
}

#[test]
fn a_verdict_is_reused_until_what_it_read_changes() {
    let mut world = World::new(&[("a", &["b"])]);
    for _ in 0..3 {
        world.now += 1;
        assert_eq!(filtered(&world.connect("a")).len(), 1);
        world.now += 1;
        assert_eq!(filtered(&world.disconnect("a")).len(), 1);
    }
    assert_eq!(world.rules.asked, 1);
    world.contacts(&[("a", &["c"])]);
    world.now += 1;
    assert_eq!(
        filtered(&world.connect("a")),
        [("user_online", &json!(["c"]))]
    );
    assert_eq!(world.rules.asked, 2);
}

#[test]
fn an_application_states_to_those_not_told_yet() {
    let mut world = World::new(&[("a", &["b"])]);
    let online = json!({"type": "user_online", "userId": "a", "timestamp": 5,
        "metadata": {"device": "web", "socketId": "s"}});
    let out = world.send(Kind::Online, online.clone());
    let broadcast = json!({"type": "user_online", "userId": "a", "timestamp": 5,
        "metadata": {"device": "web"}});
    assert_eq!(out[0], ("presence.events".to_owned(), broadcast));
    assert_eq!(filtered(&out), [("user_online", &json!(["b"]))]);
    assert_eq!(filtered(&world.send(Kind::Online, online)), []);
    let offline = json!({"type": "user_offline", "userId": "a", "timestamp": 6});
    assert_eq!(
        filtered(&world.send(Kind::Offline, offline.clone())).len(),
        1
    );
    assert_eq!(filtered(&world.send(Kind::Offline, offline)), []);
}

#[test]
fn a_heartbeat_of_a_known_connection_allocates_nothing() {
    for told in [false, true] {
        heartbeats_allocate_nothing(told.then_some(status::StatusSettings {
            min_interval_ms: 1_000,
            typing_ms: 60_000_000,
            users_max: 1_000,
        }));
    }
}

fn heartbeats_allocate_nothing(status: Option<status::StatusSettings>) {
    let mut world = World::new(&[("a", &["b"])]);
    world.shard.keep_records(true);
    world.input(Input::Settings(Box::new(Settings {
        status,
        ..Settings::default()
    })));
    world.connect("a");
    let heartbeat = |metadata| {
        let body = json!({"userId": "a", "connId": "c", "timestamp": 1_698_000_000_000_u64, "metadata": metadata});
        Bytes::from(body.to_string())
    };
    let payload = heartbeat(json!({"activity": "typing", "location": "chat:67890"}));
    // The first clone of its bytes makes them shared. In production, the NATS client does that.
    let _shared = payload.clone();
    let parse = |payload| {
        let message = Message::parse(Kind::Heartbeat, payload, 1 << 20).unwrap();
        Input::Message {
            message,
            reply: None,
        }
    };
    let mut out = Vec::with_capacity(8);
    let shard = &mut world.shard;
    // The first message with a status may cause an update.
    shard.handle(2_000, parse(&payload), &mut world.rules, &mut out);
    assert_eq!(out.len(), usize::from(status.is_some()));
    out.clear();
    let measured = allocation_counter::measure(|| {
        shard.handle(2_000, parse(&payload), &mut world.rules, &mut out);
    });
    assert_eq!(measured.count_total, 0, "{measured:?}");

    let said = json!({"status": {"text": "in a meeting", "expiresAt": 100_000}});
    let input = parse(&heartbeat(said));
    shard.handle(4_000, input.clone(), &mut world.rules, &mut out);
    assert_eq!(out.len(), usize::from(status.is_some()));
    out.clear();
    let measured = allocation_counter::measure(|| {
        shard.handle(4_000, input, &mut world.rules, &mut out);
    });
    assert_eq!(measured.count_total, 0, "{measured:?}");
    assert!(out.is_empty());
}

#[test]
fn a_verdict_that_holds_until_a_time_is_made_again_then_for_anyone_who_is_online() {
    let mut world = World::new(&[("a", &["b"])]);
    world.rules.reconsider_at = Some(5_000);
    world.connect("a");
    world.now += 1;
    world.disconnect("a");
    world.now += 1;
    // The verdict is reused, and its end is remembered with it.
    assert_eq!(filtered(&world.connect("a")).len(), 1);
    assert_eq!(world.rules.asked, 1);
    world.rules.closed = true;
    assert_eq!(filtered(&world.wait(4_999)), []);
    assert_eq!(
        filtered(&world.wait(5_000)),
        [("user_offline", &json!(["b"]))]
    );
}

#[test]
fn a_rule_that_asks_to_be_asked_again_at_once_is_asked_ten_times_a_second() {
    let mut world = World::new(&[("a", &["b"])]);
    world.rules.again_in = Some(1);
    world.connect("a");
    let (begin, asked) = (world.now, world.rules.asked);
    for now in begin + 1..=begin + 1_000 {
        world.wait(now);
    }
    assert_eq!(world.rules.asked - asked, 10);
}

#[test]
fn a_decision_that_keeps_failing_is_one_dead_letter_an_event() {
    let mut world = World::new(&[("a", &["b"])]);
    world.rules.failing = true;
    let dead = |out: &[(String, Value)]| {
        let dead = out.iter().filter(|(subject, _)| subject == "presence.dlq");
        dead.count()
    };
    assert_eq!(dead(&world.connect("a")), 1);
    for _ in 0..3 {
        let asked = world.rules.asked;
        let retry_at = world.shard.next_deadline().unwrap();
        assert_eq!(dead(&world.wait(retry_at)), 0);
        assert_eq!(world.rules.asked, asked + 1);
    }
    let online = json!({"type": "user_online", "userId": "a", "timestamp": 5});
    assert_eq!(dead(&world.send(Kind::Online, online)), 1, "another event");
}

#[test]
fn of_a_correction_every_loss_is_told_before_any_gain() {
    let mut world = World::new(&[("ada", &["x"]), ("ben", &["y"])]);
    for user in ["ada", "ben"] {
        let connect = json!({"userId": user, "connId": "c", "timestamp": 1});
        world.send(Kind::Connect, connect);
    }
    let told = world.contacts(&[("ada", &["y"]), ("ben", &["x"])]);
    let subjects: Vec<_> = told.iter().map(|(subject, _)| subject.as_str()).collect();
    let (lost, gained) = (
        "presence.filtered.user_offline",
        "presence.filtered.user_online",
    );
    assert_eq!(subjects, [lost, lost, gained, gained]);
}

/// Eight online users whom x has been told of, and ten corrections per second.
fn paced() -> World {
    let users = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let lists: Vec<_> = users.iter().map(|user| (*user, &["x"][..])).collect();
    let mut world = World::new(&lists);
    for user in users {
        world.connect(user);
    }
    world.input(Input::Settings(Box::new(Settings {
        corrections_per_s: 10,
        ..Settings::default()
    })));
    world
}

/// The users of the publications.
fn users(published: &[(String, Value)]) -> Vec<&str> {
    let users = published.iter().map(|(_, body)| body["userId"].as_str());
    users.flatten().collect()
}

#[test]
fn corrections_keep_to_their_pace_and_what_is_new_does_not_wait() {
    let mut world = paced();
    world.rules.closed = true;
    assert_eq!(users(&world.input(Input::Rules)), ["a", "b"]);
    assert_eq!(world.shard.backlog(), 6);
    world.now += 99;
    let announced = world.send(
        Kind::Online,
        json!({"type": "user_online", "userId": "new", "timestamp": 1}),
    );
    assert_eq!(users(&announced), ["new"], "and no correction yet");
    // A change for one user comes before a change for all.
    assert_eq!(users(&world.contacts(&[("h", &[])])), [] as [&str; 0]);
    let mut told = Vec::new();
    while world.shard.backlog() > 0 {
        let at = world.shard.next_deadline().unwrap();
        let out = world.wait(at);
        told.extend(users(&out).iter().map(|user| (at, (*user).to_owned())));
    }
    let expected = [
        (1_100, "h"),
        (1_200, "c"),
        (1_300, "d"),
        (1_400, "e"),
        (1_500, "f"),
        (1_600, "g"),
    ];
    assert_eq!(told, expected.map(|(at, user)| (at, user.to_owned())));
}

#[test]
fn a_second_change_half_way_corrects_just_what_the_first_one_did() {
    let mut world = paced();
    world.rules.closed = true;
    assert_eq!(users(&world.input(Input::Rules)), ["a", "b"]);
    world.rules.closed = false;
    assert_eq!(users(&world.input(Input::Rules)), [] as [&str; 0]);
    let mut told = Vec::new();
    while world.shard.backlog() > 0 {
        let at = world.shard.next_deadline().unwrap();
        told.extend(world.wait(at));
    }
    let gained = ("user_online", &json!(["x"]));
    assert_eq!(filtered(&told), [gained, gained]);
    assert_eq!(users(&told), ["a", "b"]);
}

#[test]
fn at_a_pace_too_every_loss_of_a_correction_is_told_before_any_gain() {
    let mut world = paced();
    let users = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let lists = users.map(|user| (user, &["y"][..]));
    let mut told = world.contacts(&lists);
    while world.shard.backlog() > 0 {
        told.extend(world.wait(world.shard.next_deadline().unwrap()));
    }
    let (one, other) = (json!(["x"]), json!(["y"]));
    let (lost, gained) = (("user_offline", &one), ("user_online", &other));
    assert_eq!(filtered(&told), [[lost; 8], [gained; 8]].concat());
}
