//! A directory service of the team's own, asked by request and reply.
//!
//! When a rule needs data that the directory doesn't have, the service is asked. Each question is
//! asked once, however many decisions wait for it. Its answer is kept in the tenant's directory
//! while it is valid ([`cache`] decides how long). Answers become changes of the directory like any
//! other: shards decide again on the users whom they concern.

mod cache;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::anyhow;
use async_nats::{Client, Message, Request};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use presence_config as config;
use presence_config::directory::service as protocol;
use presence_core::directory::{Changes, Directory, Question};
use presence_core::names::Names;
use roaring::RoaringBitmap;
use tokio::sync::{Notify, oneshot, watch};

use crate::clock;
use crate::link::broker::BrokerHealth;
use crate::link::connection::{Connection, Incoming, Subscription};
use crate::link::drops::{LossDetector, SubscriptionKind};
use crate::link::request;
use crate::pool::{Shards, Task};
use crate::tenant::quotas;
use cache::{Cache, Limits};

/// How long answers are gathered, so that those that come close together make one change of the
/// directory.
const GATHER: Duration = Duration::from_millis(3);

/// How many messages on the invalidation subject are read at a time.
const INVALIDATIONS_AT_ONCE: usize = 256;

/// Counts of the results of requests.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) answered: AtomicU64,
    /// Requests whose reply couldn't be used.
    pub(crate) refused: AtomicU64,
    /// Requests without a reply in time.
    pub(crate) unanswered: AtomicU64,
    pub(crate) invalidations: AtomicU64,
    /// Invalidations that couldn't be read.
    pub(crate) bad_invalidations: AtomicU64,
}

/// Asks the service. All shards of a tenant share it.
pub(crate) struct AnswerFetcher {
    config: config::Request,
    /// The prefix of the subjects of requests.
    subject: String,
    names: Arc<Names>,
    cache: Mutex<Cache>,
    /// Wakes the task that asks: the cache has changed.
    woken: Notify,
    /// Signals that the cache has results for the directory.
    arrived: Notify,
    pub(crate) counts: Counts,
}

/// The subscription by which the service says that data has changed.
pub(crate) struct Invalidations {
    messages: Subscription,
    /// Changes whenever the client has reported dropped messages.
    drops: watch::Receiver<u64>,
}

impl AnswerFetcher {
    /// Makes a fetcher without any question.
    pub(crate) fn new(config: &config::Request, subject: String, names: Arc<Names>) -> Self {
        let limits = Limits {
            ttl_ms: config.ttl_ms,
            concurrency: config.concurrency,
        };
        Self {
            config: config.clone(),
            subject,
            names,
            cache: Mutex::new(Cache::new(limits)),
            woken: Notify::new(),
            arrived: Notify::new(),
            counts: Counts::default(),
        }
    }

    /// Has these questions asked, unless they are known already.
    pub(crate) fn want(&self, questions: impl IntoIterator<Item = Question>) {
        if self.cache().want(questions) {
            self.woken.notify_one();
        }
    }

    /// The connection to the broker was lost. Invalidations may have been missed, so everything is
    /// asked again.
    pub(crate) fn on_reconnect(&self) {
        self.cache().on_reconnect();
        self.woken.notify_one();
    }

    /// The numbers of all user ids in the questions.
    pub(crate) fn ids(&self) -> RoaringBitmap {
        self.cache().ids()
    }

    /// How many answers the directory has, how many it lacks, and whether the service is away.
    pub(crate) fn figures(&self) -> (usize, usize, bool) {
        self.cache().figures()
    }

    /// For how long the service has been away, and why. `None` if it isn't away.
    pub(crate) fn outage(&self) -> Option<(Duration, String)> {
        let outage = self.cache().outage(clock::now_ms());
        outage.map(|(ms, why)| (Duration::from_millis(ms), why))
    }

    /// Waits until there is something for [`Self::apply`].
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Makes one change of the directory from all results that are there, or come within the next
    /// few milliseconds. `entries_max`: the most entries that the directory may have; 0 for no
    /// limit. Also returns whether an answer was refused because of this limit.
    pub(crate) async fn apply(
        &self,
        before: &Directory,
        entries_max: u64,
    ) -> (Directory, Changes, bool) {
        tokio::time::sleep(GATHER).await;
        let arrived = self.cache().take_arrived();
        let mut edit = before.edit();
        let mut is_over = false;
        for (question, payload) in arrived {
            let Some(payload) = payload else {
                edit.answer(question, None);
                continue;
            };
            let mut answer = protocol::answer(&question, &payload, &self.names);
            if let Ok(fits) = &answer
                && entries_max > 0
                && edit.entries().saturating_add(fits.entries()) > entries_max
            {
                is_over = true;
                answer = Err(anyhow!(quotas::directory_entries(entries_max)));
            }
            let count = match &answer {
                Ok(_) => &self.counts.answered,
                Err(_) => &self.counts.refused,
            };
            count.fetch_add(1, Ordering::Relaxed);
            let refusal = answer.as_ref().err().map(|error| {
                let question = protocol::name(&question, &self.names);
                format!("to {question}: {error:#}")
            });
            self.cache()
                .on_reply_read(&question, clock::now_ms(), refusal);
            edit.answer(question, answer.ok());
        }
        self.woken.notify_one();
        let (directory, changes) = edit.finish();
        (directory, changes, is_over)
    }

