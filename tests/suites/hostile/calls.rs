//! Rules that misbehave when they are called about a victim, and what ends such a call.

use serde_json::json;

use super::rule::{Rule, enricher, filter, forever, redactor, times};

/// A rule, and the error in the dead letter of its victim: the limit that ended the call.
pub(super) struct Case {
    pub(super) what: &'static str,
    pub(super) rule: Rule,
    pub(super) ends: &'static str,
}

fn case(what: &'static str, rule: Rule, ends: &'static str) -> Case {
    Case { what, rule, ends }
}

const FUEL: &str = "used up its fuel of 10000000";
const MEMORY: &str = "after it was refused more than 67108864 bytes of memory";
const STACK: &str = "recursed until its stack was used up";
const AT_ONCE: &str = "handed over more than 8388608 bytes at once";
const FOREIGN: &str = "used an audience that is not of this call";

/// Grows something until the host refuses more, and then traps.
fn grow(grow: &str) -> String {
    format!("(loop (if (i32.eq {grow} (i32.const -1)) (then unreachable)) (br 0))")
}

/// All of them.
pub(super) fn cases() -> Vec<Case> {
    [without_end(), memory(), sets(), texts(), lies(), traps()]
        .into_iter()
        .flatten()
        .collect()
}

/// Calls that never end by themselves.
fn without_end() -> Vec<Case> {
    let spin = forever("");
    vec![
        case("a filter that loops", filter(&spin), FUEL),
        case("a redactor that loops", redactor(&spin), FUEL),
        case("an enricher that loops", enricher(&spin), FUEL),
        case(
            "a clean-up that loops, after the answer",
            Rule {
                // Only a returned list needs a clean-up.
                role: "enricher",
                module: format!(
                    r#"(global $is-victim (mut i32) (i32.const 0))
                    (func (export "clean-up") (param i32)
                      (if (global.get $is-victim) (then {spin})))"#
                ),
                call: "(global.set $is-victim (i32.const 1))".into(),
                lift: r#"(post-return (func $rule "clean-up"))"#.into(),
                ..Rule::default()
            },
            FUEL,
        ),
        case(
            "a realloc that loops",
            Rule {
                realloc: format!(
                    "(if (i32.eq (local.get 3) (i32.const 7)) (then {spin})) (i32.const 4096)"
                ),
                ..Rule::default()
            },
            FUEL,
        ),
        case(
            "recursion without end",
            Rule {
                module: "(func $deep (param i32) (result i32)
                    (i32.add (call $deep (local.get 0)) (i32.const 1)))"
                    .into(),
                ..filter("(drop (call $deep (i32.const 1)))")
            },
            STACK,
        ),
        case(
            "recursion through a table",
            Rule {
                module: "(type $f (func)) (table 1 funcref) (elem (i32.const 0) $again)
                    (func $again (local i64 i64 i64 i64)
                      (call_indirect (type $f) (i32.const 0)) (local.set 0 (i64.const 1)))"
                    .into(),
                ..filter("(call $again)")
            },
            STACK,
        ),
        case(
            "tail calls without end",
            Rule {
                module: "(func $again (return_call $again))".into(),
                ..filter("(call $again)")
            },
            FUEL,
        ),
    ]
}

/// Use of memory, of all kinds.
fn memory() -> Vec<Case> {
    vec![
        case(
            "a memory that grows",
            filter(grow("(memory.grow (i32.const 16))")),
            MEMORY,
        ),
        case(
            "a second memory that grows",
            Rule {
                module: "(memory $more 0)".into(),
                ..filter(grow("(memory.grow $more (i32.const 16))"))
            },
            MEMORY,
        ),
        case(
            "a memory of 64 bits that grows",
            Rule {
                module: "(memory $more i64 0)".into(),
                ..filter(grow("(i32.wrap_i64 (memory.grow $more (i64.const 16)))"))
            },
            MEMORY,
        ),
        case(
            "a memory that asks for all that there is at once",
            filter(
                "(if (i32.eq (memory.grow (i32.const 65535)) (i32.const -1)) (then unreachable))",
            ),
            MEMORY,
        ),
        case(
            "a table that grows",
            Rule {
                module: "(table $t 0 funcref)".into(),
                ..filter(grow("(table.grow $t (ref.null func) (i32.const 100000))"))
            },
            MEMORY,
        ),
        case(
            "resources of its own",
            Rule {
                component: r#"(type $r (resource (rep i32)))
                    (core func $new (canon resource.new $r))
                    (core instance $own (export "new" (func $new)))"#
                    .into(),
                with: r#"(with "own" (instance $own))"#.into(),
                module: r#"(import "own" "new" (func $new (param i32) (result i32)))"#.into(),
                ..filter(times(2_000, "(drop (call $new (i32.const 1)))"))
            },
            "holds more than 1024 resources",
        ),
    ]
}

