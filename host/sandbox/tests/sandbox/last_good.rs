//! What happens while a filter is in quarantine: nobody new is told, or the last good generation
//! takes over.

use presence_core::rules::Rules;
use presence_sandbox::OnFailure::{Hold, LastGood};
use presence_sandbox::{Blueprint, Pipeline, Stage};
use serde_json::{Value, json};

use crate::component::with_manifest;
use crate::stage::{LIMITS, blueprint, bytes, loaded, rule};
use crate::world::World;

#[test]
fn a_filter_stays_closed_unless_told_otherwise() {
    for policy in [None, Some(Hold)] {
        let before = chain([rule("contacts", json!({}), None)], None);
        let after = chain([rule("trap", json!({}), policy)], Some(&before));
        let mut rules = after.instantiate().unwrap();
        fail_until_quarantine(&mut rules);
        assert!(!rules.take_replaced());
        assert!(world().failure(&mut rules).1.contains("quarantine"));
    }
}

#[test]
fn the_last_good_takes_over_and_it_is_said_once() {
    let before = chain([rule("contacts", json!({}), None)], None);
    let after = chain([rule("trap", json!({}), Some(LastGood))], Some(&before));
    let mut rules = after.instantiate().unwrap();
    for user in ["bob", "cid"] {
        fail(&mut rules, user);
        assert!(!rules.take_replaced());
    }
    fail(&mut rules, "dan");
    assert!(rules.take_replaced());
    assert!(!rules.take_replaced());
    assert_eq!(world().visible(&mut rules), ["ben"]);
    assert!(!rules.take_replaced());
    // The stage that failed is still in quarantine.
    assert_eq!(quarantined(&after), [true]);
}

#[test]
fn it_takes_over_in_all_workers_when_one_saw_the_failures() {
    let before = chain([rule("contacts", json!({}), None)], None);
    let after = chain([rule("trap", json!({}), Some(LastGood))], Some(&before));
    let mut failing = after.instantiate().unwrap();
    let mut idle = after.instantiate().unwrap();
    assert!(!idle.is_replaced());
    fail_until_quarantine(&mut failing);
    assert!(failing.take_replaced());
    // The other worker knows it before its next decision.
    assert!(idle.is_replaced());
    assert!(idle.take_replaced());
    assert!(!idle.is_replaced());
    assert!(!idle.take_replaced());
    let mut world = world();
    world.now += 10 * LIMITS.quarantine.ms;
    assert_eq!(world.visible(&mut idle), ["ben"]);
}

#[test]
fn it_stays_when_something_else_is_swapped() {
    let before = chain([rule("contacts", json!({}), None)], None);
    let failing = loaded("rule", &bytes("trap"));
    let failing = || Stage::new(failing.clone(), json!({}), true, Some(LastGood));
    let after = chain([failing()], Some(&before));
    fail_until_quarantine(&mut after.instantiate().unwrap());
    let later = chain([failing(), crate::stage::stage("redact")], Some(&after));
    let mut rules = later.instantiate().unwrap();
    assert_eq!(world().visible(&mut rules), ["ben"]);
}

#[test]
fn it_takes_over_for_good() {
    let before = chain([rule("contacts", json!({}), None)], None);
    let after = chain([rule("trap", json!({}), Some(LastGood))], Some(&before));
    let mut rules = after.instantiate().unwrap();
    fail_until_quarantine(&mut rules);
    let mut world = world();
    world.now += 10 * LIMITS.quarantine.ms;
    assert_eq!(world.visible(&mut rules), ["ben"]);
}

#[test]
fn the_manifest_may_say_so_and_the_operator_has_the_last_word() {
    let manifest = json!({
        "name": "rule", "version": "1.0.0", "api": "0.2.0", "role": "filter",
        "on_failure": "last-good",
    });
    let plugin = loaded(
        "rule",
        &with_manifest(&bytes("trap"), &manifest.to_string()),
    );
    for (operator, replaced) in [(None, true), (Some(Hold), false)] {
        let before = chain([rule("contacts", json!({}), None)], None);
        let failing = Stage::new(plugin.clone(), json!({}), true, operator);
        let mut rules = chain([failing], Some(&before)).instantiate().unwrap();
        fail_until_quarantine(&mut rules);
        assert_eq!(rules.take_replaced(), replaced);
    }
}

