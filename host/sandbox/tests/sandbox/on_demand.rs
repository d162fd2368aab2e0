//! A directory that is asked question by question: a decision names the questions whose answers
//! aren't cached, and is made once they are.

use std::collections::BTreeSet;
use std::sync::Arc;

use presence_core::directory::{Question, Setting};
use presence_core::event::Reason;
use presence_core::rules::{Decision, Rules};
use presence_sandbox::Pipeline;
use serde_json::json;

use crate::stage::{LIMITS, blueprint, configured, pipeline, stage};
use crate::world::World;

#[test]
fn every_question_that_is_not_at_hand_is_named_and_once_answered_the_call_decides() {
    let mut world = World::on_demand();
    let ada = world.id("ada");
    let steps = json!([
        "contacts", "groups", {"members": "team"}, {"setting": "visible"}, "blocked_by", "everyone",
        {"with_setting": {"key": "theme", "value": "dark"}},
    ]);
    let mut rules = pipeline([configured("reader", json!({"steps": steps}))]);
    let questions = cache_misses(&world, &mut rules);
    assert_eq!(
        questions,
        BTreeSet::from([
            Question::Contacts(ada),
            Question::Groups(ada),
            Question::Members("team".into()),
            Question::Settings(ada),
            Question::BlockedBy(ada),
            Question::Everyone,
            Question::WithSetting(Arc::new(Setting::new("theme", "\"dark\"").unwrap())),
        ])
    );
    let answers: Vec<_> = questions.into_iter().collect();
    world.set_directory(&json!({"contacts": {"ada": ["ben", "cleo"]}}), &answers);
    assert_eq!(world.visible(&mut rules), ["ada", "ben", "cleo"]);
}

#[test]
fn the_stages_after_one_that_waits_are_asked_too() {
    let mut world = World::on_demand();
    let ada = world.id("ada");
    let mut rules = pipeline(["contacts", "groups", "blocklist", "redact"].map(stage));
    let missing = [
        Question::Contacts(ada),
        Question::CoMembers(ada),
        Question::BlockedBy(ada),
    ];
    assert_eq!(cache_misses(&world, &mut rules), missing.clone().into());
    world.set_directory(&json!({"contacts": {"ada": ["ben"]}}), &missing[..2]);
    assert_eq!(
        cache_misses(&world, &mut rules),
        missing[2..].iter().cloned().collect()
    );
    world.set_directory(&json!({"blocks": {"ada": ["cleo"]}}), &missing);
    assert_eq!(world.visible(&mut rules), ["ben"]);
}

#[test]
fn a_redactor_that_lacks_an_answer_when_a_user_goes_names_it() {
    let mut world = World::on_demand();
    let (ada, told) = (world.id("ada"), world.audience(&["ben"]));
    let config = json!({"user_settings": true});
    let mut rules = pipeline([configured("redact", config)]);
    world.offline(1, Reason::Logout);
    let missing = Question::Settings(ada);
    match rules.redact(world.context(), &told) {
        Decision::CacheMiss(questions) => assert_eq!(questions, [missing.clone()].into()),
        other => panic!("nothing is missing: {other:?}"),
    }
    world.set_directory(&json!({}), &[missing]);
    let renditions = world.redacted(&mut rules, &told);
    assert!(renditions[0].last_seen);
}

#[test]
fn an_answer_that_nobody_asked_for_changes_nothing() {
    let mut world = World::on_demand();
    let mut rules = pipeline([stage("contacts")]);
    world.set_directory(&json!({}), &[Question::Contacts(world.id("ben"))]);
    let missing = Question::Contacts(world.id("ada"));
    assert_eq!(cache_misses(&world, &mut rules), BTreeSet::from([missing]));
}

#[test]
fn a_failure_for_want_of_an_answer_is_no_failure() {
    let mut world = World::on_demand();
    let chain = [stage("contacts"), stage("trap")];
    let blueprint = blueprint(LIMITS, chain, None);
    let mut rules = blueprint.instantiate().unwrap();
    for number in 0..2 * LIMITS.quarantine.users {
        let user = format!("user-{number}");
        world.online(&user, "{}");
        let missing = BTreeSet::from([Question::Contacts(world.id(&user))]);
        assert_eq!(cache_misses(&world, &mut rules), missing);
    }
    assert!(
        blueprint
            .stages()
            .all(|stage| !stage.health.in_quarantine())
    );
    world.online("ada", "{}");
    let ada = world.id("ada");
    world.set_directory(&json!({}), &[Question::Contacts(ada)]);
    let (_, error) = world.failure(&mut rules);
    assert!(error.starts_with("trapped"), "{error}");
}

#[test]
fn what_a_call_asked_before_it_failed_is_named() {
    let mut world = World::on_demand();
    let (ada, ben) = (world.id("ada"), world.id("ben"));
    let many: Vec<_> = (0..40_000).map(|number| format!("user-{number}")).collect();
    world.set_directory(
        &json!({"contacts": {"ben": many}}),
        &[Question::Contacts(ben)],
    );
    // Reading the names of 40,000 viewers takes more than the fuel of a call.
    let steps = json!(["contacts", {"contacts_of_user": "ben"}, "viewers"]);
    let mut rules = pipeline([configured("reader", json!({"steps": steps}))]);
    let missing = [Question::Contacts(ada)];
    assert_eq!(cache_misses(&world, &mut rules), missing.clone().into());
    world.set_directory(&json!({}), &missing);
    let (_, error) = world.failure(&mut rules);
    assert!(error.contains("fuel"), "{error}");
}

#[test]
fn a_rule_that_succeeds_only_while_it_waits_is_still_put_into_quarantine() {
    let mut world = World::on_demand();
    let many: Vec<_> = (0..40_000).map(|number| format!("user-{number}")).collect();
    let steps = json!(["contacts", "viewers"]);
    let chain = [configured("reader", json!({"steps": steps}))];
    let blueprint = blueprint(LIMITS, chain, None);
    let mut rules = blueprint.instantiate().unwrap();
    for number in 0..LIMITS.quarantine.users {
        let user = format!("owner-{number}");
        world.online(&user, "{}");
        let missing = [Question::Contacts(world.id(&user))];
        assert_eq!(cache_misses(&world, &mut rules), missing.clone().into());
        world.set_directory(&json!({"contacts": {user.as_str(): many}}), &missing);
        world.failure(&mut rules);
    }
    assert!(blueprint.stages().all(|stage| stage.health.in_quarantine()));
}

fn cache_misses(world: &World, rules: &mut Pipeline) -> BTreeSet<Question> {
    match world.decide(rules) {
        Decision::CacheMiss(questions) => questions,
        other => panic!("nothing is missing: {other:?}"),
    }
}
