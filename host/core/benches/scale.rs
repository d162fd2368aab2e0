//! What a shard costs its owner and its standby, while users come, go and send heartbeats for
//! minutes: the real core, in virtual time.
//!
//! `cargo bench --bench scale -- USERS SECONDS` prints the figures as JSON, for `cargo xtask scale`
//! to format. Processor time is measured, so that other load on the machine makes little
//! difference.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark may panic"
)]

mod contacts;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use allocation_counter::measure;
use bytes::Bytes;
use presence_core::directory::Directory;
use presence_core::fleet::FleetSettings;
use presence_core::fleet::replica::{
    Mutation, PreviousOwner, Replica, ReplicaOutput, ReplicaSettings, Role,
};
use presence_core::message::{Kind, Message};
use presence_core::names::Names;
use presence_core::tracker::TrackerSettings;
use presence_core::{Input, Output, Settings, Shard};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use contacts::Contacts;

/// The number of contacts per user.
const CONTACTS: usize = 50;
/// How often each connection sends a heartbeat, and after how long without one it times out.
const HEARTBEAT_MS: u64 = 20_000;
const TIMEOUT_MS: u64 = 60_000;
/// How long a user stays, and stays away, on average.
const STAYS_MS: f64 = 1_200_000.0;
const AWAY_MS: f64 = 133_000.0;
/// Every second user has two connections.
const TWO_EVERY: usize = 2;
/// The virtual time that passes per step.
const STEP_MS: u64 = 10;
const BEGIN: u64 = 1_698_000_000_000;
const FOR_EVER: u64 = u64::MAX / 2;
const METADATA: &str =
    r#"{"device":"web","userAgent":"Mozilla/5.0 (X11; Linux x86_64)","location":"dashboard"}"#;

/// How many bytes a message takes on a connection beside its body: the protocol's line, and the
/// headers.
const FRAME_BYTES: usize = 120;

fn main() {
    let numbers: Vec<u64> = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .collect();
    let [users, seconds] = numbers[..] else {
        panic!("say how many users, and for how many seconds");
    };
    let mut run = Run::new(usize::try_from(users).unwrap());
    let end = BEGIN + seconds * 1_000;
    while run.now < end {
        run.step();
    }
    println!("{}", run.figures(seconds as f64));
}

/// What is to happen next to a user.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Come,
    Leave,
    /// A heartbeat of a connection, by its number. It is only sent in the visit with this number.
    Heartbeat(u8, u32),
}

/// The counters of a run.
#[derive(Default)]
struct Totals {
    /// Input messages, and those of them that opened or closed a connection.
    inputs: u64,
    changes: u64,
    /// The input messages that the standby handled.
    standby_inputs: u64,
    input_bytes: u64,
    parse: Duration,
    owner: Duration,
    standby: Duration,
    /// Filtered messages, all other messages, and the bytes of both.
    filtered: u64,
    others: u64,
    output_bytes: u64,
    told: u64,
    told_bytes: u64,
}

impl Totals {
    /// Counts the owner's outputs, and collects its messages to the standby.
    fn take(&mut self, out: &mut Vec<ReplicaOutput>, told: &mut Vec<Vec<u8>>) {
        for out in out.drain(..) {
            match out {
                ReplicaOutput::Shard(Output::Publish(it)) => {
                    self.output_bytes += (it.body.len() + FRAME_BYTES) as u64;
                    match it.subject.as_str().starts_with("presence.filtered.") {
                        true => self.filtered += 1,
                        false => self.others += 1,
                    }
                }
                ReplicaOutput::ToStandbys(bytes) => {
                    self.told += 1;
                    self.told_bytes += (bytes.len() + FRAME_BYTES) as u64;
                    told.push(bytes);
                }
                _ => {}
            }
        }
    }
}

struct Run {
    now: u64,
    owner: Replica,
    standby: Replica,
    rules: Contacts,
    due: BinaryHeap<Reverse<(u64, u32, Due)>>,
    /// How often each user has come or gone. A user whose number is odd is there.
    visits: Vec<u32>,
    random: u64,
    totals: Totals,
    /// The sizes of the owner, the standby, and the snapshot between them.
    owner_bytes: u64,
    standby_bytes: u64,
    snapshot_bytes: u64,
    snapshot: Duration,
}

