//! Telling what changes of users while they are online: their statuses.
//!
//! Connections and the users' own words are merged into two keys of the online
//! event that the ledger holds. Where they come to read otherwise, that is
//! broadcast, and shown as any other change of the event is. Of a user that happens once in an interval at most:
//! a change is told at once, and what follows it too soon is looked at again when
//! the interval is over.

use std::sync::Arc;

use super::settle::updated;
use super::{Output, Shard, is_full};
use crate::body;
use crate::event::{Change, Event};
use crate::message::{Cause, Rejection};
use crate::names::Id;
use crate::publish::Subject;
use crate::rules::Rules;
use crate::status::{Reading, Said};

/// How many users are looked at before new inputs get their turn.
const LOOKS_AT_ONCE: usize = 256;

impl Shard {
    /// Takes in what a connection says of its user's status. Says why it isn't kept what
    /// the user says of themselves, if it isn't.
    pub(super) fn take_status(
        &mut self,
        user: &str,
        conn: &str,
        timestamp: u64,
        metadata: Option<&str>,
    ) -> Option<Rejection> {
        let users_max = self.settings.status?.users_max;
        let metadata = metadata?;
        let said = Said::read(metadata);
        self.counters.unknown_statuses += said.unknown;
        if let Some(activity) = said.activity {
            self.tracker
                .set_activity(self.now, user, conn, timestamp, activity);
        }
        if let Some(status) = said.status {
            let (id, name) = self.names.intern_name(user);
            if !self.statuses.has_room(id, users_max) {
                let error = format!(
                    "the status of as many users is kept as may be ([status] users_max): that of \
                     `{user}` is not, and the rest of the message was taken"
                );
                return Some(Rejection::new(Cause::QuotaExceeded, error));
            }
            let timestamp = timestamp.min(self.clock.stamp());
            if self.statuses.say(id, &name, timestamp, status) {
                self.statuses.look_at(id, self.now);
            }
        }
        None
    }

    /// An online event with the user's status of now in it. Those who have been told
    /// of the user already are told what differs as of any other change.
    pub(super) fn with_status(&mut self, event: Arc<Event>) -> Arc<Event> {
        // Of who has no connection, an application says all there is to say.
        if self.settings.status.is_none()
            || event.change != Change::Online
            || !self.tracker.is_online(event.name.as_str())
        {
            return event;
        }
        let reading = match self.ledger.get(event.user) {
            Some(entry) => {
                self.statuses.look_at(event.user, self.now);
                Reading::of(&entry.event.metadata)
            }
            None => {
                if let Some(at) = self.statuses.expires_at(self.clock.wall(), event.user) {
                    self.statuses.look_at(event.user, self.clock.now_at(at));
                }
                self.reading(&event)
            }
        };
        let mut event = Arc::unwrap_or_clone(event);
        event.metadata = reading.put_into(&event.metadata);
        Arc::new(event)
    }

    /// Tells what has changed of users whose time has come.
    pub(super) fn update(&mut self, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        if let Some(status) = self.settings.status {
            self.tracker.end_typing(self.now, status.typing_ms);
        }
        for _ in 0..LOOKS_AT_ONCE {
            if is_full(out) {
                break;
            }
            let Some(user) = self.tracker.take_reshown() else {
                break;
            };
            self.reshow(&user, rules, out);
        }
        while let Some(user) = self.tracker.take_changed_activities() {
            if self.settings.status.is_some()
                && let Some(user) = self.names.find(&user)
            {
                self.statuses.look_at(user, self.now);
            }
        }
        for _ in 0..LOOKS_AT_ONCE {
            if is_full(out) {
                return;
            }
            let Some(user) = self.statuses.pop_due(self.now) else {
                return;
            };
            self.look(user, rules, out);
        }
    }

    /// Whether a change of a user's status waits until it may be told, and so hasn't
    /// been decided on.
    pub(super) fn status_waits(&self, user: Id) -> bool {
        let settings = self.settings.status;
        settings.is_some_and(|it| self.statuses.waits(user, it.min_interval_ms))
    }

