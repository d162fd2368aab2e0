//! Explanations: the same decision, and what each stage did to a viewer.

use presence_core::rules::{Decision, Rules, StageOutcome, StageReport};
use presence_sandbox::{OnFailure, Pipeline};
use serde_json::{Value, json};

use crate::stage::{LIMITS, blueprint, configured, pipeline, rule, stage};
use crate::world::World;

fn world() -> World {
    World::new(&json!({
        "contacts": {"ada": ["ben", "cleo"]},
        "groups": {"team": ["ada", "dan"]},
        "blocks": {"ada": ["cleo"]},
    }))
}

fn explained(world: &World, rules: &mut Pipeline, viewer: &str) -> (Vec<StageReport>, Decision) {
    let explanation = rules.explain(world.context(), world.id(viewer));
    (explanation.stages, explanation.decision)
}

fn turns(stages: &[StageReport]) -> Vec<(&str, &str, StageOutcome)> {
    let stages = stages.iter();
    stages
        .map(|stage| (&*stage.plugin, stage.role, stage.outcome))
        .collect()
}

#[test]
fn each_stage_says_what_it_did_to_the_viewer() {
    let world = world();
    let mut rules = pipeline([
        stage("device-class"),
        stage("contacts"),
        stage("groups"),
        stage("blocklist"),
        configured("redact", json!({"keys": ["device"]})),
    ]);
    use StageOutcome::{Absent, Admitted, Kept, NotAsked, Removed};
    for (viewer, expected) in [
        ("ben", [NotAsked, Admitted, Kept, Kept, Kept]),
        ("cleo", [NotAsked, Admitted, Kept, Removed, Absent]),
        ("dan", [NotAsked, Absent, Admitted, Kept, Kept]),
        ("eve", [NotAsked, Absent, Absent, Absent, Absent]),
    ] {
        let (stages, decision) = explained(&world, &mut rules, viewer);
        let names = [
            ("device-class", "enricher"),
            ("contacts", "filter"),
            ("groups", "filter"),
            ("blocklist", "filter"),
            ("redact", "redactor"),
        ];
        let expected: Vec<_> = names
            .iter()
            .zip(expected)
            .map(|((name, role), turn)| (*name, *role, turn))
            .collect();
        assert_eq!(turns(&stages), expected, "{viewer}");
        for stage in &stages {
            assert!(!stage.version.is_empty() && stage.sha256.len() == 64);
        }
        let (Decision::Decided(explained, reads), Decision::Decided(decided, same)) =
            (decision, world.decide(&mut rules))
        else {
            panic!("decided");
        };
        assert_eq!((explained, reads), (decided, same), "as it is decided");
    }
}

#[test]
fn a_reason_about_some_viewers_is_given_for_these_alone() {
    let world = world();
    let steps = json!({"steps": ["contacts", {"explain_for": "ben"}]});
    let mut rules = pipeline([configured("reader", steps)]);
    for (viewer, reasons) in [("ben", vec!["for one"]), ("cleo", vec![])] {
        let (stages, _) = explained(&world, &mut rules, viewer);
        assert_eq!(stages[0].outcome, StageOutcome::Admitted);
        assert!(stages[0].reasons.is_empty());
        assert_eq!(stages[0].viewer_reasons, reasons, "{viewer}");
    }
}

#[test]
fn reasons_come_with_the_stage_that_gave_them() {
    let world = world();
    let reader = |steps: Value| configured("reader", json!({"steps": steps}));
    let mut rules = pipeline([
        reader(json!(["contacts", "len"])),
        reader(json!([{"contains": "ben"}, "last_seen"])),
        stage("contacts"),
    ]);
    for _ in 0..2 {
        let (stages, _) = explained(&world, &mut rules, "ben");
        let reasons: Vec<_> = stages.iter().map(|stage| &stage.reasons[..]).collect();
        assert_eq!(reasons[0], ["len: 2"]);
        assert_eq!(reasons[1], ["contains: true", "last-seen: None"]);
        assert!(reasons[2].is_empty());
        // A decision without an explanation in between.
        world.decide(&mut rules);
    }
}

#[test]
fn a_failure_is_told_and_what_stands_behind_it_is_not_reached() {
    let mut world = world();
    let mut rules = pipeline([
        stage("contacts"),
        rule("trap", json!({}), None),
        stage("groups"),
        stage("redact"),
    ]);
    use StageOutcome::{Absent, Admitted, Failed, NotReached};
    for (time, user) in ["ada", "bob", "cid", "dan"].into_iter().enumerate() {
        world.online(user, "{}");
        let (stages, decision) = explained(&world, &mut rules, "ben");
        let turns: Vec<_> = stages.iter().map(|stage| stage.outcome).collect();
        let first = if user == "ada" { Admitted } else { Absent };
        assert_eq!(turns, [first, Failed, NotReached, NotReached]);
        let failure = stages[1].failure.as_deref().unwrap();
        // Failures for three users put the plugin into quarantine.
        let word = if time < 3 { "trapped" } else { "quarantine" };
        assert!(failure.contains(word), "{failure}");
        assert!(matches!(decision, Decision::Failed(_)));
    }
}

#[test]
fn a_stage_that_another_took_over_from_is_told_of_as_that_other() {
    let mut world = world();
    let before = blueprint(LIMITS, [rule("contacts", json!({}), None)], None);
    let trap = rule("trap", json!({}), Some(OnFailure::LastGood));
    let after = blueprint(LIMITS, [trap], Some(&before));
    let mut rules = after.instantiate().unwrap();
    for user in ["bob", "cid", "dan"] {
        world.online(user, "{}");
        let (stages, _) = explained(&world, &mut rules, "ben");
        assert_eq!(stages[0].outcome, StageOutcome::Failed);
    }
    world.online("ada", "{}");
    let (stages, _) = explained(&world, &mut rules, "ben");
    assert_eq!(
        (stages[0].outcome, stages[0].is_fallback),
        (StageOutcome::Admitted, true)
    );
    let contacts = before.stages().next().unwrap();
    assert_eq!(stages[0].sha256, contacts.plugin.sha256);
}
