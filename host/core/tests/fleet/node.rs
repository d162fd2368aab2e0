//! A virtual node: the fleet's protocol and the shards, between a broker, a clock and a disk that
//! may each fail. It does what the node's run loop must do.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use presence_core::digest::digest;
use presence_core::directory::Directory;
use presence_core::fleet::FleetSettings;
use presence_core::fleet::lease::WriteOutcome;
use presence_core::fleet::member::{self, Key, Member};
use presence_core::fleet::replica::{CatchUpReason, Replica, ReplicaOutput, ReplicaSettings, Role};
use presence_core::message::{Kind, Message};
use presence_core::names::Names;
use presence_core::publish::{Publication, Subject};
use presence_core::record::Record;
use presence_core::status::StatusSettings;
use presence_core::tracker::TrackerSettings;
use presence_core::{Input, Output, Settings, Shard};

use crate::rules::{Shows, TwoOfThree, user_id};
use crate::statuses::{MIN_INTERVAL_MS, TYPING_MS};
use crate::stream::StreamMode;
use crate::world::{FAULTS_UNTIL, Options, SHARDS};

/// The wall time at which a run begins.
pub(crate) const BEGINNING: u64 = 1_700_000_000_000;
pub(crate) const TIMEOUT_MS: u64 = 2_000;
/// How much messages may be out of order if there is a stream.
pub(crate) const REORDER_MS: u64 = 50;
/// The grace for users who have left, in some runs.
pub(crate) const GRACE_MS: u64 = 300;
pub(crate) const FLEET: FleetSettings = FleetSettings {
    lease_ms: 600,
    margin_ms: 60,
    standbys: 1,
    digest_ms: 200,
    relay_ms: 50,
    answer_ms: 120,
};
const BEACON_MS: u64 = 250;
/// For how long a node is closed, or open.
const CLOSED_MS: u64 = 1_700;
const FLUSH_MS: u64 = 900;

/// The content of a disk: for each shard, when it was written, and the records.
pub(crate) type Disk = BTreeMap<u32, (u64, Vec<(Vec<u8>, Vec<u8>)>)>;

/// A message that arrives at a node.
#[derive(Clone, Debug)]
pub(crate) enum Arrival {
    /// A message of an application, on a subject that the routers share.
    Routed(Message),
    /// A message of the stream, which this node must pass on.
    RoutedStored(u64, Message),
    /// A message on a shard's subject.
    Input(u32, Message),
    Stored(u32, u64, Message),
    Told(u32, Vec<u8>),
    Ask {
        shard: u32,
        node: Arc<str>,
        nonce: u64,
    },
    Chunk(u32, Vec<u8>),
    Synced {
        shard: u32,
        epoch: u64,
        seq: u64,
        node: Arc<str>,
    },
    Query {
        shard: u32,
        client: usize,
        question: u64,
    },
    Changed(Key, Option<String>, u64),
    Written(u64, WriteOutcome),
    Read(Key, Option<(Option<String>, u64)>),
    /// The node is connected again, after messages may have been lost.
    Reconnected,
    /// The rules have changed.
    Rules(usize),
    Tick,
}

/// A message that a node sends.
#[derive(Clone, Debug)]
pub(crate) enum Sent {
    Input(u32, Message),
    Stored(u64, Message),
    /// The node has handled a message of the stream.
    Handled(u64),
    /// A reply to an application, with its subject.
    Reply(String),
    Told(u32, Vec<u8>),
    Publish {
        shard: u32,
        epoch: u64,
        /// When the owner decided on it.
        at: u64,
        publication: Publication,
    },
    Beacon {
        shard: u32,
        epoch: u64,
        seqs: Vec<(Subject, u64)>,
    },
    Answer {
        client: usize,
        shard: u32,
        epoch: u64,
        question: u64,
        /// When it was asked.
        at: u64,
        users: Vec<(usize, Option<Shows>)>,
    },
    ToNode(Arc<str>, Box<Arrival>),
    Write {
        id: u64,
        key: Key,
        value: Option<String>,
        revision: u64,
    },
    Read(Key),
    Left,
}

