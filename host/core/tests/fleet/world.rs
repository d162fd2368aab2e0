//! One run: nodes, users and clients around the broker, event by event.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use presence_core::fleet::member::Key;
use presence_core::fleet::replica::{CatchUpReason, Mutation};
use presence_core::publish::Subject;

use crate::agreement;
use crate::broker::{Bucket, Random, Servers};
use crate::client::{Answer, Client, Event};
use crate::faults::{self, Fault};
use crate::node::{Arrival, FLEET, GRACE_MS, Node, TIMEOUT_MS};
use crate::oracle::{MARGIN_MS, Oracle};
use crate::rules::VIEWERS;
use crate::statements::{App, STATEMENT_TTL_MS};
use crate::statuses::Says;
use crate::stream::{Stream, StreamMistake, StreamMode};
use crate::users::{CONNECTED_USERS, USERS, User};

pub(crate) const SHARDS: u32 = 2;
pub(crate) const TICK_MS: u64 = 40;
/// The time after which the broker closes the connection of a client that doesn't answer.
const KICK_MS: u64 = 350;
pub(crate) const FAULTS_UNTIL: u64 = 9_500;
pub(crate) const CALM_FROM: u64 = FAULTS_UNTIL + 3_500;
const END: u64 = CALM_FROM + TIMEOUT_MS + FLEET.lease_ms + MARGIN_MS + GRACE_MS + 1_000;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    pub(crate) mutation: Mutation,
    /// Whether clients take messages of an earlier epoch.
    pub(crate) no_fencing: bool,
    pub(crate) stream: StreamMode,
    pub(crate) mistake: StreamMistake,
    pub(crate) grace_ms: u64,
    /// Whether applications make statements about some users.
    pub(crate) statements: bool,
    /// How long an application's statement that a user is online holds if it isn't repeated.
    pub(crate) statement_ttl_ms: Option<u64>,
    /// Whether owners never end a statement that isn't repeated.
    pub(crate) keeps_statements: bool,
    /// Whether nearly all users stay away, so that most shards have nothing to do at times.
    pub(crate) is_quiet: bool,
    /// Whether users have activities and own statuses.
    pub(crate) statuses: bool,
    pub(crate) trace: bool,
}

#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) violations: Vec<String>,
    pub(crate) trace: String,
    /// A digest of everything that happened.
    pub(crate) digest: u64,
    pub(crate) events: usize,
    pub(crate) takeovers: usize,
    pub(crate) handovers: usize,
    pub(crate) caught_up: usize,
    /// How many times messages of the stream were delivered again.
    pub(crate) again: usize,
}

pub(crate) enum SimEvent {
    At(usize, Arrival),
    /// The process of a node continues.
    Resume(usize),
    Kick(usize, u64),
    Fault(Fault),
    User(usize),
    ToClient(usize, ToClient),
    Ask(usize, u32),
    AskAgain(usize, u32, u64),
    Look,
    /// A write or a read reaches the bucket. Its result is late, or lost.
    Write(usize, u64, u64, Key, Option<String>, u64),
    Read(usize, u64, Key),
    Resync(usize),
    Rules,
    /// The stream delivers a message.
    Deliver(u64),
}

#[derive(Clone)]
pub(crate) enum ToClient {
    Event(Event),
    Beacon(u32, u64, Vec<(Subject, u64)>),
    Answer(Answer),
}

pub(crate) struct World {
    pub(crate) t: u64,
    pub(crate) random: Random,
    pub(crate) options: Options,
    pub(crate) queue: BTreeMap<(u64, u64), SimEvent>,
    pub(crate) order: u64,
    pub(crate) servers: Servers,
    pub(crate) bucket: Bucket,
    pub(crate) stream: Stream,
    pub(crate) nodes: Vec<Node>,
    pub(crate) users: Vec<User>,
    pub(crate) clients: Vec<Client>,
    pub(crate) oracle: Oracle,
    /// Connections of which the last message to a node was lost: the next one isn't.
    pub(crate) unlucky: BTreeSet<(usize, u64)>,
    /// For a shard and an epoch whose owner was handed the shard: the epoch before.
    pub(crate) handed_over: BTreeMap<(u32, u64), u64>,
    /// Since when a shard has had owners.
    pub(crate) owned_from: BTreeMap<u32, u64>,
    pub(crate) trace: String,
    pub(crate) digest: u64,
    pub(crate) report: (usize, usize),
}

