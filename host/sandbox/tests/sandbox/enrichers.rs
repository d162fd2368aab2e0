//! Enrichers: they keep state, see what the one before them set, and fail open.

use presence_core::directory::Question;
use presence_core::event::Reason;
use presence_core::rules::Enriched;
use presence_sandbox::{Pipeline, Stage};
use serde_json::json;

use crate::component::enricher;
use crate::stage::{LIMITS, blueprint, configured, made, pipeline, rule, stage};
use crate::world::{NOW, World};

const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:109.0) Gecko/20100101 Firefox/118.0";

#[test]
fn an_enricher_keeps_its_state_from_call_to_call() {
    let mut rules = pipeline([stage("counter")]);
    for n in ["1", "2", "3"] {
        assert_eq!(changes(&world().enrich(&mut rules)), [("n", Some(n))]);
    }
}

#[test]
fn every_pipeline_has_instances_of_its_own() {
    let blueprint = blueprint(LIMITS, [stage("counter")], None);
    let mut one = blueprint.instantiate().unwrap();
    let mut other = blueprint.instantiate().unwrap();
    world().enrich(&mut one);
    assert_eq!(changes(&world().enrich(&mut one)), [("n", Some("2"))]);
    assert_eq!(changes(&world().enrich(&mut other)), [("n", Some("1"))]);
}

