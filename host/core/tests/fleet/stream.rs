//! The virtual input stream: connects and disconnects are stored, and each is delivered to one of
//! the nodes, again and again until somebody says that it was handled.

use presence_core::fleet::hash;
use presence_core::message::{Message, StreamPlace};

use crate::broker::End;
use crate::node::{Arrival, Node};
use crate::world::{CALM_FROM, Happens, SHARDS, World};

/// How soon a message is delivered again.
pub(crate) const ACK_WAIT_MS: u64 = 300;

/// How soon is looked again whether any node can take a message.
const LOOK_MS: u64 = 40;

/// Whether there is a stream, and what fails beside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum StreamMode {
    /// There is none.
    #[default]
    None,
    /// One node at a time is killed, or leaves, when all has settled. Only messages of the stream are
    /// lost, on their way to those who hear them, and what the owner says of them; each once at most.
    OneFault,
    /// Whatever may.
    AnyFault,
}

/// What is done wrong, to see that it is noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum StreamMistake {
    #[default]
    None,
    /// Who passes a message on acknowledges it.
    RouterAcknowledges,
    /// Messages are ordered by their senders' clocks alone.
    NoPlaces,
}

#[derive(Debug, Default)]
pub(crate) struct Stream(Vec<Stored>);

#[derive(Debug)]
struct Stored {
    message: Message,
    is_handled: bool,
    deliveries: usize,
}

impl Stream {
    /// How often messages were delivered again.
    pub(crate) fn again(&self) -> usize {
        self.0
            .iter()
            .map(|it| it.deliveries.saturating_sub(1))
            .sum()
    }

    /// Messages of which nobody has said that they were handled.
    pub(crate) fn unhandled(&self) -> impl Iterator<Item = &Message> {
        let unhandled = self.0.iter().filter(|it| !it.is_handled);
        unhandled.map(|it| &it.message)
    }
}

impl World {
    /// A message is stored.
    pub(crate) fn store(&mut self, mut message: Message) {
        let sequence = self.stream.0.len() as u64 + 1;
        if self.options.mistake != StreamMistake::NoPlaces {
            message.stored = Some(StreamPlace {
                stream: 1,
                sequence,
            });
        }
        self.stream.0.push(Stored {
            message,
            is_handled: false,
            deliveries: 0,
        });
        self.at(self.t, Happens::Deliver(sequence));
    }

    /// A message is delivered to one of the nodes, unless it has been handled.
    pub(crate) fn deliver_stored(&mut self, sequence: u64) {
        let place = sequence as usize - 1;
        if self.stream.0[place].is_handled {
            return;
        }
        let takes = |node: &&Node| node.is_connected() && self.servers.has_majority(node.server);
        let routers = self.nodes.iter().filter(takes).map(|it| it.number);
        let routers: Vec<_> = routers.collect();
        if routers.is_empty() {
            return self.at(self.t + LOOK_MS, Happens::Deliver(sequence));
        }
        let router = routers[self.random.within(0, routers.len() as u64 - 1) as usize];
        self.note(format_args!("{sequence} of the stream to {router}"));
        let stored = &mut self.stream.0[place];
        stored.deliveries += 1;
        let message = stored.message.clone();
        self.at(self.t + ACK_WAIT_MS, Happens::Deliver(sequence));
        if self.options.mistake == StreamMistake::RouterAcknowledges {
            self.stream.0[place].is_handled = true;
        }
        if !self.loses(sequence, 2) {
            self.deliver(
                End::Bucket,
                router,
                Arrival::RoutedStored(sequence, message),
            );
        }
    }

    /// A router has passed a message on.
    pub(crate) fn stored_input(&mut self, from: usize, sequence: u64, message: &Message) {
        let shard = hash::shard_of(&message.user, SHARDS);
        let server = self.nodes[from].server;
        let is_any_fault = self.options.stream == StreamMode::AnyFault;
        // One that only the standby hears makes that catch up: it is no single fault beside a crash.
        if !is_any_fault && self.loses(sequence, 5) {
            return;
        }
        for node in 0..self.nodes.len() {
            if !self.listens(node, shard) || !self.reaches(End::Node(from), server, node) {
                continue;
            }
            if is_any_fault && self.loses(sequence, 5) {
                continue;
            }
            let arrival = Arrival::Stored(shard, sequence, message.clone());
            self.deliver(End::Node(from), node, arrival);
        }
    }

    /// The owner says that a message was handled.
    pub(crate) fn handled(&mut self, node: usize, sequence: u64) {
        let reaches = self.servers.has_majority(self.nodes[node].server);
        if reaches && !self.loses(sequence, 5) {
            self.note(format_args!("{node} has handled {sequence} of the stream"));
            self.stream.0[sequence as usize - 1].is_handled = true;
        }
    }

    /// Whether a message of the stream, or what is said of one, is lost, as so many percent are.
    fn loses(&mut self, sequence: u64, percent: u64) -> bool {
        let is_first = self.stream.0[sequence as usize - 1].deliveries == 1;
        let may_lose = is_first || self.options.stream == StreamMode::AnyFault;
        self.random.chance(percent) && self.t < CALM_FROM && may_lose
    }
}
