//! Statuses, as scripts: each line is what a connection says, and what is told because of it. They
//! cover the merge over devices, the order of messages, expiry, the interval between updates, and
//! who is told.

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
use presence_core::directory::{Directory, Question};
use presence_core::message::Kind;
use presence_core::names::Names;
use presence_core::publish::Subject;
use presence_core::rules::{Context, Decision, Enriched, Failure, Reads, Rendition, Rules};
use presence_core::{Input, Output, Settings, Shard, status, tracker};
use serde_json::{Value, json};

/// Contacts may see a user, and all but `plain` their status. With `hide_idle`, nobody sees a user
/// who is idle.
#[derive(Default)]
struct Rule {
    failing: bool,
    hide_idle: bool,
    enriched: usize,
}

impl Rules for Rule {
    fn enrich(&mut self, _: Context<'_>) -> Enriched {
        self.enriched += 1;
        Enriched {
            changes: vec![("class".into(), Some("1".into()))],
            ..Enriched::default()
        }
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        if self.failing {
            return Decision::Failed(failure());
        }
        let question = Question::Contacts(context.event.user);
        let idle = context.event.metadata.get("activity") == Some("\"idle\"");
        let contacts = match idle && self.hide_idle {
            true => Audience::nobody(),
            false => context.directory.audience(&question).unwrap(),
        };
        let plain: Audience = [context.names.intern("plain")].into_iter().collect();
        let reads = Reads {
            questions: BTreeSet::from([question]),
            keys: BTreeSet::from(["activity".into()]),
            ..Reads::default()
        };
        let renditions = vec![
            rendition(contacts.intersection(&plain), &["class"]),
            rendition(
                contacts.difference(&plain),
                &["class", "activity", "status"],
            ),
        ];
        Decision::Decided(renditions, reads)
    }

    fn redact(&mut self, _: Context<'_>, told: &Audience) -> Decision {
        Decision::Decided(vec![rendition(told.clone(), &[])], Reads::default())
    }
}

fn rendition(audience: Audience, keys: &[&str]) -> Rendition {
    Rendition {
        audience,
        keys: keys.iter().map(|key| (*key).into()).collect(),
        last_seen: true,
    }
}

fn failure() -> Failure {
    Failure {
        plugin: "rule".into(),
        error: "told to fail".into(),
    }
}

struct World {
    shard: Shard,
    rules: Rule,
    now: u64,
}

fn settings(min_interval_ms: Option<u64>, grace_ms: u64) -> Settings {
    Settings {
        tracker: tracker::TrackerSettings {
            timeout_ms: 30_000,
            grace_ms,
            ..tracker::TrackerSettings::default()
        },
        status: min_interval_ms.map(|min_interval_ms| status::StatusSettings {
            min_interval_ms,
            typing_ms: 60_000,
            users_max: 1_000,
        }),
        ..Settings::default()
    }
}

impl World {
    /// `ann` is visible to `ben` and `plain`.
    fn new(min_interval_ms: Option<u64>, grace_ms: u64) -> Self {
        let names = Arc::new(Names::new());
        let mut edit = Directory::new().edit();
        let contacts = ["ben", "plain"].map(|name| names.intern(name).0);
        edit.contacts(names.intern("ann"), Some(contacts.into_iter().collect()));
        let directory = Arc::new(edit.finish().0);
        Self {
            shard: Shard::new(settings(min_interval_ms, grace_ms), names, directory),
            rules: Rule::default(),
            now: 1_000,
        }
    }

    fn input(&mut self, input: Input) -> Vec<(String, Value)> {
        let mut out = Vec::new();
        self.shard
            .handle(self.now, input, &mut self.rules, &mut out);
        self.shard.advance(self.now, &mut self.rules, &mut out);
        published(out)
    }

    fn message(&mut self, kind: Kind, body: &Value) -> Vec<(String, Value)> {
        let message = early::message(kind, body);
        self.input(Input::Message {
            message,
            reply: None,
        })
    }

    /// Does all work that is due up to a time, each at its time.
    fn wait(&mut self, until: u64) -> Vec<(String, Value)> {
        let mut out = Vec::new();
        while let Some(at) = self.shard.next_deadline()
            && at <= until
        {
            self.now = self.now.max(at);
            self.shard.advance(self.now, &mut self.rules, &mut out);
        }
        self.now = until;
        published(out)
    }

