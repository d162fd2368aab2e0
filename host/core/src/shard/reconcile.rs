//! Brings what each viewer has been shown in line with a verdict.
//!
//! The ledger knows who has been told of an online user, and what each of them was shown last.
//! Whatever changes that (rules, directory, time, another event to show, a status), the difference
//! is found and told here, and nowhere else.

use super::dirty_users::Phase;
use super::env::Env;
use super::publishing::{bare, updated};
use crate::audience::Audience;
use crate::event::{Change, Event, Reason};
use crate::ledger::LedgerEntry;
use crate::recipients::{Recipients, ShownDigest};
use crate::rules::Rendition;
use crate::verdicts::Verdict;

/// The result of [`reconcile`].
pub(super) enum Reconciled {
    /// There is nothing to tell.
    Unchanged,
    /// All viewers who see a difference have been told.
    Published {
        /// Whether the entry has changed.
        differs: bool,
    },
    /// Only viewers who lost sight of the user have been told. Others are still to be told.
    Remaining {
        /// Whether the entry has changed.
        differs: bool,
    },
}

/// Brings what each viewer has been told in line with a verdict on the user's online event. Viewers
/// who lost sight of the user are told first, then those who are shown something else than before,
/// then those who gained sight.
///
/// Only differences are told, whatever their cause: the ledger knows what each viewer was shown.
/// `updated_at`: the stamp of an update that was broadcast, and of which viewers haven't been told.
pub(super) fn reconcile(
    entry: &mut LedgerEntry,
    event: &Event,
    verdict: &Verdict,
    phase: Phase,
    updated_at: Option<u64>,
    env: &mut Env<'_>,
) -> Reconciled {
    let after = Recipients::by(event, verdict);
    if entry.recipients.same(&after) {
        return Reconciled::Unchanged;
    }
    let before = entry.recipients.clone();
    let lost = before.audience().difference(&verdict.audience);
    let messages = messages(event, verdict, &before);
    // Gains and changes are told later, if the event or the phase doesn't allow them yet.
    let waits = entry.untold_event.is_some();
    let deferred = (waits || phase == Phase::Losses) && !messages.is_empty();
    let recipients = if deferred {
        before.without(&lost)
    } else {
        after
    };
    // Most often, somebody is told who wasn't before: no need to compare one by one.
    let differs = before.is_empty() != recipients.is_empty() || recipients != before;
    entry.recipients = recipients;
    publish_lost(event, &before, &lost, entry.connect_delay_ms, env);
    if deferred {
        return Reconciled::Remaining { differs };
    }
    let anew = match updated_at {
        Some(at) => &updated(event, at),
        None if env.common.settings.status.is_some() => &updated(event, env.common.clock.stamp()),
        None => event,
    };
    for messages in &messages {
        env.publish_filtered(anew, messages.rendition, &messages.changed);
    }
    for messages in &messages {
        env.publish_filtered(event, messages.rendition, &messages.gained);
    }
    Reconciled::Published { differs }
}

/// Tells viewers who lost sight of a user that the user is offline, just as if the user had left
/// now. A viewer gets the fields that the verdict gave them under which they were told. The times
/// are those that a disconnect would have that is on its way for as long as the user's connect was.
fn publish_lost(
    event: &Event,
    before: &Recipients,
    lost: &Audience,
    connect_delay_ms: u64,
    env: &mut Env<'_>,
) {
    if lost.is_empty() {
        return;
    }
    let common = &mut *env.common;
    common.counters.corrected += lost.len();
    let late_ms = common.tracker.grace_ms(event.name.as_str()) + connect_delay_ms;
    let at = common.clock.stamp();
    let gone = Event {
        timestamp: at,
        change: Change::Offline {
            last_seen: at.saturating_sub(late_ms),
            reason: Reason::Disconnect,
        },
        ..event.clone()
    };
    for (viewers, shown) in before.parts() {
        let viewers = viewers.intersection(lost);
        let rendition = Rendition {
            last_seen: shown.last_seen(),
            ..bare(&viewers)
        };
        env.publish_filtered(&gone, &rendition, &viewers);
    }
}

/// A rendition, and the viewers who haven't been shown it.
struct PendingMessages<'a> {
    rendition: &'a Rendition,
    /// Viewers who were shown something else before.
    changed: Audience,
    /// Viewers who were shown nothing before.
    gained: Audience,
}

/// What a verdict on an online event has to tell viewers who keep or gain sight of the user.
fn messages<'a>(
    event: &Event,
    verdict: &'a Verdict,
    before: &Recipients,
) -> Vec<PendingMessages<'a>> {
    let messages = verdict.renditions.iter().map(|rendition| {
        let viewers = &rendition.audience;
        let changed = match before.is_empty() {
            true => Audience::nobody(),
            false => before.shown_differently(viewers, ShownDigest::of(event, rendition)),
        };
        PendingMessages {
            rendition,
            changed,
            gained: viewers.difference(before.audience()),
        }
    });
    messages
        .filter(|messages| !(messages.changed.is_empty() && messages.gained.is_empty()))
        .collect()
}

/// Tells the viewers who were told of a user that the user is offline: each of them what the
/// redactor shows them, and all others nothing but that.
pub(super) fn publish_offline(
    event: &Event,
    recipients: &Recipients,
    renditions: Vec<Rendition>,
    env: &mut Env<'_>,
) {
    let verdict = Verdict::new(event.user, renditions);
    let may_know = recipients.may_know_last_seen();
    // All of them are told, so that no viewer keeps showing the user as online.
    let mut rest = recipients.audience().difference(&verdict.audience);
    for rendition in &verdict.renditions {
        let mut viewers = rendition.audience.intersection(recipients.audience());
        // The last verdict while online and the current redactor both have to allow it.
        if rendition.last_seen {
            rest = rest.union(&viewers.difference(&may_know));
            viewers = viewers.intersection(&may_know);
        }
        env.publish_filtered(event, rendition, &viewers);
    }
    env.publish_filtered(event, &bare(&rest), &rest);
}
