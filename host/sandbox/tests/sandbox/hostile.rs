//! Components that make the host do work, or keep data, for them. A limit ends each of them, and
//! the error names it.

use presence_core::rules::Decision;
use presence_sandbox::{Limits, LoadError, Pipeline, Plugin};
use serde_json::json;

use crate::component::{enricher, redactor, with_manifest};
use crate::stage::{ENGINE, LIMITS, made, pipeline, problems, within};
use crate::world::World;

/// A filter with a memory of one page, which imports many host functions. `body` has the parameters
/// in locals 0 to 3, and may use locals 4 and 5. After it, the filter returns its audience
/// unchanged.
fn filter(items: &str, body: &str) -> Vec<u8> {
    let canon = r#"(memory $libc "memory") (realloc (func $libc "realloc"))"#;
    let text = format!(
        r#"(component
        (import "presence:plugin/events@0.1.0" (instance $events
          (type $kind' (enum "online" "offline"))
          (export "kind" (type $kind (eq $kind')))
          (type $event' (record (field "kind" $kind) (field "user" string)))
          (export "event" (type (eq $event')))
          (type $value' (variant (case "text" string) (case "json" string)))
          (export "value" (type $value (eq $value')))
          (export "get" (func (param "key" string) (result (option $value))))))
        (alias export $events "event" (type $event))
        (import "presence:plugin/audiences@0.1.0" (instance $audiences
          (export "of" (func (param "users" (list string)) (result u32)))
          (export "contains" (func (param "a" u32) (param "user" string) (result bool)))))
        (import "presence:plugin/directory@0.1.0" (instance $directory
          (export "contacts" (func (param "user" string) (result u32)))
          (export "members" (func (param "group" string) (result u32)))))
        (import "presence:plugin/host@0.1.0" (instance $log
          (export "explain" (func (param "text" string)))))

        (core module $Libc
          (memory (export "memory") 1)
          (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096)))
        (core instance $libc (instantiate $Libc))
        (core func $get (canon lower (func $events "get") {canon}))
        (core func $of (canon lower (func $audiences "of") (memory $libc "memory")))
        (core func $contains (canon lower (func $audiences "contains") (memory $libc "memory")))
        (core func $contacts (canon lower (func $directory "contacts") (memory $libc "memory")))
        (core func $members (canon lower (func $directory "members") (memory $libc "memory")))
        (core func $explain (canon lower (func $log "explain") (memory $libc "memory")))
        (core instance $host
          (export "get" (func $get))
          (export "of" (func $of))
          (export "contains" (func $contains))
          (export "contacts" (func $contacts))
          (export "members" (func $members))
          (export "explain" (func $explain)))
        {items}
        (core module $Rule
          (import "libc" "memory" (memory 1))
          (import "host" "get" (func $get (param i32 i32 i32)))
          (import "host" "of" (func $of (param i32 i32) (result i32)))
          (import "host" "contains" (func $contains (param i32 i32 i32) (result i32)))
          (import "host" "contacts" (func $contacts (param i32 i32) (result i32)))
          (import "host" "members" (func $members (param i32 i32) (result i32)))
          (import "host" "explain" (func $explain (param i32 i32)))
          (func (export "configure") (param i32 i32) (result i32) (i32.const 0))
          (func (export "call") (param i32 i32 i32 i32) (result i32) (local i32 i32)
            {body} (local.get 3)))
        (core instance $rule (instantiate $Rule
          (with "libc" (instance $libc)) (with "host" (instance $host))))
        (func (export "configure") (param "json" string) (result (result (error string)))
          (canon lift (core func $rule "configure") {canon}))
        (func (export "filter") (param "event" $event) (param "audience" u32) (result u32)
          (canon lift (core func $rule "call") {canon})))"#
    );
    with_manifest(&wat::parse_str(text).unwrap(), &manifest())
}

fn manifest() -> String {
    json!({"name": "rule", "version": "1.0.0", "api": "0.1.0", "role": "filter"}).to_string()
}

/// Repeats a body `turns` times, with the number of the turn in local 4. The three bytes at 8192
/// are different in each turn.
fn times(turns: usize, body: &str) -> String {
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

fn world() -> World {
    World::new(&json!({"contacts": {"ada": ["ben"]}}))
}

/// The error of a filter with this body.
fn failure(limits: Limits, body: &str) -> String {
    let mut rules: Pipeline = within(limits, [made(&filter("", body))]);
    world().failure(&mut rules).1
}

#[test]
fn the_keys_that_a_call_names_are_bounded_in_bytes() {
    let long = times(
        66,
        "(call $get (i32.const 8192) (i32.const 1000) (i32.const 128))",
    );
    assert_eq!(
        failure(LIMITS, &long),
        "named keys, groups and settings of more than 65536 bytes in one call"
    );
    let groups = times(
        300,
        "(drop (call $members (i32.const 8192) (i32.const 250)))",
    );
    assert!(failure(LIMITS, &groups).contains("65536 bytes"));
    // A key that is read again counts once.
    let same = times(
        1_000,
        "(call $get (i32.const 16384) (i32.const 1000) (i32.const 128))",
    );
    let mut rules = pipeline([made(&filter("", &same))]);
    assert!(world().visible(&mut rules).is_empty());
}

#[test]
fn what_a_call_reads_is_bounded_in_number() {
    let keys = times(
        17_000,
        "(call $get (i32.const 8192) (i32.const 3) (i32.const 128))",
    );
    assert_eq!(
        failure(LIMITS, &keys),
        "read more than 16384 keys and answers in one call"
    );
    let limits = Limits {
        fuel: 1 << 30,
        ..LIMITS
    };
    let users = times(
        17_000,
        "(drop (call $contacts (i32.const 8192) (i32.const 3)))",
    );
    assert!(failure(limits, &users).contains("16384 keys and answers"));
}

#[test]
fn what_is_fetched_for_a_decision_is_bounded_in_number() {
    let users = times(
        2_000,
        "(drop (call $contacts (i32.const 8192) (i32.const 3)))",
    );
    let mut rules = pipeline([made(&filter("", &users))]);
    match World::on_demand().decide(&mut rules) {
        Decision::CacheMiss(questions) => assert_eq!(questions.len(), 1_024),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_id_is_no_longer_than_any_user_s_or_group_s_can_be() {
    let within_bounds = "(drop (call $contacts (i32.const 8192) (i32.const 256)))
        (drop (call $members (i32.const 8192) (i32.const 256)))
        (drop (call $contains (local.get 3) (i32.const 8192) (i32.const 256)))";
    let mut rules = pipeline([made(&filter("", within_bounds))]);
    assert!(world().visible(&mut rules).is_empty());
    for naming in [
        "(call $contacts (i32.const 8192) (i32.const 257))",
        "(call $members (i32.const 8192) (i32.const 257))",
        "(call $contains (local.get 3) (i32.const 8192) (i32.const 257))",
        // A list of one string: its address and its length.
        "(i32.store (i32.const 256) (i32.const 8192)) (i32.store (i32.const 260) (i32.const 257))
         (call $of (i32.const 256) (i32.const 1))",
    ] {
        let error = failure(LIMITS, &format!("{naming} drop"));
        assert_eq!(error, "named an id of 257 bytes, and ids have at most 256");
    }
}

#[test]
fn what_is_handed_over_is_charged_byte_by_byte() {
    let limits = Limits {
        fuel: 30_000,
        ..LIMITS
    };
    for one in [
        "(call $get (i32.const 8192) (i32.const 40000) (i32.const 128))",
        "(call $explain (i32.const 8192) (i32.const 40000))",
    ] {
        assert_eq!(failure(limits, one), "used up its fuel of 30000", "{one}");
    }
    // The metadata of an event is charged when it is copied, too.
    let get = filter(
        "",
        &times(
            100,
            "(call $get (i32.const 16384) (i32.const 1) (i32.const 128))",
        ),
    );
    let mut world = world();
    let value = "v".repeat(2_000);
    world.online("ada", &json!({"\u{0}": value}).to_string());
    let (_, error) = world.failure(&mut within(limits, [made(&get)]));
    assert_eq!(error, "used up its fuel of 30000");
}

#[test]
fn no_more_is_handed_over_at_once_than_the_host_has_room_for() {
    // A list of 400,000 empty strings.
    let body = "(drop (memory.grow (i32.const 52)))
        (drop (call $of (i32.const 65536) (i32.const 400000)))";
    let limits = Limits {
        fuel: 1 << 40,
        ..LIMITS
    };
    let grows = body.replace("(drop (memory.grow (i32.const 52)))", "");
    assert!(failure(limits, &grows).contains("out of bounds"));
    let error = failure(limits, body);
    assert_eq!(error, "handed over more than 8388608 bytes at once");
}

#[test]
fn resources_of_its_own_are_counted() {
    let own = |turns: usize| {
        let items = r#"(type $r (resource (rep i32)))
            (core func $new (canon resource.new $r))
            (core instance $own (export "new" (func $new)))
            (core module $Maker (import "own" "new" (func $new (param i32) (result i32)))
              (func (export "make") (result i32) (call $new (i32.const 1))))
            (core instance $maker (instantiate $Maker (with "own" (instance $own))))"#;
        let text = times(turns, "(drop (call $make))");
        // This rule imports `make`, too.
        let component = filter_with_maker(items, &text);
        within(
            Limits {
                fuel: 1 << 30,
                ..LIMITS
            },
            [made(&component)],
        )
    };
    assert!(world().visible(&mut own(1_000)).is_empty());
    let (_, error) = world().failure(&mut own(2_000));
    assert_eq!(error, "holds more than 1024 resources");
}

/// A filter that can call `$make` of these items.
fn filter_with_maker(items: &str, body: &str) -> Vec<u8> {
    let text = format!(
        r#"(component
        (import "presence:plugin/events@0.1.0" (instance $events
          (type $kind' (enum "online" "offline"))
          (export "kind" (type $kind (eq $kind')))
          (type $event' (record (field "kind" $kind) (field "user" string)))
          (export "event" (type (eq $event')))))
        (alias export $events "event" (type $event))
        {items}
        (core module $Rule
          (import "maker" "make" (func $make (result i32)))
          (memory (export "memory") 1)
          (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
          (func (export "configure") (param i32 i32) (result i32) (i32.const 0))
          (func (export "call") (param i32 i32 i32 i32) (result i32) (local i32 i32)
            {body} (local.get 3)))
        (core instance $rule (instantiate $Rule (with "maker" (instance $maker))))
        (func (export "configure") (param "json" string) (result (result (error string)))
          (canon lift (core func $rule "configure")
            (memory $rule "memory") (realloc (func $rule "realloc"))))
        (func (export "filter") (param "event" $event) (param "audience" u32) (result u32)
          (canon lift (core func $rule "call")
            (memory $rule "memory") (realloc (func $rule "realloc")))))"#
    );
    with_manifest(&wat::parse_str(text).unwrap(), &manifest())
}

/// The error of loading a component with these items, besides a filter that does nothing.
fn refusal(items: &str) -> LoadError {
    match Plugin::load(&ENGINE, "rule", &filter(items, "")) {
        Ok(_) => panic!("it was taken"),
        Err(refusal) => refusal,
    }
}

#[test]
fn a_component_that_declares_too_much_is_refused_when_it_is_loaded() {
    let many = |items: &str, times: usize| {
        let instances = "(core instance (instantiate $many))".repeat(times);
        format!("(core module $many {items}) {instances}")
    };
    let memories = "(memory 0)".repeat(90);
    let globals = "(global (mut v128) (v128.const i64x2 1 1))".repeat(9_000);
    for (items, words) in [
        (many(&memories, 99), "memories, and a plugin may have 16"),
        (many(&globals, 9), "globals, and a plugin may have 65536"),
        (many("", 200), "core instances, and a plugin may have 128"),
        (
            many("(table 0 funcref)", 99),
            "tables, and a plugin may have 64",
        ),
    ] {
        let refusal = refusal(&items).to_string();
        assert!(
            refusal.starts_with("`rule` is too large: it has "),
            "{refusal}"
        );
        assert!(refusal.ends_with(words), "{refusal}");
    }
}

#[test]
fn what_a_component_declares_is_part_of_its_memory() {
    let globals = "(global (mut v128) (v128.const i64x2 1 1))".repeat(9_000);
    let instances = "(core instance (instantiate $many))".repeat(7);
    let items = format!("(core module $many {globals}) {instances}");
    let component = filter(&items, "");
    let mut rules = pipeline([made(&component)]);
    assert!(world().visible(&mut rules).is_empty());
    let limits = Limits {
        memory_bytes_max: 1_000_000,
        ..LIMITS
    };
    let problem = problems(limits, [made(&component)]).remove(0).to_string();
    assert!(problem.contains("bytes of memory for what it declares, and may have 1000000"));
}

#[test]
fn an_enricher_s_changes_are_bounded_in_number_and_bytes() {
    // A list of `count` changes. Each removes the key "".
    let changes = |count: usize| {
        let body = format!(
            "(drop (memory.grow (i32.const 24)))
            (i32.store (i32.const 128) (i32.const 65536))
            (i32.store (i32.const 132) (i32.const {count}))
            (i32.const 128)"
        );
        made(&enricher("", &body))
    };
    let world = world();
    let enriched = world.enrich(&mut pipeline([changes(512)]));
    assert_eq!((enriched.changes.len(), enriched.failures.len()), (512, 0));
    let enriched = world.enrich(&mut pipeline([changes(60_000)]));
    let error = &enriched.failures[0].error;
    assert_eq!(error, "made 60000 changes in one call, and may make 512");
    assert!(enriched.changes.is_empty());

    // One change, to a value of 40,000 bytes.
    let large = "(i32.store (i32.const 128) (i32.const 144))
        (i32.store (i32.const 132) (i32.const 1))
        (i32.store8 (i32.const 152) (i32.const 1))
        (i32.store (i32.const 160) (i32.const 8192))
        (i32.store (i32.const 164) (i32.const 40000))
        (i32.const 128)";
    let enriched = world.enrich(&mut pipeline([made(&enricher("", large))]));
    let error = &enriched.failures[0].error;
    assert_eq!(
        error,
        "made changes of 40000 bytes in one call, and may make 32768"
    );
}

#[test]
fn a_redactor_s_answer_is_bounded_in_number_and_bytes() {
    // A list of `parts` renditions of the whole audience, each with `keys` keys.
    let answer = |parts: usize, keys: usize| {
        let body = format!(
            "(local i32) (drop (memory.grow (i32.const 20)))
            (loop
              (i32.store (i32.add (i32.const 65536) (i32.mul (local.get 4) (i32.const 16)))
                (local.get 3))
              (i32.store (i32.add (i32.const 65540) (i32.mul (local.get 4) (i32.const 16)))
                (i32.const 131072))
              (i32.store (i32.add (i32.const 65544) (i32.mul (local.get 4) (i32.const 16)))
                (i32.const {keys}))
              (local.set 4 (i32.add (local.get 4) (i32.const 1)))
              (br_if 0 (i32.lt_u (local.get 4) (i32.const {parts}))))
            (i32.store (i32.const 128) (i32.const 65536))
            (i32.store (i32.const 132) (i32.const {parts}))
            (i32.const 128)"
        );
        pipeline([made(&redactor("", &body))])
    };
    let world = world();
    assert_eq!(world.renditions(&mut answer(256, 2)).len(), 256);
    let (_, error) = world.failure(&mut answer(300, 0));
    assert_eq!(error, "answered with 300 renditions, and may with 256");
    let (_, error) = world.failure(&mut answer(200, 100));
    assert_eq!(
        error,
        "answered with 20000 keys in its renditions, and may with 4096"
    );
}
