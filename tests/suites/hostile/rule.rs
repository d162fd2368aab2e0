//! Components that the test makes: rules too odd to be written with the kit. Each behaves correctly
//! for all users but its victims.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

/// The section that holds the manifest.
const MANIFEST: &str = "presence:manifest";

/// The length of victims' ids. No other id has this length.
pub(super) const VICTIM_BYTES: usize = 7;

/// A rule. All texts are WAT. An empty one adds nothing.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) role: &'static str,
    /// The code of the call for a victim. Local 0 has the kind of the event, locals 1 and 2 the
    /// user's id, and local 3 the audience. Locals 4 and 5 are free.
    pub(super) call: String,
    /// The code that runs before this, at every call.
    pub(super) always: String,
    /// The code of `configure`. It leaves the address of the result on the stack.
    pub(super) configure: String,
    /// Items of the rule's module.
    pub(super) module: String,
    /// Items of the component, and the rest of its exports.
    pub(super) component: String,
    /// Imports of the rule's module, besides the host's functions.
    pub(super) with: String,
    /// Further exports of the component.
    pub(super) exports: String,
    /// The code of `realloc`. It leaves the address of the memory on the stack. Local 3 is the new
    /// size.
    pub(super) realloc: String,
    /// Options with which the answer of the call is lifted, besides memory and `realloc`.
    pub(super) lift: String,
    /// The limits of the memory, in pages.
    pub(super) pages: String,
    /// Manifest keys that are added or replaced.
    pub(super) manifest: Map<String, Value>,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            role: "filter",
            call: String::new(),
            always: String::new(),
            configure: "(i32.const 0)".into(),
            module: String::new(),
            component: String::new(),
            with: String::new(),
            exports: String::new(),
            realloc: "(i32.const 4096)".into(),
            lift: String::new(),
            pages: "1".into(),
            manifest: Map::new(),
        }
    }
}

/// A filter that runs this code for its victims.
pub(super) fn filter(call: impl Into<String>) -> Rule {
    Rule {
        call: call.into(),
        ..Rule::default()
    }
}

/// A redactor that runs this code for its victims.
pub(super) fn redactor(call: impl Into<String>) -> Rule {
    Rule {
        role: "redactor",
        ..filter(call)
    }
}

/// An enricher that runs this code for its victims.
pub(super) fn enricher(call: impl Into<String>) -> Rule {
    Rule {
        role: "enricher",
        ..filter(call)
    }
}

/// Runs some code again and again, without end.
pub(super) fn forever(body: &str) -> String {
    format!("(loop {body} (br 0))")
}

/// Runs some code this many times, with the number of the turn in local 4. The three bytes at 8192
/// are another text each time.
pub(super) fn times(turns: usize, body: &str) -> String {
    format!(
        "(loop
          (i32.store8 (i32.const 8192) (i32.and (local.get 4) (i32.const 127)))
          (i32.store8 (i32.const 8193)
            (i32.and (i32.shr_u (local.get 4) (i32.const 7)) (i32.const 127)))
          (i32.store8 (i32.const 8194) (i32.shr_u (local.get 4) (i32.const 14)))
          {body}
          (local.set 4 (i32.add (local.get 4) (i32.const 1)))
          (br_if 0 (i32.lt_u (local.get 4) (i32.const {turns}))))"
    )
}

const LIFTED: &str = r#"(memory $libc "memory") (realloc (func $libc "realloc"))"#;

impl Rule {
    /// Sets a key of the manifest.
    pub(super) fn with_manifest_key(mut self, key: &str, value: Value) -> Self {
        self.manifest.insert(key.into(), value);
        self
    }

    /// The plugin's file.
    pub(super) fn bytes(&self) -> Result<Vec<u8>> {
        let component = wat::parse_str(self.text()).context("a rule that is no WAT")?;
        let mut manifest = json!({
            "name": "rule", "version": "1.0.0", "api": "0.2.0", "role": self.role,
        });
        for (key, value) in &self.manifest {
            manifest[key] = value.clone();
        }
        Ok(with_section(
            component,
            MANIFEST,
            manifest.to_string().as_bytes(),
        ))
    }