#[test]
fn without_one_that_worked_before_it_stays_closed() {
    let of_another_name = chain([crate::stage::stage("contacts")], None);
    for before in [None, Some(&of_another_name)] {
        let after = chain([rule("trap", json!({}), Some(LastGood))], before);
        let mut rules = after.instantiate().unwrap();
        fail_until_quarantine(&mut rules);
        assert!(!rules.take_replaced());
        assert!(world().failure(&mut rules).1.contains("quarantine"));
    }
}

#[test]
fn what_is_in_quarantine_itself_is_not_good_and_the_one_before_it_is() {
    let first = chain([rule("contacts", json!({}), None)], None);
    let second = chain([rule("trap", json!({}), Some(LastGood))], Some(&first));
    let mut running = second.instantiate().unwrap();
    fail_until_quarantine(&mut running);
    let spin = rule("spin", json!({}), Some(LastGood));
    let third = chain([spin], Some(&second));
    let mut rules = third.instantiate().unwrap();
    fail_until_quarantine(&mut rules);
    assert!(rules.take_replaced());
    assert_eq!(world().visible(&mut rules), ["ben"]);
}

#[test]
fn a_stand_in_that_fails_is_put_into_quarantine_too() {
    let before = chain([rule("spin", json!({}), None)], None);
    let after = chain([rule("trap", json!({}), Some(LastGood))], Some(&before));
    let mut rules = after.instantiate().unwrap();
    fail_until_quarantine(&mut rules);
    assert!(rules.take_replaced());
    fail_until_quarantine(&mut rules);
    assert!(!rules.take_replaced());
    assert!(world().failure(&mut rules).1.contains("quarantine"));
}

#[test]
fn what_may_not_widen_any_more_does_not_come_back() {
    let before = chain([rule("contacts", json!({}), None)], None);
    let plugin = loaded("rule", &bytes("trap"));
    let narrow = Stage::new(plugin, json!({}), false, Some(LastGood));
    let mut rules = chain([narrow], Some(&before)).instantiate().unwrap();
    fail_until_quarantine(&mut rules);
    assert!(!rules.take_replaced());
    assert!(world().failure(&mut rules).1.contains("quarantine"));
}

#[test]
fn of_a_plugin_that_stands_twice_each_place_has_its_own() {
    let reader = |step: Value| rule("reader", json!({"steps": [step]}), None);
    let before = chain(
        [reader(json!("contacts")), reader(json!("co_members"))],
        None,
    );
    let failing = || rule("trap", json!({}), Some(LastGood));
    let after = chain([reader(json!("contacts")), failing()], Some(&before));
    let mut rules = after.instantiate().unwrap();
    fail_until_quarantine(&mut rules);
    assert_eq!(world().visible(&mut rules), ["ben", "cleo"]);
}

fn chain<const N: usize>(stages: [Stage; N], before: Option<&Blueprint>) -> Blueprint {
    blueprint(LIMITS, stages, before)
}

fn fail_until_quarantine(rules: &mut Pipeline) {
    for user in ["bob", "cid", "dan"] {
        assert!(!fail(rules, user).contains("quarantine"));
    }
}

fn fail(rules: &mut Pipeline, user: &str) -> String {
    let mut world = world();
    world.online(user, "{}");
    world.failure(rules).1
}

fn quarantined(blueprint: &Blueprint) -> Vec<bool> {
    let stages = blueprint.stages();
    stages.map(|stage| stage.health.in_quarantine()).collect()
}

fn world() -> World {
    World::new(&json!({
        "contacts": {"ada": ["ben"]},
        "groups": {"team": ["ada", "cleo"]},
    }))
}
