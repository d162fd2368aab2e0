//! What always holds about visibility. Random scripts have users who come, go and report
//! activities; changes of the directory and the rules; rules that fail; answers of the directory
//! that are late or lost; paced corrections; and restarts of the host. Every message to viewers is
//! followed, and queries are compared with it at every step.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod early;
#[path = "visibility/rules.rs"]
mod rules;
#[path = "visibility/script.rs"]
mod script;
#[path = "visibility/viewers.rs"]
mod viewers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use presence_core::directory::{Answer, Changes, Directory, Edit, Question};
use presence_core::message::Kind;
use presence_core::names::{Id, Names};
use presence_core::record::Record;
use presence_core::share::Share;
use presence_core::{Input, Settings, Shard, status};
use proptest::prelude::*;
use serde_json::{Value, json};

use rules::{Generation, Sides};
use script::{Said, Step, step};
use viewers::only;

const USERS: [&str; 4] = ["ada", "ben", "cleo", "dan"];

/// A viewer who is shown no statuses at first.
const PLAIN: &str = "dan";

/// The minimum time between two updates of a user.
const MIN_INTERVAL_MS: u64 = 500;

/// What is known of a user who has left.
#[derive(Default)]
struct Gone {
    metadata: Value,
    told: BTreeSet<String>,
    knows: BTreeSet<String>,
    /// Whether the decision may have been pending, or not been made again.
    unsure: bool,
}