pub(crate) struct Node {
    pub(crate) number: usize,
    pub(crate) name: Arc<str>,
    pub(crate) server: usize,
    /// How far its clock is off, and how much faster it runs, in millionths.
    pub(crate) offset: u64,
    pub(crate) drift: i64,
    pub(crate) session: u64,
    pub(crate) process: Option<Process>,
    pub(crate) disk: Disk,
    /// The process is stopped until then.
    pub(crate) stopped_until: Option<u64>,
    /// When the process was stopped.
    pub(crate) stopped_at: u64,
    /// The broker has closed its connection, since the node was silent.
    pub(crate) is_kicked: bool,
    pub(crate) is_cut: bool,
    /// Whether it has missed changes of the bucket.
    pub(crate) is_behind: bool,
    /// Messages that wait in its sockets while it is stopped.
    pub(crate) waiting: VecDeque<Arrival>,
    /// Messages to be sent later: in the middle of a write, or while it is cut off.
    pub(crate) held: Vec<Sent>,
    /// Stops it for this time at the next filtered event that it publishes.
    pub(crate) stop_at_publish: Option<u64>,
}

/// The state that is lost when the process ends.
pub(crate) struct Process {
    pub(crate) member: Member,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) roles: Vec<Role>,
    names: Arc<Names>,
    t: u64,
    rules: TwoOfThree,
    sent: Vec<Sent>,
    resigned: Vec<(u32, u64, u64)>,
    /// Until when it may rely on its lease.
    until: u64,
    beacon_at: u64,
    flush_at: u64,
    /// For each shard: the end of the last period of reception that it wasn't told of.
    skipped: Vec<Option<u64>>,
    /// The reason of each time that a replica caught up.
    pub(crate) differed: Vec<CatchUpReason>,
    /// Whether the node is closed at times.
    closes: bool,
}

fn shard_settings(options: &Options) -> Settings {
    let (stream, grace_ms) = (options.stream, options.grace_ms);
    let tracker = TrackerSettings::default();
    let defaults = Settings::default();
    Settings {
        tracker: TrackerSettings {
            ties_close: true,
            // Messages that are delivered again arrive out of order.
            reorder_ms: match stream {
                StreamMode::None => tracker.reorder_ms,
                StreamMode::OneFault | StreamMode::AnyFault => REORDER_MS,
            },
            timeout_ms: TIMEOUT_MS,
            grace_ms,
            receive_step_ms: Some(150),
            ..tracker
        },
        statement_ttl_ms: options
            .statement_ttl_ms
            .filter(|_| !options.keeps_statements)
            .unwrap_or(defaults.statement_ttl_ms),
        status: options.statuses.then_some(StatusSettings {
            min_interval_ms: MIN_INTERVAL_MS,
            typing_ms: TYPING_MS,
            users_max: 100,
        }),
        // Some departures are forgotten while their users come back.
        departures_max: 2,
        ..defaults
    }
}

impl Node {
    pub(crate) fn now(&self, t: u64) -> u64 {
        let drifted = t as i64 * self.drift / 1_000_000;
        BEGINNING + self.offset + t.saturating_add_signed(drifted)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.process.is_some() && self.stopped_until.is_none()
    }

    /// Whether the broker considers it connected.
    pub(crate) fn is_connected(&self) -> bool {
        self.process.is_some() && !self.is_cut && !self.is_kicked
    }

