//! A shard that is restarted now and then from its records is compared with one that never is. From
//! outside, the two can't be distinguished.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod early;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use presence_core::directory::{Directory, Question};
use presence_core::message::Kind;
use presence_core::names::Names;
use presence_core::record::Record;
use presence_core::rules::{Context, Decision, Enriched, Reads, Rendition, Rules};
use presence_core::{Input, Output, Settings, Shard, status, tracker};
use proptest::prelude::*;
use serde_json::{Value, json};

const USERS: [&str; 4] = ["ada", "ben", "cleo", "da\"n"];
/// The first byte of the keys of departures.
const DEPARTED: u8 = 7;

const TIMEOUT_MS: u64 = 100;

#[derive(Clone, Debug)]
enum Step {
    /// A message: its kind, user and connection, how long ago it was sent, and its status.
    Says(Kind, usize, u8, u64, Value),
    Contacts(usize, BTreeSet<usize>),
    Wait(u64),
    /// The changed records are stored, and one in this many parts of the records of when
    /// connections were heard from.
    Save(usize),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let user = 0..USERS.len();
    let list = proptest::collection::btree_set(0..USERS.len(), 0..=3);
    let kind = prop_oneof![
        4 => Just(Kind::Connect),
        3 => Just(Kind::Disconnect),
        4 => Just(Kind::Heartbeat),
        1 => Just(Kind::Online),
        1 => Just(Kind::Offline),
    ];
    let behind = prop_oneof![3 => Just(0), 1 => 0..60_u64];
    prop_oneof![
        12 => (kind, user.clone(), 0..3_u8, behind, said())
            .prop_map(|(kind, user, conn, behind, said)| Step::Says(kind, user, conn, behind, said)),
        2 => (user, list).prop_map(|(user, list)| Step::Contacts(user, list)),
        4 => (0..80_u64).prop_map(Step::Wait),
        3 => (1..3_usize).prop_map(Step::Save),
        3 => Just(Step::Restart),
    ]
}

/// The status in a message. No two texts are the same, since the time of a repetition is not
/// stored.
fn said() -> impl Strategy<Value = Value> {
    let status = (
        proptest::num::u32::ANY,
        proptest::option::of(900..3_000_u64),
    );
    prop_oneof![
        3 => Just(json!({})),
        3 => prop::sample::select(&["active", "idle", "typing"][..])
            .prop_map(|activity| json!({"activity": activity})),
        2 => status.prop_map(|(text, at)| json!({"status":
            {"text": text.to_string(), "expiresAt": at.unwrap_or(u64::MAX)}})),
    ]
}

struct Contacts;

impl Rules for Contacts {
    fn enrich(&mut self, context: Context<'_>) -> Enriched {
        let stamp = format!("{}", context.event.timestamp % 7);
        Enriched {
            changes: vec![("stamp".into(), Some(stamp))],
            ..Enriched::default()
        }
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        let question = Question::Contacts(context.event.user);
        let audience = context.directory.audience(&question).unwrap();
        let reads = Reads {
            questions: BTreeSet::from([question]),
            ..Reads::default()
        };
        Decision::Decided(rendition(audience), reads)
    }

    fn redact(&mut self, _: Context<'_>, told: &presence_core::audience::Audience) -> Decision {
        Decision::Decided(rendition(told.clone()), Reads::default())
    }
}

fn rendition(audience: presence_core::audience::Audience) -> Vec<Rendition> {
    vec![Rendition {
        audience,
        keys: ["device", "stamp", "activity", "status"]
            .map(Box::from)
            .into(),
        last_seen: true,
    }]
}

/// A shard, and what it depends on.
struct Node {
    names: Arc<Names>,
    directory: Arc<Directory>,
    shard: Shard,
    settings: Settings,
}

impl Node {
    fn new(settings: Settings) -> Self {
        let (names, directory) = (Arc::new(Names::new()), Arc::new(Directory::new()));
        let shard = Shard::new(settings.clone(), Arc::clone(&names), Arc::clone(&directory));
        Self {
            names,
            directory,
            shard,
            settings,
        }
    }

    fn contacts(&mut self, now: u64, user: &str, list: &[&str]) -> Vec<String> {
        let mut edit = self.directory.edit();
        let list = list.iter().map(|name| self.names.intern(name).0).collect();
        edit.contacts(self.names.intern(user), Some(list));
        let (directory, changes) = edit.finish();
        self.directory = Arc::new(directory);
        let directory = Arc::clone(&self.directory);
        self.input(now, Input::Directory(directory, Arc::new(changes)))
    }

    fn input(&mut self, now: u64, input: Input) -> Vec<String> {
        let mut out = Vec::new();
        self.shard.handle(now, input, &mut Contacts, &mut out);
        self.shard.advance(now, &mut Contacts, &mut out);
        published(out)
    }

