//! Explaining to an operator why a viewer can or can't see a user.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::env::Env;
use super::events::Events;
use super::types::Output;
use crate::body::explain::{DeliveryState, EventOrigin, ExplainReport};
use crate::event::{Change, Event};
use crate::metadata::Metadata;
use crate::rules::Decision;
use crate::verdicts::Verdict;

/// Decides on the last announced event of a user, and explains the decision on a viewer. It changes
/// nothing that viewers are told.
pub(super) fn explain(
    wall: u64,
    viewer: &str,
    user: &str,
    events: &mut Events,
    env: &mut Env<'_>,
) -> ExplainReport {
    let decisions = &events.updates.decisions;
    let names = &env.common.names;
    let viewer = names.intern(viewer);
    let (user, name) = names.intern_name(user);
    let entry = decisions.ledger.get(user);
    let told = entry.is_some_and(|entry| entry.recipients.contains(viewer));
    let pending = decisions.retries.pending_until(user);
    let pending = pending.map(|at| env.common.clock.wall_at(at));
    let (event, basis) = match entry {
        Some(entry) => (Arc::clone(entry.current()), EventOrigin::Online),
        None => match decisions.departed.event(user, names) {
            Some(event) => (Arc::new(event), EventOrigin::Departed),
            None => {
                let event = Event {
                    user,
                    name,
                    timestamp: wall,
                    change: Change::Online,
                    metadata: Metadata::default(),
                };
                (Arc::new(event), EventOrigin::Hypothetical)
            }
        },
    };
    let explanation = env.ask_why(wall, &event, viewer);
    events.apply_replaced_rules(env);
    let (rendition, cache_misses, failure) = match explanation.decision {
        Decision::Decided(renditions, reads) => {
            let departed = &events.updates.decisions.departed;
            let verdict = match basis {
                EventOrigin::Departed => departed.admitted(user, renditions, &reads),
                EventOrigin::Online | EventOrigin::Hypothetical => Verdict::new(user, renditions),
            };
            (verdict.rendition(viewer).cloned(), BTreeSet::new(), None)
        }
        Decision::CacheMiss(questions) => {
            env.out.push(Output::Fetch(questions.clone()));
            (None, questions, None)
        }
        Decision::Failed(failure) => (None, BTreeSet::new(), Some(failure)),
    };
    let is_undecided = !cache_misses.is_empty() || failure.is_some();
    // As for a query: a verdict that is kept holds until something changes that it was made from.
    let kept = (basis == EventOrigin::Online && env.common.settings.reuse_verdicts)
        .then(|| events.updates.decisions.verdicts.find(wall, &event))
        .flatten();
    let is_kept = is_undecided && kept.is_some();
    let rendition = match &kept {
        Some((verdict, _)) if is_kept => verdict.rendition(viewer).cloned(),
        _ => rendition,
    };
    let delivery = match (basis, rendition.is_some()) {
        (EventOrigin::Departed | EventOrigin::Hypothetical, _) => DeliveryState::Offline,
        (EventOrigin::Online, _) if kept.is_none() && (pending.is_some() || is_undecided) => {
            DeliveryState::Pending(pending)
        }
        (EventOrigin::Online, sees) if sees == told => DeliveryState::Settled,
        (EventOrigin::Online, _) => DeliveryState::Correcting,
    };
    ExplainReport {
        event,
        basis,
        stages: explanation.stages,
        rendition,
        cache_misses,
        failure,
        is_kept,
        told,
        delivery,
        is_self: viewer == user,
    }
}