    pub(crate) fn start(&mut self, t: u64, options: &Options, generation: usize) {
        let now = self.now(t);
        self.session += 1;
        let names = Arc::new(Names::new());
        let settings = ReplicaSettings {
            fleet: FLEET,
            node: Arc::clone(&self.name),
            timeout_ms: TIMEOUT_MS,
            chunk_bytes: 300,
            // Some messages are longer, and are sent in pieces.
            standby_message_bytes_max: 120,
            // Some shards have this number of heartbeats at times.
            relay_heartbeats_min: 2,
            mutation: options.mutation,
        };
        let replicas = (0..SHARDS).map(|number| {
            let directory = Arc::new(Directory::new());
            let shard = Shard::new(shard_settings(options), Arc::clone(&names), directory);
            let mut replica = Replica::new(number, settings.clone(), Arc::clone(&names), shard);
            if let Some((at, records)) = self.disk.get(&number) {
                let decode =
                    |(key, value): &(Vec<u8>, Vec<u8>)| Record::decode(key, value, &names).unwrap();
                replica.restore(now, now.saturating_sub(*at), records.iter().map(decode));
            }
            replica
        });
        self.process = Some(Process {
            replicas: replicas.collect(),
            member: Member::new(FLEET, &self.name, self.session * 1_000, SHARDS),
            roles: vec![Role::None; SHARDS as usize],
            skipped: vec![None; SHARDS as usize],
            names,
            t,
            rules: TwoOfThree { generation },
            sent: Vec::new(),
            resigned: Vec::new(),
            until: 0,
            beacon_at: 0,
            flush_at: 0,
            differed: Vec::new(),
            // Being closed moves shards, which would be an additional fault.
            closes: options.stream != StreamMode::OneFault && self.offset.is_multiple_of(3),
        });
        self.stopped_until = None;
        self.is_kicked = false;
        self.is_behind = true;
        self.waiting.clear();
        self.held.clear();
        self.stop_at_publish = None;
    }

    pub(crate) fn crash(&mut self) {
        self.process = None;
        self.stopped_until = None;
        self.waiting.clear();
        self.held.clear();
    }

    /// Handles what has arrived, and returns what the node sends.
    pub(crate) fn handle(&mut self, t: u64, arrival: Arrival) -> Vec<Sent> {
        let now = self.now(t);
        let is_connected = self.is_connected();
        let Some(process) = &mut self.process else {
            return Vec::new();
        };
        process.t = t;
        let is_tick = matches!(arrival, Arrival::Tick);
        process.handle(now, arrival, is_connected);
        if is_tick && now >= process.flush_at && is_connected {
            process.flush_at = now + FLUSH_MS;
            process.flush(now, &mut self.disk);
        }
        std::mem::take(&mut process.sent)
    }
}

impl Process {
    fn handle(&mut self, now: u64, arrival: Arrival, is_connected: bool) {
        let rules = &mut self.rules.clone();
        match arrival {
            Arrival::Rules(generation) => {
                self.rules.generation = self.rules.generation.max(generation);
                let rules = &mut self.rules.clone();
                self.all(|replica, out| replica.input(now, Input::Rules, rules, out));
            }
            Arrival::Routed(message) => {
                let shard = presence_core::fleet::hash::shard_of(message.user(), SHARDS);
                self.sent.push(Sent::Input(shard, message));
            }
            // A node that was stopped may hold the message for long.
            Arrival::RoutedStored(..) if now >= self.until => {}
            Arrival::RoutedStored(sequence, message) => {
                self.sent.push(Sent::Stored(sequence, message));
            }
            Arrival::Stored(shard, sequence, message) => {
                let input = Input::Message {
                    message,
                    reply: None,
                };
                self.hand_over(now, shard, input);
                // The message is acknowledged after everything that has resulted from it.
                if self.replicas[shard as usize].is_leading(now) {
                    self.sent.push(Sent::Handled(sequence));
                }
            }
            Arrival::Input(shard, message) => {
                let is_heartbeat = message.kind == Kind::Heartbeat;
                if is_heartbeat && !self.replicas[shard as usize].receives_heartbeats() {
                    return;
                }
                let body: serde_json::Value = serde_json::from_slice(message.body()).unwrap();
                let reply = body["replyTo"].as_str().map(str::to_owned);
                self.hand_over(now, shard, Input::Message { message, reply });
            }
            Arrival::Told(shard, bytes) => {
                self.with(shard, |replica, out| {
                    replica.receive(now, &bytes, out).unwrap();
                });
            }
            Arrival::Ask { shard, node, nonce } => {
                self.with(shard, |replica, out| {
                    replica.snapshot_requested(now, &node, nonce, out)
                });
            }
            Arrival::Chunk(shard, bytes) => {
                self.with(shard, |replica, out| {
                    replica.chunk(now, &bytes, out).unwrap();
                });
            }
            Arrival::Synced {
                shard,
                epoch,
                seq,
                node,
            } => self.member.synced(now, shard, (epoch, seq), &node),
            Arrival::Query {
                shard,
                client,
                question,
            } => self.query(now, shard, client, question),
            Arrival::Changed(key, value, revision) => {
                self.member.changed(now, &key, value.as_deref(), revision);
            }
            Arrival::Written(id, outcome) => self.member.written(now, id, outcome),
            Arrival::Read(key, found) => {
                let found = found
                    .as_ref()
                    .map(|(value, revision)| (value.as_deref(), *revision));
                self.member.read(now, &key, found);
            }
            Arrival::Reconnected => self.all(|replica, out| {
                let lost = Input::LostUpTo { at: now };
                replica.input(now, lost, rules, out);
            }),
            Arrival::Tick => self.tick(now, is_connected),
        }
        self.settle(now);
    }

