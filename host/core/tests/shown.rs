//! What is shown of a user when another of their connections becomes the shown one: what is told
//! about that, when, and which metadata the rules see.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod early;

use std::collections::BTreeMap;
use std::sync::Arc;

use presence_core::audience::Audience;
use presence_core::directory::Directory;
use presence_core::message::Kind;
use presence_core::names::Names;
use presence_core::record::Record;
use presence_core::rules::{Context, Decision, Enriched, Reads, Rendition, Rules};
use presence_core::share::Assignment;
use presence_core::{Input, Output, Settings, Shard, status};
use serde_json::{Value, json};

const MIN_INTERVAL_MS: u64 = 1_000;

/// Ben may see everything of a user, unless their location is "hidden". The enricher sets the keys
/// that a connection lists under "class", in that order.
#[derive(Default)]
struct Rule {
    /// The location that the rule was last asked about.
    location: String,
    /// The place that the enricher sets for everyone, if it does.
    place: Option<&'static str>,
}

impl Rules for Rule {
    fn enrich(&mut self, context: Context<'_>) -> Enriched {
        let class = context.event.metadata.get("class").unwrap_or("[]");
        let class: Vec<String> = serde_json::from_str(class).unwrap();
        let changes = class
            .into_iter()
            .map(|key| (key.clone(), Some(json!(key).to_string())));
        let place = self.place.map(|it| json!(it).to_string());
        let changes = changes.chain(place.map(|it| ("location".into(), Some(it))));
        Enriched {
            changes: changes.collect(),
            ..Enriched::default()
        }
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        let location = context.event.metadata.get("location").unwrap();
        let hidden = location == "\"hidden\"";
        self.location = location.to_owned();
        let ben = (!hidden).then(|| context.names.intern("ben"));
        let reads = Reads {
            all_metadata: true,
            ..Reads::default()
        };
        Decision::Decided(vec![rendition(ben.into_iter().collect())], reads)
    }

    fn redact(&mut self, _: Context<'_>, told: &Audience) -> Decision {
        Decision::Decided(vec![rendition(told.clone())], Reads::default())
    }
}

fn rendition(audience: Audience) -> Rendition {
    let keys = ["location", "connId", "a", "b", &"long".repeat(100)];
    Rendition {
        audience,
        keys: keys.iter().map(|key| (*key).into()).collect(),
        last_seen: true,
    }
}

struct World {
    shard: Shard,
    names: Arc<Names>,
    rule: Rule,
    now: u64,
}

impl World {
    fn new(statuses: bool) -> Self {
        Self::with(Names::new(), statuses)
    }

    fn with(names: Names, statuses: bool) -> Self {
        let names = Arc::new(names);
        let directory = Arc::new(Directory::new());
        Self {
            shard: Shard::new(settings(statuses), Arc::clone(&names), directory),
            names,
            rule: Rule::default(),
            now: 0,
        }
    }

    /// Does all work that is due up to a time, and then handles an input.
    fn input(&mut self, at: u64, input: Option<Input>) -> Vec<String> {
        let mut out = Vec::new();
        while let Some(due) = self.shard.next_deadline()
            && due <= at
        {
            self.now = self.now.max(due);
            self.shard.advance(self.now, &mut self.rule, &mut out);
        }
        self.now = at;
        if let Some(input) = input {
            self.shard.handle(at, input, &mut self.rule, &mut out);
        }
        out.into_iter().filter_map(in_short).collect()
    }

    fn connect(&mut self, at: u64, conn: &str, metadata: Value) -> Vec<String> {
        self.says(Kind::Connect, at, conn, metadata)
    }

    fn disconnect(&mut self, at: u64, conn: &str) -> Vec<String> {
        self.says(Kind::Disconnect, at, conn, json!({}))
    }

    fn wait(&mut self, at: u64) -> Vec<String> {
        self.input(at, None)
    }

    fn says(&mut self, kind: Kind, at: u64, conn: &str, metadata: Value) -> Vec<String> {
        let body = json!({"userId": "ann", "connId": conn, "timestamp": at, "metadata": metadata});
        let message = early::message(kind, &body);
        let reply = None;
        self.input(at, Some(Input::Message { message, reply }))
    }

    /// The location that the rules were last asked about.
    fn location(&self) -> &str {
        &self.rule.location
    }
}

fn settings(statuses: bool) -> Settings {
    Settings {
        broadcast: vec!["location".into()],
        status: statuses.then_some(status::StatusSettings {
            min_interval_ms: MIN_INTERVAL_MS,
            typing_ms: 10_000,
            users_max: 1_000,
        }),
        ..Settings::default()
    }
}