impl Run {
    fn new(users: usize) -> Self {
        let names = Arc::new(Names::new());
        let ids: Vec<_> = (0..users).map(|user| names.intern(&name(user))).collect();
        let mut edit = Directory::new().edit();
        for (user, id) in ids.iter().enumerate() {
            // Any step will do, as long as users have different steps.
            let step = 1 + user * 7_919 % (users / CONTACTS);
            let contacts = (1..=CONTACTS).map(|nth| ids[(user + nth * step) % users].0);
            edit.contacts(*id, Some(contacts.collect()));
        }
        let directory = Arc::new(edit.finish().0);
        let settings = Settings {
            tracker: TrackerSettings {
                timeout_ms: TIMEOUT_MS,
                ..TrackerSettings::default()
            },
            ..Settings::default()
        };
        let replica = |node: &str| {
            let shard = Shard::new(settings.clone(), Arc::clone(&names), Arc::clone(&directory));
            let settings = ReplicaSettings {
                fleet: FleetSettings::default(),
                node: node.into(),
                timeout_ms: TIMEOUT_MS,
                chunk_bytes: 512 * 1024,
                standby_message_bytes_max: 512 * 1024,
                relay_heartbeats_min: 8,
                mutation: Mutation::None,
            };
            Replica::new(0, settings, Arc::clone(&names), shard)
        };
        let mut run = Self {
            now: BEGIN,
            owner: replica("owner"),
            standby: replica("standby"),
            rules: Contacts::new(),
            due: BinaryHeap::new(),
            visits: vec![0; users],
            random: 1,
            totals: Totals::default(),
            owner_bytes: 0,
            standby_bytes: 0,
            snapshot_bytes: 0,
            snapshot: Duration::ZERO,
        };
        run.begin(users);
        run
    }

    /// The owner begins, nearly all users connect, and the standby catches up.
    fn begin(&mut self, users: usize) {
        let mut out = Vec::new();
        let role = Role::Lead {
            epoch: 1,
            previous: PreviousOwner::default(),
        };
        self.owner.set_role(self.now, role, &mut out);
        self.owner.renewed(self.now, FOR_EVER, &mut out);
        let share = STAYS_MS / (STAYS_MS + AWAY_MS);
        let mut inputs = Vec::new();
        for user in 0..users {
            if self.uniform() < share {
                self.come(user, true, &mut inputs);
            } else {
                let at = self.now + self.exponential(AWAY_MS);
                self.due.push(Reverse((at, user as u32, Due::Come)));
            }
        }
        let inputs: Vec<_> = inputs.iter().map(parsed).collect();
        let (owner, rules, now) = (&mut self.owner, &mut self.rules, self.now);
        let of_owner = measure(|| {
            for input in inputs {
                owner.input(now, input, rules, &mut out);
                out.clear();
            }
        });
        self.owner_bytes = u64::try_from(of_owner.bytes_current).unwrap_or(0);
        self.snapshot();
        self.totals = Totals::default();
    }

    fn snapshot(&mut self) {
        let mut out = Vec::new();
        let role = Role::Follow {
            epoch: 1,
            owner: "owner".into(),
        };
        self.standby.set_role(self.now, role, &mut out);
        // The standby listens for a while before it asks.
        self.now = self.standby.next_deadline().unwrap();
        self.standby.advance(self.now, &mut self.rules, &mut out);
        let nonce = out.iter().find_map(|out| match out {
            ReplicaOutput::Ask { nonce, .. } => Some(*nonce),
            _ => None,
        });
        let mut chunks = Vec::new();
        let begin = cpu();
        self.owner
            .snapshot_requested(self.now, &"standby".into(), nonce.unwrap(), &mut chunks);
        self.snapshot = cpu() - begin;
        let mut bytes = 0;
        let of_standby = measure(|| {
            while self.standby.complete_epoch().is_none() {
                for chunk in chunks.drain(..) {
                    if let ReplicaOutput::Chunk(_, chunk) = chunk {
                        bytes += chunk.len() as u64;
                        self.standby.chunk(self.now, &chunk, &mut out).unwrap();
                    }
                }
                // The rest of the snapshot comes chunk by chunk.
                self.now += 1;
                let begin = cpu();
                self.owner.advance(self.now, &mut self.rules, &mut chunks);
                self.snapshot += cpu() - begin;
            }
        });
        self.snapshot_bytes = bytes;
        self.standby_bytes = u64::try_from(of_standby.bytes_current).unwrap_or(0);
    }

    /// Advances the time by one step.
    fn step(&mut self) {
        self.now += STEP_MS;
        let mut inputs = Vec::new();
        while let Some(Reverse((at, user, due))) = self.due.peek().copied()
            && at <= self.now
        {
            self.due.pop();
            let number = user as usize;
            match due {
                Due::Come => self.come(number, false, &mut inputs),
                Due::Leave => self.leave(number, &mut inputs),
                Due::Heartbeat(conn, visit) if self.visits[number] == visit => {
                    inputs.push((Kind::Heartbeat, message(number, conn, self.now, "")));
                    let at = self.now + HEARTBEAT_MS;
                    self.due.push(Reverse((at, user, due)));
                }
                Due::Heartbeat(..) => {}
            }
        }
        let totals = &mut self.totals;
        totals.inputs += inputs.len() as u64;
        let is_change = |kind: &Kind| !matches!(kind, Kind::Heartbeat);
        totals.changes += inputs.iter().filter(|(kind, _)| is_change(kind)).count() as u64;
        let bytes = inputs.iter().map(|(_, body)| body.len() + FRAME_BYTES);
        totals.input_bytes += bytes.sum::<usize>() as u64;
        let begin = cpu();
        let for_owner: Vec<_> = inputs.iter().map(parsed).collect();
        totals.parse += cpu() - begin;
        let takes = self.standby.receives_heartbeats();
        let taken = inputs.iter().filter(|(kind, _)| takes || is_change(kind));
        let for_standby: Vec<_> = taken.map(parsed).collect();
        totals.standby_inputs += for_standby.len() as u64;

        let (mut out, mut told) = (Vec::new(), Vec::new());
        let begin = cpu();
        for input in for_owner {
            self.owner.input(self.now, input, &mut self.rules, &mut out);
        }
        totals.owner += cpu() - begin;
        totals.take(&mut out, &mut told);
        while self.owner.next_deadline().is_some_and(|at| at <= self.now) {
            let begin = cpu();
            self.owner.advance(self.now, &mut self.rules, &mut out);
            totals.owner += cpu() - begin;
            totals.take(&mut out, &mut told);
        }
        let begin = cpu();
        for input in for_standby {
            self.standby
                .input(self.now, input, &mut self.rules, &mut out);
        }
        for told in told {
            self.standby.receive(self.now, &told, &mut out).unwrap();
        }
        let due = |standby: &Replica| standby.next_deadline().is_some_and(|at| at <= self.now);
        while due(&self.standby) && out.is_empty() {
            self.standby.advance(self.now, &mut self.rules, &mut out);
        }
        totals.standby += cpu() - begin;
        let differs = out
            .iter()
            .any(|out| matches!(out, ReplicaOutput::Differed(_)));
        assert!(!differs, "the standby holds what the owner holds: {out:?}");
    }

