//! `/metrics`, in Prometheus' text format. The HELP texts are in `metrics/help.txt`.

mod exposition;
mod fleet;
mod on_disk;
mod runtime;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use axum::extract::State;
use presence_core::Counters;
use presence_core::message::{Cause, Kind};
use presence_core::quota::Quota;

use super::{Status, StatusBoard};
use crate::directory::DirectoryHealth;
use crate::directory::request::AnswerFetcher;
use crate::link::broker::BrokerHealth;
use crate::pool::{Pool, ShardFigures, ThreadFigures};
use crate::state;
use crate::telemetry;
use crate::tenant::stream_intake::StreamHealth;
pub(crate) use exposition::Exposition;
#[cfg(feature = "otlp")]
pub(crate) use exposition::{Kind as MetricKind, Metric, Sample, Value};

/// The metric that counts dropped messages.
const DROPS: &str = "presence_slow_consumer_drops_total";

pub(super) async fn metrics(State(board): State<Arc<StatusBoard>>) -> String {
    text(&board)
}

/// The current metrics of a node, as text.
pub(super) fn text(board: &StatusBoard) -> String {
    all(board).finish()
}

/// The current metrics of a node.
pub(super) fn all(board: &StatusBoard) -> Exposition {
    let mut text = Exposition::default();
    let status = board.status.get();
    text.value("presence_waiting", u8::from(status.is_none()));
    build_and_process(&mut text, board.about.started_ms, &board.about.telemetry);
    if let Some(status) = status {
        tenant(&mut text, status);
    }
    of_accounts(&mut text, "", &[Account::of(board)]);
    text
}

/// A NATS account, as this process uses it.
pub(crate) struct Account {
    pub(crate) broker: Arc<BrokerHealth>,
    /// The threads that publish to it. `None` before they exist.
    pub(crate) pool: Option<Pool>,
    /// Whether tenants share it, so that dropped messages are counted for each of them.
    pub(crate) is_shared: bool,
}

impl Account {
    /// A tenant's own account.
    pub(super) fn of(board: &StatusBoard) -> Self {
        let status = board.status.get();
        Self {
            broker: Arc::clone(&board.broker),
            pool: status.map(|status| status.pool.clone()),
            is_shared: false,
        }
    }
}

/// Metrics of the build and the process. A node that doesn't serve yet has them, too.
pub(super) fn build_and_process(
    text: &mut Exposition,
    started_ms: u64,
    telemetry: &telemetry::Figures,
) {
    runtime::process(text, started_ms, telemetry);
}

/// The metrics of one of several tenants. `below`: the tenant's prefix if it shares its account;
/// dropped messages below this prefix are counted for it.
pub(super) fn of_tenant(
    text: &mut Exposition,
    board: &StatusBoard,
    name: &str,
    below: Option<&str>,
) {
    let status = board.status.get();
    text.of_tenant(name);
    text.value("presence_waiting", u8::from(status.is_none()));
    if let Some(status) = status {
        tenant(text, status);
    }
    if let Some(prefix) = below {
        let drops = board.broker.drops.counts_below(prefix);
        text.values(DROPS, "subscription", drops);
    }
}

/// The metrics of a single tenant.
fn tenant(text: &mut Exposition, status: &Status) {
    runtime::decisions(text, status);
    runtime::directory(text, status);
    shards(text, status);
    asked(text, status);
    plugins(text, status);
    on_disk::write(text, status);
    source(text, &status.directory);
    if let Some(fetcher) = &status.fetcher {
        directory(text, fetcher);
    }
    if let Some(state) = &status.state {
        kept(text, state, status);
    }
    if let Some(stream) = &status.input_stream {
        input_stream(text, stream);
    }
    if let Some(of) = &status.fleet {
        fleet::write(text, of, status);
    }
}

