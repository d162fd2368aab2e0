//! Placeholders: each stands for the unknown connections of a user who is expected.

use std::sync::Arc;

use super::StandbyState;
use crate::event::{Change, Event, Reason};
use crate::metadata::Metadata;
use crate::shard::env::Common;
use crate::shard::presence::Presence;
use crate::tracker::{Connected, TrackerRecord, Transition};

/// The id of a placeholder. No other connection has it.
const PLACEHOLDER_ID: &str = "";

/// A user who is expected, and for whom there is a placeholder.
#[derive(Debug)]
pub(super) struct Placeholder {
    /// Since when they are online, in milliseconds since the Unix epoch.
    pub(super) since: u64,
    /// The offline event, if they seem to have left.
    pub(super) pending_departure: Option<Event>,
}

impl StandbyState {
    /// A user has a transition, and is expected no longer. Returns the event to announce: if they
    /// are offline now, and seemed to have left before, the earlier offline with the new timestamp.
    pub(in crate::shard) fn resolve_placeholder(&mut self, event: Event) -> Event {
        let placeholder = self.placeholders.remove(&event.user);
        match placeholder.and_then(|it| it.pending_departure) {
            Some(left) if event.change != Change::Online => Event {
                timestamp: event.timestamp,
                ..left
            },
            _ => event,
        }
    }
}

impl Presence {
    /// A connection of a user was heard from that wasn't known: ends the placeholder. Returns the
    /// offline, if the placeholder was the last connection.
    pub(in crate::shard) fn end_placeholder(
        &mut self,
        user: &str,
        common: &mut Common,
    ) -> Option<Transition<Metadata>> {
        let placeholders = &mut self.standby.placeholders;
        if placeholders.is_empty() {
            return None;
        }
        let Placeholder { since, .. } = placeholders.remove(&common.names.find(user)?)?;
        let now = common.now();
        let tracker = &mut common.tracker;
        let handled = tracker.disconnect(now, user, PLACEHOLDER_ID, since, Reason::Disconnect);
        handled.transition
    }

    /// A record of a connection is restored: if it is a placeholder, its user is expected.
    pub(in crate::shard) fn restore_placeholder(
        &mut self,
        record: &TrackerRecord<Metadata>,
        common: &Common,
    ) {
        if let TrackerRecord::Connection { user, conn, state } = record
            && &**conn == PLACEHOLDER_ID
            && let Some(Connected::Live { opened, .. }) = state
        {
            let placeholders = &mut self.standby.placeholders;
            let (since, left) = (*opened, None);
            placeholders.insert(
                common.names.intern(user),
                Placeholder {
                    since,
                    pending_departure: left,
                },
            );
        }
    }

    /// Expects a user who seems to have left for a while, if this shard doesn't know all of the
    /// user's connections, and viewers know the user as online. Returns whether it does.
    pub(in crate::shard) fn defer_departure(&mut self, event: &Event, common: &mut Common) -> bool {
        let Some(told) = self.placeholder_event(event, common) else {
            return false;
        };
        self.add_placeholder(&told, Some(event.clone()), common);
        true
    }

    /// The event by which viewers know a user who has left, as it seems. `None`: don't expect them.
    pub(super) fn placeholder_event(&self, event: &Event, common: &Common) -> Option<Arc<Event>> {
        if event.change == Change::Online || self.knows_all_connections(event.user, common) {
            return None;
        }
        self.announced_online(event.user)
    }

    /// Adds a placeholder for a user's unknown connections. `left`: the offline event, if the user
    /// seems to have left. Then the placeholder ends when this shard is sure again.
    pub(super) fn add_placeholder(
        &mut self,
        event: &Event,
        left: Option<Event>,
        common: &mut Common,
    ) {
        let now = common.now();
        let left_ms = left.is_some().then(|| self.unsure_ms(common));
        let since = event.timestamp.min(common.clock.stamp());
        let placeholders = &mut self.standby.placeholders;
        placeholders.insert(
            event.user,
            Placeholder {
                since,
                pending_departure: left,
            },
        );
        let (tracker, name) = (&mut common.tracker, event.name.as_str());
        tracker.connect(now, name, PLACEHOLDER_ID, since, || event.metadata.clone());
        if let Some(left_ms) = left_ms {
            tracker.set_lease(name, PLACEHOLDER_ID, left_ms);
        }
    }
}