    /// Subscribes to the service's invalidations.
    pub(crate) async fn listen(
        &self,
        connection: &Connection,
        broker: &BrokerHealth,
    ) -> anyhow::Result<Invalidations> {
        let subject = format!("{}.{}", self.subject, protocol::INVALIDATE);
        let messages = connection.subscribe(subject, SubscriptionKind::Invalidations, broker);
        let messages = messages.await?;
        let drops = broker.drops.follow();
        Ok(Invalidations { messages, drops })
    }

    /// Asks the questions of the cache, and takes in replies and invalidations. It never returns.
    pub(crate) async fn run(
        self: Arc<Self>,
        connection: Connection,
        shards: Shards,
        invalidations: Invalidations,
        queue: usize,
    ) {
        let mut under_way = FuturesUnordered::new();
        let mut checks = FuturesUnordered::new();
        let Invalidations {
            messages,
            mut drops,
        } = invalidations;
        let mut invalidations = messages.ready_chunks(INVALIDATIONS_AT_ONCE).fuse();
        let mut losses = LossDetector::new(queue);
        loop {
            let now = clock::now_ms();
            let due = self.cache().take_due(now);
            if !due.is_empty() {
                checks.push(in_use(shards.clone(), due));
            }
            loop {
                let Some(question) = self.cache().next(now) else {
                    break;
                };
                let asked = self.ask(connection.client().clone(), question.clone());
                under_way.push(async move { (question, asked.await) });
            }
            if self.cache().has_arrived() {
                self.arrived.notify_one();
            }
            if losses.take_refetch(clock::now_ms()) {
                // The lost invalidations could concern any question.
                self.cache().invalidate(None);
                continue;
            }
            let wake_at = self
                .cache()
                .next_deadline()
                .into_iter()
                .chain(losses.due())
                .min();
            let wait = wake_at.map(|at| Duration::from_millis(at.saturating_sub(clock::now_ms())));
            tokio::select! {
                Some((question, reply)) = under_way.next() => self.take(&question, reply),
                Some(in_use) = checks.next() => {
                    for (question, is_used) in in_use {
                        self.cache().on_use_checked(&question, is_used);
                    }
                }
                Some(messages) = invalidations.next() => {
                    messages.iter().for_each(|message| self.invalidate(message));
                    let (count, now) = (messages.len(), clock::now_ms());
                    losses.read(count, count < INVALIDATIONS_AT_ONCE, now);
                }
                Ok(()) = drops.changed() => losses.note_dropped(clock::now_ms()),
                () = self.woken.notified() => {}
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
        }
    }

    /// Asks the service. A question about something that can't be an id gets the empty answer at
    /// once.
    async fn ask(&self, client: Client, question: Question) -> Result<Bytes, String> {
        let Some((subject, body)) = protocol::request(&self.subject, &question, &self.names) else {
            return Ok(protocol::empty_answer(&question));
        };
        let limit = Duration::from_millis(self.config.timeout_ms);
        let body = Bytes::from(body);
        let request = Request::new().payload(body.clone()).timeout(Some(limit));
        let reply = client.send_request(subject.clone(), request);
        match tokio::time::timeout(limit, reply).await {
            // A stream subscribes to the questions as well, and its acknowledgement came first. The
            // service's answer is the next reply.
            Ok(Ok(reply)) if request::acknowledging_stream(&reply.payload).is_some() => {
                let answer = |reply: &Message| {
                    let is_answer = request::acknowledging_stream(&reply.payload).is_none();
                    is_answer.then(|| payload(reply.clone()))
                };
                let answer = request::ask(&client, &subject, body, limit, answer).await;
                answer.map_err(|error| error.to_string())
            }
            Ok(Ok(reply)) => Ok(payload(reply)),
            Ok(Err(error)) => Err(format!("{subject}: {error}")),
            Err(_) => Err(format!(
                "{subject}: no answer within {} ms",
                limit.as_millis()
            )),
        }
    }

    fn take(&self, question: &Question, reply: Result<Bytes, String>) {
        let now = clock::now_ms();
        match reply {
            Ok(payload) => self.cache().on_reply(question, now, payload),
            Err(error) => {
                self.counts.unanswered.fetch_add(1, Ordering::Relaxed);
                self.cache().on_no_reply(question, now, &error);
            }
        }
    }

    fn invalidate(&self, message: &Incoming) {
        match protocol::invalidated(message.payload(), &self.names) {
            Ok(what) => {
                self.counts.invalidations.fetch_add(1, Ordering::Relaxed);
                self.cache().invalidate(what.as_ref());
            }
            Err(error) => {
                self.counts
                    .bad_invalidations
                    .fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    subject = message.subject(),
                    "invalidation passed over: {error:#}"
                );
            }
        }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        // A panic can't leave the cache half-changed, so a poisoned lock can be used.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the shards which of these answers they still use.
async fn in_use(shards: Shards, questions: Vec<Question>) -> Vec<(Question, bool)> {
    let questions: Arc<[Question]> = questions.into();
    let mut used = vec![false; questions.len()];
    for shard in shards.iter() {
        let (answer, answered) = oneshot::channel();
        shard.send(Task::Uses(Arc::clone(&questions), answer)).await;
        // A shard that is gone uses nothing.
        for (used, uses) in used.iter_mut().zip(answered.await.unwrap_or_default()) {
            *used |= uses;
        }
    }
    questions.iter().cloned().zip(used).collect()
}

/// The body of a reply. If the service reports a failure in a header, the body of an error reply
/// instead.
fn payload(reply: Message) -> Bytes {
    let headers = reply.headers.as_ref();
    match headers.and_then(|headers| headers.get(protocol::SERVICE_ERROR)) {
        Some(error) => serde_json::json!({"error": error.as_str()})
            .to_string()
            .into(),
        None => reply.payload,
    }
}
