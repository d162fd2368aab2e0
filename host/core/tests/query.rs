//! Queries of a shard with a rule written in Rust: what a viewer is answered, and when the rule is
//! asked.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod early;

use std::collections::BTreeSet;
use std::sync::Arc;

use presence_core::audience::Audience;
use presence_core::body::explain::{DeliveryState, EventOrigin};
use presence_core::directory::{Answer, Directory, Question};
use presence_core::message::Kind;
use presence_core::names::Names;
use presence_core::record::Record;
use presence_core::rules::{Context, Decision, Enriched, Failure, Reads, Rendition, Rules};
use presence_core::{Input, Output, Settings, Shard};
use serde_json::{Value, json};

/// Contacts may see a user, and are shown the device and the ip. All but dan may know when the user
/// was last seen.
struct Contacts {
    asked: usize,
    failing: bool,
    /// Users are hidden if one of these keys has this value.
    hides: Vec<(&'static str, &'static str)>,
    /// Whether users are hidden from everyone.
    hides_all: bool,
    names: Arc<Names>,
}

impl Contacts {
    fn split(&self, audience: &Audience) -> Vec<Rendition> {
        let dan = self.names.intern("dan");
        let keys: Arc<[Box<str>]> = ["device".into(), "ip".into(), "socketId".into()].into();
        let part = |audience: Audience, last_seen| Rendition {
            audience,
            keys: Arc::clone(&keys),
            last_seen,
        };
        let dans = audience.intersection(&[dan].into_iter().collect());
        vec![part(audience.without(dan), true), part(dans, false)]
    }
}

impl Rules for Contacts {
    fn enrich(&mut self, _: Context<'_>) -> Enriched {
        Enriched::default()
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        self.asked += 1;
        if self.failing {
            return Decision::Failed(Failure {
                plugin: "contacts".into(),
                error: "trapped".into(),
            });
        }
        let question = Question::Contacts(context.event.user);
        match context.directory.audience(&question) {
            Ok(contacts) => {
                let metadata = &context.event.metadata;
                let is_hidden = |(key, value): &(&str, &str)| metadata.get(key) == Some(*value);
                let contacts = match self.hides_all || self.hides.iter().any(is_hidden) {
                    true => Audience::nobody(),
                    false => contacts,
                };
                let reads = Reads {
                    questions: BTreeSet::from([question]),
                    keys: self.hides.iter().map(|(key, _)| (*key).into()).collect(),
                    ..Reads::default()
                };
                Decision::Decided(self.split(&contacts), reads)
            }
            Err(_) => Decision::CacheMiss(BTreeSet::from([question])),
        }
    }

    fn redact(&mut self, _: Context<'_>, told: &Audience) -> Decision {
        Decision::Decided(self.split(told), Reads::default())
    }
}

struct World {
    names: Arc<Names>,
    directory: Arc<Directory>,
    shard: Shard,
    rules: Contacts,
    settings: Settings,
    now: u64,
    out: Vec<Output>,
}

impl World {
    /// ada's contacts are ben and dan.
    fn new() -> Self {
        let mut world = Self::with(Directory::new(), Settings::default());
        world.contacts("ada", &["ben", "dan"]);
        world
    }

    fn with(directory: Directory, settings: Settings) -> Self {
        let names = Arc::new(Names::new());
        let directory = Arc::new(directory);
        Self {
            shard: Shard::new(settings.clone(), Arc::clone(&names), Arc::clone(&directory)),
            settings,
            rules: Contacts {
                asked: 0,
                failing: false,
                hides: Vec::new(),
                hides_all: false,
                names: Arc::clone(&names),
            },
            names,
            directory,
            now: 1_000,
            out: Vec::new(),
        }
    }

    fn contacts(&mut self, user: &str, contacts: &[&str]) {
        let contacts = contacts.iter().map(|name| self.names.intern(name).0);
        let mut edit = self.directory.edit();
        edit.contacts(self.names.intern(user), Some(contacts.collect()));
        let (directory, changes) = edit.finish();
        self.directory = Arc::new(directory);
        let input = Input::Directory(Arc::clone(&self.directory), Arc::new(changes));
        self.input(input);
    }

