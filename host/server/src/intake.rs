//! From the broker to the workers: one reader, so that messages of a connection
//! keep the broker's order across subjects.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_nats::{Message as Received, Subscriber};
use foldhash::fast::FixedState;
use futures_util::{FutureExt, StreamExt};
use presence_core::Input;
use presence_core::message::Message;
use tokio::sync::oneshot;

use crate::broker::Health;
use crate::clock;
use crate::wire::{SOURCE, Subjects};
use crate::worker::{Task, Workers};

/// How many messages are handed on at once, at most.
const BATCH_MAX: usize = 256;

/// What reads a tenant's subscription.
pub(crate) struct Intake {
    pub(crate) messages: Subscriber,
    pub(crate) subjects: Subjects,
    /// The longest body that the broker takes, as it says on connecting.
    pub(crate) body_bytes_max: Arc<AtomicUsize>,
    pub(crate) workers: Workers,
    pub(crate) broker: Arc<Health>,
}

impl Intake {
    /// Reads until it is told to stop, and then what has arrived by then.
    pub(crate) async fn read(mut self, mut stop: oneshot::Receiver<()>) {
        let mut stopping = false;
        loop {
            let first = tokio::select! {
                first = self.messages.next() => first,
                _ = &mut stop, if !stopping => {
                    stopping = true;
                    // The subscription ends when all that is on its way is read.
                    if self.messages.drain().await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let Some(first) = first else { return };
            self.batch(first, stopping).await;
        }
    }

    /// Hands on a message and those that are there behind it. What a worker has no
    /// room for is dropped and counted: were it waited for, the broker's client
    /// would drop instead, and not say how much. When nothing more is to come, it
    /// is waited for.
    async fn batch(&mut self, first: Received, stopping: bool) {
        let now = clock::now_ms();
        let body_bytes_max = self.body_bytes_max.load(Ordering::Relaxed);
        // As a rule many come together, or one alone.
        let room = BATCH_MAX / 4 / self.workers.iter().len().max(1);
        let batch = |_| Vec::with_capacity(room);
        let mut batches: Vec<Vec<Input>> = self.workers.iter().map(batch).collect();
        let subjects = &self.subjects;
        let mut put = |received| {
            let sorted = sort(received, subjects, body_bytes_max, batches.len());
            if let Some((place, input)) = sorted
                && let Some(batch) = batches.get_mut(place)
            {
                batch.push(input);
            }
        };
        put(first);
        for _ in 1..BATCH_MAX {
            let Some(Some(next)) = self.messages.next().now_or_never() else {
                break;
            };
            put(next);
        }
        for (worker, batch) in self.workers.iter().zip(batches) {
            let count = batch.len();
            let task = Task::Inputs(now, batch);
            if stopping {
                worker.send(task).await;
            } else if count > 0 && !worker.offer(task) {
                self.broker.count_drops(count as u64);
            }
        }
    }
}

/// What a message says, and to which of the workers.
fn sort(
    received: Received,
    subjects: &Subjects,
    body_bytes_max: usize,
    workers: usize,
) -> Option<(usize, Input)> {
    let kind = subjects.kind(&received.subject)?;
    let headers = received.headers.as_ref();
    if headers.is_some_and(|headers| headers.get(SOURCE).is_some()) {
        return None;
    }
    // JetStream's acknowledgements are the stream's own affair.
    let reply = received
        .reply
        .map(|reply| reply.to_string())
        .filter(|to| !to.starts_with("$JS.ACK"));
    Some(
        match Message::parse(kind, &received.payload, body_bytes_max) {
            Ok(message) => {
                let hash = FixedState::default().hash_one(&*message.user) as usize;
                (hash % workers.max(1), Input::Message { message, reply })
            }
            Err(rejection) => {
                let subject = received.subject.to_string();
                let payload = received.payload;
                (
                    0,
                    Input::Rejected {
                        subject,
                        payload,
                        rejection,
                        reply,
                    },
                )
            }
        },
    )
}
