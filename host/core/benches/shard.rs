//! What a message costs a shard, from its bytes to the bodies it gives rise to,
//! with a rule that costs nothing: contacts may see the user.
//!
//! `cargo bench --bench shard`

#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark may panic"
)]

mod contacts;

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use presence_core::directory::Directory;
use presence_core::message::{Kind, Message};
use presence_core::names::{Id, Names};
use presence_core::{Input, Output, Settings, Shard};

use contacts::Contacts;

const USERS: usize = 10_000;
const VIEWERS: usize = 10;

struct World {
    shard: Shard,
    rules: Contacts,
    out: Vec<Output>,
    now: u64,
}

impl World {
    fn new() -> Self {
        let names = Arc::new(Names::new());
        let ids: Vec<Id> = (0..USERS).map(|user| names.intern(&name(user))).collect();
        let mut edit = Directory::new().edit();
        for (user, id) in ids.iter().enumerate() {
            let contacts = (1..=VIEWERS).map(|step| ids[(user + step * 7) % USERS].0);
            edit.contacts(*id, Some(contacts.collect()));
        }
        let directory = Arc::new(edit.finish().0);
        Self {
            shard: Shard::new(Settings::default(), names, directory),
            rules: Contacts::new(),
            out: Vec::new(),
            now: 1_698_000_000_000,
        }
    }

    fn take(&mut self, kind: Kind, payload: &Bytes) {
        self.now += 1;
        let message = Message::parse(kind, payload, 1 << 20).unwrap();
        let input = Input::Message {
            message,
            reply: None,
        };
        self.shard
            .handle(self.now, input, &mut self.rules, &mut self.out);
        black_box(&self.out);
        self.out.clear();
    }
}

fn name(user: usize) -> String {
    format!("user-{user:05}")
}

/// A body a user, and far strides through them, so that caches help no more than
/// they would in life.
fn bodies(body: impl Fn(&str) -> String) -> Vec<Bytes> {
    let user = |step: usize| name(step * 7_919 % USERS);
    (0..USERS).map(|step| body(&user(step)).into()).collect()
}

/// The seed document's bodies.
fn event(kind: &str, rest: &str) -> Vec<Bytes> {
    // Later than any arrival, and so taken for that.
    let at = 9_999_999_999_999_u64;
    bodies(|user| {
        format!(
            r#"{{"type":"{kind}","userId":"{user}","connId":"conn_abc123","timestamp":{at},{rest}}}"#
        )
    })
}

const METADATA: &str = r#""metadata":{"device":"web","userAgent":"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7)","location":"dashboard","connId":"conn_abc123"}"#;

fn messages(criterion: &mut Criterion) {
    for (title, on, off) in [
        (
            "an application's online and offline",
            Kind::Online,
            Kind::Offline,
        ),
        (
            "a connect and a disconnect",
            Kind::Connect,
            Kind::Disconnect,
        ),
    ] {
        let mut world = World::new();
        let online = event("user_online", METADATA);
        let offline = event("user_offline", r#""reason":"disconnect""#);
        let mut users = (0..USERS).cycle();
        criterion.bench_function(title, |bencher| {
            bencher.iter(|| {
                let user = users.next().unwrap();
                world.take(on, &online[user]);
                world.take(off, &offline[user]);
            });
        });
    }

    let mut world = World::new();
    for body in event("user_online", METADATA) {
        world.take(Kind::Connect, &body);
    }
    let heartbeats = event(
        "",
        r#""metadata":{"activity":"active","location":"chat:67890"}"#,
    );
    let mut users = (0..USERS).cycle();
    criterion.bench_function("a heartbeat", |bencher| {
        bencher.iter(|| world.take(Kind::Heartbeat, &heartbeats[users.next().unwrap()]));
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = messages
}
criterion_main!(benches);