    /// Restarts the host with the records stored so far and the new ones.
    fn restart(&mut self, store: &mut std::collections::BTreeMap<Vec<u8>, Vec<u8>>) {
        for record in self.shard.take_records(1) {
            match record.encode(&self.names) {
                (key, Some(value)) => drop(store.insert(key, value)),
                (key, None) => drop(store.remove(&key)),
            }
        }
        let (names, directory) = (Arc::clone(&self.names), Arc::clone(&self.directory));
        self.shard = Shard::new(self.settings.clone(), names, directory);
        self.shard.keep_records(true);
        let records = store.iter();
        let records = records.map(|(key, value)| Record::decode(key, value, &self.names).unwrap());
        self.shard.restore(self.now, 0, records);
        self.correct();
    }

    fn input(&mut self, input: Input) {
        let (rules, out) = (&mut self.rules, &mut self.out);
        self.shard.handle(self.now, input, rules, out);
    }

    /// The on-demand directory gets an answer to this question.
    fn learn(&mut self, question: &Question, answer: Option<Answer>) {
        let mut edit = self.directory.edit();
        edit.answer(question.clone(), answer);
        let (directory, changes) = edit.finish();
        self.directory = Arc::new(directory);
        let input = Input::Directory(Arc::clone(&self.directory), Arc::new(changes));
        self.input(input);
        self.correct();
    }

    fn correct(&mut self) {
        let (rules, out) = (&mut self.rules, &mut self.out);
        // Each call decides on a few users.
        loop {
            let backlog = self.shard.backlog();
            self.shard.advance(self.now, rules, out);
            if self.shard.backlog() == backlog || self.shard.backlog() == 0 {
                break;
            }
        }
    }

    fn send(&mut self, kind: Kind, user: &str) {
        self.now += 10;
        let metadata = json!({"device": "web", "ip": "::1", "socketId": "s", "secret": 1});
        let body = json!({
            "userId": user, "connId": "c", "timestamp": self.now, "metadata": metadata,
        });
        let message = early::message(kind, &body);
        self.input(Input::Message {
            message,
            reply: None,
        });
        self.correct();
    }

    /// The answers, as text.
    fn ask(&mut self, viewer: &str, users: &[&str]) -> Vec<String> {
        let (rules, out) = (&mut self.rules, &mut self.out);
        let users = users.iter().copied();
        let answers = self
            .shard
            .query(self.now, viewer, users.clone(), rules, out);
        let texts = users
            .enumerate()
            .map(|(place, _)| answers.get(place).unwrap());
        texts
            .map(|text| String::from_utf8(text.to_vec()).unwrap())
            .collect()
    }

    fn answer(&mut self, viewer: &str, user: &str) -> Value {
        serde_json::from_str(&self.ask(viewer, &[user])[0]).unwrap()
    }
}

fn online() -> Value {
    json!({"userId": "ada", "status": "online", "metadata": {"device": "web"}})
}

fn hidden() -> Value {
    json!({"userId": "ada", "status": "offline"})
}

#[test]
fn users_are_answered_in_the_order_asked_after_and_as_often() {
    let mut world = World::new();
    world.send(Kind::Connect, "ada");
    assert_eq!(
        world.ask("ben", &["zoe", "ada", "ada", "z\"oe"]),
        [
            r#"{"userId":"zoe","status":"offline"}"#,
            r#"{"userId":"ada","status":"online","metadata":{"device":"web"}}"#,
            r#"{"userId":"ada","status":"online","metadata":{"device":"web"}}"#,
            r#"{"userId":"z\"oe","status":"offline"}"#,
        ]
    );
}

#[test]
fn a_hidden_user_is_written_as_one_who_was_never_seen() {
    let mut world = World::new();
    for kind in [Kind::Connect, Kind::Disconnect, Kind::Connect] {
        world.send(kind, "ada");
        for viewer in ["eve", "ada", "unknown"] {
            let answers = world.ask(viewer, &["ada", "zoe"]);
            assert_eq!(answers[0], answers[1].replace("zoe", "ada"), "{viewer}");
        }
    }
}

