//! From the broker to the workers: one reader, so that messages of a connection
//! keep the broker's order across subjects.

use std::hash::BuildHasher;
use std::sync::Arc;

use async_nats::{Message as Received, Subscriber};
use foldhash::fast::FixedState;
use futures_util::{FutureExt, StreamExt};
use presence_core::Input;
use presence_core::message::Message;
use tokio::sync::mpsc;

use crate::clock;
use crate::wire::{SOURCE, Subjects};
use crate::worker::Task;

/// How many messages are handed on at once, at most.
const BATCH_MAX: usize = 256;

/// Reads a subscription until it ends.
pub(crate) async fn read(
    mut messages: Subscriber,
    subjects: Subjects,
    workers: Arc<[mpsc::Sender<Task>]>,
) {
    while let Some(first) = messages.next().await {
        let now = clock::now_ms();
        let mut batches: Vec<Vec<Input>> = workers.iter().map(|_| Vec::new()).collect();
        sort(first, &subjects, &mut batches);
        for _ in 1..BATCH_MAX {
            let Some(Some(next)) = messages.next().now_or_never() else {
                break;
            };
            sort(next, &subjects, &mut batches);
        }
        for (worker, batch) in workers.iter().zip(batches) {
            // A worker that is gone is one that was told to stop.
            if !batch.is_empty() && worker.send(Task::Inputs(now, batch)).await.is_err() {
                return;
            }
        }
    }
}

fn sort(received: Received, subjects: &Subjects, batches: &mut [Vec<Input>]) {
    let Some(kind) = subjects.kind(&received.subject) else {
        return;
    };
    if received
        .headers
        .as_ref()
        .is_some_and(|headers| headers.get(SOURCE).is_some())
    {
        return;
    }
    // JetStream's acknowledgements are the stream's own affair.
    let reply = received
        .reply
        .map(|reply| reply.to_string())
        .filter(|to| !to.starts_with("$JS.ACK"));
    let (place, input) = match Message::parse(kind, &received.payload, crate::run::BODY_BYTES_MAX) {
        Ok(message) => {
            let hash = FixedState::default().hash_one(&*message.user) as usize;
            (
                hash % batches.len().max(1),
                Input::Message { message, reply },
            )
        }
        Err(rejection) => {
            let subject = received.subject.to_string();
            (
                0,
                Input::Rejected {
                    subject,
                    payload: received.payload,
                    rejection,
                    reply,
                },
            )
        }
    };
    if let Some(batch) = batches.get_mut(place) {
        batch.push(input);
    }
}
