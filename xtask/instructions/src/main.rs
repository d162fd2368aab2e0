//! Runs one kind of event through a shard, a thousand times: `presence-instructions KIND VIEWERS`.
//! `cargo xtask instructions` has valgrind count the instructions of [`measured`]: from a message's
//! bytes to the bodies that are published, with a rule that costs nothing. `query` asks about all
//! users, many at a time: what is counted is one of them.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark may panic"
)]

#[path = "../../../host/core/benches/contacts/mod.rs"]
mod contacts;

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use presence_core::body::query::reply;
use presence_core::directory::Directory;
use presence_core::message::{Kind, Message};
use presence_core::names::{Id, Names};
use presence_core::query::{QueriedUsers, Query};
use presence_core::{Input, Output, Settings, Shard};

use contacts::Contacts;

/// How many events are measured, each of a user of their own.
const EVENTS: usize = 1_000;
/// Far more than the largest audience. A prime, so that any step through the viewers visits each.
const VIEWERS: usize = 2_003;
/// How many users a query asks about, and the least size of the answer on one.
const QUERIED: usize = 100;
const MIN_BYTES: usize = 30;
const METADATA: &str = r#""metadata":{"device":"web","userAgent":"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7)","location":"dashboard","connId":"conn_abc123"}"#;

struct World {
    shard: Shard,
    rules: Contacts,
    out: Vec<Output>,
    /// How many outputs the shard has made.
    outputs: usize,
    now: u64,
}

fn main() {
    let mut args = std::env::args().skip(1);
    let kind = args.next().unwrap();
    let viewers = args.next().unwrap().parse().unwrap();
    let online = bodies(METADATA);
    let offline = bodies(r#""reason":"disconnect""#);
    let heartbeat = bodies(r#""metadata":{"activity":"active","location":"chat:67890"}"#);

    let mut world = World::new(viewers);
    if kind == "query" {
        online
            .iter()
            .for_each(|body| world.take(Kind::Online, body));
        return measured_queries(&mut world, &queries());
    }
    let (before, measured_kind, measured_bodies) = match &*kind {
        "online" => (None, Kind::Online, &online),
        "offline" => (Some(Kind::Online), Kind::Offline, &offline),
        "connect" => (None, Kind::Connect, &online),
        "disconnect" => (Some(Kind::Connect), Kind::Disconnect, &offline),
        "heartbeat" => (Some(Kind::Connect), Kind::Heartbeat, &heartbeat),
        other => panic!("no kind `{other}`"),
    };
    if let Some(before) = before {
        online.iter().for_each(|body| world.take(before, body));
    }
    world.outputs = 0;
    measured(&mut world, measured_kind, measured_bodies);
    // No event was rejected: a rejected one would cost less.
    assert_eq!(world.outputs == 0, kind == "heartbeat");
    let are_gone = ["offline", "disconnect"].contains(&&*kind);
    let online = if are_gone { 0 } else { EVENTS };
    assert_eq!(world.shard.online_users(), online);
}

/// The function whose instructions are counted. valgrind finds it by its name.
#[inline(never)]
fn measured(world: &mut World, kind: Kind, bodies: &[Bytes]) {
    for body in bodies {
        world.take(kind, body);
    }
}

/// As [`measured`], for queries.
#[inline(never)]
fn measured_queries(world: &mut World, bodies: &[Bytes]) {
    for body in bodies {
        world.ask(body);
    }
}

impl World {
    /// A shard in which each user has this many viewers.
    fn new(viewers: usize) -> Self {
        let names = Arc::new(Names::new());
        let pool = (0..VIEWERS).map(|viewer| names.intern(&format!("v{viewer:05}")));
        let pool: Vec<Id> = pool.collect();
        let mut edit = Directory::new().edit();
        for user in 0..EVENTS {
            let step = 1 + user * 7_919 % (VIEWERS - 1);
            let contacts = (0..viewers).map(|contact| pool[(user + contact * step) % VIEWERS].0);
            edit.contacts(names.intern(&name(user)), Some(contacts.collect()));
        }
        let directory = Arc::new(edit.finish().0);
        Self {
            shard: Shard::new(Settings::default(), names, directory),
            rules: Contacts::new(),
            out: Vec::new(),
            outputs: 0,
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
        self.outputs += black_box(&self.out).len();
        self.out.clear();
    }

    fn ask(&mut self, payload: &Bytes) {
        let query = Query::parse(payload, None).unwrap();
        let QueriedUsers::Users(users) = &query.asked else {
            panic!("it names users")
        };
        let asked = users.iter().map(|user| &**user);
        let (rules, out) = (&mut self.rules, &mut self.out);
        let answers = self.shard.query(self.now, &query.viewer, asked, rules, out);
        let each = (0..users.len()).filter_map(|place| answers.get(place));
        let reply = reply(&query.viewer, each, answers.bytes());
        assert!(black_box(reply).len() > QUERIED * MIN_BYTES);
    }
}

/// Queries that together ask about each user once.
fn queries() -> Vec<Bytes> {
    let users: Vec<_> = (0..EVENTS).map(name).collect();
    let body = |users| serde_json::json!({"viewerId": "v00042", "userIds": users}).to_string();
    users
        .chunks(QUERIED)
        .map(|users: &[String]| body(users).into())
        .collect()
}

fn name(user: usize) -> String {
    format!("user-{user:05}")
}

/// The seed document's bodies, one for each user.
fn bodies(rest: &str) -> Vec<Bytes> {
    // Later than the time of arrival, so that the shard uses the time of arrival.
    let at = 9_999_999_999_999_u64;
    let body = |user| {
        format!(
            r#"{{"userId":"{}","connId":"conn_abc123","timestamp":{at},{rest}}}"#,
            name(user)
        )
    };
    (0..EVENTS).map(|user| body(user).into()).collect()
}
