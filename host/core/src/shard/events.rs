//! The steps of an event: it is enriched, broadcast, and told to viewers, one after the other. A
//! step that lacks an answer of the directory waits for it, for as long as the settings say, and
//! all later events of the user wait behind it. After that, the event goes on without the enrichers
//! that got no answer. If the redactor got none, viewers are told nothing but the change itself.
//!
//! A user who stays online may be shown by another connection: the newest live one. This goes
//! through the same steps, but is no transition, and no online is broadcast. The ledger's online
//! event is replaced, the enrichers are called for it again, and viewers for whom something differs
//! are notified; later, if the last update was too recent. Rules use the new event at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::env::{Common, Env};
use super::event_queue::EventQueue;
use super::publishing::{subject, updated};
use super::reconcile::publish_offline;
use super::types::Output;
use super::updates::Updates;
use crate::body;
use crate::directory::{Changes, Directory, Question};
use crate::event::{Change, Event};
use crate::metadata::Metadata;
use crate::names::Id;
use crate::publish::Subject;
use crate::recipients::Recipients;
use crate::rules::{Decision, Enriched, Failure};
use crate::share::Assignment;
use crate::status::StatusKeys;
use crate::step::Step;

/// How many users' waiting events go on before new inputs get their turn.
const RESUMED_AT_ONCE: usize = 256;

/// How many users are shown again, or have their status checked, before new inputs get their turn.
const LOOKS_AT_ONCE: usize = 256;

/// A step that can't be taken yet, and the answers that it waits for.
type PendingFetch = (Step, BTreeSet<Question>);

/// The events of the shard's users, and the changes of users who are online.
#[derive(Debug)]
pub(super) struct Events {
    pub(super) queue: EventQueue,
    pub(super) updates: Updates,
}

impl Events {
    /// No events yet.
    pub(super) fn new(updates: Updates) -> Self {
        Self {
            queue: EventQueue::default(),
            updates,
        }
    }

    /// A user came online or went offline. `broadcast_by_shard`: this shard found it, and
    /// broadcasts it; otherwise an application has stated and broadcast it.
    pub(super) fn announce(&mut self, event: Event, broadcast_by_shard: bool, env: &mut Env<'_>) {
        self.take_or_queue(Step::Announce(Arc::new(event), broadcast_by_shard), env);
    }

    /// Takes a step, or queues it behind the waiting ones of its user.
    fn take_or_queue(&mut self, step: Step, env: &mut Env<'_>) {
        let until = env.common.now() + env.common.settings.answer_wait_ms;
        if self.queue.holds(step.event().user) {
            return self.queue.push(step, until);
        }
        self.try_step(step, until, env);
    }

    /// Queues a step behind all others of its user. It is taken soon.
    pub(super) fn queue_step(&mut self, step: Step, common: &Common) {
        let until = common.now() + common.settings.answer_wait_ms;
        match self.queue.holds(step.event().user) {
            true => self.queue.push(step, until),
            false => self.queue.restore(vec![step], until),
        }
    }

    /// Goes on with events whose answers have come, or that have waited for long enough.
    pub(super) fn resume(&mut self, env: &mut Env<'_>) {
        self.updates.decisions.decide_first(env);
        for _ in 0..RESUMED_AT_ONCE {
            if env.is_full() {
                return;
            }
            let Some(user) = self.queue.due(env.common.now()) else {
                break;
            };
            while let Some((step, until)) = self.queue.pop(user)
                && self.try_step(step, until, env)
            {}
        }
    }

    /// Ends all waiting: events go on without the answers, for a limited number of users per call.
    /// Returns whether there are more: then call it again.
    pub(super) fn give_up(&mut self, env: &mut Env<'_>) -> bool {
        let users: Vec<_> = self.queue.waiting().take(RESUMED_AT_ONCE).collect();
        for user in users {
            if env.is_full() {
                break;
            }
            while let Some((step, _)) = self.queue.pop(user) {
                self.try_step(step, env.common.now(), env);
            }
        }
        self.queue.waiting().next().is_some()
    }

    /// Tells changes of users that are due: another connection that is shown, or another status.
    pub(super) fn update(&mut self, env: &mut Env<'_>) {
        let now = env.common.now();
        if let Some(status) = env.common.settings.status {
            env.common.tracker.end_typing(now, status.typing_ms);
        }
        for _ in 0..LOOKS_AT_ONCE {
            if env.is_full() {
                break;
            }
            let Some(user) = env.common.tracker.take_reshown() else {
                break;
            };
            self.reshow(&user, env);
        }
        while let Some(user) = env.common.tracker.take_changed_activities() {
            if env.common.settings.status.is_some()
                && let Some(user) = env.common.names.find(&user)
            {
                self.updates.statuses.check_at(user, now);
            }
        }
        for _ in 0..LOOKS_AT_ONCE {
            if env.is_full() {
                return;
            }
            let Some(user) = self.updates.statuses.pop_due(now) else {
                return;
            };
            if self.updates.check_user(user, env)
                && let Some(name) = env.common.names.name(user)
            {
                self.reshow(name.as_str(), env);
            }
        }
    }