struct World {
    names: Arc<Names>,
    /// The directory that the shard uses.
    directory: Arc<Directory>,
    /// The complete directory. An on-demand directory gets its answers from it.
    known: Directory,
    /// The questions that are to be answered.
    wanted: BTreeSet<Question>,
    shard: Shard,
    rules: Sides,
    now: u64,
    /// The viewers who were told that a user is online, and not yet that they are offline.
    told: BTreeMap<String, BTreeSet<String>>,
    /// The users who are online by the broadcast events, and their metadata.
    online: BTreeMap<String, Value>,
    /// The metadata of a user that a viewer was last shown, as long as the viewer considers the
    /// user online.
    seen: BTreeMap<(String, String), Value>,
    /// When the last update of a user was broadcast.
    updated_at: BTreeMap<String, u64>,
    /// Whether statuses are enabled, and whether they are after the next restart.
    statuses: bool,
    statuses_then: bool,
    /// When offline users were last seen, by the broadcast events.
    last_seen: BTreeMap<String, Value>,
    /// For each offline user: how they were last shown, who had been told that they were online,
    /// and who was told when they were last seen.
    gone: BTreeMap<String, Gone>,
    /// Users on whom a decision may be pending, until it is made.
    pending: BTreeSet<Id>,
    asks: usize,
    corrections_per_s: u64,
    /// How many messages each viewer received on their own subject.
    delivered: BTreeMap<String, u64>,
    /// The records that the host has stored.
    store: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl World {
    fn new(on_demand: bool) -> Self {
        let names = Arc::new(Names::new());
        let directory = Arc::new(empty(on_demand));
        Self {
            known: Directory::new(),
            wanted: BTreeSet::new(),
            shard: shard(&names, &directory, settings(0, true)),
            rules: Sides {
                active: (
                    0,
                    Generation {
                        plain: Some(names.intern(PLAIN)),
                        plain_keys: vec!["device"],
                        ..Generation::default()
                    },
                ),
                ..Sides::default()
            },
            names,
            directory,
            now: 1_000_000,
            told: BTreeMap::new(),
            online: BTreeMap::new(),
            seen: BTreeMap::new(),
            updated_at: BTreeMap::new(),
            statuses: true,
            statuses_then: true,
            last_seen: BTreeMap::new(),
            gone: BTreeMap::new(),
            pending: BTreeSet::new(),
            asks: 0,
            corrections_per_s: 0,
            delivered: BTreeMap::new(),
            store: BTreeMap::new(),
        }
    }

    fn id(&self, user: usize) -> Id {
        self.names.intern(USERS[user])
    }

    fn ids(&self, users: &BTreeSet<usize>) -> BTreeSet<Id> {
        users.iter().map(|user| self.id(*user)).collect()
    }

    fn step(&mut self, step: &Step) {
        self.now += 1;
        let conn = |conn: &u8| format!("c{conn}");
        match step {
            Step::Connect(user, c, said) => {
                let mut metadata = json!({"device": conn(c), "ip": "::1", "socketId": "s"});
                self.say(said, &mut metadata);
                let body = json!({"connId": conn(c), "metadata": metadata});
                self.message_from(Kind::Connect, *user, body, said.behind_ms);
            }
            Step::Disconnect(user, c) => {
                self.message(Kind::Disconnect, *user, json!({"connId": conn(c)}));
            }
            Step::Heartbeat(user, c, said) => {
                let mut metadata = json!({});
                self.say(said, &mut metadata);
                let body = json!({"connId": conn(c), "metadata": metadata});
                self.message_from(Kind::Heartbeat, *user, body, said.behind_ms);
            }
            Step::Online(user, device) => {
                let body = json!({"metadata": {"device": format!("d{device}")}});
                self.message(Kind::Online, *user, body);
            }
            Step::Plain(viewer, keys) => {
                let plain = viewer.map(|viewer| self.id(viewer));
                self.swap(|rules| {
                    rules.plain = plain;
                    rules.plain_keys = keys.clone();
                });
            }
            Step::Offline(user) => self.message(Kind::Offline, *user, json!({})),
            Step::Contacts(user, list) => {
                let list = self.ids(list).into_iter().map(|id| id.0).collect();
                let mut edit = self.known.edit();
                edit.contacts(self.id(*user), Some(list));
                self.learn(edit);
            }
            Step::Blocks(user, list) => {
                let list = self.ids(list).into_iter().map(|id| id.0).collect();
                let mut edit = self.known.edit();
                edit.blocked(self.id(*user), Some(list));
                self.learn(edit);
            }
            Step::Hide(users) => {
                let users = self.ids(users);
                self.swap(|rules| rules.hidden = users);
            }
            Step::Fail(users) => {
                // A generation is pure, so a failure is a change of the rules.
                let users = self.ids(users);
                self.swap(|rules| rules.failing = users);
            }
            Step::Canary(share, hidden, secretive) => {
                let number = self.rules.next();
                let mut rules = self.rules.active.1.clone();
                rules.hidden = self.ids(hidden);
                rules.secretive = self.ids(secretive);
                let candidate = (number, Share::of_places(*share), rules);
                self.assign(|sides| sides.candidate = Some(candidate));
            }
            Step::Share(share) => self.assign(|sides| {
                if let Some(candidate) = &mut sides.candidate {
                    candidate.1 = Share::of_places(*share);
                }
            }),
            Step::Promote => self.assign(|sides| {
                if let Some((number, _, rules)) = sides.candidate.take() {
                    sides.active = (number, rules);
                }
            }),
            Step::Abort => self.assign(|sides| sides.candidate = None),
            Step::Unredacted(viewer) => {
                let viewer = viewer.map(|viewer| self.id(viewer));
                self.swap(|rules| rules.unredacted = viewer);
            }
            Step::Secretive(users) => {
                let users = self.ids(users);
                self.swap(|rules| rules.secretive = users);
            }
            Step::Shy(users) => {
                let users = self.ids(users);
                self.swap(|rules| rules.shy = users);
            }
            Step::Statuses(told, live) => {
                self.statuses_then = *told;
                if *live {
                    self.statuses = *told;
                    self.updated_at.clear();
                    self.input(Input::Settings(Box::new(self.settings())));
                }
            }
            Step::Answer => self.answer(),
            Step::Lose(user) => {
                let mut edit = self.directory.edit();
                edit.answer(Question::Contacts(self.id(*user)), None);
                self.set_directory(edit);
            }
            Step::Wait(ms) => self.wait_until(self.now + ms),
            Step::Pace(corrections_per_s) => {
                self.corrections_per_s = *corrections_per_s;
                self.input(Input::Settings(Box::new(self.settings())));
            }
            Step::Save => self.save(),
            Step::Restart(down_ms, user, list) => self.restart(*down_ms, *user, list),
        }
    }

    /// Changes the active rules.
    fn swap(&mut self, change: impl FnOnce(&mut Generation)) {
        let number = self.rules.next();
        self.assign(|sides| {
            sides.active.0 = number;
            change(&mut sides.active.1);
        });
    }

    fn assign(&mut self, change: impl FnOnce(&mut Sides)) {
        let before = self.rules.assignment();
        change(&mut self.rules);
        let after = self.rules.assignment();
        self.input(Input::Reassigned {
            before,
            after,
            has_other_enrichers: false,
        });
    }

    fn settings(&self) -> Settings {
        settings(self.corrections_per_s, self.statuses)
    }

    /// Waits until all pending decisions are made.
    fn drain(&mut self) {
        while self.shard.backlog() > 0 {
            self.wait_until(self.now + 100);
        }
    }

    /// Without statuses, the keys are ordinary metadata of a connection.
    fn say(&self, said: &Said, metadata: &mut Value) {
        if !self.statuses {
            return;
        }
        if let Some(activity) = said.activity {
            metadata["activity"] = activity.into();
        }
        if let Some(status) = said.status {
            metadata["status"] = match status {
                None => Value::Null,
                Some((text, None)) => json!({"text": text.to_string()}),
                Some((text, Some(ms))) => {
                    json!({"text": text.to_string(), "expiresAt": self.now + ms})
                }
            };
        }
    }

    fn save(&mut self) {
        for record in self.shard.take_records(1) {
            match record.encode(&self.names) {
                (key, Some(value)) => drop(self.store.insert(key, value)),
                (key, None) => drop(self.store.remove(&key)),
            }
        }
    }

    fn restart(&mut self, down_ms: u64, user: usize, list: &BTreeSet<usize>) {
        if self.statuses && !self.statuses_then {
            // Disabling statuses at a restart loses an update that waits for the end of the
            // interval.
            self.wait_until(self.now + MIN_INTERVAL_MS);
        }
        self.save();
        self.now += down_ms;
        let list = self.ids(list).into_iter().map(|id| id.0).collect();
        let mut edit = self.known.edit();
        edit.contacts(self.id(user), Some(list));
        self.known = edit.finish().0;
        self.directory = Arc::new(match self.directory.is_on_demand() {
            true => empty(true),
            false => self.known.clone(),
        });
        self.wanted.clear();
        self.statuses = self.statuses_then;
        self.shard = shard(&self.names, &self.directory, self.settings());
        self.updated_at.clear();
        // Sequence numbers start again.
        self.delivered.clear();
        let records = self.store.iter();
        let records = records.map(|(key, value)| Record::decode(key, value, &self.names).unwrap());
        self.shard.restore(self.now, down_ms, records);
        self.shard.renew_leases(self.now);
        self.wait_until(self.now);
    }

    fn message(&mut self, kind: Kind, user: usize, body: Value) {
        self.message_from(kind, user, body, 0);
    }

    fn message_from(&mut self, kind: Kind, user: usize, mut body: Value, behind_ms: u64) {
        body["userId"] = USERS[user].into();
        body["timestamp"] = (self.now - behind_ms).into();
        let message = early::message(kind, &body);
        self.input(Input::Message {
            message,
            reply: None,
        });
    }

    /// The complete directory has changed. An on-demand directory reports that later.
    fn learn(&mut self, edit: Edit) {
        let (known, changes) = edit.finish();
        self.known = known;
        if !self.directory.is_on_demand() {
            return self.put(self.known.clone(), changes);
        }
        let held = changes.iter().filter(|it| self.directory.has(it));
        self.wanted.extend(held);
    }

    /// Answers all open questions.
    fn answer(&mut self) {
        let mut edit = self.directory.edit();
        for question in std::mem::take(&mut self.wanted) {
            let users = self.known.audience(&question).unwrap();
            edit.answer(question, Some(Answer::users(users.bitmap())));
        }
        self.set_directory(edit);
    }

    fn set_directory(&mut self, edit: Edit) {
        let (directory, changes) = edit.finish();
        self.put(directory, changes);
    }

    fn put(&mut self, directory: Directory, changes: Changes) {
        self.directory = Arc::new(directory);
        let directory = Arc::clone(&self.directory);
        self.input(Input::Directory(directory, Arc::new(changes)));
    }

    fn input(&mut self, input: Input) {
        let mut out = Vec::new();
        self.shard
            .handle(self.now, input, &mut self.rules, &mut out);
        self.see(out);
        // Answers to queries reflect the change at once, before any viewer is corrected.
        self.ask();
        self.wait_until(self.now);
        if self.shard.backlog() == 0 {
            self.pending.clear();
        }
        let failing = USERS.iter().enumerate();
        let failing = failing.filter(|(user, name)| {
            let rules = self.rules.of(name);
            rules.failing.contains(&self.id(*user))
        });
        let failing: Vec<_> = failing.map(|(user, _)| self.id(user)).collect();
        self.pending.extend(failing);
        self.ask();
    }

    /// Does all work that is due up to a time, each at its time.
    fn wait_until(&mut self, until: u64) {
        while let Some(at) = self.shard.next_deadline()
            && at <= until
        {
            self.now = self.now.max(at);
            let mut out = Vec::new();
            self.shard.advance(self.now, &mut self.rules, &mut out);
            self.see(out);
        }
        self.now = self.now.max(until);
    }

    /// Once the rules answer again, exactly those who may see an online user have been told, and
    /// each was last shown what they may see. This also holds when statuses are disabled.
    fn settle(&mut self) {
        self.rules.active.1.failing.clear();
        if let Some((_, _, rules)) = &mut self.rules.candidate {
            rules.failing.clear();
        }
        self.input(Input::Rules);
        self.drain();
        while !self.wanted.is_empty() {
            self.answer();
            self.drain();
        }
        self.wait_until(self.now + MIN_INTERVAL_MS);
        self.beliefs_are_true();
        self.step(&Step::Statuses(false, true));
        self.drain();
        self.beliefs_are_true();
        for (of, seen) in &self.seen {
            assert_eq!(only(seen, &["activity", "status"]), json!({}), "{of:?}");
        }
    }
}

/// An empty directory.
fn empty(on_demand: bool) -> Directory {
    if on_demand {
        Directory::on_demand()
    } else {
        Directory::new()
    }
}

fn settings(corrections_per_s: u64, statuses: bool) -> Settings {
    Settings {
        inbox: true,
        corrections_per_s,
        status: statuses.then_some(status::StatusSettings {
            min_interval_ms: MIN_INTERVAL_MS,
            typing_ms: 60_000_000,
            users_max: 1_000,
        }),
        ..Settings::default()
    }
}

fn shard(names: &Arc<Names>, directory: &Arc<Directory>, settings: Settings) -> Shard {
    let (names, directory) = (Arc::clone(names), Arc::clone(directory));
    let mut shard = Shard::new(settings, names, directory);
    shard.keep_records(true);
    shard
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_viewers_are_told_what_they_may_know(
        steps in proptest::collection::vec(step(), 1..60),
        on_demand in any::<bool>(),
    ) {
        let mut world = World::new(on_demand);
        for step in &steps {
            world.step(step);
        }
        world.settle();
    }
}
