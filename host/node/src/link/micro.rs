//! A service of the NATS micro protocol (ADR-32), so that `nats micro ls|info|stats` find it.
//!
//! The service of async-nats isn't used, because it answers discovery requests on any reply subject
//! that they name. A node may publish to far more subjects than its clients. So here, as with every
//! other answer of a node, the reply subject has to be below `[nats] reply_prefixes`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::client::PublishErrorKind;
use async_nats::header::HeaderMap;
use async_nats::service::{NATS_SERVICE_ERROR, NATS_SERVICE_ERROR_CODE};
use async_nats::{Client, Message, Subscriber};
use futures_util::StreamExt as _;
use futures_util::stream::{FuturesUnordered, SelectAll, select_all};
use presence_config::escape::{cut, line};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use crate::link::reply_guard::ReplyGuard;
use crate::tasks::Tasks;

/// How many requests may be in progress.
const AT_ONCE: usize = 16;

/// How long to wait until the broker has processed the subscriptions.
const KNOWN: Duration = Duration::from_secs(2);

/// The body of a `status` request that asks for the current revision, with its chain of plugins.
pub(crate) const REVISION: &[u8] = b"revision";

/// The body of a `shadow` request that ends the node's shadow.
pub(crate) const END: &[u8] = b"end";

/// The service's name.
pub(crate) const NAME: &str = "presence";

/// The kinds of discovery requests.
const VERBS: [&str; 3] = ["PING", "INFO", "STATS"];

/// A service, and its endpoints.
pub(crate) struct Service {
    client: Client,
    replies: Arc<ReplyGuard>,
    id: String,
    metadata: Map<String, Value>,
    started: String,
    root: String,
    endpoints: Vec<Endpoint>,
}

/// An endpoint of a service.
struct Endpoint {
    name: &'static str,
    subject: String,
    stats: Mutex<Stats>,
}

/// Counts of an endpoint's requests.
#[derive(Default)]
struct Stats {
    requests: u64,
    errors: u64,
    last_error: String,
    time: Duration,
}

/// A service with a subscription for its requests. Dropping it removes it from discovery.
pub(crate) struct SubscribedService {
    service: Arc<Service>,
    all: Services,
    requests: Subscriber,
    /// Discovery requests to this service alone.
    asked: Subscriber,
}

impl Drop for SubscribedService {
    fn drop(&mut self) {
        self.all.each().remove(&self.service.id);
    }
}

/// The services on one connection, by their ids: one for each tenant. They share the subscriptions
/// for discovery requests to every service. Cloning it shares it.
#[derive(Clone, Default)]
pub(crate) struct Services(Arc<Mutex<BTreeMap<String, Arc<Service>>>>);

impl Services {
    /// Starts to answer discovery requests. There are no services yet.
    ///
    /// # Errors
    /// If the connection is closed.
    pub(crate) async fn listen(client: &Client, tasks: &Tasks) -> anyhow::Result<Self> {
        let mut asked = Vec::new();
        // Without wildcards: a client that asks for something that no service has is told by the broker
        // that nobody answers.
        for verb in VERBS {
            for subject in [format!("$SRV.{verb}"), format!("$SRV.{verb}.{NAME}")] {
                asked.push(client.subscribe(subject).await?);
            }
        }
        let services = Self::default();
        tasks.spawn(
            "services",
            services.clone().answer_discovery(select_all(asked)),
        );
        Ok(services)
    }

