//! An on-demand directory: what waits for its answers, in which order it goes on, and what happens
//! if no answers come.

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
use presence_core::directory::{Answer, Directory, Question};
use presence_core::message::Kind;
use presence_core::names::{Id, Names};
use presence_core::record::Record;
use presence_core::rules::{Context, Decision, Enriched, Reads, Rendition, Rules};
use presence_core::{Input, Output, Settings, Shard};
use serde_json::{Value, json};

const WAIT_MS: u64 = 2_000;

/// An enricher that counts the user's groups, a filter of contacts, and a redactor that asks for
/// settings.
#[derive(Default)]
struct Asking {
    enriches: bool,
    enriched: usize,
    decided: usize,
}

impl Rules for Asking {
    fn enrich(&mut self, context: Context<'_>) -> Enriched {
        self.enriched += 1;
        let mut enriched = Enriched::default();
        if !self.enriches {
            return enriched;
        }
        match context.directory.groups(context.event.user) {
            Ok(groups) => {
                let count = groups.len().to_string();
                enriched.changes.push(("groups".into(), Some(count)));
            }
            Err(_) => {
                enriched.unanswered.push("groups".into());
                enriched.cache_misses = [Question::Groups(context.event.user)].into();
            }
        }
        enriched
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        self.decided += 1;
        let user = context.event.user;
        let questions = [Question::Contacts(user), Question::BlockedBy(user)];
        let answers = questions
            .each_ref()
            .map(|it| context.directory.audience(it));
        let unanswered = questions.iter().zip(&answers).filter(|(_, it)| it.is_err());
        let unanswered: BTreeSet<_> = unanswered.map(|(question, _)| question.clone()).collect();
        if !unanswered.is_empty() {
            return Decision::CacheMiss(unanswered);
        }
        let [contacts, blocked] = answers.map(Result::unwrap);
        let reads = Reads {
            questions: questions.into(),
            ..Reads::default()
        };
        Decision::Decided(rendition(contacts.difference(&blocked)), reads)
    }

    fn redact(&mut self, context: Context<'_>, told: &Audience) -> Decision {
        let user = context.event.user;
        match context.directory.setting(user, "lastSeen") {
            Ok(_) => Decision::Decided(rendition(told.clone()), Reads::default()),
            Err(_) => Decision::CacheMiss([Question::Settings(user)].into()),
        }
    }
}

fn rendition(audience: Audience) -> Vec<Rendition> {
    vec![Rendition {
        audience,
        keys: [].into(),
        last_seen: true,
    }]
}

struct World {
    names: Arc<Names>,
    directory: Arc<Directory>,
    shard: Shard,
    rules: Asking,
    now: u64,
    out: Vec<Output>,
}

impl World {
    fn new(enriches: bool) -> Self {
        let names = Arc::new(Names::new());
        let directory = Arc::new(Directory::on_demand());
        let rules = Asking {
            enriches,
            ..Asking::default()
        };
        Self {
            shard: shard(&names, &directory),
            names,
            directory,
            rules,
            now: 10_000,
            out: Vec::new(),
        }
    }

    fn id(&self, user: &str) -> Id {
        self.names.intern(user)
    }

    fn input(&mut self, input: Input) {
        self.shard
            .handle(self.now, input, &mut self.rules, &mut self.out);
        self.wait_until(self.now);
    }

    fn wait_until(&mut self, until: u64) {
        while let Some(at) = self.shard.next_deadline()
            && at <= until
        {
            self.now = self.now.max(at);
            self.shard.advance(self.now, &mut self.rules, &mut self.out);
        }
        self.now = until;
    }

    fn says(&mut self, kind: Kind, user: &str) {
        self.now += 1;
        let body = json!({"userId": user, "connId": "c", "timestamp": self.now});
        let message = early::message(kind, &body);
        let reply = None;
        self.input(Input::Message { message, reply });
    }

    fn answer(&mut self, answers: &[(Question, Option<Answer>)]) {
        let mut edit = self.directory.edit();
        for (question, answer) in answers {
            edit.answer(question.clone(), answer.clone());
        }
        let (directory, changes) = edit.finish();
        self.directory = Arc::new(directory);
        let directory = Arc::clone(&self.directory);
        self.input(Input::Directory(directory, Arc::new(changes)));
    }

