//! A standby: a shard that follows the shard of another node, the owner.
//!
//! It takes in what the owner takes in, and tracks the same connections, but decides and publishes
//! nothing. It gets what the owner tells viewers as records, and remembers the transitions that it
//! *missed*: those of which it has no such record yet. When it begins to lead, it announces them,
//! and decides on everyone once: viewers are told only what differs.
//!
//! If viewers were told of a user of whom no connection is known here, the user may still be
//! connected, and is *expected*: a placeholder, which is a connection without an id, stands for the
//! unknown connections, until one of them is heard from, or for one timeout. A shard that begins to
//! lead without all that the owner knew is *unsure* for one timeout. It can't know whether a
//! connection is its user's last, so users who leave meanwhile are expected, too.

mod placeholder;
mod takeover;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::placeholder::Placeholder;
use self::takeover::Takeover;
use super::Shard;
use super::env::Common;
use super::messages::{is_needed, track};
use super::presence::{Presence, statement_ended};
use super::types::Input;
use crate::departed::Departure;
use crate::event::{Change, Event};
use crate::ledger::LedgerEntry;
use crate::message::{Message, Payload};
use crate::metadata::Metadata;
use crate::names::Id;
use crate::publish::{Numbering, Subject};
use crate::record::Record;
use crate::step::Step;
use crate::tracker::{Effect, InputResult, Transition};

/// How many missed transitions there may be, beyond the number of users in the ledger, before those
/// are forgotten that no viewer needs.
const MISSED_MAX: usize = 1_024;

/// What a shard remembers while it follows another one.
#[derive(Debug, Default)]
pub(super) struct StandbyState {
    /// Transitions and statements whose outcome isn't known: the last one of each user, and whether
    /// it is for this shard to broadcast. An application has broadcast its own.
    missed: BTreeMap<Id, (Event, bool)>,
    /// Up to how many of them are kept before those that no viewer was told of are forgotten again.
    missed_kept: usize,
    /// Users who are shown by another connection than the one that viewers know.
    reshown: BTreeSet<Arc<str>>,
    /// Whether there may be more of them, since this shard was made from a snapshot.
    is_from_snapshot: bool,
    /// Users who are expected.
    placeholders: BTreeMap<Id, Placeholder>,
    /// Until when it is unsure, by the tracker's `receive_clock_ms`.
    unsure_until: u64,
    /// Whether there was no owner before.
    has_no_predecessor: bool,
    /// Users who came by a connect, or by an application's statement, while this shard was unsure,
    /// and had no owner before it. They have no unknown connections.
    fully_known: BTreeSet<Id>,
    /// Whose missed events to announce, if this shard has begun to lead and isn't done with that.
    takeover: Option<Takeover>,
}

impl Shard {
    /// Takes an input as [`Self::handle`] does, but decides and publishes nothing.
    pub fn follow(&mut self, now: u64, input: Input) {
        self.common.clock.advance_to(now);
        let now = self.common.now();
        match input {
            Input::Message { message, .. } => self.presence.follow(&message, &mut self.common),
            Input::Excess { message, .. } if is_needed(&message, &self.common) => {
                self.presence.follow(&message, &mut self.common);
            }
            other => self.change(now, other),
        }
        self.presence.tidy_followed(&mut self.common);
    }

    /// As [`Self::follow`], for an input that may be in the snapshot that this shard was made from.
    /// The snapshot's connections are newer than its rest: makes up for the effect on the rest.
    pub fn follow_replayed(&mut self, now: u64, input: Input) {
        self.common.clock.advance_to(now);
        if let Input::Message { message, .. } | Input::Excess { message, .. } = &input {
            self.presence.reapply_side_effects(message, &self.common);
        }
        self.follow(now, input);
    }

