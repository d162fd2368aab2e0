//! Redactors: they split the audience into parts, each with what it gets.

use presence_core::rules::{Decision, Rules};
use presence_core::verdicts::Verdict;
use presence_sandbox::Stage;
use serde_json::json;

use crate::component::redactor;
use crate::stage::{configured, made, pipeline, stage};
use crate::world::World;

#[test]
fn several_renditions_are_disjoint_and_make_up_the_audience() {
    let world = world();
    let mut rules = pipeline([stage("contacts"), stage("groups"), tiers()]);
    let renditions = world.renditions(&mut rules);
    assert_eq!(renditions.len(), 2);
    let (contacts, others) = (&renditions[0], &renditions[1]);
    assert_eq!(world.viewers(&contacts.audience), ["ben", "cleo"]);
    assert_eq!(*contacts.keys, ["device".into(), "location".into()]);
    assert!(contacts.last_seen);
    assert_eq!(world.viewers(&others.audience), ["dan"]);
    assert_eq!(*others.keys, ["device".into()]);
    assert!(!others.last_seen);
    assert!(contacts.audience.intersection(&others.audience).is_empty());
}

#[test]
fn the_keys_of_each_rendition_are_its_own_call_after_call() {
    let world = world();
    let mut rules = pipeline([stage("contacts"), stage("groups"), tiers()]);
    let first = world.renditions(&mut rules);
    assert_eq!(world.renditions(&mut rules), first);
}

#[test]
fn the_told_are_split_without_asking_filters() {
    let world = world();
    let told = world.audience(&["ben", "yan"]);
    let mut rules = pipeline([stage("contacts"), tiers()]);
    let renditions = world.redacted(&mut rules, &told);
    let parts = renditions
        .iter()
        .map(|rendition| world.viewers(&rendition.audience));
    assert_eq!(parts.collect::<Vec<_>>(), [["ben"], ["yan"]]);
}

#[test]
fn a_redactor_adds_nobody_to_the_audience() {
    let world = world();
    let mut rules = pipeline([stage("contacts"), made(&generous())]);
    let renditions = world.renditions(&mut rules);
    assert_eq!(renditions.len(), 2);
    for rendition in &renditions {
        assert_eq!(world.viewers(&rendition.audience), ["ben", "cleo"]);
    }
}

#[test]
fn a_viewer_whom_several_renditions_name_gets_the_first() {
    let world = world();
    let mut rules = pipeline([stage("contacts"), made(&generous())]);
    let verdict = Verdict::new(world.event.user, world.renditions(&mut rules));
    assert_eq!(verdict.renditions.len(), 1);
    assert!(verdict.renditions[0].last_seen);
}

#[test]
fn a_redactor_that_fails_fails_the_decision_and_the_split() {
    let world = world();
    let mut rules = pipeline([stage("contacts"), made(&redactor("", "unreachable"))]);
    let (plugin, error) = world.failure(&mut rules);
    assert_eq!(plugin, "rule");
    assert!(error.starts_with("trapped"), "{error}");
    let told = world.audience(&["ben"]);
    let redacted = rules.redact(world.context(), &told);
    assert!(matches!(redacted, Decision::Failed(_)));
}

/// A redactor with two renditions: the first tells everyone in the directory when the user was last
/// seen, the second doesn't tell the audience.
fn generous() -> Vec<u8> {
    // Two renditions of 16 bytes each, at 256, and the list of them, at 128.
    let body = "
        (i32.store (i32.const 256) (call $everyone))
        (i32.store8 (i32.const 268) (i32.const 1))
        (i32.store (i32.const 272) (local.get 3))
        (i32.store (i32.const 128) (i32.const 256))
        (i32.store (i32.const 132) (i32.const 2))
        (i32.const 128)";
    redactor("", body)
}

fn tiers() -> Stage {
    configured(
        "tiers",
        json!({"contacts": ["device", "location"], "others": ["device"]}),
    )
}

fn world() -> World {
    World::new(&json!({
        "contacts": {"ada": ["ben", "cleo"], "zoe": ["yan"]},
        "groups": {"team": ["ada", "ben", "dan"]},
    }))
}