    fn contacts(&mut self, user: &str, contacts: &[&str]) {
        let user = self.id(user);
        let contacts = contacts.iter().map(|contact| self.id(contact).0);
        let contacts = Answer::users(contacts.collect());
        let nobody = Answer::users(Default::default());
        self.answer(&[
            (Question::Contacts(user), Some(contacts)),
            (Question::BlockedBy(user), Some(nobody)),
        ]);
    }

    fn groups(&mut self, user: &str, groups: &[&str]) {
        let groups = groups.iter().map(|group| Arc::from(*group)).collect();
        let question = Question::Groups(self.id(user));
        self.answer(&[(question, Some(Answer::groups(groups)))]);
    }

    fn settings(&mut self, user: &str) {
        let question = Question::Settings(self.id(user));
        self.answer(&[(question, Some(Answer::settings(Default::default())))]);
    }

    /// The publications since the last call: the type, the user, and, if present, the groups, the
    /// last-seen time and the viewers.
    fn published(&mut self) -> Vec<Value> {
        let published = self.out.drain(..).filter_map(|output| match output {
            Output::Publish(publication) => Some(publication),
            _ => None,
        });
        let bodies = published
            .filter(|it| !it.subject.as_str().starts_with("presence.events.user"))
            .map(|it| serde_json::from_slice::<Value>(&it.body).unwrap());
        bodies
            .map(|body| match body.get("reason") {
                Some(reason) if body.get("subject").is_some() => json!([reason, body["error"]]),
                _ if body.get("visibleTo").is_none() => {
                    json!([body["type"], body["userId"], body["metadata"]["groups"]])
                }
                _ => json!([
                    body["type"],
                    body["userId"],
                    body["visibleTo"],
                    body.get("lastSeen").is_some()
                ]),
            })
            .collect()
    }
}

fn settings() -> Settings {
    Settings {
        answer_wait_ms: WAIT_MS,
        retry_ms: 600_000,
        retry_ms_max: 600_000,
        tracker: presence_core::tracker::TrackerSettings {
            timeout_ms: 3_600_000,
            ..Default::default()
        },
        ..Settings::default()
    }
}

fn shard(names: &Arc<Names>, directory: &Arc<Directory>) -> Shard {
    let mut shard = Shard::new(settings(), Arc::clone(names), Arc::clone(directory));
    shard.keep_records(true);
    shard
}

#[test]
fn a_decision_waits_for_all_that_it_lacks_and_is_made_once() {
    let mut world = World::new(false);
    world.says(Kind::Connect, "ada");
    world.says(Kind::Connect, "ben");
    let ada = world.id("ada");
    let unanswered: BTreeSet<_> = [Question::Contacts(ada), Question::BlockedBy(ada)].into();
    assert!(world.out.contains(&Output::Fetch(unanswered)));
    assert_eq!(world.rules.decided, 2);
    assert!(world.shard.uses(&Question::Contacts(ada)));
    assert!(!world.shard.uses(&Question::Everyone));

    let nobody = || Some(Answer::users(Default::default()));
    world.answer(&[(Question::Everyone, nobody())]);
    world.answer(&[(Question::BlockedBy(ada), nobody())]);
    assert_eq!(world.rules.decided, 2, "not all is there");
    world.published();
    world.contacts("ada", &["cleo"]);
    assert_eq!(world.rules.decided, 3, "the other waits still");
    let online = json!(["user_online", "ada", ["cleo"], false]);
    assert_eq!(world.published(), [online]);
    assert!(world.shard.uses(&Question::BlockedBy(ada)));

    // Dropping the answer changes nothing for those who were told.
    world.answer(&[(Question::Contacts(ada), None)]);
    assert_eq!(world.published(), [Value::Null; 0]);
    world.contacts("ada", &["cleo", "dan"]);
    let online = json!(["user_online", "ada", ["dan"], false]);
    assert_eq!(world.published(), [online]);
    world.settings("ada");
    world.says(Kind::Disconnect, "ada");
    assert!(!world.shard.uses(&Question::Contacts(ada)));
}

