//! What is asked of a running node: queries and explanations. They have subscriptions of their
//! own, so that no question waits behind the inputs that the intake has yet to
//! read, and they change nothing.

mod budget;
mod explain;
mod fleet;
mod query;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{SelectAll, select_all};
use presence_config::subjects::{FLEET_QUEUE, QuestionKind, Subjects};
use presence_core::body;
use presence_core::directory::{Directory, Question};
use presence_core::message::Cause;
use presence_core::query::{Explain, Query, Refusal};
use presence_core::quota::{Quota, Rate};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot, watch};

use crate::clock;
use crate::fleet::Fleet;
use crate::link::broker::BrokerHealth;
use crate::link::connection::{Connection, Incoming, Subscription};
use crate::link::drops::SubscriptionKind;
use crate::link::hello::INBOX;
use crate::link::reply_guard::ReplyGuard;
use crate::pool::Shards;
use crate::pool::log_limiter::LogLimiter;
use crate::tenant::quotas::Exceeded;

pub(crate) use budget::{Budget, BudgetShare};
pub(crate) use query::PendingQuery;

/// How often is asked in all, where the directory's answers are fetched one by
/// one, and how long is waited for them each time.
const TRIES: usize = 4;
const FETCH_TIMEOUT: Duration = Duration::from_secs(1);

/// How many refusals wait for room in the broker's client, at most. There are more only
/// if it is away, or if more is asked than it can write.
const REFUSALS_MAX: usize = 4_096;

/// How often the log tells of questions that found no room, in milliseconds.
const OVERLOAD_TOLD_MS: u64 = 10_000;

/// What a question is answered where a shard that it was for has failed, or was stopped.
const NOT_ANSWERED: &str = "the part of the node that knows these users is starting again, or \
                            stopping: ask again later";

/// What became of the questions.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) answered: AtomicU64,
    pub(crate) refused: AtomicU64,
    /// Those that found no room.
    pub(crate) overloaded: AtomicU64,
    /// Those whose refusal found no room either.
    pub(crate) unanswered: AtomicU64,
    /// Those without a subject that an answer may go to.
    pub(crate) ignored: AtomicU64,
    /// Those that a shard could not answer: it has failed, or was stopped.
    pub(crate) failed: AtomicU64,
}

/// Answers queries and requests for explanations.
pub(crate) struct QueryService {
    pub(crate) connection: Connection,
    pub(crate) subjects: Subjects,
    pub(crate) replies: Arc<ReplyGuard>,
    pub(crate) shards: Shards,
    /// The fleet that the node is one of; none if it serves alone.
    pub(crate) fleet: Option<Arc<Fleet>>,
    /// The longest body that the broker takes, as it says on connecting.
    pub(crate) body_bytes_max: Arc<AtomicUsize>,
    pub(crate) broker: Arc<BrokerHealth>,
    /// The directory that the shards have been told of.
    pub(crate) directory: watch::Receiver<Arc<Directory>>,
    /// Whether the directory is asked question by question.
    pub(crate) answers_are_fetched: bool,
    /// Whether explanations are given.
    pub(crate) explains: Arc<AtomicBool>,
    pub(crate) counts: Arc<Counts>,
    /// How many are answered a second.
    pub(crate) queries: Rate,
    pub(crate) exceeded: Arc<Exceeded>,
    /// How much may be asked at a time.
    pub(crate) budget: Arc<Budget>,
    /// Who reads a question, shares it out, or writes its answer. It is one at a time, so that what
    /// others want of the thread waits for no more than that, however much is asked.
    pub(crate) turn: Semaphore,
}

/// What reads a tenant's questions.
pub(crate) struct QuestionReader {
    messages: SelectAll<Subscription>,
    service: Arc<QueryService>,
    refusals: Arc<Semaphore>,
    overload: LogLimiter,
}

impl QueryService {
    /// Subscribes to what is asked.
    pub(crate) async fn listen(self) -> anyhow::Result<QuestionReader> {
        let mut subscriptions = Vec::new();
        let (connection, broker) = (&self.connection, &self.broker);
        let kind = SubscriptionKind::Questions;
        for subject in QuestionKind::SUBJECTS {
            let subject = self.subjects.of(subject);
            subscriptions.push(match &self.fleet {
                None => connection.subscribe(subject, kind, broker).await?,
                // Any of the nodes answers.
                Some(_) => {
                    let shared = (subject, FLEET_QUEUE);
                    connection.subscribe_in(shared, kind, broker).await?
                }
            });
        }
        if let Some(fleet) = &self.fleet {
            let subject = fleet::asked_subject(&self.subjects, &fleet.node);
            subscriptions.push(connection.subscribe(subject, kind, broker).await?);
        }
        Ok(QuestionReader {
            messages: select_all(subscriptions),
            service: Arc::new(self),
            refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
            overload: LogLimiter::default(),
        })
    }

    async fn answer(&self, received: &Incoming, share: BudgetShare, reply: String) {
        let answered = self.answer_to(received, Arc::new(share)).await;
        self.publish(reply, self.counted(answered)).await;
    }

    /// Explains to one who asks the node itself, as the body of the reply would.
    pub(crate) async fn explain_here(&self, asked: &Bytes) -> Vec<u8> {
        let Some(_share) = self.budget.admit(asked.len()) else {
            return self.counted(Err(Refusal::overloaded()));
        };
        let explained = async {
            self.explain_if_enabled()?;
            self.explain(Explain::parse(asked)?).await
        };
        self.counted(explained.await)
    }

