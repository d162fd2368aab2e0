//! Why a node isn't ready, if it isn't.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Status, StatusBoard};
use crate::candidate::Mode;
use crate::tenant::stream_intake::StreamHealth;

/// How long a thread may be at one task before it counts as stuck, in milliseconds. A call of a
/// plugin takes no longer than its deadline.
const STUCK_MS: u64 = 10_000;

/// All reasons why the node isn't ready, the first cause first; empty if it is ready.
pub(super) fn reasons(board: &StatusBoard) -> Vec<String> {
    let mut reasons = Vec::new();
    let away = board.broker.disconnected();
    let is_connected = away.is_none();
    reasons.extend(away);
    let Some(status) = board.status.get() else {
        // Without a connection, that is the reason for the waiting.
        reasons.extend(is_connected.then(|| board.waits()));
        reasons.extend(forbidden(board));
        return reasons;
    };
    reasons.extend(forbidden(board));
    if is_connected && !status.is_ready() {
        let fleet = status.fleet.as_ref();
        let ownerless = fleet.map_or(0, |fleet| fleet.ownerless());
        let catching_up = fleet.map_or(0, |fleet| fleet.shards_catching_up.load(Ordering::Relaxed));
        reasons.push(match (ownerless, catching_up) {
            (0, 0) => "starting or stopping".into(),
            (0, count) => format!("starting or stopping: {count} shards are catching up"),
            (count, _) => {
                format!("starting or stopping: {count} shards of the fleet have no owner")
            }
        });
    }
    if is_connected && status.is_ready() && !board.is_subscribed() {
        let what = "NATS is not known to have the node's subscriptions yet";
        reasons.push(what.into());
    }
    reasons.extend(status.broker.body_limit_error().filter(|_| is_connected));
    if is_connected && let Some(silent_ms) = status.broker.silence() {
        let seconds = silent_ms / 1_000;
        reasons.push(format!("no message from NATS for {seconds} s"));
    }
    if let Some(fleet) = &status.fleet
        && is_connected
        && status.is_ready()
        && !fleet.is_in_touch()
    {
        reasons.push("the fleet's bucket can't be reached: does NATS have JetStream?".into());
    }
    reasons.extend(stuck(status));
    reasons.extend(status.input_stream.as_ref().and_then(|it| unread(it)));
    if let Some((since, why)) = status.directory.outage() {
        let seconds = since.as_secs();
        reasons.push(format!(
            "the directory has been unavailable for {seconds} s: {why}"
        ));
    }
    if let Some((since, why)) = status.fetcher.as_ref().and_then(|it| it.outage()) {
        let seconds = since.as_secs();
        reasons.push(format!(
            "the directory's service has not answered for {seconds} s: {why}"
        ));
    }
    reasons.extend(
        status
            .store
            .as_ref()
            .and_then(|store| store.why_none_in_force()),
    );
    reasons.extend(withdrawn(status));
    reasons.extend(status.on_disk.unfollowed());
    if let Some((since, why)) = status.unwritten() {
        let seconds = since.as_secs();
        reasons.push(format!(
            "the state could not be written for {seconds} s: {why}"
        ));
    }
    reasons
}

/// Why connects and disconnects are not up to date with their stream, if so.
fn unread(stream: &StreamHealth) -> Option<String> {
    let name = &stream.name;
    if let Some((since, why)) = stream.outage() {
        let seconds = since.as_secs();
        return Some(format!(
            "connects and disconnects can't be taken from the stream `{name}` for {seconds} s: {why}"
        ));
    }
    let is_behind = stream.is_behind.load(Ordering::Relaxed);
    let load = |of: &AtomicU64| of.load(Ordering::Relaxed);
    let left = load(&stream.pending) + load(&stream.unacknowledged);
    is_behind.then(|| {
        format!(
            "what the stream `{name}` kept while this node was away is being taken: {left} \
             messages are left"
        )
    })
}

/// Whether all problems last until somebody changes something: the login is refused, or there is no
/// pipeline that may run.
pub(super) fn needs_intervention(board: &StatusBoard) -> bool {
    if board.broker.refuses_login() {
        return true;
    }
    let Some(status) = board.status.get() else {
        return false;
    };
    let lacks_pipeline = status.store.as_ref().is_some_and(|it| it.lacks_pipeline());
    let lasting = usize::from(lacks_pipeline) + withdrawn(status).len();
    lasting > 0 && reasons(board).len() == lasting
}

/// Whether the node can't decide about any user, so that nobody is visible: there is no pipeline,
/// one of its plugins may not run any more, or nothing is known of the directory.
pub(super) fn is_closed(status: &Status) -> bool {
    let directory = &status.directory;
    status
        .store
        .as_ref()
        .is_some_and(|store| store.why_none_in_force().is_some())
        || !withdrawn(status).is_empty()
        || (directory.outage().is_some() && !directory.has_entries())
}

/// The plugins of the active pipeline that may not run any more, with the reasons.
fn withdrawn(status: &Status) -> Vec<String> {
    let blueprint = Arc::clone(&status.running.borrow().blueprint);
    let stages = blueprint.stages();
    let withdrawn = stages.filter_map(|stage| {
        let (name, why) = (&stage.plugin.name, stage.withdrawn()?);
        Some(format!("the plugin `{name}` may not run any more: {why}"))
    });
    withdrawn.collect()
}

fn forbidden(board: &StatusBoard) -> impl Iterator<Item = String> {
    let forbidden = board.forbidden().into_iter();
    forbidden.map(|(permission, ms)| {
        format!(
            "NATS has forbidden this node {permission} for {} s",
            ms / 1_000
        )
    })
}

/// Notes about a node that does its work: its plugins in quarantine. They don't make the node
/// unready: every node has the same plugins, so another one would serve no better.
pub(super) fn notes(status: &Status) -> Vec<String> {
    let running = status.running.borrow().clone();
    let active = running.blueprint.stages().map(|stage| (stage, ""));
    let candidate = running.candidate.iter().flat_map(|candidate| {
        let of = match candidate.mode {
            Mode::Canary(_) => " of the canary",
            Mode::Shadow => " of the shadow",
        };
        let stages = candidate.generation.blueprint.stages();
        let own = stages.filter(|stage| !running.blueprint.has_same(stage));
        own.map(move |stage| (stage, of))
    });
    let quarantined = active.chain(candidate).filter(|(it, _)| it.in_quarantine());
    quarantined
        .map(|(stage, of)| format!("plugin `{}`{of} is in quarantine", stage.plugin.name))
        .collect()
}

/// The threads that are stuck. Without a connection none counts as stuck.
pub(super) fn stuck(status: &Status) -> Vec<String> {
    if !status.broker.connected.load(Ordering::Relaxed) {
        return Vec::new();
    }
    stuck_at(status.pool.figures().map(|figures| figures.busy_ms()))
}

/// Judges threads by how long each has been at its current task.
fn stuck_at(busy_ms: impl Iterator<Item = u64>) -> Vec<String> {
    let stuck = busy_ms.enumerate().filter(|(_, ms)| *ms > STUCK_MS);
    stuck
        .map(|(number, ms)| {
            format!(
                "worker {number} is stuck: it has been at one task for {} s",
                ms / 1_000
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_is_long_at_one_task_is_named() {
        let stuck = stuck_at([0, 10_000, 12_345].into_iter());
        let expected = "worker 2 is stuck: it has been at one task for 12 s";
        assert_eq!(stuck, [expected]);
    }
}
