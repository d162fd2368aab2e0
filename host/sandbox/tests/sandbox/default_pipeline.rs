//! The default pipeline: contacts and groups, without blocked users, and with less metadata.

use presence_core::event::Reason;
use presence_sandbox::Pipeline;
use serde_json::json;

use crate::stage::{configured, pipeline, stage};
use crate::world::World;

#[test]
fn contacts_and_groups_are_admitted_and_the_blocked_removed() {
    let world = World::new(&json!({
        "contacts": {"ada": ["ben", "cleo"], "zoe": ["ada"]},
        "groups": {"team": ["ada", "dan", "eve"], "others": ["fay"]},
        "blocks": {"ada": ["cleo", "eve", "gus"], "ben": ["ada"]},
    }));
    assert_eq!(world.visible(&mut default_pipeline()), ["ben", "dan"]);
}

#[test]
fn a_user_whom_nobody_knows_is_shown_to_nobody() {
    let mut world = World::new(&json!({"contacts": {"ada": ["ben"]}}));
    world.online("nemo", "{}");
    assert!(world.visible(&mut default_pipeline()).is_empty());
}

#[test]
fn every_viewer_gets_the_configured_keys_and_when_the_user_was_last_seen() {
    let world = World::new(&json!({"contacts": {"ada": ["ben"]}}));
    let renditions = world.renditions(&mut default_pipeline());
    assert_eq!(renditions.len(), 1);
    assert_eq!(*renditions[0].keys, ["device".into()]);
    assert!(renditions[0].last_seen);
}

#[test]
fn an_offline_is_redacted_for_exactly_the_told_and_filters_are_not_asked() {
    let mut world = World::new(&json!({"contacts": {"ada": ["ben"]}}));
    world.offline(1, Reason::Logout);
    let told = world.audience(&["ben", "yan"]);
    let renditions = world.redacted(&mut default_pipeline(), &told);
    assert_eq!(renditions.len(), 1);
    assert_eq!(renditions[0].audience, told);
}

#[test]
fn a_pipeline_without_a_redactor_gives_no_keys() {
    let world = World::new(&json!({"contacts": {"ada": ["ben"]}}));
    let renditions = world.renditions(&mut pipeline([stage("contacts")]));
    assert_eq!(world.viewers(&renditions[0].audience), ["ben"]);
    assert!(renditions[0].keys.is_empty());
    assert!(renditions[0].last_seen);
}

#[test]
fn a_pipeline_without_filters_admits_nobody() {
    let world = World::new(&json!({"contacts": {"ada": ["ben"]}}));
    assert!(world.visible(&mut pipeline([stage("redact")])).is_empty());
    assert!(world.visible(&mut pipeline([])).is_empty());
}

fn default_pipeline() -> Pipeline {
    pipeline([
        stage("contacts"),
        stage("groups"),
        stage("blocklist"),
        configured("redact", json!({"keys": ["device"]})),
    ])
}
