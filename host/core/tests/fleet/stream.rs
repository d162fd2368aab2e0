//! The virtual input stream. It stores connects and disconnects, and delivers each to one of the
//! nodes, again and again until it is acknowledged.

use presence_core::fleet::hash;
use presence_core::message::{Message, StreamPlace};

use crate::broker::End;
use crate::node::{Arrival, Node};
use crate::world::{CALM_FROM, SHARDS, SimEvent, World};

/// The time after which an unacknowledged message is delivered again.
pub(crate) const ACK_WAIT_MS: u64 = 300;

/// How often to check whether any node can take a message.
const LOOK_MS: u64 = 40;

/// Whether there is a stream, and which faults happen beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum StreamMode {
    /// There is no stream.
    #[default]
    None,
    /// When everything has settled, one node at a time is killed or leaves. Only messages of the
    /// stream are lost on their way to shards, and their acknowledgements; each at most once.
    OneFault,
    /// Any fault may happen.
    AnyFault,
}

/// A deliberate mistake, to check that it is noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum StreamMistake {
    #[default]
    None,
    /// A router acknowledges a message when it passes it on.
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
    /// How many times messages were delivered again.
    pub(crate) fn again(&self) -> usize {
        self.0
            .iter()
            .map(|it| it.deliveries.saturating_sub(1))
            .sum()
    }

    /// The messages that haven't been acknowledged.
    pub(crate) fn unhandled(&self) -> impl Iterator<Item = &Message> {
        let unhandled = self.0.iter().filter(|it| !it.is_handled);
        unhandled.map(|it| &it.message)
    }
}

impl World {
    /// Stores a message.
    pub(crate) fn store(&mut self, mut message: Message) {
        let sequence = self.stream.0.len() as u64 + 1;
        if self.options.mistake != StreamMistake::NoPlaces {
            message.stream_place = Some(StreamPlace {
                stream: 1,
                sequence,
            });
        }
        self.stream.0.push(Stored {
            message,
            is_handled: false,
            deliveries: 0,
        });
        self.at(self.t, SimEvent::Deliver(sequence));
    }

    /// Delivers a message to one of the nodes, unless it has been acknowledged.
    pub(crate) fn deliver_stored(&mut self, sequence: u64) {
        let place = sequence as usize - 1;
        if self.stream.0[place].is_handled {
            return;
        }
        let takes = |node: &&Node| node.is_connected() && self.servers.has_majority(node.server);
        let routers = self.nodes.iter().filter(takes).map(|it| it.number);
        let routers: Vec<_> = routers.collect();
        if routers.is_empty() {
            return self.at(self.t + LOOK_MS, SimEvent::Deliver(sequence));
        }
        let router = routers[self.random.within(0, routers.len() as u64 - 1) as usize];
        self.note(format_args!("{sequence} of the stream to {router}"));
        let stored = &mut self.stream.0[place];
        stored.deliveries += 1;
        let message = stored.message.clone();
        self.at(self.t + ACK_WAIT_MS, SimEvent::Deliver(sequence));
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
        let shard = hash::shard_of(message.user(), SHARDS);
        let server = self.nodes[from].server;
        let is_any_fault = self.options.stream == StreamMode::AnyFault;
        // A message that only the standby receives makes it catch up. Beside a crash, this would be
        // a second fault.
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

    /// The owner acknowledges a message.
    pub(crate) fn handled(&mut self, node: usize, sequence: u64) {
        let reaches = self.servers.has_majority(self.nodes[node].server);
        if reaches && !self.loses(sequence, 5) {
            self.note(format_args!("{node} has handled {sequence} of the stream"));
            self.stream.0[sequence as usize - 1].is_handled = true;
        }
    }

    /// Whether a message of the stream, or its acknowledgement, is lost, with a probability of
    /// `percent`.
    fn loses(&mut self, sequence: u64, percent: u64) -> bool {
        let is_first = self.stream.0[sequence as usize - 1].deliveries == 1;
        let may_lose = is_first || self.options.stream == StreamMode::AnyFault;
        self.random.chance(percent) && self.t < CALM_FROM && may_lose
    }
}
