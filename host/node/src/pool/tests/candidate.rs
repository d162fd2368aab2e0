//! Tests of a pipeline beside the active one: a canary decides only on its share, a shadow on
//! nobody, and neither disturbs the active pipeline.

use std::cell::Cell;

use presence_core::share::{Share, place};
use presence_sandbox::{Engine, Plugin, Stage, set_pause_work};
use serde_json::Value;

use super::*;
use crate::candidate::meter::{Meter, Side};
use crate::candidate::report::Report;
use crate::candidate::{CandidatePipeline, Mode, Pipelines};

const SHOWN: &str = "presence.filtered.user_online";
const HIDDEN: &str = "presence.filtered.user_offline";
const DEAD: &str = "presence.dlq";

const CONTACTS: &[u8] = include_bytes!("../../../../../plugins/dist/contacts.wasm");
const TRAP: &[u8] = include_bytes!("../../../../../plugins/dist/fixtures/trap.wasm");

/// A tenant with one shard. Each user has a viewer among the contacts, but the active pipeline
/// hides all users.
struct World {
    node: Node,
    tenant: Tenant,
    _engine: Engine,
    candidate: Generation,
    meter: Arc<Meter>,
}

impl World {
    fn new(users: usize, candidate: &[u8]) -> Self {
        let mut node = Node::new(64 << 20, 1);
        let names = Arc::<Names>::default();
        let shards = node.tenant_with(1, Arc::clone(&names), TenantContext::default(), || None);
        node.work();
        let engine = Engine::new().unwrap();
        let plugin = Arc::new(Plugin::load(&engine, "rule", candidate).unwrap());
        let stages = vec![Stage::new(plugin, json!({}), true, None)];
        let active = &node.blueprint;
        let blueprint = Blueprint::prepare_beside(stages, active.limits(), active);
        let blueprint = blueprint.unwrap_or_else(|problems| panic!("{problems:?}"));
        let mut edit = Directory::new().edit();
        let viewer = names.intern("viewer").0;
        for user in 0..users {
            let contacts = [viewer].into_iter().collect();
            edit.contacts(names.intern(&format!("u{user}")), Some(contacts));
        }
        let (directory, changes) = edit.finish();
        let mut world = Self {
            tenant: shards,
            candidate: Generation {
                number: 2,
                blueprint: Arc::new(blueprint),
            },
            meter: Arc::default(),
            node,
            _engine: engine,
        };
        let input = Input::Directory(Arc::new(directory), Arc::new(changes));
        world.task(Task::Input(input));
        world
    }

    fn task(&mut self, task: Task) {
        let address = Address {
            tenant: 0,
            shard: 0,
        };
        self.node.mailbox.put_first(address, task);
        self.node.work();
    }

    fn connect(&mut self, from: usize, count: usize) {
        offer(&self.tenant.handles[0], connects(from, count, None));
        self.node.work();
    }

    /// Opens or closes a connection with this name for each of 20 users.
    fn say(&mut self, kind: Kind, conn: &str) {
        let now = clock::now_ms();
        let inputs = (0..20).map(|user| {
            let body = json!({"userId": format!("u{user}"), "connId": conn, "timestamp": now});
            let payload = Bytes::from(body.to_string());
            Input::Message {
                message: Message::parse(kind, &payload, 1 << 20).unwrap(),
                reply: None,
            }
        });
        let batch = Batch::new(now, inputs.collect(), 2_000);
        offer(&self.tenant.handles[0], batch);
        self.node.work();
    }

    /// How many decisions were reused.
    fn reused(&self) -> u64 {
        self.tenant.handles[0]
            .figures
            .counters
            .lock()
            .unwrap()
            .reused
    }

    fn active(&self) -> Generation {
        Generation {
            number: 1,
            blueprint: Arc::clone(&self.node.blueprint),
        }
    }

    fn run_candidate(&mut self, mode: Mode) {
        let candidate = CandidatePipeline {
            generation: self.candidate.clone(),
            mode,
            meter: Arc::clone(&self.meter),
            chain: Arc::new([]),
        };
        self.task(Task::Pipelines(Pipelines {
            active: self.active(),
            candidate: Some(candidate),
        }));
    }

    fn canary(&mut self, places: u16) {
        self.run_candidate(Mode::Canary(Share::of_places(places)));
    }

    fn alone(&mut self, generation: Generation) {
        self.task(Task::Pipelines(Pipelines::alone(generation)));
    }

    fn published(&self) -> [usize; 2] {
        [SHOWN, HIDDEN].map(|subject| self.node.broker.on(subject).len())
    }

    /// Compares all waiting decisions. Returns how many there were.
    fn compare(&mut self) -> u64 {
        while self.node.worker.compare() {}
        self.meter.compared().decisions
    }

    fn report(&self) -> Value {
        serde_json::to_value(Report::of(&self.meter)).unwrap()
    }
}

fn in_share(users: usize, places: u16) -> usize {
    let users = (0..users).map(|user| format!("u{user}"));
    users.filter(|user| place(user) < places).count()
}

#[test]
fn each_step_of_a_canary_corrects_whom_it_moves() {
    let mut world = World::new(100, CONTACTS);
    world.connect(0, 50);
    assert_eq!(world.published(), [0, 0]);
    world.canary(2_000);
    assert_eq!(world.published(), [in_share(50, 2_000), 0]);
    world.connect(50, 50);
    assert_eq!(world.published(), [in_share(100, 2_000), 0]);
    world.canary(7_000);
    let shown = in_share(100, 7_000);
    assert_eq!(world.published(), [shown, 0]);
    world.alone(world.active());
    assert_eq!(world.published(), [shown, shown], "aborted");
    world.canary(7_000);
    world.alone(world.candidate.clone());
    assert_eq!(world.published(), [shown + 100, shown], "promoted");
    assert_eq!(world.node.broker.on(ONLINE).len(), 100);
}

