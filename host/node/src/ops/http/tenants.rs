//! The endpoints of a process that serves several tenants. They report for each tenant what a
//! process with a single tenant reports.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use presence_config::escape::cut;
use presence_config::{Config, TenantSection};
use serde_json::{Value, json};

use super::metrics::{self, Exposition};
use super::page::{self, Pages};
use super::{STARTING, StatusBoard, answer, is_address, listen, readiness, status};
use crate::clock;
use crate::link::broker::BrokerHealth;
use crate::tasks::Tasks;
use crate::telemetry::{self, Telemetry};

/// The phase of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TenantPhase {
    /// The tenant was started; its board says more.
    Begun,
    /// The configuration says not to serve the tenant.
    Paused,
    /// The tenant can't be served, for this reason.
    Refused(String),
}

/// The tenants of a process, by name.
pub(crate) struct TenantStatuses {
    node: String,
    configuration: Option<PathBuf>,
    started_ms: u64,
    telemetry: Arc<telemetry::Figures>,
    each: Mutex<BTreeMap<String, TenantEntry>>,
    /// Why the configuration file is not in force; empty if it is.
    refused: Mutex<String>,
    /// Whether the process was ready once: all tenants of its start had been started.
    is_begun: AtomicBool,
    /// The NATS accounts that tenants share.
    shared: Vec<SharedAccount>,
}

/// Returns the current state of a shared account.
pub(crate) type SharedAccount = Box<dyn Fn() -> metrics::Account + Send + Sync>;

/// What the endpoints report of a tenant.
#[derive(Clone)]
struct TenantEntry {
    prefix: Option<String>,
    own_account: bool,
    phase: TenantPhase,
    /// Why the current content of the tenant's section is not in force; empty if it is.
    rejected_config: String,
    board: Option<Arc<StatusBoard>>,
    /// Whether a change of the tenant has been ordered and isn't done yet.
    is_changing: bool,
}

impl TenantEntry {
    /// The tenant's state in a word, and the reasons for it.
    fn state(&self) -> (&'static str, Vec<String>) {
        match (&self.phase, &self.board) {
            (TenantPhase::Paused, _) => ("paused", Vec::new()),
            (TenantPhase::Refused(why), _) => ("refused", why.lines().map(str::to_owned).collect()),
            (TenantPhase::Begun, None) => ("starting", Vec::new()),
            (TenantPhase::Begun, Some(board)) => {
                let reasons = readiness::reasons(board).into_iter();
                let reasons: Vec<_> = reasons.map(|it| cut(&it).into_owned()).collect();
                let is_serving = board.status.get().is_some_and(|it| it.is_ready());
                match (is_serving, reasons.is_empty()) {
                    (true, true) => ("serving", reasons),
                    (true, false) => ("impaired", reasons),
                    (false, _) if board.waits_for_other_node.load(Ordering::Relaxed) => {
                        ("waiting", reasons)
                    }
                    (false, _) => ("starting", reasons),
                }
            }
        }
    }
}

impl TenantEntry {
    /// Whether the tenant's problems last until somebody changes something.
    fn needs_intervention(&self) -> bool {
        let board = self.board.as_ref();
        self.phase == TenantPhase::Begun
            && board.is_some_and(|it| readiness::needs_intervention(it))
    }

    /// Whether the tenant is starting, and waits for nothing but its own start.
    fn is_about_to_serve(&self) -> bool {
        let Some(board) = &self.board else {
            return self.phase == TenantPhase::Begun;
        };
        // The process needn't wait for a tenant whose broker is away.
        if board.broker.is_away() {
            return false;
        }
        let status = board.status.get();
        let serves = status.is_some_and(|it| it.is_ready()) && board.is_subscribed();
        self.phase == TenantPhase::Begun && !serves && board.waits() == STARTING
    }
}

/// The words for the states of a tenant.
const STATES: [&str; 6] = [
    "starting", "waiting", "serving", "impaired", "paused", "refused",
];

