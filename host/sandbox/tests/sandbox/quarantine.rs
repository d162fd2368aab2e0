//! A plugin that fails again and again isn't called any more, for a while.

use presence_core::rules::Rules;
use presence_sandbox::{Blueprint, Pipeline};
use serde_json::json;

use crate::stage::{LIMITS, blueprint, configured, stage};
use crate::world::World;

#[test]
fn after_enough_failures_in_a_row_a_plugin_is_not_called_any_more() {
    let (mut world, blueprint) = eve_fails();
    let mut rules = blueprint.instantiate().unwrap();
    fail_until_quarantine(&mut world, &blueprint, &mut rules);
    // Not even for whom it would work.
    world.online("ada", "{}");
    let (plugin, error) = world.failure(&mut rules);
    assert_eq!(plugin, "picky");
    assert_eq!(error, "is in quarantine, since it failed again and again");
    assert!(!rules.take_replaced());
}

#[test]
fn failures_count_only_in_a_row() {
    let (mut world, blueprint) = eve_fails();
    let mut rules = blueprint.instantiate().unwrap();
    for _ in 0..3 {
        for _ in 1..LIMITS.quarantine.failures {
            world.online("eve", "{}");
            world.failure(&mut rules);
        }
        world.online("ada", "{}");
        assert_eq!(world.visible(&mut rules), ["ben"]);
    }
    assert_eq!(quarantined(&blueprint), [0]);
}

#[test]
fn a_trial_that_succeeds_ends_it() {
    let (mut world, blueprint) = eve_fails();
    let mut rules = blueprint.instantiate().unwrap();
    fail_until_quarantine(&mut world, &blueprint, &mut rules);
    world.online("ada", "{}");
    world.now += LIMITS.quarantine.ms - 1;
    world.failure(&mut rules);
    assert_eq!(quarantined(&blueprint), [1]);
    world.now += 1;
    assert_eq!(world.visible(&mut rules), ["ben"]);
    assert_eq!(quarantined(&blueprint), [0]);
    // And it has all its failures before it again.
    world.online("eve", "{}");
    world.failure(&mut rules);
    assert_eq!(quarantined(&blueprint), [0]);
}

#[test]
fn a_trial_that_fails_prolongs_it() {
    let (mut world, blueprint) = eve_fails();
    let mut rules = blueprint.instantiate().unwrap();
    fail_until_quarantine(&mut world, &blueprint, &mut rules);
    world.now += LIMITS.quarantine.ms;
    assert!(!world.failure(&mut rules).1.contains("quarantine"));
    world.now += LIMITS.quarantine.ms - 1;
    world.online("ada", "{}");
    assert!(world.failure(&mut rules).1.contains("quarantine"));
    assert_eq!(quarantined(&blueprint), [1]);
    world.now += 1;
    assert_eq!(world.visible(&mut rules), ["ben"]);
}

#[test]
fn each_worker_has_its_own_and_they_are_counted_together() {
    let (mut world, blueprint) = eve_fails();
    let mut one = blueprint.instantiate().unwrap();
    let mut other = blueprint.instantiate().unwrap();
    fail_until_quarantine(&mut world, &blueprint, &mut one);
    world.online("ada", "{}");
    assert_eq!(world.visible(&mut other), ["ben"]);
    world.online("eve", "{}");
    for _ in 0..LIMITS.quarantine.failures {
        world.failure(&mut other);
    }
    assert_eq!(quarantined(&blueprint), [2]);
    drop(one);
    assert_eq!(quarantined(&blueprint), [1]);
    drop(other);
    assert_eq!(quarantined(&blueprint), [0]);
}

#[test]
fn only_the_plugin_that_fails_is_put_into_it() {
    let world = World::new(&json!({"contacts": {"ada": ["ben"]}}));
    let chain = ["contacts", "trap", "blocklist", "redact"].map(stage);
    let blueprint = blueprint(LIMITS, chain, None);
    let mut rules = blueprint.instantiate().unwrap();
    for _ in 0..LIMITS.quarantine.failures {
        world.failure(&mut rules);
    }
    assert_eq!(quarantined(&blueprint), [0, 1, 0, 0]);
}

/// Has the rule fail for eve until it is put into quarantine, and not before.
fn fail_until_quarantine(world: &mut World, blueprint: &Blueprint, rules: &mut Pipeline) {
    world.online("eve", "{}");
    for _ in 0..LIMITS.quarantine.failures {
        assert_eq!(quarantined(blueprint), [0]);
        assert!(!world.failure(rules).1.contains("quarantine"));
    }
    assert_eq!(quarantined(blueprint), [1]);
}

/// A rule that fails for eve, and a world with contacts for everyone in it.
fn eve_fails() -> (World, Blueprint) {
    let world = World::new(&json!({"contacts": {"ada": ["ben"], "eve": ["ben"]}}));
    let picky = configured("picky", json!({"user": "eve"}));
    (world, blueprint(LIMITS, [picky], None))
}

fn quarantined(blueprint: &Blueprint) -> Vec<usize> {
    let stages = blueprint.stages();
    stages.map(|stage| stage.health.in_quarantine()).collect()
}