/// Work that the host does on sets.
fn sets() -> Vec<Case> {
    let group = "(i32.const 512) (i32.const 5)";
    let named = r#"(data (i32.const 512) "crowd") (data (i32.const 520) "joiner")"#;
    let with_names = |rule: Rule| Rule {
        module: named.into(),
        ..rule
    };
    vec![
        case(
            "set algebra over huge sets",
            with_names(filter(forever(&format!(
                "(drop (call $difference (call $everyone) (call $members {group})))
                 (drop (call $union (call $members {group}) (local.get 3)))"
            )))),
            FUEL,
        ),
        case(
            "the viewers of a huge set",
            filter("(call $viewers (call $everyone) (i32.const 128))"),
            FUEL,
        ),
        case(
            "a set that is made of very many",
            filter(forever(
                "(drop (call $co-members (i32.const 520) (i32.const 6)))",
            )),
            FUEL,
        )
        .with(named),
        case(
            "more audiences than anyone needs",
            filter(forever("(drop (call $nobody))")),
            "made more than 65536 audiences in one call",
        ),
        case(
            "an audience of ids that are made up",
            // A list of 80 texts. All contain the three bytes that differ in each turn.
            filter(format!(
                "(loop
                   (i32.store (i32.add (i32.const 16384) (i32.mul (local.get 5) (i32.const 8)))
                     (i32.sub (i32.const 8192) (i32.mul (local.get 5) (i32.const 3))))
                   (i32.store (i32.add (i32.const 16388) (i32.mul (local.get 5) (i32.const 8)))
                     (i32.const 256))
                   (local.set 5 (i32.add (local.get 5) (i32.const 1)))
                   (br_if 0 (i32.lt_u (local.get 5) (i32.const 80))))
                 {}",
                times(
                    1_000_000,
                    "(drop (call $of (i32.const 16384) (i32.const 80)))"
                )
            )),
            FUEL,
        ),
        case(
            "a list without end",
            filter(
                "(drop (memory.grow (i32.const 64))) (drop (call $of (i32.const 65536) (i32.const 500000)))",
            ),
            AT_ONCE,
        ),
        case(
            "questions without end",
            filter(times(
                17_000,
                "(drop (call $contacts (i32.const 8192) (i32.const 3)))",
            )),
            "read more than 16384 keys and answers in one call",
        ),
        case(
            "keys without end",
            filter(times(
                17_000,
                "(call $get (i32.const 8192) (i32.const 3) (i32.const 128))",
            )),
            "read more than 16384 keys and answers in one call",
        ),
        case(
            "a forged audience",
            filter("(local.set 3 (i32.const 123456))"),
            FOREIGN,
        ),
        case(
            "an audience that was kept from an earlier call",
            Rule {
                module: "(global $kept (mut i32) (i32.const 0))".into(),
                always: "(if (i32.eqz (global.get $kept))
                    (then (global.set $kept (call $everyone))))"
                    .into(),
                ..filter("(local.set 3 (global.get $kept))")
            },
            FOREIGN,
        ),
        case(
            "a forged audience in a rendition",
            redactor("(local.set 3 (i32.const -1))"),
            FOREIGN,
        ),
    ]
}

impl Case {
    fn with(mut self, module: &str) -> Self {
        self.rule.module.push_str(module);
        self
    }
}

