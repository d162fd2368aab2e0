//! While a plugin's call is in progress, waiting tenants have their turns inside it.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use presence_core::quota::Rate;
use presence_sandbox::{Engine, Plugin, Stage, set_pause_work};

use super::super::scheduler::Turn;
use super::super::work::PanicPoint;
use super::*;
use crate::candidate::Pipelines;

const CONTACTS: &[u8] = include_bytes!("../../../../../plugins/dist/contacts.wasm");

/// Each measurement of time advances it by this much, so that a turn has used up its time.
const STEP_NS: u64 = 1_000_000;

/// Gives a tenant with one shard a pipeline with one filter.
fn use_filter(node: &mut Node, tenant: u32) -> Engine {
    node.work();
    let engine = Engine::new().unwrap();
    let plugin = Arc::new(Plugin::load(&engine, "rule", CONTACTS).unwrap());
    let stages = vec![Stage::new(plugin, json!({}), true, None)];
    let blueprint = Blueprint::prepare(stages, node.blueprint.limits(), None);
    let blueprint = blueprint.unwrap_or_else(|problems| panic!("{problems:?}"));
    node.blueprint = Arc::new(blueprint);
    let pipelines = Pipelines::alone(Generation {
        number: 2,
        blueprint: Arc::clone(&node.blueprint),
    });
    let address = Address { tenant, shard: 0 };
    node.mailbox.put_first(address, Task::Pipelines(pipelines));
    node.work();
    engine
}

/// Two tenants on a thread. The first has a filter, and its turn is about to begin. If `is_known`,
/// the other has had a turn before.
struct Scene {
    node: Node,
    busy: Tenant,
    other: Tenant,
    turn: Turn,
    _engine: Engine,
}

fn scene(is_known: bool) -> Scene {
    scene_on(Node::new(1 << 20, STEP_NS), is_known)
}

fn scene_on(mut node: Node, is_known: bool) -> Scene {
    let (busy, other) = (node.tenant(1), node.tenant(1));
    let engine = use_filter(&mut node, 0);
    if is_known {
        offer(&other.handles[0], connects(0, 1, None));
        node.work();
    }
    offer(&busy.handles[0], connects(0, 2, None));
    assert!(node.worker.check_for_work());
    let turn = node.worker.next().unwrap();
    Scene {
        node,
        busy,
        other,
        turn,
        _engine: engine,
    }
}

#[test]
fn another_tenant_has_its_turn_in_the_middle_of_a_call() {
    let mut scene = scene(true);
    offer(&scene.other.handles[0], connects(1, 1, None));
    scene.node.worker.turn(scene.turn);
    assert_eq!(scene.node.broker.count(ONLINE, &scene.other), 2);
    scene.node.work();
    assert_eq!(scene.node.broker.count(ONLINE, &scene.busy), 2);
}

#[test]
fn a_call_that_waits_for_a_processor_goes_on_without_a_pause() {
    let mut scene = scene_on(Node::measured(1 << 20, STEP_NS, 1_000), true);
    offer(&scene.other.handles[0], connects(1, 1, None));
    scene.node.worker.turn(scene.turn);
    assert_eq!(scene.node.broker.count(ONLINE, &scene.other), 1);
    scene.node.work();
    assert_eq!(scene.node.broker.count(ONLINE, &scene.other), 2);
}

#[test]
fn one_whose_calls_may_take_long_waits_for_the_end_of_a_call() {
    let mut scene = scene(false);
    offer(&scene.other.handles[0], connects(0, 1, None));
    scene.node.worker.turn(scene.turn);
    assert_eq!(scene.node.broker.count(ONLINE, &scene.other), 0);
    scene.node.work();
    assert_eq!(scene.node.broker.count(ONLINE, &scene.other), 1);
}

