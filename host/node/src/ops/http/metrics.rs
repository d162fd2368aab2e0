//! `/metrics`, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use axum::extract::State;
use presence_core::Counters;
use presence_core::message::{Cause, Kind};

mod on_disk;

use super::{Board, Status};
use crate::directory::Health;
use crate::directory::request::Fetcher;
use crate::pool::{Figures, ThreadFigures};
use crate::state;

/// A metric without labels: its name, its kind, what it says, and its value.
type Single = (&'static str, &'static str, &'static str, u64);

pub(super) async fn metrics(State(board): State<Arc<Board>>) -> String {
    let mut text = Exposition::default();
    let status = board.status.get();
    text.singles([(
        "presence_waiting",
        "gauge",
        "Whether the node waits for its turn to serve: it has no other figures yet.",
        status.is_none().into(),
    )]);
    if let Some(status) = status {
        serving(&mut text, status);
    }
    text.0
}

/// The figures of a node that serves.
fn serving(text: &mut Exposition, status: &Status) {
    let counters: Vec<_> = status.shards.counters().collect();
    let sum = |of: fn(&Counters) -> u64| counters.iter().map(of).sum::<u64>();
    let total = |of: fn(&Figures) -> &AtomicU64| status.shards.total(of);
    let of_threads = |of: fn(&ThreadFigures) -> &AtomicU64| status.pool.total(of);
    let running = status.running.borrow().clone();
    let kinds = ["connect", "disconnect", "heartbeat", "online", "offline"];
    let taken = Kind::ALL.into_iter().zip(kinds).map(|(kind, label)| {
        let taken = counters.iter().filter_map(|c| c.taken.get(kind as usize));
        (label, taken.sum())
    });
    text.labelled(
        "presence_inputs_total",
        "counter",
        "Well-formed messages taken in.",
        "kind",
        taken,
    );
    let letters = Cause::ALL.into_iter().map(|cause| {
        let letters = counters.iter();
        let letters = letters.filter_map(|c| c.dead_letters.get(cause as usize));
        (cause.as_str(), letters.sum())
    });
    text.labelled(
        "presence_dead_letters_total",
        "counter",
        "Dead letters, by reason.",
        "reason",
        letters,
    );
    text.singles([
        (
            "presence_dead_letters_left_out_total",
            "counter",
            "Dead letters that were counted and not published, since there were too many.",
            sum(|c| c.dead_letters_left_out),
        ),
        (
            "presence_closes_forgotten_total",
            "counter",
            "Closes forgotten before their time, since too many were remembered.",
            sum(|c| c.closes_forgotten),
        ),
        (
            "presence_offlines_held_back_total",
            "counter",
            "Offlines held back, since their users go offline again and again.",
            sum(|c| c.held_back),
        ),
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
            "presence_published_again_total",
            "counter",
            "Messages published again after a lost connection, under the same numbers.",
            of_threads(|w| &w.repeated),
        ),
        (
            "presence_shard_restarts_total",
            "counter",
            "Shards that have failed, and begun anew from what was stored of them.",
            total(|w| &w.restarts),
        ),
        (
            "presence_journal_bytes",
            "gauge",
            "Bytes of messages that the broker has not acknowledged.",
            of_threads(|w| &w.journal_bytes),
        ),
        (
            "presence_input_queue_bytes",
            "gauge",
            "Bytes of messages that wait for shards.",
            status.shards.queued_bytes(),
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
            "presence_nats_second_connection",
            "gauge",
            "Whether the second connection to NATS, which notices what has been heard, is in use; without it the main one does its work.",
            status.broker.has_pulse().into(),
        ),
        (
            "presence_nats_errors_total",
            "counter",
            "Errors the NATS client reported.",
            read(&status.broker.errors),
        ),
        (
            "presence_replies_refused_total",
            "counter",
            "Requests that asked to be answered where no answer may go.",
            status.replies.refused(),
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
        (
            "presence_plugin_cache_refusals_total",
            "counter",
            "Compiled plugins that were not what this node had kept, and were compiled anew.",
            status.loader.cache_refusals(),
        ),
    ]);
    text.labelled(
        "presence_slow_consumer_drops_total",
        "counter",
        "Messages dropped for want of room, by what their subscription carries; all of the inputs, and of others as many as the client says.",
        "subscription",
        status.broker.drops.counts(),
    );
    let asked = &status.asked;
    text.labelled(
        "presence_questions_total",
        "counter",
        "What was asked, by what became of it; overloaded is what found no room and was refused, unanswered that of which nobody could even be told so, and ignored what had no subject that an answer may go to.",
        "outcome",
        [
            ("answered", read(&asked.answered)),
            ("refused", read(&asked.refused)),
            ("overloaded", read(&asked.overloaded)),
            ("unanswered", read(&asked.unanswered)),
            ("ignored", read(&asked.ignored)),
        ],
    );
    let mut failures = BTreeMap::new();
    for stage in running.blueprint.stages() {
        *failures.entry(&stage.plugin.name).or_insert(0) += stage.health.failures();
    }
    text.labelled(
        "presence_plugin_failures_total",
        "counter",
        "Failed calls of plugins.",
        "plugin",
        failures,
    );
    text.labelled(
        "presence_plugin_quarantined",
        "gauge",
        "Whether the plugin is in quarantine, since it failed on user after user.",
        "plugin",
        running.blueprint.stages().map(|stage| {
            let quarantined = stage.health.in_quarantine();
            (&stage.plugin.name, u64::from(quarantined))
        }),
    );
    text.labelled(
        "presence_plugin_log_lines_left_out_total",
        "counter",
        "Lines that a plugin wrote to the log past its rate, and that were left out.",
        "plugin",
        running
            .blueprint
            .stages()
            .map(|stage| (&stage.plugin.name, stage.plugin.lines_left_out())),
    );
    on_disk::tell(text, status);
    source(text, &status.directory);
    if let Some(fetcher) = &status.fetcher {
        directory(text, fetcher);
    }
    if let Some(state) = &status.state {
        kept(text, state);
        let outage = status.unwritten().map(|(since, _)| since);
        text.singles([(
            "presence_state_unwritten_seconds",
            "gauge",
            "For how long what is to outlive a restart can't be written; 0 if it can.",
            outage.map_or(0, |since| since.as_secs().max(1)),
        )]);
    }
}

/// Whether the directory's source can be read, and what of it can't be.
fn source(text: &mut Exposition, health: &Health) {
    let outage = health.outage().map(|(since, _)| since);
    let count = |count: &AtomicUsize| count.load(Ordering::Relaxed) as u64;
    text.singles([
        (
            "presence_directory_unavailable",
            "gauge",
            "Whether the directory's file or bucket can't be read.",
            outage.is_some().into(),
        ),
        (
            "presence_directory_unavailable_seconds",
            "gauge",
            "For how long it has not been readable; 0 if it is.",
            outage.unwrap_or_default().as_secs(),
        ),
        (
            "presence_directory_unsaved_entries",
            "gauge",
            "Changed entries that the copy which outlives a restart lacks.",
            count(&health.unsaved),
        ),
    ]);
    text.labelled(
        "presence_directory_refused_entries",
        "gauge",
        "Entries of the directory's bucket that can't be taken, for their key or their value.",
        "for",
        [
            ("key", count(&health.refused_keys)),
            ("value", count(&health.refused_values)),
        ],
    );
}

/// What became of asking the directory's service.
fn directory(text: &mut Exposition, fetcher: &Fetcher) {
    let counts = &fetcher.counts;
    text.labelled(
        "presence_directory_requests_total",
        "counter",
        "Requests to the directory's service; refused is what got no answer that can be read.",
        "outcome",
        [
            ("answered", read(&counts.answered)),
            ("refused", read(&counts.refused)),
            ("unanswered", read(&counts.unanswered)),
        ],
    );
    text.labelled(
        "presence_directory_invalidations_total",
        "counter",
        "What the directory's service said has changed; refused is what can't be read.",
        "outcome",
        [
            ("taken", read(&counts.invalidations)),
            ("refused", read(&counts.bad_invalidations)),
        ],
    );
    let (held, wanted, is_away) = fetcher.figures();
    text.singles([
        (
            "presence_directory_answers",
            "gauge",
            "Answers at hand.",
            held as u64,
        ),
        (
            "presence_directory_answers_wanted",
            "gauge",
            "Answers asked for that are not at hand.",
            wanted as u64,
        ),
        (
            "presence_directory_away",
            "gauge",
            "Whether the directory's service does not answer.",
            is_away.into(),
        ),
    ]);
}

/// What is kept over a restart.
fn kept(text: &mut Exposition, state: &state::Figures) {
    text.singles([
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
    ]);
}

fn read(value: &AtomicU64) -> u64 {
    value.load(Ordering::Relaxed)
}

/// Metrics as they are told.
#[derive(Default)]
struct Exposition(String);

impl Exposition {
    /// Metrics without labels.
    fn singles(&mut self, metrics: impl IntoIterator<Item = Single>) {
        for (name, kind, help, value) in metrics {
            self.head(name, kind, help);
            let _ = writeln!(self.0, "{name} {value}");
        }
    }

    /// A metric with a value for each of a label's.
    fn labelled(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (impl Display, u64)>,
    ) {
        self.head(name, kind, help);
        for (of, value) in values {
            let _ = writeln!(self.0, "{name}{{{label}=\"{of}\"}} {value}");
        }
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }
}
