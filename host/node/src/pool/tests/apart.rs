//! Tenants on the same thread don't affect each other: however their turns are mixed, each
//! publishes the same bytes as alone.

use std::collections::BTreeMap;

use presence_sandbox::{Engine, Plugin, Stage};

use super::*;

const PLUGINS: [(&str, &[u8]); 4] = [
    (
        "contacts",
        include_bytes!("../../../../../plugins/dist/contacts.wasm"),
    ),
    (
        "groups",
        include_bytes!("../../../../../plugins/dist/groups.wasm"),
    ),
    (
        "blocklist",
        include_bytes!("../../../../../plugins/dist/blocklist.wasm"),
    ),
    (
        "redact",
        include_bytes!("../../../../../plugins/dist/redact.wasm"),
    ),
];

/// Later than the time at which the test runs, so that only the inputs' times make anything due.
const BEGIN_MS: u64 = 4_000_000_000_000;

/// The number of walks, and the number of steps per tenant in a walk.
const WALKS: u64 = 24;
const STEPS: usize = 120;

const USERS: u64 = 7;
const SHARDS: u32 = 2;

/// A pseudo-random generator with a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, max: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % max
    }
}

/// A step of a tenant's walk.
#[derive(Clone, Debug)]
enum Step {
    /// A message arrives at a time. Some messages are invalid.
    Message(u64, Kind, String),
    /// The directory is changed: contacts, groups and blocks.
    Directory(Vec<(u64, Vec<u64>)>),
}