impl TenantStatuses {
    /// The tenants of a process that has just started: none yet.
    pub(crate) fn new(
        config: &Config,
        configuration: Option<PathBuf>,
        telemetry: &Telemetry,
        shared: Vec<SharedAccount>,
    ) -> Self {
        Self {
            shared,
            node: config.node.name.clone(),
            configuration,
            started_ms: clock::now_ms(),
            telemetry: Arc::clone(&telemetry.figures),
            each: Mutex::default(),
            refused: Mutex::default(),
            is_begun: AtomicBool::new(false),
        }
    }

    fn each(&self) -> MutexGuard<'_, BTreeMap<String, TenantEntry>> {
        self.each.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the content of a tenant's section.
    pub(crate) fn note_section(&self, name: &str, section: &TenantSection) {
        let config = section.config.as_ref().ok();
        let prefix = config.and_then(|it| it.tenant.prefix.clone());
        let mut each = self.each();
        let entry = each.entry(name.to_owned()).or_insert_with(|| TenantEntry {
            prefix: None,
            own_account: false,
            phase: TenantPhase::Begun,
            rejected_config: String::new(),
            board: None,
            is_changing: false,
        });
        if config.is_some() {
            (entry.prefix, entry.own_account) = (prefix, section.own_account);
            entry.rejected_config.clear();
        }
    }

    /// Notes why the current content of a tenant's section is not in force. Returns whether that is
    /// news.
    pub(crate) fn reject_config(&self, name: &str, why: &str) -> bool {
        let mut each = self.each();
        let Some(entry) = each.get_mut(name) else {
            return false;
        };
        let is_news = entry.rejected_config != why;
        entry.rejected_config = why.to_owned();
        is_news
    }

    /// Notes the phase of a tenant.
    pub(crate) fn set_phase(
        &self,
        name: &str,
        phase: TenantPhase,
        board: Option<Arc<StatusBoard>>,
    ) {
        if let Some(entry) = self.each().get_mut(name) {
            (entry.phase, entry.board) = (phase, board);
            entry.is_changing = false;
        }
    }

    /// Notes why a tenant can't be served. Returns whether that is news.
    pub(crate) fn note_refused(&self, name: &str, why: &str) -> bool {
        let mut each = self.each();
        let Some(entry) = each.get_mut(name) else {
            return false;
        };
        let before = std::mem::replace(&mut entry.phase, TenantPhase::Refused(why.to_owned()));
        before != entry.phase
    }

    /// Notes whether a change of a tenant has been ordered and isn't done yet.
    pub(crate) fn set_changing(&self, name: &str, is_changing: bool) {
        if let Some(entry) = self.each().get_mut(name) {
            entry.is_changing = is_changing;
        }
    }

    /// Forgets the tenants that are not wanted any more.
    pub(crate) fn retain(&self, is_wanted: impl Fn(&str) -> bool) {
        self.each().retain(|name, _| is_wanted(name));
    }

    /// Notes why the configuration file is not in force; empty if it is.
    pub(crate) fn set_file_refused(&self, why: &str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        why.clone_into(&mut refused);
    }

    fn all(&self) -> Vec<(String, TenantEntry)> {
        let each = self.each();
        let each = each.iter();
        each.map(|(name, entry)| (name.clone(), entry.clone()))
            .collect()
    }

    /// A tenant's state, as JSON. `None` if no tenant has this name.
    pub(crate) fn state(&self, name: &str) -> Option<Value> {
        let entry = self.one(name)?;
        let (state, reasons) = entry.state();
        Some(json!({
            "tenant": name,
            "changing": entry.is_changing,
            "state": state,
            "reasons": reasons,
            "lasts": entry.needs_intervention(),
            "notTaken": (!entry.rejected_config.is_empty()).then_some(&entry.rejected_config),
        }))
    }

    /// The names of all nodes of the fleets that the tenants belong to.
    pub(crate) fn fleet_nodes(&self) -> BTreeSet<String> {
        let mut nodes = BTreeSet::new();
        for (_, entry) in self.all() {
            let status = entry.board.as_ref().and_then(|board| board.status.get());
            let fleet = status.and_then(|status| status.fleet.as_ref());
            let of_fleet = fleet.map(|fleet| fleet.nodes());
            nodes.extend(
                of_fleet
                    .iter()
                    .flat_map(|it| it.iter())
                    .map(ToString::to_string),
            );
        }
        nodes
    }