    fn each(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Service>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer_discovery(self, mut asked: SelectAll<Subscriber>) {
        while let Some(question) = asked.next().await {
            let services: Vec<_> = self.each().values().cloned().collect();
            for service in services {
                service.answer_one(&question).await;
            }
        }
        // The connection ends only with the node.
        std::future::pending().await
    }
}

/// The answer to a request: a body, or an error.
pub(crate) type Answer = Result<Value, String>;

impl Service {
    /// A service with this metadata and these endpoints. The subject of an endpoint is the root,
    /// its name and the service's id.
    pub(crate) fn new(
        client: Client,
        replies: Arc<ReplyGuard>,
        metadata: Map<String, Value>,
        root: String,
        endpoints: &[&'static str],
    ) -> Self {
        let inbox = client.new_inbox();
        let id = inbox.rsplit('.').next().unwrap_or_default().to_owned();
        let endpoints = endpoints.iter().map(|name| Endpoint {
            name,
            subject: format!("{root}.{name}.{id}"),
            stats: Mutex::default(),
        });
        Self {
            endpoints: endpoints.collect(),
            root,
            client,
            replies,
            id,
            metadata,
            started: jiff::Timestamp::now().to_string(),
        }
    }

    /// Subscribes to requests, and waits a short time for the broker to process it.
    ///
    /// # Errors
    /// If the connection is closed.
    pub(crate) async fn listen(self, all: &Services) -> anyhow::Result<SubscribedService> {
        let requests = format!("{}.*.{}", self.root, self.id);
        let requests = self.client.subscribe(requests).await?;
        let asked = format!("$SRV.*.{NAME}.{}", self.id);
        let asked = self.client.subscribe(asked).await?;
        // If the broker is away, it gets the subscriptions when it is back.
        let _ = timeout(KNOWN, self.client.flush()).await;
        let service = Arc::new(self);
        all.each().insert(service.id.clone(), Arc::clone(&service));
        Ok(SubscribedService {
            service,
            all: all.clone(),
            requests,
            asked,
        })
    }

    /// Answers a discovery request.
    async fn answer_one(&self, question: &Message) {
        let mut verb = question.subject.split('.').skip(1);
        let answer = match verb.next() {
            Some("PING") => self.described("ping", Map::new()),
            Some("INFO") => self.described("info", self.info()),
            Some("STATS") => self.described("stats", self.stats()),
            _ => return,
        };
        if let Some(reply) = self.replies.accept(question.reply.clone()) {
            let answer = answer.to_string().into();
            if let Err(error) = self.client.publish(reply, answer).await {
                tracing::warn!("who asks for services can't be answered: {error}");
            }
        }
    }

    fn described(&self, what: &str, more: Map<String, Value>) -> Value {
        let mut all = json!({
            "type": format!("io.nats.micro.v1.{what}_response"),
            "name": NAME,
            "id": self.id,
            "version": env!("CARGO_PKG_VERSION"),
            "metadata": self.metadata,
        });
        if let Value::Object(all) = &mut all {
            all.extend(more);
        }
        all
    }

    fn info(&self) -> Map<String, Value> {
        let endpoints = self.endpoints.iter().map(|endpoint| {
            json!({
                "name": endpoint.name,
                "subject": endpoint.subject,
                "queue_group": "",
                "metadata": {},
            })
        });
        let description = "a presence processor";
        object([
            ("description", description.into()),
            ("endpoints", endpoints.collect()),
        ])
    }

    fn stats(&self) -> Map<String, Value> {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let endpoints = self.endpoints.iter().map(|endpoint| {
            let stats = endpoint.stats.lock();
            let stats = stats.unwrap_or_else(PoisonError::into_inner);
            let time = nanoseconds(stats.time);
            json!({
                "name": endpoint.name,
                "subject": endpoint.subject,
                "queue_group": "",
                "num_requests": stats.requests,
                "num_errors": stats.errors,
                "last_error": stats.last_error,
                "processing_time": time,
                "average_processing_time": time / stats.requests.max(1),
            })
        });
        object([
            ("started", self.started.clone().into()),
            ("endpoints", endpoints.collect()),
        ])
    }

    async fn answer(
        &self,
        endpoint: &Endpoint,
        reply: async_nats::Subject,
        answer: Answer,
        time: Duration,
    ) {
        let is_refused = answer.is_err();
        {
            let stats = endpoint.stats.lock();
            let mut stats = stats.unwrap_or_else(PoisonError::into_inner);
            stats.requests += 1;
            stats.time += time;
            if let Err(error) = &answer {
                stats.errors += 1;
                stats.last_error = format!("500:{}", cut(error));
            }
        }
        let (client, mut headers) = (&self.client, HeaderMap::new());
        let body = match answer {
            Ok(body) => body,
            Err(error) => {
                // A header is one line. It is cut, to leave room for the body.
                let line = line(cut(&error));
                headers.insert(NATS_SERVICE_ERROR, line.as_str());
                headers.insert(NATS_SERVICE_ERROR_CODE, "500");
                json!({"ok": false, "reason": "refused", "error": error})
            }
        };
        let body = body.to_string();
        let bytes = body.len();
        let sent = client.publish_with_headers(reply.clone(), headers, body.into());
        let Err(error) = sent.await else { return };
        // Without this, the requester would wait in vain.
        let error = match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => format!(
                "the answer has {bytes} bytes, and the broker carries messages of {} (max_payload)",
                client.server_info().max_payload
            ),
            _ => error.to_string(),
        };
        {
            let stats = endpoint.stats.lock();
            let mut stats = stats.unwrap_or_else(PoisonError::into_inner);
            // One request is one error at most.
            stats.errors += u64::from(!is_refused);
            stats.last_error = format!("500:{error}");
        }
        tracing::warn!(
            endpoint = endpoint.name,
            "an operator's command can't be answered: {error}"
        );
        let mut headers = HeaderMap::new();
        headers.insert(NATS_SERVICE_ERROR, error.as_str());
        headers.insert(NATS_SERVICE_ERROR_CODE, "500");
        let body = json!({"ok": false, "reason": "refused", "error": error});
        // If this can't be sent either, the client has ended with the node.
        let _ = client
            .publish_with_headers(reply, headers, body.to_string().into())
            .await;
    }
}

impl SubscribedService {
    /// Serves while it is polled. `handle` gets an endpoint's name and a request.
    pub(crate) async fn serve<F: Future<Output = Answer>>(
        mut self,
        handle: impl Fn(&'static str, Message) -> F,
    ) {
        let service = Arc::clone(&self.service);
        let service = &service;
        let mut in_progress = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(()) = in_progress.next() => {}
                Some(question) = self.asked.next() => service.answer_one(&question).await,
                Some(request) = self.requests.next() => {
                    let mut endpoints = service.endpoints.iter();
                    let asked = |it: &&Endpoint| *it.subject == *request.subject;
                    let Some(endpoint) = endpoints.find(asked) else {
                        continue;
                    };
                    // A request without an allowed reply subject is ignored.
                    let Some(reply) = service.replies.accept(request.reply.clone()) else {
                        continue;
                    };
                    if in_progress.len() >= AT_ONCE {
                        let overloaded = Err("too many requests are in progress".into());
                        service
                            .answer(endpoint, reply, overloaded, Duration::ZERO)
                            .await;
                        continue;
                    }
                    let began = Instant::now();
                    let handled = handle(endpoint.name, request);
                    in_progress.push(async move {
                        let answer = handled.await;
                        service
                            .answer(endpoint, reply, answer, began.elapsed())
                            .await;
                    });
                }
                else => return,
            }
        }
    }
}

fn object<const N: usize>(entries: [(&str, Value); N]) -> Map<String, Value> {
    let entries = entries.into_iter();
    entries.map(|(key, value)| (key.into(), value)).collect()
}