#[test]
fn classes_of_the_device_are_added() {
    let enriched = world().enrich(&mut pipeline([stage("device-class")]));
    assert_eq!(
        changes(&enriched),
        [
            ("deviceClass", Some(r#""desktop""#)),
            ("browser", Some(r#""Firefox""#)),
            ("os", Some(r#""Linux""#)),
        ]
    );
    assert!(enriched.failures.is_empty());
}

#[test]
fn an_enricher_sees_what_the_one_before_it_set() {
    let class = |from: &str, to: &str| {
        configured(
            "device-class",
            json!({"user_agent": from, "add": {"os": to}}),
        )
    };
    let mut rules = pipeline([class("userAgent", "platform"), class("platform", "kernel")]);
    let linux = Some(r#""Linux""#);
    assert_eq!(
        changes(&world().enrich(&mut rules)),
        [("platform", linux), ("kernel", linux)]
    );
    // In the other order, `platform` isn't set yet when the first enricher reads it.
    let mut rules = pipeline([class("platform", "kernel"), class("userAgent", "platform")]);
    assert_eq!(changes(&world().enrich(&mut rules)), [("platform", linux)]);
}

#[test]
fn an_offline_is_enriched_too() {
    let mut world = world();
    world.offline(NOW, Reason::Timeout);
    let enriched = world.enrich(&mut pipeline([stage("counter")]));
    assert_eq!(changes(&enriched), [("n", Some("1"))]);
}

#[test]
fn one_that_fails_is_passed_over_and_reported() {
    let mut rules = pipeline([stage("counter"), failing(), stage("device-class")]);
    let enriched = world().enrich(&mut rules);
    assert_eq!(changes(&enriched).len(), 4);
    assert_eq!(failed(&enriched), ["rule"]);
}

#[test]
fn one_that_sets_what_is_not_json_is_passed_over_and_reported() {
    // One change, at 256: the key "k" and a value with the text "k", which isn't JSON.
    let list = r#"
        (data (i32.const 64) "k")
        (data (i32.const 128) "\00\01\00\00\01\00\00\00")
        (data (i32.const 256)
          "\40\00\00\00\01\00\00\00\01\00\00\00\01\00\00\00\40\00\00\00\01\00\00\00")"#;
    let enriched = world().enrich(&mut pipeline([made(&enricher(list, "(i32.const 128)"))]));
    assert!(enriched.changes.is_empty());
    let error = &enriched.failures[0].error;
    assert!(
        error.starts_with("set `k` to what is not JSON: "),
        "{error}"
    );
}

#[test]
fn one_that_makes_metadata_that_nobody_may_send_fails() {
    // One change: the key is one byte at 512, and the value begins at 520.
    let setting = |json: &str| {
        let (text, bytes) = (json.replace('\\', "\\\\").replace('"', "\\\""), json.len());
        let list = format!(
            r#"(data (i32.const 128) "\90\00\00\00\01\00\00\00")
            (data (i32.const 144) "\00\02\00\00\01\00\00\00\01\00\00\00\01\00\00\00\08\02\00\00")
            (data (i32.const 512) "k")
            (data (i32.const 520) "{text}")"#
        );
        let body = format!("(i32.store (i32.const 164) (i32.const {bytes})) (i32.const 128)");
        made(&enricher(&list, &body))
    };
    let enriched = world().enrich(&mut pipeline([setting("[1.50]")]));
    assert_eq!(changes(&enriched), [("k", Some("[1.50]"))]);
    let (tower, long) = (
        format!("{}{}", "[".repeat(99), "]".repeat(99)),
        format!("[{}1]", "1,".repeat(1_700)),
    );
    for (json, part) in [
        (r#""\ud800""#, "surrogate"),
        ("1e999", "out of range"),
        (&tower, "deep"),
        (&long, "bytes"),
    ] {
        let limits = presence_sandbox::Limits {
            metadata: presence_core::metadata::Limits {
                bytes: 2_000,
                ..LIMITS.metadata
            },
            ..LIMITS
        };
        let blueprint = blueprint(limits, [setting(json), stage("counter")], None);
        let enriched = world().enrich(&mut blueprint.instantiate().unwrap());
        assert_eq!(failed(&enriched), ["rule"], "{json}");
        let error = &enriched.failures[0].error;
        assert!(error.contains(part), "{json}: {error}");
        assert_eq!(changes(&enriched), [("n", Some("1"))]);
    }
}

#[test]
fn one_in_quarantine_is_passed_over_in_silence_until_its_trial() {
    let blueprint = blueprint(LIMITS, [stage("counter"), failing()], None);
    let mut rules = blueprint.instantiate().unwrap();
    let mut world = world();
    for user in ["bob", "cid", "dan"] {
        world.online(user, "{}");
        assert_eq!(failed(&world.enrich(&mut rules)), ["rule"]);
    }
    assert_eq!(quarantined(&blueprint), [false, true]);
    world.online("eve", "{}");
    let enriched = world.enrich(&mut rules);
    assert_eq!(changes(&enriched), [("n", Some("4"))]);
    assert!(enriched.failures.is_empty());
    world.now += LIMITS.quarantine.ms;
    assert_eq!(failed(&world.enrich(&mut rules)), ["rule"]);
    assert!(world.enrich(&mut rules).failures.is_empty());
}

#[test]
fn one_that_asks_for_what_is_not_at_hand_is_passed_over_and_not_blamed() {
    let asking = made(&enricher("", "(drop (call $everyone)) unreachable"));
    let blueprint = blueprint(LIMITS, [asking, stage("counter")], None);
    let mut rules = blueprint.instantiate().unwrap();
    let mut world = World::on_demand();
    for number in 0..=LIMITS.quarantine.users {
        world.online(&format!("user-{number}"), "{}");
        let enriched = world.enrich(&mut rules);
        assert_eq!(enriched.cache_misses, [Question::Everyone].into());
        assert_eq!(enriched.unanswered, ["rule".into()]);
        assert_eq!(changes(&enriched).len(), 1, "the other has its turn");
        assert!(enriched.failures.is_empty());
    }
    assert_eq!(quarantined(&blueprint), [false, false]);
    world.set_directory(&json!({}), &[Question::Everyone]);
    assert_eq!(failed(&world.enrich(&mut rules)), ["rule"]);
}

#[test]
fn its_last_good_generation_takes_over_unless_told_otherwise() {
    let before = blueprint(LIMITS, [rule("counter", json!({}), None)], None);
    let after = blueprint(LIMITS, [failing()], Some(&before));
    let mut rules: Pipeline = after.instantiate().unwrap();
    for user in ["bob", "cid", "dan"] {
        let mut world = world();
        world.online(user, "{}");
        assert_eq!(failed(&world.enrich(&mut rules)), ["rule"]);
    }
    for n in ["1", "2"] {
        assert_eq!(changes(&world().enrich(&mut rules)), [("n", Some(n))]);
    }
}

/// An enricher named `rule` that traps.
fn failing() -> Stage {
    made(&enricher("", "unreachable"))
}

fn changes(enriched: &Enriched) -> Vec<(&str, Option<&str>)> {
    let changes = enriched.changes.iter();
    changes
        .map(|(key, value)| (key.as_str(), value.as_deref()))
        .collect()
}

fn failed(enriched: &Enriched) -> Vec<&str> {
    enriched
        .failures
        .iter()
        .map(|failure| &*failure.plugin)
        .collect()
}

fn quarantined(blueprint: &presence_sandbox::Blueprint) -> Vec<bool> {
    blueprint
        .stages()
        .map(|stage| stage.health.in_quarantine())
        .collect()
}

fn world() -> World {
    let mut world = World::new(&json!({}));
    world.online(
        "ada",
        &json!({"device": "desktop", "userAgent": FIREFOX}).to_string(),
    );
    world
}
