//! Health and counters over HTTP, on loopback.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use presence_core::message::{Cause, Kind};
use tokio::sync::watch;

use crate::ask::Counts;
use crate::broker::Health;
use crate::config::Http;
use crate::directory::request::Fetcher;
use crate::state;
use crate::tenant::{Running, Tenant};
use crate::worker::{Figures, Worker, Workers};

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
    /// Whether the subscriptions are in place and nothing is being stopped.
    pub(crate) ready: AtomicBool,
    pub(crate) refused_swaps: AtomicU64,
    /// What became of what was asked.
    pub(crate) asked: Arc<Counts>,
}

impl Status {
    /// Of a node that is not ready yet.
    pub(crate) fn new(broker: Arc<Health>, tenant: &Tenant) -> Self {
        Self {
            broker,
            workers: tenant.workers.clone(),
            running: tenant.running.subscribe(),
            fetcher: tenant.fetcher.clone(),
            state: tenant
                .state
                .as_ref()
                .map(|state| Arc::clone(&state.figures)),
            ready: AtomicBool::new(false),
            refused_swaps: AtomicU64::new(0),
            asked: Arc::default(),
        }
    }

    /// Whether the node takes input.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }
}

/// Serves the endpoints in the background.
pub(crate) async fn serve(http: &Http, status: Arc<Status>) -> anyhow::Result<()> {
    let Some(address) = http.listen else {
        return Ok(());
    };
    let listener = match tokio::net::TcpListener::bind(address).await {
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
        .route("/metrics", get(metrics))
        .with_state(status);
    tracing::info!(%address, "serving /metrics, /healthz and /readyz");
    tokio::spawn(async move { axum::serve(listener, routes).await });
    Ok(())
}

/// Whether the workers get on with their work. Without a broker they may well
/// wait, for want of room for what they publish.
async fn health(State(status): State<Arc<Status>>) -> (StatusCode, &'static str) {
    let is_stuck = |worker: &Worker| worker.figures.busy_ms() > STUCK_MS;
    if status.broker.connected.load(Ordering::Relaxed) && status.workers.iter().any(is_stuck) {
        (StatusCode::SERVICE_UNAVAILABLE, "a worker is stuck\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}

async fn ready(State(status): State<Arc<Status>>) -> (StatusCode, &'static str) {
    if !status.broker.connected.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "not connected to NATS\n")
    } else if status.broker.forbidden.load(Ordering::Relaxed) {
        let what = "NATS forbids a subscription: see the log\n";
        (StatusCode::SERVICE_UNAVAILABLE, what)
    } else if !status.is_ready() {
        (StatusCode::SERVICE_UNAVAILABLE, "starting or stopping\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}

async fn metrics(State(status): State<Arc<Status>>) -> String {
    let mut text = String::new();
    let running = status.running.borrow().clone();
    let counters: Vec<_> = status
        .workers
        .iter()
        .map(|worker| {
            *worker
                .figures
                .counters
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        })
        .collect();
    let sum = |of: fn(&presence_core::Counters) -> u64| counters.iter().map(of).sum::<u64>();
    let total = |of: fn(&Figures) -> &AtomicU64| {
        status
            .workers
            .iter()
            .map(|worker| of(&worker.figures).load(Ordering::Relaxed))
            .sum::<u64>()
    };
    head(
        &mut text,
        "presence_inputs_total",
        "counter",
        "Well-formed messages taken in.",
    );
    for (kind, label) in
        Kind::ALL
            .iter()
            .zip(["connect", "disconnect", "heartbeat", "online", "offline"])
    {
        let count: u64 = counters
            .iter()
            .filter_map(|c| c.taken.get(*kind as usize))
            .sum();
        let _ = writeln!(text, "presence_inputs_total{{kind=\"{label}\"}} {count}");
    }
    head(
        &mut text,
        "presence_dead_letters_total",
        "counter",
        "Dead letters, by reason.",
    );
    for cause in Cause::ALL {
        let count: u64 = counters
            .iter()
            .filter_map(|c| c.dead_letters.get(cause as usize))
            .sum();
        let _ = writeln!(
            text,
            "presence_dead_letters_total{{reason=\"{}\"}} {count}",
            cause.as_str()
        );
    }
    let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
    for (name, kind, help, value) in [
        (
            "presence_stale_inputs_total",
            "counter",
            "Messages older than what is known.",
            sum(|c| c.stale),
        ),
        (
            "presence_unknown_reasons_total",
            "counter",
            "Reasons that are not known.",
            sum(|c| c.unknown_reasons),
        ),
        (
            "presence_unknown_statuses_total",
            "counter",
            "Activities and statuses that are not understood.",
            sum(|c| c.unknown_statuses),
        ),
        (
            "presence_decisions_total",
            "counter",
            "Decisions made by components.",
            sum(|c| c.decided),
        ),
        (
            "presence_verdicts_reused_total",
            "counter",
            "Decisions reused.",
            sum(|c| c.reused),
        ),
        (
            "presence_plugin_failures_total",
            "counter",
            "Failed calls of components.",
            sum(|c| c.failures),
        ),
        (
            "presence_corrections_total",
            "counter",
            "Viewers who lost sight of an online user.",
            sum(|c| c.corrected),
        ),
        (
            "presence_correction_messages_total",
            "counter",
            "Messages that went out when users were decided on again.",
            sum(|c| c.corrections),
        ),
        (
            "presence_correction_backlog_users",
            "gauge",
            "Users still to be decided on again, since what decides has changed.",
            total(|w| &w.backlog),
        ),
        (
            "presence_queried_users_total",
            "counter",
            "Users whom viewers asked after.",
            sum(|c| c.queried),
        ),
        (
            "presence_published_total",
            "counter",
            "Messages published.",
            total(|w| &w.published),
        ),
        (
            "presence_online_users",
            "gauge",
            "Users online.",
            total(|w| &w.online_users),
        ),
        (
            "presence_connections",
            "gauge",
            "Live connections.",
            total(|w| &w.connections),
        ),
        (
            "presence_nats_connects_total",
            "counter",
            "Connections made to NATS.",
            read(&status.broker.connects),
        ),
        (
            "presence_slow_consumer_drops_total",
            "counter",
            "Inputs dropped for want of room.",
            read(&status.broker.drops),
        ),
        (
            "presence_nats_errors_total",
            "counter",
            "Errors the NATS client reported.",
            read(&status.broker.errors),
        ),
        (
            "presence_pipeline_generation",
            "gauge",
            "The pipeline in force, counted from 1.",
            running.generation,
        ),
        (
            "presence_pipeline_refusals_total",
            "counter",
            "Pipelines refused.",
            read(&status.refused_swaps),
        ),
    ] {
        head(&mut text, name, kind, help);
        let _ = writeln!(text, "{name} {value}");
    }
    head(
        &mut text,
        "presence_questions_total",
        "counter",
        "What was asked, by what became of it; ignored is what had no reply subject.",
    );
    let asked = &status.asked;
    for (outcome, count) in [
        ("answered", &asked.answered),
        ("refused", &asked.refused),
        ("ignored", &asked.ignored),
    ] {
        let count = read(count);
        let _ = writeln!(
            text,
            "presence_questions_total{{outcome=\"{outcome}\"}} {count}"
        );
    }
    head(
        &mut text,
        "presence_plugin_quarantined",
        "gauge",
        "Workers in which the plugin is in quarantine, since it failed again and again.",
    );
    for stage in running.blueprint.stages() {
        let (plugin, quarantined) = (&stage.plugin.name, stage.health.in_quarantine());
        let _ = writeln!(
            text,
            "presence_plugin_quarantined{{plugin=\"{plugin}\"}} {quarantined}"
        );
    }
    if let Some(fetcher) = &status.fetcher {
        directory(&mut text, fetcher);
    }
    if let Some(state) = &status.state {
        for (name, kind, help, value) in [
            (
                "presence_state_restored_users",
                "gauge",
                "Users who were online when the node last ran.",
                read(&state.restored_users),
            ),
            (
                "presence_state_records_total",
                "counter",
                "Records written to the state.",
                read(&state.records),
            ),
            (
                "presence_state_bytes",
                "gauge",
                "How large the state is on the disk.",
                read(&state.bytes),
            ),
            (
                "presence_state_lag_milliseconds",
                "gauge",
                "For how long what is being written has waited for it; 0 if nothing is.",
                state.lag_ms(),
            ),
        ] {
            head(&mut text, name, kind, help);
            let _ = writeln!(text, "{name} {value}");
        }
    }
    text
}

/// What became of asking the directory's service.
fn directory(text: &mut String, fetcher: &Fetcher) {
    let counts = &fetcher.counts;
    let requests = "presence_directory_requests_total";
    let help =
        "Requests to the directory's service; refused is what got no answer that can be read.";
    head(text, requests, "counter", help);
    for (outcome, count) in [
        ("answered", &counts.answered),
        ("refused", &counts.refused),
        ("unanswered", &counts.unanswered),
    ] {
        let count = count.load(Ordering::Relaxed);
        let _ = writeln!(text, "{requests}{{outcome=\"{outcome}\"}} {count}");
    }
    let invalidations = "presence_directory_invalidations_total";
    let help = "What the directory's service said has changed; refused is what can't be read.";
    head(text, invalidations, "counter", help);
    for (outcome, count) in [
        ("taken", &counts.invalidations),
        ("refused", &counts.bad_invalidations),
    ] {
        let count = count.load(Ordering::Relaxed);
        let _ = writeln!(text, "{invalidations}{{outcome=\"{outcome}\"}} {count}");
    }
    let (held, wanted, is_away) = fetcher.figures();
    for (name, help, value) in [
        (
            "presence_directory_answers",
            "Answers at hand.",
            held as u64,
        ),
        (
            "presence_directory_answers_wanted",
            "Answers asked for that are not at hand.",
            wanted as u64,
        ),
        (
            "presence_directory_away",
            "Whether the directory's service does not answer.",
            is_away.into(),
        ),
    ] {
        head(text, name, "gauge", help);
        let _ = writeln!(text, "{name} {value}");
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}
