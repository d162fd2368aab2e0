//! Health and counters over HTTP, on loopback.

mod listen;
mod metrics;

use std::borrow::Cow;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::sync::watch;

use crate::ask::Counts;
use crate::broker::Health;
use crate::config::Http;
use crate::directory;
use crate::directory::request::Fetcher;
use crate::loader::Loader;
use crate::reply::Replies;
use crate::state;
use crate::tasks::Tasks;
use crate::tenant::{Running, Tenant};
use crate::worker::{Worker, Workers};

/// How long a worker may be at one task, in milliseconds, before it is taken for
/// stuck. A call of a component takes no longer than its deadline.
const STUCK_MS: u64 = 10_000;

/// What the endpoints tell of.
pub(crate) struct Status {
    pub(crate) broker: Arc<Health>,
    workers: Workers,
    running: watch::Receiver<Running>,
    state: Option<Arc<state::Figures>>,
    fetcher: Option<Arc<Fetcher>>,
    directory: Arc<directory::Health>,
    replies: Arc<Replies>,
    loader: Arc<Loader>,
    /// Whether the subscriptions are in place and nothing is being stopped.
    pub(crate) ready: AtomicBool,
    pub(crate) refused_swaps: AtomicU64,
    /// What became of what was asked.
    pub(crate) asked: Arc<Counts>,
}

/// What is told of the node from its beginning on, also while it can't serve yet.
pub(crate) struct Board {
    broker: Arc<Health>,
    /// Why it doesn't serve yet.
    waits: Mutex<String>,
    status: OnceLock<Arc<Status>>,
}

impl Board {
    /// Of a node that has just started.
    pub(crate) fn new(broker: Arc<Health>) -> Self {
        Self {
            broker,
            waits: Mutex::new("starting".into()),
            status: OnceLock::new(),
        }
    }

    /// The node can't serve yet. The log is told of each new reason.
    pub(crate) fn wait_for(&self, why: String) {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        if *waits != why {
            tracing::warn!("{why}");
            *waits = why;
        }
    }

    /// The node is about to serve, and tells of itself from now on.
    pub(crate) fn show(&self, status: Arc<Status>) {
        // It does so once.
        let _ = self.status.set(status);
    }

    fn waits(&self) -> String {
        let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        format!("{waits}\n")
    }
}

impl Status {
    /// Of a node that is not ready yet.
    pub(crate) fn new(broker: Arc<Health>, tenant: &Tenant, loader: &Arc<Loader>) -> Self {
        Self {
            broker,
            workers: tenant.workers.clone(),
            running: tenant.running.subscribe(),
            fetcher: tenant.fetcher.clone(),
            directory: Arc::clone(&tenant.health),
            replies: Arc::clone(&tenant.replies),
            loader: Arc::clone(loader),
            state: tenant
                .state
                .as_ref()
                .map(|state| Arc::clone(&state.figures)),
            ready: AtomicBool::new(false),
            refused_swaps: AtomicU64::new(0),
            asked: Arc::default(),
        }
    }

    /// For how long what is to outlive a restart can't be written, and why; none where it
    /// can.
    fn unwritten(&self) -> Option<(Duration, String)> {
        let state = self.state.as_ref().and_then(|state| state.disk.outage());
        state.or_else(|| self.directory.copy.outage())
    }

    /// Whether the node takes input.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }
}

/// Serves the endpoints in the background.
pub(crate) fn serve(http: &Http, board: Arc<Board>, tasks: &Tasks) -> anyhow::Result<()> {
    let Some(address) = http.listen else {
        return Ok(());
    };
    let listener = match TcpListener::bind(address) {
        Ok(listener) => listener,
        Err(error) if http.listen_is_default => {
            tracing::warn!(%address, %error, "no /metrics and /healthz: set [http] listen");
            return Ok(());
        }
        Err(error) => {
            return Err(error).with_context(|| format!("[http] listen: can't listen on {address}"));
        }
    };
    let routes = Router::new()
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics::metrics))
        .with_state(board);
    tracing::info!(%address, "serving /metrics, /healthz and /readyz");
    listen::serve(listener, routes, tasks)
}

/// Whether the workers get on with their work. Without a broker they may well
/// wait, for want of room for what they publish.
async fn health(State(board): State<Arc<Board>>) -> (StatusCode, &'static str) {
    let Some(status) = board.status.get() else {
        return (StatusCode::OK, "ok\n");
    };
    let is_stuck = |worker: &Worker| worker.figures.busy_ms() > STUCK_MS;
    if status.broker.connected.load(Ordering::Relaxed) && status.workers.iter().any(is_stuck) {
        (StatusCode::SERVICE_UNAVAILABLE, "a worker is stuck\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}

async fn ready(State(board): State<Arc<Board>>) -> (StatusCode, Cow<'static, str>) {
    let Some(status) = board.status.get() else {
        let away = board.broker.disconnected();
        let what = away.map_or_else(|| board.waits(), |why| format!("{why}\n"));
        return (StatusCode::SERVICE_UNAVAILABLE, what.into());
    };
    if let Some(why) = status.broker.disconnected() {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n").into())
    } else if status.broker.forbidden.load(Ordering::Relaxed) {
        let what = "NATS forbids a subscription: see the log\n";
        (StatusCode::SERVICE_UNAVAILABLE, what.into())
    } else if !status.is_ready() {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "starting or stopping\n".into(),
        )
    } else if !status.broker.hears() {
        let what = "NATS is not known to have the node's subscriptions yet\n";
        (StatusCode::SERVICE_UNAVAILABLE, what.into())
    } else if let Some(silent_ms) = status.broker.silence() {
        let what = format!("nothing heard from NATS for {} s\n", silent_ms / 1_000);
        (StatusCode::SERVICE_UNAVAILABLE, what.into())
    } else if let Some((since, why)) = status.directory.outage() {
        let seconds = since.as_secs();
        let what = format!("the directory is unavailable since {seconds} s: {why}\n");
        (StatusCode::SERVICE_UNAVAILABLE, what.into())
    } else if let Some((since, why)) = status.fetcher.as_ref().and_then(|it| it.outage()) {
        let seconds = since.as_secs();
        let what = format!("the directory's service doesn't answer since {seconds} s: {why}\n");
        (StatusCode::SERVICE_UNAVAILABLE, what.into())
    } else if let Some((since, why)) = status.unwritten() {
        let seconds = since.as_secs();
        let what = format!("the state can't be written since {seconds} s: {why}\n");
        (StatusCode::SERVICE_UNAVAILABLE, what.into())
    } else {
        (StatusCode::OK, "ready\n".into())
    }
}