    /// Ann's connection `conn` sends this metadata, with the timestamp `at`.
    fn says(&mut self, kind: Kind, conn: &str, at: u64, metadata: Value) -> Vec<(String, Value)> {
        let body = json!({"userId": "ann", "connId": conn, "timestamp": at, "metadata": metadata});
        self.message(kind, &body)
    }

    /// Runs a line: `1000 connect web active`, `2000 wait`, and so on.
    fn line(&mut self, line: &str) -> Vec<(String, Value)> {
        let words: Vec<_> = line.split_whitespace().collect();
        let at: u64 = words[0].parse().unwrap();
        let mut told = self.wait(at - 1);
        self.now = at;
        let sent = |word: &str| word.strip_prefix("sent=").map(|at| at.parse().unwrap());
        let timestamp = words.iter().find_map(|word| sent(word)).unwrap_or(at);
        let metadata = words[2..]
            .iter()
            .filter_map(|word| word.split_once('='))
            .find(|(key, _)| *key != "sent");
        let metadata = match metadata {
            Some((key, value)) => json!({key: serde_json::from_str::<Value>(value).unwrap()}),
            None => json!({}),
        };
        told.extend(match words[1..] {
            ["connect", conn, ..] => self.says(Kind::Connect, conn, timestamp, metadata),
            ["heartbeat", conn, ..] => self.says(Kind::Heartbeat, conn, timestamp, metadata),
            ["disconnect", conn, ..] => self.says(Kind::Disconnect, conn, timestamp, json!({})),
            ["wait"] => self.wait(at),
            _ => panic!("what is `{line}`?"),
        });
        told
    }

    /// Runs a script. In each line, what is told to Ben because of it is behind `|`.
    fn run(&mut self, script: &str) {
        for line in script.lines().map(str::trim).filter(|it| !it.is_empty()) {
            let (line, expected) = line.split_once('|').unwrap();
            let told = self.line(line);
            let told: Vec<_> = told.iter().filter_map(to_ben).collect();
            assert_eq!(told.join(", "), expected.trim(), "of `{line}`");
        }
    }
}

/// A filtered message to Ben, abbreviated.
fn to_ben((subject, body): &(String, Value)) -> Option<String> {
    let kind = subject.strip_prefix("presence.filtered.user_")?;
    let viewers = body["visibleTo"].as_array()?;
    if !viewers.contains(&"ben".into()) {
        return None;
    }
    let status = |key: &str| match &body["metadata"][key] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        status => status["text"].as_str().unwrap_or("?").to_owned(),
    };
    let at = &body["timestamp"];
    Some(match kind {
        "offline" => format!("{at} offline"),
        _ => format!("{at} {kind} {} {}", status("activity"), status("status")),
    })
}

fn published(out: Vec<Output>) -> Vec<(String, Value)> {
    let published = out.into_iter().filter_map(|output| match output {
        Output::Publish(publication) => {
            let body = serde_json::from_slice(&publication.body).unwrap();
            Some((publication.subject.as_str().to_owned(), body))
        }
        _ => None,
    });
    published.collect()
}

fn subjects(published: &[(String, Value)]) -> Vec<&str> {
    let subjects = published.iter().map(|(subject, _)| subject.as_str());
    subjects.collect()
}

#[test]
fn who_is_active_anywhere_is_active_and_who_types_anywhere_types() {
    World::new(Some(0), 0).run(
        r#"
        1000 connect web activity="idle"         | 1000 online idle -
        1001 connect phone                       |
        1002 heartbeat phone activity="active"   | 1002 updated active -
        1003 heartbeat web activity="idle"       |
        1004 heartbeat web activity="typing"     | 1004 updated typing -
        1005 heartbeat phone activity="idle"     |
        1006 heartbeat web                       |
        1007 heartbeat web activity="active"     | 1007 updated active -
        1008 disconnect web                      | 1008 updated idle -
        1009 heartbeat phone activity="dancing"  |
        1010 heartbeat phone activity=7          |
        1011 disconnect phone                    | 1011 offline
        1012 connect phone                       | 1012 online - -
        "#,
    );
}

#[test]
fn what_a_connect_says_counts_though_a_heartbeat_overtakes_it() {
    World::new(Some(0), 0).run(
        r#"
        1000 connect web                                    | 1000 online - -
        1500 heartbeat phone                                |
        1501 connect phone sent=1400 activity="idle"        | 1501 updated idle -
        1502 heartbeat phone sent=1450 activity="active"    |
        2000 disconnect phone                               | 2000 updated - -
        2500 connect phone                                  |
        2501 heartbeat phone sent=1999 activity="typing"    |
        "#,
    );
}