    fn text(&self) -> String {
        let Self {
            call,
            always,
            configure,
            module,
            component,
            with,
            exports,
            realloc,
            lift,
            pages,
            ..
        } = self;
        let (params, result) = match self.role {
            // Enrichers have no audience. The locals have the same numbers.
            "enricher" => (
                "(param i32 i32 i32) (result i32) (local i32 i32 i32)",
                "(i32.const 128)",
            ),
            "redactor" => (
                "(param i32 i32 i32 i32) (result i32) (local i32 i32)",
                // One rendition, for all, which shows nothing.
                "(i32.store (i32.const 128) (i32.const 256))
                 (i32.store (i32.const 132) (i32.const 1))
                 (i32.store (i32.const 256) (local.get 3))
                 (i32.store (i32.const 264) (i32.const 0))
                 (i32.const 128)",
            ),
            _ => (
                "(param i32 i32 i32 i32) (result i32) (local i32 i32)",
                "(local.get 3)",
            ),
        };
        let export = match self.role {
            "enricher" => {
                r#"
                (type $change' (record (field "key" string) (field "value" (option $value))))
                (export $change "change" (type $change'))
                (func (export "enrich") (param "event" $event) (result (list $change))"#
            }
            "redactor" => {
                r#"
                (type $rendition' (record
                  (field "audience" u32) (field "keys" (list string)) (field "last-seen" bool)))
                (export $rendition "rendition" (type $rendition'))
                (func (export "redact")
                  (param "event" $event) (param "audience" u32) (result (list $rendition))"#
            }
            _ => {
                r#"(func (export "filter")
                (param "event" $event) (param "audience" u32) (result u32)"#
            }
        };
        format!(
            r#"(component
            {IMPORTS}
            (core module $Libc
              (memory (export "memory") {pages})
              (func (export "realloc") (param i32 i32 i32 i32) (result i32) {realloc}))
            (core instance $libc (instantiate $Libc))
            {LOWERED}
            {component}
            (core module $Rule
              (import "libc" "memory" (memory {pages}))
              {HOST}
              {module}
              (func (export "configure") (param i32 i32) (result i32) {configure})
              (func (export "call") {params}
                {always}
                (if (i32.eq (local.get 2) (i32.const {VICTIM_BYTES})) (then {call}))
                {result}))
            (core instance $rule (instantiate $Rule
              (with "libc" (instance $libc)) (with "host" (instance $host)) {with}))
            (func (export "configure") (param "json" string) (result (result (error string)))
              (canon lift (core func $rule "configure") {LIFTED}))
            {exports}
            {export}
              (canon lift (core func $rule "call") {LIFTED} {lift})))"#
        )
    }
}

/// A component with one more custom section.
pub(super) fn with_section(mut component: Vec<u8>, name: &str, data: &[u8]) -> Vec<u8> {
    let mut content = leb128(name.len());
    content.extend(name.as_bytes());
    content.extend(data);
    component.push(0);
    component.extend(leb128(content.len()));
    component.extend(content);
    component
}

fn leb128(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push(0x80 | (number & 0x7f) as u8);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

const IMPORTS: &str = r#"
    (import "presence:plugin/events@0.2.0" (instance $events
      (type $kind' (enum "online" "offline"))
      (export "kind" (type $kind (eq $kind')))
      (type $event' (record (field "kind" $kind) (field "user" string)))
      (export "event" (type (eq $event')))
      (type $value' (variant (case "text" string) (case "json" string)))
      (export "value" (type $value (eq $value')))
      (export "get" (func (param "key" string) (result (option $value))))))
    (alias export $events "event" (type $event))
    (alias export $events "value" (type $value))
    (import "presence:plugin/audiences@0.2.0" (instance $audiences
      (export "nobody" (func (result u32)))
      (export "of" (func (param "users" (list string)) (result u32)))
      (export "union" (func (param "a" u32) (param "b" u32) (result u32)))
      (export "difference" (func (param "a" u32) (param "b" u32) (result u32)))
      (export "viewers" (func (param "a" u32) (result (list string))))))
    (import "presence:plugin/directory@0.2.0" (instance $directory
      (export "contacts" (func (param "user" string) (result u32)))
      (export "members" (func (param "group" string) (result u32)))
      (export "co-members" (func (param "user" string) (result u32)))
      (export "everyone" (func (result u32)))))
    (import "presence:plugin/host@0.2.0" (instance $say
      (type $level' (enum "error" "warn" "info" "debug"))
      (export "level" (type $level (eq $level')))
      (export "log" (func (param "level" $level) (param "text" string)))))
"#;

const LOWERED: &str = r#"
    (core func $get (canon lower (func $events "get")
      (memory $libc "memory") (realloc (func $libc "realloc"))))
    (core func $nobody (canon lower (func $audiences "nobody")))
    (core func $of (canon lower (func $audiences "of") (memory $libc "memory")))
    (core func $union (canon lower (func $audiences "union")))
    (core func $difference (canon lower (func $audiences "difference")))
    (core func $viewers (canon lower (func $audiences "viewers")
      (memory $libc "memory") (realloc (func $libc "realloc"))))
    (core func $contacts (canon lower (func $directory "contacts") (memory $libc "memory")))
    (core func $members (canon lower (func $directory "members") (memory $libc "memory")))
    (core func $co-members (canon lower (func $directory "co-members") (memory $libc "memory")))
    (core func $everyone (canon lower (func $directory "everyone")))
    (core func $log (canon lower (func $say "log") (memory $libc "memory")))
    (core instance $host
      (export "get" (func $get))
      (export "nobody" (func $nobody))
      (export "of" (func $of))
      (export "union" (func $union))
      (export "difference" (func $difference))
      (export "viewers" (func $viewers))
      (export "contacts" (func $contacts))
      (export "members" (func $members))
      (export "co-members" (func $co-members))
      (export "everyone" (func $everyone))
      (export "log" (func $log)))
"#;

const HOST: &str = r#"
    (import "host" "get" (func $get (param i32 i32 i32)))
    (import "host" "nobody" (func $nobody (result i32)))
    (import "host" "of" (func $of (param i32 i32) (result i32)))
    (import "host" "union" (func $union (param i32 i32) (result i32)))
    (import "host" "difference" (func $difference (param i32 i32) (result i32)))
    (import "host" "viewers" (func $viewers (param i32 i32)))
    (import "host" "contacts" (func $contacts (param i32 i32) (result i32)))
    (import "host" "members" (func $members (param i32 i32) (result i32)))
    (import "host" "co-members" (func $co-members (param i32 i32) (result i32)))
    (import "host" "everyone" (func $everyone (result i32)))
    (import "host" "log" (func $log (param i32 i32 i32)))
"#;
