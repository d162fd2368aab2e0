//! A shard is read piece by piece while it changes. What viewers were told, and the records that
//! depend on it, are read as they were when reading began, whatever happens in between.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use presence_core::audience::Audience;
use presence_core::directory::{Directory, Question};
use presence_core::message::{Kind, Message};
use presence_core::names::Names;
use presence_core::record::Record;
use presence_core::rules::{Context, Decision, Enriched, Reads, Rendition, Rules};
use presence_core::status::StatusSettings;
use presence_core::{Input, Output, Settings, Shard, ShardCursor};
use proptest::prelude::*;
use serde_json::{Value, json};

const USERS: u64 = 12;
const BEGIN: u64 = 1_700_000_000_000;

/// An enricher that waits for an answer about some users, and rules that show each user to other
/// viewers in each generation.
struct Changing {
    generation: u64,
}

fn number(user: &str) -> u64 {
    user[5..].parse().unwrap()
}

fn rendition(audience: Audience, last_seen: bool) -> Vec<Rendition> {
    vec![Rendition {
        audience,
        keys: ["device".into(), "activity".into(), "status".into()].into(),
        last_seen,
    }]
}

impl Rules for Changing {
    fn enrich(&mut self, context: Context<'_>) -> Enriched {
        let mut enriched = Enriched::default();
        let waits = number(context.event.name.as_str()) + self.generation;
        if waits.is_multiple_of(4) && context.directory.groups(context.event.user).is_err() {
            enriched.unanswered.push("groups".into());
            enriched.cache_misses = [Question::Groups(context.event.user)].into();
        }
        enriched
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        let user = number(context.event.name.as_str());
        let viewers = (0..4).filter(|viewer| !(viewer + user + self.generation).is_multiple_of(3));
        let viewers = viewers.map(|viewer| context.names.intern(&format!("viewer-{viewer}")));
        let last_seen = !(user + self.generation).is_multiple_of(5);
        Decision::Decided(rendition(viewers.collect(), last_seen), Reads::default())
    }

    fn redact(&mut self, _: Context<'_>, told: &Audience) -> Decision {
        Decision::Decided(rendition(told.clone(), true), Reads::default())
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A message of a user: the kind, the user, the connection, and a number that determines its
    /// content.
    Message(Kind, u64, u64, u8),
    /// Time passes.
    Pass(u64),
    /// The rules change.
    Rules,
    /// The maximum number of departures changes.
    Departures(usize),
    /// Unused ids are freed, and other ids get their numbers.
    Sweep,
    /// A reader begins to read the shard.
    Begin,
    /// A reader continues, with at most this many connections or users.
    Read(usize, usize),
    /// A reader gives up.
    GiveUp(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        4 => Just(Kind::Connect),
        2 => Just(Kind::Heartbeat),
        3 => Just(Kind::Disconnect),
        1 => Just(Kind::Online),
        1 => Just(Kind::Offline),
    ];
    prop_oneof![
        12 => (kind, 0..USERS, 0..2_u64, any::<u8>())
            .prop_map(|(kind, user, conn, says)| Step::Message(kind, user, conn, says)),
        4 => (1..400_u64).prop_map(Step::Pass),
        1 => Just(Step::Rules),
        1 => (0..8_usize).prop_map(Step::Departures),
        1 => Just(Step::Sweep),
        2 => Just(Step::Begin),
        6 => (0..3_usize, 1..6_usize).prop_map(|(reader, count)| Step::Read(reader, count)),
        1 => (0..3_usize).prop_map(Step::GiveUp),
    ]
}

/// Values of records, by key.
type Records = BTreeMap<Vec<u8>, Vec<u8>>;

struct Reader {
    cursor: ShardCursor,
    /// What has been read: piece by piece, and at once at the beginning.
    read: Records,
    all: Records,
}

struct World {
    names: Arc<Names>,
    directory: Arc<Directory>,
    settings: Settings,
    shard: Shard,
    rules: Changing,
    now: u64,
    readers: Vec<Reader>,
    swept: usize,
}

impl World {
    fn new() -> Self {
        let settings = Settings {
            status: Some(StatusSettings {
                min_interval_ms: 300,
                typing_ms: 500,
                users_max: 6,
            }),
            departures_max: 4,
            answer_wait_ms: 300,
            statement_ttl_ms: 1_000,
            ..Settings::default()
        };
        let names = Arc::new(Names::new());
        let directory = Arc::new(Directory::on_demand());
        let mut shard = Shard::new(settings.clone(), Arc::clone(&names), Arc::clone(&directory));
        shard.keep_standby_records(true);
        Self {
            names,
            directory,
            settings,
            shard,
            rules: Changing { generation: 0 },
            now: BEGIN,
            readers: Vec::new(),
            swept: 0,
        }
    }

    fn handle(&mut self, input: Input) {
        let out = &mut Vec::new();
        self.shard.handle(self.now, input, &mut self.rules, out);
        self.shard.take_standby_records();
    }

