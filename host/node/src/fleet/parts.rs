//! The subscriptions of a node of a fleet: what applications send in, of which the nodes share the
//! reading, and what is sent to the shards in which the node has a part.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{FuturesUnordered, SelectAll, Stream, StreamExt as _};
use tokio::sync::mpsc;

use crate::link::connection::{Incoming, Subscription};

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

/// A change of the parts that a node has.
pub(crate) enum PartChange {
    /// It listens to a shard.
    Listens(u32, Subscription),
    /// It listens by these from now on: what is on its way by others is still read.
    Replaces(u32, Vec<Subscription>),
    /// It doesn't any more.
    Leaves(u32),
}

/// All that comes in for a node of a fleet.
pub(crate) struct PartInputs {
    streams: SelectAll<Part>,
    changes: mpsc::UnboundedReceiver<PartChange>,
    /// Subscriptions that are about to end.
    ending: FuturesUnordered<BoxFuture<'static, Part>>,
    /// Whether no part is added any more.
    is_draining: bool,
}

struct Part {
    /// The shard; none for what applications send in.
    shard: Option<u32>,
    messages: Subscription,
}

impl Stream for Part {
    type Item = Incoming;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Incoming>> {
        self.messages.poll_next_unpin(context)
    }
}

impl PartInputs {
    /// What applications send in, and no shard yet.
    pub(crate) fn new(
        routed: Vec<Subscription>,
        changes: mpsc::UnboundedReceiver<PartChange>,
    ) -> Self {
        let routed = routed.into_iter().map(|messages| Part {
            shard: None,
            messages,
        });
        Self {
            streams: routed.collect(),
            changes,
            ending: FuturesUnordered::new(),
            is_draining: false,
        }
    }

    /// Ends them, once what is on its way has been read. Says whether the connection is still
    /// there for that.
    pub(crate) async fn drain(&mut self) -> bool {
        self.is_draining = true;
        for part in self.streams.iter_mut() {
            if !part.messages.drain().await {
                return false;
            }
        }
        true
    }

    fn change(&mut self, change: PartChange) {
        match change {
            PartChange::Listens(_, _) if self.is_draining => {}
            PartChange::Listens(shard, messages) => self.streams.push(Part {
                shard: Some(shard),
                messages,
            }),
            PartChange::Replaces(_, _) if self.is_draining => {}
            PartChange::Replaces(shard, messages) => {
                let all = std::mem::take(&mut self.streams).into_iter();
                let (before, others): (Vec<_>, Vec<_>) =
                    all.partition(|part| part.shard == Some(shard));
                self.streams.extend(others);
                self.ending.extend(before.into_iter().map(|mut part| {
                    let ended = async move {
                        // Where the connection is closed, it has ended.
                        part.messages.drain().await;
                        part
                    };
                    ended.boxed()
                }));
                let parts = messages.into_iter().map(|messages| Part {
                    shard: Some(shard),
                    messages,
                });
                self.streams.extend(parts);
            }
            PartChange::Leaves(shard) => {
                let all = std::mem::take(&mut self.streams).into_iter();
                let kept = all.filter(|part| part.shard != Some(shard));
                self.streams = kept.collect();
            }
        }
    }
}

impl Stream for PartInputs {
    type Item = Incoming;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Incoming>> {
        while let Poll::Ready(Some(change)) = self.changes.poll_recv(context) {
            self.change(change);
        }
        while let Poll::Ready(Some(part)) = self.ending.poll_next_unpin(context) {
            self.streams.push(part);
        }
        match self.streams.poll_next_unpin(context) {
            // There may be others later.
            Poll::Ready(None) if !self.is_draining => Poll::Pending,
            polled => polled,
        }
    }
}
