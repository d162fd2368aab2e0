//! The messages between users, nodes, the bucket and clients, and which of them are lost.

use presence_core::fleet::hash;
use presence_core::fleet::lease::WriteOutcome;
use presence_core::fleet::member::{Key, OwnerEntry};
use presence_core::fleet::replica::Role;
use presence_core::message::{Kind, Message};
use presence_core::publish::{Publication, Subject};
use serde_json::Value;

use crate::broker::End;
use crate::client::{Answer, Event, Taken};
use crate::node::{Arrival, REORDER_MS, Sent};
use crate::rules::{VIEWERS, shows, user_of, viewer_id};
use crate::stream::StreamMode;
use crate::users::Last;
use crate::world::{CALM_FROM, SHARDS, SimEvent, TICK_MS, ToClient, World};

impl World {
    pub(crate) fn user(&mut self, user: usize) {
        let calm = self.t > CALM_FROM;
        let (messages, next) = self.users[user].act(self.t, calm, &mut self.random);
        self.at(next, SimEvent::User(user));
        for message in messages {
            self.note(format_args!("user {user} {:?}", message.payload()));
            let (server, shard) = (
                self.users[user].server,
                hash::shard_of(message.user(), SHARDS),
            );
            let is_stored = matches!(message.kind, Kind::Connect | Kind::Disconnect);
            if is_stored && self.options.stream != StreamMode::None {
                self.store(message);
                continue;
            }
            if self.users[user].is_partitioned {
                self.input(End::User(user), server, shard, message);
                continue;
            }
            let routers = self
                .nodes
                .iter()
                .filter(|node| node.is_connected() && self.servers.are_linked(server, node.server));
            let routers: Vec<_> = routers.map(|node| node.number).collect();
            if !routers.is_empty() {
                let router = routers[self.random.within(0, routers.len() as u64 - 1) as usize];
                self.deliver(End::User(user), router, Arrival::Routed(message));
            }
        }
    }

    /// An owner has answered an application.
    fn answered(&mut self, to: &str) {
        let (user, question) = to.split_once(' ').unwrap();
        let user = &mut self.users[user.parse::<usize>().unwrap()];
        if let Some(app) = &mut user.app {
            app.is_answered(question.parse().unwrap());
        }
    }

    /// Publishes a message on a shard's subject.
    pub(crate) fn input(&mut self, from: End, server: usize, shard: u32, message: Message) {
        for node in 0..self.nodes.len() {
            if !self.listens(node, shard) || !self.reaches(from, server, node) {
                continue;
            }
            let key = (
                node,
                presence_core::digest::digest(&[message.user().as_bytes()]),
            );
            // A message may be lost, but not two of a connection in a row.
            if self.is_lost(2) && self.unlucky.insert(key) {
                continue;
            }
            self.unlucky.remove(&key);
            let arrival = Arrival::Input(shard, message.clone());
            if self.random.chance(1) {
                // A second copy arrives within the time for which messages may be out of order.
                let late = self.random.within(1, REORDER_MS / 2);
                self.at(self.t + late, SimEvent::At(node, arrival.clone()));
            }
            self.deliver(from, node, arrival);
        }
    }

    /// Whether a message is lost, with a probability of `percent`. At the end of the run, none is.
    pub(crate) fn is_lost(&mut self, percent: u64) -> bool {
        let is_lost = self.random.chance(percent) && self.t < CALM_FROM;
        is_lost && self.options.stream != StreamMode::OneFault
    }

    pub(crate) fn listens(&self, node: usize, shard: u32) -> bool {
        let process = self.nodes[node].process.as_ref();
        process.is_some_and(|process| process.roles[shard as usize] != Role::None)
    }

    pub(crate) fn reaches(&self, from: End, server: usize, node: usize) -> bool {
        let it = &self.nodes[node];
        from == End::Node(node) || (it.is_connected() && self.servers.are_linked(server, it.server))
    }

    pub(crate) fn deliver(&mut self, from: End, node: usize, arrival: Arrival) {
        let at = self
            .servers
            .arrival(self.t, from, End::Node(node), &mut self.random);
        self.at(at, SimEvent::At(node, arrival));
    }

