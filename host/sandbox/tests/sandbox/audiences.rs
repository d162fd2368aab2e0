//! Audiences: a token is valid for one call, and the ids in an audience are kept as long as they
//! are in use.

use presence_core::directory::Question;
use presence_core::rules::Context;
use serde_json::json;

use crate::component::filter;
use crate::stage::{configured, made, pipeline, stage};
use crate::world::World;

#[test]
fn a_token_of_another_call_is_an_error_and_the_instance_is_begun_afresh() {
    let world = World::new(&json!({"contacts": {"ada": ["ben"]}}));
    let mut rules = pipeline([stage("contacts"), stage("stale-token")]);
    assert_eq!(world.visible(&mut rules), ["ben"]);
    let (plugin, error) = world.failure(&mut rules);
    assert_eq!(plugin, "stale-token");
    assert_eq!(error, "used an audience that is not of this call");
    assert_eq!(world.visible(&mut rules), ["ben"]);
    world.failure(&mut rules);
}

#[test]
fn a_token_that_was_never_made_is_an_error() {
    let world = World::new(&json!({"contacts": {"ada": ["ben"]}}));
    for token in [0_u32, 2, u32::MAX] {
        let body = format!("(i32.const {})", token.cast_signed());
        let mut rules = pipeline([made(&filter("", &body))]);
        let (_, error) = world.failure(&mut rules);
        assert_eq!(
            error, "used an audience that is not of this call",
            "{token}"
        );
    }
}

#[test]
fn ids_never_seen_are_interned_only_until_a_sweep() {
    let world = World::new(&json!({"contacts": {"ada": ["ben"]}}));
    let known = world.names.len();
    let mut rules = pipeline([made(&admits_ben_and_zoe())]);
    assert_eq!(world.visible(&mut rules), ["ben", "zoe"]);
    assert_eq!(world.names.len(), known + 1);

    world.names.begin_sweep();
    keep_what_is_known(&world);
    assert_eq!(world.names.finish_sweep(), 1);
    assert_eq!(world.names.find("zoe"), None);
    assert_eq!(world.names.len(), known);
    assert_eq!(world.visible(&mut rules), ["ben", "zoe"]);
}

#[test]
fn ids_that_are_named_while_a_sweep_goes_on_are_kept() {
    let world = World::new(&json!({"contacts": {"ada": ["ben"]}}));
    let mut rules = pipeline([made(&admits_ben_and_zoe())]);
    world.visible(&mut rules);
    world.names.begin_sweep();
    keep_what_is_known(&world);
    let audience = world.renditions(&mut rules).remove(0).audience;
    assert_eq!(world.names.finish_sweep(), 0);
    assert_eq!(world.viewers(&audience), ["ben", "zoe"]);
}

#[test]
fn asking_whether_a_stranger_is_in_an_audience_interns_nobody() {
    let world = World::new(&json!({"contacts": {"ada": ["ben"]}}));
    let steps = json!(["contacts", {"contains": "stranger"}]);
    let mut rules = pipeline([configured("reader", json!({"steps": steps}))]);
    world.visible(&mut rules);
    assert_eq!(world.names.find("stranger"), None);
}

#[test]
fn the_names_of_viewers_come_out_as_they_went_in() {
    let odd = ["a\"b", "tab\there", "\u{1f600}", "12345"];
    let world = World::new(&json!({"contacts": {"ada": odd}}));
    let steps = json!(["contacts", "viewers"]);
    let mut rules = pipeline([configured("reader", json!({"steps": steps}))]);
    assert_eq!(
        world.visible(&mut rules),
        ["12345", "a\"b", "tab\there", "\u{1f600}"]
    );
}

#[test]
fn an_unchanged_set_is_handed_on_rather_than_copied() {
    let world = World::new(&json!({"contacts": {"ada": ["ben", "cleo"]}}));
    let mut rules = pipeline(["contacts", "groups", "blocklist", "redact"].map(stage));
    let Context { directory, .. } = world.context();
    let contacts = directory.audience(&Question::Contacts(world.id("ada")));
    assert!(
        world.renditions(&mut rules)[0]
            .audience
            .same(&contacts.unwrap())
    );
}

fn keep_what_is_known(world: &World) {
    world.names.keep(&world.directory.ids());
    world.names.keep(&world.audience(&["ada"]).bitmap());
}

/// A filter that makes an audience of the ids `ben` and `zoe`.
fn admits_ben_and_zoe() -> Vec<u8> {
    let names = r#"
        (data (i32.const 512) "benzoe")
        ;; Where each begins, and how long it is.
        (data (i32.const 256) "\00\02\00\00\03\00\00\00\03\02\00\00\03\00\00\00")"#;
    filter(names, "(call $of (i32.const 256) (i32.const 2))")
}
