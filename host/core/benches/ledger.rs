//! What the ledger costs: the time for an online and the following offline, and the memory for an
//! online user; and what the tracker costs for a connection.
//!
//! `cargo bench --bench ledger` prints the figures as JSON, for `cargo xtask bench` to format.
//! Processor time is measured, so that other load on the machine makes little difference.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark may panic"
)]

mod contacts;

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use allocation_counter::measure;
use presence_core::audience::Audience;
use presence_core::directory::{Directory, Question};
use presence_core::event::{Change, Event};
use presence_core::ledger::Ledger;
use presence_core::message::{Kind, Message};
use presence_core::metadata::Metadata;
use presence_core::names::{Id, Names};
use presence_core::recipients::{Recipients, ShownDigest};
use presence_core::tracker::{Tracker, TrackerSettings};
use presence_core::{Input, Settings, Shard};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use contacts::Contacts;

const USERS: usize = 100_000;
const CONTACTS: usize = 200;
/// How many connections the tracker has, two per user.
const CONNECTIONS: usize = 1_000_000;
/// How often everyone goes offline and comes online again; the median counts.
const ROUNDS: usize = 11;
const NOW: u64 = 1_698_000_000_000;

fn main() {
    let names = Arc::new(Names::new());
    let users: Vec<_> = (0..USERS)
        .map(|user| names.intern(&format!("user-{user:06}")))
        .collect();
    let mut edit = Directory::new().edit();
    for (user, id) in users.iter().enumerate() {
        // Any step will do, as long as users have different steps.
        let step = 1 + user * 7_919 % (USERS / CONTACTS);
        let contacts = (1..=CONTACTS).map(|nth| users[(user + nth * step) % USERS].0);
        edit.contacts(*id, Some(contacts.collect()));
    }
    let directory = Arc::new(edit.finish().0);

    let mut events = Vec::with_capacity(USERS);
    let of_events = measure(|| events.extend(users.iter().map(|user| online(&names, *user))));
    let told: Vec<_> = users
        .iter()
        .map(|user| directory.audience(&Question::Contacts(*user)).unwrap())
        .collect();
    let mut ledger = Ledger::default();
    let of_ledger = measure(|| {
        for (event, told) in events.iter().zip(&told) {
            come_online(&mut ledger, event, told);
        }
    });
    let (online_ns, offline_ns) = times(&mut ledger, &events, &told);
    drop((ledger, events, told));

    let mut shard = Shard::new(Settings::default(), Arc::clone(&names), directory);
    let of_shard = measure(|| connect_all(&mut shard, &names, &users));
    assert_eq!(shard.online_users(), USERS);

    let mut tracker = Tracker::new(TrackerSettings::default());
    let of_tracker = measure(|| {
        for user in 0..CONNECTIONS {
            let (name, conn) = (format!("user-{:07}", user / 2), format!("conn_{user:06}"));
            tracker.connect(NOW, &name, &conn, NOW, || ());
        }
    });
    assert_eq!(tracker.connections(), CONNECTIONS);

    let a_user =
        |measured: allocation_counter::AllocationInfo| measured.bytes_current as f64 / USERS as f64;
    let figures = json!({
        "users": USERS,
        "contacts": CONTACTS,
        "online_ns": online_ns,
        "offline_ns": offline_ns,
        "ledger_bytes": a_user(of_ledger),
        "event_bytes": a_user(of_events),
        "shard_bytes": a_user(of_shard),
        "connections": CONNECTIONS,
        "connection_bytes": of_tracker.bytes_current as f64 / CONNECTIONS as f64,
    });
    println!("{figures}");
}

/// What a shard has its ledger do for an online event, after the decision.
fn come_online(ledger: &mut Ledger, event: &Arc<Event>, audience: &Audience) {
    ledger.online(Arc::clone(event));
    let entry = ledger.get_mut(event.user).unwrap();
    let after = Recipients::new([(audience.clone(), ShownDigest::default())]);
    let told = std::mem::replace(&mut entry.recipients, after);
    if told.same(&entry.recipients) {
        return;
    }
    let lost = told.audience().difference(audience);
    let gained = audience.difference(told.audience());
    if !(lost.is_empty() && gained.is_empty()) {
        ledger.mark_changed(event.user);
    }
    black_box(gained);
}

/// What a shard has its ledger do for an offline event: it finds the viewers of each rendition who
/// have been told, and the others who have been told.
fn go_offline(ledger: &mut Ledger, user: Id, audience: &Audience) {
    let entry = ledger.offline(user).unwrap();
    black_box(audience.intersection(entry.recipients.audience()));
    black_box(entry.recipients.audience().difference(audience));
}

/// The nanoseconds for an online and for an offline, in the median round, while nine in ten users
/// are online. Users come and go in parts. The users of a part are far from each other in memory,
/// and stay away while other parts follow, so that caches help no more than in production.
fn times(ledger: &mut Ledger, events: &[Arc<Event>], told: &[Audience]) -> (f64, f64) {
    const PART: usize = 1_000;
    const AWAY: usize = USERS / 10 / PART;
    let order: Vec<_> = (0..USERS).map(|step| step * 7_919 % USERS).collect();
    let mut away = VecDeque::new();
    let (mut onlines, mut offlines) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (mut online, mut offline) = (Duration::ZERO, Duration::ZERO);
        for part in order.chunks(PART) {
            // The audience is already decided by then, and the event is a new one.
            let given = |user: &usize| {
                let event = Arc::new(Event::clone(&events[*user]));
                (event, told[*user].clone())
            };
            let given: Vec<_> = part.iter().map(given).collect();
            let begin = cpu();
            for (event, audience) in &given {
                go_offline(ledger, event.user, audience);
            }
            offline += cpu() - begin;
            away.push_back(given);
            if away.len() > AWAY
                && let Some(given) = away.pop_front()
            {
                let begin = cpu();
                for (event, audience) in &given {
                    come_online(ledger, event, audience);
                }
                online += cpu() - begin;
            }
        }
        onlines.push(online.as_nanos() as f64 / USERS as f64);
        offlines.push(offline.as_nanos() as f64 / USERS as f64);
    }
    (median(onlines), median(offlines))
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// The processor time of this thread so far.
fn cpu() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

/// The seed document's event.
fn online(names: &Names, user: Id) -> Arc<Event> {
    Arc::new(Event {
        user,
        name: names.name(user).unwrap(),
        timestamp: NOW,
        change: Change::Online,
        metadata: Metadata::parse(METADATA, |_| true),
    })
}

fn connect_all(shard: &mut Shard, names: &Names, users: &[Id]) {
    let mut rules = Contacts::new();
    let mut out = Vec::new();
    for user in users {
        let name = names.name(*user).unwrap();
        let body = format!(
            r#"{{"userId":"{}","connId":"conn_abc123","timestamp":{NOW},"metadata":{METADATA}}}"#,
            name.as_str()
        );
        let message = Message::parse(Kind::Connect, &body.into(), 1 << 20).unwrap();
        let input = Input::Message {
            message,
            reply: None,
        };
        shard.handle(NOW, input, &mut rules, &mut out);
        out.clear();
    }
}

const METADATA: &str = r#"{"device":"web","userAgent":"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7)","location":"dashboard","connId":"conn_abc123"}"#;
