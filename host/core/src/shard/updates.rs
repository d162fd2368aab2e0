//! Changes of users while they are online: their statuses.
//!
//! The activities of a user's connections and the user's own status are merged into two keys of the
//! ledger's online event. When their value changes, the change is broadcast and published like any
//! other change of the event, at most once per user and interval: the first change at once, later
//! ones together at the end of the interval.

use std::sync::Arc;

use super::decisions::Decisions;
use super::env::{Common, Env};
use super::publishing::updated;
use crate::body;
use crate::event::{Change, Event};
use crate::message::Rejection;
use crate::metadata::CheckedMetadata;
use crate::names::{Id, Name};
use crate::publish::Subject;
use crate::quota::Quota;
use crate::status::{StatusKeys, StatusUpdate, Statuses};

/// The statuses of the shard's users, and the decisions on their online events.
#[derive(Debug)]
pub(super) struct Updates {
    pub(super) statuses: Statuses,
    pub(super) decisions: Decisions,
}

impl Updates {
    /// No statuses yet.
    pub(super) fn new(decisions: Decisions) -> Self {
        Self {
            statuses: Statuses::default(),
            decisions,
        }
    }

    /// Takes in a connection's status update. If the user's own status isn't kept, returns why.
    pub(super) fn apply_status(
        &mut self,
        user: &str,
        conn: &str,
        timestamp: u64,
        metadata: Option<CheckedMetadata<'_>>,
        common: &mut Common,
    ) -> Option<Rejection> {
        let users_max = common.settings.status?.users_max;
        let metadata = metadata?;
        let now = common.now();
        let update = StatusUpdate::read(metadata);
        common.counters.unknown_statuses += update.unknown;
        if let Some(activity) = update.activity {
            common
                .tracker
                .set_activity(now, user, conn, timestamp, activity);
        }
        if let Some(status) = update.status {
            let (id, name) = common.names.intern_name(user);
            if !self.statuses.has_room(id, users_max) {
                let error = format!(
                    "the limit of stored statuses is reached ([status] users_max): that of `{user}` \
                     is not stored; the rest of the message was accepted"
                );
                return Some(Rejection::over(Quota::Statuses, error));
            }
            let timestamp = timestamp.min(common.clock.stamp());
            if self.statuses.set(id, &name, timestamp, status) {
                self.statuses.check_at(id, now);
            }
        }
        None
    }

    /// An online event with the user's current status in it. If viewers have been told of the user
    /// already, a change of the status is an update, which may have to wait. An application's own
    /// event (not `broadcast_by_shard`) can't be one, so it gets the status that viewers know.
    pub(super) fn with_status(
        &mut self,
        event: Arc<Event>,
        broadcast_by_shard: bool,
        common: &Common,
    ) -> Arc<Event> {
        // Only an application describes a user without a connection.
        if common.settings.status.is_none()
            || event.change != Change::Online
            || !common.tracker.is_online(event.name.as_str())
        {
            return event;
        }
        let told = self.decisions.ledger.get(event.user);
        let told = told.map(|entry| Arc::clone(&entry.event));
        let waits = !broadcast_by_shard || self.next_at(event.user, common).is_some();
        let reading = match told {
            Some(told) if waits => {
                self.statuses.check_at(event.user, common.now());
                StatusKeys::of(&told.metadata)
            }
            told => {
                let clock = &common.clock;
                if let Some(at) = self.statuses.expires_at(clock.wall(), event.user) {
                    self.statuses.check_at(event.user, clock.now_at(at));
                }
                self.current_status(told.as_ref().unwrap_or(&event), common)
            }
        };
        let mut event = Arc::unwrap_or_clone(event);
        event.metadata = reading.put_into(&event.metadata);
        Arc::new(event)
    }

    /// A user was announced as online. If viewers have been told of the user already, the event may
    /// have updated the status. `is_stated`: an application has announced it.
    pub(super) fn online(&mut self, event: &Arc<Event>, is_stated: bool, env: &mut Env<'_>) {
        let told = self.decisions.ledger.get(event.user);
        let told = told.map(|entry| StatusKeys::of(&entry.event.metadata));
        if told.is_some_and(|told| told != StatusKeys::of(&event.metadata)) {
            self.statuses.note_broadcast(env.common.now(), event.user);
        }
        if is_stated {
            // It is shown in place of the connections, as they are now.
            self.statuses.take_reshow(event.user);
        }
        self.decisions.online(event, is_stated, env);
    }

    /// Whether a change of a user's status waits until it may be told. It hasn't been decided on
    /// then.
    pub(super) fn waits(&self, user: Id, common: &Common) -> bool {
        let settings = common.settings.status;
        settings.is_some_and(|it| self.statuses.waits(user, it.min_interval_ms))
    }

