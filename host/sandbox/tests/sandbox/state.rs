//! The state of stateful enrichers: each generation hands it to the next one.

use presence_core::rules::Rules;
use presence_sandbox::{LoadError, Pipeline, Stage};
use serde_json::{Value, json};

use crate::component::{enricher_with, with_manifest};
use crate::log::logged_by_host;
use crate::stage::{LIMITS, bytes, configured, loaded, made, pipeline, problems, stage, within};
use crate::world::World;

/// The fixture `sessions`. It sets the key `sessions`, or the key named in `key`, to how often a
/// user came online.
fn sessions(config: Value) -> Stage {
    configured("sessions", config)
}

/// Lets `ada` come online. Returns the values that the enrichers set.
fn online(rules: &mut Pipeline) -> Vec<String> {
    let enriched = rules.enrich(World::new(&json!({})).context());
    assert!(enriched.failures.is_empty());
    let values = enriched.changes.into_iter().map(|(_, value)| value);
    values.map(Option::unwrap).collect()
}

/// A pipeline in which `ada` has come online twice.
fn twice(config: Value) -> Pipeline {
    let mut rules = pipeline([sessions(config)]);
    online(&mut rules);
    assert_eq!(online(&mut rules), ["2"]);
    rules
}

#[test]
fn the_next_generation_goes_on_where_the_last_one_stopped() {
    let mut before = twice(json!({}));
    let mut after = pipeline([stage("contacts"), sessions(json!({"key": "n"}))]);
    let lines = logged_by_host(|| after.take_over(&mut before));
    assert_eq!(online(&mut after), ["3"]);
    assert!(lines.is_empty(), "{lines:?}");

    let mut third = pipeline([sessions(json!({}))]);
    third.take_over(&mut after);
    assert_eq!(online(&mut third), ["4"]);
}

#[test]
fn a_state_goes_to_the_plugin_of_its_name() {
    let renamed = || {
        let file = crate::stage::bytes("sessions");
        Stage::new(loaded("visits", &file), json!({}), false, None)
    };
    let mut before = twice(json!({}));
    let mut after = pipeline([renamed(), sessions(json!({}))]);
    after.take_over(&mut before);
    assert_eq!(online(&mut after), ["1", "3"]);
}

#[test]
fn each_of_two_stages_of_one_plugin_goes_on_with_its_own() {
    let stage = |key: &str| sessions(json!({"key": key}));
    let mut before = pipeline([stage("a")]);
    online(&mut before);
    let mut both = pipeline([stage("b"), stage("a")]);
    both.take_over(&mut before);
    assert_eq!(online(&mut both), ["1", "2"]);
    let mut after = pipeline([stage("a"), stage("b")]);
    after.take_over(&mut both);
    assert_eq!(online(&mut after), ["3", "2"]);
}

#[test]
fn an_enricher_without_state_takes_none_over_and_that_is_no_fault() {
    let mut stateless = pipeline([stage("counter")]);
    online(&mut stateless);
    let mut after = pipeline([stage("counter")]);
    let lines = logged_by_host(|| after.take_over(&mut stateless));
    assert_eq!(online(&mut after), ["1"]);
    assert!(lines.is_empty(), "{lines:?}");
}

#[test]
fn what_cannot_be_handed_over_is_said_and_the_next_begins_without() {
    let fuel = "used up its fuel of 20000000";
    let no_event = "there is no event to ask about";
    for (config, error) in [
        (json!({"save": "panic"}), "trapped: "),
        (json!({"save": "spin"}), fuel),
        (json!({"save": "ask"}), no_event),
    ] {
        let mut before = twice(config);
        begins_without(&mut before, pipeline([sessions(json!({}))]), error);
    }
    for (config, error) in [
        (json!({"refuse": "not mine"}), "refuses the state: not mine"),
        (json!({"restore": "panic"}), "trapped: "),
        (json!({"restore": "spin"}), fuel),
        (json!({"restore": "ask"}), no_event),
    ] {
        let after = pipeline([sessions(config)]);
        begins_without(&mut twice(json!({})), after, error);
    }
}

#[test]
fn a_state_that_is_too_large_is_not_handed_over() {
    let limits = presence_sandbox::Limits {
        fuel: 20_000_000,
        memory_bytes_max: 64 << 20,
        ..LIMITS
    };
    let instances = |bytes| within(limits, [sessions(json!({"ballast_bytes": bytes}))]);
    let mib = 1 << 20;
    let mut before = instances(mib - 1_000);
    online(&mut before);
    let mut after = instances(mib);
    after.take_over(&mut before);
    assert_eq!(online(&mut after), ["2"]);
    let error = "and 1048576 may be handed over";
    begins_without(&mut after, instances(0), error);
}

#[track_caller]
fn begins_without(before: &mut Pipeline, mut after: Pipeline, error: &str) {
    let lines = logged_by_host(|| after.take_over(before));
    assert_eq!(online(&mut after), ["1"], "{error}");
    assert_eq!(lines.len(), 2);
    for part in [error, "can't take over the state"] {
        let found = lines.iter().any(|line| line.contains(part));
        assert!(found, "{lines:?}, and not {part}");
    }
}

#[test]
fn one_that_only_saves_or_only_restores_is_refused() {
    for name in ["save", "restore"] {
        let problems = problems(LIMITS, [made(&enricher_with(name))]);
        let [LoadError::Link { what, .. }] = problems.as_slice() else {
            panic!("{problems:#?}");
        };
        assert!(
            what.starts_with("it doesn't export `save` and `restore` as its role does"),
            "{what}"
        );
    }
}

#[test]
fn one_that_says_it_is_stateful_has_to_be() {
    let saying = |file: &str, role: &str| {
        let manifest = json!({
            "name": "rule", "version": "1.0.0", "api": "0.2.0", "role": role, "stateful": true,
        });
        made(&with_manifest(&bytes(file), &manifest.to_string()))
    };
    pipeline([saying("sessions", "enricher")]);
    for (file, role) in [("counter", "enricher"), ("blocklist", "filter")] {
        let problems = problems(LIMITS, [saying(file, role)]);
        let text = problems[0].to_string();
        assert!(
            text.contains("says that it is stateful, and it isn't"),
            "{text}"
        );
    }
}