/// Texts and lists as arguments and as results.
fn texts() -> Vec<Case> {
    let answer = |parts: usize| {
        format!(
            "(i32.store (i32.const 128) (i32.const 65536)) (i32.store (i32.const 132) (i32.const {parts}))
             (return (i32.const 128))"
        )
    };
    let grown = "(drop (memory.grow (i32.const 600)))";
    vec![
        case(
            "a giant line of the log",
            filter(format!(
                "{grown} (call $log (i32.const 2) (i32.const 0) (i32.const 30000000))"
            )),
            AT_ONCE,
        ),
        case(
            "a giant key",
            filter(format!(
                "{grown} (call $get (i32.const 0) (i32.const 100000) (i32.const 128))"
            )),
            "named keys, groups and settings of more than 65536 bytes in one call",
        ),
        case(
            "an id that nobody can have",
            filter("(drop (call $contacts (i32.const 8192) (i32.const 257)))"),
            "named an id of 257 bytes, and ids have at most 256",
        ),
        case(
            "a text outside its memory",
            filter("(drop (call $contacts (i32.const 0x7fffffff) (i32.const 100)))"),
            "out of bounds",
        ),
        case(
            "a text that is none",
            Rule {
                module: r#"(data (i32.const 8192) "\ff\fe\fd")"#.into(),
                ..filter("(drop (call $contacts (i32.const 8192) (i32.const 3)))")
            },
            "utf-8",
        ),
        case(
            "a realloc beyond the memory",
            Rule {
                realloc: "(select (i32.const -16) (i32.const 4096)
                    (i32.eq (local.get 3) (i32.const 7)))"
                    .into(),
                ..Rule::default()
            },
            "realloc return: beyond end of memory",
        ),
        case(
            "a realloc that isn't aligned",
            Rule {
                // A list of texts is aligned to 4; the text of an id needs no alignment.
                realloc: "(i32.const 4097)".into(),
                ..filter("(call $viewers (call $contacts (i32.const 8192) (i32.const 5)) (i32.const 128))")
            },
            "realloc return: result not aligned",
        )
        .with(r#"(data (i32.const 8192) "12345")"#),
        case(
            "renditions without end",
            redactor(format!("{grown} {}", answer(500_000))),
            "bytes at once",
        ),
        case(
            "more renditions than it may",
            redactor(format!("{grown} {}", answer(300))),
            "answered with 300 renditions, and may with 256",
        ),
        case(
            "changes without end",
            enricher(format!("{grown} {}", answer(60_000))),
            "made 60000 changes in one call, and may make 512",
        ),
        case(
            "a change of giant size",
            enricher(
                "(i32.store (i32.const 128) (i32.const 144)) (i32.store (i32.const 132) (i32.const 1))
                 (i32.store8 (i32.const 152) (i32.const 1))
                 (i32.store (i32.const 160) (i32.const 8192))
                 (i32.store (i32.const 164) (i32.const 40000))
                 (return (i32.const 128))",
            ),
            "made changes of 40000 bytes in one call, and may make 32768",
        ),
        case(
            "a value that is not JSON",
            enricher(
                "(i32.store (i32.const 128) (i32.const 144)) (i32.store (i32.const 132) (i32.const 1))
                 (i32.store8 (i32.const 152) (i32.const 1)) (i32.store8 (i32.const 156) (i32.const 1))
                 (i32.store (i32.const 160) (i32.const 8192)) (i32.store (i32.const 164) (i32.const 3))
                 (return (i32.const 128))",
            ),
            "to what is not JSON",
        ),
    ]
}

/// Manifests that ask for more than is allowed.
fn lies() -> Vec<Case> {
    vec![
        case(
            "a manifest that asks for more fuel than there is",
            filter(forever("")).with_manifest_key("limits", json!({"fuel": u64::MAX})),
            FUEL,
        ),
        case(
            "a manifest that asks for more memory than there is",
            filter(grow("(memory.grow (i32.const 16))"))
                .with_manifest_key("limits", json!({"memory_bytes": u32::MAX})),
            MEMORY,
        ),
        case(
            "a manifest that asks for less",
            filter(forever("")).with_manifest_key("limits", json!({"fuel": 50_000})),
            "used up its fuel of 50000",
        ),
    ]
}

/// Traps of all kinds.
fn traps() -> Vec<Case> {
    vec![
        case(
            "a trap",
            filter("unreachable"),
            "trapped: wasm trap: wasm `unreachable`",
        ),
        case(
            "a trap of an enricher",
            enricher("unreachable"),
            "trapped: wasm trap: wasm `unreachable`",
        ),
        case(
            "a trap of a redactor",
            redactor("unreachable"),
            "trapped: wasm trap: wasm `unreachable`",
        ),
        case(
            "a division by zero",
            filter("(drop (i32.div_u (i32.const 1) (i32.const 0)))"),
            "trapped: wasm trap: integer divide by zero",
        ),
        case(
            "a read outside its memory",
            filter("(drop (i32.load (i32.const -4)))"),
            "trapped: wasm trap: out of bounds memory access",
        ),
        case(
            "a call of nothing",
            Rule {
                module: "(type $f (func)) (table 1 funcref)".into(),
                ..filter("(call_indirect (type $f) (i32.const 0))")
            },
            "trapped: wasm trap: uninitialized element",
        ),
    ]
}