    /// Forgets all statuses, and takes back what was told of them.
    pub(super) fn forget_statuses(&mut self) {
        for user in self.tracker.forget_activities() {
            let user = self.names.intern(&user);
            self.statuses.look_at(user, self.now);
        }
        for user in self.statuses.users() {
            if let Some(name) = self.names.name(user) {
                self.statuses.unsay(user, &name);
            }
            self.statuses.look_at(user, self.now);
        }
    }

    /// How a user's online event is to read now.
    pub(super) fn reading(&self, event: &Event) -> Reading {
        if self.settings.status.is_none() {
            return Reading::default();
        }
        let name = event.name.as_str();
        let status = self.statuses.status(self.clock.wall(), event.user);
        if self.tracker.is_connected(name) {
            let activity = self.tracker.activity(name);
            return Reading {
                activity: activity.map(|activity| activity.json().into()),
                status: status.flatten(),
            };
        }
        // In a grace, and of whom an application tells, all stays as it is.
        let told = Reading::of(&event.metadata);
        Reading {
            activity: told.activity,
            status: status.unwrap_or(told.status),
        }
    }

    /// Looks whether a user is shown as they are to be, and changes it where they
    /// aren't, unless that would be too soon.
    fn look(&mut self, user: Id, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        let put_off = self.statuses.take_reshow(user);
        // What is shown anew has the status of now in it. Where statuses have been turned
        // off, what was told of them is taken back first.
        if !put_off || self.settings.status.is_none() {
            self.look_at_status(user, rules, out);
        }
        if put_off && let Some(name) = self.names.name(user) {
            self.reshow(name.as_str(), rules, out);
        }
    }

    fn look_at_status(&mut self, user: Id, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        let Some(entry) = self.ledger.get(user) else {
            return;
        };
        // Another connection is about to be shown, and the status of now with it.
        if entry.next.is_some() && self.settings.status.is_some() {
            return;
        }
        let before = Arc::clone(&entry.event);
        if let Some(at) = self.statuses.expires_at(self.clock.wall(), user) {
            self.statuses.look_at(user, self.clock.now_at(at));
        }
        let reading = self.reading(&before);
        if reading == Reading::of(&before.metadata) {
            return;
        }
        if let Some(next_at) = self.next_update_at(user) {
            return self.statuses.look_at(user, next_at);
        }
        let event = Arc::new(Event {
            metadata: reading.put_into(&before.metadata),
            ..Event::clone(&before)
        });
        // What is too large to be told stays as it was.
        self.change(&event, rules, out);
    }

    /// When a user may be updated again, if that is not yet.
    pub(super) fn next_update_at(&self, user: Id) -> Option<u64> {
        let min_interval_ms = self.settings.status?.min_interval_ms;
        let next_at = self.statuses.told_at(user)?.saturating_add(min_interval_ms);
        (next_at > self.now).then_some(next_at)
    }

    /// When typing is over that nobody says again.
    pub(super) fn next_typing_end(&self) -> Option<u64> {
        self.tracker
            .next_typing_end(self.settings.status?.typing_ms)
    }

    /// What is shown of an online user has changed: that is broadcast, and told. Says
    /// whether the broker takes that much; if not, nothing happens.
    pub(super) fn change(
        &mut self,
        event: &Arc<Event>,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) -> bool {
        let user = event.user;
        let body = body::event(&updated(event, self.clock.stamp()));
        let body_bytes_max = self.settings.body_bytes_max;
        if body.len() > body_bytes_max {
            let error = format!(
                "with what has changed the event is {} bytes long, and the broker takes {body_bytes_max}: it is not broadcast",
                body.len(),
            );
            let rejection = Rejection::new(Cause::TooLarge, error);
            self.dead_letter(Subject::Updated.as_str(), &rejection, &body, out);
            return false;
        }
        self.publish(Subject::Updated, body, out);
        self.statuses.told(&self.clock, user);
        self.show(Arc::clone(event), rules, out);
        true
    }
}