    /// Ends what has run out by `now` as [`Self::advance`] does, but decides and publishes nothing.
    pub fn follow_time(&mut self, now: u64) {
        self.common.clock.advance_to(now);
        while let Some(transition) = self.common.tracker.expire(now) {
            self.presence.note_missed(transition, &self.common);
        }
        while let Some((name, statement)) = self.presence.take_ended_statement(&self.common) {
            if let Some(event) = statement_ended(&name, statement, &self.common) {
                let missed = &mut self.presence.standby.missed;
                missed.insert(event.user, (event, true));
            }
        }
        self.presence.tidy_followed(&mut self.common);
    }

    /// When [`Self::follow_time`] is to be called.
    pub fn follow_deadline(&self) -> Option<u64> {
        let statements = self.presence.next_statement_end(&self.common);
        let deadlines = [self.common.tracker.next_deadline(), statements];
        deadlines.into_iter().flatten().min()
    }

    /// Takes in a record of what the owner has told viewers. Ignores records of what this shard
    /// derives from its own inputs.
    pub fn apply(&mut self, record: Record) {
        let (common, presence) = (&mut self.common, &mut self.presence);
        if let Record::Ledger { user, entry: None } = &record {
            // The user has left, and is not expected any more.
            let left = presence.end_placeholder(user.as_str(), common);
            // A grace has ended, too.
            let now = common.now();
            let ended = common.tracker.end_grace_of(now, user.as_str());
            for transition in left.into_iter().chain(ended) {
                presence.note_missed(transition, common);
            }
        }
        let events = &mut presence.events;
        let decisions = &mut events.updates.decisions;
        match record {
            Record::Ledger {
                entry: Some(entry), ..
            } => {
                presence.standby.drop_announced(entry.event.user, true);
                let (name, shown) = (entry.event.name.as_str(), &entry.event.metadata);
                // Otherwise, the owner may not have heard yet of the connection that is shown here.
                if !shows_differently(name, shown, common) {
                    presence.standby.reshown.remove(name);
                }
                decisions.ledger.put(entry);
            }
            Record::Ledger { user, entry: None } => {
                if let Some(id) = common.names.find(user.as_str()) {
                    presence.standby.drop_announced(id, false);
                    decisions.ledger.offline(id);
                    // An expected user has left only now.
                    if !common.tracker.is_online(user.as_str()) {
                        events.updates.statuses.forget(id, &user);
                    }
                }
            }
            Record::Departed {
                departure: Some(departure),
                ..
            } => decisions.departed.restore(departure, &common.names),
            Record::Departed { user, .. } => {
                let user = common.names.intern(user.as_str());
                decisions.departed.forget(user);
            }
            Record::Waiting { user, steps } => {
                let until = common.now() + common.settings.answer_wait_ms;
                events.queue.forget(common.names.intern(user.as_str()));
                events.queue.restore(steps, until);
            }
            Record::Tracker(_) | Record::Status { .. } | Record::Stated { .. } => {}
        }
    }

    /// Has this shard look, when it begins to lead, for users who are shown by another connection
    /// than the one that viewers know. For a shard that was made from a snapshot: the owner may
    /// have taken in the change of connection before, and have announced nothing.
    pub fn set_from_snapshot(&mut self) {
        self.presence.standby.is_from_snapshot = true;
    }

    /// Users whose connections are all known, though this shard is unsure. Empty if it isn't.
    pub fn fully_known_users(&self) -> Vec<Id> {
        let users = self.presence.standby.fully_known.iter().copied();
        users.filter(|_| self.unsure_ms() > 0).collect()
    }

    /// All connections of a user are known, as the snapshot says from which this shard was made.
    pub fn mark_fully_known(&mut self, user: &str) {
        let user = self.common.names.intern(user);
        self.presence.standby.fully_known.insert(user);
    }

    /// The offlines of expected users who seem to have left, as records of waiting events.
    pub fn pending_departures(&self) -> Vec<Record> {
        let placeholders = self.presence.standby.placeholders.values();
        let left = placeholders.filter_map(|it| it.pending_departure.clone());
        let record = |left: Event| Record::Waiting {
            user: left.name.clone(),
            steps: vec![Step::Announce(Arc::new(left), true)],
        };
        left.map(record).collect()
    }