    fn advance(&mut self) {
        for _ in 0..100 {
            let out: &mut Vec<Output> = &mut Vec::new();
            self.shard.advance(self.now, &mut self.rules, out);
            self.shard.take_standby_records();
            if self.shard.next_deadline().is_none_or(|at| at > self.now) {
                return;
            }
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Message(kind, user, conn, says) => {
                self.now += 1;
                let message = message(kind, user, conn, says, self.now);
                self.handle(Input::Message {
                    message,
                    reply: None,
                });
            }
            Step::Pass(ms) => {
                self.now += ms;
                self.advance();
            }
            Step::Rules => {
                self.rules.generation += 1;
                self.handle(Input::Rules);
            }
            Step::Departures(departures_max) => {
                self.settings.departures_max = departures_max;
                self.handle(Input::Settings(Box::new(self.settings.clone())));
            }
            Step::Sweep => self.sweep(),
            Step::Begin => {
                let mut all = Records::new();
                let (mut pieces, mut at_once) = (self.shard.cursor(), self.shard.cursor());
                while read(&mut self.shard, &mut at_once, 1_000, &self.names, &mut all) {}
                // Connections are read as they are when their turn comes, so they are skipped, and
                // only the rest is compared.
                read(
                    &mut self.shard,
                    &mut pieces,
                    1_000,
                    &self.names,
                    &mut Records::new(),
                );
                self.readers.push(Reader {
                    cursor: pieces,
                    read: Records::new(),
                    all,
                });
            }
            Step::Read(reader, count) => {
                if let Some(reader) = self.readers.get_mut(reader) {
                    let Reader {
                        cursor,
                        read: records,
                        ..
                    } = reader;
                    read(&mut self.shard, cursor, count, &self.names, records);
                }
            }
            Step::GiveUp(reader) => {
                if reader < self.readers.len() {
                    self.readers.remove(reader);
                }
            }
        }
    }

    fn sweep(&mut self) {
        self.names.begin_sweep();
        self.names.keep(&self.directory.ids());
        self.names.keep(&self.shard.ids());
        for reader in &self.readers {
            self.names.keep(&reader.cursor.ids());
        }
        self.swept += self.names.finish_sweep();
        for number in 0..20 {
            self.names.intern(&format!("another-{}-{number}", self.now));
        }
    }

    /// All readers continue to the end.
    fn finish(mut self) -> usize {
        for reader in &mut self.readers {
            let Reader {
                cursor,
                read: records,
                all,
            } = reader;
            while read(&mut self.shard, cursor, 3, &self.names, records) {}
            assert_eq!(names_of(records), names_of(all));
            assert_eq!(records, all);
        }
        // Nothing is kept for readers who have finished or given up.
        self.readers.iter().map(|it| it.all.len()).sum()
    }
}

fn names_of(records: &Records) -> Vec<String> {
    let keys = records.keys();
    keys.map(|key| String::from_utf8_lossy(key).into_owned())
        .collect()
}

/// Reads on. Returns whether there is more.
fn read(
    shard: &mut Shard,
    cursor: &mut ShardCursor,
    count: usize,
    names: &Names,
    records: &mut Records,
) -> bool {
    let mut read = Vec::new();
    let has_more = shard.read(cursor, count, &mut read);
    for (record, _) in read {
        if matches!(record, Record::Tracker(_)) {
            continue;
        }
        let (key, value) = record.encode(names);
        let before = records.insert(key, value.unwrap());
        assert_eq!(before, None, "it is read once");
    }
    has_more
}

fn message(kind: Kind, user: u64, conn: u64, says: u8, now: u64) -> Message {
    let mut metadata = json!({ "device": format!("device-{conn}") });
    match says % 4 {
        0 => metadata["status"] = json!({ "text": format!("busy-{}", says % 8) }),
        1 => metadata["activity"] = json!(["idle", "active", "typing"][usize::from(says) % 3]),
        2 => metadata["status"] = Value::Null,
        _ => {}
    }
    let mut body = json!({ "userId": format!("user-{user}"), "timestamp": now });
    if !matches!(kind, Kind::Online | Kind::Offline) {
        body["connId"] = json!(format!("conn-{conn}"));
    }
    if !matches!(kind, Kind::Disconnect | Kind::Offline) {
        body["metadata"] = metadata;
    }
    Message::parse(kind, &Bytes::from(body.to_string()), 1 << 20).unwrap()
}

proptest! {
    #[test]
    fn what_is_read_is_what_there_was_when_it_began(steps in prop::collection::vec(step(), 1..200)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
        }
        world.finish();
    }
}

/// Checks that the test above covers every kind of record.
#[test]
fn there_is_something_of_everything_to_read() {
    let mut world = World::new();
    let mut random = 7_u64;
    let mut kinds = [0; 8];
    for _ in 0..3_000 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let (user, says) = ((random >> 33) % USERS, (random >> 40) as u8);
        let kinds_of = [
            Kind::Connect,
            Kind::Connect,
            Kind::Disconnect,
            Kind::Online,
            Kind::Offline,
        ];
        let kind = kinds_of[(random >> 48) as usize % kinds_of.len()];
        world.take(Step::Message(kind, user, random >> 63, says));
        world.take(Step::Pass(20));
        if random >> 61 == 0 {
            world.take(Step::Rules);
            world.take(Step::Sweep);
        }
        for (record, _) in all(&mut world.shard) {
            kinds[match record {
                Record::Tracker(_) => 0,
                Record::Ledger { entry, .. } if entry.as_ref().unwrap().untold_event.is_some() => 1,
                Record::Ledger { .. } => 2,
                Record::Departed { .. } => 3,
                Record::Status { .. } => 4,
                Record::Waiting { steps, .. } if steps.len() > 1 => 5,
                Record::Waiting { .. } => 6,
                Record::Stated { .. } => 7,
            }] += 1;
        }
    }
    assert!(kinds.iter().all(|count| *count > 20), "{kinds:?}");
    assert!(world.swept > 0);
}

fn all(shard: &mut Shard) -> Vec<(Record, Option<u64>)> {
    let (mut cursor, mut records) = (shard.cursor(), Vec::new());
    while shard.read(&mut cursor, 1_000, &mut records) {}
    records
}