    pub(crate) fn arrive(&mut self, node: usize, arrival: Arrival) {
        if matches!(arrival, Arrival::Tick) {
            self.at(self.t + TICK_MS, SimEvent::At(node, Arrival::Tick));
        }
        let it = &mut self.nodes[node];
        if it.process.is_none() {
            return;
        }
        if it.stopped_until.is_some() {
            if matches!(arrival, Arrival::Rules(_))
                || !(it.is_kicked || matches!(arrival, Arrival::Tick))
            {
                it.waiting.push_back(arrival);
            }
            return;
        }
        if let Arrival::Changed(..) = &arrival
            && it.is_cut
        {
            it.is_behind = true;
            return;
        }
        if it.is_cut
            && !matches!(
                arrival,
                Arrival::Tick | Arrival::Written(..) | Arrival::Read(..) | Arrival::Rules(_)
            )
        {
            return;
        }
        let sent = it.handle(self.t, arrival);
        for sent in sent {
            let it = &mut self.nodes[node];
            let is_filtered = matches!(
                &sent,
                Sent::Publish { publication, .. } if is_filtered(publication.subject)
            );
            let stops = it.stop_at_publish.take_if(|_| is_filtered);
            if let Some(for_ms) = stops.filter(|for_ms| self.t + for_ms < CALM_FROM) {
                self.stop(node, for_ms);
            }
            let it = &mut self.nodes[node];
            match it.stopped_until {
                Some(_) => it.held.push(sent),
                None => self.send(node, sent),
            }
        }
        if self.nodes[node].is_behind {
            self.nodes[node].is_behind = false;
            self.at(self.t + 30, SimEvent::Resync(node));
        }
    }

    pub(crate) fn send(&mut self, node: usize, sent: Sent) {
        let (server, session) = (self.nodes[node].server, self.nodes[node].session);
        let from = End::Node(node);
        let is_connected = self.nodes[node].is_connected();
        if !is_connected {
            // Publications are sent again later. Everything else must be requested again.
            match sent {
                Sent::Told(..) | Sent::Publish { .. } | Sent::Handled(_) => {
                    self.nodes[node].held.push(sent);
                }
                Sent::Write { id, .. } => {
                    let written = Arrival::Written(id, WriteOutcome::Unknown);
                    self.at(self.t + 120, SimEvent::At(node, written));
                }
                Sent::Read(key) => {
                    self.at(self.t + 120, SimEvent::At(node, Arrival::Read(key, None)));
                }
                Sent::Left => self.nodes[node].crash(),
                _ => {}
            }
            return;
        }
        match sent {
            Sent::Input(shard, message) => self.input(from, server, shard, message),
            Sent::Stored(sequence, message) => self.stored_input(node, sequence, &message),
            Sent::Handled(sequence) => self.handled(node, sequence),
            Sent::Reply(to) => self.answered(&to),
            Sent::Told(shard, bytes) => {
                // The loss of such a message would be a fault of its own.
                let may_be_lost = self.options.stream != StreamMode::OneFault;
                for to in 0..self.nodes.len() {
                    let is_lost = may_be_lost && self.is_lost(2);
                    if to != node
                        && self.listens(to, shard)
                        && self.reaches(from, server, to)
                        && !is_lost
                    {
                        self.deliver(from, to, Arrival::Told(shard, bytes.clone()));
                    }
                }
            }
            Sent::Publish {
                shard,
                epoch,
                at,
                publication,
            } => self.publish(node, (shard, epoch, at), &publication),
            Sent::Beacon { shard, epoch, seqs } => {
                self.tell_clients(node, &ToClient::Beacon(shard, epoch, seqs), None);
            }
            Sent::Answer {
                client,
                shard,
                epoch,
                question,
                at,
                users,
            } => {
                let answer = Answer {
                    shard,
                    epoch,
                    question,
                    decided: at,
                    users,
                };
                self.tell_clients(node, &ToClient::Answer(answer), Some(client));
            }
            Sent::ToNode(name, arrival) => {
                let to = self.nodes.iter().position(|node| node.name == name);
                let is_lost = self.is_lost(2);
                if let Some(to) = to.filter(|to| self.reaches(from, server, *to) && !is_lost) {
                    self.deliver(from, to, *arrival);
                }
            }
            Sent::Write {
                id,
                key,
                value,
                revision,
            } => {
                let at = self
                    .servers
                    .arrival(self.t, from, End::Bucket, &mut self.random);
                self.at(at, SimEvent::Write(node, session, id, key, value, revision));
            }
            Sent::Read(key) => {
                let at = self
                    .servers
                    .arrival(self.t, from, End::Bucket, &mut self.random);
                self.at(at, SimEvent::Read(node, session, key));
            }
            Sent::Left => {
                self.note(format_args!("{node} has left"));
                self.oracle.fault_at = self.t;
                self.nodes[node].crash();
            }
        }
    }