#[test]
fn what_waited_to_be_told_first_is_no_correction_and_keeps_to_no_pace() {
    let mut world = World::new(false);
    world.input(Input::Settings(Box::new(Settings {
        corrections_per_s: 1,
        ..settings()
    })));
    let users = ["ada", "ben", "cleo"];
    for user in users {
        world.says(Kind::Connect, user);
    }
    world.published();
    let questions = users.map(|user| world.id(user));
    let questions = questions.map(|user| [Question::Contacts(user), Question::BlockedBy(user)]);
    let dan = world.id("dan").0;
    let answers = questions.into_iter().flatten().map(|question| {
        let contact = matches!(question, Question::Contacts(_)).then_some(dan);
        (question, Some(Answer::users(contact.into_iter().collect())))
    });
    let answers: Vec<_> = answers.collect();
    world.answer(&answers);
    let told = users.map(|user| json!(["user_online", user, ["dan"], false]));
    assert_eq!(world.published(), told);
    assert_eq!(world.shard.counters().corrections, 0);
}

#[test]
fn a_users_events_wait_in_their_order_and_no_other_users_do() {
    let mut world = World::new(true);
    for user in ["ada", "ben"] {
        world.contacts(user, &["cleo"]);
        world.settings(user);
    }
    world.groups("ben", &[]);
    world.says(Kind::Connect, "ada");
    world.says(Kind::Disconnect, "ada");
    world.says(Kind::Connect, "ben");
    let of_ben = [
        json!(["user_online", "ben", 0]),
        json!(["user_online", "ben", ["cleo"], false]),
    ];
    assert_eq!(world.published(), of_ben);
    assert!(world.shard.uses(&Question::Groups(world.id("ada"))));
    let asked = world.rules.enriched;
    world.groups("dan", &[]);
    assert_eq!(world.rules.enriched, asked, "that is nobody's");
    world.groups("ada", &["s", "t"]);
    let of_ada = [
        json!(["user_online", "ada", 2]),
        json!(["user_online", "ada", ["cleo"], false]),
        json!(["user_offline", "ada", 2]),
        json!(["user_offline", "ada", ["cleo"], true]),
    ];
    assert_eq!(world.published(), of_ada);
    assert_eq!(world.shard.next_deadline(), Some(world.now + 3_600_000 - 2));
}

#[test]
fn an_event_that_has_waited_bears_the_users_status_of_now() {
    let mut world = World::new(true);
    world.input(Input::Settings(Box::new(Settings {
        status: Some(presence_core::status::StatusSettings {
            min_interval_ms: 1_000,
            typing_ms: 60_000_000,
            users_max: 1_000,
        }),
        ..settings()
    })));
    world.contacts("ada", &["cleo"]);
    world.says(Kind::Connect, "ada");
    let body = json!({
        "userId": "ada",
        "connId": "c",
        "timestamp": world.now,
        "metadata": {"activity": "typing"},
    });
    let message = early::message(Kind::Heartbeat, &body);
    let reply = None;
    world.input(Input::Message { message, reply });
    world.groups("ada", &[]);
    let announced = world.out.iter().find_map(|output| match output {
        Output::Publish(publication) => serde_json::from_slice::<Value>(&publication.body).ok(),
        _ => None,
    });
    let expected = json!({"connId": "c", "activity": "typing", "groups": 0});
    assert_eq!(announced.unwrap()["metadata"], expected);
    assert_eq!(world.published().len(), 2, "no update beside it");
}

#[test]
fn what_has_waited_for_long_enough_goes_on_without_the_enricher() {
    let mut world = World::new(true);
    world.contacts("ada", &["cleo"]);
    world.says(Kind::Connect, "ada");
    world.wait_until(world.now + WAIT_MS - 1);
    assert_eq!(world.published(), [Value::Null; 0]);
    world.wait_until(world.now + 1);
    let error = "plugin `groups`: the directory did not answer in time";
    let expected = [
        json!(["plugin-failed", error]),
        json!(["user_online", "ada", null]),
        json!(["user_online", "ada", ["cleo"], false]),
    ];
    assert_eq!(world.published(), expected);
}

