//! The reads that are recorded for a decision: what its calls read, and nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;

use presence_core::directory::{Question, Setting};
use presence_core::rules::Reads;
use serde_json::{Value, json};

use crate::stage::{configured, pipeline, stage};
use crate::world::{NOW, World};

#[test]
fn a_rule_that_reads_nothing_has_read_nothing() {
    assert_eq!(reads_of(json!([])), Reads::default());
}

#[test]
fn each_question_to_the_directory_is_recorded() {
    let ada = world().id("ada");
    let ben = world().id("ben");
    for (step, question) in [
        (json!("contacts"), Question::Contacts(ada)),
        (json!("with_contact"), Question::WithContact(ada)),
        (json!({"contacts_of_user": "ben"}), Question::Contacts(ben)),
        (json!({"members": "team"}), Question::Members("team".into())),
        (json!("co_members"), Question::CoMembers(ada)),
        (json!("blocked_by"), Question::BlockedBy(ada)),
        (json!("blockers"), Question::Blockers(ada)),
        (json!("everyone"), Question::Everyone),
        (json!("groups"), Question::Groups(ada)),
        (json!({"setting": "visible"}), Question::Settings(ada)),
        (
            json!({"with_setting": {"key": "theme", "value": "dark"}}),
            Question::WithSetting(Arc::new(Setting::new("theme", "\"dark\"").unwrap())),
        ),
    ] {
        let expected = Reads {
            questions: BTreeSet::from([question]),
            ..Reads::default()
        };
        assert_eq!(reads_of(json!([step])), expected, "{step}");
    }
}

#[test]
fn a_metadata_key_is_recorded_whether_or_not_it_is_there() {
    let expected = Reads {
        keys: BTreeSet::from(["device".into(), "mood".into()]),
        ..Reads::default()
    };
    assert_eq!(
        reads_of(json!([{"get": "mood"}, {"get": "device"}, {"get": "mood"}])),
        expected
    );
}

#[test]
fn reading_all_metadata_is_recorded_as_that() {
    let expected = Reads {
        all_metadata: true,
        ..Reads::default()
    };
    assert_eq!(reads_of(json!(["entries"])), expected);
}

#[test]
fn the_timestamp_and_the_time_are_told_apart() {
    let timestamp = Reads {
        timestamp: true,
        ..Reads::default()
    };
    let time = Reads {
        time: true,
        open_ended: true,
        ..Reads::default()
    };
    assert_eq!(reads_of(json!(["timestamp"])), timestamp);
    assert_eq!(reads_of(json!(["now"])), time);
}

#[test]
fn the_earliest_time_to_ask_again_counts() {
    let at = |ms: u64| json!({"reconsider_at": ms});
    let expected = Reads {
        reconsider_at: Some(2),
        ..Reads::default()
    };
    assert_eq!(reads_of(json!([at(3), at(2), at(4)])), expected);
    let mut rules = pipeline([[at(5)], [at(3)], [at(4)]].map(reader));
    assert_eq!(world().reads(&mut rules).reconsider_at, Some(3));
}

#[test]
fn a_condition_on_time_is_recorded_with_its_end() {
    let until = |ms: u64| json!(["contacts", {"until": ms}]);
    let mut before = pipeline([reader(until(NOW + 1))]);
    assert_eq!(world().visible(&mut before), ["ben"]);
    let reads = world().reads(&mut before);
    assert!(reads.time);
    assert_eq!(reads.reconsider_at, Some(NOW + 1));

    let mut after = pipeline([reader(until(NOW))]);
    assert!(world().visible(&mut after).is_empty());
    assert_eq!(world().reads(&mut after).reconsider_at, None);
}

#[test]
fn one_stages_end_of_its_answer_is_none_for_a_stage_that_gave_none() {
    let ends = json!([{"reconsider_at": NOW + 5_000}]);
    let until = json!([{"until": NOW + 5_000}]);
    for (open, ended) in [
        (json!(["now"]), &ends),
        (json!(["now"]), &until),
        (json!([{"until": NOW - 1}]), &ends),
    ] {
        for stages in [[open.clone(), ended.clone()], [ended.clone(), open]] {
            let reads = world().reads(&mut pipeline(stages.map(reader)));
            assert!(!reads.holds_at(NOW, NOW), "{reads:?}");
            // The time is recorded all the same, so that the host decides again then.
            assert_eq!(reads.reconsider_at, Some(NOW + 5_000));
        }
    }
    let reads = world().reads(&mut pipeline([until, ends].map(reader)));
    assert!(reads.holds_at(NOW, NOW + 4_999) && !reads.holds_at(NOW, NOW + 5_000));
}

#[test]
fn what_the_call_itself_holds_is_no_read() {
    let steps = json!(["last_seen", "reason", "len", "viewers", {"contains": "ben"}]);
    assert_eq!(reads_of(steps), Reads::default());
}

#[test]
fn a_decision_has_read_what_any_of_its_stages_has() {
    let world = world();
    let mut rules = pipeline([
        stage("contacts"),
        reader(json!([{"get": "device"}])),
        stage("blocklist"),
        configured("tiers", json!({"contacts": [], "others": []})),
    ]);
    let expected = Reads {
        questions: BTreeSet::from([
            Question::Contacts(world.id("ada")),
            Question::BlockedBy(world.id("ada")),
        ]),
        keys: BTreeSet::from(["device".into()]),
        ..Reads::default()
    };
    assert_eq!(world.reads(&mut rules), expected);
}

#[test]
fn a_decision_has_not_read_what_the_one_before_it_has() {
    let mut world = world();
    world.online("ada", r#"{"device": "phone"}"#);
    let condition = json!([{"only_if": {"key": "device", "text": "phone"}}, "contacts"]);
    let mut rules = pipeline([reader(condition)]);
    assert_eq!(world.reads(&mut rules).keys.len(), 1);
    world.online("ben", "{}");
    let reads = world.reads(&mut rules);
    let questions = BTreeSet::from([Question::Contacts(world.id("ben"))]);
    assert_eq!(reads.questions, questions);
}

fn reads_of(steps: Value) -> Reads {
    world().reads(&mut pipeline([reader(steps)]))
}

fn reader(steps: impl Into<Value>) -> presence_sandbox::Stage {
    configured("reader", json!({"steps": steps.into()}))
}

fn world() -> World {
    let mut world = World::new(&json!({
        "contacts": {"ada": ["ben"], "ben": ["ada"]},
        "groups": {"team": ["ada", "ben"]},
        "blocks": {"ada": ["cleo"]},
        "settings": {"ada": {"visible": true}},
    }));
    world.online("ada", r#"{"device": "desktop"}"#);
    world
}