#[test]
fn who_connects_after_an_application_has_said_so_is_shown_with_the_status_at_once() {
    let mut world = World::new(Some(1_000), 0);
    let stated = json!({"userId": "ann", "timestamp": 1_000, "metadata": {"device": "bot"}});
    let told = world.message(Kind::Online, &stated);
    assert_eq!(
        told.iter().filter_map(to_ben).collect::<Vec<_>>(),
        ["1000 online - -"]
    );
    world.now = 1_100;
    let said = json!({"activity": "idle", "status": {"text": "away"}});
    let told = world.says(Kind::Connect, "c1", 1_100, said.clone());
    assert_eq!(
        told.iter().filter_map(to_ben).collect::<Vec<_>>(),
        ["1100 updated idle away"]
    );
    let online = told
        .iter()
        .find(|(subject, _)| subject == "presence.events.user_online");
    let (_, online) = online.unwrap();
    assert_eq!(online["metadata"]["status"], said["status"]);
    // A change soon after that waits.
    world.now = 1_200;
    let told = world.says(Kind::Heartbeat, "c1", 1_200, json!({"activity": "active"}));
    assert_eq!(told.iter().filter_map(to_ben).count(), 0);
    let told = world.wait(2_200);
    assert_eq!(
        told.iter().filter_map(to_ben).collect::<Vec<_>>(),
        ["2100 updated active away"]
    );
}

#[test]
fn what_a_connection_said_ends_with_it_and_late_words_count_for_nothing() {
    World::new(Some(0), 0).run(
        r#"
        1000 connect web                                    | 1000 online - -
        1500 connect phone activity="typing"                | 1500 updated typing -
        9000 heartbeat web activity="idle"                  |
        9001 heartbeat web sent=8000 activity="active"      |
        31499 wait                                          |
        31500 wait                                          | 31500 updated idle -
        31501 heartbeat phone sent=1400 activity="typing"   |
        31502 heartbeat phone activity="active"             | 31502 updated active -
        31503 disconnect phone                              | 31503 updated idle -
        31504 heartbeat phone sent=31502 activity="typing"  |
        "#,
    );
}

#[test]
fn the_newest_status_holds_until_it_expires_and_outlives_its_connection() {
    World::new(Some(0), 0).run(
        r#"
        1000 connect web                                                  | 1000 online - -
        1001 connect phone status={"text":"lunch"}                        | 1001 updated - lunch
        1002 disconnect phone                                             |
        1003 heartbeat web status={"text":"busy","expiresAt":1500}        | 1003 updated - busy
        1004 heartbeat web sent=1002 status={"text":"late"}               |
        1499 wait                                                         |
        1500 wait                                                         | 1500 updated - -
        1501 heartbeat web status={"text":"back","expiresAt":1400}        |
        1502 heartbeat web status={"text":"back"}                         | 1502 updated - back
        1503 heartbeat web status={"text":"back"}                         |
        1504 heartbeat web status=null                                    | 1504 updated - -
        1505 heartbeat web status={"text":"x","expiresAt":2000}           | 1505 updated - x
        1506 disconnect web                                               | 1506 offline
        2001 connect web                                                  | 2001 online - -
        "#,
    );
}

#[test]
fn what_is_no_status_changes_nothing_and_is_counted() {
    let mut world = World::new(Some(0), 0);
    world.run(
        r#"
        1000 connect web status={"text":"here"}   | 1000 online - here
        1001 heartbeat web status="here"          |
        1002 heartbeat web status={}              |
        1003 heartbeat web status={"text":7}      |
        1004 heartbeat web status=["x",null]      |
        1005 heartbeat web status={"text":"x","expiresAt":0}    |
        1006 heartbeat web status={"text":"x","expiresAt":-1}   |
        1007 heartbeat web status={"text":"x","expiresAt":"1"}  |
        1008 heartbeat web activity=null          |
        "#,
    );
    let mut say = |bytes: usize| {
        world.now += 1;
        let status = json!({"status": {"text": "é".repeat(bytes / 2)}});
        let told = world.says(Kind::Heartbeat, "web", world.now, status);
        (told.len(), world.shard.counters().unknown_statuses)
    };
    assert_eq!(say(258), (0, 9));
    assert_eq!(say(256), (2, 9));
    assert_eq!(
        world.shard.counters().dead_letters.iter().sum::<u64>(),
        0,
        "it is no dead letter"
    );
}

