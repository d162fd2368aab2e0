//! Plugins that ran and may not run any more: none of their code runs, and nothing is shown because
//! of them.

use presence_core::rules::{Rules, StageOutcome};
use presence_sandbox::{Blueprint, OnFailure, Stage};
use serde_json::json;

use crate::stage::{LIMITS, blueprint, configured, pipeline, rule, stage};
use crate::world::World;

/// The chain with the plugins of this name withdrawn. `None` if this changes nothing.
fn without(name: &str, blueprint: &Blueprint) -> Option<Blueprint> {
    blueprint.with_withdrawals(&|stage: &Stage| {
        (*stage.plugin.name == *name).then(|| "its key is not trusted".to_owned())
    })
}

fn world() -> World {
    World::new(&json!({"contacts": {"ada": ["ben"]}, "groups": {}}))
}

#[test]
fn a_filter_or_a_redactor_is_closed_until_it_may_run_again() {
    for name in ["contacts", "redact"] {
        let chain = blueprint(LIMITS, [stage("contacts"), stage("redact")], None);
        let held = without(name, &chain).unwrap();
        assert!(without(name, &held).is_none(), "it is withdrawn already");
        assert!(!held.is_same(&chain), "it is another pipeline");
        let quarantined = held.stages().filter(|it| it.in_quarantine());
        let quarantined: Vec<_> = quarantined
            .map(|it| (&*it.plugin.name, it.withdrawn()))
            .collect();
        assert_eq!(quarantined, [(name, Some("its key is not trusted"))]);
        let mut rules = held.instantiate().unwrap();
        let mut world = world();
        // No call is tried, however long the quarantine lasts.
        for _ in 0..3 {
            world.now += 10 * LIMITS.quarantine.ms;
            let (plugin, error) = world.failure(&mut rules);
            assert_eq!(plugin, name);
            let why = "it may not run any more: its key is not trusted";
            assert!(error.contains(why), "{error}");
        }
        assert_eq!(held.stages().map(|it| it.health.failures()).sum::<u64>(), 0);
        // Once it may run again, loading gives the same pipeline as the first one.
        let again = blueprint(LIMITS, [stage("contacts"), stage("redact")], Some(&held));
        assert!(again.is_same(&chain) && !again.is_same(&held));
        assert_eq!(world.visible(&mut again.instantiate().unwrap()), ["ben"]);
    }
}

#[test]
fn an_enricher_is_passed_over_and_knows_later_what_it_knew() {
    let chain = || [configured("sessions", json!({})), stage("contacts")];
    let before = blueprint(LIMITS, chain(), None);
    let mut running = before.instantiate().unwrap();
    let world = world();
    let enriched = |rules: &mut presence_sandbox::Pipeline| world.enrich(rules).changes.len();
    assert_eq!(enriched(&mut running), 1);
    let held = without("sessions", &before).unwrap();
    let mut closed = held.instantiate().unwrap();
    closed.take_over(&mut running);
    let passed_over = world.enrich(&mut closed);
    assert!(passed_over.changes.is_empty() && passed_over.failures.is_empty());
    assert_eq!(world.visible(&mut closed), ["ben"]);
    let again = blueprint(LIMITS, chain(), Some(&held));
    let mut again = again.instantiate().unwrap();
    again.take_over(&mut closed);
    let count = world.enrich(&mut again).changes[0].1.clone();
    assert_eq!(count.as_deref(), Some("2"));
    // A stage that replaces a withdrawn one gets no state, since the withdrawn plugin would have to
    // be called.
    let mut closed = held.instantiate().unwrap();
    closed.take_over(&mut again);
    let mut other = pipeline([
        configured("sessions", json!({"key": "other"})),
        stage("contacts"),
    ]);
    other.take_over(&mut closed);
    let count = world.enrich(&mut other).changes[0].1.clone();
    assert_eq!(count.as_deref(), Some("1"));
}

#[test]
fn it_takes_over_from_nobody() {
    let first = blueprint(LIMITS, [rule("contacts", json!({}), None)], None);
    let failing = || rule("trap", json!({}), Some(OnFailure::LastGood));
    let second = blueprint(LIMITS, [failing()], Some(&first));
    let sha256 = first.stages().next().unwrap().plugin.sha256.clone();
    let of_first = |stage: &Stage| (stage.plugin.sha256 == sha256).then(|| "lost".to_owned());
    let updated = second.with_withdrawals(&of_first).unwrap();
    assert!(updated.stages().all(|it| it.withdrawn().is_none()));
    // It differs from the same stages loaded anew, which still have the fallback.
    assert!(!updated.is_same(&second));
    let fail = |blueprint: &Blueprint| {
        let mut rules = blueprint.instantiate().unwrap();
        for user in ["bob", "cid", "dan"] {
            let mut world = world();
            world.online(user, "{}");
            world.failure(&mut rules);
        }
        assert!(!rules.take_replaced());
        let (_, error) = world().failure(&mut rules);
        assert!(error.contains("failed on user after user"), "{error}");
    };
    fail(&updated);
    // A fallback that has taken over already is taken out of service, too.
    let second = blueprint(LIMITS, [failing()], Some(&first));
    let mut rules = second.instantiate().unwrap();
    for user in ["bob", "cid", "dan"] {
        let mut world = world();
        world.online(user, "{}");
        world.failure(&mut rules);
    }
    assert_eq!(world().visible(&mut rules), ["ben"]);
    let updated = second.with_withdrawals(&of_first).unwrap();
    let mut rules = updated.instantiate().unwrap();
    let (_, error) = world().failure(&mut rules);
    assert!(error.contains("quarantine"), "{error}");
}

#[test]
fn an_explanation_says_why() {
    let chain = blueprint(LIMITS, [stage("contacts")], None);
    let mut rules = without("contacts", &chain).unwrap().instantiate().unwrap();
    let world = world();
    let explained = rules.explain(world.context(), world.id("ben"));
    let [stage] = explained.stages.as_slice() else {
        panic!("{explained:?}");
    };
    assert!(matches!(stage.outcome, StageOutcome::Failed), "{stage:?}");
    let failure = stage.failure.as_deref().unwrap_or_default();
    assert!(failure.contains("may not run any more"), "{failure}");
}
