//! What is asked of a running node: queries and explanations. They have subscriptions of their
//! own, so that no question waits behind the inputs that the intake has yet to
//! read, and they change nothing.

mod explain;
mod query;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::{Client, Message as Received, Subject, Subscriber};
use futures_util::StreamExt;
use futures_util::stream::{SelectAll, select_all};
use presence_core::body;
use presence_core::directory::{Directory, Question};
use presence_core::query::{Explain, Query, Refusal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::broker::Health;
use crate::drops::Carries;
use crate::reply::Replies;
use crate::wire::{Asked, SEQ, Subjects};
use crate::worker::Workers;

pub(crate) use query::Asking;

/// How often is asked in all, where the directory's answers are fetched one by
/// one, and how long is waited for them each time.
const TRIES: usize = 4;
const FETCH_TIMEOUT: Duration = Duration::from_secs(1);

/// How many questions are answered at a time. Further ones wait in their
/// subscriptions.
const AT_A_TIME: u32 = 1_024;

/// What became of the questions.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) answered: AtomicU64,
    pub(crate) refused: AtomicU64,
    /// Those without a subject that an answer may go to.
    pub(crate) ignored: AtomicU64,
}

/// What it takes to answer.
pub(crate) struct Desk {
    pub(crate) client: Client,
    pub(crate) subjects: Subjects,
    pub(crate) replies: Arc<Replies>,
    pub(crate) workers: Workers,
    /// The longest body that the broker takes, as it says on connecting.
    pub(crate) body_bytes_max: Arc<AtomicUsize>,
    pub(crate) broker: Arc<Health>,
    /// The directory that the workers have been told of.
    pub(crate) directory: watch::Receiver<Arc<Directory>>,
    /// Whether the directory is asked question by question.
    pub(crate) answers_are_fetched: bool,
    /// Whether explanations are given.
    pub(crate) explains: Arc<AtomicBool>,
    pub(crate) counts: Arc<Counts>,
}

/// What reads a tenant's questions.
pub(crate) struct Reader {
    messages: SelectAll<Subscriber>,
    desk: Arc<Desk>,
    at_a_time: Arc<Semaphore>,
}

impl Desk {
    /// Subscribes to what is asked.
    pub(crate) async fn listen(self) -> anyhow::Result<Reader> {
        let mut subscribers = Vec::new();
        for subject in Asked::SUBJECTS {
            let subject = self.subjects.of(subject);
            let subscriber = self.client.subscribe(subject).await?;
            self.broker.drops.watch(&subscriber, Carries::Questions);
            subscribers.push(subscriber);
        }
        Ok(Reader {
            messages: select_all(subscribers),
            desk: Arc::new(self),
            at_a_time: Arc::new(Semaphore::new(AT_A_TIME as usize)),
        })
    }

    async fn answer(&self, received: &Received, reply: Subject) {
        let body = match self.answer_to(received).await {
            Ok(Some(body)) => {
                self.counts.answered.fetch_add(1, Ordering::Relaxed);
                body
            }
            Err(refusal) => {
                self.counts.refused.fetch_add(1, Ordering::Relaxed);
                body::query::refusal(&refusal)
            }
            // The node is being stopped.
            Ok(None) => return,
        };
        if let Err(error) = self.client.publish(reply, body.into()).await {
            tracing::error!(%error, "an answer could not be published");
        }
    }

    /// Waits for the directory to have these answers; not for ever, and not where nobody
    /// fetches them. Says whether it has them.
    async fn has_answers(&self, questions: &BTreeSet<Question>) -> bool {
        if !self.answers_are_fetched {
            return false;
        }
        let mut directory = self.directory.clone();
        let has_all = |directory: &Arc<Directory>| questions.iter().all(|it| directory.has(it));
        let there = tokio::time::timeout(FETCH_TIMEOUT, directory.wait_for(has_all));
        matches!(there.await, Ok(Ok(_)))
    }

    async fn answer_to(&self, received: &Received) -> Result<Option<Vec<u8>>, Refusal> {
        match self.subjects.asked(&received.subject) {
            Some(Asked::Query(viewer)) => {
                self.query(Query::parse(&received.payload, viewer)?).await
            }
            Some(Asked::Explain) => {
                self.explain_if_enabled()?;
                self.explain(Explain::parse(&received.payload)?).await
            }
            None => Ok(None),
        }
    }
}

impl Reader {
    /// Answers until it is told to stop, and then what has arrived by then.
    pub(crate) async fn read(mut self, mut stop: oneshot::Receiver<()>) {
        let mut stopping = false;
        loop {
            let received = tokio::select! {
                biased;
                _ = &mut stop, if !stopping => {
                    stopping = true;
                    for messages in self.messages.iter_mut() {
                        if messages.drain().await.is_err() {
                            return;
                        }
                    }
                    continue;
                }
                received = self.messages.next() => received,
            };
            let Some(received) = received else { break };
            self.desk.broker.count_elsewhere();
            self.take(received).await;
        }
        // Those that are being answered still.
        let _ = self.at_a_time.acquire_many(AT_A_TIME).await;
    }

    async fn take(&self, received: Received) {
        let headers = received.headers.as_ref();
        if headers.is_some_and(|headers| headers.get(SEQ).is_some()) {
            return;
        }
        let Some(reply) = self.desk.replies.accept(received.reply.clone()) else {
            self.desk.counts.ignored.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let permit = Arc::clone(&self.at_a_time).acquire_owned().await;
        let desk = Arc::clone(&self.desk);
        #[expect(
            clippy::disallowed_methods,
            reason = "one that fails is one question without an answer"
        )]
        tokio::spawn(async move {
            let _permit: Option<OwnedSemaphorePermit> = permit.ok();
            desk.answer(&received, reply).await;
        });
    }
}