    pub(crate) fn write(
        &mut self,
        node: usize,
        session: u64,
        id: u64,
        key: &Key,
        value: Option<String>,
        revision: u64,
    ) {
        let it = &self.nodes[node];
        let works = !it.is_cut && self.servers.has_majority(it.server);
        let outcome = match works {
            true => self.bucket.write(key, value.clone(), revision),
            false => WriteOutcome::Unknown,
        };
        if let WriteOutcome::Stored(revision) = outcome {
            self.note(format_args!(
                "{node} wrote {} {value:?} {revision}",
                key.to_text()
            ));
            if let (Key::Owner(shard), Some(entry)) =
                (key, value.as_deref().and_then(OwnerEntry::parse))
            {
                self.owned_from.entry(*shard).or_insert(self.t);
                match entry.handed_over {
                    Some((_, epoch, _)) => {
                        self.report.1 += 1;
                        self.handed_over.insert((*shard, revision), epoch);
                    }
                    None => self.report.0 += 1,
                }
            }
            for to in 0..self.nodes.len() {
                let it = &mut self.nodes[to];
                match it.is_connected() && self.servers.has_majority(it.server) {
                    true => self.change(to, key.clone(), value.clone(), revision),
                    false => it.is_behind = true,
                }
            }
        }
        if self.nodes[node].session != session {
            return;
        }
        let is_lost = self.is_lost(2);
        let (at, outcome) = match outcome {
            WriteOutcome::Unknown => (self.t + 120, outcome),
            _ if is_lost => (self.t + 120, WriteOutcome::Unknown),
            _ => {
                let to = End::Node(node);
                let at = self
                    .servers
                    .arrival(self.t, End::Bucket, to, &mut self.random);
                (at, outcome)
            }
        };
        self.at(at, SimEvent::At(node, Arrival::Written(id, outcome)));
    }

    pub(crate) fn change(&mut self, node: usize, key: Key, value: Option<String>, revision: u64) {
        self.deliver(End::Bucket, node, Arrival::Changed(key, value, revision));
    }

    pub(crate) fn read(&mut self, node: usize, session: u64, key: Key) {
        let it = &self.nodes[node];
        if it.session != session {
            return;
        }
        let works = !it.is_cut && self.servers.has_majority(it.server);
        if !works {
            return self.at(self.t + 120, SimEvent::At(node, Arrival::Read(key, None)));
        }
        let found = self.bucket.keys.get(&key).cloned().unwrap_or((None, 0));
        self.deliver(End::Bucket, node, Arrival::Read(key, Some(found)));
    }

