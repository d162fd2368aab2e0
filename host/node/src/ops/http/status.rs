//! `/status`: what a node is, by what it runs, and what is wrong with it, as JSON. It holds
//! no secrets, but names files, plugins and broker.

use std::sync::atomic::Ordering;

use presence_sandbox::OnFailure;
use serde_json::{Value, json};

use super::{Board, Status, readiness};
use crate::reload::on_disk::What;

pub(super) fn of(board: &Board) -> Value {
    let about = &board.about;
    let reasons = readiness::reasons(board);
    let broker = &board.broker;
    let forbidden = broker.rights.forbidden_now().into_iter();
    let forbidden: Vec<_> = forbidden.map(|(right, _)| right.to_string()).collect();
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

/// Of a node that has had its turn.
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
                "quarantined": stage.health.in_quarantine(),
                "onFailure": match stage.on_failure {
                    OnFailure::Hold => "hold",
                    OnFailure::LastGood => "last-good",
                },
                "failures": stage.health.failures(),
                "lastFailure": stage.health.last_failure().map(|last| last.at),
            })
        })
        .collect();
    let refused = What::ALL.into_iter().filter_map(|what| {
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
        "store": status.store.as_ref().map(|store| store.tell()),
        "directory": directory,
        "state": status.state.is_some(),
        "workers": status.pool.len(),
        "shards": status.shards.iter().len(),
        "onlineUsers": status.shards.total(|figures| &figures.online_users),
        "pendingDecisions": status.pending(),
        "oldestPendingMs": status.oldest_pending_ms(),
        "connections": status.shards.total(|figures| &figures.connections),
        "notInForce": refused.collect::<Vec<_>>(),
        "restartNeeded": status.on_disk.waiting_for_restart(),
    })
}