    /// Does all work that becomes due up to a time, each at its time.
    fn wait(&mut self, mut now: u64, until: u64) -> Vec<String> {
        let mut out = Vec::new();
        while let Some(at) = self.shard.next_deadline()
            && at <= until
        {
            now = now.max(at);
            self.shard.advance(now, &mut Contacts, &mut out);
        }
        published(out)
    }
}

/// The publications, in an order that doesn't depend on the numbers of ids.
fn published(out: Vec<Output>) -> Vec<String> {
    let mut published: Vec<_> = out
        .into_iter()
        .filter_map(|output| match output {
            Output::Publish(publication) => {
                let mut body: Value = serde_json::from_slice(&publication.body).unwrap();
                // All leases expire at the same time after a restart, so either of a user's
                // connections may be the last.
                if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.remove("lastHeartbeat");
                }
                if let Some(viewers) = body.get_mut("visibleTo").and_then(Value::as_array_mut) {
                    viewers.sort_by_key(Value::to_string);
                }
                Some(format!("{} {body}", publication.subject.as_str()))
            }
            _ => None,
        })
        .collect();
    published.sort();
    published
}

struct Pair {
    steady: Node,
    restarted: Node,
    store: BTreeMap<Vec<u8>, Vec<u8>>,
    contacts: BTreeMap<usize, BTreeSet<usize>>,
    now: u64,
}

impl Pair {
    fn new(grace_ms: u64) -> Self {
        let settings = Settings {
            tracker: tracker::TrackerSettings {
                timeout_ms: TIMEOUT_MS,
                grace_ms,
                ..tracker::TrackerSettings::default()
            },
            // A restart forgets when a user was last updated.
            status: Some(status::StatusSettings {
                min_interval_ms: 0,
                // After a restart, a user counts as typing for the whole time again.
                typing_ms: 60_000_000,
                users_max: 1_000,
            }),
            statement_ttl_ms: 150,
            ..Settings::default()
        };
        let mut restarted = Node::new(settings.clone());
        restarted.shard.keep_records(true);
        Self {
            steady: Node::new(settings),
            restarted,
            store: BTreeMap::new(),
            contacts: BTreeMap::new(),
            now: 1_000,
        }
    }

    fn step(&mut self, step: &Step) {
        self.now += 1;
        // Work that is due comes before an input of the same time, also at the first one of a
        // millisecond.
        self.wait(self.now - 1, self.now - 1);
        match step {
            Step::Says(kind, user, conn, behind, said) => {
                let mut metadata = json!({"device": conn, "secret": self.now});
                for (key, value) in said.as_object().unwrap() {
                    metadata[key] = value.clone();
                }
                let body = json!({"userId": USERS[*user], "connId": format!("c{conn}"),
                    "timestamp": self.now - behind, "reason": "logout", "lastSeen": self.now,
                    "metadata": metadata});
                let message = early::message(*kind, &body);
                let input = Input::Message {
                    message,
                    reply: None,
                };
                let should = self.steady.input(self.now, input.clone());
                assert_eq!(self.restarted.input(self.now, input), should);
            }
            Step::Contacts(user, list) => {
                self.contacts.insert(*user, list.clone());
                let names: Vec<_> = list.iter().map(|user| USERS[*user]).collect();
                let should = self.steady.contacts(self.now, USERS[*user], &names);
                let was = self.restarted.contacts(self.now, USERS[*user], &names);
                assert_eq!(was, should);
            }
            Step::Wait(ms) => {
                self.wait(self.now, self.now + ms);
                self.now += ms;
            }
            Step::Save(parts) => self.save(*parts),
            Step::Restart => self.restart(),
        }
        assert_eq!(
            self.restarted.shard.online_users(),
            self.steady.shard.online_users()
        );
        assert_eq!(
            self.restarted.shard.connections(),
            self.steady.shard.connections()
        );
    }

    fn wait(&mut self, from: u64, until: u64) {
        let should = self.steady.wait(from, until);
        assert_eq!(self.restarted.wait(from, until), should);
    }

    fn save(&mut self, parts: usize) {
        for record in self.restarted.shard.take_records(parts) {
            match record.encode(&self.restarted.names) {
                (key, Some(value)) => drop(self.store.insert(key, value)),
                (key, None) => drop(self.store.remove(&key)),
            }
        }
    }