#[test]
fn a_shard_that_panics_in_the_pause_of_another_begins_anew_and_the_other_goes_on() {
    let mut scene = scene(true);
    let (busy, other) = (scene.busy, scene.other);
    let address = Address {
        tenant: 1,
        shard: 0,
    };
    let panic = Task::Panic(PanicPoint::Turn);
    scene.node.mailbox.put_first(address, panic);
    scene.node.worker.turn(scene.turn);
    let restarts = &other.handles[0].figures.restarts;
    assert_eq!(restarts.load(Ordering::Relaxed), 1);
    scene
        .node
        .until(|node| node.broker.count(ONLINE, &busy) == 2);
    offer(&other.handles[0], connects(1, 1, None));
    scene
        .node
        .until(|node| node.broker.count(ONLINE, &other) == 2);
}

#[test]
fn a_shard_comes_to_the_thread_in_the_pause_of_another_of_its_tenant() {
    let mut scene = scene(true);
    let address = Address {
        tenant: 0,
        shard: 1,
    };
    let (names, common) = (Arc::default(), Arc::default());
    let placed = scene.node.place(address, 2, &names, &common, None);
    scene.node.worker.turn(scene.turn);
    offer(&placed, connects(9, 1, None));
    scene.node.work();
    assert_eq!(scene.node.broker.count(ONLINE, &scene.busy), 3);
}

#[test]
fn a_panic_of_the_thread_itself_in_a_pause_ends_the_thread_and_is_no_failure_of_the_shard() {
    let scene = scene(true);
    offer(&scene.other.handles[0], connects(1, 1, None));
    scene.node.broker.set(|taken| taken.panics = true);
    let worker = &scene.node.worker;
    let ended = catch_unwind(AssertUnwindSafe(|| worker.turn(scene.turn)));
    assert!(ended.is_err());
    let restarts = &scene.busy.handles[0].figures.restarts;
    assert_eq!(restarts.load(Ordering::Relaxed), 0);
}

#[test]
fn the_other_shards_of_the_tenant_wait_for_the_call_as_does_the_shard_itself() {
    let mut node = Node::new(1 << 20, STEP_NS);
    let busy = node.tenant(2);
    let _engine = use_filter(&mut node, 0);
    offer(&busy.handles[0], connects(0, 1, None));
    assert!(node.worker.check_for_work());
    let turn = node.worker.next().unwrap();
    for shard in &busy.handles {
        offer(shard, connects(1, 1, None));
    }
    node.worker.turn(turn);
    let published = node.broker.on(ONLINE);
    let own = published.iter().all(|header| header.starts_with("t0/0 "));
    assert!(own && !published.is_empty(), "{published:?}");
    node.work();
    assert_eq!(node.broker.count(ONLINE, &busy), 3);
}

#[test]
fn a_call_goes_on_for_as_long_between_two_pauses_as_its_tenant_has_time() {
    const WEIGHT: u64 = 40;
    const CHECKS: usize = 400;
    let mut node = Node::new(1 << 20, STEP_NS / 4);
    let share = Arc::new(ThreadShare::new(WEIGHT, Rate::default(), Arc::default()));
    let common = TenantContext {
        share,
        ..TenantContext::default()
    };
    let busy = node.tenant_with(1, Arc::default(), common, || None);
    let other = node.tenant(1);
    let _engine = use_filter(&mut node, 0);
    offer(&other.handles[0], connects(0, 1, None));
    node.work();
    offer(&busy.handles[0], connects(0, 1, None));
    assert!(node.worker.check_for_work());
    let turn = node.worker.next().unwrap();
    for user in 1..=CHECKS {
        offer(&other.handles[0], connects(user, 1, None));
    }
    // This simulates several epoch checks in its first call.
    let (worker, is_first) = (Rc::clone(&node.worker), Cell::new(true));
    set_pause_work(Rc::new(move || {
        let checks = if is_first.take() { CHECKS } else { 0 };
        (0..checks).map(|_| worker.pause()).sum()
    }));
    node.worker.turn(turn);
    let turns = node.broker.count(ONLINE, &other) - 1;
    // The other gets one fortieth of the time, and each of its turns takes several measurements.
    assert!((1..=CHECKS / 20).contains(&turns), "{turns}");
}
