//! WASI for plugins that ask for it and are granted it: its functions exist, and are denied.

use presence_sandbox::{Capabilities, Capability, Stage};
use serde_json::json;

use crate::component::with_manifest;
use crate::stage::{LIMITS, blueprint, bytes, loaded, problems};
use crate::world::World;

/// A stage with a filter that imports WASI and asks for it.
fn wanting(granted: bool) -> Stage {
    let manifest = json!({
        "name": "rule", "version": "1.0.0", "api": "0.2.0", "role": "filter",
        "capabilities": ["wasi"],
    });
    let plugin = with_manifest(&bytes("wants-wasi"), &manifest.to_string());
    let stage = Stage::new(loaded("rule", &plugin), json!({}), false, None);
    let grants = match granted {
        true => Capabilities::HOST_FUNCTIONS.with(Capability::Wasi),
        false => Capabilities::HOST_FUNCTIONS,
    };
    stage.with_grants(grants, Capabilities::ALL)
}

#[test]
fn it_has_to_be_granted() {
    let problems = problems(LIMITS, [wanting(false)]);
    let [problem] = problems.as_slice() else {
        panic!("{problems:?}");
    };
    assert_eq!(
        problem.to_string(),
        "`rule` asks for `wasi`; to grant it, put \"wasi\" into the grants of its [[pipeline]] entry"
    );
}

#[test]
fn a_call_of_it_ends_the_plugin_s_call() {
    let mut rules = blueprint(LIMITS, [wanting(true)], None)
        .instantiate()
        .unwrap();
    let (_, error) = World::new(&json!({})).failure(&mut rules);
    assert!(
        error.contains("wasi:cli/environment@0.2.0#get-environment"),
        "{error}"
    );
    assert!(error.contains("denied"), "{error}");
}