    pub(crate) fn publish(
        &mut self,
        node: usize,
        (shard, epoch, decided): (u32, u64, u64),
        publication: &Publication,
    ) {
        let subject = publication.subject;
        self.note(format_args!(
            "{node} publishes {shard} {epoch} {} {} {}",
            subject.as_str(),
            publication.seq,
            String::from_utf8_lossy(&publication.body)
        ));
        let body: Value = serde_json::from_slice(&publication.body).unwrap();
        if self.options.stream == StreamMode::OneFault && body["reason"] == "timeout" {
            let what = format!("a disconnect was stored, and lost: {body}");
            self.oracle.violated(self.t, what);
        }
        if !is_filtered(subject) {
            return;
        }
        let viewers = body["visibleTo"].as_array().unwrap();
        let mut visible_to = [false; VIEWERS];
        for (number, is_told) in visible_to.iter_mut().enumerate() {
            *is_told = viewers.iter().any(|viewer| *viewer == *viewer_id(number));
        }
        let event = Event {
            shard,
            epoch,
            decided,
            subject,
            seq: publication.seq,
            user: user_of(body["userId"].as_str().unwrap()),
            online: subject != Subject::FilteredOffline,
            shows: shows(&body),
            visible_to,
        };
        let after = self.handed_over.get(&(shard, epoch)).copied();
        let left_at = self.users[event.user].left_at;
        self.oracle.published(self.t, &event, (after, left_at));
        self.tell_clients(node, &ToClient::Event(event), None);
    }

    pub(crate) fn tell_clients(&mut self, node: usize, message: &ToClient, only: Option<usize>) {
        let server = self.nodes[node].server;
        for client in 0..VIEWERS {
            let is_linked = self.servers.are_linked(server, self.clients[client].server);
            if only.is_some_and(|only| only != client) || !is_linked || self.is_lost(1) {
                continue;
            }
            let (from, to) = (End::Node(node), End::Client(client));
            let at = self.servers.arrival(self.t, from, to, &mut self.random);
            self.at(at, SimEvent::ToClient(client, message.clone()));
            if self.random.chance(1) {
                let again = at + self.random.within(1, 200);
                self.at(again, SimEvent::ToClient(client, message.clone()));
            }
        }
    }

    pub(crate) fn client_hears(&mut self, client: usize, message: ToClient) {
        let it = &mut self.clients[client];
        let late = match &message {
            ToClient::Event(event) if it.epoch(event.shard) <= event.epoch => Some(event.decided),
            ToClient::Event(_) | ToClient::Beacon(..) | ToClient::Answer(_) => None,
        };
        let (shard, taken) = match &message {
            ToClient::Event(event) => (event.shard, it.event(event)),
            ToClient::Beacon(shard, epoch, seqs) => (*shard, it.beacon(*shard, *epoch, seqs)),
            ToClient::Answer(answer) => (answer.shard, it.answer(answer)),
        };
        let Taken { gone, ask } = taken;
        for (user, said_at) in gone {
            self.note(format_args!("client {client}: user {user} is gone"));
            let last = Last {
                said_at,
                owned_from: self.owned_from.get(&shard).copied().unwrap_or_default(),
                fault_at: self.oracle.fault_at,
            };
            self.oracle
                .is_gone(self.t, client, &self.users[user], (late, last));
        }
        if ask {
            match self.clients[client].asking.contains_key(&shard) {
                true => self.clients[client].ask_again(shard),
                false => {
                    self.clients[client]
                        .asking
                        .insert(shard, Default::default());
                    let wait_ms = self.random.within(5, 60);
                    self.at(self.t + wait_ms, SimEvent::Ask(client, shard));
                }
            }
        }
    }

    /// A client asks the owner of a shard, and asks again until there is an answer.
    pub(crate) fn ask(&mut self, client: usize, shard: u32) {
        let (from, server) = (End::Client(client), self.clients[client].server);
        let question = self.clients[client].ask(shard);
        for node in 0..self.nodes.len() {
            let process = self.nodes[node].process.as_ref();
            let owns =
                process.is_some_and(|it| matches!(it.roles[shard as usize], Role::Lead { .. }));
            if owns && self.reaches(from, server, node) {
                let query = Arrival::Query {
                    shard,
                    client,
                    question,
                };
                self.deliver(from, node, query);
            }
        }
        self.at(self.t + 150, SimEvent::AskAgain(client, shard, question));
    }
}

/// Whether messages on a subject are for viewers.
pub(crate) fn is_filtered(subject: Subject) -> bool {
    matches!(
        subject,
        Subject::FilteredOnline | Subject::FilteredOffline | Subject::FilteredUpdated
    )
}