    fn one(&self, name: &str) -> Option<TenantEntry> {
        self.each().get(name).cloned()
    }

    /// The status board of a tenant. `None` if the tenant isn't started.
    pub(super) fn board(&self, name: &str) -> Option<Arc<StatusBoard>> {
        self.one(name)?.board
    }

    /// The first tenant by name.
    pub(super) fn first(&self) -> Option<String> {
        self.each().keys().next().cloned()
    }

    /// The name and the state of each tenant.
    pub(super) fn names_and_states(&self) -> Vec<(String, &'static str)> {
        let all = self.all().into_iter();
        all.map(|(name, entry)| (name, entry.state().0)).collect()
    }

    /// A tenant's status, in the form of a node with this tenant alone.
    pub(super) fn describe_one(&self, name: &str) -> Value {
        let Some(entry) = self.one(name) else {
            let why = format!("this node has no tenant `{name}`");
            return self.idle("unknown", name, vec![why]);
        };
        let (state, reasons) = entry.state();
        let mut about = match &entry.board {
            Some(board) => status::of(board),
            None => self.idle(state, name, reasons),
        };
        if let Some(about) = about.as_object_mut() {
            let rejected_config =
                (!entry.rejected_config.is_empty()).then_some(&entry.rejected_config);
            about.insert(
                "tenant".to_owned(),
                json!({"name": name, "state": state, "notTaken": rejected_config}),
            );
        }
        about
    }

    /// The status of a tenant that isn't started.
    fn idle(&self, state: &str, name: &str, reasons: Vec<String>) -> Value {
        json!({
            "node": self.node,
            "version": env!("CARGO_PKG_VERSION"),
            "process": std::process::id(),
            "startedAt": self.started_ms,
            "configuration": self.configuration,
            "ready": false,
            "reasons": reasons,
            "nats": null,
            "serving": null,
            "tenant": {"name": name, "state": state, "notTaken": null},
        })
    }

    /// The status of the process.
    fn describe(&self) -> Value {
        let all = self.all();
        let refused = {
            let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            refused.clone()
        };
        let tenants = all.iter().map(|(name, entry)| {
            let (state, reasons) = entry.state();
            json!({
                "tenant": name,
                "prefix": entry.prefix,
                "ownAccount": entry.own_account,
                "state": state,
                "reasons": reasons,
                "notTaken": (!entry.rejected_config.is_empty()).then_some(&entry.rejected_config),
                "status": entry.board.as_deref().map(status::of),
            })
        });
        json!({
            "node": self.node,
            "version": env!("CARGO_PKG_VERSION"),
            "process": std::process::id(),
            "startedAt": self.started_ms,
            "configuration": self.configuration,
            "ready": self.unready().is_empty(),
            "reasons": self.unready(),
            "notTaken": (!refused.is_empty()).then_some(refused),
            "tenants": tenants.collect::<Vec<_>>(),
        })
    }

    /// Why the process as a whole isn't ready, if it isn't. Tenants that are refused, paused, or
    /// started later don't matter: the others are served.
    fn unready(&self) -> Vec<String> {
        let all = self.all();
        let is_begun = self.is_begun.load(Ordering::Relaxed);
        let mut reasons = Vec::new();
        let mut is_served = false;
        for (name, entry) in &all {
            let (state, why) = entry.state();
            let is_heard = entry.board.as_ref().is_some_and(|it| it.is_subscribed());
            is_served |= state == "serving" || state == "impaired" && is_heard;
            if entry.is_about_to_serve() && !is_begun {
                let why = why.first().map_or("starting", |why| why);
                reasons.push(format!("tenant `{name}`: {why}"));
            }
        }
        if reasons.is_empty() && is_served {
            self.is_begun.store(true, Ordering::Relaxed);
        }
        // No tenant is known yet while the process starts.
        let is_wanted = all.is_empty()
            || all
                .iter()
                .any(|(_, entry)| entry.phase != TenantPhase::Paused);
        if reasons.is_empty() && !is_served && is_wanted {
            reasons.push("no tenant is served".to_owned());
        }
        reasons
    }

