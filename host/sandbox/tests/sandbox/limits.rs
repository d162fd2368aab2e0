//! Each limit, kept and exceeded.

use presence_sandbox::Limits;
use serde_json::{Value, json};

use crate::component::{filter, with_manifest};
use crate::stage::{LIMITS, bytes, configured, made, pipeline, problems, stage, within};
use crate::world::World;

/// More fuel than any test uses up.
const ENORMOUS: u64 = 1 << 50;

#[test]
fn a_call_that_uses_up_its_fuel_fails_naming_it() {
    let (plugin, error) = world().failure(&mut pipeline([stage("contacts"), stage("spin")]));
    assert_eq!(plugin, "spin");
    assert_eq!(error, "used up its fuel of 2000000");
}

#[test]
fn a_call_within_the_same_fuel_passes_however_often() {
    let (world, mut rules) = (world(), pipeline([stage("contacts")]));
    for _ in 0..10_000 {
        assert_eq!(world.visible(&mut rules), ["ben"]);
    }
}

#[test]
fn the_host_s_work_on_sets_is_charged_as_fuel() {
    // A thousand audiences of two users: little work for the component, 64 units per name for the
    // host.
    let names = r#"(data (i32.const 256) "\00\02\00\00\03\00\00\00\03\02\00\00\03\00\00\00")"#;
    let body = "(local i32)
        (loop
          (drop (call $of (i32.const 256) (i32.const 2)))
          (local.set 4 (i32.add (local.get 4) (i32.const 1)))
          (br_if 0 (i32.lt_u (local.get 4) (i32.const 1000))))
        (local.get 3)";
    let with = |fuel: u64| within(Limits { fuel, ..LIMITS }, [made(&filter(names, body))]);
    assert!(world().visible(&mut with(200_000)).is_empty());
    let (_, error) = world().failure(&mut with(100_000));
    assert_eq!(error, "used up its fuel of 100000");
}

#[test]
fn a_call_that_takes_too_long_fails_naming_its_milliseconds() {
    let limits = Limits {
        fuel: ENORMOUS,
        deadline_ms: Some(300),
        ..LIMITS
    };
    let (plugin, error) = world().failure(&mut within(limits, [stage("spin")]));
    assert_eq!(plugin, "spin");
    assert_eq!(error, "took longer than 300 ms");
}

#[test]
fn a_call_that_is_quick_keeps_its_deadline() {
    // Long enough that a busy machine can't make it late.
    let limits = Limits {
        fuel: ENORMOUS,
        deadline_ms: Some(10_000),
        ..LIMITS
    };
    let mut rules = within(limits, [stage("contacts")]);
    assert_eq!(world().visible(&mut rules), ["ben"]);
}

#[test]
fn a_deadline_is_counted_from_the_beginning_of_each_call() {
    let limits = Limits {
        fuel: ENORMOUS,
        deadline_ms: Some(500),
        ..LIMITS
    };
    let mut rules = within(limits, [stage("contacts")]);
    let mut spinning = within(limits, [stage("spin")]);
    // If the deadline of the first pipeline were running, it would be over after this.
    world().failure(&mut spinning);
    assert_eq!(world().visible(&mut rules), ["ben"]);
}

#[test]
fn without_a_deadline_fuel_still_ends_a_call() {
    let limits = Limits {
        deadline_ms: None,
        ..LIMITS
    };
    let (_, error) = world().failure(&mut within(limits, [stage("spin")]));
    assert!(error.contains("fuel"), "{error}");
}

#[test]
fn memory_is_capped_and_the_next_plugin_is_none_the_worse() {
    let limits = Limits {
        fuel: 1 << 30,
        ..LIMITS
    };
    let (plugin, error) = world().failure(&mut within(limits, [stage("hoard")]));
    assert_eq!(plugin, "hoard");
    assert!(
        error.ends_with("after it was refused more than 4194304 bytes of memory"),
        "{error}"
    );
    let mut rules = within(limits, [stage("contacts")]);
    assert_eq!(world().visible(&mut rules), ["ben"]);
}