#[test]
fn what_changes_too_soon_is_told_together_when_the_interval_is_over() {
    World::new(Some(1_000), 0).run(
        r#"
        1000 connect web                           | 1000 online - -
        1100 heartbeat web activity="active"       | 1100 updated active -
        1200 heartbeat web activity="typing"       |
        1300 heartbeat web status={"text":"busy"}  |
        2099 wait                                  |
        2100 wait                                  | 2100 updated typing busy
        2200 heartbeat web activity="idle"         |
        2300 heartbeat web activity="typing"       |
        5000 wait                                  |
        5001 heartbeat web activity="active"       | 5001 updated active busy
        5002 heartbeat web status={"text":"x","expiresAt":5500}  |
        6000 heartbeat web activity="typing"       |
        6001 wait                                  | 6001 updated typing -
        6002 heartbeat web activity="idle"         |
        6003 disconnect web                        | 6003 offline
        7500 connect web                           | 7500 online - -
        "#,
    );
}

#[test]
fn in_a_grace_all_stays_as_it_was_said_until_somebody_is_there_again() {
    World::new(Some(0), 5_000).run(
        r#"
        1000 connect web activity="typing"                        | 1000 online typing -
        1001 heartbeat web status={"text":"x","expiresAt":3000}   | 1001 updated typing x
        2000 disconnect web                                       |
        3000 wait                                                 | 3000 updated typing -
        4000 connect phone activity="typing"                      |
        5000 disconnect phone                                     |
        6000 connect tv                                           | 6000 updated - -
        "#,
    );
}

#[test]
fn an_update_is_broadcast_and_told_to_those_who_see_a_difference() {
    let mut world = World::new(Some(0), 0);
    world.says(Kind::Connect, "web", 1_000, json!({"device": "web"}));
    world.now = 1_500;
    let status = json!({"activity": "active",
        "status": {"text": "a \"b\"", "emoji": "x", "expiresAt": 9_000}});
    let told = world.says(Kind::Heartbeat, "web", 1_400, status);
    let status = json!({"text": "a \"b\"", "expiresAt": 9_000});
    let event = json!({"type": "user_updated", "userId": "ann", "timestamp": 1_500,
        "metadata": {"device": "web", "connId": "web", "class": 1,
            "activity": "active", "status": status}});
    let filtered = json!({"type": "user_updated", "userId": "ann", "timestamp": 1_500,
        "visibleTo": ["ben"], "metadata": {"class": 1, "activity": "active", "status": status}});
    let expected = [
        (Subject::Updated.as_str().to_owned(), event),
        (Subject::FilteredUpdated.as_str().to_owned(), filtered),
    ];
    assert_eq!(told, expected);
    assert_eq!(world.rules.enriched, 1, "the enrichers aren't asked again");
}