/// Abbreviates an output: `updated home` is broadcast; `ben: updated home` is told to Ben.
fn in_short(output: Output) -> Option<String> {
    let Output::Publish(publication) = output else {
        return None;
    };
    let body: Value = serde_json::from_slice(&publication.body).unwrap();
    let subject = publication.subject.as_str();
    let location = match &body["metadata"]["location"] {
        Value::String(location) => format!(" {location}"),
        Value::Null => String::new(),
        _ => " {}".to_owned(),
    };
    Some(match subject.rsplit_once("user_") {
        Some((to, what)) if to.contains("filtered") => format!("ben: {what}{location}"),
        Some((_, what)) => format!("{what}{location}"),
        None if subject == "presence.dlq" => format!("dead letter: {}", body["reason"]),
        None => return None,
    })
}

fn at(location: &str) -> Value {
    json!({"location": location})
}

#[test]
fn a_connection_that_says_the_same_in_another_order_is_no_news() {
    for statuses in [true, false] {
        let mut world = World::new(statuses);
        let place = json!({"city": "Ulm", "at": {"lat": 48, "lon": 10}});
        let told = world.connect(1, "web", json!({"location": place, "class": ["a", "b"]}));
        assert_eq!(told, ["online {}", "ben: online {}"]);
        // A connection with the same metadata, written in another order.
        let place: Value =
            serde_json::from_str(r#"{"at": {"lon": 10, "lat": 48}, "city": "Ulm"}"#).unwrap();
        let metadata = json!({"location": place, "class": ["b", "a"]});
        let mut told = world.connect(2, "phone", metadata);
        told.extend(world.disconnect(3, "web"));
        told.extend(world.wait(5_000));
        assert!(told.is_empty(), "{statuses} {told:?}");
    }
}

#[test]
fn a_connection_that_differs_in_what_is_for_the_rules_alone_is_no_news() {
    for statuses in [true, false] {
        let mut world = World::new(statuses);
        world.connect(1, "web", json!({"location": "home", "ip": "::1"}));
        let mut told = world.connect(2, "phone", json!({"location": "home", "ip": "::2"}));
        told.extend(world.disconnect(3, "web"));
        told.extend(world.wait(5_000));
        assert!(told.is_empty(), "{statuses} {told:?}");
        let shown = world.shard.shown("ann").unwrap();
        assert_eq!(shown.get("ip"), Some("\"::2\""), "rules go by it");
    }
}

#[test]
fn rules_go_by_the_connection_that_is_shown_though_it_is_told_later() {
    let mut world = World::new(true);
    world.connect(1, "web", at("home"));
    let told = world.connect(100, "phone", at("bus"));
    assert_eq!(told, ["updated bus", "ben: updated bus"]);
    let told = world.connect(200, "tablet", at("hidden"));
    assert_eq!(told, ["ben: offline"], "who must not see the user any more");
    assert_eq!(world.location(), "\"hidden\"");
    assert_eq!(world.wait(1_099), Vec::<String>::new());
    assert_eq!(world.wait(1_100), ["updated hidden"]);
    // Viewers who gain sight, and viewers who see a difference, are told then.
    assert_eq!(world.disconnect(1_200, "tablet"), Vec::<String>::new());
    assert_eq!(world.location(), "\"bus\"");
    assert_eq!(world.wait(2_100), ["updated bus", "ben: online bus"]);
    // A change back to what was last told needn't wait.
    world.disconnect(2_200, "phone");
    assert_eq!(world.location(), "\"home\"");
    assert_eq!(
        world.connect(2_300, "phone", at("bus")),
        Vec::<String>::new()
    );
    assert_eq!(world.wait(9_000), Vec::<String>::new());
}

#[test]
fn who_lost_sight_meanwhile_has_it_again_with_what_was_told_last() {
    let mut world = World::new(true);
    world.connect(1, "web", at("home"));
    world.connect(100, "phone", at("bus"));
    assert_eq!(world.connect(200, "tablet", at("hidden")), ["ben: offline"]);
    assert_eq!(world.disconnect(300, "tablet"), ["ben: online bus"]);
    assert_eq!(world.wait(9_000), Vec::<String>::new());
}

#[test]
fn what_was_still_to_be_told_is_told_after_a_restart() {
    let mut world = World::new(true);
    world.shard.keep_records(true);
    world.connect(1, "web", at("home"));
    world.connect(100, "phone", at("bus"));
    world.disconnect(200, "phone");
    let names = Names::new();
    let records = world.shard.take_records(1).into_iter();
    let stored: BTreeMap<_, _> = records.map(|it| it.encode(&world.names)).collect();
    let stored = stored.iter().filter_map(|(key, value)| {
        let value = value.as_ref()?;
        Some(Record::decode(key, value, &names).unwrap())
    });
    let stored: Vec<_> = stored.collect();
    let mut world = World::with(names, true);
    world.shard.restore(300, 0, stored);
    assert_eq!(world.wait(300), ["updated home", "ben: updated home"]);
    assert_eq!(world.wait(9_000), Vec::<String>::new());
}

#[test]
fn a_user_who_goes_meanwhile_is_told_to_be_gone_and_nothing_else() {
    let mut world = World::new(true);
    world.connect(1, "web", at("home"));
    world.connect(100, "phone", at("bus"));
    world.disconnect(200, "phone");
    assert_eq!(world.disconnect(300, "web"), ["offline", "ben: offline"]);
    assert_eq!(world.wait(9_000), Vec::<String>::new());
}

#[test]
fn a_connection_that_is_gone_is_not_shown_though_the_next_is_too_large_to_be_told() {
    for statuses in [true, false] {
        let mut world = World::new(statuses);
        world.connect(
            1,
            "old",
            json!({"location": "home", "class": ["long".repeat(100)]}),
        );
        world.connect(2, "new", at("bus"));
        world.disconnect(1_500, "new");
        // Now the body limit leaves no room for what the enricher sets.
        world.input(1_600, Some(Input::BodyBytesMax(400)));
        world.connect(1_700, "new", at("bus"));
        let told = world.disconnect(5_000, if statuses { "new" } else { "old" });
        assert!(!told.is_empty());
        let left = if statuses { "\"home\"" } else { "\"bus\"" };
        assert_eq!(world.location(), left);
        assert_eq!(
            told.iter().any(|it| it.contains("too-large")),
            statuses,
            "{told:?}"
        );
    }
    // The same holds where the metadata is too large by itself.
    let mut world = World::new(true);
    let place = "far ".repeat(100);
    world.connect(1, "old", at(&place));
    world.connect(2, "new", at("bus"));
    world.input(1_600, Some(Input::BodyBytesMax(400)));
    let told = world.disconnect(5_000, "new");
    assert_eq!(told[0], "dead letter: \"too-large\"");
    assert_eq!(world.location(), json!(place).to_string());
}

#[test]
fn once_statuses_are_told_the_newest_connection_is_shown() {
    let mut world = World::new(false);
    for (number, conn) in ["web", "phone", "tablet"].into_iter().enumerate() {
        world.connect(1 + number as u64, conn, at(conn));
    }
    assert_eq!(world.location(), "\"web\"");
    let mut told = world.input(5, Some(Input::Settings(Box::new(settings(true)))));
    told.extend(world.wait(5));
    assert_eq!(told, ["updated tablet", "ben: updated tablet"]);
    // From here on, connections are ordered by when they came.
    world.disconnect(5_000, "tablet");
    assert_eq!(world.location(), "\"phone\"");
    world.disconnect(10_000, "phone");
    assert_eq!(world.location(), "\"web\"");
    // Statuses are disabled again.
    world.input(15_000, Some(Input::Settings(Box::new(settings(false)))));
    assert_eq!(
        world.connect(15_001, "phone", at("phone")),
        Vec::<String>::new()
    );
    assert_eq!(world.location(), "\"web\"");
}

#[test]
fn who_comes_back_after_an_applications_offline_is_shown_by_the_newest_connection() {
    let mut world = World::new(false);
    world.connect(1, "web", at("home"));
    world.connect(2, "phone", at("bus"));
    assert_eq!(world.location(), "\"home\"");
    let told = world.says(Kind::Offline, 3, "", json!({}));
    assert_eq!(told, ["ben: offline"]);
    let told = world.connect(5_000, "tablet", at("work"));
    assert_eq!(told, ["online work", "ben: online work"]);
    // After that, connections are ordered by when they came.
    assert_eq!(world.disconnect(10_000, "tablet"), ["ben: online bus"]);
    assert_eq!(world.disconnect(15_000, "phone"), ["ben: online home"]);
}

#[test]
fn what_is_broadcast_no_more_is_taken_back_from_viewers_and_not_shown_after_a_restart() {
    for statuses in [true, false] {
        let mut world = World::new(statuses);
        world.shard.keep_records(true);
        world.connect(1, "web", at("home"));
        let none = Settings {
            broadcast: Vec::new(),
            ..settings(statuses)
        };
        let records = world.shard.take_records(1).into_iter();
        let stored: BTreeMap<_, _> = records.map(|it| it.encode(&world.names)).collect();
        let told = world.input(5_000, Some(Input::Settings(Box::new(none.clone()))));
        assert_eq!(told, Vec::<String>::new());
        let expected: &[&str] = match statuses {
            true => &["updated", "ben: updated"],
            false => &["ben: online"],
        };
        assert_eq!(world.wait(5_000), expected);
        assert_eq!(world.shard.shown("ann").unwrap().entries().count(), 1);

        let names = Names::new();
        let stored = stored.iter().filter_map(|(key, value)| {
            let value = value.as_ref()?;
            Some(Record::decode(key, value, &names).unwrap())
        });
        let stored: Vec<_> = stored.collect();
        let mut world = World::with(names, statuses);
        let directory = Arc::new(Directory::new());
        world.shard = Shard::new(none, Arc::clone(&world.names), directory);
        world.shard.restore(5_000, 0, stored);
        assert_eq!(world.wait(5_000), expected);
        assert_eq!(world.wait(9_000), Vec::<String>::new());
    }
}

#[test]
fn once_other_enrichers_run_users_are_shown_as_these_say() {
    let mut world = World::new(false);
    world.connect(1, "web", at("home"));
    let [before, after] = [1, 2].map(|active| Assignment {
        active,
        candidate: None,
    });
    for (has_other_enrichers, told) in [(false, &[][..]), (true, &["ben: online away"])] {
        world.rule.place = Some("away");
        let input = Input::Reassigned {
            before,
            after,
            has_other_enrichers,
        };
        assert_eq!(world.input(5_000, Some(input)), Vec::<String>::new());
        assert_eq!(world.wait(5_000), told);
    }
    world.rule.place = None;
    let input = Input::Reassigned {
        before,
        after,
        has_other_enrichers: true,
    };
    world.input(6_000, Some(input));
    assert_eq!(world.wait(6_000), ["ben: online home"]);
}

#[test]
fn what_an_application_states_is_shown_until_the_connections_change_whatever_else_does() {
    let mut world = World::new(false);
    world.connect(1, "web", at("home"));
    world.says(Kind::Online, 2, "", at("office"));
    let [before, after] = [1, 2].map(|active| Assignment {
        active,
        candidate: None,
    });
    world.rule.place = Some("away");
    let other_enrichers = Input::Reassigned {
        before,
        after,
        has_other_enrichers: true,
    };
    let other_keys = Input::Settings(Box::new(Settings {
        broadcast: vec!["device".into()],
        ..settings(false)
    }));
    let same_keys = Input::Settings(Box::new(settings(false)));
    let inputs = [
        (5_000, other_enrichers),
        (6_000, other_keys),
        (7_000, same_keys),
    ];
    for (at, input) in inputs {
        assert_eq!(world.input(at, Some(input)), Vec::<String>::new());
        assert_eq!(world.wait(at), Vec::<String>::new());
    }
    world.rule.place = None;
    let told = world.connect(8_000, "web", at("train"));
    assert_eq!(told, ["ben: online train"]);
}

#[test]
fn what_an_application_states_takes_the_place_of_a_connection_that_was_still_to_be_told() {
    let mut world = World::new(true);
    world.connect(1, "web", at("home"));
    world.connect(100, "phone", at("bus"));
    assert_eq!(
        world.connect(200, "tablet", at("park")),
        Vec::<String>::new()
    );
    let told = world.says(Kind::Online, 300, "", at("office"));
    assert_eq!(told, ["ben: updated office"]);
    assert_eq!(world.wait(1_100), Vec::<String>::new());
    assert_eq!(world.wait(9_000), Vec::<String>::new());
}

#[test]
fn very_many_users_are_shown_anew_in_turns() {
    const USERS: usize = 2_000;
    let mut world = World::new(false);
    for number in 0..USERS {
        for conn in ["web", "phone"] {
            let user = format!("user-{number}");
            let body = json!({
                "userId": user, "connId": conn, "timestamp": 1, "metadata": at(conn)
            });
            let message = early::message(Kind::Connect, &body);
            let reply = None;
            world.input(1, Some(Input::Message { message, reply }));
        }
    }
    let mut out = Vec::new();
    let input = Input::Settings(Box::new(settings(true)));
    world.shard.handle(2, input, &mut world.rule, &mut out);
    let mut told = out.len();
    let mut turns = 0;
    while world.shard.next_deadline().is_some_and(|at| at <= 2) {
        let mut out = Vec::new();
        world.shard.advance(2, &mut world.rule, &mut out);
        assert!(out.len() <= 1_000, "{} at once", out.len());
        (told, turns) = (told + out.len(), turns + 1);
    }
    assert_eq!(told, 2 * USERS);
    assert!(turns > 2);
}
