//! What a component's verdict costs, beside the same rule written in Rust.
//!
//! `cargo bench --workspace --bench filter`

#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::expect_used, reason = "a benchmark may panic")]

mod components;

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use presence_core::audience::Audience;
use presence_core::directory::{Directory, Question};
use presence_core::event::{Change, Event};
use presence_core::metadata::Metadata;
use presence_core::names::Names;
use presence_core::rules::{Context, Decision, Enriched, Reads, Rendition, Rules};
use presence_sandbox::Engine;
use serde_json::json;

/// Ids from which the contacts are drawn where they are random.
const RANDOM_IDS: u32 = 1_000_000;

fn verdicts(criterion: &mut Criterion) {
    let engine = Engine::new().expect("an engine");
    let both = json!({"steps": ["contacts", "blocked_by"]});
    let none = json!({});
    let default = ["contacts", "groups", "blocklist", "redact"].map(|name| (name, &none));
    let rules = [
        ("contacts", &[("contacts", &none)][..], Native::Contacts),
        (
            "contacts less blocked",
            &[("fixtures/reader", &both)],
            Native::LessBlocked,
        ),
        ("default", &default, Native::Default),
    ];
    for (name, chain, mut native) in rules {
        let components = components::blueprint(&engine, chain);
        let mut components = components.instantiate().expect("instances");
        let mut group = criterion.benchmark_group(name);
        for world in worlds() {
            let mut bench = |who: &str, rules: &mut dyn Rules| {
                group.bench_function(BenchmarkId::new(who, world.size), |bencher| {
                    bencher.iter(|| black_box(rules.decide(world.context())));
                });
            };
            bench("component", &mut components);
            bench("native", &mut native);
        }
    }
}

/// A user, and the directory that knows who may see them.
struct World {
    size: &'static str,
    names: Arc<Names>,
    directory: Arc<Directory>,
    event: Arc<Event>,
}

impl World {
    fn new(size: &'static str, contacts: Vec<u32>) -> Self {
        let names = Arc::new(Names::new());
        let (user, name) = names.intern_name("user-12345");
        let colleagues = contacts.iter().copied().take(5);
        let blocked = contacts.iter().copied().step_by(4).take(2);
        let mut edit = Directory::new().edit();
        edit.group("team", Some(colleagues.chain([user.0]).collect()));
        edit.blocked(user, Some(blocked.collect()));
        edit.contacts(user, Some(contacts.into_iter().collect()));
        let event = Event {
            user,
            name,
            timestamp: 1_698_000_000_000,
            change: Change::Online,
            metadata: Metadata::parse(r#"{"device":"desktop"}"#, |_| true),
        };
        Self {
            size,
            names,
            directory: Arc::new(edit.finish().0),
            event: Arc::new(event),
        }
    }

    fn context(&self) -> Context<'_> {
        Context {
            now: 1_698_000_000_000,
            monotonic: 1_698_000_000_000,
            event: &self.event,
            directory: &self.directory,
            names: &self.names,
        }
    }
}

fn worlds() -> [World; 5] {
    let dense = |count: u32| (1..=count).collect();
    // A linear congruence with a full period: each id at most once.
    let random = std::iter::successors(Some(12_345_u64), |id| Some((id * 21 + 7_919) % (1 << 20)));
    let random = random.filter_map(|id| u32::try_from(id).ok());
    let random = random
        .filter(|id| (1..RANDOM_IDS).contains(id))
        .take(10_000);
    [
        World::new("10", dense(10)),
        World::new("100", dense(100)),
        World::new("1000", dense(1_000)),
        World::new("10000", dense(10_000)),
        World::new("10000 random", random.collect()),
    ]
}

/// The rules again, in Rust.
#[derive(PartialEq, Eq)]
enum Native {
    /// A user's contacts.
    Contacts,
    /// A user's contacts, less whom the user has blocked.
    LessBlocked,
    /// What the default pipeline does.
    Default,
}

impl Rules for Native {
    fn enrich(&mut self, _: Context<'_>) -> Enriched {
        Enriched::default()
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        let user = context.event.user;
        let mut reads = Reads::default();
        let mut ask = |question: Question| {
            let audience = context.directory.audience(&question);
            reads.questions.insert(question);
            audience.unwrap_or_default()
        };
        let mut audience = ask(Question::Contacts(user));
        if *self == Self::Default {
            audience = audience.union(&ask(Question::CoMembers(user)));
        }
        if *self != Self::Contacts {
            audience = audience.difference(&ask(Question::BlockedBy(user)));
        }
        Decision::Decided(renditions(&audience), reads)
    }

    fn redact(&mut self, _: Context<'_>, told: &Audience) -> Decision {
        Decision::Decided(renditions(told), Reads::default())
    }
}

fn renditions(audience: &Audience) -> Vec<Rendition> {
    vec![Rendition {
        audience: audience.clone(),
        keys: Arc::from(["device".into()]),
        last_seen: true,
    }]
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = verdicts
}
criterion_main!(benches);