    /// Passes an input to a shard, preceded by the end of reception that was skipped.
    fn hand_over(&mut self, now: u64, shard: u32, input: Input) {
        let rules = &mut self.rules.clone();
        let skipped = self.skipped[shard as usize].take();
        self.with(shard, |replica, out| {
            if let Some(at) = skipped {
                replica.input(now, Input::ReceivedUpTo { at }, rules, out);
            }
            replica.input(now, input, rules, out);
        });
    }

    /// Whether the node says that it is closed. Some nodes do at times, as long as faults happen.
    fn is_closed(&self, now: u64) -> bool {
        let phase = (now - BEGINNING) / CLOSED_MS;
        let chance = digest(&[self.member.name().as_bytes(), &phase.to_le_bytes()]) % 5;
        self.closes && chance == 0 && now < BEGINNING + FAULTS_UNTIL
    }

    fn tick(&mut self, now: u64, is_connected: bool) {
        let rules = &mut self.rules.clone();
        self.member.set_closed(now, self.is_closed(now));
        self.member.advance(now);
        self.settle(now);
        let in_touch = self.member.is_in_touch(now);
        for (replica, skipped) in self.replicas.iter().zip(&mut self.skipped) {
            let skips = in_touch && is_connected && !replica.needs_clock();
            *skipped = skips.then_some(now);
        }
        let mut skipped = self.skipped.clone().into_iter();
        self.all(|replica, out| {
            let heard = match in_touch {
                true if !is_connected || skipped.next().flatten().is_some() => None,
                true => Some(Input::ReceivedUpTo { at: now }),
                false => Some(Input::LostUpTo { at: now }),
            };
            if let Some(heard) = heard {
                replica.input(now, heard, rules, out);
            }
            replica.advance(now, rules, out);
        });
        if now >= self.beacon_at {
            self.beacon_at = now + BEACON_MS;
            for (shard, replica) in (0..).zip(&self.replicas) {
                if replica.is_leading(now) {
                    self.sent.push(Sent::Beacon {
                        shard,
                        epoch: replica.epoch(),
                        seqs: replica.shard().published().collect(),
                    });
                }
            }
        }
    }

    fn query(&mut self, now: u64, shard: u32, client: usize, question: u64) {
        let mut out = Vec::new();
        let replica = &mut self.replicas[shard as usize];
        let viewer = crate::rules::viewer_id(client);
        let users: Vec<_> = (0..crate::users::USERS)
            .filter(|user| presence_core::fleet::hash::shard_of(&user_id(*user), SHARDS) == shard)
            .collect();
        let ids: Vec<_> = users.iter().map(|user| user_id(*user)).collect();
        let asked = ids.iter().map(String::as_str);
        let rules = &mut self.rules.clone();
        let answers = replica.query(now, &viewer, asked, rules, &mut out);
        if let Some(answers) = answers {
            let body = crate::rules::answered(answers);
            let epoch = replica.epoch();
            self.sent.push(Sent::Answer {
                client,
                shard,
                epoch,
                question,
                at: self.t,
                users: users.into_iter().zip(body).collect(),
            });
        }
        self.carry_out(shard, out);
    }