#[test]
fn last_seen_is_for_whom_the_rules_give_it() {
    let mut world = World::new();
    world.send(Kind::Connect, "ada");
    world.send(Kind::Disconnect, "ada");
    let seen = world.now;
    let expected = json!({"userId": "ada", "status": "offline", "lastSeen": seen});
    assert_eq!(world.answer("ben", "ada"), expected);
    assert_eq!(world.answer("dan", "ada"), hidden());
    world.contacts("ada", &["dan"]);
    assert_eq!(world.answer("ben", "ada"), hidden());
}

#[test]
fn the_rules_are_asked_once_for_what_has_not_changed() {
    let mut world = World::new();
    world.send(Kind::Connect, "ada");
    let asked = world.rules.asked;
    for _ in 0..3 {
        world.ask("ben", &["ada", "zoe"]);
    }
    assert_eq!(world.rules.asked, asked, "the event's verdict serves");
    world.send(Kind::Disconnect, "ada");
    for viewer in ["ben", "dan", "eve"] {
        world.ask(viewer, &["ada", "ada"]);
    }
    assert_eq!(world.rules.asked, asked + 1);
    world.contacts("zoe", &["ben"]);
    world.ask("ben", &["ada"]);
    assert_eq!(world.rules.asked, asked + 1);
    world.contacts("ada", &["ben"]);
    world.ask("ben", &["ada"]);
    assert_eq!(world.rules.asked, asked + 2);
}

#[test]
fn a_correction_narrows_answers_before_it_reaches_the_user_and_widens_them_after() {
    let mut world = World::new();
    world.send(Kind::Connect, "ada");
    world.contacts("ada", &["eve"]);
    assert_eq!(world.answer("ben", "ada"), hidden());
    assert_eq!(world.answer("eve", "ada"), hidden(), "not told yet");
    let asked = world.rules.asked;
    world.correct();
    assert_eq!(world.rules.asked, asked, "the query's verdict serves");
    assert_eq!(world.answer("eve", "ada"), online());
}