    /// Takes an offline of [`Self::pending_departures`] from the snapshot of another shard.
    pub fn restore_pending_departure(&mut self, record: Record) {
        let Record::Waiting { steps, .. } = record else {
            return;
        };
        let placeholders = &mut self.presence.standby.placeholders;
        for step in steps {
            let left = step.event();
            if let Some(placeholder) = placeholders.get_mut(&left.user) {
                placeholder.pending_departure = Some(Event::clone(left));
            }
        }
    }

    /// Sets whether there was no owner before, as on a node that starts alone. Then users who come
    /// by a connect have no unknown connections.
    pub fn set_first_owner(&mut self, is_first: bool) {
        let standby = &mut self.presence.standby;
        standby.has_no_predecessor = is_first;
        if !is_first {
            standby.fully_known.clear();
        }
    }

    /// For how long this shard is still unsure whether all connections are known, in milliseconds
    /// by the receive clock; 0: it is sure.
    pub fn unsure_ms(&self) -> u64 {
        self.presence.unsure_ms(&self.common)
    }

    /// Whether this shard needs regular reports up to when everything has been received. Otherwise
    /// nothing in it depends on them, and one report before its next input is enough.
    pub fn needs_clock(&self) -> bool {
        !self.common.tracker.is_empty() || self.unsure_ms() > 0
    }

    /// Sets for how long this shard is unsure, as the snapshot says from which it was made.
    pub fn set_unsure(&mut self, unsure_ms: u64) {
        self.presence.set_unsure_for(unsure_ms, &self.common);
    }

    /// Starts the numbers of publications again, in a later epoch.
    pub fn renumber(&mut self) {
        self.common.numbering = Numbering::default();
        self.common.inboxes.forget();
    }

    /// The number of the last message on each subject on which there was one.
    pub fn published(&self) -> impl Iterator<Item = (Subject, u64)> {
        self.common.numbering.last()
    }

    /// Takes what has changed of what viewers were told since this or [`Self::take_records`] was
    /// last called. A standby can't derive that from its inputs.
    pub fn take_standby_records(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        self.presence.take_records(&mut records);
        records
    }

    /// The ledger's entries, in a stable order of the users.
    pub fn ledger(&self) -> impl Iterator<Item = &LedgerEntry> {
        let ledger = &self.decisions().ledger;
        ledger
            .users()
            .into_iter()
            .filter_map(|user| ledger.get(user))
    }

    /// Whether the last departure of a user is remembered, and some viewer may know of it.
    pub fn remembers(&self, user: Id) -> bool {
        self.decisions().departed.has_stored(user)
    }

    /// The last departures of users, as far as any viewer may know of them.
    pub fn departures(&self) -> impl Iterator<Item = &Departure> {
        self.decisions().departed.all_stored()
    }
}

impl StandbyState {
    /// The numbers of all ids in here.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        let users = self.missed.keys().chain(self.placeholders.keys());
        users.chain(&self.fully_known).map(|user| user.0)
    }

    /// Viewers were told that a user is online, or offline: forgets a missed event that says so.
    fn drop_announced(&mut self, user: Id, online: bool) {
        if let Some((event, _)) = self.missed.get(&user)
            && (event.change == Change::Online) == online
        {
            self.missed.remove(&user);
        }
    }

    /// A user is online by a connection. If viewers weren't told that the user had left, they know
    /// the user by an earlier connection.
    fn note_return(&mut self, user: Id, name: &str) {
        let missed = self.missed.remove(&user);
        if missed.is_some_and(|(event, _)| event.change != Change::Online) {
            self.reshown.insert(name.into());
        }
    }
}

