//! What a swap of the pipeline takes from a worker with 100,000 users online: how
//! fast everyone is decided again, and for how long at most new events wait for it.
//!
//! `cargo bench --bench swap` prints the figures as JSON, for
//! `cargo xtask bench` to lay out. Processor time is measured, so that who else is
//! on the machine makes little difference.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a benchmark may panic"
)]

mod components;

use std::sync::Arc;
use std::time::Duration;

use presence_core::directory::Directory;
use presence_core::message::{Kind, Message};
use presence_core::names::{Id, Names};
use presence_core::{Input, Output, Settings, Shard};
use presence_sandbox::{Blueprint, Engine, Pipeline};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use components::blueprint;

const USERS: usize = 100_000;
const CONTACTS: usize = 200;
/// How often each swap is measured; the median counts.
const ROUNDS: usize = 5;
const NOW: u64 = 1_698_000_000_000;

fn main() {
    let engine = Engine::new().expect("an engine");
    let none = json!({});
    let default = ["contacts", "groups", "blocklist", "redact"].map(|name| (name, &none));
    // As many stages, but the one viewer whom only a group brings in isn't admitted:
    // the fixture has steps, and does none, so that it keeps the audience as it is.
    let (mut without_groups, no_steps) = (default, json!({"steps": []}));
    without_groups[1] = ("fixtures/reader", &no_steps);
    let default = blueprint(&engine, &default);
    let without_groups = blueprint(&engine, &without_groups);

    let mut worker = Worker::new(instances(&default));
    let [mut same, mut losses, mut gains] = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        same.push(worker.swap(instances(&default), 0));
        losses.push(worker.swap(instances(&without_groups), USERS));
        gains.push(worker.swap(instances(&default), USERS));
    }
    let figures = json!({
        "users": USERS,
        "contacts": CONTACTS,
        "same": median(same),
        "losses": median(losses),
        "gains": median(gains),
    });
    println!("{figures}");
}

/// A shard, and what runs its rules.
struct Worker {
    shard: Shard,
    rules: Pipeline,
    out: Vec<Output>,
}

/// What a swap took.
struct Swap {
    a_second: f64,
    longest_ms: f64,
}

impl Worker {
    /// With everyone online: each is seen by their contacts, and by one more who
    /// shares a group with them.
    fn new(rules: Pipeline) -> Self {
        let names = Arc::new(Names::new());
        let name = |user: usize| format!("user-{user:06}");
        let users: Vec<_> = (0..USERS).map(|user| names.intern(&name(user)).0).collect();
        let mut edit = Directory::new().edit();
        for (user, id) in users.iter().enumerate() {
            // Any step will do, so long as users differ in it, and none is the
            // group's other member.
            let step = 2 + user * 7_919 % (USERS / CONTACTS - 2);
            let contacts = (1..=CONTACTS).map(|nth| users[(user + nth * step) % USERS]);
            edit.contacts(Id(*id), Some(contacts.collect()));
        }
        for (number, pair) in users.chunks(2).enumerate() {
            edit.group(
                &format!("pair-{number}"),
                Some(pair.iter().copied().collect()),
            );
        }
        let directory = Arc::new(edit.finish().0);
        let settings = Settings {
            // As fast as it can be decided.
            corrections_per_s: 0,
            ..Settings::default()
        };
        let mut worker = Self {
            shard: Shard::new(settings, names, directory),
            rules,
            out: Vec::new(),
        };
        for user in 0..USERS {
            let body = format!(
                r#"{{"userId":"{}","connId":"conn_abc123","timestamp":{NOW},"metadata":{METADATA}}}"#,
                name(user)
            );
            let message = Message::parse(Kind::Connect, &body.into(), 1 << 20).expect("a connect");
            worker.handle(Input::Message {
                message,
                reply: None,
            });
        }
        assert_eq!(worker.shard.online_users(), USERS);
        worker
    }

    /// Puts a pipeline in force, and decides on everyone again, as many of whom
    /// as `changed` somebody loses or gains sight of.
    fn swap(&mut self, rules: Pipeline, changed: usize) -> Swap {
        self.rules = rules;
        let begin = cpu();
        let published = self.handle(Input::Rules);
        assert_eq!(published, 0);
        let mut longest = cpu() - begin;
        let mut published = 0;
        while self.shard.backlog() > 0 {
            let begin = cpu();
            self.shard.advance(NOW, &mut self.rules, &mut self.out);
            published += self.out.len();
            self.out.clear();
            longest = longest.max(cpu() - begin);
        }
        let took = cpu() - begin;
        assert_eq!(
            published, changed,
            "one message a user whose audience changed"
        );
        Swap {
            a_second: USERS as f64 / took.as_secs_f64(),
            longest_ms: longest.as_secs_f64() * 1_000.0,
        }
    }

    fn handle(&mut self, input: Input) -> usize {
        self.shard
            .handle(NOW, input, &mut self.rules, &mut self.out);
        let published = self.out.len();
        self.out.clear();
        published
    }
}

fn instances(blueprint: &Blueprint) -> Pipeline {
    blueprint.instantiate().expect("instances")
}

/// The median rate, and the longest that one task took in any round.
fn median(mut swaps: Vec<Swap>) -> Value {
    swaps.sort_by(|a, b| a.a_second.total_cmp(&b.a_second));
    let longest_ms = swaps.iter().map(|swap| swap.longest_ms).fold(0.0, f64::max);
    json!({"a_second": swaps[swaps.len() / 2].a_second, "longest_ms": longest_ms})
}

/// The processor time that this thread has used so far.
fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(now).expect("a time since the thread began")
}

const METADATA: &str = r#"{"device":"web","userAgent":"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7)","location":"dashboard","connId":"conn_abc123"}"#;
