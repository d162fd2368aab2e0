//! Plugins that a node refuses: they declare too much, they don't finish while they are loaded, or
//! their manifests lie.

use std::fmt::Write as _;

use anyhow::Result;
use presence_tests::component;
use serde_json::{Value, json};

use super::rule::{Rule, enricher, filter, forever, with_section};

/// A plugin's file, and what the node says when it refuses it.
pub(super) struct Case {
    pub(super) what: &'static str,
    pub(super) bytes: Vec<u8>,
    pub(super) refused: &'static str,
}

/// All of them.
pub(super) fn cases() -> Result<Vec<Case>> {
    let rules = declared().into_iter().chain(begun()).chain(lying());
    let mut cases = Vec::new();
    for (what, rule, refused) in rules {
        let bytes = rule.bytes()?;
        cases.push(Case {
            what,
            bytes,
            refused,
        });
    }
    cases.extend(files()?);
    Ok(cases)
}

type Named = (&'static str, Rule, &'static str);

/// A rule with a module that is instantiated this many times.
fn many(items: &str, times: usize) -> Rule {
    let instances = "(core instance (instantiate $many))".repeat(times);
    Rule {
        component: format!("(core module $many {items}) {instances}"),
        ..Rule::default()
    }
}

/// Components that declare too much.
fn declared() -> Vec<Named> {
    let module = |items: String| Rule {
        module: items,
        ..Rule::default()
    };
    let pages = |pages: &str| Rule {
        module: format!("(memory {pages})"),
        ..Rule::default()
    };
    let imports: String = (0..600).fold(String::new(), |mut text, number| {
        let _ = write!(text, r#"(import "m" "f" (func $f{number}))"#);
        text
    });
    let nested = format!("{}{}", "(component ".repeat(20), ")".repeat(20));
    let mut doubled =
        "(component $c0 (core module $m (memory 0)) (core instance (instantiate $m)))".to_owned();
    for level in 1..=12 {
        let inner = level - 1;
        doubled = format!(
            "(component $c{level} {doubled}
              (instance (instantiate $c{inner})) (instance (instantiate $c{inner})))"
        );
    }
    vec![
        (
            "many memories",
            many(&"(memory 0)".repeat(15), 9),
            "memories, and a plugin may have 16",
        ),
        (
            "many tables",
            many(&"(table 0 funcref)".repeat(30), 9),
            "tables, and a plugin may have 64",
        ),
        (
            "many instances",
            many("", 200),
            "core instances, and a plugin may have 128",
        ),
        (
            "many globals",
            many(
                &"(global (mut v128) (v128.const i64x2 1 1))".repeat(9_000),
                9,
            ),
            "globals, and a plugin may have 65536",
        ),
        (
            "many functions",
            module("(func)".repeat(270_000)),
            "functions, and a plugin may have 262144",
        ),
        (
            "many imports of core modules",
            Rule {
                component: format!(
                    r#"(core module $one (func (export "f"))) (core instance $one (instantiate $one))
                    (core module $many {imports}) {}"#,
                    r#"(core instance (instantiate $many (with "m" (instance $one))))"#.repeat(120)
                ),
                ..Rule::default()
            },
            "imports of core modules, and a plugin may have 65536",
        ),
        (
            "many types",
            module("(type (func))".repeat(70_000)),
            "types, and a plugin may have 65536",
        ),
        (
            "a giant function",
            module(format!("(func {})", "nop ".repeat(1_100_000))),
            "and a function may have 1048576",
        ),
        (
            "a function that takes the compiler very long",
            module(format!(
                "(func (local {}) {} {})",
                "i32 ".repeat(3_000),
                "(loop (br_if 0 (local.get 0))".repeat(3_000),
                ")".repeat(3_000)
            )),
            "which can't be compiled in reasonable time",
        ),
        (
            "deep nesting",
            Rule {
                component: nested,
                ..Rule::default()
            },
            "nested more than 16 deep",
        ),
        (
            "components that double at each level",
            Rule {
                component: format!("{doubled} (instance (instantiate $c12))"),
                ..Rule::default()
            },
            "memories, and a plugin may have 16",
        ),
        (
            "a memory of 4 GiB",
            pages("65536"),
            "refused more than 67108864 bytes of memory",
        ),
        (
            "a memory of 64 bits that is larger than any machine",
            pages("i64 0x800000000000"),
            "memory",
        ),
        ("a shared memory", pages("1 1 shared"), "threads"),
        (
            "a giant table",
            module("(table 10000000 funcref)".into()),
            "refused more than 67108864 bytes of memory",
        ),
        (
            "a giant element segment",
            module(format!(
                "(func $f) (table 9000000 funcref) (elem (i32.const 0) func {})",
                "$f ".repeat(50_000)
            )),
            "refused more than 67108864 bytes of memory",
        ),
        (
            "a data segment outside its memory",
            module(r#"(data (i32.const 65536) "x")"#.into()),
            "out of bounds",
        ),
        (
            "a module that it is given",
            Rule {
                component:
                    r#"(import "m" (core module $given)) (core instance (instantiate $given))"#
                        .into(),
                ..Rule::default()
            },
            "is given",
        ),
        (
            "an interface that no plugin is given",
            Rule {
                component: r#"(import "presence:plugin/secrets@0.2.0" (instance
                    (export "read" (func (result string)))))"#
                    .into(),
                ..Rule::default()
            },
            "can't be linked",
        ),
        (
            "WASI that it doesn't ask for",
            Rule {
                component: r#"(import "wasi:cli/environment@0.2.0" (instance
                    (export "get-arguments" (func (result (list string))))))"#
                    .into(),
                ..Rule::default()
            },
            "it imports wasi:cli/environment@0.2.0",
        ),
        (
            "WASI that it wasn't granted",
            Rule {
                component: r#"(import "wasi:cli/environment@0.2.0" (instance
                    (export "get-arguments" (func (result (list string))))))"#
                    .into(),
                ..Rule::default()
            }
            .with_manifest_key("capabilities", json!(["wasi"])),
            "asks for `wasi`",
        ),
    ]
}

