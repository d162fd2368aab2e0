//! The subscriptions of a node of a fleet: what applications send in, of which the nodes share the
//! reading, and what is sent to the shards in which the node has a part.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::vec;

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{FuturesUnordered, ReadyChunks, SelectAll, Stream, StreamExt as _};
use tokio::sync::mpsc;

use crate::link::connection::{Incoming, Subscription};
use crate::pool::FleetTask;

/// How many messages are taken from one subscription before another one has its turn.
const TURN_MAX: usize = 32;

/// All that comes in for a tenant on this node.
pub(crate) enum Inputs {
    /// Of a node that serves alone: one subscription, so that one order holds over all subjects.
    Alone(Subscription),
    /// Of a node of a fleet.
    Parts(PartInputs),
}

impl Inputs {
    /// Ends them, once what is on its way has been read. Says whether the connection is still
    /// there for that.
    pub(crate) async fn drain(&mut self) -> bool {
        match self {
            Self::Alone(messages) => messages.drain().await,
            Self::Parts(parts) => parts.drain().await,
        }
    }
}

impl Stream for Inputs {
    type Item = Incoming;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Incoming>> {
        match &mut *self {
            Self::Alone(messages) => messages.poll_next_unpin(context),
            Self::Parts(parts) => parts.poll_next_unpin(context),
        }
    }
}

/// Tells what reads the inputs of a node of a fleet of the node's parts.
pub(crate) struct PartSender {
    changes: mpsc::UnboundedSender<PartChange>,
    behind: mpsc::UnboundedSender<(u32, FleetTask)>,
}

/// Where that is told.
pub(crate) struct PartReceiver {
    pub(crate) changes: mpsc::UnboundedReceiver<PartChange>,
    pub(crate) behind: mpsc::UnboundedReceiver<(u32, FleetTask)>,
}

/// Both.
pub(crate) fn part_channel() -> (PartSender, PartReceiver) {
    let (change, changes) = mpsc::unbounded_channel();
    let (tell, behind) = mpsc::unbounded_channel();
    let sender = PartSender {
        changes: change,
        behind: tell,
    };
    (sender, PartReceiver { changes, behind })
}

impl PartSender {
    /// A part changes.
    pub(crate) fn change(&self, change: PartChange) {
        // The reader is gone when the node ends.
        let _ = self.changes.send(change);
    }

    /// Tells a shard something behind all that has arrived for it.
    pub(crate) fn tell_behind(&self, shard: u32, task: FleetTask) {
        // As above.
        let _ = self.behind.send((shard, task));
    }
}

/// A change of the parts that a node has.
pub(crate) enum PartChange {
    /// It listens to a shard.
    Listens(u32, Subscription),
    /// It listens by these once all has been read of what it has listened by.
    Replaces(u32, Vec<Subscription>),
    /// It listens to heartbeats, too.
    Heartbeats(u32, Vec<Subscription>),
    /// It doesn't listen to heartbeats any more.
    NoHeartbeats(u32),
    /// It doesn't any more.
    Leaves(u32),
}

/// All that comes in for a node of a fleet.
pub(crate) struct PartInputs {
    streams: SelectAll<Part>,
    /// What has been taken from one of them and not read yet.
    taken: vec::IntoIter<Incoming>,
    changes: mpsc::UnboundedReceiver<PartChange>,
    /// Parts whose subscriptions are about to end, and of which shards they are.
    ending: FuturesUnordered<BoxFuture<'static, Part>>,
    replaced: Vec<u32>,
    /// Whether no part is added any more.
    is_draining: bool,
}

struct Part {
    /// The shard; none for what applications send in.
    shard: Option<u32>,
    /// Whether it is of heartbeats alone.
    is_heartbeats: bool,
    messages: Subscriptions,
    /// What is read once that has ended.
    next: Option<Subscriptions>,
}

/// Subscriptions that take turns. To give the turn to another costs more than to read a message.
type Subscriptions = SelectAll<ReadyChunks<Subscription>>;

fn in_turn(messages: impl IntoIterator<Item = Subscription>) -> Subscriptions {
    let messages = messages.into_iter();
    messages.map(|it| it.ready_chunks(TURN_MAX)).collect()
}