    /// A user's last connection is gone: forgets the status.
    pub(super) fn user_left(&mut self, user: Id, name: &Name, common: &Common) {
        if self.waits(user, common)
            && let Some(entry) = self.decisions.ledger.get_mut(user)
        {
            entry.was_undecided = true;
        }
        self.statuses.forget(user, name);
        self.decisions.forget_update(user);
    }

    /// Forgets all statuses, and has what was told of them taken back.
    pub(super) fn forget_all(&mut self, common: &mut Common) {
        let now = common.now();
        for user in common.tracker.forget_activities() {
            let user = common.names.intern(&user);
            self.statuses.check_at(user, now);
        }
        for user in self.statuses.users() {
            if let Some(name) = common.names.name(user) {
                self.statuses.clear(user, &name);
            }
            self.statuses.check_at(user, now);
        }
    }

    /// The wall clock has moved: checks statuses that expire.
    pub(super) fn clock_moved(&mut self, now: u64) {
        self.decisions.clock_moved();
        for user in self.statuses.expiring() {
            self.statuses.check_at(user, now);
        }
    }

    /// The status that a user's online event is to have now.
    pub(super) fn current_status(&self, event: &Event, common: &Common) -> StatusKeys {
        if common.settings.status.is_none() {
            return StatusKeys::default();
        }
        let name = event.name.as_str();
        let status = self.statuses.status(common.clock.wall(), event.user);
        if common.tracker.is_connected(name) {
            let activity = common.tracker.activity(name);
            return StatusKeys {
                activity: activity.map(|activity| activity.json().into()),
                status: status.flatten(),
            };
        }
        // In a grace, and for a user whom an application stated, all stays as it is.
        let told = StatusKeys::of(&event.metadata);
        StatusKeys {
            activity: told.activity,
            status: status.unwrap_or(told.status),
        }
    }

    /// Checks whether a user is shown with the right status, and corrects it, unless that would be
    /// too soon. Returns whether the user is to be shown by another connection now, which was put
    /// off.
    pub(super) fn check_user(&mut self, user: Id, env: &mut Env<'_>) -> bool {
        let deferred = self.statuses.take_reshow(user);
        // A user who is shown again gets the current status. If statuses have been turned off, what
        // was told of them is taken back first.
        if !deferred || env.common.settings.status.is_none() {
            self.check_status(user, env);
        }
        deferred
    }

    fn check_status(&mut self, user: Id, env: &mut Env<'_>) {
        let common = &*env.common;
        let Some(entry) = self.decisions.ledger.get(user) else {
            return;
        };
        // Another connection is about to be shown, with the current status.
        if entry.untold_event.is_some() && common.settings.status.is_some() {
            return;
        }
        let before = Arc::clone(&entry.event);
        if let Some(at) = self.statuses.expires_at(common.clock.wall(), user) {
            self.statuses.check_at(user, common.clock.now_at(at));
        }
        let reading = self.current_status(&before, common);
        if reading == StatusKeys::of(&before.metadata) {
            return;
        }
        if let Some(next_at) = self.next_at(user, common) {
            return self.statuses.check_at(user, next_at);
        }
        let event = Arc::new(Event {
            metadata: reading.put_into(&before.metadata),
            ..Event::clone(&before)
        });
        // If the event is too large to be told, it stays as it was.
        self.change(event, env);
    }

    /// When a user may be updated again. `None`: at once.
    pub(super) fn next_at(&self, user: Id, common: &Common) -> Option<u64> {
        let min_interval_ms = common.settings.status?.min_interval_ms;
        let next_at = self
            .statuses
            .broadcast_at(user)?
            .saturating_add(min_interval_ms);
        (next_at > common.now()).then_some(next_at)
    }

    /// Broadcasts a change of an online user, and tells viewers. If the body is too long for the
    /// broker, only makes a dead letter, and returns `false`.
    pub(super) fn change(&mut self, event: Arc<Event>, env: &mut Env<'_>) -> bool {
        let body = body::event(&updated(&event, env.common.clock.stamp()));
        let body_bytes_max = env.common.settings.body_bytes_max;
        if body.len() > body_bytes_max {
            let error = format!(
                "with what has changed the event is {} bytes long, and the broker takes {body_bytes_max}: it is not broadcast",
                body.len(),
            );
            env.too_large(Subject::Updated, &body, error);
            return false;
        }
        env.publish(Subject::Updated, body);
        self.statuses.note_broadcast(env.common.now(), event.user);
        self.decisions.show_update(event, env);
        true
    }
}