    /// All metrics.
    pub(crate) fn metrics(&self) -> Exposition {
        let mut text = Exposition::default();
        metrics::build_and_process(&mut text, self.started_ms, &self.telemetry);
        let all = self.all();
        let states: Vec<_> = all.iter().map(|(_, entry)| entry.state().0).collect();
        let count = |state: &str| states.iter().filter(|it| **it == state).count();
        let counts = STATES.map(|state| (state, count(state)));
        text.values("presence_tenants", "state", counts);
        let boards = all.iter().filter_map(|(name, entry)| {
            let board = entry.board.as_ref()?;
            Some((name, entry, board))
        });
        for (name, entry, board) in boards.clone() {
            let below = entry.prefix.as_deref().filter(|_| !entry.own_account);
            metrics::of_tenant(&mut text, board, name, below);
            if entry.own_account {
                metrics::of_accounts(&mut text, name, &[metrics::Account::of(board)]);
            }
        }
        // Shared accounts are reported once, without a tenant, if they are or were in use.
        let is_used = |broker: &Arc<BrokerHealth>| {
            let mut boards = boards.clone();
            broker.connects.load(Ordering::Relaxed) > 0
                || boards.any(|(_, _, board)| Arc::ptr_eq(&board.broker, broker))
        };
        let shared = self.shared.iter().map(|account| account());
        let shared: Vec<_> = shared.filter(|it| is_used(&it.broker)).collect();
        metrics::of_accounts(&mut text, "", &shared);
        text
    }
}

/// Serves the endpoints in the background.
pub(crate) fn serve(
    config: &Config,
    tenants: Arc<TenantStatuses>,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let Some((address, listener)) = super::bind(config)? else {
        return Ok(());
    };
    let pages = Pages::of_tenants(config, Arc::clone(&tenants));
    let routes = Router::new()
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/metrics", get(serve_metrics))
        .route("/status", get(serve_status))
        .with_state(tenants)
        .merge(page::routes(Arc::clone(&pages)));
    tracing::info!(%address, "serving the page, /metrics, /healthz, /readyz and /status");
    listen::serve(listener, routes, pages.refresh_forever(), tasks)
}

async fn health(State(tenants): State<Arc<TenantStatuses>>) -> (StatusCode, String) {
    let mut stuck: Vec<_> = tenants
        .all()
        .iter()
        .filter_map(|(_, entry)| Some(readiness::stuck(entry.board.as_ref()?.status.get()?)))
        .flatten()
        .collect();
    // Tenants share threads, so that each of them reports the same ones.
    stuck.sort_unstable();
    stuck.dedup();
    answer(stuck, "ok\n")
}

/// `/readyz`: whether the process serves; with notes on tenants that have problems. Those don't
/// make the process unready, so that the traffic of other tenants isn't sent elsewhere.
async fn ready(State(tenants): State<Arc<TenantStatuses>>) -> (StatusCode, String) {
    let (code, mut text) = answer(tenants.unready(), "ready\n");
    if code == StatusCode::OK {
        for (name, entry) in tenants.all() {
            let (state, reasons) = entry.state();
            if state != "serving" && state != "paused" {
                let why = reasons.first().map(|why| format!(": {why}"));
                let line = format!("tenant `{name}` is {state}{}", why.unwrap_or_default());
                text.push_str(&format!("{}\n", presence_config::escape::Line(line)));
            }
            let status = entry.board.as_ref().and_then(|board| board.status.get());
            for note in status.map(|it| readiness::notes(it)).unwrap_or_default() {
                let line = format!("tenant `{name}`: {note}");
                text.push_str(&format!("{}\n", presence_config::escape::Line(line)));
            }
        }
    }
    (code, text)
}

async fn serve_metrics(State(tenants): State<Arc<TenantStatuses>>) -> String {
    tenants.metrics().finish()
}

async fn serve_status(State(tenants): State<Arc<TenantStatuses>>, request: Request) -> Response {
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !is_address(host) {
        return super::not_by_address();
    }
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, tenants.describe().to_string()).into_response()
}
