//! A plugin that fails for several users is taken out of service for some time. If it fails for one
//! user, only the events of this user wait.

use presence_core::rules::Rules;
use presence_sandbox::{Blueprint, Pipeline, Stage};
use serde_json::json;

use crate::component::filter;
use crate::stage::{LIMITS, blueprint, configured, made, stage};
use crate::world::World;

/// Users for whom the rule fails: their ids have three bytes.
const BAD: [&str; 4] = ["bad", "bed", "bid", "bud"];

#[test]
fn however_often_it_fails_on_one_user_the_others_are_decided_on() {
    let (mut world, blueprint) = world();
    let mut rules = blueprint.instantiate().unwrap();
    for _ in 0..10 * LIMITS.quarantine.users {
        assert!(fails(&mut world, &mut rules, BAD[0]).starts_with("trapped"));
        world.now += 1;
    }
    assert_eq!(visible(&mut world, &mut rules, "fine"), ["ben"]);
    assert_eq!(quarantined(&blueprint), [false, false]);
}

#[test]
fn after_it_has_failed_on_enough_users_it_is_not_called_any_more() {
    let (mut world, blueprint) = world();
    let mut rules = blueprint.instantiate().unwrap();
    fail_until_quarantine(&mut world, &blueprint, &mut rules);
    // It isn't called even for a user for whom it works.
    let error = fails(&mut world, &mut rules, "fine");
    let begin = "is in quarantine, since it failed on user after user, most recently: trapped";
    assert!(error.starts_with(begin), "{error}");
    assert!(!rules.take_replaced());
}

#[test]
fn that_it_works_for_others_in_between_makes_no_difference() {
    let (mut world, blueprint) = world();
    let mut rules = blueprint.instantiate().unwrap();
    for bad in &BAD[..3] {
        assert_eq!(visible(&mut world, &mut rules, "fine"), ["ben"]);
        fails(&mut world, &mut rules, bad);
    }
    assert_eq!(quarantined(&blueprint), [false, true]);
}

#[test]
fn failures_count_only_within_the_window() {
    let (mut world, blueprint) = world();
    let mut rules = blueprint.instantiate().unwrap();
    for bad in BAD {
        fails(&mut world, &mut rules, bad);
        world.now += LIMITS.quarantine.window_ms / 2;
    }
    assert_eq!(quarantined(&blueprint), [false, false]);
}

#[test]
fn a_trial_that_succeeds_ends_it() {
    let (mut world, blueprint) = world();
    let mut rules = blueprint.instantiate().unwrap();
    fail_until_quarantine(&mut world, &blueprint, &mut rules);
    world.now += LIMITS.quarantine.ms - 1;
    fails(&mut world, &mut rules, "fine");
    assert_eq!(quarantined(&blueprint), [false, true]);
    world.now += 1;
    assert_eq!(visible(&mut world, &mut rules, "fine"), ["ben"]);
    assert_eq!(quarantined(&blueprint), [false, false]);
    // Further failures for the same users don't put it into quarantine again.
    for bad in &BAD[..3] {
        fails(&mut world, &mut rules, bad);
    }
    assert_eq!(quarantined(&blueprint), [false, false]);
}

#[test]
fn setting_the_machines_clock_neither_prolongs_nor_ends_it() {
    const DAY_MS: i64 = 86_400_000;
    for ahead_ms in [-DAY_MS, DAY_MS] {
        let (mut world, blueprint) = world();
        let mut rules = blueprint.instantiate().unwrap();
        fail_until_quarantine(&mut world, &blueprint, &mut rules);
        world.ahead_ms = ahead_ms;
        assert!(fails(&mut world, &mut rules, "fine").contains("quarantine"));
        world.now += LIMITS.quarantine.ms;
        assert_eq!(visible(&mut world, &mut rules, "fine"), ["ben"]);
    }
}

#[test]
fn setting_the_machines_clock_does_not_move_the_window_of_failures() {
    let (mut world, blueprint) = world();
    let mut rules = blueprint.instantiate().unwrap();
    for bad in &BAD[..3] {
        fails(&mut world, &mut rules, bad);
        world.ahead_ms += 10 * LIMITS.quarantine.window_ms as i64;
    }
    assert_eq!(quarantined(&blueprint), [false, true]);
}

#[test]
fn a_trial_that_fails_on_yet_another_user_prolongs_it() {
    let (mut world, blueprint) = world();
    let mut rules = blueprint.instantiate().unwrap();
    fail_until_quarantine(&mut world, &blueprint, &mut rules);
    world.now += LIMITS.quarantine.ms;
    assert!(!fails(&mut world, &mut rules, BAD[3]).contains("quarantine"));
    world.now += LIMITS.quarantine.ms - 1;
    assert!(fails(&mut world, &mut rules, "fine").contains("quarantine"));
    world.now += 1;
    assert_eq!(visible(&mut world, &mut rules, "fine"), ["ben"]);
}