/// Makes the steps of a tenant from a seed.
fn walk(seed: u64) -> Vec<Step> {
    let mut random = Random(seed);
    let mut at = BEGIN_MS;
    let steps = (0..STEPS).map(|_| {
        // Sometimes the gap is so long that connections time out.
        at += match random.below(20) {
            0 => 31_000,
            _ => random.below(3_000),
        };
        if random.below(12) == 0 {
            let users = (0..USERS).map(|user| {
                let of = (0..random.below(4)).map(|_| random.below(USERS)).collect();
                (user, of)
            });
            return Step::Directory(users.collect());
        }
        let (user, conn) = (random.below(USERS), random.below(3));
        let (kind, extra) = match random.below(8) {
            0..=2 => (
                Kind::Connect,
                r#","metadata":{"device":"web","ip":"10.0.0.1"}"#,
            ),
            3..=4 => (Kind::Heartbeat, ""),
            5 => (Kind::Disconnect, r#","reason":"logout""#),
            6 => (Kind::Online, r#","metadata":{"device":"app"}"#),
            _ => (Kind::Connect, r#","metadata":7"#),
        };
        let body = format!(r#"{{"userId":"u{user}","connId":"c{conn}","timestamp":{at}{extra}}}"#);
        Step::Message(at, kind, body)
    });
    steps.collect()
}

/// What was published by each shard of a tenant: subject, number and body.
type Published = BTreeMap<String, Vec<(String, String, Bytes)>>;

/// A tenant, and the steps that it has left.
struct Walker {
    number: u32,
    tenant: Tenant,
    names: Arc<Names>,
    directory: Arc<Directory>,
    steps: std::vec::IntoIter<Step>,
}

impl Walker {
    fn new(node: &mut Node, generation: &Generation, steps: Vec<Step>) -> Self {
        let names = Arc::<Names>::default();
        // Audiences are written in the order in which ids were interned, and this order must not
        // depend on the mix of turns.
        for user in 0..USERS {
            names.intern(&format!("u{user}"));
        }
        let number = node.tenants;
        let tenant = node.tenant_with(SHARDS, Arc::clone(&names), TenantContext::default(), || {
            None
        });
        let walker = Self {
            number,
            tenant,
            names,
            directory: Arc::default(),
            steps: steps.into_iter(),
        };
        node.work();
        let pipelines = crate::candidate::Pipelines::alone(generation.clone());
        walker.tell(node, || Task::Pipelines(pipelines.clone()));
        walker
    }

    fn tell(&self, node: &mut Node, task: impl Fn() -> Task) {
        for shard in 0..SHARDS {
            let address = Address {
                tenant: self.number,
                shard,
            };
            node.mailbox.put_first(address, task());
        }
        node.work();
    }

    /// Makes the next step. Returns whether there was one.
    fn step(&mut self, node: &mut Node) -> bool {
        match self.steps.next() {
            None => return false,
            Some(Step::Message(at, kind, body)) => {
                let payload = Bytes::from(body);
                let (place, input) = match Message::parse(kind, &payload, 1 << 20) {
                    Ok(message) => {
                        let place = place(message.user(), SHARDS as usize);
                        (
                            place,
                            Input::Message {
                                message,
                                reply: None,
                            },
                        )
                    }
                    Err(rejection) => {
                        let place = place(&payload, SHARDS as usize);
                        let input = Input::Rejected {
                            kind,
                            payload,
                            rejection,
                            reply: None,
                        };
                        (place, input)
                    }
                };
                offer(
                    &self.tenant.handles[place],
                    Batch::new(at, vec![input], 200),
                );
            }
            Some(Step::Directory(lists)) => {
                // A change of the directory overtakes waiting inputs, so these are handled first.
                node.work();
                let mut edit = self.directory.edit();
                let ids = |of: &[u64]| {
                    of.iter()
                        .map(|it| self.names.intern(&format!("u{it}")).0)
                        .collect()
                };
                for (user, of) in &lists {
                    let id = self.names.intern(&format!("u{user}"));
                    match user % 3 {
                        0 => edit.group(&format!("g{user}"), Some(ids(of))),
                        1 => edit.contacts(id, Some(ids(of))),
                        _ => edit.blocked(id, Some(ids(of))),
                    }
                }
                let (directory, changes) = edit.finish();
                self.directory = Arc::new(directory);
                let input = Input::Directory(Arc::clone(&self.directory), Arc::new(changes));
                self.tell(node, || Task::Input(input.clone()));
            }
        }
        true
    }

    fn published(&self, node: &Node) -> Published {
        let taken = node.broker.0.lock().unwrap();
        let prefix = format!("{}/", self.tenant.name);
        let mut published = Published::new();
        for ((subject, header), body) in taken.messages.iter().zip(&taken.bodies) {
            // The header has the shard, the epoch and the number.
            let Some((shard, rest)) = header
                .strip_prefix(&prefix)
                .and_then(|it| it.split_once(' '))
            else {
                continue;
            };
            let number = rest.split_once(' ').unwrap().1.to_owned();
            let of_shard = published.entry(shard.to_owned()).or_default();
            of_shard.push((subject.clone(), number, body.clone()));
        }
        published
    }
}

/// Makes these walks on one thread, one tenant per walk, and returns what each tenant publishes.
/// The seed decides when turns come and how long they are.
fn run(walks: &[Vec<Step>], seed: u64, stages: impl Fn() -> Vec<Stage>) -> Vec<Published> {
    let mut random = Random(seed);
    let mut node = Node::new(64 << 20, 1 + random.below(400_000));
    let blueprint = Blueprint::prepare(stages(), node.blueprint.limits(), None);
    let generation = Generation {
        number: 2,
        blueprint: Arc::new(blueprint.unwrap_or_else(|problems| panic!("{problems:?}"))),
    };
    let mut walkers: Vec<_> = walks
        .iter()
        .map(|steps| Walker::new(&mut node, &generation, steps.clone()))
        .collect();
    let mut goes_on = vec![true; walkers.len()];
    while goes_on.contains(&true) {
        let which = random.below(walkers.len() as u64) as usize;
        goes_on[which] = walkers[which].step(&mut node);
        node.turns(random.below(3) as usize);
    }
    node.work();
    walkers
        .iter()
        .map(|walker| walker.published(&node))
        .collect()
}

#[test]
fn two_tenants_on_a_thread_publish_what_each_does_alone() {
    let engine = Engine::new().unwrap();
    let plugins =
        PLUGINS.map(|(name, bytes)| Arc::new(Plugin::load(&engine, name, bytes).unwrap()));
    let stages = || {
        let stages = plugins.iter().map(|plugin| {
            let config = match &*plugin.name {
                "redact" => json!({"keys": ["device"]}),
                _ => json!({}),
            };
            Stage::new(Arc::clone(plugin), config, true, None)
        });
        stages.collect()
    };
    let (mut messages, mut filtered) = (0, 0);
    for seed in 1..=WALKS {
        let walks = [walk(2 * seed), walk(2 * seed + 1)];
        let mixed = run(&walks, seed, stages);
        let apart = walks.iter().enumerate().flat_map(|(number, walk)| {
            run(std::slice::from_ref(walk), seed + number as u64, stages)
        });
        let apart: Vec<_> = apart.collect();
        assert_eq!(mixed, apart, "seed {seed}");
        let all = mixed.iter().flat_map(BTreeMap::values).flatten();
        for (subject, _, _) in all {
            messages += 1;
            filtered += usize::from(subject.contains("filtered"));
        }
    }
    // The runs have published enough to be able to differ.
    assert!(messages > 2_000 && filtered > 300, "{messages} {filtered}");
}