#[test]
fn a_canary_is_compared_on_its_share_alone() {
    let mut world = World::new(100, CONTACTS);
    world.canary(3_000);
    world.connect(0, 100);
    let users = in_share(100, 3_000) as u64;
    assert_eq!(world.compare(), users);
    let known = world.meter.compared().users_since(0);
    assert_eq!(
        (known.compared, known.shown, known.hidden),
        (users, users, 0)
    );
}

#[test]
fn a_canary_that_traps_closes_its_share_alone() {
    let mut world = World::new(100, TRAP);
    world.canary(5_000);
    world.connect(0, 100);
    assert_eq!(world.node.broker.on(ONLINE).len(), 100);
    assert_eq!(world.node.broker.on(DEAD).len(), in_share(100, 5_000));
    let stages = world.candidate.blueprint.stages();
    assert!(stages.into_iter().any(|it| it.health.in_quarantine()));
}

#[test]
fn a_shadow_publishes_nothing_and_says_what_it_would() {
    let mut world = World::new(20, CONTACTS);
    world.run_candidate(Mode::Shadow);
    world.connect(0, 20);
    assert_eq!(world.compare(), 20);
    assert_eq!(world.published(), [0, 0]);
    assert_eq!(world.node.broker.on(DEAD), [""; 0]);
    let report = world.report();
    assert_eq!(report["decisions"]["different"], 20);
    assert_eq!(
        report["gained"],
        json!({"pairs": 20, "users": 20, "viewers": 1})
    );
    assert_eq!(report["lost"]["pairs"], 0);
    let example = &report["examples"][0];
    assert_eq!(example["gained"], json!({"viewers": ["viewer"], "more": 0}));
    assert_eq!(example["why"][0]["viewerId"], "viewer");
    assert_eq!(example["why"][0]["candidate"]["plugin"], "rule");
    assert_eq!(example["why"][0]["candidate"]["turn"], "admitted");
    assert!(report["candidate"]["fuelMean"].as_u64() > Some(0));
    assert!(report["candidate"]["p99Micros"].as_f64() > Some(0.0));
    world.alone(world.active());
    world.connect(0, 20);
    assert_eq!(world.compare(), 20, "it has ended");
}

#[test]
fn a_shadow_is_asked_about_users_on_whom_an_earlier_decision_holds() {
    let mut world = World::new(20, CONTACTS);
    world.connect(0, 20);
    world.run_candidate(Mode::Shadow);
    world.compare();
    let (compared, reused) = (world.compare(), world.reused());
    world.say(Kind::Disconnect, "c");
    world.say(Kind::Connect, "another");
    assert_eq!(world.reused() - reused, 20);
    assert_eq!(world.compare() - compared, 20);
}

#[test]
fn a_shadow_that_traps_is_counted_and_harms_nobody() {
    let mut world = World::new(20, TRAP);
    world.run_candidate(Mode::Shadow);
    world.connect(0, 20);
    world.compare();
    assert_eq!(world.node.broker.on(ONLINE).len(), 20);
    assert_eq!(world.node.broker.on(DEAD), [""; 0]);
    let report = world.report();
    assert_eq!(report["candidate"]["failures"], 20);
    assert_eq!(report["active"]["failures"], 0);
}

#[test]
fn what_there_is_no_time_to_compare_is_counted() {
    let mut world = World::new(0, CONTACTS);
    world.run_candidate(Mode::Shadow);
    world.connect(0, 250);
    world.connect(250, 50);
    assert_eq!(world.meter.skipped(), 300 - 256);
    let (answer, _ids) = oneshot::channel();
    world.task(Task::Ids(answer));
    assert_eq!(world.meter.skipped(), 300, "nothing keeps their ids");
    assert_eq!(world.compare(), 0);
}

#[test]
fn a_decision_for_which_the_directory_has_no_answer_counts_for_no_rule() {
    let mut world = World::new(0, CONTACTS);
    world.canary(10_000);
    let on_demand = Arc::new(Directory::on_demand());
    world.task(Task::Input(Input::Directory(on_demand, Arc::default())));
    world.connect(0, 3);
    let calls = world.meter.calls(Side::Candidate);
    assert_eq!(calls.calls.load(Ordering::Relaxed), 0);
}

/// The time for which a call is paused doesn't count when pipelines are compared.
#[test]
fn what_others_take_in_the_pause_of_a_call_is_no_time_of_a_canary() {
    const PAUSE: Duration = Duration::from_secs(1);
    let mut world = World::new(2, CONTACTS);
    world.canary(10_000);
    world.connect(0, 1);
    let pauses = Rc::new(Cell::new(0));
    let counted = Rc::clone(&pauses);
    set_pause_work(Rc::new(move || {
        counted.set(counted.get() + 1);
        if counted.get() > 1 {
            return Duration::ZERO;
        }
        std::thread::sleep(PAUSE);
        PAUSE
    }));
    // Half a millisecond later, the epoch is raised.
    world.candidate.blueprint.pauser().unwrap().pause_soon();
    std::thread::sleep(Duration::from_millis(100));
    world.connect(1, 1);
    assert!(pauses.get() > 0);
    let times = world.meter.calls(Side::Candidate).latency.counts();
    assert!(times.percentile(100).unwrap() < PAUSE);
}