#[test]
fn a_user_on_whom_it_is_known_to_fail_does_not_prolong_it_for_everyone() {
    let (mut world, blueprint) = world();
    let mut rules = blueprint.instantiate().unwrap();
    fail_until_quarantine(&mut world, &blueprint, &mut rules);
    world.now += LIMITS.quarantine.ms;
    assert!(!fails(&mut world, &mut rules, BAD[0]).contains("quarantine"));
    assert_eq!(visible(&mut world, &mut rules, "fine"), ["ben"]);
    assert_eq!(quarantined(&blueprint), [false, false]);
}

#[test]
fn all_workers_count_together_and_have_it_together() {
    let (mut world, blueprint) = world();
    let mut one = blueprint.instantiate().unwrap();
    let mut other = blueprint.instantiate().unwrap();
    fails(&mut world, &mut one, BAD[0]);
    fails(&mut world, &mut other, BAD[1]);
    assert_eq!(quarantined(&blueprint), [false, false]);
    fails(&mut world, &mut one, BAD[2]);
    assert_eq!(quarantined(&blueprint), [false, true]);
    assert!(fails(&mut world, &mut other, "fine").contains("quarantine"));
    world.now += LIMITS.quarantine.ms;
    assert_eq!(visible(&mut world, &mut one, "fine"), ["ben"]);
    assert_eq!(visible(&mut world, &mut other, "fine"), ["ben"]);
}

#[test]
fn it_outlives_a_swap_that_changes_something_else() {
    let (mut world, before) = world();
    let mut rules = before.instantiate().unwrap();
    fail_until_quarantine(&mut world, &before, &mut rules);
    let after = blueprint(
        LIMITS,
        before.stages().map(again).chain([stage("redact")]),
        Some(&before),
    );
    assert_eq!(quarantined(&after), [false, true, false]);
    let mut rules = after.instantiate().unwrap();
    assert!(fails(&mut world, &mut rules, "fine").contains("quarantine"));
    // With another configuration the plugin may work, so it isn't in quarantine.
    let reconfigured = before
        .stages()
        .map(|stage| Stage::new(stage.plugin.clone(), json!({"another": true}), true, None));
    let after = blueprint(LIMITS, reconfigured.skip(1), Some(&before));
    assert_eq!(quarantined(&after), [false]);
}

#[test]
fn only_the_plugin_that_fails_is_put_into_it() {
    let mut world = World::new(&json!({"contacts": {"ada": ["ben"]}}));
    let chain = ["contacts", "trap", "blocklist", "redact"].map(stage);
    let blueprint = blueprint(LIMITS, chain, None);
    let mut rules = blueprint.instantiate().unwrap();
    for bad in &BAD[..3] {
        fails(&mut world, &mut rules, bad);
    }
    assert_eq!(quarantined(&blueprint), [false, true, false, false]);
}

#[test]
fn failures_about_one_user_are_told_by_the_user_and_not_by_their_number() {
    // The interned number of a user is given to another user once it isn't in use.
    let (mut world, blueprint) = world();
    let mut rules = blueprint.instantiate().unwrap();
    for _ in 0..LIMITS.quarantine.users {
        let mut other = World::new(&json!({}));
        other.id(&format!("before-{}", world.now));
        other.online(BAD[0], "{}");
        other.now = world.now;
        other.failure(&mut rules);
        world.now += 1;
    }
    assert_eq!(quarantined(&blueprint), [false, false]);
}

/// Lets the rule fail for users until it is in quarantine, and checks that it isn't before.
fn fail_until_quarantine(world: &mut World, blueprint: &Blueprint, rules: &mut Pipeline) {
    for bad in &BAD[..3] {
        assert_eq!(quarantined(blueprint), [false, false]);
        assert!(!fails(world, rules, bad).contains("quarantine"));
    }
    assert_eq!(quarantined(blueprint), [false, true]);
}

/// A rule that fails for users whose ids have three bytes, after `contacts`.
fn world() -> (World, Blueprint) {
    let world = World::new(&json!({"contacts": {"fine": ["ben"]}}));
    let body = "(if (i32.eq (local.get 2) (i32.const 3)) (then unreachable)) (local.get 3)";
    let chain = [configured("contacts", json!({})), made(&filter("", body))];
    (world, blueprint(LIMITS, chain, None))
}

fn again(stage: &Stage) -> Stage {
    Stage::new(stage.plugin.clone(), stage.config.clone(), true, None)
}

fn fails(world: &mut World, rules: &mut Pipeline, user: &str) -> String {
    world.online(user, "{}");
    world.failure(rules).1
}

fn visible(world: &mut World, rules: &mut Pipeline, user: &str) -> Vec<String> {
    world.online(user, "{}");
    world.visible(rules)
}

fn quarantined(blueprint: &Blueprint) -> Vec<bool> {
    let stages = blueprint.stages();
    stages.map(|stage| stage.health.in_quarantine()).collect()
}