#[test]
fn what_would_be_too_long_with_its_status_stays_as_it_was() {
    let mut world = World::new(Some(0), 0);
    world.run("1000 connect web | 1000 online - -");
    world.input(Input::BodyBytesMax(300));
    world.now = 1_001;
    let status = json!({"status": {"text": "x".repeat(250)}});
    let told = world.says(Kind::Heartbeat, "web", 1_001, status);
    assert_eq!(subjects(&told), ["presence.dlq"]);
    let (subject, reason) = (&told[0].1["subject"], &told[0].1["reason"]);
    assert_eq!(
        (subject, reason),
        (&"presence.events.user_updated".into(), &"too-large".into())
    );
    world.run(r#"1002 heartbeat web status={"text":"x"} | 1002 updated - x"#);
}

#[test]
fn many_are_looked_at_in_turns() {
    let mut world = World::new(Some(0), 0);
    let users: Vec<_> = (0..600).map(|number| format!("user-{number}")).collect();
    for user in &users {
        let body = json!({"userId": user, "connId": "c", "timestamp": 1_000,
            "metadata": {"status": {"text": "x", "expiresAt": 2_000}}});
        world.message(Kind::Connect, &body);
    }
    let mut turns = Vec::new();
    world.now = 2_000;
    while world.shard.next_deadline() == Some(2_000) {
        let mut out = Vec::new();
        world.shard.advance(2_000, &mut world.rules, &mut out);
        turns.push(out.len());
    }
    assert_eq!(turns, [256, 256, 88]);
}

#[test]
fn a_rule_that_reads_the_activity_decides_again() {
    let mut world = World::new(Some(0), 0);
    world.rules.hide_idle = true;
    world.run(
        r#"
        1000 connect web activity="active"      | 1000 online active -
        1001 heartbeat web activity="id\u006ce" | 1001 offline
        1002 heartbeat web activity="typing"    | 1000 online typing -
        1003 heartbeat web activity="active"    | 1003 updated active -
        "#,
    );
}

#[test]
fn a_pending_decision_tells_nobody_and_then_what_holds_by_then() {
    let mut world = World::new(Some(0), 0);
    world.run(r#"1000 connect web activity="active" | 1000 online active -"#);
    world.rules.failing = true;
    let told = world.line(r#"1001 heartbeat web activity="idle""#);
    assert_eq!(subjects(&told), [Subject::Updated.as_str(), "presence.dlq"]);
    let told = world.line(r#"1002 heartbeat web activity="typing""#);
    assert_eq!(subjects(&told), [Subject::Updated.as_str()]);
    world.rules.failing = false;
    world.run("2000 wait |\n 2001 wait | 1002 updated typing -");

    // If a value is again as it was shown, nobody is told.
    world.rules.failing = true;
    world.line(r#"3000 heartbeat web activity="idle""#);
    world.line(r#"3001 heartbeat web activity="typing""#);
    world.rules.failing = false;
    world.run("9000 wait |");
}

#[test]
fn turned_off_it_takes_back_what_was_told_and_keeps_silent() {
    let mut world = World::new(Some(60_000), 0);
    world.run(
        r#"
        1000 connect web                                     | 1000 online - -
        1001 heartbeat web status={"text":"busy"}            | 1001 updated - busy
        1002 heartbeat web activity="typing"                 |
        "#,
    );
    world.now = 1_003;
    let told = world.input(Input::Settings(Box::new(settings(None, 0))));
    let told: Vec<_> = told.iter().filter_map(to_ben).collect();
    assert_eq!(told, ["1003 updated - -"]);
    let mut world = World::new(None, 0);
    world.run(
        r#"
        1000 connect web activity="active"        | 1000 online - -
        1001 heartbeat web status={"text":"x"}    |
        1002 heartbeat web activity=7             |
        "#,
    );
    assert_eq!(world.shard.counters().unknown_statuses, 0);
}

#[test]
fn an_application_does_not_change_what_connections_say() {
    let mut world = World::new(Some(0), 0);
    let online = json!({"userId": "ann", "timestamp": 999, "metadata": {"activity": "away"}});
    // For a user without connections, the statement's metadata is shown.
    let told = world.message(Kind::Online, &online);
    assert_eq!(told.iter().find_map(to_ben).unwrap(), "999 online away -");
    world.run(r#"1000 connect web activity="active" | 1000 updated active -"#);
    let offline = json!({"userId": "ann", "timestamp": 1_001});
    world.message(Kind::Offline, &offline);
    let told = world.message(Kind::Online, &online);
    assert_eq!(told.iter().find_map(to_ben).unwrap(), "999 online active -");
    let told = world.message(Kind::Online, &online);
    assert_eq!(subjects(&told), ["presence.events"]);
    world.run(r#"1005 heartbeat web activity="idle" | 1005 updated idle -"#);
}

#[test]
fn an_update_lets_nobody_gain_sight_before_their_turn_in_a_correction() {
    let mut world = World::new(Some(0), 0);
    world.run(r#"1000 connect web activity="idle" | 1000 online idle -"#);
    let paced = Settings {
        corrections_per_s: 1,
        ..settings(Some(0), 0)
    };
    world.input(Input::Settings(Box::new(paced)));
    // The losses use up the rate: there is one message for each rendition.
    world.rules.hide_idle = true;
    let told = world.input(Input::Rules);
    assert_eq!(subjects(&told), [Subject::FilteredOffline.as_str(); 2]);
    world.rules.hide_idle = false;
    assert_eq!(world.input(Input::Rules), []);
    world.run(
        r#"
        1001 heartbeat web activity="typing" |
        2899 wait                            |
        2900 wait                            | 1000 online typing -
        "#,
    );
}
