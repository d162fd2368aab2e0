//! An instance that failed is replaced before its next call.

use presence_core::rules::Rules;
use serde_json::json;

use crate::component::{enricher, filter};
use crate::stage::{configured, made, pipeline, stage};
use crate::world::World;

#[test]
fn a_rule_that_fails_for_one_user_works_for_the_next() {
    let mut world = World::new(&json!({"contacts": {"ada": ["ben"], "eve": ["ben"]}}));
    let mut rules = pipeline([configured("picky", json!({"user": "eve"}))]);
    for _ in 0..4 {
        world.online("eve", "{}");
        assert_eq!(world.failure(&mut rules).0, "picky");
        world.online("ada", "{}");
        assert_eq!(world.visible(&mut rules), ["ben"]);
    }
}

#[test]
fn a_failure_leaves_the_other_stages_alone() {
    let mut world = World::new(&json!({"contacts": {"ada": ["ben"]}}));
    let mut rules = pipeline([
        stage("counter"),
        stage("contacts"),
        configured("picky", json!({"user": "eve"})),
    ]);
    world.enrich(&mut rules);
    world.online("eve", "{}");
    world.failure(&mut rules);
    world.online("ada", "{}");
    assert_eq!(world.visible(&mut rules), ["ben"]);
    let enriched = rules.enrich(world.context());
    assert_eq!(enriched.changes, [("n".to_owned(), Some("2".to_owned()))]);
}

#[test]
fn what_a_failed_instance_remembered_is_gone() {
    // Every second call of an instance fails. The list of changes is empty.
    let state = "(global $calls (mut i32) (i32.const 0))";
    let body = "
        (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
        (if (i32.eq (global.get $calls) (i32.const 2)) (then unreachable))
        (i32.const 128)";
    let mut rules = pipeline([made(&enricher(state, body))]);
    let world = World::new(&json!({}));
    let failures = (0..6).map(|_| world.enrich(&mut rules).failures.len());
    assert_eq!(failures.collect::<Vec<_>>(), [0, 1, 0, 1, 0, 1]);
}

#[test]
fn an_instance_that_leaks_is_replaced_before_it_fails() {
    // Each call takes a sixteenth of the memory, and traps if it can't.
    let leak = "(if (i32.eq (memory.grow (i32.const 4)) (i32.const -1)) (then unreachable))";
    let mut rules = pipeline([made(&filter("", &format!("{leak} (local.get 3)")))]);
    let world = World::new(&json!({}));
    for _ in 0..100 {
        assert!(world.visible(&mut rules).is_empty());
    }
    // An enricher that can't hand over a state is replaced, too: it would lose its state by failing
    // as well.
    let mut rules = pipeline([made(&enricher("", &format!("{leak} (i32.const 128)")))]);
    for _ in 0..100 {
        assert_eq!(world.enrich(&mut rules).failures.len(), 0);
    }
}
