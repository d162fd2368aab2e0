//! What plugins ask for and what they are granted: both are checked, and functions that aren't
//! granted aren't linked.

use presence_sandbox::{Capabilities, Capability, LoadError, Plugin, Stage};
use serde_json::{Value, json};

use crate::component::{filter, with_manifest};
use crate::stage::{ENGINE, LIMITS, blueprint, loaded, problems};
use crate::world::World;

/// A filter that imports `everyone` and `with-setting`, with these capabilities in its manifest.
fn plugin(capabilities: Value) -> Vec<u8> {
    let component = filter("", "(call $everyone)");
    let manifest = json!({
        "name": "rule", "version": "1.0.0", "api": "0.2.0", "role": "filter", "effect": "widen",
        "capabilities": capabilities,
    });
    with_manifest(&component, &manifest.to_string())
}

fn stage(capabilities: Value, granted: &[Capability], ceiling: Capabilities) -> Stage {
    let plugin = loaded("rule", &plugin(capabilities));
    let granted = granted.iter().copied().collect();
    Stage::new(plugin, json!({}), false, None).with_grants(granted, ceiling)
}

use Capability::{Contacts, Everyone, Settings, Widen};

/// The errors of a stage.
fn refusals(stage: Stage) -> Vec<String> {
    let problems = problems(LIMITS, [stage]);
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn a_manifest_that_names_no_functions_asks_for_those_that_are_imported() {
    let stage = |granted: &[Capability]| stage(json!([]), granted, Capabilities::ALL);
    let mut rules = blueprint(LIMITS, [stage(&[Widen, Everyone, Settings])], None)
        .instantiate()
        .unwrap();
    let world = World::new(&json!({"contacts": {"ada": ["ben"]}}));
    assert_eq!(world.visible(&mut rules), ["ada", "ben"]);
    assert_eq!(
        refusals(stage(&[Widen, Everyone, Contacts])),
        [
            "`rule` asks for `settings`; to grant it, put \"settings\" into the grants of its \
          [[pipeline]] entry"
        ]
    );
    assert_eq!(refusals(stage(&[])).len(), 3);
}

#[test]
fn a_manifest_that_names_some_names_all() {
    let all = &[Widen, Everyone, Settings, Contacts];
    let names = |names: Value| Plugin::load(&ENGINE, "rule", &plugin(names)).err();
    assert!(names(json!(["everyone", "settings"])).is_none());
    let refusal = names(json!(["everyone", "contacts"])).unwrap();
    assert!(matches!(refusal, LoadError::Link { .. }));
    assert_eq!(
        refusal.to_string(),
        "`rule` can't be linked: it imports `with-setting`, and its manifest doesn't ask for \
         that: put \"settings\" into its capabilities"
    );
    // What the manifest asks for must be granted, even if the plugin doesn't import it.
    let more = json!(["everyone", "settings", "contacts"]);
    let asking = |granted: &[Capability]| stage(more.clone(), granted, Capabilities::ALL);
    assert!(refusals(asking(&all[..3]))[0].contains("asks for `contacts`"));
    blueprint(LIMITS, [asking(all)], None);
    // `widen` doesn't belong into the list, and neither do unknown names.
    for name in ["widen", "fly"] {
        let stage = stage(json!([name]), all, Capabilities::ALL);
        let refusals = refusals(stage);
        assert!(refusals[0].contains(&format!("asks for `{name}`, which this host doesn't give")));
    }
}

#[test]
fn what_no_plugin_may_have_none_gets_whatever_its_entry_grants() {
    let ceiling = Capabilities::ALL.difference(Capabilities::NONE.with(Everyone));
    assert_eq!(
        refusals(stage(json!([]), &[Widen, Everyone, Settings], ceiling)),
        [
            "`rule` asks for `everyone`, which [plugins] grants allows to no plugin; to allow it, \
          put \"everyone\" into that list"
        ]
    );
}
