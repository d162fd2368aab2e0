//! Health, metrics, status and the page over HTTP, on loopback.

mod listen;
mod metrics;
mod page;
mod readiness;
mod status;
mod tenants;

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use presence_config::Config;
use presence_config::escape::Line;
use presence_config::revision::Revision;
use presence_core::directory::Directory;
use presence_rules::loader::Loader;
use presence_sandbox::Latency;
use serde_json::Value;
use tokio::sync::watch;

use crate::candidate::report::ShadowRun;
use crate::clock;
use crate::directory;
use crate::directory::request::AnswerFetcher;
use crate::fleet::Fleet;
use crate::link::alerts::Alerts;
use crate::link::broker::{BrokerHealth, Permission};
use crate::link::reply_guard::ReplyGuard;
use crate::ops::recent_dead_letters::RecentDeadLetters;
use crate::pool::{Pool, Shards};
use crate::reload::on_disk::OnDisk;
use crate::state;
use crate::store;
use crate::store::page::PageStore;
use crate::tasks::Tasks;
use crate::telemetry::{self, Telemetry};
use crate::tenant::ask::{QueryService, QuestionCounts};
use crate::tenant::quotas::ExceededLog;
use crate::tenant::stream_intake::StreamHealth;
use crate::tenant::{RunningPipelines, Tenant};
use page::Pages;

pub(crate) use metrics::{Account as AccountFigures, Exposition};
#[cfg(feature = "otlp")]
pub(crate) use metrics::{Metric, MetricKind, Sample, Value as MetricValue};
pub(crate) use tenants::{SharedAccount, TenantPhase, TenantStatuses, serve as serve_tenants};

/// The state of a running node or tenant, as the endpoints report it.
pub(crate) struct Status {
    pub(crate) broker: Arc<BrokerHealth>,
    pool: Pool,
    shards: Shards,
    running: watch::Receiver<RunningPipelines>,
    state: Option<Arc<state::WriterFigures>>,
    fetcher: Option<Arc<AnswerFetcher>>,
    directory: Arc<directory::DirectoryHealth>,
    known_directory: watch::Receiver<Arc<Directory>>,
    replies: Arc<ReplyGuard>,
    loader: Arc<Loader>,
    /// Whether the subscriptions are in place and nothing is being stopped.
    pub(crate) ready: AtomicBool,
    pub(crate) refused_swaps: AtomicU64,
    /// Files on disk whose content is not in force.
    pub(crate) on_disk: OnDisk,
    /// The state of following the plugin store. `None` if the pipeline comes from the folder.
    pub(crate) store: Option<Arc<store::state::StoreState>>,
    /// The last shadow.
    pub(crate) shadow: Mutex<Option<ShadowRun>>,
    /// Counts of the results of questions.
    pub(crate) asked: Arc<QuestionCounts>,
    /// Answers questions, once the node serves.
    pub(crate) questions: OnceLock<Arc<QueryService>>,
    /// The plugin store for the page, once the node serves and if it follows one.
    pub(crate) page_store: OnceLock<Arc<PageStore>>,
    /// The last alerts.
    alerts: Alerts,
    /// How long messages take from their arrival to the publication.
    publish_latency: Arc<Latency>,
    dead_letters: Arc<RecentDeadLetters>,
    /// What the tenant's quotas have refused.
    exceeded: Arc<ExceededLog>,
    explains: Arc<AtomicBool>,
    /// The fleet that the node belongs to. `None` if it serves alone.
    fleet: Option<Arc<Fleet>>,
    /// The stream that connects and disconnects are read from, if one is configured.
    input_stream: Option<Arc<StreamHealth>>,
}

/// The facts about a node that are known from its start.
pub(crate) struct NodeDescription {
    node: String,
    /// The path of the configuration file. `None` if there is none and the defaults hold.
    configuration: Option<PathBuf>,
    servers: String,
    /// The directory's source, in words.
    directory: String,
    prefix: Option<String>,
    started_ms: u64,
    telemetry: Arc<telemetry::Figures>,
}

impl NodeDescription {
    /// `configuration`: the path of the file that the configuration was read from.
    pub(crate) fn new(
        config: &Config,
        configuration: Option<PathBuf>,
        telemetry: &Telemetry,
    ) -> Self {
        Self {
            node: config.node.name.clone(),
            configuration,
            servers: config.nats.servers(),
            directory: config.directory.describe(),
            prefix: config.tenant.prefix.clone(),
            started_ms: clock::now_ms(),
            telemetry: Arc::clone(&telemetry.figures),
        }
    }
}

/// The first reason why a node doesn't serve.
const STARTING: &str = "starting";

