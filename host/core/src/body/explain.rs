//! The body of an explanation. It is for operators, so speed doesn't matter.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::directory::Question;
use crate::event::{Change, Event};
use crate::rules::{Failure, Rendition, StageReport};

/// The result of explaining a decision about a viewer and a user.
#[derive(Debug)]
pub struct ExplainReport {
    /// The event that was decided on.
    pub event: Arc<Event>,
    /// The origin of the event.
    pub basis: EventOrigin,
    /// What each stage did to the viewer.
    pub stages: Vec<StageReport>,
    /// What the viewer is shown, if they may see the user.
    pub rendition: Option<Rendition>,
    /// The questions whose answers aren't cached yet.
    pub cache_misses: BTreeSet<Question>,
    /// The failure of a stage, if one failed.
    pub failure: Option<Failure>,
    /// Whether the rules can't be called now, so that the last decision is kept: `rendition` is
    /// from that decision, as in a query.
    pub is_kept: bool,
    /// Whether the viewer has been told that the user is online.
    pub told: bool,
    /// Whether what the viewer has been told agrees with the decision.
    pub delivery: DeliveryState,
    /// Whether viewer and user are the same person.
    pub is_self: bool,
}

/// The origin of the event that an explanation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventOrigin {
    /// The user is online: the event by which they came online.
    Online,
    /// The user is offline: the event by which they went offline.
    Departed,
    /// Nothing is known of the user: an event as if they came online now.
    Hypothetical,
}

/// Whether what a viewer has been told agrees with the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryState {
    /// It agrees.
    Settled,
    /// It doesn't agree, and the viewer is about to be told.
    Correcting,
    /// The decision failed, or lacks an answer. The time: when it is decided again.
    Pending(Option<u64>),
    /// The user is offline, and no viewer was told otherwise.
    Offline,
}

/// The reply with an explanation. `generation`: that of the pipeline that decided.
pub fn explanation(viewer: &str, user: &str, generation: u64, found: &ExplainReport) -> Vec<u8> {
    let (kind, last_seen) = match found.event.change {
        Change::Online | Change::Updated => ("user_online", None),
        Change::Offline { last_seen, .. } => ("user_offline", Some(last_seen)),
    };
    let basis = match found.basis {
        EventOrigin::Online | EventOrigin::Departed => "last-event",
        EventOrigin::Hypothetical => "hypothetical",
    };
    let mut event = json!({"type": kind, "timestamp": found.event.timestamp, "basis": basis});
    set(&mut event, "lastSeen", last_seen.map(Value::from));
    let online = found.basis == EventOrigin::Online;
    let (standing, retry_at) = match found.delivery {
        DeliveryState::Settled => ("settled", None),
        DeliveryState::Correcting => ("correcting", None),
        DeliveryState::Pending(at) => ("pending", at),
        DeliveryState::Offline => ("offline", None),
    };
    let rendition = found.rendition.as_ref().map(|rendition| {
        let keys: Vec<_> = rendition.keys.iter().map(|key| &**key).collect();
        json!({"keys": keys, "lastSeen": rendition.last_seen})
    });
    let mut outcome = json!({
        "maySee": found.rendition.is_some(),
        "told": found.told,
        "standing": standing,
    });
    set(&mut outcome, "rendition", rendition);
    set(&mut outcome, "retryAt", retry_at.map(Value::from));
    set(&mut outcome, "kept", found.is_kept.then_some(true.into()));
    let missing = "the directory has no answer yet".to_owned();
    let why = match &found.failure {
        Some(failure) => Some(format!("plugin `{}`: {}", failure.plugin, failure.error)),
        None if !found.cache_misses.is_empty() => Some(missing),
        None => found
            .is_self
            .then(|| "a user is never in their own audience".into()),
    };
    set(&mut outcome, "why", why.map(Value::from));
    let body = json!({
        "viewerId": viewer,
        "userId": user,
        "status": if online { "online" } else { "offline" },
        "event": event,
        "generation": generation,
        "stages": found.stages.iter().map(stage).collect::<Vec<_>>(),
        "outcome": outcome,
    });
    body.to_string().into_bytes()
}

/// A stage in an explanation.
pub fn stage(report: &StageReport) -> Value {
    let mut stage = json!({
        "plugin": &*report.plugin,
        "version": report.version,
        "sha256": &*report.sha256,
        "role": report.role,
        "turn": report.outcome.as_str(),
        "reasons": report.reasons,
    });
    let of_viewer = !report.viewer_reasons.is_empty();
    let of_viewer = of_viewer.then(|| report.viewer_reasons.clone().into());
    set(&mut stage, "viewerReasons", of_viewer);
    let is_fallback = report.is_fallback.then_some(Value::Bool(true));
    set(&mut stage, "standsIn", is_fallback);
    set(
        &mut stage,
        "failure",
        report.failure.clone().map(Value::from),
    );
    stage
}

/// Sets a field if there is a value.
fn set(object: &mut Value, key: &str, value: Option<Value>) {
    if let (Some(object), Some(value)) = (object.as_object_mut(), value) {
        object.insert(key.into(), value);
    }
}
