//! Answers questions to a running node: queries and requests for explanations. They have
//! subscriptions of their own, so that no question waits behind unread inputs. They change nothing.

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
use crate::tenant::quotas::ExceededLog;

pub(crate) use budget::{Budget, BudgetShare};
pub(crate) use query::PendingQuery;

/// How often a shard is asked at most while answers of the directory are missing, and how long to
/// wait for these answers each time.
const TRIES: usize = 4;
const FETCH_TIMEOUT: Duration = Duration::from_secs(1);

/// How many refusals may wait for room in the broker's client. There are only more if the client is
/// disconnected, or if it can't write as many as arrive.
const REFUSALS_MAX: usize = 4_096;

/// The least time between two log lines about refused questions, in milliseconds.
const OVERLOAD_LOG_EVERY_MS: u64 = 10_000;

/// The error if a shard couldn't answer because it has failed or was stopped.
const NOT_ANSWERED: &str = "the part of the node that knows these users is starting again, or \
                            stopping: ask again later";

/// Counts of questions by their outcome.
#[derive(Debug, Default)]
pub(crate) struct QuestionCounts {
    pub(crate) answered: AtomicU64,
    pub(crate) refused: AtomicU64,
    /// Refused because there was no room.
    pub(crate) overloaded: AtomicU64,
    /// Not even refused, because there was no room for the refusal.
    pub(crate) unanswered: AtomicU64,
    /// Without a reply subject to which an answer may go.
    pub(crate) ignored: AtomicU64,
    /// A shard could not answer, because it has failed or was stopped.
    pub(crate) failed: AtomicU64,
}

/// Answers queries and requests for explanations.
pub(crate) struct QueryService {
    pub(crate) connection: Connection,
    pub(crate) subjects: Subjects,
    pub(crate) replies: Arc<ReplyGuard>,
    pub(crate) shards: Shards,
    /// The fleet of this tenant. `None` if the node serves it alone.
    pub(crate) fleet: Option<Arc<Fleet>>,
    /// The longest body that the broker takes, according to its last connect message.
    pub(crate) body_bytes_max: Arc<AtomicUsize>,
    pub(crate) broker: Arc<BrokerHealth>,
    /// The directory that the shards have got.
    pub(crate) directory: watch::Receiver<Arc<Directory>>,
    /// Whether the directory is a service that is asked question by question.
    pub(crate) answers_are_fetched: bool,
    /// Whether requests for explanations are answered.
    pub(crate) explains: Arc<AtomicBool>,
    pub(crate) counts: Arc<QuestionCounts>,
    /// The limit on questions per second.
    pub(crate) queries: Rate,
    pub(crate) exceeded: Arc<ExceededLog>,
    /// The limit on questions in progress.
    pub(crate) budget: Arc<Budget>,
    /// Held while a question is read, split, or answered. Only one question is in such a step at a
    /// time, so that other tasks on the thread wait for one step at most.
    pub(crate) turn: Semaphore,
}

/// Reads a tenant's questions.
pub(crate) struct QuestionReader {
    messages: SelectAll<Subscription>,
    service: Arc<QueryService>,
    refusals: Arc<Semaphore>,
    overload: LogLimiter,
}

impl QueryService {
    /// Subscribes to questions.
    pub(crate) async fn listen(self) -> anyhow::Result<QuestionReader> {
        let mut subscriptions = Vec::new();
        let (connection, broker) = (&self.connection, &self.broker);
        let kind = SubscriptionKind::Questions;
        for subject in QuestionKind::SUBJECTS {
            let subject = self.subjects.of(subject);
            subscriptions.push(match &self.fleet {
                None => connection.subscribe(subject, kind, broker).await?,
                // Each question goes to one of the nodes.
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

    /// Answers a request for an explanation that was made to the node itself. Returns the body of
    /// the reply.
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

    /// Counts a question's outcome, and returns the body of the reply.
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

    /// Waits for the turn to take one step.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.turn.acquire().await.ok()
    }

    async fn publish(&self, reply: String, body: Vec<u8>) {
        if let Err(error) = self.connection.publish(reply, body).await {
            tracing::error!("an answer could not be published: {error:#}");
        }
    }

    /// Waits until the directory has these answers, up to a timeout. Returns whether it has them.
    /// If answers aren't fetched, returns `false` at once.
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
        match self.subjects.question_kind(received.subject()) {
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
    /// The service that answers the questions.
    pub(crate) fn service(&self) -> Arc<QueryService> {
        Arc::clone(&self.service)
    }

    /// Answers until `stop`, and then the questions that have arrived by then.
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
        // Waits for the questions in progress.
        self.service.budget.until_idle().await;
    }

    /// Starts to answer a question. It never waits: otherwise, questions would wait in the
    /// subscription, whose size in bytes has no limit.
    fn take(&self, received: Incoming) {
        if received.is_from_node() {
            return;
        }
        let is_nodes = self.service.asked_by_node(received.subject()).is_some();
        let reply = match is_nodes {
            // Nodes are always answered on their inboxes, whatever `[nats] reply_prefixes` permits.
            true => received.reply().filter(|it| it.starts_with(INBOX)),
            false => self.service.replies.accept(received.reply()),
        };
        let Some(reply) = reply else {
            self.service.counts.ignored.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let (service, reply) = (Arc::clone(&self.service), reply.to_owned());
        // The node that got the question from the viewer has counted it.
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

    /// Refuses a question because there were too many in this second.
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

    /// Refuses a question for which there is no room.
    fn overloaded(&self, reply: String) {
        let counts = &self.service.counts;
        counts.overloaded.fetch_add(1, Ordering::Relaxed);
        if let Some(refused) = self.overload.line(OVERLOAD_LOG_EVERY_MS) {
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