#[test]
fn a_failing_rule_shows_nothing_and_is_not_asked_for_ever() {
    let mut world = World::new();
    let users: Vec<_> = (0..20).map(|user| format!("user-{user}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    for user in &users {
        world.contacts(user, &["ben"]);
        world.send(Kind::Connect, user);
    }
    world.rules.failing = true;
    world.input(Input::Rules);
    let (asked, published) = (world.rules.asked, world.out.len());
    let answers = world.ask("ben", &users);
    assert!(answers.iter().all(|answer| answer.contains("offline")));
    assert_eq!(world.rules.asked, asked + 3);
    assert_eq!(world.out.len(), published, "no dead letters");
    world.correct();
    let asked = world.rules.asked;
    world.ask("ben", &users);
    assert_eq!(world.rules.asked, asked, "all are put off");
    world.rules.failing = false;
    world.input(Input::Rules);
    world.correct();
    let answers = world.ask("ben", &users);
    assert!(answers.iter().all(|answer| answer.contains("online")));
}

#[test]
fn what_is_not_at_hand_is_fetched_and_hidden_until_then() {
    let mut world = World::with(Directory::on_demand(), Settings::default());
    let question = Question::Contacts(world.names.intern("ada"));
    let ben = world.names.intern("ben").0;
    let answer = || Answer::users([ben].into_iter().collect());
    world.send(Kind::Connect, "ada");
    world.learn(&question, Some(answer()));
    assert_eq!(world.answer("ben", "ada"), online());
    world.send(Kind::Disconnect, "ada");
    world.learn(&question, None);
    world.out.clear();
    assert_eq!(
        world.answer("ben", "zoe"),
        json!({"userId": "zoe", "status": "offline"})
    );
    assert_eq!(world.answer("ben", "ada"), hidden());
    assert_eq!(world.out, [Output::Fetch([question.clone()].into())]);
    world.learn(&question, Some(answer()));
    assert_eq!(world.answer("ben", "ada")["lastSeen"], world.now);
    let mut out = Vec::new();
    assert!(world.shard.contacts("eve", &mut out).is_err());
    let [Output::Fetch(_)] = &out[..] else {
        panic!("{out:?}")
    };
}

#[test]
fn no_more_departures_are_remembered_than_configured() {
    let settings = Settings {
        departures_max: 1,
        ..Settings::default()
    };
    let mut world = World::with(Directory::new(), settings);
    for user in ["ada", "zoe"] {
        world.contacts(user, &["ben"]);
        world.send(Kind::Connect, user);
        world.send(Kind::Disconnect, user);
    }
    assert_eq!(world.answer("ben", "ada"), hidden());
    assert_eq!(world.answer("ben", "zoe")["lastSeen"], world.now);
}

#[test]
fn a_viewers_contacts_are_those_of_the_directory() {
    let world = World::new();
    let contacts = world.shard.contacts("ada", &mut Vec::new()).unwrap();
    let contacts: Vec<_> = contacts.iter().map(|name| name.as_str()).collect();
    assert_eq!(contacts, ["ben", "dan"]);
    assert_eq!(world.shard.contacts("zoe", &mut Vec::new()), Ok(Vec::new()));
}

#[test]
fn an_explanation_says_what_is_decided_on_and_how_the_viewer_stands_to_it() {
    let mut world = World::new();
    world.contacts("cleo", &["eve"]);
    let found = |world: &mut World, viewer: &str| {
        let (rules, out) = (&mut world.rules, &mut world.out);
        let found = world.shard.explain(world.now, viewer, "ada", rules, out);
        (
            found.basis,
            found.rendition.is_some(),
            found.told,
            found.delivery,
        )
    };
    use DeliveryState::{Correcting, Offline, Pending, Settled};
    use EventOrigin::{Departed, Hypothetical, Online};
    assert_eq!(
        found(&mut world, "ben"),
        (Hypothetical, true, false, Offline)
    );
    world.send(Kind::Connect, "ada");
    assert_eq!(found(&mut world, "ben"), (Online, true, true, Settled));
    assert_eq!(found(&mut world, "eve"), (Online, false, false, Settled));
    assert_eq!(found(&mut world, "ada"), (Online, false, false, Settled));
    world.contacts("ada", &["eve"]);
    assert_eq!(found(&mut world, "ben"), (Online, false, true, Correcting));
    assert_eq!(found(&mut world, "eve"), (Online, true, false, Correcting));
    world.correct();
    assert_eq!(found(&mut world, "eve"), (Online, true, true, Settled));
    world.rules.failing = true;
    world.input(Input::Rules);
    world.correct();
    let retry_at = Some(world.now + Settings::default().retry_ms);
    let pending = (Online, false, true, Pending(retry_at));
    assert_eq!(found(&mut world, "eve"), pending);
    world.rules.failing = false;
    world.send(Kind::Disconnect, "ada");
    let departed = (Departed, false, false, Offline);
    assert_eq!(found(&mut world, "eve"), departed, "it was pending");
    world.send(Kind::Connect, "ada");
    world.send(Kind::Disconnect, "ada");
    assert_eq!(found(&mut world, "eve"), (Departed, true, false, Offline));
    assert_eq!(world.answer("eve", "ada")["lastSeen"], world.now);
    world.contacts("ada", &["eve", "ben"]);
    assert_eq!(found(&mut world, "ben"), departed, "ben never saw her");
    assert_eq!(world.answer("ben", "ada"), hidden());
}

#[test]
fn who_was_hidden_while_online_stays_hidden_once_gone() {
    let mut world = World::new();
    world.rules.hides = vec![("device", "\"web\"")];
    world.send(Kind::Connect, "ada");
    world.send(Kind::Disconnect, "ada");
    assert_eq!(world.answer("ben", "ada"), hidden());
    // Rules that would have shown the user don't reveal the time, either.
    world.rules.hides.clear();
    world.input(Input::Rules);
    assert_eq!(world.answer("ben", "ada"), hidden());
    world.send(Kind::Connect, "ada");
    world.send(Kind::Disconnect, "ada");
    assert_eq!(world.answer("ben", "ada")["lastSeen"], world.now);
}

#[test]
fn the_rules_of_now_see_what_they_read_of_the_user_while_online() {
    let mut world = World::new();
    world.rules.hides = vec![("device", "\"phone\"")];
    world.send(Kind::Connect, "ada");
    world.send(Kind::Disconnect, "ada");
    assert_eq!(world.answer("ben", "ada")["lastSeen"], world.now);
    world.rules.hides = vec![("device", "\"web\"")];
    world.input(Input::Rules);
    assert_eq!(world.answer("ben", "ada"), hidden());
    world.rules.hides = vec![("device", "\"tv\"")];
    world.input(Input::Rules);
    assert_eq!(world.answer("ben", "ada")["lastSeen"], world.now);
    // A value that no rule had read wasn't kept, so the rules can't decide by it.
    world.rules.hides = vec![("secret", "2")];
    world.input(Input::Rules);
    assert_eq!(world.answer("ben", "ada"), hidden());
    world.rules.hides_all = true;
    world.rules.hides.clear();
    world.input(Input::Rules);
    assert_eq!(world.answer("ben", "ada"), hidden());
}

#[test]
fn of_whom_the_last_decision_was_not_made_nobody_learns_when_they_were_seen() {
    let mut world = World::new();
    world.send(Kind::Connect, "ada");
    world.rules.failing = true;
    world.input(Input::Rules);
    world.correct();
    world.send(Kind::Disconnect, "ada");
    world.rules.failing = false;
    world.input(Input::Rules);
    assert_eq!(world.answer("ben", "ada"), hidden());
}

#[test]
fn last_seen_outlives_a_restart_for_those_who_may_know_it() {
    let mut world = World::with(Directory::new(), Settings::default());
    world.shard.keep_records(true);
    world.rules.hides = vec![("device", "\"phone\"")];
    for user in ["ada", "zoe", "back"] {
        world.contacts(user, &["ben", "dan"]);
        world.send(Kind::Connect, user);
        world.send(Kind::Disconnect, user);
    }
    let left = world.now - 40;
    let gone = |at: u64| json!({"userId": "ada", "status": "offline", "lastSeen": at});
    let mut store = std::collections::BTreeMap::new();
    world.restart(&mut store);
    assert_eq!(world.answer("ben", "ada"), gone(left));
    assert_eq!(world.answer("dan", "ada"), hidden());
    world.contacts("ada", &["ben", "eve"]);
    assert_eq!(world.answer("eve", "ada"), hidden(), "she wasn't told");
    world.rules.hides = vec![("device", "\"web\"")];
    world.input(Input::Rules);
    assert_eq!(world.answer("ben", "ada"), hidden());
    world.rules.hides = vec![("device", "\"phone\"")];
    world.input(Input::Rules);

    // A user who comes back hidden leaves no trace of the earlier visit.
    world.rules.hides_all = true;
    world.input(Input::Rules);
    world.send(Kind::Connect, "ada");
    world.send(Kind::Disconnect, "ada");
    world.rules.hides_all = false;
    world.input(Input::Rules);
    world.restart(&mut store);
    assert_eq!(world.answer("ben", "ada"), hidden());
    assert!(world.answer("ben", "zoe")["lastSeen"].is_u64());

    // At most the configured number of departures is kept, the newest ones, on disk as well.
    world.settings.departures_max = 1;
    world.restart(&mut store);
    assert_eq!(world.answer("ben", "zoe")["lastSeen"], Value::Null);
    assert!(world.answer("ben", "back")["lastSeen"].is_u64());
    world.settings.departures_max = 10;
    world.restart(&mut store);
    assert_eq!(world.answer("ben", "zoe")["lastSeen"], Value::Null);
    assert!(world.answer("ben", "back")["lastSeen"].is_u64());
    world.send(Kind::Connect, "back");
    world.restart(&mut store);
    assert_eq!(world.answer("ben", "back")["status"], "online");
}
