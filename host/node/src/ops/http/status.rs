//! `/status`: what a node runs and what is wrong with it, as JSON. It contains no secrets, but
//! names of files, plugins and the broker.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use presence_sandbox::OnFailure;
use serde_json::{Value, json};

use super::{Status, StatusBoard, readiness};
use crate::candidate::meter::{Calls, Side};
use crate::candidate::report::Report;
use crate::candidate::{CandidatePipeline, Mode};
use crate::fleet::Fleet;
use crate::reload::on_disk::FileKind;

pub(super) fn of(board: &StatusBoard) -> Value {
    let about = &board.about;
    let reasons = readiness::reasons(board);
    let broker = &board.broker;
    let forbidden = board.forbidden().into_iter();
    let forbidden: Vec<_> = forbidden
        .map(|(permission, _)| permission.to_string())
        .collect();
    json!({
        "node": about.node,
        "version": env!("CARGO_PKG_VERSION"),
        "process": std::process::id(),
        "startedAt": about.started_ms,
        "configuration": about.configuration,
        "ready": reasons.is_empty(),
        "reasons": reasons,
        "nats": {
            "servers": about.servers,
            "connected": broker.connected.load(Ordering::Relaxed),
            "connects": broker.connects.load(Ordering::Relaxed),
            "forbidden": forbidden,
        },
        "serving": board.status.get().map(|status| serving(status, &about.directory)),
    })
}

/// The reports, with examples, on the running canary or shadow, and on the last shadow.
pub(super) fn reports(status: &Status) -> Value {
    let running = status.running.borrow().candidate.clone();
    let shadow = status.shadow.lock();
    let shadow = shadow.unwrap_or_else(PoisonError::into_inner);
    let shadow = shadow
        .as_ref()
        .map(|it| it.to_json(running.as_ref(), &Report::of(&it.meter)));
    let candidate = running.as_ref().map(|it| Report::of(&it.meter));
    json!({"shadow": shadow, "beside": candidate})
}

/// The percentile `of_hundred` of the calls' duration, in microseconds.
fn micros(calls: &Calls, of_hundred: u64) -> Option<f64> {
    let longest = calls.latency.counts().percentile(of_hundred)?;
    Some(longest.as_nanos() as f64 / 1_000.0)
}

/// The running canary or shadow.
fn candidate(candidate: &CandidatePipeline) -> Value {
    let percent = match candidate.mode {
        Mode::Canary(share) => Some(share),
        Mode::Shadow => None,
    };
    let stages = candidate.generation.blueprint.stages();
    let pipeline = stages.map(|stage| {
        json!({
            "plugin": &*stage.plugin.name,
            "sha256": &*stage.plugin.sha256,
            "quarantined": stage.in_quarantine(),
            "withdrawn": stage.withdrawn(),
        })
    });
    let calls = |side| {
        let calls = candidate.meter.calls(side);
        json!({
            "calls": calls.calls.load(Ordering::Relaxed),
            "failures": calls.failures.load(Ordering::Relaxed),
            "p50Micros": micros(calls, 50),
            "p99Micros": micros(calls, 99),
        })
    };
    json!({
        "kind": if percent.is_some() { "canary" } else { "shadow" },
        "percent": percent,
        "generation": candidate.generation.number,
        "pipeline": pipeline.collect::<Vec<_>>(),
        "calls": {"active": calls(Side::Active), "candidate": calls(Side::Candidate)},
        "report": Report::figures(&candidate.meter),
    })
}

/// The fleet that the node belongs to.
fn fleet(fleet: &Fleet, status: &Status) -> Value {
    let owners = fleet.owners();
    let mut nodes = serde_json::Map::new();
    for node in &*fleet.nodes() {
        let owned = owners.iter().flatten().filter(|owner| *owner == node);
        nodes.insert(node.to_string(), json!({"owned": owned.count()}));
    }
    json!({
        "shards": fleet.shards,
        "nodes": nodes,
        "owned": status.shards.total(|figures| &figures.leads),
        "inStep": status.shards.total(|figures| &figures.synced),
        "ownerless": fleet.ownerless(),
        "inTouch": fleet.is_in_touch(),
        "leaseMs": fleet.settings.lease_ms,
    })
}

/// A node that serves.
fn serving(status: &Status, directory: &str) -> Value {
    let running = status.running.borrow().clone();
    let plugins: Vec<_> = running
        .blueprint
        .stages()
        .map(|stage| {
            json!({
                "plugin": &*stage.plugin.name,
                "version": stage.plugin.manifest.version,
                "role": stage.plugin.manifest.role.as_str(),
                "sha256": &*stage.plugin.sha256,
                "source": &*stage.origin,
                "quarantined": stage.in_quarantine(),
                "withdrawn": stage.withdrawn(),
                "onFailure": match stage.on_failure {
                    OnFailure::Hold => "hold",
                    OnFailure::LastGood => "last-good",
                },
                "failures": stage.health.failures(),
                "lastFailure": stage.health.last_failure().map(|last| last.at),
            })
        })
        .collect();
    let shadow = status.shadow.lock();
    let shadow = shadow.unwrap_or_else(PoisonError::into_inner);
    let refused = FileKind::ALL.into_iter().filter_map(|what| {
        let refused = status.on_disk.of(what)?;
        Some(json!({
            "what": what.as_str(),
            "since": refused.since_ms,
            "why": refused.why,
        }))
    });
    json!({
        "generation": running.generation,
        "pipeline": plugins,
        "source": if status.store.is_some() { "store" } else { "folder" },
        "store": status.store.as_ref().map(|store| store.to_json()),
        "shadow": shadow.as_ref().map(|it| {
            it.to_json(running.candidate.as_ref(), &Report::figures(&it.meter))
        }),
        "beside": running.candidate.as_ref().map(candidate),
        "alerts": status.alerts.count(),
        "directory": directory,
        "state": status.state.is_some(),
        "workers": status.pool.len(),
        "shards": status.shards.iter().len(),
        "onlineUsers": status.shards.total(|figures| &figures.online_users),
        "pendingDecisions": status.pending(),
        "oldestPendingMs": status.oldest_pending_ms(),
        "connections": status.shards.total(|figures| &figures.connections),
        "fleet": status.fleet.as_ref().map(|of| fleet(of, status)),
        "notInForce": refused.collect::<Vec<_>>(),
        "restartNeeded": status.on_disk.waiting_for_restart(),
    })
}