    /// When to call [`Self::resume`].
    pub(super) fn next_deadline(&self, now: u64) -> Option<u64> {
        if !self.updates.decisions.undecided.is_empty() {
            return Some(now);
        }
        self.queue.next_deadline(now)
    }

    /// The directory has changed.
    pub(super) fn directory_changed(&mut self, directory: &Directory, changes: &Changes) {
        self.updates.decisions.directory_changed(directory, changes);
        if directory.is_on_demand() {
            self.queue.directory_changed(directory, changes);
        }
    }

    /// The rules have changed: everyone is decided on again.
    pub(super) fn rules_changed(&mut self) {
        self.updates.decisions.rules_changed();
        self.queue.rules_changed();
    }

    /// Other rules decide on some users: those users are decided on again.
    pub(super) fn reassigned(&mut self, before: Assignment, after: Assignment, common: &Common) {
        if before.is_disjoint(&after) {
            return self.rules_changed();
        }
        if before == after {
            return;
        }
        let moves = |user: Id| {
            let name = common.names.name(user);
            name.is_some_and(|name| before.moves(&after, name.as_str()))
        };
        self.updates.decisions.reassigned(moves);
        self.queue.reassigned(moves);
    }

    /// Has everyone decided on again, if the last good generation of a plugin has taken over.
    pub(super) fn apply_replaced_rules(&mut self, env: &mut Env<'_>) {
        if env.rules_were_replaced() {
            self.rules_changed();
        }
    }

    /// A user who stays online is to be shown by what the shown connection says now.
    fn reshow(&mut self, user: &str, env: &mut Env<'_>) {
        let at = env.common.clock.stamp();
        let event = env
            .common
            .event(user, at, Change::Online, Metadata::default());
        self.take_or_queue(Step::Reshow(Arc::new(event)), env);
    }

    /// Takes a step. Returns whether it is done; otherwise it waits.
    fn try_step(&mut self, step: Step, until: u64, env: &mut Env<'_>) -> bool {
        let taken = match step {
            Step::Announce(event, broadcast_by_shard) => {
                self.try_announce(event, broadcast_by_shard, until, env)
            }
            Step::Notify(event, recipients) => try_notify(event, recipients, until, env),
            Step::Reshow(event) => self.try_reshow(event, until, env),
        };
        let Err((step, questions)) = taken else {
            return true;
        };
        env.out.push(Output::Fetch(questions.clone()));
        self.queue.put_first(step, until, questions);
        false
    }

    fn try_announce(
        &mut self,
        event: Arc<Event>,
        broadcast_by_shard: bool,
        until: u64,
        env: &mut Env<'_>,
    ) -> Result<(), PendingFetch> {
        let event = self
            .updates
            .with_status(event, broadcast_by_shard, env.common);
        let enriched = match enrich(&event, until, env) {
            Ok(enriched) => enriched,
            Err(questions) => return Err((Step::Announce(event, broadcast_by_shard), questions)),
        };
        let event = broadcast(event, enriched, broadcast_by_shard, env);
        if event.change == Change::Online {
            self.updates.online(&event, !broadcast_by_shard, env);
            return Ok(());
        }
        let status_waits = self.updates.waits(event.user, env.common);
        let recipients = self.updates.decisions.offline(&event, status_waits);
        if recipients.is_empty() {
            return Ok(());
        }
        try_notify(event, recipients, until, env)
    }