impl Presence {
    /// Whether a user has a live connection that is known: no placeholder, and not only a grace.
    pub(super) fn is_connected(&self, user: Id, name: &str, common: &Common) -> bool {
        common.tracker.is_connected(name) && !self.standby.placeholders.contains_key(&user)
    }

    /// The online event by which viewers know a user once all waiting events are announced; `None`
    /// if the user is offline then.
    fn announced_online(&self, user: Id) -> Option<Arc<Event>> {
        let event = match self.events.queue.last_announced(user) {
            Some(event) => event,
            None => self.events.updates.decisions.ledger.get(user)?.current(),
        };
        (event.change == Change::Online).then(|| Arc::clone(event))
    }

    /// Whether [`Self::announced_online`] returns an event.
    fn is_announced_online(&self, user: Id) -> bool {
        let waits = self.events.queue.last_announced(user);
        match waits {
            Some(event) => event.change == Change::Online,
            None => {
                let entry = self.events.updates.decisions.ledger.get(user);
                entry.is_some_and(|entry| entry.current().change == Change::Online)
            }
        }
    }

    /// Whether all of a user's connections are known.
    fn knows_all_connections(&self, user: Id, common: &Common) -> bool {
        self.unsure_ms(common) == 0 || self.standby.fully_known.contains(&user)
    }

    /// A user has come online by a connect, or by an application's statement.
    pub(super) fn note_arrival(&mut self, user: &str, common: &Common) {
        if self.unsure_ms(common) == 0 {
            self.standby.fully_known.clear();
        } else if self.standby.has_no_predecessor {
            self.standby.fully_known.insert(common.names.intern(user));
        }
    }

    fn set_unsure_for(&mut self, unsure_ms: u64, common: &Common) {
        self.standby.unsure_until = common.tracker.receive_clock_ms().saturating_add(unsure_ms);
    }

    fn unsure_ms(&self, common: &Common) -> u64 {
        let until = self.standby.unsure_until;
        until.saturating_sub(common.tracker.receive_clock_ms())
    }

    fn follow(&mut self, message: &Message, common: &mut Common) {
        let (user, payload) = (message.user(), message.payload());
        let (timestamp, stream_place) = (message.timestamp, message.stream_place);
        let sent = (timestamp, message.delayed_ms);
        if common.check_stream_duplicate(user, payload, stream_place) {
            if self.take_overtaken(user, timestamp, payload, common) {
                self.standby.note_return(common.names.intern(user), user);
            }
            return;
        }
        if let Payload::Online { .. } | Payload::Offline { .. } = payload
            && (self.refuse_statement(user, common).is_some()
                || self.check_overtaken(user, sent, payload, common))
        {
            return;
        }
        let handled = match track(user, timestamp, payload, stream_place, common) {
            Ok(handled) => handled,
            Err(stated) => {
                self.note_statement(&stated, common);
                if stated.change == Change::Online {
                    // It is shown in place of the connections, as they are now.
                    self.standby.reshown.remove(stated.name.as_str());
                }
                self.standby.missed.insert(stated.user, (stated, false));
                return;
            }
        };
        self.apply_tracked(user, sent, payload, handled, common);
    }

    /// A message is handled again. If its connection is as the message makes it already, the
    /// tracker finds nothing new: makes up for the message's effect on statements and departures.
    fn reapply_side_effects(&mut self, message: &Message, common: &Common) {
        let user = message.user();
        let is_live = |conn: &str| common.tracker.is_live(user, conn);
        match message.payload() {
            Payload::Connect { conn, .. } | Payload::Heartbeat { conn, .. }
                if is_live(conn) == Some(true) =>
            {
                self.end_stated_online(user, common);
            }
            Payload::Disconnect { conn, reason } if is_live(conn) == Some(false) => {
                self.end_stated_online(user, common);
                if let Some(left) = common.tracker.departure(user, reason.reason) {
                    self.note_missed(left, common);
                }
            }
            _ => {}
        }
    }

