//! Telling what changes of users while they are online: their statuses.
//!
//! Connections and the users' own words are merged into two keys of the online
//! event that the ledger holds. Where they come to read otherwise, that is
//! broadcast, the rules decide again, and of those who stay told whoever sees a
//! difference is told of it. Of a user that happens once in an interval at most:
//! a change is told at once, and what follows it too soon is looked at again when
//! the interval is over.

use std::sync::Arc;

use super::tell::Told;
use super::{Output, Shard};
use crate::audience::Audience;
use crate::body;
use crate::event::{Change, Event};
use crate::message::{Cause, Rejection};
use crate::names::Id;
use crate::publish::Subject;
use crate::rules::{Rendition, Rules};
use crate::status::{Reading, Said, Shown};
use crate::verdicts::Verdict;

/// How many users are looked at before new inputs get their turn.
const LOOKS_AT_ONCE: usize = 256;

impl Shard {
    /// Heeds what a connection says of its user's status.
    pub(super) fn heed(&mut self, user: &str, conn: &str, timestamp: u64, metadata: Option<&str>) {
        let Some(metadata) = metadata.filter(|_| self.settings.status.is_some()) else {
            return;
        };
        let said = Said::read(metadata);
        self.counters.unknown_statuses += said.unknown;
        if let Some(activity) = said.activity {
            self.tracker
                .set_activity(self.now, user, conn, timestamp, activity);
        }
        if let Some(status) = said.status {
            let (id, name) = self.names.intern_name(user);
            let timestamp = timestamp.min(self.now);
            if self.statuses.say(id, &name, timestamp, status) {
                self.statuses.look_at(id, self.now);
            }
        }
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
                if let Some(at) = self.statuses.expires_at(self.now, event.user) {
                    self.statuses.look_at(event.user, at);
                }
                self.reading(&event)
            }
        };
        let mut event = Arc::unwrap_or_clone(event);
        event.metadata = reading.put_into(&event.metadata);
        Arc::new(event)
    }

    /// Tells what has changed, of whom it is time to.
    pub(super) fn update(&mut self, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        while let Some(user) = self.tracker.take_stirred() {
            if self.settings.status.is_some()
                && let Some(user) = self.names.find(&user)
            {
                self.statuses.look_at(user, self.now);
            }
        }
        for _ in 0..LOOKS_AT_ONCE {
            let Some(user) = self.statuses.pop_due(self.now) else {
                return;
            };
            self.look(user, rules, out);
        }
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
    fn reading(&self, event: &Event) -> Reading {
        if self.settings.status.is_none() {
            return Reading::default();
        }
        let name = event.name.as_str();
        let status = self.statuses.status(self.now, event.user);
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

    /// Looks whether a user's online event reads as it is to, and changes it where
    /// it doesn't, unless that would be too soon.
    fn look(&mut self, user: Id, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        let Some(entry) = self.ledger.get(user) else {
            return;
        };
        let pending = self.agenda.pending_until(user).is_some();
        let before = Arc::clone(&entry.event);
        if let Some(at) = self.statuses.expires_at(self.now, user) {
            self.statuses.look_at(user, at);
        }
        let reading = self.reading(&before);
        if reading == Reading::of(&before.metadata) {
            return;
        }
        let min_interval_ms = self
            .settings
            .status
            .map_or(0, |status| status.min_interval_ms);
        if let Some(told_at) = self.statuses.told_at(user)
            && let next_at = told_at.saturating_add(min_interval_ms)
            && next_at > self.now
        {
            return self.statuses.look_at(user, next_at);
        }
        let event = Arc::new(Event {
            metadata: reading.put_into(&before.metadata),
            ..Event::clone(&before)
        });
        let body = body::event(&updated(&event, self.now));
        let body_bytes_max = self.settings.body_bytes_max;
        if body.len() > body_bytes_max {
            let error = format!(
                "with its status the event is {} bytes long, and the broker takes {body_bytes_max}: it stays as it was",
                body.len(),
            );
            let rejection = Rejection::new(Cause::TooLarge, error);
            return self.dead_letter(Subject::Updated.as_str(), &rejection, &body, out);
        }
        self.publish(Subject::Updated, body, out);
        let verdict = self.verdicts.last(user);
        if let Some(entry) = self.ledger.get_mut(user) {
            entry.event = Arc::clone(&event);
        }
        self.ledger.note(user);
        let shown = Shown {
            event: before,
            verdict,
        };
        self.statuses.tell(self.now, user, shown);
        // A decision that is put off takes this in when it is made. Where one of a
        // correction is still to come, nobody gains sight of the user before their turn.
        if !pending {
            let told = match self.backlog.has(user) {
                true => Told::Losses,
                false => Told::All,
            };
            self.decide(&event, told, rules, out);
        }
        self.statuses.put_off(user, &event.name);
    }

    /// Tells an update to those who stay told of a user, where they see a
    /// difference.
    pub(super) fn tell_update(
        &mut self,
        event: &Event,
        verdict: &Verdict,
        told: &Audience,
        out: &mut Vec<Output>,
    ) {
        let Some(shown) = self.statuses.take_shown(event.user, &event.name) else {
            return;
        };
        let updated = updated(event, self.statuses.told_at(event.user).unwrap_or(self.now));
        for rendition in &verdict.renditions {
            let after = visible(event, rendition);
            let mut rest = rendition.audience.intersection(told);
            let mut viewers = Audience::nobody();
            // Who isn't found in the last verdict is taken to have seen the same keys.
            let last = shown.verdict.iter().flat_map(|last| &last.renditions);
            for before in last.chain([rendition]) {
                let both = rest.intersection(&before.audience);
                if both.is_empty() {
                    continue;
                }
                if visible(&shown.event, before) != after {
                    viewers = viewers.union(&both);
                }
                rest = rest.difference(&both);
            }
            self.tell(&updated, rendition, &viewers, out);
        }
    }
}

/// What is told of an online event whose metadata has changed.
fn updated(event: &Event, at: u64) -> Event {
    Event {
        timestamp: at,
        change: Change::Updated,
        ..event.clone()
    }
}

/// The metadata that a rendition shows, as JSON text.
fn visible(event: &Event, rendition: &Rendition) -> Vec<u8> {
    let mut json = Vec::with_capacity(128);
    event
        .metadata
        .write_public(&mut json, |key| rendition.shows(key));
    json
}