    /// A user comes, with one connection or two. `before`: the user is already there at the
    /// beginning of the run, in the middle of a visit.
    fn come(&mut self, user: usize, before: bool, inputs: &mut Vec<(Kind, Bytes)>) {
        self.visits[user] += 1;
        let visit = self.visits[user];
        for conn in 0..connections(user) {
            let metadata = format!(r#","metadata":{METADATA}"#);
            inputs.push((Kind::Connect, message(user, conn, self.now, &metadata)));
            let first = match before {
                true => (self.uniform() * HEARTBEAT_MS as f64) as u64,
                false => HEARTBEAT_MS,
            };
            let heartbeat = Due::Heartbeat(conn, visit);
            self.due
                .push(Reverse((self.now + first, user as u32, heartbeat)));
        }
        let at = self.now + self.exponential(STAYS_MS);
        self.due.push(Reverse((at, user as u32, Due::Leave)));
    }

    fn leave(&mut self, user: usize, inputs: &mut Vec<(Kind, Bytes)>) {
        self.visits[user] += 1;
        for conn in 0..connections(user) {
            let reason = r#","reason":"client_disconnect""#;
            inputs.push((Kind::Disconnect, message(user, conn, self.now, reason)));
        }
        let at = self.now + self.exponential(AWAY_MS);
        self.due.push(Reverse((at, user as u32, Due::Come)));
    }

    /// A random number from 0 to 1 (xorshift64*), the same in each run.
    fn uniform(&mut self) -> f64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let number = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        number as f64 / (1_u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> u64 {
        (-mean * (1.0 - self.uniform()).ln()) as u64
    }

    fn figures(&self, seconds: f64) -> serde_json::Value {
        let totals = &self.totals;
        let ns = |time: Duration| time.as_nanos() as f64;
        let per_s = |count: u64| count as f64 / seconds;
        let shard = self.owner.shard();
        json!({
            "users": self.visits.len(),
            "contacts": CONTACTS,
            "online": shard.online_users(),
            "connections": shard.connections(),
            "inputs_per_s": per_s(totals.inputs),
            "changes_per_s": per_s(totals.changes),
            "standby_inputs_per_s": per_s(totals.standby_inputs),
            "input_bytes_per_s": per_s(totals.input_bytes),
            "filtered_per_s": per_s(totals.filtered),
            "others_per_s": per_s(totals.others),
            "output_bytes_per_s": per_s(totals.output_bytes),
            "told_per_s": per_s(totals.told),
            "told_bytes_per_s": per_s(totals.told_bytes),
            "parse_ns_per_s": ns(totals.parse) / seconds,
            "owner_ns_per_s": ns(totals.owner) / seconds,
            "standby_ns_per_s": ns(totals.standby) / seconds,
            "owner_bytes": self.owner_bytes,
            "standby_bytes": self.standby_bytes,
            "snapshot_bytes": self.snapshot_bytes,
            "snapshot_ms": ns(self.snapshot) / 1e6,
        })
    }
}

fn connections(user: usize) -> u8 {
    1 + u8::from(user.is_multiple_of(TWO_EVERY))
}

fn name(user: usize) -> String {
    format!("user-{user:08}")
}

fn message(user: usize, conn: u8, now: u64, more: &str) -> Bytes {
    let name = name(user);
    format!(r#"{{"userId":"{name}","connId":"conn-{user:08}-{conn}","timestamp":{now}{more}}}"#)
        .into()
}

fn parsed((kind, body): &(Kind, Bytes)) -> Input {
    Input::Message {
        message: Message::parse(*kind, body, 1 << 20).unwrap(),
        reply: None,
    }
}

/// The processor time of this thread so far.
fn cpu() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}