/// The sums over all shards.
fn shards(text: &mut Exposition, status: &Status) {
    let counters: Vec<_> = status.shards.counters().collect();
    let sum = |of: fn(&Counters) -> u64| counters.iter().map(of).sum::<u64>();
    let total = |of: fn(&ShardFigures) -> &AtomicU64| status.shards.total(of);
    let kinds = ["connect", "disconnect", "heartbeat", "online", "offline"];
    let taken = Kind::ALL.into_iter().zip(kinds).map(|(kind, label)| {
        let taken = counters
            .iter()
            .filter_map(|c| c.accepted.get(kind as usize));
        (label, taken.sum::<u64>())
    });
    text.values("presence_inputs_total", "kind", taken);
    let letters = Cause::ALL.into_iter().map(|cause| {
        let letters = counters.iter();
        let letters = letters.filter_map(|c| c.dead_letters.get(cause as usize));
        (cause.as_str(), letters.sum::<u64>())
    });
    text.values("presence_dead_letters_total", "reason", letters);
    let quotas = Quota::ALL.into_iter().map(|quota| {
        let over = counters.iter();
        let over = over.filter_map(|c| c.over_quota.get(quota as usize));
        let elsewhere = match quota {
            Quota::Plugins => status.loader.over_quota(),
            Quota::PluginMemory => status.loader.memory().refusals(),
            _ => status.exceeded.count(quota),
        };
        let over = over.sum::<u64>() + elsewhere;
        (quota.as_str(), over)
    });
    text.values("presence_quota_exceeded_total", "quota", quotas);
    let left_out = sum(|c| c.dead_letters_left_out);
    text.value("presence_dead_letters_left_out_total", left_out);
    let closes = sum(|c| c.closes_forgotten);
    text.value("presence_closes_forgotten_total", closes);
    text.value(
        "presence_offlines_held_back_total",
        sum(|c| c.damped_offlines),
    );
    text.value("presence_stale_inputs_total", sum(|c| c.stale));
    let reasons = sum(|c| c.unknown_reasons);
    text.value("presence_unknown_reasons_total", reasons);
    let statuses = sum(|c| c.unknown_statuses);
    text.value("presence_unknown_statuses_total", statuses);
    text.value("presence_decisions_total", sum(|c| c.decided));
    text.value("presence_verdicts_reused_total", sum(|c| c.reused));
    text.value("presence_corrections_total", sum(|c| c.corrected));
    let corrections = sum(|c| c.corrections);
    text.value("presence_correction_messages_total", corrections);
    let backlog = total(|shard| &shard.backlog);
    text.value("presence_correction_backlog_users", backlog);
    text.value("presence_queried_users_total", sum(|c| c.queried));
    let published = total(|shard| &shard.published);
    text.value("presence_published_total", published);
    let restarts = total(|shard| &shard.restarts);
    text.value("presence_shard_restarts_total", restarts);
    let queued = status.shards.queued_bytes();
    text.value("presence_input_queue_bytes", queued);
    let online = total(|shard| &shard.online_users);
    text.value("presence_online_users", online);
    let connections = total(|shard| &shard.connections);
    text.value("presence_connections", connections);
}

/// Metrics of the traffic with the broker, summed over these accounts. `name`: the tenant that owns
/// them; empty if they are shared.
pub(super) fn of_accounts(text: &mut Exposition, name: &str, accounts: &[Account]) {
    if accounts.is_empty() {
        return;
    }
    text.of_tenant(name);
    let brokers = || accounts.iter().map(|it| &it.broker);
    let connected = brokers().all(|it| it.connected.load(Ordering::Relaxed));
    text.value("presence_nats_connected", u8::from(connected));
    if accounts.iter().all(|it| it.pool.is_none()) {
        // No tenant is served on them yet.
        return;
    }
    let of_threads = |of: fn(&ThreadFigures) -> &AtomicU64| {
        let pools = accounts.iter().filter_map(|it| it.pool.as_ref());
        pools.map(|pool| pool.total(of)).sum::<u64>()
    };
    let again = of_threads(|thread| &thread.repeated);
    text.value("presence_published_again_total", again);
    let journal = of_threads(|thread| &thread.journal_bytes);
    text.value("presence_journal_bytes", journal);
    let connects = brokers().map(|it| read(&it.connects)).sum::<u64>();
    text.value("presence_nats_connects_total", connects);
    let second = u8::from(brokers().all(|it| it.has_pulse()));
    text.value("presence_nats_second_connection", second);
    let errors = brokers().map(|it| read(&it.errors)).sum::<u64>();
    text.value("presence_nats_errors_total", errors);
    let mut drops = BTreeMap::new();
    for account in accounts {
        let counts = match account.is_shared {
            true => account.broker.drops.counts_elsewhere(),
            false => account.broker.drops.counts().collect(),
        };
        for (kind, count) in counts {
            *drops.entry(kind).or_insert(0) += count;
        }
    }
    text.values(DROPS, "subscription", drops);
    let forbidden = brokers().map(|it| it.permissions.forbidden_count());
    text.value("presence_nats_forbidden", forbidden.sum::<usize>());
}

/// Counts of the results of questions.
fn asked(text: &mut Exposition, status: &Status) {
    let refused = status.replies.refused();
    text.value("presence_replies_refused_total", refused);
    let asked = &status.asked;
    let outcomes = [
        ("answered", read(&asked.answered)),
        ("refused", read(&asked.refused)),
        ("overloaded", read(&asked.overloaded)),
        ("unanswered", read(&asked.unanswered)),
        ("ignored", read(&asked.ignored)),
        ("failed", read(&asked.failed)),
    ];
    text.values("presence_questions_total", "outcome", outcomes);
}