    /// The tracker has taken a message: the rest of the shard takes it, too.
    pub(super) fn apply_tracked(
        &mut self,
        user: &str,
        sent: (u64, u64),
        payload: Payload<'_>,
        handled: InputResult<Metadata>,
        common: &mut Common,
    ) {
        if let Effect::Stale | Effect::Refused(_) = handled.effect {
            return;
        }
        if let Payload::Connect { conn, metadata } | Payload::Heartbeat { conn, metadata } = payload
        {
            let updates = &mut self.events.updates;
            updates.apply_status(user, conn, sent.0, metadata, common);
        }
        if matches!(handled.effect, Effect::Opened | Effect::Adopted) {
            self.end_stated_online(user, common);
            self.end_placeholder(user, common);
        }
        if self.lift_stated_offline(user, sent, payload, common) {
            self.standby.note_return(common.names.intern(user), user);
        }
        if let Some(transition) = handled.transition {
            if handled.effect == Effect::Opened && matches!(transition, Transition::Online { .. }) {
                self.note_arrival(user, common);
            }
            self.note_missed(transition, common);
        }
    }

    /// Remembers a transition that the owner is about to announce.
    pub(super) fn note_missed(&mut self, transition: Transition<Metadata>, common: &Common) {
        let event = self.event_of(transition, common);
        let user = event.user;
        // The owner may expect the user, and then so does this shard.
        let is_stated = self.statements.get(user).is_some();
        if is_stated || self.placeholder_event(&event, common).is_none() {
            self.forget_status(&event, common);
        }
        match event.change {
            _ if self.statements.is_offline(user) => {}
            // An online needn't be remembered: the tracker knows it.
            Change::Online | Change::Updated => {
                self.standby.note_return(user, event.name.as_str());
            }
            Change::Offline { .. } => {
                let event = self.standby.resolve_placeholder(event);
                self.standby.reshown.remove(event.name.as_str());
                self.standby.missed.insert(user, (event, true));
            }
        }
    }

    /// Takes from the tracker what only an owner publishes. Of too many missed events, forgets the
    /// offlines of users of whom viewers weren't told.
    pub(super) fn tidy_followed(&mut self, common: &mut Common) {
        let now = common.now();
        while let Some(user) = common.tracker.take_reshown() {
            self.standby.reshown.insert(user);
        }
        while let Some(user) = common.tracker.take_changed_activities() {
            if common.settings.status.is_some()
                && let Some(user) = common.names.find(&user)
            {
                self.events.updates.statuses.check_at(user, now);
            }
        }
        let ledger = &self.events.updates.decisions.ledger;
        if self.standby.missed.len() > ledger.len() + MISSED_MAX.max(self.standby.missed_kept) {
            let missed = &mut self.standby.missed;
            missed.retain(|user, (event, _)| {
                event.change == Change::Online || ledger.get(*user).is_some()
            });
            // What remains isn't looked through again for each message.
            self.standby.missed_kept = 2 * missed.len();
        }
    }

    fn compare_shown(&mut self, user: Id, common: &Common) {
        let Some(entry) = self.events.updates.decisions.ledger.get(user) else {
            return;
        };
        let event = entry.current();
        let is_expected = self.standby.placeholders.contains_key(&user);
        if !is_expected
            && !entry.is_stated
            && shows_differently(event.name.as_str(), &event.metadata, common)
        {
            self.standby.reshown.insert(event.name.as_str().into());
        }
    }
}

/// Whether the metadata of a user's shown connection has an entry that `shown` lacks, or has with
/// another value.
fn shows_differently(user: &str, shown: &Metadata, common: &Common) -> bool {
    let tracked = common.tracker.shown(user);
    let mut entries = tracked.into_iter().flat_map(Metadata::entries);
    entries.any(|entry| shown.get(entry.key) != Some(entry.value))
}

#[cfg(test)]
mod tests;