/// What the endpoints report of a node or tenant, also while it can't serve yet.
pub(crate) struct StatusBoard {
    broker: Arc<BrokerHealth>,
    about: NodeDescription,
    /// Why the node doesn't serve yet.
    waits: Mutex<String>,
    /// Whether it waits because another node serves.
    waits_for_other_node: AtomicBool,
    /// When it had asked for all of its subscriptions, by the host's clock.
    subscribed_at: OnceLock<u64>,
    status: OnceLock<Arc<Status>>,
}

impl StatusBoard {
    /// The board of a node that has just started.
    pub(crate) fn new(broker: Arc<BrokerHealth>, about: NodeDescription) -> Self {
        Self {
            broker,
            about,
            waits: Mutex::new(STARTING.into()),
            waits_for_other_node: AtomicBool::new(false),
            subscribed_at: OnceLock::new(),
            status: OnceLock::new(),
        }
    }

    /// Notes why the node can't serve yet. Each new reason is logged.
    pub(crate) fn set_wait_reason(&self, why: String) {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        if *waits != why {
            tracing::warn!("{why}");
            *waits = why;
        }
    }

    /// Notes whether this node waits because another one serves.
    pub(crate) fn set_waits_for_other_node(&self, waits_for_other_node: bool) {
        self.waits_for_other_node
            .store(waits_for_other_node, Ordering::Relaxed);
    }

    /// The node is about to serve: reports this status from now on.
    pub(crate) fn set_status(&self, status: Arc<Status>) {
        // It is set only once.
        let _ = self.status.set(status);
    }

    /// All metrics.
    pub(crate) fn metrics(&self) -> Exposition {
        metrics::all(self)
    }

    /// The tenant has asked for all of its subscriptions.
    pub(crate) fn note_subscribed(&self) {
        // It is set only once.
        let _ = self.subscribed_at.set(clock::now_ms());
    }

    /// Whether the broker is known to have the tenant's subscriptions.
    pub(crate) fn is_subscribed(&self) -> bool {
        let subscribed_at = self.subscribed_at.get();
        subscribed_at.is_some_and(|at| self.broker.has_subscriptions_since(*at))
    }

    /// The permissions that the tenant needs and the broker denies, each with how long that has
    /// lasted, in milliseconds.
    fn forbidden(&self) -> Vec<(Permission, u64)> {
        let prefix = self.about.prefix.as_deref();
        self.broker.permissions.forbidden_to(prefix)
    }

    /// The node's status, as JSON.
    pub(crate) fn describe(&self) -> Value {
        status::of(self)
    }

    /// The revision of the plugin store that is in force.
    pub(crate) fn revision(&self) -> Option<Arc<Revision>> {
        self.status.get()?.store.as_ref()?.in_force()
    }

    /// The reports on the canary or shadow, with examples.
    pub(crate) fn reports(&self) -> Value {
        self.status
            .get()
            .map(|it| status::reports(it))
            .unwrap_or_default()
    }

    fn waits(&self) -> String {
        let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        waits.clone()
    }
}

impl Status {
    /// How many decisions have failed or wait for the directory, and will be made again.
    fn pending(&self) -> u64 {
        self.shards.total(|figures| &figures.pending)
    }

    /// For how long the oldest pending decision has waited, in milliseconds.
    fn oldest_pending_ms(&self) -> Option<u64> {
        let since = self.shards.iter().filter_map(|shard| {
            let since = shard.figures.pending_since.load(Ordering::Relaxed);
            (since != 0).then_some(since)
        });
        since.min().map(|at| clock::now_ms().saturating_sub(at))
    }

    /// The status of a node that is not ready yet.
    pub(crate) fn new(
        broker: Arc<BrokerHealth>,
        tenant: &Tenant,
        loader: &Arc<Loader>,
        store: Option<Arc<store::state::StoreState>>,
        alerts: Alerts,
    ) -> Self {
        Self {
            store,
            alerts,
            broker,
            pool: tenant.pool.clone(),
            shards: tenant.shards.clone(),
            running: tenant.running.subscribe(),
            fetcher: tenant.fetcher.clone(),
            directory: Arc::clone(&tenant.health),
            known_directory: tenant.known_directory.subscribe(),
            replies: Arc::clone(&tenant.replies),
            loader: Arc::clone(loader),
            state: tenant
                .state
                .as_ref()
                .map(|state| Arc::clone(&state.figures)),
            ready: AtomicBool::new(false),
            refused_swaps: AtomicU64::new(0),
            on_disk: OnDisk::default(),
            shadow: Mutex::default(),
            asked: Arc::default(),
            questions: OnceLock::new(),
            page_store: OnceLock::new(),
            publish_latency: Arc::clone(&tenant.publish_latency),
            dead_letters: Arc::clone(&tenant.dead_letters),
            exceeded: Arc::clone(&tenant.exceeded),
            explains: Arc::clone(&tenant.explains),
            fleet: tenant.fleet.clone(),
            input_stream: tenant.input_stream.clone(),
        }
    }

