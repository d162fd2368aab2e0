//! The subscriptions of a node of a fleet: the messages of applications, which the nodes share
//! among them, and the messages to the shards in which the node has a part.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::vec;

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{FuturesUnordered, ReadyChunks, SelectAll, Stream, StreamExt as _};
use tokio::sync::mpsc;

use crate::link::connection::{Incoming, Subscription};
use crate::pool::FleetTask;

/// How many messages are taken from one subscription before another has its turn.
const TURN_MAX: usize = 32;

/// All incoming messages of a tenant on this node.
pub(crate) enum Inputs {
    /// A node without a fleet: one subscription, so that the order holds across all subjects.
    Alone(Subscription),
    /// A node of a fleet.
    Parts(PartInputs),
}

impl Inputs {
    /// Ends the subscriptions once the messages on their way have been read. Returns whether the
    /// connection was open for that.
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

/// Tells the reader of a fleet node's inputs which parts the node has.
pub(crate) struct PartSender {
    changes: mpsc::UnboundedSender<SubscriptionChange>,
    deferred: mpsc::UnboundedSender<(u32, FleetTask)>,
}

/// The receiving end of a [`PartSender`].
pub(crate) struct PartReceiver {
    pub(crate) changes: mpsc::UnboundedReceiver<SubscriptionChange>,
    pub(crate) deferred: mpsc::UnboundedReceiver<(u32, FleetTask)>,
}

/// Makes both ends of the channel.
pub(crate) fn part_channel() -> (PartSender, PartReceiver) {
    let (change, changes) = mpsc::unbounded_channel();
    let (tell, deferred) = mpsc::unbounded_channel();
    let sender = PartSender {
        changes: change,
        deferred: tell,
    };
    (sender, PartReceiver { changes, deferred })
}

impl PartSender {
    /// Sends a change of the node's parts.
    pub(crate) fn change(&self, change: SubscriptionChange) {
        // The reader is gone when the node ends.
        let _ = self.changes.send(change);
    }

    /// Sends a task to a shard, to be done after all messages that have arrived for it so far.
    pub(crate) fn defer(&self, shard: u32, task: FleetTask) {
        // The reader is gone when the node ends.
        let _ = self.deferred.send((shard, task));
    }
}

/// A change of a node's subscriptions.
pub(crate) enum SubscriptionChange {
    /// The node listens to a shard.
    Add(u32, Subscription),
    /// The subscriptions replace the shard's current ones, once those have been read to their end.
    Replace(u32, Vec<Subscription>),
    /// The node listens to the shard's heartbeats by subscriptions of their own.
    AddHeartbeats(u32, Vec<Subscription>),
    /// The subscriptions to the shard's heartbeats end.
    RemoveHeartbeats(u32),
    /// The node doesn't listen to the shard any more.
    Remove(u32),
}

/// All incoming messages of a node of a fleet.
pub(crate) struct PartInputs {
    streams: SelectAll<Part>,
    /// Messages that were taken from one of the streams and not returned yet.
    taken: vec::IntoIter<Incoming>,
    changes: mpsc::UnboundedReceiver<SubscriptionChange>,
    /// Parts that are being replaced: their subscriptions are being drained.
    ending: FuturesUnordered<BoxFuture<'static, Part>>,
    replaced: Vec<u32>,
    /// Whether no part is added any more.
    is_draining: bool,
}

struct Part {
    /// The shard. `None` for the messages of applications.
    shard: Option<u32>,
    /// Whether the part has only heartbeats.
    is_heartbeats: bool,
    messages: Subscriptions,
    /// What is read after `messages` has ended.
    next: Option<Subscriptions>,
}

/// Subscriptions that take turns, several messages at a time: a change of turn costs more than the
/// reading of a message.
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
    /// Begins with the messages of applications alone, without any shard.
    pub(crate) fn new(
        routed: Vec<Subscription>,
        changes: mpsc::UnboundedReceiver<SubscriptionChange>,
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

    /// Ends the subscriptions once the messages on their way have been read. Returns whether the
    /// connection was open for that.
    pub(crate) async fn drain(&mut self) -> bool {
        self.is_draining = true;
        for part in self.streams.iter_mut() {
            if !part.drain().await {
                return false;
            }
        }
        true
    }

    fn change(&mut self, change: SubscriptionChange) {
        match change {
            SubscriptionChange::Add(_, _) if self.is_draining => {}
            SubscriptionChange::Add(shard, messages) => {
                self.streams.push(Part::new(Some(shard), [messages]));
            }
            SubscriptionChange::Replace(_, _) if self.is_draining => {}
            SubscriptionChange::Replace(shard, messages) => {
                let all = std::mem::take(&mut self.streams).into_iter();
                let (before, others): (Vec<_>, Vec<_>) =
                    all.partition(|part| part.shard == Some(shard));
                self.streams.extend(others);
                let mut next = Some(in_turn(messages));
                for mut part in before {
                    let next = next.take();
                    let ended = async move {
                        // If the connection is closed, the subscription has ended already.
                        part.drain().await;
                        part.next = next;
                        part
                    };
                    self.replaced.push(shard);
                    self.ending.push(ended.boxed());
                }
            }
            SubscriptionChange::AddHeartbeats(_, _) if self.is_draining => {}
            SubscriptionChange::AddHeartbeats(shard, messages) => self.streams.push(Part {
                is_heartbeats: true,
                ..Part::new(Some(shard), messages)
            }),
            SubscriptionChange::RemoveHeartbeats(shard) => {
                self.keep(|part| part.shard != Some(shard) || !part.is_heartbeats);
            }
            SubscriptionChange::Remove(shard) => {
                self.replaced.retain(|replaced| *replaced != shard);
                self.keep(|part| part.shard != Some(shard));
            }
        }
    }

    fn keep(&mut self, is_kept: impl FnMut(&Part) -> bool) {
        let all = std::mem::take(&mut self.streams).into_iter();
        self.streams = all.filter(is_kept).collect();
    }

    /// Reads a part that is being replaced to its end, unless the node has left its shard.
    fn ends(&mut self, mut part: Part) {
        if self.is_draining {
            // `next` wasn't drained with the others.
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
            // Parts may be added later.
            Poll::Ready(None) if !self.is_draining => Poll::Pending,
            polled => polled.map(|taken| {
                self.taken = taken?.into_iter();
                self.taken.next()
            }),
        }
    }
}