/// Components that misbehave while they are loaded.
fn begun() -> Vec<Named> {
    let spin = forever("");
    let started = |body: &str| Rule {
        module: format!("(func $begin {body}) (start $begin)"),
        ..Rule::default()
    };
    let configured = |body: &str| Rule {
        configure: format!("{body} (i32.const 0)"),
        ..Rule::default()
    };
    let tested = |call: &str, expected: Value| {
        filter(call).with_manifest_key(
            "tests",
            json!([{
                "name": "the victim",
                "event": {"type": "user_online", "userId": "m-00000", "timestamp": 1},
                "expect": {"audience": expected},
            }]),
        )
    };
    vec![
        ("a start that loops", started(&spin), "used up its fuel of 10000000"),
        ("a start that traps", started("unreachable"), "trapped: wasm trap: wasm `unreachable`"),
        (
            "a start that takes all memory",
            started("(loop (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then unreachable)) (br 0))"),
            "refused more than 67108864 bytes of memory",
        ),
        ("a configure that loops", configured(&spin), "refuses its configuration: used up its fuel"),
        ("a configure that traps", configured("unreachable"), "refuses its configuration: trapped"),
        (
            "a configure that asks about an event",
            configured("(drop (call $everyone))"),
            "there is no event to ask about",
        ),
        (
            "a configure that refuses in so many words",
            Rule {
                pages: "200".into(),
                configure: "(memory.fill (i32.const 65536) (i32.const 120) (i32.const 8000000))
                    (i32.store8 (i32.const 64) (i32.const 1)) (i32.store (i32.const 68) (i32.const 65536))
                    (i32.store (i32.const 72) (i32.const 8000000)) (i32.const 64)"
                    .into(),
                ..Rule::default()
            },
            "refuses its configuration: xxx",
        ),
        ("a self-test that traps", tested("unreachable", json!([])), "fails its self-test `the victim`"),
        ("a self-test that loops", tested(&spin, json!([])), "used up its fuel of 10000000"),
        ("a self-test with another answer", tested("", json!(["ben"])), "fails its self-test `the victim`"),
    ]
}

/// Manifests that lie.
fn lying() -> Vec<Named> {
    let plain = Rule::default;
    vec![
        (
            "another role",
            plain().with_manifest_key("role", json!("redactor")),
            "it doesn't export `redact` as its role does",
        ),
        (
            "a state that there isn't",
            enricher("").with_manifest_key("stateful", json!(true)),
            "it is stateful, and it isn't an enricher that exports",
        ),
        (
            "a version that there isn't",
            plain().with_manifest_key("api", json!("9.0.0")),
            "and this host speaks 0.1.0, 0.2.0",
        ),
        (
            "an older version",
            plain().with_manifest_key("api", json!("0.1.0")),
            "given nothing but presence:plugin 0.1.0",
        ),
        (
            "a capability that there isn't",
            plain().with_manifest_key("capabilities", json!(["fly"])),
            "asks for `fly`",
        ),
        (
            "widening that wasn't granted",
            plain().with_manifest_key("effect", json!("widen")),
            "asks for `widen`",
        ),
        (
            "a key that there isn't",
            plain().with_manifest_key("root", json!(true)),
            "unknown field `root`",
        ),
    ]
}

/// Files that are something else.
fn files() -> Result<Vec<Case>> {
    let plain = Rule::default().bytes()?;
    let case = |what, bytes, refused| Case {
        what,
        bytes,
        refused,
    };
    let bare = wat::parse_str("(component)")?;
    let manifest = |text: &str| with_section(bare.clone(), "presence:manifest", text.as_bytes());
    let mut long = plain.clone();
    long.extend(with_section(Vec::new(), "ballast", &vec![0; 5_000_000]));
    let garbled: Vec<u8> = plain.iter().map(|byte| byte ^ 0x55).collect();
    let mut beyond = plain.clone();
    beyond.extend([1, 0xff, 0xff, 0xff, 0xff, 0x0f]);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let named: Value =
        json!({"name": "rule", "version": "1.0.0", "api": "0.2.0", "role": "filter"});
    let padded = format!("{named}{}", " ".repeat(1_100_000));
    Ok(vec![
        case(
            "a core module",
            wat::parse_str("(module)")?,
            "it is a core module",
        ),
        case(
            "no manifest",
            bare.clone(),
            "it has no `presence:manifest` section",
        ),
        case("a giant manifest", manifest(&padded), "its manifest has"),
        case(
            "a deep manifest",
            manifest(&deep),
            "its manifest can't be read",
        ),
        case(
            "a manifest that is no JSON",
            manifest("\u{0}\u{1b}[2J"),
            "its manifest can't be read",
        ),
        case("noise", garbled, "not a WebAssembly component"),
        case("a section beyond the end", beyond, "it can't be read"),
        case("nothing", Vec::new(), "rule.wasm"),
        case("a giant file", long, "file_bytes_max"),
        case(
            "a compiled plugin",
            b"\x7fELF\x02\x01\x01\0".to_vec(),
            "not a WebAssembly component",
        ),
        case(
            "a fixture that wants WASI",
            component::named(&component::load("fixtures/wants-wasi")?, "rule")?,
            "wasi",
        ),
    ])
}