    /// Notes a shadow that has begun.
    pub(crate) fn show_shadow(&self, shadow: ShadowRun) {
        let mut shown = self.shadow.lock().unwrap_or_else(PoisonError::into_inner);
        *shown = Some(shadow);
    }

    /// For how long the state or the directory's copy can't be written, and why. `None` if both
    /// can.
    fn unwritten(&self) -> Option<(Duration, String)> {
        let state = self.state.as_ref().and_then(|state| state.disk.outage());
        state.or_else(|| self.directory.copy.outage())
    }

    /// Whether `presence.explain` is turned on.
    fn explains(&self) -> bool {
        self.explains.load(Ordering::Relaxed)
    }

    /// Whether the node can't decide about any user, so that nobody is visible.
    pub(crate) fn is_closed(&self) -> bool {
        readiness::is_closed(self)
    }

    /// Whether the node takes in messages.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }
}

/// Serves the endpoints in the background.
pub(crate) fn serve(config: &Config, board: Arc<StatusBoard>, tasks: &Tasks) -> anyhow::Result<()> {
    let Some((address, listener)) = bind(config)? else {
        return Ok(());
    };
    let pages = Pages::of_node(config, Arc::clone(&board));
    let routes = Router::new()
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics::metrics))
        .route("/status", get(serve_status))
        .with_state(board)
        .merge(page::routes(Arc::clone(&pages)));
    tracing::info!(%address, "serving the page, /metrics, /healthz, /readyz and /status");
    listen::serve(listener, routes, pages.refresh_forever(), tasks)
}

/// Binds the configured address. `None` if there is none, or if the default one can't be bound.
fn bind(config: &Config) -> anyhow::Result<Option<(SocketAddr, TcpListener)>> {
    let http = &config.http;
    let Some(address) = http.listen else {
        return Ok(None);
    };
    match TcpListener::bind(address) {
        Ok(listener) => Ok(Some((address, listener))),
        Err(error) if http.listen_is_default => {
            tracing::warn!(
                %address,
                %error,
                "no page, /metrics, /healthz, /readyz and /status, since the default address can't be \
                 listened on: set [http] listen to another one"
            );
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| {
            format!(
                "can't listen on {address}, as [http] listen says (set it to a free address, \
                 or to \"\" for none)"
            )
        }),
    }
}

/// `/healthz`: whether the threads get on with their work. Without a broker that isn't checked:
/// they may rightly wait for room for their output.
async fn health(State(board): State<Arc<StatusBoard>>) -> (StatusCode, String) {
    let stuck = board.status.get().map(|status| readiness::stuck(status));
    answer(stuck.unwrap_or_default(), "ok\n")
}

/// `/readyz`: whether the node does its work, with notes about it; or all reasons why not, one per
/// line.
async fn ready(State(board): State<Arc<StatusBoard>>) -> (StatusCode, String) {
    let (code, mut text) = answer(readiness::reasons(&board), "ready\n");
    if let (StatusCode::OK, Some(status)) = (code, board.status.get()) {
        let notes = readiness::notes(status).into_iter();
        text.extend(notes.map(|note| format!("{}\n", Line(note))));
    }
    (code, text)
}

fn answer(reasons: Vec<String>, well: &str) -> (StatusCode, String) {
    if reasons.is_empty() {
        return (StatusCode::OK, well.to_owned());
    }
    let lines = reasons.iter().map(|reason| format!("{}\n", Line(reason)));
    (StatusCode::SERVICE_UNAVAILABLE, lines.collect())
}

/// The status as JSON, for `presence status`. Only requests to an address are answered: a web page
/// whose own name resolves to this host (DNS rebinding) learns nothing.
async fn serve_status(State(board): State<Arc<StatusBoard>>, request: Request) -> Response {
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !is_address(host) {
        return not_by_address();
    }
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, status::of(&board).to_string()).into_response()
}

fn not_by_address() -> Response {
    let refusal = "ask by an address, such as 127.0.0.1, or as localhost\n";
    (StatusCode::FORBIDDEN, refusal).into_response()
}

/// Whether a `Host` header is an address or `localhost`, with or without a port.
fn is_address(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name.eq_ignore_ascii_case("localhost")
        || host.parse::<SocketAddr>().is_ok()
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_no_names() {
        for host in [
            "127.0.0.1:18520",
            "10.1.2.3",
            "[::1]:18520",
            "[::1]",
            "localhost:1",
        ] {
            assert!(is_address(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:18520",
            "127.0.0.1.evil.example",
        ] {
            assert!(!is_address(host), "{host}");
        }
    }
}