    /// The body of the reply, once it is counted what became of the question.
    fn counted(&self, answered: Result<Option<Vec<u8>>, Refusal>) -> Vec<u8> {
        match answered {
            Ok(Some(body)) => {
                self.counts.answered.fetch_add(1, Ordering::Relaxed);
                body
            }
            Err(refusal) => {
                let counts = &self.counts;
                let count = match refusal.is_overload() {
                    true => &counts.overloaded,
                    false => &counts.refused,
                };
                count.fetch_add(1, Ordering::Relaxed);
                body::query::refusal(&refusal)
            }
            Ok(None) => {
                self.counts.failed.fetch_add(1, Ordering::Relaxed);
                body::query::refusal(&Refusal::unavailable(NOT_ANSWERED))
            }
        }
    }

    /// Waits for a turn, which ends with the step that is taken in it.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.turn.acquire().await.ok()
    }

    async fn publish(&self, reply: String, body: Vec<u8>) {
        if let Err(error) = self.connection.publish(reply, body).await {
            tracing::error!("an answer could not be published: {error:#}");
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

    async fn answer_to(
        &self,
        received: &Incoming,
        share: Arc<BudgetShare>,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        if let Some(kind) = self.asked_by_node(received.subject()) {
            return self.answer_node(kind, received.payload(), share).await;
        }
        match self.subjects.asked(received.subject()) {
            Some(QuestionKind::Query(viewer)) => {
                let turn = self.turn().await;
                let query = Query::parse(received.payload(), viewer)?;
                drop(turn);
                self.query(query, share).await
            }
            Some(QuestionKind::Explain) => {
                self.explain_if_enabled()?;
                self.explain(Explain::parse(received.payload())?).await
            }
            None => Ok(None),
        }
    }
}

impl QuestionReader {
    /// What answers.
    pub(crate) fn service(&self) -> Arc<QueryService> {
        Arc::clone(&self.service)
    }

    /// Answers until it is told to stop, and then what has arrived by then.
    pub(crate) async fn read(mut self, mut stop: oneshot::Receiver<()>) {
        let mut stopping = false;
        loop {
            let received = tokio::select! {
                biased;
                _ = &mut stop, if !stopping => {
                    stopping = true;
                    for messages in self.messages.iter_mut() {
                        if !messages.drain().await {
                            return;
                        }
                    }
                    continue;
                }
                received = self.messages.next() => received,
            };
            let Some(received) = received else { break };
            self.service.broker.count_elsewhere();
            self.take(received);
        }
        // Those that are being answered still.
        self.service.budget.is_idle().await;
    }

    /// Has a question answered. It never waits: what comes while much is asked would wait
    /// in the subscription, which nothing bounds in bytes.
    fn take(&self, received: Incoming) {
        if received.is_from_node() {
            return;
        }
        let is_nodes = self.service.asked_by_node(received.subject()).is_some();
        let reply = match is_nodes {
            // Where nodes ask to be answered, whatever `[nats] reply_prefixes` permits to others.
            true => received.reply().filter(|it| it.starts_with(INBOX)),
            false => self.service.replies.accept(received.reply()),
        };
        let Some(reply) = reply else {
            self.service.counts.ignored.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let (service, reply) = (Arc::clone(&self.service), reply.to_owned());
        // The node that was asked first has counted it.
        if !is_nodes
            && !service
                .queries
                .take(clock::now_ms().saturating_mul(1_000_000))
        {
            return self.refuse_over_quota(reply);
        }
        match service.budget.admit(received.payload().len()) {
            Some(share) => spawn(async move { service.answer(&received, share, reply).await }),
            None => self.overloaded(reply),
        }
    }

    /// Answers a question that is one too many in this second.
    fn refuse_over_quota(&self, reply: String) {
        let service = &self.service;
        let error = format!(
            "more than {} questions a second arrive ([limits] queries_per_s): this one is refused",
            service.queries.per_s()
        );
        service.exceeded.note(Quota::Queries, &error);
        service.counts.refused.fetch_add(1, Ordering::Relaxed);
        self.refuse(reply, Refusal::new(Cause::QuotaExceeded, error));
    }

    /// Answers a question that finds no room.
    fn overloaded(&self, reply: String) {
        let counts = &self.service.counts;
        counts.overloaded.fetch_add(1, Ordering::Relaxed);
        if let Some(refused) = self.overload.line(OVERLOAD_TOLD_MS) {
            tracing::warn!(
                refused,
                "more queries arrive than can be answered, and some are refused as `overloaded`: \
                 raise [engine] question_queue and question_bytes_max, or have clients ask less often"
            );
        }
        self.refuse(reply, Refusal::overloaded());
    }

    fn refuse(&self, reply: String, refusal: Refusal) {
        let service = Arc::clone(&self.service);
        let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() else {
            service.counts.unanswered.fetch_add(1, Ordering::Relaxed);
            return;
        };
        spawn(async move {
            let body = body::query::refusal(&refusal);
            service.publish(reply, body).await;
            drop(permit);
        });
    }
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    #[expect(
        clippy::disallowed_methods,
        reason = "one that fails is one question without an answer"
    )]
    tokio::spawn(task);
}
