//! Settings: which users have one, and the default plugins that use them.

use presence_core::event::Reason;
use presence_core::rules::{Reads, Rules};
use presence_sandbox::{Limits, Stage};
use serde_json::{Value, json};

use crate::component::filter;
use crate::log::logged;
use crate::stage::{LIMITS, configured, made, pipeline, stage, within};
use crate::world::World;

#[test]
fn a_user_with_a_setting_is_found_however_a_component_formats_it() {
    let world = World::new(&json!({"settings": {
        "ben": {"mode": {"at": [1, 2], "on": true}},
        "cleo": {"mode": {"on": true, "at": [2, 1]}},
    }}));
    let mut rules = pipeline([asking("mode", " { \"on\":true,\n\"at\" : [1,2] } ")]);
    assert_eq!(world.visible(&mut rules), ["ben"]);
}

#[test]
fn asking_for_what_is_not_json_ends_the_call() {
    let world = World::new(&json!({}));
    let (_, error) = world.failure(&mut pipeline([asking("mode", "on")]));
    let words = "asked for a setting that is not JSON: expected value";
    assert!(error.starts_with(words), "{error}");
}

#[test]
fn the_reading_of_a_value_is_charged_as_fuel() {
    let value = format!("[{}0]", "0,".repeat(500));
    let with = |fuel| within(Limits { fuel, ..LIMITS }, [asking("mode", &value)]);
    let world = World::new(&json!({}));
    assert!(world.visible(&mut with(20_000)).is_empty());
    let (_, error) = world.failure(&mut with(10_000));
    assert_eq!(error, "used up its fuel of 10000");
}

#[test]
fn while_a_user_is_online_it_is_decided_who_knows_once_they_are_gone() {
    let may_know = |settings: serde_json::Value, redact: serde_json::Value| {
        let world = messenger(settings);
        let mut rules = pipeline([stage("contacts"), configured("redact", redact)]);
        let renditions = world.renditions(&mut rules);
        let knows = renditions.iter().filter(|it| it.last_seen);
        let knows = knows.flat_map(|it| world.viewers(&it.audience));
        (knows.collect::<Vec<_>>(), world.reads(&mut rules))
    };
    let nobody = || json!({"lastSeen": "nobody"});
    let (plain, reads) = may_know(nobody(), json!({}));
    assert_eq!(plain, ["ben", "cleo"]);
    assert_eq!(reads.questions.len(), 1, "the contacts alone");
    let by_settings = json!({"user_settings": true});
    let (by_settings, reads) = may_know(nobody(), by_settings);
    assert!(by_settings.is_empty());
    assert_ne!(reads, Reads::default());
    assert_eq!(reads.questions.len(), 2, "the user's settings count");
}

#[test]
fn the_tier_everyone_is_the_admitted_viewers_unless_public_is_in_the_pipeline() {
    let world = messenger(json!({"online": "everyone"}));
    let mut narrow = pipeline(["contacts", "privacy", "redact"].map(stage));
    assert_eq!(world.visible(&mut narrow), ["ben", "cleo"]);
    let mut wide = pipeline(["contacts", "public", "privacy", "redact"].map(stage));
    assert_eq!(world.visible(&mut wide), ["ada", "ben", "cleo", "dan"]);
}

#[test]
fn a_setting_that_can_t_be_read_is_logged_and_hides() {
    let world = messenger(json!({"online": "friends"}));
    let mut rules = pipeline(["contacts", "privacy", "redact"].map(stage));
    let lines = logged(|| assert!(world.visible(&mut rules).is_empty()));
    assert!(
        lines[0].starts_with("setting \"online\" of user \"ada\": unknown variant `friends`"),
        "{lines:?}"
    );
}

#[test]
fn each_rule_that_takes_somebody_out_says_why() {
    for (settings, chain, why) in [
        (
            json!({"invisible": true}),
            "privacy",
            "the user is invisible",
        ),
        (json!({"online": "contacts"}), "privacy", "only contacts"),
        (json!({}), "do-not-disturb", "not want to be disturbed"),
    ] {
        let world = messenger(settings);
        let lines = logged(|| drop(world.decide(&mut pipeline([stage(chain)]))));
        assert!(lines.iter().any(|line| line.contains(why)), "{lines:?}");
    }
    let mut world = messenger(json!({"lastSeen": "nobody"}));
    world.offline(1, Reason::Logout);
    let redact = json!({"tiers": [{"for": "contacts", "keys": [], "last_seen": true}],
        "user_settings": true, "reciprocal": true});
    let told = world.audience(&["ben", "dan"]);
    let mut rules = pipeline([configured("redact", redact)]);
    let lines = logged(|| drop(rules.redact(world.context(), &told)));
    assert_eq!(
        lines,
        [
            "viewers who belong to no tier are not told",
            "the user shows nobody when they were last seen",
            "viewers who show nobody when they were last seen don't get to know it",
        ]
    );
}

/// `ada` has these settings and two contacts, and `dan` has a setting, too.
fn messenger(settings: Value) -> World {
    World::new(&json!({
        "contacts": {"ada": ["ben", "cleo"]},
        "settings": {"ada": settings, "dan": {"doNotDisturb": true}},
    }))
}

/// A filter that asks which users have a setting with this value. The host gets the text as it is.
fn asking(key: &str, value: &str) -> Stage {
    let escaped: String = value.bytes().map(|byte| format!("\\{byte:02x}")).collect();
    let data = format!(r#"(data (i32.const 256) "{key}") (data (i32.const 512) "{escaped}")"#);
    let body = format!(
        "(call $with-setting (i32.const 256) (i32.const {}) (i32.const 512) (i32.const {}))",
        key.len(),
        value.len(),
    );
    made(&filter(&data, &body))
}
