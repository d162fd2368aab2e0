//! Components that tests make: files with another manifest, and rules that the SDK can't produce.

use presence_sandbox::manifest::SECTION;
use serde_json::json;
use wasm_encoder::{ComponentSection, CustomSection, Encode};

/// A component with this manifest instead of its own.
pub(crate) fn with_manifest(component: &[u8], manifest: &str) -> Vec<u8> {
    let mut bytes = without_manifest(component);
    let section = CustomSection {
        name: SECTION.into(),
        data: manifest.as_bytes().into(),
    };
    bytes.push(ComponentSection::id(&section));
    section.encode(&mut bytes);
    bytes
}

/// A component without a manifest.
pub(crate) fn without_manifest(component: &[u8]) -> Vec<u8> {
    const CUSTOM: u8 = 0;
    let (head, mut rest) = component.split_at(8);
    let mut kept = head.to_vec();
    while let Some((id, after)) = rest.split_first() {
        let (size, body) = leb128(after);
        let (body, next) = body.split_at(size);
        let section = &rest[..rest.len() - next.len()];
        let (name_size, name) = leb128(body);
        if *id != CUSTOM || name.get(..name_size) != Some(SECTION.as_bytes()) {
            kept.extend_from_slice(section);
        }
        rest = next;
    }
    kept
}

/// A core module with a manifest, as if it were a plugin.
pub(crate) fn core_module() -> Vec<u8> {
    with_manifest(&wat::parse_str("(module)").unwrap(), &manifest("filter"))
}

/// A filter that may widen. `body` leaves the token of an audience on the stack. Locals 0 to 2 are
/// the event, and local 3 is the audience so far.
pub(crate) fn filter(items: &str, body: &str) -> Vec<u8> {
    let call = format!(
        r#"{items}
        (func (export "call") (param i32 i32 i32 i32) (result i32) {body})"#
    );
    let export = r#"(func (export "filter")
        (param "event" $event) (param "audience" u32) (result u32)"#;
    component("filter", &call, export)
}

/// An enricher. `body` leaves the address of its list of changes on the stack.
pub(crate) fn enricher(items: &str, body: &str) -> Vec<u8> {
    let call = format!(
        r#"{items}
        (func (export "call") (param i32 i32 i32) (result i32) {body})"#
    );
    let export = r#"
        (type $value' (variant (case "text" string) (case "json" string)))
        (export $value "value" (type $value'))
        (type $change' (record (field "key" string) (field "value" (option $value))))
        (export $change "change" (type $change'))
        (func (export "enrich") (param "event" $event) (result (list $change))"#;
    component("enricher", &call, export)
}

/// An enricher that changes nothing, and also exports the function `name`.
pub(crate) fn enricher_with(name: &str) -> Vec<u8> {
    let module = format!(
        r#"(func (export "call") (param i32 i32 i32) (result i32) (i32.const 128))
        (func (export "{name}") (result i32) (i32.const 128))"#
    );
    let export = format!(
        r#"
        (type $value' (variant (case "text" string) (case "json" string)))
        (export $value "value" (type $value'))
        (type $change' (record (field "key" string) (field "value" (option $value))))
        (export $change "change" (type $change'))
        (type $state' (record (field "version" u32) (field "data" (list u8))))
        (export $state "state" (type $state'))
        (func (export "{name}") (result $state) (canon lift (core func $rule "{name}")
          (memory $libc "memory") (realloc (func $libc "realloc"))))
        (func (export "enrich") (param "event" $event) (result (list $change))"#
    );
    component("enricher", &module, &export)
}

/// A redactor. `body` leaves the address of its list of renditions on the stack.
pub(crate) fn redactor(items: &str, body: &str) -> Vec<u8> {
    let call = format!(
        r#"{items}
        (func (export "call") (param i32 i32 i32 i32) (result i32) {body})"#
    );
    let export = r#"
        (type $rendition' (record
          (field "audience" u32) (field "keys" (list string)) (field "last-seen" bool)))
        (export $rendition "rendition" (type $rendition'))
        (func (export "redact")
          (param "event" $event) (param "audience" u32) (result (list $rendition))"#;
    component("redactor", &call, export)
}

/// A component around a core module with a memory. Strings are passed to it at address 4096. It
/// imports the host functions `$of`, `$everyone` and `$with-setting`, and accepts any
/// configuration.
fn component(role: &str, module: &str, export: &str) -> Vec<u8> {
    let canon = r#"(memory $libc "memory") (realloc (func $libc "realloc"))"#;
    let text = format!(
        r#"(component
        (import "presence:plugin/events@0.2.0" (instance $events
          (type $kind' (enum "online" "offline"))
          (export "kind" (type $kind (eq $kind')))
          (type $event' (record (field "kind" $kind) (field "user" string)))
          (export "event" (type (eq $event')))))
        (alias export $events "event" (type $event))
        (import "presence:plugin/audiences@0.2.0" (instance $audiences
          (export "of" (func (param "users" (list string)) (result u32)))))
        (import "presence:plugin/directory@0.2.0" (instance $directory
          (export "everyone" (func (result u32)))
          (export "with-setting"
            (func (param "key" string) (param "value" string) (result u32)))))

        (core module $Libc
          (memory (export "memory") 1)
          (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096)))
        (core instance $libc (instantiate $Libc))
        (core func $of (canon lower (func $audiences "of") (memory $libc "memory")))
        (core func $everyone (canon lower (func $directory "everyone")))
        (core func $with-setting
          (canon lower (func $directory "with-setting") (memory $libc "memory")))
        (core instance $host
          (export "of" (func $of))
          (export "everyone" (func $everyone))
          (export "with-setting" (func $with-setting)))

        (core module $Rule
          (import "libc" "memory" (memory 1))
          (import "host" "of" (func $of (param i32 i32) (result i32)))
          (import "host" "everyone" (func $everyone (result i32)))
          (import "host" "with-setting"
            (func $with-setting (param i32 i32 i32 i32) (result i32)))
          (func (export "configure") (param i32 i32) (result i32) (i32.const 0))
          {module})
        (core instance $rule (instantiate $Rule
          (with "libc" (instance $libc)) (with "host" (instance $host))))
        (func (export "configure") (param "json" string) (result (result (error string)))
          (canon lift (core func $rule "configure") {canon}))
        {export}
          (canon lift (core func $rule "call") {canon})))"#
    );
    with_manifest(&wat::parse_str(text).unwrap(), &manifest(role))
}

fn manifest(role: &str) -> String {
    let effect = if role == "filter" { "widen" } else { "narrow" };
    json!({"name": "rule", "version": "1.0.0", "api": "0.2.0", "role": role, "effect": effect})
        .to_string()
}

/// Reads a LEB128 number at the beginning of some bytes. Returns it with the rest.
fn leb128(bytes: &[u8]) -> (usize, &[u8]) {
    let (mut number, mut shift) = (0, 0);
    for (place, byte) in bytes.iter().enumerate() {
        number |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return (number, &bytes[place + 1..]);
        }
    }
    panic!("a number without an end")
}
