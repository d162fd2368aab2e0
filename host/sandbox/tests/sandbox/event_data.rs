//! What the host tells components: the data arrives unchanged.

use presence_core::event::Reason;
use serde_json::{Value, json};

use crate::log::logged;
use crate::stage::{configured, pipeline};
use crate::world::{NOW, World};

#[test]
fn metadata_arrives_unescaped_if_it_is_text_and_as_it_is_if_it_is_not() {
    let mut world = world();
    world.online(
        "ada",
        r#"{"text": "a\"b\u00e9", "json": {"b":1, "a":[ ]}, "number": 1.50}"#,
    );
    assert_eq!(
        lines(
            &world,
            json!([{"get": "text"}, {"get": "json"}, {"get": "number"}, {"get": "none"}])
        ),
        [
            r#"get: Some(Value::Text("a\"bé"))"#,
            r#"get: Some(Value::Json("{\"b\":1, \"a\":[ ]}"))"#,
            r#"get: Some(Value::Json("1.50"))"#,
            "get: None",
        ]
    );
}

#[test]
fn all_metadata_arrives_in_its_order() {
    let mut world = world();
    world.online("ada", r#"{"z": 1, "a": "b"}"#);
    assert_eq!(
        lines(&world, json!(["entries"])),
        [r#"entries: [("z", Value::Json("1")), ("a", Value::Text("b"))]"#]
    );
}

#[test]
fn times_arrive_to_the_millisecond() {
    let mut world = world();
    world.now = NOW + 1;
    assert_eq!(
        lines(&world, json!(["timestamp", "now"])),
        [format!("timestamp: {NOW}"), format!("now: {}", NOW + 1)]
    );
}

#[test]
fn only_who_is_offline_was_last_seen_and_left_for_a_reason() {
    let mut world = world();
    let steps = json!(["last_seen", "reason"]);
    assert_eq!(
        lines(&world, steps.clone()),
        ["last-seen: None", "reason: None"]
    );
    for (reason, name) in [
        (Reason::Disconnect, "Disconnect"),
        (Reason::Timeout, "Timeout"),
        (Reason::Logout, "Logout"),
    ] {
        world.offline(7, reason);
        assert_eq!(
            lines(&world, steps.clone()),
            [
                "last-seen: Some(7)".to_owned(),
                format!("reason: Some(OfflineReason::{name})"),
            ]
        );
    }
}

#[test]
fn the_directory_says_what_it_was_told() {
    let steps = json!(["groups", {"setting": "visible"}, {"setting": "other"}]);
    assert_eq!(
        lines(&world(), steps),
        [
            r#"groups: ["all", "team"]"#,
            "setting: Ok(Some(true))",
            "setting: Ok(None)",
        ]
    );
}

#[test]
fn audiences_can_be_looked_into() {
    let steps = json!([
        "contacts", "len", {"contains": "ben"}, {"contains": "ada"}, {"contains": "stranger"},
        "viewers", "blocked_by", "len", "viewers",
    ]);
    assert_eq!(
        lines(&world(), steps),
        [
            "len: 2",
            "contains: true",
            "contains: false",
            "contains: false",
            r#"viewers: ["ben", "cleo"]"#,
            "len: 1",
            r#"viewers: ["ben"]"#,
        ]
    );
}

/// The reasons that the plugin `reader` gives with these steps.
fn lines(world: &World, steps: Value) -> Vec<String> {
    let mut rules = pipeline([configured("reader", json!({"steps": steps}))]);
    logged(|| drop(world.decide(&mut rules)))
}

fn world() -> World {
    World::new(&json!({
        "contacts": {"ada": ["ben", "cleo"]},
        "groups": {"team": ["ada", "ben"], "all": ["ada", "dan"]},
        "blocks": {"ada": ["cleo"]},
        "settings": {"ada": {"visible": true}},
    }))
}