pub(crate) fn run(seed: u64, mut options: Options) -> Report {
    // In some runs, users who leave have a grace.
    if seed.is_multiple_of(3) {
        options.grace_ms = GRACE_MS;
    }
    // In some runs, applications make statements about some users.
    options.statements = seed.is_multiple_of(2);
    options.statuses = seed % 4 < 2;
    // In some runs, statements must be repeated.
    let is_repeated = options.statements && options.stream != StreamMode::OneFault;
    options.statement_ttl_ms = (is_repeated && seed % 5 < 2).then_some(STATEMENT_TTL_MS);
    options.is_quiet = !options.statements && seed % 5 < 2;
    World::new(seed, options).run()
}

impl World {
    fn new(seed: u64, options: Options) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9) ^ 0x5eed);
        let nodes = random.within(2, 4) as usize;
        let nodes = (0..nodes).map(|number| Node {
            number,
            name: format!("node-{}", (b'a' + number as u8) as char).into(),
            server: number % 3,
            offset: random.within(0, 500),
            // A clock's speed is off by up to 2 %.
            drift: match (random.within(0, 40_000) as i64 - 20_000, options.stream) {
                // No sender's clock is faster than it, since that would be a fault of its own.
                (drift, StreamMode::OneFault) => drift.abs(),
                (drift, _) => drift,
            },
            session: 0,
            process: None,
            disk: BTreeMap::new(),
            stopped_until: None,
            stopped_at: 0,
            is_kicked: false,
            is_cut: false,
            is_behind: false,
            waiting: Default::default(),
            held: Vec::new(),
            stop_at_publish: None,
        });
        let nodes = nodes.collect();
        let mut users: Vec<_> = (0..CONNECTED_USERS)
            .map(|number| User::new(number, &mut random))
            .collect();
        if options.statements {
            let relies = options.stream == StreamMode::OneFault;
            let ttl_ms = options.statement_ttl_ms;
            for user in users.split_off(CONNECTED_USERS - 2) {
                users.push(user.stated(App::new(false, relies, ttl_ms, &mut random)));
            }
            for number in CONNECTED_USERS..USERS {
                let user = User::new(number, &mut random);
                users.push(user.stated(App::new(true, relies, ttl_ms, &mut random)));
            }
        }
        if options.is_quiet {
            for user in users.iter_mut().skip(2) {
                user.connects_at = u64::MAX;
            }
        }
        for user in &mut users {
            if options.statuses {
                user.says = Some(Says::new(&mut random));
            }
            user.is_stored = options.stream != StreamMode::None;
        }
        if options.stream == StreamMode::OneFault {
            for user in &mut users {
                // The first owners are sure by then, and every connection ends with a disconnect.
                user.connects_at = user.connects_at.saturating_add(2 * TIMEOUT_MS);
                user.is_polite = true;
            }
        }
        let clients = (0..VIEWERS).map(|number| Client::new(number, !options.no_fencing));
        Self {
            t: 0,
            options,
            queue: BTreeMap::new(),
            order: 0,
            servers: Servers::default(),
            bucket: Bucket::default(),
            stream: Stream::default(),
            nodes,
            users,
            clients: clients.collect(),
            oracle: Oracle::new(options.grace_ms, options.stream),
            unlucky: BTreeSet::new(),
            handed_over: BTreeMap::new(),
            owned_from: BTreeMap::new(),
            trace: String::new(),
            digest: 0,
            report: (0, 0),
            random,
        }
    }

    fn run(mut self) -> Report {
        let nodes = self.nodes.len();
        for node in 0..nodes {
            // Some nodes join later.
            let at = match self.random.chance(70) || self.options.stream == StreamMode::OneFault {
                true => self.random.within(0, 100),
                false => self.random.within(100, 4_000),
            };
            let start = Fault::Start {
                node,
                with_disk: false,
            };
            self.at(at, SimEvent::Fault(start));
            let tick_at = self.random.within(0, TICK_MS);
            self.at(tick_at, SimEvent::At(node, Arrival::Tick));
        }
        let faults = match self.options.stream {
            StreamMode::OneFault => faults::draw_alone(
                nodes,
                2 * TIMEOUT_MS + 1_500,
                FAULTS_UNTIL,
                &mut self.random,
            ),
            StreamMode::None | StreamMode::AnyFault => {
                faults::draw(nodes, FAULTS_UNTIL, &mut self.random)
            }
        };
        for (at, fault) in faults {
            self.at(at, SimEvent::Fault(fault));
        }
        for user in 0..self.users.len() {
            let app = self.users[user].app.as_ref();
            let states_at = app.map_or(u64::MAX, App::next_at);
            let at = self.users[user].connects_at.min(states_at);
            self.at(at, SimEvent::User(user));
        }
        for client in 0..VIEWERS {
            for shard in Client::begin() {
                self.at(10, SimEvent::Ask(client, shard));
            }
        }
        for _ in 0..2 {
            if self.random.chance(50) {
                let at = self.random.within(1_500, FAULTS_UNTIL);
                self.at(at, SimEvent::Rules);
            }
        }
        self.at(100, SimEvent::Look);
        while let Some(((t, _), happens)) = self.queue.pop_first() {
            if t > END || self.oracle.violations.len() > 20 {
                break;
            }
            self.t = t;
            self.happen(happens);
        }
        self.end();
        // Unless a message is missing, an owner's message always fits the state of a standby.
        for node in &self.nodes {
            let differed = node.process.iter().flat_map(|it| &it.differed);
            if differed.clone().any(|it| *it == CatchUpReason::Mismatch) {
                let what = format!("{} was told what doesn't fit what it holds", node.name);
                self.oracle.violated(self.t, what);
            }
        }
        let differed = |node: &Node| node.process.as_ref().map_or(0, |it| it.differed.len());
        Report {
            caught_up: self.nodes.iter().map(differed).sum(),
            violations: self.oracle.violations,
            trace: self.trace,
            digest: self.digest,
            events: self.oracle.events,
            again: self.stream.again(),
            takeovers: self.report.0,
            handovers: self.report.1,
        }
    }

    pub(crate) fn at(&mut self, t: u64, happens: SimEvent) {
        self.order += 1;
        self.queue.insert((t.max(self.t), self.order), happens);
    }

    pub(crate) fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let line = format!("{} {what}\n", self.t);
        self.digest = presence_core::digest::digest(&[&self.digest.to_le_bytes(), line.as_bytes()]);
        if self.options.trace {
            let _ = self.trace.write_str(&line);
        }
    }

    fn happen(&mut self, happens: SimEvent) {
        match happens {
            SimEvent::At(node, arrival) => self.arrive(node, arrival),
            SimEvent::Resume(node) => self.resume(node),
            SimEvent::Kick(node, since) => {
                let node = &mut self.nodes[node];
                if node.stopped_until.is_some() && node.stopped_at == since {
                    node.is_kicked = true;
                    node.is_behind = true;
                }
            }
            SimEvent::Fault(fault) => self.fault(fault),
            SimEvent::User(user) => self.user(user),
            SimEvent::ToClient(client, message) => self.client_hears(client, message),
            SimEvent::Ask(client, shard) => self.ask(client, shard),
            SimEvent::AskAgain(client, shard, question) => {
                let asking = self.clients[client].asking.get(&shard);
                if asking.is_some_and(|(asked, _)| *asked == question) {
                    self.ask(client, shard);
                }
            }
            SimEvent::Look => {
                self.at(self.t + 100, SimEvent::Look);
                self.look();
            }
            SimEvent::Write(node, session, id, key, value, revision) => {
                self.write(node, session, id, &key, value, revision);
            }
            SimEvent::Read(node, session, key) => self.read(node, session, key),
            SimEvent::Rules => {
                let oracle = &mut self.oracle;
                oracle.generation += 1;
                oracle.rules_at = self.t;
                let generation = oracle.generation;
                self.note(format_args!("rules {generation}"));
                for node in 0..self.nodes.len() {
                    let wait_ms = self.random.within(1, 300);
                    self.at(
                        self.t + wait_ms,
                        SimEvent::At(node, Arrival::Rules(generation)),
                    );
                }
            }
            SimEvent::Deliver(sequence) => self.deliver_stored(sequence),
            SimEvent::Resync(node) => {
                let it = &mut self.nodes[node];
                if !it.is_connected() || !self.servers.has_majority(it.server) {
                    return;
                }
                it.is_behind = false;
                let keys = self.bucket.keys.clone();
                for (key, (value, revision)) in keys {
                    self.change(node, key, value, revision);
                }
            }
        }
    }

    fn fault(&mut self, fault: Fault) {
        self.note(format_args!("fault {fault:?}"));
        self.oracle.fault_at = self.t;
        if !matches!(fault, Fault::Start { .. } | Fault::Leave(_)) {
            self.oracle.hurt_at = self.t;
        }
        match fault {
            Fault::Crash(node) => self.nodes[node].crash(),
            Fault::Start { node, with_disk } => {
                if self.nodes[node].process.is_some() {
                    return;
                }
                if !with_disk {
                    self.nodes[node].disk.clear();
                }
                let it = &mut self.nodes[node];
                it.start(self.t, &self.options, self.oracle.generation);
                self.at(self.t + 5, SimEvent::Resync(node));
            }
            Fault::Stop { node, for_ms } => self.stop(node, for_ms),
            Fault::StopInWrite { node, for_ms } => {
                self.nodes[node].stop_at_publish = Some(for_ms);
            }
            Fault::Leave(node) => {
                let (t, node) = (self.t, &mut self.nodes[node]);
                let now = node.now(t);
                if let Some(process) = &mut node.process {
                    process.member.leave(now);
                }
            }
            Fault::Cut(node) => {
                self.nodes[node].is_cut = true;
                self.nodes[node].is_behind = true;
            }
            Fault::Mend(node) => {
                self.nodes[node].is_cut = false;
                if self.nodes[node].is_running() {
                    self.reconnect(node);
                }
            }
            Fault::Isolate(server) => self.servers.isolated[server] = true,
            Fault::Rejoin(server) => {
                self.servers.isolated[server] = false;
                for node in 0..self.nodes.len() {
                    self.at(self.t + 20, SimEvent::Resync(node));
                }
            }
            Fault::Slow(ms) => self.servers.slow_ms = ms,
        }
    }

    pub(crate) fn stop(&mut self, node: usize, for_ms: u64) {
        let t = self.t;
        let it = &mut self.nodes[node];
        if !it.is_running() {
            return;
        }
        it.stopped_until = Some(t + for_ms);
        it.stopped_at = t;
        self.note(format_args!("stopped {node} for {for_ms}"));
        (self.oracle.fault_at, self.oracle.hurt_at) = (t, t);
        self.at(t + for_ms, SimEvent::Resume(node));
        self.at(t + KICK_MS, SimEvent::Kick(node, t));
    }

    fn resume(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        if it.stopped_until != Some(self.t) {
            return;
        }
        it.stopped_until = None;
        (self.oracle.fault_at, self.oracle.hurt_at) = (self.t, self.t);
        self.note(format_args!("resumed {node}"));
        // It continues where it was stopped: in the middle of a write.
        let held = std::mem::take(&mut self.nodes[node].held);
        if self.nodes[node].is_kicked {
            self.reconnect(node);
        }
        for sent in held {
            self.send(node, sent);
        }
        let stopped_ms = self.t - self.nodes[node].stopped_at;
        // What it does then may stop it again.
        while self.nodes[node].is_running()
            && let Some(mut arrival) = self.nodes[node].waiting.pop_front()
        {
            if let Arrival::Routed(message) = &mut arrival {
                message.delayed_ms += stopped_ms;
            }
            self.arrive(node, arrival);
        }
    }

    /// A node is connected again: it sends what it still has to send, and reads what has changed
    /// meanwhile.
    fn reconnect(&mut self, node: usize) {
        self.nodes[node].is_kicked = false;
        if !self.nodes[node].is_connected() {
            return;
        }
        let held = std::mem::take(&mut self.nodes[node].held);
        for sent in held {
            self.send(node, sent);
        }
        self.at(self.t + 1, SimEvent::At(node, Arrival::Reconnected));
        self.at(self.t + 15, SimEvent::Resync(node));
    }

    fn look(&mut self) {
        for server in 0..3 {
            if !self.servers.has_majority(server) {
                self.oracle.alone_at[server] = self.t;
            }
        }
        self.oracle.look(self.t, &self.clients, &self.users);
        for shard in 0..SHARDS as usize {
            let leads = |node: &&Node| {
                let process = node
                    .process
                    .as_ref()
                    .filter(|_| node.stopped_until.is_none());
                process.is_some_and(|it| it.replicas[shard].is_leading(node.now(self.t)))
            };
            let leaders: Vec<_> = self
                .nodes
                .iter()
                .filter(leads)
                .map(|it| it.number)
                .collect();
            if leaders.len() > 1 {
                let what = format!("shard {shard} has two owners: {leaders:?}");
                self.oracle.violated(self.t, what);
            }
        }
    }

    /// When everything has settled, viewers, owners and standbys must agree.
    fn end(&mut self) {
        self.oracle
            .end(self.t, &self.clients, &self.users, self.options.stream);
        let unhandled: Vec<_> = self.stream.unhandled().cloned().collect();
        for message in unhandled {
            let what = format!("in the end, nobody has acknowledged {message:?}");
            self.oracle.violated(self.t, what);
        }
        for what in agreement::disagreements(self.t, &mut self.nodes) {
            self.oracle.violated(self.t, what);
        }
    }
}