#[test]
fn the_told_wait_for_the_redactor_and_get_the_bare_offline_in_the_end() {
    let mut world = World::new(false);
    for user in ["ada", "ben"] {
        world.contacts(user, &["cleo"]);
        world.says(Kind::Connect, user);
    }
    world.says(Kind::Disconnect, "ada");
    world.says(Kind::Disconnect, "ben");
    world.says(Kind::Connect, "ben");
    world.published();
    assert_eq!(world.shard.online_users(), 0);
    let (ben, cleo) = (world.id("ben").0, world.id("cleo").0);
    assert!(world.shard.ids().contains(ben) && world.shard.ids().contains(cleo));
    world.settings("ada");
    let shown = json!(["user_offline", "ada", ["cleo"], true]);
    assert_eq!(world.published(), [shown]);
    world.wait_until(world.now + WAIT_MS);
    // Later events are told after it.
    let expected = [
        json!(["user_offline", "ben", ["cleo"], false]),
        json!(["user_online", "ben", null]),
        json!(["user_online", "ben", ["cleo"], false]),
    ];
    assert_eq!(world.published(), expected);
}

#[test]
fn another_generation_of_the_rules_may_need_no_answer() {
    let mut world = World::new(true);
    world.says(Kind::Connect, "ada");
    assert_eq!(world.published(), [Value::Null; 0]);
    world.rules.enriches = false;
    world.input(Input::Rules);
    assert_eq!(world.published(), [json!(["user_online", "ada", null])]);
}

#[test]
fn given_up_everything_goes_on_at_once() {
    let mut world = World::new(true);
    world.contacts("ada", &["cleo"]);
    world.says(Kind::Connect, "ada");
    world.says(Kind::Disconnect, "ada");
    let World {
        shard, rules, out, ..
    } = &mut world;
    shard.give_up(0, rules, out);
    let types: Vec<_> = world.published().iter().map(|it| it[0].clone()).collect();
    let expected = [
        "plugin-failed",
        "user_online",
        "user_online",
        "plugin-failed",
        "user_offline",
        "user_offline",
    ];
    assert_eq!(types, expected);
}

#[test]
fn what_waits_outlives_a_restart() {
    let mut world = World::new(true);
    world.contacts("ada", &["cleo"]);
    world.groups("ada", &["t"]);
    world.says(Kind::Connect, "ada");
    world.says(Kind::Disconnect, "ada");
    world.answer(&[(Question::Groups(world.id("ada")), None)]);
    world.says(Kind::Connect, "ada");
    world.says(Kind::Connect, "ben");
    world.published();
    let mut stored = std::collections::BTreeMap::new();
    for record in world.shard.take_records(1) {
        let (key, value) = record.encode(&world.names);
        stored.insert(key, value);
    }
    assert!(!world.shard.ids().is_empty());

    let mut after = World::new(true);
    after.now = world.now + 60_000;
    let records = stored.iter().filter_map(|(key, value)| {
        let value = value.as_ref()?;
        Some(Record::decode(key, value, &after.names).unwrap())
    });
    let records: Vec<_> = records.collect();
    after.shard.restore(after.now, 60_000, records);
    after.wait_until(after.now);
    assert_eq!(after.published(), [Value::Null; 0]);
    after.contacts("ada", &["dan"]);
    after.groups("ada", &["t"]);
    after.settings("ada");
    let expected = [
        json!(["user_offline", "ada", ["cleo"], true]),
        json!(["user_online", "ada", 1]),
        json!(["user_online", "ada", ["dan"], false]),
    ];
    assert_eq!(after.published(), expected);
    after.groups("ben", &[]);
    assert_eq!(after.published(), [json!(["user_online", "ben", 0])]);
    // Once told, it is no longer stored.
    let records = after.shard.take_records(1);
    let waits = |record: &&Record| matches!(record, Record::Waiting { .. });
    for record in records.iter().filter(waits) {
        assert_eq!(record.encode(&after.names).1, None);
    }
    assert_eq!(records.iter().filter(waits).count(), 2);
}