    fn all(&mut self, mut step: impl FnMut(&mut Replica, &mut Vec<ReplicaOutput>)) {
        for shard in 0..SHARDS {
            self.with(shard, &mut step);
        }
    }

    fn with(&mut self, shard: u32, step: impl FnOnce(&mut Replica, &mut Vec<ReplicaOutput>)) {
        let mut out = Vec::new();
        step(&mut self.replicas[shard as usize], &mut out);
        self.carry_out(shard, out);
    }

    fn carry_out(&mut self, shard: u32, out: Vec<ReplicaOutput>) {
        let epoch = self.replicas[shard as usize].epoch();
        let holds = self.replicas[shard as usize].complete_epoch();
        self.member.holds(shard, holds);
        let to = |node, arrival| Sent::ToNode(node, Box::new(arrival));
        let me = Arc::clone(self.member.name());
        for out in out {
            let sent = match out {
                ReplicaOutput::Shard(Output::Publish(publication)) => Sent::Publish {
                    shard,
                    epoch,
                    at: self.t,
                    publication,
                },
                ReplicaOutput::Shard(Output::Reply(to, _)) => Sent::Reply(to),
                ReplicaOutput::Shard(_) | ReplicaOutput::Discard(_) => continue,
                ReplicaOutput::ToStandbys(bytes) => Sent::Told(shard, bytes),
                ReplicaOutput::Ask { node, nonce } => {
                    let ask = Arrival::Ask {
                        shard,
                        node: Arc::clone(&me),
                        nonce,
                    };
                    to(node, ask)
                }
                ReplicaOutput::Chunk(node, bytes) => to(node, Arrival::Chunk(shard, bytes)),
                ReplicaOutput::Synced { node, epoch, seq } => {
                    let synced = Arrival::Synced {
                        shard,
                        epoch,
                        seq,
                        node: Arc::clone(&me),
                    };
                    to(node, synced)
                }
                ReplicaOutput::Resigned { epoch, seq } => {
                    self.resigned.push((shard, epoch, seq));
                    continue;
                }
                ReplicaOutput::Differed(difference) => {
                    self.differed.push(difference);
                    continue;
                }
            };
            self.sent.push(sent);
        }
    }

    /// Carries out the member's outputs, until there are none.
    fn settle(&mut self, now: u64) {
        loop {
            for (shard, epoch, seq) in std::mem::take(&mut self.resigned) {
                self.member.resigned(now, shard, epoch, seq);
            }
            let outputs: Vec<_> = self.member.outputs().collect();
            if outputs.is_empty() {
                return;
            }
            for output in outputs {
                self.carry_out_member(now, output);
            }
        }
    }

    fn carry_out_member(&mut self, now: u64, output: member::MemberOutput) {
        match output {
            member::MemberOutput::Write {
                id,
                key,
                value,
                revision,
            } => self.sent.push(Sent::Write {
                id,
                key,
                value,
                revision,
            }),
            member::MemberOutput::Read(key) => self.sent.push(Sent::Read(key)),
            member::MemberOutput::Role(shard, role) => {
                if matches!(role, Role::Lead { .. }) {
                    // A beacon is sent at once.
                    self.beacon_at = 0;
                }
                self.roles[shard as usize] = role.clone();
                self.with(shard, |replica, out| replica.set_role(now, role, out));
            }
            member::MemberOutput::Until(until) => {
                self.until = until;
                self.all(|replica, out| replica.renewed(now, until, out));
            }
            member::MemberOutput::SessionLost => {
                self.replicas.iter_mut().for_each(Replica::session_lost);
            }
            member::MemberOutput::Left => self.sent.push(Sent::Left),
        }
    }

    /// Writes the shards' records to the disk.
    fn flush(&mut self, now: u64, disk: &mut Disk) {
        for (number, replica) in (0..).zip(&mut self.replicas) {
            if replica.complete_epoch().is_some() {
                let records = replica.shard_mut().all_records();
                let stored = records.iter().map(|record| record.encode(&self.names));
                let stored = stored.filter_map(|(key, value)| Some((key, value?)));
                let mut stored: Vec<_> = stored.collect();
                stored.sort();
                disk.insert(number, (now, stored));
            }
        }
    }
}