    /// Another process, in which ids have other numbers.
    fn restart(&mut self) {
        self.save(1);
        let mut node = Node::new(self.restarted.settings.clone());
        node.names.intern("nobody");
        for (user, list) in self.contacts.iter().rev() {
            let names: Vec<_> = list.iter().map(|user| USERS[*user]).collect();
            node.contacts(self.now, USERS[*user], &names);
        }
        let records = self.store.iter();
        let records: Vec<_> = records
            .map(|(key, value)| Record::decode(key, value, &node.names).unwrap())
            .collect();
        node.shard.keep_records(true);
        node.shard.restore(self.now, 0, records);
        node.shard.renew_leases(self.now);
        let told = node.wait(self.now, self.now);
        self.restarted = node;
        // Every lease starts again.
        self.steady.shard.renew_leases(self.now);
        assert_eq!(told, self.steady.wait(self.now, self.now));
    }

    /// In the end nothing is left, not even in the store, except who has left when.
    fn finish(mut self) {
        let end = self.now + 10 * TIMEOUT_MS;
        self.wait(self.now, end);
        self.now = end;
        for user in 0..USERS.len() {
            self.step(&Step::Says(Kind::Offline, user, 0, 0, json!({})));
        }
        // An application's last statement holds for a while.
        let end = self.now + 10 * TIMEOUT_MS;
        self.wait(self.now, end);
        self.save(1);
        let left = self.store.keys().filter(|key| key[0] != DEPARTED).count();
        assert_eq!(left, 0, "{:?}", self.store);
        assert!(!self.restarted.shard.has_records());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_restart_is_noticed_by_nobody(
        grace_ms in prop_oneof![Just(0), 1..300_u64],
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let mut pair = Pair::new(grace_ms);
        for step in &steps {
            pair.step(step);
        }
        pair.finish();
    }
}

fn says(node: &mut Node, kind: Kind, now: u64, user: &str, conn: &str) -> Vec<String> {
    let body = json!({"userId": user, "connId": conn, "timestamp": now});
    let message = early::message(kind, &body);
    let input = Input::Message {
        message,
        reply: None,
    };
    node.input(now, input)
}

#[test]
fn a_user_who_came_and_went_between_two_takings_costs_a_record_a_connection() {
    let mut node = Node::new(Settings::default());
    node.shard.keep_records(true);
    for _ in 0..10 {
        for kind in [Kind::Connect, Kind::Heartbeat, Kind::Disconnect] {
            says(&mut node, kind, 1_000, "ada", "c1");
        }
    }
    assert_eq!(node.shard.take_records(1).len(), 1);
    assert!(!node.shard.has_records());
}

#[test]
fn heartbeats_are_told_of_in_turns() {
    let mut node = Node::new(Settings::default());
    node.shard.keep_records(true);
    for conn in ["a", "b", "c", "d"] {
        says(&mut node, Kind::Connect, 1_000, "ada", conn);
    }
    node.shard.take_records(2);
    assert_eq!(node.shard.take_records(2).len(), 0, "nothing is new");
    for conn in ["a", "b", "c"] {
        says(&mut node, Kind::Heartbeat, 2_000, "ada", conn);
    }
    let taken: Vec<_> = (0..3).map(|_| node.shard.take_records(2).len()).collect();
    assert_eq!(taken, [2, 1, 0]);
}

#[test]
fn a_grace_does_not_run_while_the_host_is_down() {
    let settings = Settings {
        tracker: tracker::TrackerSettings {
            timeout_ms: 30_000,
            grace_ms: 5_000,
            ..tracker::TrackerSettings::default()
        },
        ..Settings::default()
    };
    let mut node = Node::new(settings.clone());
    node.shard.keep_records(true);
    says(&mut node, Kind::Connect, 1_000, "ada", "c1");
    says(&mut node, Kind::Disconnect, 2_000, "ada", "c1");
    let records = node.shard.take_records(1);

    // The last records are of 3 000, and the node is back at 60 000.
    let mut node = Node {
        shard: Shard::new(
            settings,
            Arc::clone(&node.names),
            Arc::clone(&node.directory),
        ),
        ..node
    };
    node.shard.restore(60_000, 57_000, records);
    node.shard.renew_leases(60_000);
    assert_eq!(node.wait(60_000, 63_999), Vec::<String>::new());
    let offline = node.wait(63_999, 64_000);
    assert!(offline[0].contains("\"lastSeen\":2000"), "{offline:?}");
}

#[test]
fn a_clock_that_was_set_back_keeps_nobody_out() {
    let mut node = Node::new(Settings::default());
    node.shard.keep_records(true);
    says(&mut node, Kind::Connect, 1_000_000, "ada", "c1");
    says(&mut node, Kind::Disconnect, 1_000_001, "ada", "c1");
    let records = node.shard.take_records(1);

    let mut node = Node::new(Settings::default());
    node.shard.restore(5_000, 0, records);
    let online = says(&mut node, Kind::Connect, 5_001, "ada", "c1");
    assert!(online[0].contains("user_online"), "{online:?}");
}
