//! Files that are no plugins, or not for this host: each is refused with one
//! line that says what is wrong.

use presence_sandbox::{LoadError, Plugin};
use serde_json::{Value, json};

use crate::component::{core_module, with_manifest, without_manifest};
use crate::stage::{ENGINE, LIMITS, bytes, made, problems};

#[test]
fn a_manifest_is_not_read_that_is_longer_than_any_is() {
    let long = format!("{{\"name\": \"{}\"}}", "x".repeat(1 << 20));
    let file = with_manifest(&bytes("contacts"), &long);
    let refusal = Plugin::load(&ENGINE, "long", &file).err().unwrap();
    let refusal = refusal.to_string();
    assert!(
        refusal.ends_with("bytes, and may have 1048576"),
        "{refusal}"
    );
}

#[test]
fn a_component_without_a_manifest() {
    assert_eq!(
        refusal(&without_manifest(&bytes("contacts"))),
        "`rule` is not a presence plugin: it has no `presence:manifest` section: \
         build it with `presence plugin build`"
    );
}

#[test]
fn a_component_for_another_version_of_the_api() {
    let text = refusal(&with("api", json!("0.3.0")));
    assert!(text.contains("built for presence:plugin 0.3.0"), "{text}");
    assert!(text.contains("this host speaks 0.1.0, 0.2.0"), "{text}");
}

#[test]
fn a_component_for_another_version_whose_manifest_says_something_unknown() {
    let manifest = r#"{"api": "0.3.0", "colour": "blue"}"#;
    let text = refusal(&with_manifest(&bytes("contacts"), manifest));
    assert!(
        text.contains("update the host, or build it against 0.2.0"),
        "{text}"
    );
}

#[test]
fn a_manifest_that_says_something_unknown() {
    let text = refusal(&with("colour", json!("blue")));
    assert!(
        text.contains("its manifest can't be read: unknown field `colour`"),
        "{text}"
    );
    let text = refusal(&with("role", json!("oracle")));
    assert!(text.contains("unknown variant `oracle`"), "{text}");
}

#[test]
fn a_manifest_that_lacks_something() {
    let text = refusal(&with_manifest(&bytes("contacts"), r#"{"name": "rule"}"#));
    assert!(text.contains("missing field `version`"), "{text}");
}

#[test]
fn a_manifest_that_is_not_json() {
    let text = refusal(&with_manifest(&bytes("contacts"), "name = 'rule'"));
    assert!(text.contains("its manifest can't be read"), "{text}");
}

#[test]
fn a_file_that_is_no_web_assembly() {
    for garbage in [&b"not at all"[..], b"", b"\0asm", b"#!/bin/sh\nexit\n"] {
        let text = refusal(garbage);
        assert!(
            text.starts_with("`rule` is not a presence plugin: "),
            "{text}"
        );
        assert!(text.contains("not a WebAssembly component"), "{text}");
    }
}

#[test]
fn a_file_that_is_cut_short() {
    let whole = bytes("contacts");
    for size in [whole.len() / 2, whole.len() - 1] {
        let text = refusal(&whole[..size]);
        assert!(
            text.starts_with("`rule` is not a presence plugin: "),
            "{text}"
        );
    }
}

#[test]
fn a_component_whose_code_is_not_valid() {
    // The manifest is intact, and the code isn't.
    let mut bytes = bytes("contacts");
    let place = bytes.windows(4).rposition(|four| four == b"\0asm").unwrap();
    bytes[place + 8..place + 40].fill(0x7e);
    let text = refusal(&bytes);
    assert!(
        text.starts_with("`rule` is not a presence plugin: "),
        "{text}"
    );
}

#[test]
fn a_core_module() {
    for module in [core_module(), without_manifest(&core_module())] {
        let text = refusal(&module);
        assert!(
            text.contains("it is a core module, not a component"),
            "{text}"
        );
    }
}

#[test]
fn a_component_that_wants_what_no_plugin_is_given() {
    let text = refusal(&bytes("wants-wasi"));
    assert!(text.starts_with("`rule` can't be linked: "), "{text}");
    assert!(text.contains("wasi:cli/environment"), "{text}");
}

#[test]
fn a_component_that_asks_for_a_capability_that_there_is_not() {
    let text = problems(LIMITS, [made(&with("capabilities", json!(["network"])))])
        .remove(0)
        .to_string();
    assert!(text.contains("asks for `network`"), "{text}");
}

#[test]
fn a_component_that_is_not_of_the_role_it_claims() {
    let text = problems(LIMITS, [made(&with("role", json!("redactor")))])
        .remove(0)
        .to_string();
    assert!(text.starts_with("`rule` can't be linked: "), "{text}");
    assert!(text.contains("`redact`"), "{text}");
}

/// The plugin `contacts`, with another value in its manifest.
fn with(key: &str, value: Value) -> Vec<u8> {
    let mut manifest = json!({
        "name": "rule", "version": "1.0.0", "api": "0.2.0", "role": "filter",
    });
    manifest[key] = value;
    with_manifest(&bytes("contacts"), &manifest.to_string())
}

/// The error of loading a file, in one line.
fn refusal(bytes: &[u8]) -> String {
    let error: LoadError = match Plugin::load(&ENGINE, "rule", bytes) {
        Ok(_) => panic!("it was loaded"),
        Err(error) => error,
    };
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}