/// The pipeline and its plugins.
fn plugins(text: &mut Exposition, status: &Status) {
    let running = status.running.borrow().clone();
    text.value("presence_pipeline_generation", running.generation);
    let store = status.store.as_ref();
    let revision = store.and_then(|store| store.in_force());
    let revision = revision.map_or(0, |it| it.revision);
    text.value("presence_pipeline_revision", revision);
    let is_away = store.is_some_and(|store| store.unreadable().is_some());
    text.value("presence_plugin_store_away", u8::from(is_away));
    let refused = read(&status.refused_swaps);
    text.value("presence_pipeline_refusals_total", refused);
    let refused = status.loader.cache_refusals();
    text.value("presence_plugin_cache_refusals_total", refused);
    let mut failures = BTreeMap::new();
    for stage in running.blueprint.stages() {
        *failures.entry(&stage.plugin.name).or_insert(0) += stage.health.failures();
    }
    text.values("presence_plugin_failures_total", "plugin", failures);
    let quarantined = running.blueprint.stages().map(|stage| {
        let quarantined = stage.in_quarantine();
        (&stage.plugin.name, u8::from(quarantined))
    });
    text.values("presence_plugin_quarantined", "plugin", quarantined);
    let candidate = running.candidate.iter();
    let stages = candidate.flat_map(|it| it.generation.blueprint.stages());
    let quarantined = stages.filter(|stage| !running.blueprint.has_same(stage));
    let quarantined = quarantined.map(|stage| {
        let quarantined = stage.in_quarantine();
        (&stage.plugin.name, u8::from(quarantined))
    });
    text.values("presence_candidate_quarantined", "plugin", quarantined);
    let withdrawn = running.blueprint.stages().map(|stage| {
        let withdrawn = stage.withdrawn().is_some();
        (&stage.plugin.name, u8::from(withdrawn))
    });
    text.values("presence_plugin_withdrawn", "plugin", withdrawn);
    let stages = running.blueprint.stages();
    let left_out = stages.map(|stage| (&stage.plugin.name, stage.plugin.lines_left_out()));
    let name = "presence_plugin_log_lines_left_out_total";
    text.values(name, "plugin", left_out);
}

/// Whether the directory's source can be read, and how many of its entries can't be.
fn source(text: &mut Exposition, health: &DirectoryHealth) {
    let outage = health.outage().map(|(since, _)| since);
    let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    let unavailable = u8::from(outage.is_some());
    text.value("presence_directory_unavailable", unavailable);
    let seconds = outage.unwrap_or_default().as_secs();
    text.value("presence_directory_unavailable_seconds", seconds);
    let unsaved = count(&health.unsaved);
    text.value("presence_directory_unsaved_entries", unsaved);
    let refused = [
        ("key", count(&health.refused_keys)),
        ("value", count(&health.refused_values)),
    ];
    text.values("presence_directory_refused_entries", "for", refused);
}

/// Requests to the directory's service.
fn directory(text: &mut Exposition, fetcher: &AnswerFetcher) {
    let counts = &fetcher.counts;
    let outcomes = [
        ("answered", read(&counts.answered)),
        ("refused", read(&counts.refused)),
        ("unanswered", read(&counts.unanswered)),
    ];
    text.values("presence_directory_requests_total", "outcome", outcomes);
    let outcomes = [
        ("taken", read(&counts.invalidations)),
        ("refused", read(&counts.bad_invalidations)),
    ];
    let name = "presence_directory_invalidations_total";
    text.values(name, "outcome", outcomes);
    let (held, wanted, is_away) = fetcher.figures();
    text.value("presence_directory_answers", held);
    text.value("presence_directory_answers_wanted", wanted);
    text.value("presence_directory_away", u8::from(is_away));
}

/// The stream that connects and disconnects are taken from.
fn input_stream(text: &mut Exposition, stream: &StreamHealth) {
    let is_away = stream.outage().is_some();
    text.value("presence_input_stream_away", u8::from(is_away));
    text.value("presence_input_stream_pending", read(&stream.pending));
    text.value("presence_input_stream_position", read(&stream.position));
    text.value("presence_input_stream_taken_total", read(&stream.taken));
    let repeated = read(&stream.repeated);
    text.value("presence_input_stream_repeated_total", repeated);
    text.value("presence_input_stream_lost_total", read(&stream.lost));
    let unacknowledged = read(&stream.unacknowledged);
    text.value("presence_input_stream_unacknowledged", unacknowledged);
}

/// The state on disk.
fn kept(text: &mut Exposition, state: &state::WriterFigures, status: &Status) {
    let restored = read(&state.restored_users);
    text.value("presence_state_restored_users", restored);
    text.value("presence_state_records_total", read(&state.records));
    text.value("presence_state_bytes", read(&state.bytes));
    text.value("presence_state_lag_milliseconds", state.lag_ms());
    let outage = status.unwritten().map(|(since, _)| since);
    let seconds = outage.map_or(0, |since| since.as_secs().max(1));
    text.value("presence_state_unwritten_seconds", seconds);
}

fn read(value: &AtomicU64) -> u64 {
    value.load(Ordering::Relaxed)
}