impl Part {
    fn new(shard: Option<u32>, messages: impl IntoIterator<Item = Subscription>) -> Self {
        Self {
            shard,
            is_heartbeats: false,
            messages: in_turn(messages),
            next: None,
        }
    }

    async fn drain(&mut self) -> bool {
        let next = self.next.iter_mut().flat_map(SelectAll::iter_mut);
        for messages in self.messages.iter_mut().chain(next) {
            if !messages.get_mut().drain().await {
                return false;
            }
        }
        true
    }
}

impl Stream for Part {
    type Item = Vec<Incoming>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Vec<Incoming>>> {
        loop {
            match self.messages.poll_next_unpin(context) {
                Poll::Ready(None) => match self.next.take() {
                    Some(next) => self.messages = next,
                    None => return Poll::Ready(None),
                },
                polled => return polled,
            }
        }
    }
}

impl PartInputs {
    /// What applications send in, and no shard yet.
    pub(crate) fn new(
        routed: Vec<Subscription>,
        changes: mpsc::UnboundedReceiver<PartChange>,
    ) -> Self {
        let routed = routed
            .into_iter()
            .map(|messages| Part::new(None, [messages]));
        Self {
            streams: routed.collect(),
            taken: vec::IntoIter::default(),
            changes,
            ending: FuturesUnordered::new(),
            replaced: Vec::new(),
            is_draining: false,
        }
    }

    /// Ends them, once what is on its way has been read. Says whether the connection is still
    /// there for that.
    pub(crate) async fn drain(&mut self) -> bool {
        self.is_draining = true;
        for part in self.streams.iter_mut() {
            if !part.drain().await {
                return false;
            }
        }
        true
    }

    fn change(&mut self, change: PartChange) {
        match change {
            PartChange::Listens(_, _) if self.is_draining => {}
            PartChange::Listens(shard, messages) => {
                self.streams.push(Part::new(Some(shard), [messages]));
            }
            PartChange::Replaces(_, _) if self.is_draining => {}
            PartChange::Replaces(shard, messages) => {
                let all = std::mem::take(&mut self.streams).into_iter();
                let (before, others): (Vec<_>, Vec<_>) =
                    all.partition(|part| part.shard == Some(shard));
                self.streams.extend(others);
                let mut next = Some(in_turn(messages));
                for mut part in before {
                    let next = next.take();
                    let ended = async move {
                        // Where the connection is closed, it has ended.
                        part.drain().await;
                        part.next = next;
                        part
                    };
                    self.replaced.push(shard);
                    self.ending.push(ended.boxed());
                }
            }
            PartChange::Heartbeats(_, _) if self.is_draining => {}
            PartChange::Heartbeats(shard, messages) => self.streams.push(Part {
                is_heartbeats: true,
                ..Part::new(Some(shard), messages)
            }),
            PartChange::NoHeartbeats(shard) => {
                self.keep(|part| part.shard != Some(shard) || !part.is_heartbeats);
            }
            PartChange::Leaves(shard) => {
                self.replaced.retain(|replaced| *replaced != shard);
                self.keep(|part| part.shard != Some(shard));
            }
        }
    }

    fn keep(&mut self, is_kept: impl FnMut(&Part) -> bool) {
        let all = std::mem::take(&mut self.streams).into_iter();
        self.streams = all.filter(is_kept).collect();
    }

    /// What ends is read to its end, unless the shard has been left since.
    fn ends(&mut self, mut part: Part) {
        if self.is_draining {
            // What was to be read next wasn't drained with the others.
            part.next = None;
        }
        let place = self.replaced.iter().position(|it| part.shard == Some(*it));
        if let Some(place) = place {
            self.replaced.swap_remove(place);
            self.streams.push(part);
        }
    }
}

impl Stream for PartInputs {
    type Item = Incoming;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Incoming>> {
        if let Some(message) = self.taken.next() {
            return Poll::Ready(Some(message));
        }
        while let Poll::Ready(Some(change)) = self.changes.poll_recv(context) {
            self.change(change);
        }
        while let Poll::Ready(Some(part)) = self.ending.poll_next_unpin(context) {
            self.ends(part);
        }
        match self.streams.poll_next_unpin(context) {
            // There may be others later.
            Poll::Ready(None) if !self.is_draining => Poll::Pending,
            polled => polled.map(|taken| {
                self.taken = taken?.into_iter();
                self.taken.next()
            }),
        }
    }
}
