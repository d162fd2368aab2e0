//! Checking a chain: grants, order, configurations and self-tests.

use presence_sandbox::{Blueprint, Limits, LoadError, Stage};
use serde_json::json;

use crate::component::{filter, with_manifest};
use crate::stage::{LIMITS, blueprint, bytes, configured, loaded, made, pipeline, problems, stage};
use crate::world::World;

#[test]
fn a_filter_that_says_it_narrows_adds_nobody() {
    let world = World::new(&json!({"contacts": {"ada": ["ben"], "cleo": ["dan"]}}));
    let mut rules = pipeline([stage("contacts"), stage("widener")]);
    assert_eq!(world.visible(&mut rules), ["ben"]);
    assert!(world.visible(&mut pipeline([stage("widener")])).is_empty());
}

#[test]
fn a_filter_that_widens_needs_the_grant_and_the_error_says_how_to_give_it() {
    assert_eq!(
        texts(&problems(LIMITS, [ungranted("contacts")])),
        [
            "`contacts` asks for `widen`; to grant it, put \"widen\" into the grants of its [[pipeline]] entry"
        ]
    );
}

#[test]
fn a_filter_that_narrows_needs_no_grant() {
    blueprint(LIMITS, [ungranted("blocklist")], None);
}

#[test]
fn the_narrowing_stages_that_another_chain_lacks_are_named() {
    let chain =
        |stages: &[&'static str]| blueprint(LIMITS, stages.iter().copied().map(stage), None);
    let before = chain(&["contacts", "blocklist", "blocklist", "redact"]);
    let missing = |after: &[&'static str]| {
        let names = before.narrowing_missing_in(&chain(after));
        names.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(missing(&["groups"]), ["blocklist", "blocklist", "redact"]);
    assert_eq!(missing(&["blocklist", "contacts", "redact"]), ["blocklist"]);
    let same = missing(&["blocklist", "groups", "blocklist", "redact"]);
    assert!(same.is_empty(), "a stage that widens is not missed");
}

#[test]
fn a_stage_that_widens_doesnt_stand_for_a_narrowing_one_of_its_name() {
    let before = blueprint(LIMITS, [stage("blocklist")], None);
    let widening = loaded("blocklist", &bytes("contacts"));
    let after = Stage::new(widening, json!({}), true, None);
    let after = blueprint(LIMITS, [after], None);
    assert_eq!(before.narrowing_missing_in(&after), ["blocklist".into()]);
}

#[test]
fn a_filter_after_the_redactor_is_refused() {
    assert_eq!(
        texts(&problems(LIMITS, [stage("redact"), stage("blocklist")])),
        ["`blocklist` is a filter, and stands after the redactor: put it before"]
    );
}

#[test]
fn a_second_redactor_is_refused() {
    let tiers = configured("tiers", json!({"contacts": [], "others": []}));
    assert_eq!(
        texts(&problems(LIMITS, [stage("redact"), tiers])),
        ["`tiers` is a second redactor: there can be one"]
    );
}

#[test]
fn a_self_test_may_take_longer_than_a_call() {
    let body = "(local $left i32)
        (local.set $left (i32.const 50000000))
        (loop $again (br_if $again
            (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
        (local.get 3)";
    let manifest = json!({
        "name": "rule", "version": "1.0.0", "api": "0.2.0", "role": "filter",
        "limits": {"deadline_ms": 1},
        "tests": [{"name": "slow", "audience": ["ben"], "expect": {"audience": ["ben"]}}],
    });
    let limits = Limits {
        fuel: 1 << 50,
        deadline_ms: Some(10),
        ..LIMITS
    };
    let rule = made(&with_manifest(&filter("", body), &manifest.to_string()));
    let mut rules = blueprint(limits, [rule], None).instantiate().unwrap();
    let (_, error) = World::new(&json!({})).failure(&mut rules);
    assert_eq!(error, "took longer than 1 ms");
}

#[test]
fn an_enricher_may_stand_anywhere() {
    blueprint(LIMITS, [stage("redact"), stage("counter")], None);
}

#[test]
fn a_capability_that_the_host_does_not_give_is_refused_by_name() {
    let manifest = json!({
        "name": "rule", "version": "1.0.0", "api": "0.2.0", "role": "filter",
        "effect": "widen", "capabilities": ["network", "files"],
    });
    let plugin = with_manifest(&bytes("contacts"), &manifest.to_string());
    assert_eq!(
        texts(&problems(LIMITS, [made(&plugin)])),
        [
            "`rule` can't be linked: it asks for `network`, which this host doesn't give",
            "`rule` can't be linked: it asks for `files`, which this host doesn't give",
        ]
    );
}

#[test]
fn a_configuration_that_a_plugin_refuses_is_refused_with_its_reason() {
    assert_eq!(
        texts(&problems(LIMITS, [stage("bad-config")])),
        ["`bad-config` refuses its configuration: this fixture refuses every configuration"]
    );
}

#[test]
fn a_misspelt_key_is_named() {
    let misspelt = configured("redact", json!({"kyes": ["device"]}));
    assert_eq!(
        texts(&problems(LIMITS, [misspelt])),
        [
            "`redact` refuses its configuration: unknown key `kyes`; known here: keys, tiers, user_settings, reciprocal"
        ]
    );
}

#[test]
fn a_failing_self_test_is_named_with_what_came_out() {
    assert_eq!(
        texts(&problems(LIMITS, [stage("failing-self-test")])),
        [
            "`failing-self-test` fails its self-test `what is not so`: expected \
             {\"audience\":[\"11111\"]}, and got {\"audience\":[\"67890\"]}"
        ]
    );
}

#[test]
fn every_failing_self_test_is_reported() {
    let case = |name| json!({"name": name, "expect": {"audience": ["nobody at all"]}});
    let manifest = json!({
        "name": "rule", "version": "1.0.0", "api": "0.2.0", "role": "filter",
        "effect": "widen", "tests": [case("one"), case("two")],
    });
    let plugin = with_manifest(&bytes("contacts"), &manifest.to_string());
    let problems = problems(LIMITS, [made(&plugin)]);
    let cases = problems.iter().map(|problem| match problem {
        LoadError::SelfTest { case, .. } => case.as_str(),
        other => panic!("{other}"),
    });
    assert_eq!(cases.collect::<Vec<_>>(), ["one", "two"]);
}

#[test]
fn self_tests_are_run_again_within_lower_limits() {
    let names = r#"(data (i32.const 256) "\00\02\00\00\03\00\00\00")"#;
    let busy = "(local i32)
        (loop
          (drop (call $of (i32.const 256) (i32.const 1)))
          (local.set 4 (i32.add (local.get 4) (i32.const 1)))
          (br_if 0 (i32.lt_u (local.get 4) (i32.const 1000))))
        (local.get 3)";
    let manifest = json!({
        "name": "rule", "version": "1.0.0", "api": "0.2.0", "role": "filter",
        "tests": [{"name": "busy", "expect": {"audience": []}}],
    });
    let plugin = with_manifest(&filter(names, busy), &manifest.to_string());
    let plugin = loaded("rule", &plugin);
    let chain = || vec![Stage::new(plugin.clone(), json!({}), false, None)];
    let before = blueprint(LIMITS, chain(), None);
    assert!(Blueprint::prepare(chain(), LIMITS, Some(&before)).is_ok());
    let lower = Limits {
        fuel: 50_000,
        ..LIMITS
    };
    match Blueprint::prepare(chain(), lower, Some(&before)) {
        Ok(_) => panic!("it can't pass its self-test any more"),
        Err(problems) => assert!(problems[0].1.to_string().contains("self-test `busy`")),
    }
}

#[test]
fn all_that_is_wrong_is_reported_in_the_order_of_the_chain() {
    let chain = [
        ungranted("contacts"),
        stage("bad-config"),
        stage("failing-self-test"),
        configured("redact", json!({"keys": 5})),
        stage("blocklist"),
        stage("redact"),
        configured("picky", json!({})),
    ];
    let problems = problems(LIMITS, chain);
    let kinds = problems.iter().map(|problem| match problem {
        LoadError::NotGranted { plugin, .. } => ("grant", plugin.as_str()),
        LoadError::Configure { plugin, .. } => ("configuration", plugin.as_str()),
        LoadError::SelfTest { plugin, .. } => ("self-test", plugin.as_str()),
        LoadError::Chain { plugin, .. } => ("place", plugin.as_str()),
        other => panic!("{other}"),
    });
    assert_eq!(
        kinds.collect::<Vec<_>>(),
        [
            ("grant", "contacts"),
            ("configuration", "bad-config"),
            ("self-test", "failing-self-test"),
            ("configuration", "redact"),
            ("place", "blocklist"),
            ("place", "redact"),
            ("place", "picky"),
            ("configuration", "picky"),
        ]
    );
}

#[test]
fn blueprints_are_the_same_if_they_do_the_same() {
    let chain = |config| blueprint(LIMITS, [configured("redact", config)], None);
    let keys = chain(json!({"keys": ["device"]}));
    assert!(keys.is_same(&chain(json!({"keys": ["device"]}))));
    assert!(!keys.is_same(&chain(json!({"keys": []}))));
    assert!(!keys.is_same(&blueprint(LIMITS, [stage("contacts")], None)));
}

fn ungranted(file: &str) -> Stage {
    Stage::new(loaded(file, &bytes(file)), json!({}), false, None)
}

fn texts(problems: &[LoadError]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}
