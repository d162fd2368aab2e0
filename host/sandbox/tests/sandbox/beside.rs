//! A pipeline that runs beside another one: its failures don't affect the other one, and enrichers
//! that are the same in both share one state.

use presence_core::rules::{Decision, Rules};
use presence_sandbox::{Blueprint, Pipeline, Stage};
use serde_json::{Value, json};

use crate::stage::{LIMITS, blueprint, configured, stage};
use crate::world::World;

fn beside(stages: impl IntoIterator<Item = Stage>, active: &Blueprint) -> Blueprint {
    let stages = stages.into_iter().collect();
    match Blueprint::prepare_beside(stages, LIMITS, active) {
        Ok(blueprint) => blueprint,
        Err(problems) => panic!("{problems:#?}"),
    }
}

/// Lets `ada` come online. Returns how often this has happened, according to each enricher.
fn online(rules: &mut Pipeline) -> Vec<String> {
    let enriched = rules.enrich(World::new(&json!({})).context());
    let values = enriched.changes.into_iter().map(|(_, value)| value);
    values.map(Option::unwrap).collect()
}

fn sessions(config: Value) -> Stage {
    configured("sessions", config)
}

#[test]
fn what_fails_beside_takes_nothing_out_of_service_in_the_active_one() {
    let active = blueprint(LIMITS, ["contacts", "trap"].map(stage), None);
    let candidate = beside(["contacts", "trap"].map(stage), &active);
    let mut rules = candidate.instantiate().unwrap();
    let mut world = World::new(&json!({}));
    for user in ["bad", "bed", "bid"] {
        world.online(user, "{}");
        world.failure(&mut rules);
    }
    let quarantined = |blueprint: &Blueprint| {
        let mut stages = blueprint.stages();
        stages.any(|stage| stage.health.in_quarantine())
    };
    assert!(quarantined(&candidate));
    assert!(!quarantined(&active));
}

#[test]
fn enrichers_that_are_the_same_have_one_state() {
    let active = blueprint(LIMITS, [sessions(json!({}))], None);
    let candidate = beside([stage("contacts"), sessions(json!({}))], &active);
    let (mut old, mut new) = (active.pipeline(), candidate.pipeline());
    assert_eq!(online(&mut old), ["1"]);
    new.exchange_same(&mut old);
    assert_eq!(online(&mut new), ["2"]);
    new.exchange_same(&mut old);
    assert_eq!(online(&mut old), ["3"]);
}

#[test]
fn one_that_differs_begins_with_a_copy_and_the_other_keeps_its_own() {
    let active = blueprint(LIMITS, [sessions(json!({}))], None);
    let candidate = beside([sessions(json!({"key": "n"}))], &active);
    let (mut old, mut new) = (active.pipeline(), candidate.pipeline());
    let (mut old_own, mut new_own) = (active.stateful_enrichers(), candidate.stateful_enrichers());
    assert_eq!(online(&mut old.lend(&mut old_own)), ["1"]);
    new_own.copy(&mut old_own);
    let mut lent = new.lend(&mut new_own);
    assert_eq!(online(&mut lent), ["2"]);
    lent.exchange_same(&mut old.lend(&mut old_own));
    assert_eq!(online(&mut lent), ["3"], "nothing of it is shared");
    assert_eq!(online(&mut old.lend(&mut old_own)), ["2"]);
}

#[test]
fn a_decision_says_what_it_took_of_fuel() {
    let mut rules = blueprint(LIMITS, ["contacts", "redact"].map(stage), None).pipeline();
    let world = World::new(&json!({"contacts": {"ada": ["ben"]}}));
    let (_, fuel) = rules.decide_measured(world.context(), true);
    assert!((1..LIMITS.fuel).contains(&fuel), "{fuel}");
}

#[test]
fn what_is_not_counted_leaves_a_plugin_as_it_fares() {
    let blueprint = blueprint(LIMITS, ["contacts", "trap"].map(stage), None);
    let mut rules = blueprint.instantiate().unwrap();
    let mut world = World::new(&json!({}));
    let fares = || {
        let stages = blueprint.stages();
        stages
            .map(|it| (it.health.failures(), it.health.in_quarantine()))
            .collect::<Vec<_>>()
    };
    let calls = || {
        let stages = blueprint.stages();
        stages.map(|it| it.health.latency().count).sum::<u64>()
    };
    let before = (fares(), calls());
    for user in ["bad", "bed", "bid"] {
        world.online(user, "{}");
        let (decision, fuel) = rules.decide_measured(world.context(), false);
        assert!(matches!(decision, Decision::Failed(_)) && fuel > 0);
        rules.explain_uncounted(world.context(), world.id("ben"));
    }
    assert_eq!((fares(), calls()), before);
    // In quarantine, an uncounted decision doesn't call the plugin, not even as a trial.
    for user in ["bad", "bed", "bid"] {
        world.online(user, "{}");
        world.failure(&mut rules);
    }
    assert!(fares()[1].1);
    let (decision, _) = rules.decide_measured(world.context(), false);
    let Decision::Failed(failure) = decision else {
        panic!("it is in quarantine");
    };
    assert!(
        failure.error.starts_with("is in quarantine"),
        "{}",
        failure.error
    );
}