    fn try_reshow(
        &mut self,
        event: Arc<Event>,
        until: u64,
        env: &mut Env<'_>,
    ) -> Result<(), PendingFetch> {
        let updates = &mut self.updates;
        let common = &*env.common;
        // The user may have left meanwhile, by connections or by an application's statement.
        let entry = updates.decisions.ledger.get(event.user);
        let Some((entry, shown)) = entry.zip(common.tracker.shown(event.name.as_str())) else {
            return Ok(());
        };
        let (before, current) = (Arc::clone(&entry.event), Arc::clone(entry.current()));
        let too_soon = updates.next_at(event.user, common);
        let has_statuses = common.settings.status.is_some();
        let metadata = match (has_statuses, too_soon) {
            (false, _) => shown.clone(),
            // It is too soon to tell a change of the status.
            (true, Some(_)) => StatusKeys::of(&before.metadata).put_into(shown),
            (true, None) => updates.current_status(&before, common).put_into(shown),
        };
        let plain = Arc::new(Event {
            metadata,
            ..Event::clone(&before)
        });
        let enriched = match enrich(&plain, until, env) {
            Ok(enriched) => enriched,
            Err(questions) => return Err((Step::Reshow(event), questions)),
        };
        for failure in &enriched.failures {
            env.plugin_failed(&plain, failure, None);
        }
        updates.decisions.ledger.end_stated(event.user);
        let after = enriched_if_it_fits(plain, &enriched, env);
        let differs = |from: &Event| !after.metadata.entries().eq(from.metadata.entries());
        // A change of metadata that only rules see is no news.
        let is_news = has_statuses && !after.metadata.reads_as(&before.metadata);
        match too_soon.filter(|_| is_news) {
            Some(at) => {
                updates.statuses.reshow_at(event.user, at);
                if differs(&current) {
                    updates.decisions.show_later(after, env);
                }
            }
            None if is_news && updates.change(Arc::clone(&after), env) => {}
            None if differs(&before) || !Arc::ptr_eq(&current, &before) => {
                updates.decisions.show(after, env);
            }
            None => {}
        }
        Ok(())
    }
}

fn try_notify(
    event: Arc<Event>,
    recipients: Recipients,
    until: u64,
    env: &mut Env<'_>,
) -> Result<(), PendingFetch> {
    let renditions = match env.ask_redactor(&event, recipients.audience()) {
        Decision::Decided(renditions, _) => renditions,
        Decision::CacheMiss(questions) if env.common.now() < until => {
            return Err((Step::Notify(event, recipients), questions));
        }
        Decision::CacheMiss(_) => Vec::new(),
        Decision::Failed(failure) => {
            env.plugin_failed(&event, &failure, None);
            Vec::new()
        }
    };
    publish_offline(&event, &recipients, renditions, env);
    Ok(())
}

/// What the enrichers make of an event. `Err`: the answers that they lack, if there is time to wait
/// for them.
fn enrich(
    event: &Arc<Event>,
    until: u64,
    env: &mut Env<'_>,
) -> Result<Enriched, BTreeSet<Question>> {
    let mut enriched = env.ask_enrichers(event);
    if !enriched.cache_misses.is_empty() {
        if env.common.now() < until {
            return Err(enriched.cache_misses);
        }
        let late = |plugin| Failure {
            plugin,
            error: "the directory did not answer in time".into(),
        };
        let unanswered = enriched.unanswered.drain(..).map(late);
        enriched.failures.extend(unanswered);
    }
    Ok(enriched)
}

/// Broadcasts an event with the changes of the enrichers, and returns that event.
fn broadcast(
    plain: Arc<Event>,
    enriched: Enriched,
    broadcast_by_shard: bool,
    env: &mut Env<'_>,
) -> Arc<Event> {
    let mut shared = Arc::clone(&plain);
    if !enriched.changes.is_empty() {
        shared = Arc::new(plain.changed(&enriched.changes));
    }
    let mut body = body::event(&shared);
    let body_bytes_max = env.common.settings.body_bytes_max;
    if !enriched.changes.is_empty() && body.len() > body_bytes_max {
        let error = enriched_too_large(body.len(), body_bytes_max);
        (body, shared) = (body::event(&plain), plain);
        env.too_large(subject(&shared), &body, error);
    }
    for failure in &enriched.failures {
        env.plugin_failed(&shared, failure, None);
    }
    let body = Bytes::from(body);
    // An application has published its own event on its own subject already.
    if broadcast_by_shard {
        env.publish(subject(&shared), body.clone());
    }
    env.publish(Subject::Events, body);
    shared
}

/// An event with the changes of the enrichers; or without them, if that is too long for the broker.
fn enriched_if_it_fits(plain: Arc<Event>, enriched: &Enriched, env: &mut Env<'_>) -> Arc<Event> {
    if enriched.changes.is_empty() {
        return plain;
    }
    let after = plain.changed(&enriched.changes);
    let body = body::event(&updated(&after, env.common.clock.stamp()));
    let body_bytes_max = env.common.settings.body_bytes_max;
    if body.len() <= body_bytes_max {
        return Arc::new(after);
    }
    let error = enriched_too_large(body.len(), body_bytes_max);
    env.too_large(Subject::Updated, &body, error);
    plain
}

fn enriched_too_large(bytes: usize, max: usize) -> String {
    format!(
        "with the enrichers' changes the event is {bytes} bytes long, and the broker's limit is {max}: it is processed without them"
    )
}
