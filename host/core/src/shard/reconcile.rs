//! What each viewer has been shown, brought in line with a verdict.
//!
//! The ledger knows who has been told of an online user, and what each of them was
//! shown last. Whatever changes that (rules, directory, time, another event to show, a
//! status), the difference is worked out here, and told: nothing else compares.

use super::dirty_users::Phase;
use super::env::Env;
use super::publishing::{bare, updated};
use crate::audience::Audience;
use crate::event::{Change, Event, Reason};
use crate::ledger::LedgerEntry;
use crate::recipients::{Recipients, ShownDigest};
use crate::rules::Rendition;
use crate::verdicts::Verdict;

/// What came of settling an entry.
pub(super) enum Reconciled {
    /// Everyone has been told already.
    Unchanged,
    /// All who see a difference have been told.
    Published {
        /// Whether the entry is another.
        differs: bool,
    },
    /// Viewers who lost sight of the user have been told. Others are still to be told.
    Remaining {
        /// Whether the entry is another.
        differs: bool,
    },
}

/// Brings what each viewer has been told in line with a verdict on the user's online
/// event. Who lost sight of the user is told first, then who is shown something
/// else than what they were shown last, then who gained sight.
///
/// The difference is all that is told, whatever it comes from: the ledger knows what
/// each viewer was shown. `updated_at` is the stamp of an update that was broadcast and
/// that viewers haven't been told of.
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
    // What may not be told yet is told later.
    let waits = entry.next.is_some();
    let deferred = (waits || phase == Phase::Losses) && !messages.is_empty();
    let recipients = if deferred {
        before.without(&lost)
    } else {
        after
    };
    let differs = recipients != before;
    entry.recipients = recipients;
    publish_lost(event, &before, &lost, entry.lag_ms, env);
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

/// Tells those who lost sight of a user that they are gone, just as if the user had
/// left at this moment: a viewer gets the fields that they would have got by the
/// verdict under which they were told, and the times that a disconnect would have
/// which is as long on its way as the user's connect was.
fn publish_lost(
    event: &Event,
    before: &Recipients,
    lost: &Audience,
    lag_ms: u64,
    env: &mut Env<'_>,
) {
    if lost.is_empty() {
        return;
    }
    let common = &mut *env.common;
    common.counters.corrected += lost.len();
    let late_ms = common.tracker.grace_ms(event.name.as_str()) + lag_ms;
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

/// What a rendition tells to those who haven't been shown it.
struct PendingMessages<'a> {
    rendition: &'a Rendition,
    /// Those who were shown something else before.
    changed: Audience,
    /// Those who were shown nothing.
    gained: Audience,
}

/// What a verdict on an online event tells viewers who keep or gain sight of the user.
fn messages<'a>(
    event: &Event,
    verdict: &'a Verdict,
    before: &Recipients,
) -> Vec<PendingMessages<'a>> {
    let messages = verdict.renditions.iter().map(|rendition| {
        let viewers = &rendition.audience;
        PendingMessages {
            rendition,
            changed: before.shown_otherwise(viewers, ShownDigest::of(event, rendition)),
            gained: viewers.difference(before.audience()),
        }
    });
    messages
        .filter(|messages| !(messages.changed.is_empty() && messages.gained.is_empty()))
        .collect()
}

/// Tells those who were told that a user is online that they are gone: each of them what
/// the redactor gives them, and all others no more than that.
pub(super) fn publish_offline(
    event: &Event,
    recipients: &Recipients,
    renditions: Vec<Rendition>,
    env: &mut Env<'_>,
) {
    let verdict = Verdict::new(event.user, renditions);
    let may_know = recipients.may_know_last_seen();
    // No viewer keeps showing the user as online.
    let mut rest = recipients.audience().difference(&verdict.audience);
    for rendition in &verdict.renditions {
        let mut viewers = rendition.audience.intersection(recipients.audience());
        // Both must allow it: the last verdict while online, and the current redactor.
        if rendition.last_seen {
            rest = rest.union(&viewers.difference(&may_know));
            viewers = viewers.intersection(&may_know);
        }
        env.publish_filtered(event, rendition, &viewers);
    }
    env.publish_filtered(event, &bare(&rest), &rest);
}
