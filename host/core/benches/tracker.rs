//! What one input costs the tracker while there are 100 000 live connections.
//!
//! `cargo bench --bench tracker`

#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a benchmark may panic"
)]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use presence_core::tracker::{Reason, Tracker, TrackerSettings};

const USERS: usize = 50_000;
const CONNECTIONS: [&str; 2] = ["web", "phone"];

fn names() -> Vec<String> {
    (0..USERS).map(|number| format!("user-{number}")).collect()
}

fn crowd(names: &[String]) -> Tracker<()> {
    let mut tracker = Tracker::new(TrackerSettings::default());
    for (now, name) in (0..).zip(names) {
        for conn in CONNECTIONS {
            tracker.connect(now, name, conn, now, || ());
        }
    }
    tracker
}

fn inputs(criterion: &mut Criterion) {
    let names = names();
    let mut tracker = crowd(&names);
    let mut now = USERS as u64;
    // The users of successive inputs are far apart, so that caches help no more than in production.
    let mut others = (0..).map(|step: usize| &names[step * 7919 % USERS]);

    criterion.bench_function("heartbeat", |bencher| {
        bencher.iter(|| {
            now += 1;
            let user = others.next().expect("endless");
            black_box(tracker.heartbeat(now, user, "web", now, || ()))
        });
    });

    let mut tracker = crowd(&names);
    criterion.bench_function("connect and disconnect", |bencher| {
        bencher.iter(|| {
            now += 1;
            black_box(tracker.connect(now, "visitor", "web", now, || ()));
            now += 1;
            black_box(tracker.disconnect(now, "visitor", "web", now, Reason::Disconnect))
        });
    });
}

fn expiry(criterion: &mut Criterion) {
    let names = names();
    // Every second expiry causes an offline.
    criterion.bench_function("100 000 expiries", |bencher| {
        bencher.iter_batched_ref(
            || crowd(&names),
            |tracker| while black_box(tracker.expire(100_000)).is_some() {},
            BatchSize::PerIteration,
        );
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = inputs, expiry
}
criterion_main!(benches);