#[test]
fn memory_of_all_kinds_counts_together() {
    // 3 of 4 MiB, and then as much again: as the memory of another module, or as a table.
    let pages = "(drop (memory.grow (i32.const 48)))";
    let more_pages =
        "(if (i32.eq (memory.grow 1 (i32.const 48)) (i32.const -1)) (then unreachable))";
    let more_table = "(if (i32.eq (table.grow (ref.null func) (i32.const 393216)) (i32.const -1))
        (then unreachable))";
    let items = "(memory 0) (table 0 funcref)";
    let grows = |body: &str| made(&filter(items, &format!("{body} (local.get 3)")));
    assert!(world().visible(&mut pipeline([grows(pages)])).is_empty());
    assert!(
        world()
            .visible(&mut pipeline([grows(more_pages)]))
            .is_empty()
    );
    assert!(
        world()
            .visible(&mut pipeline([grows(more_table)]))
            .is_empty()
    );
    for more in [more_pages, more_table] {
        let (_, error) = world().failure(&mut pipeline([grows(&format!("{pages} {more}"))]));
        assert!(error.contains("4194304 bytes of memory"), "{error}");
    }
}

#[test]
fn a_plugin_that_needs_more_memory_to_begin_with_is_refused() {
    let limits = Limits {
        memory_bytes_max: 1 << 16,
        ..LIMITS
    };
    let problem = problems(limits, [stage("bad-config")])
        .remove(0)
        .to_string();
    assert!(problem.contains("memory"), "{problem}");
}

#[test]
fn recursion_ends_where_the_stack_does() {
    let mut rules = pipeline([stage("contacts"), stage("deep")]);
    let (plugin, error) = world().failure(&mut rules);
    assert_eq!(plugin, "deep");
    assert_eq!(error, "recursed until its stack was used up");
}

#[test]
fn a_panic_is_a_failure() {
    let (plugin, error) = world().failure(&mut pipeline([stage("contacts"), stage("trap")]));
    assert_eq!(plugin, "trap");
    assert!(error.starts_with("trapped: "), "{error}");
}

#[test]
fn the_audiences_of_a_call_are_counted() {
    let limits = Limits {
        fuel: 1 << 30,
        ..LIMITS
    };
    let mut rules = within(limits, [stage("greedy-tokens")]);
    let (_, error) = world().failure(&mut rules);
    assert_eq!(error, "made more than 65536 audiences in one call");
}

#[test]
fn a_plugin_may_ask_for_less_than_it_is_given_and_never_gets_more() {
    let asking = |file: &str, limits: Value| {
        let manifest = json!({
            "name": "rule", "version": "1.0.0", "api": "0.2.0", "role": "filter",
            "limits": limits,
        });
        made(&with_manifest(&bytes(file), &manifest.to_string()))
    };
    let ample = Limits {
        fuel: ENORMOUS,
        deadline_ms: Some(400),
        ..LIMITS
    };
    for (given, file, asked, error) in [
        (
            LIMITS,
            "spin",
            json!({"fuel": 100_000}),
            "used up its fuel of 100000",
        ),
        (
            LIMITS,
            "spin",
            json!({"fuel": ENORMOUS}),
            "used up its fuel of 2000000",
        ),
        (
            ample,
            "spin",
            json!({"deadline_ms": 300}),
            "took longer than 300 ms",
        ),
        (
            ample,
            "spin",
            json!({"deadline_ms": 1_u64 << 40}),
            "took longer than 400 ms",
        ),
        (
            Limits {
                fuel: ENORMOUS,
                ..LIMITS
            },
            "hoard",
            json!({"memory_bytes": 3 << 20}),
            "more than 3145728 bytes of memory",
        ),
        (
            Limits {
                fuel: ENORMOUS,
                ..LIMITS
            },
            "hoard",
            json!({"memory_bytes": 1_u64 << 40}),
            "more than 4194304 bytes of memory",
        ),
    ] {
        let (_, found) = world().failure(&mut within(given, [asking(file, asked)]));
        assert!(found.ends_with(error), "{found}");
    }
}

#[test]
fn configuring_is_limited_too() {
    let limits = Limits {
        fuel: 1_000,
        ..LIMITS
    };
    let keys = vec!["device"; 100];
    let problem = problems(limits, [configured("bad-config", json!({"keys": keys}))]).remove(0);
    assert_eq!(
        problem.to_string(),
        "`bad-config` refuses its configuration: used up its fuel of 1000"
    );
}

fn world() -> World {
    World::new(&json!({"contacts": {"ada": ["ben"]}}))
}
