//! A shard that follows another one: a standby.
//!
//! It takes in what the other takes in, and tracks the same connections, but decides nothing and
//! publishes nothing. What the other tells viewers it is handed as records. It remembers which
//! transitions it saw of which it was not handed the outcome. When it is to lead, it announces
//! these, and decides on everyone once: viewers are told what differs, and nothing else.
//!
//! A user whom viewers were told of, and of whose connections nothing is known here, may have
//! stayed. Such a user is *expected*: a connection without an id stands for those that are not
//! known, until the first of them is heard from, or for one time-out. A shard that begins to lead
//! without knowing all that the one before knew is *unsure* for one time-out, since it can't know
//! whether a connection is its user's last: users who leave meanwhile are expected, too.

mod leading;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::leading::Beginning;
use super::Shard;
use super::env::Common;
use super::messages::{is_needed, track};
use super::presence::{Presence, statement_ended};
use super::types::Input;
use crate::departed::Departure;
use crate::event::{Change, Event, Reason};
use crate::ledger::LedgerEntry;
use crate::message::{Message, Payload};
use crate::metadata::Metadata;
use crate::names::Id;
use crate::publish::{Numbering, Subject};
use crate::record::Record;
use crate::step::Step;
use crate::tracker::{Connected, Effect, InputResult, TrackerRecord, Transition};

/// How many transitions are remembered that no viewer was told of, beside as many
/// as there are users in the ledger.
const MISSED_MAX: usize = 1_024;

/// The id of the connection that stands for those that aren't known: no other has it.
const EXPECTED: &str = "";

/// A user who is expected.
#[derive(Debug)]
struct Expected {
    /// Since when they are online, in milliseconds since the Unix epoch.
    since: u64,
    /// How they left, if they seem to have.
    left: Option<Event>,
}

/// What a shard saw while it followed another one.
#[derive(Debug, Default)]
pub(super) struct Followed {
    /// Transitions and statements whose outcome isn't known: each user's last, and whether it
    /// is ours to broadcast.
    missed: BTreeMap<Id, (Event, bool)>,
    /// Users whom another connection shows now.
    reshown: BTreeSet<Arc<str>>,
    /// Whether there may be more of them.
    is_copy: bool,
    /// Users who are expected.
    expected: BTreeMap<Id, Expected>,
    /// Until when it is unsure, by the tracker's `heard_ms`.
    unsure_until: u64,
    /// Whether no shard was before this one.
    is_first: bool,
    /// Users who came by a connect, or by what an application stated, while it was unsure, though no
    /// shard was before it. Nobody knows of others of their connections.
    came: BTreeSet<Id>,
    /// Whom it has still to look after, if it has begun to lead.
    beginning: Option<Beginning>,
}

impl Shard {
    /// Takes an input as [`Self::handle`] does, without deciding or publishing anything.
    pub fn follow(&mut self, now: u64, input: Input) {
        self.common.clock.pass(now);
        let now = self.common.now();
        match input {
            Input::Message { message, .. } => self.presence.follow(message, &mut self.common),
            Input::Excess { message, .. } if is_needed(&message, &self.common) => {
                self.presence.follow(message, &mut self.common);
            }
            other => self.change(now, other),
        }
        self.presence.tidy_followed(&mut self.common);
    }

    /// As [`Self::follow`], of an input that the shard may have handled of whose records this one was made.
    /// Connections are as they were later than the rest, so what came of it for the rest is made up for.
    pub fn follow_again(&mut self, now: u64, input: Input) {
        self.common.clock.pass(now);
        if let Input::Message { message, .. } | Input::Excess { message, .. } = &input {
            self.presence.make_up_for(message, &self.common);
        }
        self.follow(now, input);
    }

    /// Ends what has run out by `now`, as [`Self::advance`] does, without deciding or
    /// publishing anything.
    pub fn follow_time(&mut self, now: u64) {
        self.common.clock.pass(now);
        while let Some(transition) = self.common.tracker.expire(now) {
            self.presence.missed(transition, &self.common);
        }
        while let Some((name, statement)) = self.presence.take_ended_statement(&self.common) {
            if let Some(event) = statement_ended(&name, statement, &self.common) {
                let missed = &mut self.presence.followed.missed;
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

    /// Takes in what the shard that this one follows has told viewers. What both derive from
    /// their inputs is none of it.
    pub fn apply(&mut self, record: Record) {
        let (common, presence) = (&mut self.common, &mut self.presence);
        if let Record::Ledger { user, entry: None } = &record {
            // Nobody who has left is expected.
            let left = presence.is_heard_from(user.as_str(), common);
            // Nor does the grace run that has ended.
            let now = common.now();
            let ended = common.tracker.end_grace_of(now, user.as_str());
            for transition in left.into_iter().chain(ended) {
                presence.missed(transition, common);
            }
        }
        let events = &mut presence.events;
        let decisions = &mut events.updates.decisions;
        match record {
            Record::Ledger {
                entry: Some(entry), ..
            } => {
                presence.followed.is_told(entry.event.user, true);
                let (name, shown) = (entry.event.name.as_str(), &entry.event.metadata);
                // The other shard may not have heard yet of the connection that shows them here.
                if !is_shown_otherwise(name, shown, common) {
                    presence.followed.reshown.remove(name);
                }
                decisions.ledger.put(entry);
            }
            Record::Ledger { user, entry: None } => {
                if let Some(id) = common.names.find(user.as_str()) {
                    presence.followed.is_told(id, false);
                    decisions.ledger.offline(id);
                    // Who was expected has left now.
                    if !common.tracker.is_online(user.as_str()) {
                        events.updates.statuses.forget(id, &user);
                    }
                }
            }
            Record::Departed {
                departure: Some(departure),
                ..
            } => decisions.departed.follow(departure, &common.names),
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

    /// When it begins to lead, it looks who is shown by another connection than viewers know them by. To
    /// be said of a shard that was made of what another one knew: that one may have been told so, and
    /// have announced nothing.
    pub fn is_copy(&mut self) {
        self.presence.followed.is_copy = true;
    }

    /// Users whose connections are all known, though this shard is unsure; none where it isn't.
    pub fn came(&self) -> Vec<Id> {
        let came = self.presence.followed.came.iter().copied();
        came.filter(|_| self.unsure_ms() > 0).collect()
    }

    /// As the shard that its state is from says, all of a user's connections are known.
    pub fn has_come(&mut self, user: &str) {
        let user = self.common.names.intern(user);
        self.presence.followed.came.insert(user);
    }

    /// How users have left, as it seems, who are waited for, since other connections may not be known.
    pub fn seem_to_have_left(&self) -> Vec<Record> {
        let expected = self.presence.followed.expected.values();
        let left = expected.filter_map(|it| it.left.clone());
        let record = |left: Event| Record::Waiting {
            user: left.name.clone(),
            steps: vec![Step::Announce(Arc::new(left), true)],
        };
        left.map(record).collect()
    }

    /// As the shard that its state is from says, a user who is waited for seems to have left so.
    pub fn seems_to_have_left(&mut self, record: Record) {
        let Record::Waiting { steps, .. } = record else {
            return;
        };
        let expected = &mut self.presence.followed.expected;
        for step in steps {
            let left = step.event();
            if let Some(expected) = expected.get_mut(&left.user) {
                expected.left = Some(Event::clone(left));
            }
        }
    }

    /// No shard was before this one: as of a node that starts alone, users who come by a connect
    /// have no other connections.
    pub fn is_first(&mut self, is_first: bool) {
        let followed = &mut self.presence.followed;
        followed.is_first = is_first;
        if !is_first {
            followed.came.clear();
        }
    }

    /// For how long it is still unsure whether all connections are known, in milliseconds of
    /// hearing; 0 as a rule.
    pub fn unsure_ms(&self) -> u64 {
        self.presence.unsure_ms(&self.common)
    }

    /// Whether it is to be told again and again up to when everything has been received. Otherwise
    /// nothing goes by that: it is told when there is an input for it, before that.
    pub fn needs_clock(&self) -> bool {
        !self.common.tracker.is_empty() || self.unsure_ms() > 0
    }

    /// It is unsure for so long, since the shard that its state is from is.
    pub fn set_unsure(&mut self, unsure_ms: u64) {
        self.presence.be_unsure(unsure_ms, &self.common);
    }

    /// The numbers of what is published start again, in a later epoch.
    pub fn renumber(&mut self) {
        self.common.numbering = Numbering::default();
        self.common.inboxes.forget();
    }

    /// The number of the last message on each subject that any was published on.
    pub fn published(&self) -> impl Iterator<Item = (Subject, u64)> {
        self.common.numbering.last()
    }

    /// What has changed of what viewers were told since this or [`Self::take_records`] was
    /// last called: what a standby can't derive from its inputs.
    pub fn take_told(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        self.presence.take_records(&mut records);
        records
    }

    /// What is known and was said of each online user, in a stable order.
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

impl Followed {
    /// All the numbers of ids in here.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        let users = self.missed.keys().chain(self.expected.keys());
        users.chain(&self.came).map(|user| user.0)
    }

    /// Viewers were told that a user is online, or offline.
    fn is_told(&mut self, user: Id, online: bool) {
        if let Some((event, _)) = self.missed.get(&user)
            && (event.change == Change::Online) == online
        {
            self.missed.remove(&user);
        }
    }

    /// A connection has ended, or begun, of a user who may have been expected: they left as they did when
    /// they seemed to.
    pub(super) fn is_over(&mut self, event: Event) -> Event {
        let expected = self.expected.remove(&event.user);
        match expected.and_then(|it| it.left) {
            Some(left) if event.change != Change::Online => Event {
                timestamp: event.timestamp,
                ..left
            },
            _ => event,
        }
    }

    /// A user is online by a connection. If they had left, and no viewer was told so, viewers know
    /// them by an earlier one.
    fn is_back(&mut self, user: Id, name: &str) {
        let missed = self.missed.remove(&user);
        if missed.is_some_and(|(event, _)| event.change != Change::Online) {
            self.reshown.insert(name.into());
        }
    }
}

impl Presence {
    /// A connection of a user was heard from that wasn't known: the one that stood for it is
    /// not needed any more. Says whether it was the last.
    pub(super) fn is_heard_from(
        &mut self,
        user: &str,
        common: &mut Common,
    ) -> Option<Transition<Metadata>> {
        let expected = &mut self.followed.expected;
        if expected.is_empty() {
            return None;
        }
        let Expected { since, .. } = expected.remove(&common.names.find(user)?)?;
        let now = common.now();
        let tracker = &mut common.tracker;
        let handled = tracker.disconnect(now, user, EXPECTED, since, Reason::Disconnect);
        handled.transition
    }

    /// A connection is known again from a record: whether it only stands for others.
    pub(super) fn is_restored(&mut self, record: &TrackerRecord<Metadata>, common: &Common) {
        if let TrackerRecord::Connection { user, conn, state } = record
            && &**conn == EXPECTED
            && let Some(Connected::Live { opened, .. }) = state
        {
            let expected = &mut self.followed.expected;
            let (since, left) = (*opened, None);
            expected.insert(common.names.intern(user), Expected { since, left });
        }
    }

    /// Whether a connection of a user is known: not only one that stands for others, and not only a
    /// grace.
    pub(super) fn is_connected(&self, user: Id, name: &str, common: &Common) -> bool {
        common.tracker.is_connected(name) && !self.followed.expected.contains_key(&user)
    }

    /// By which event a user will be online, as far as viewers are told, once all has been
    /// announced that waits; none if the user will be offline.
    fn will_be_told(&self, user: Id) -> Option<Arc<Event>> {
        let event = match self.events.queue.last_announced(user) {
            Some(event) => event,
            None => self.events.updates.decisions.ledger.get(user)?.current(),
        };
        (event.change == Change::Online).then(|| Arc::clone(event))
    }

    /// Whether viewers are told that a user is online, as [`Self::will_be_told`] has it.
    fn is_told(&self, user: Id) -> bool {
        let waits = self.events.queue.last_announced(user);
        match waits {
            Some(event) => event.change == Change::Online,
            None => {
                let entry = self.events.updates.decisions.ledger.get(user);
                entry.is_some_and(|entry| entry.current().change == Change::Online)
            }
        }
    }

    /// Whether a user who seems to have left is expected for a while instead, since it is
    /// unsure whether all of the user's connections are known.
    pub(super) fn is_kept(&mut self, event: &Event, common: &mut Common) -> bool {
        let Some(told) = self.told_of_one_to_expect(event, common) else {
            return false;
        };
        self.expect(&told, Some(event.clone()), common);
        true
    }

    /// By which event viewers know a user who seems to have left, if the user is to be expected.
    fn told_of_one_to_expect(&self, event: &Event, common: &Common) -> Option<Arc<Event>> {
        if event.change == Change::Online || self.knows_all_of(event.user, common) {
            return None;
        }
        self.will_be_told(event.user)
    }

    /// Whether all of a user's connections are known.
    fn knows_all_of(&self, user: Id, common: &Common) -> bool {
        self.unsure_ms(common) == 0 || self.followed.came.contains(&user)
    }

    /// A user has come online by a connect, or as an application states.
    pub(super) fn has_come(&mut self, user: &str, common: &Common) {
        if self.unsure_ms(common) == 0 {
            self.followed.came.clear();
        } else if self.followed.is_first {
            self.followed.came.insert(common.names.intern(user));
        }
    }

    fn be_unsure(&mut self, unsure_ms: u64, common: &Common) {
        self.followed.unsure_until = common.tracker.heard_ms().saturating_add(unsure_ms);
    }

    fn unsure_ms(&self, common: &Common) -> u64 {
        let until = self.followed.unsure_until;
        until.saturating_sub(common.tracker.heard_ms())
    }

    /// A connection stands for those of a user that aren't known. `left`: how they left, if they seem to
    /// have: then only for as long as it is unsure whether all are known.
    fn expect(&mut self, event: &Event, left: Option<Event>, common: &mut Common) {
        let now = common.now();
        let left_ms = left.is_some().then(|| self.unsure_ms(common));
        let since = event.timestamp.min(common.clock.stamp());
        let expected = &mut self.followed.expected;
        expected.insert(event.user, Expected { since, left });
        let (tracker, name) = (&mut common.tracker, event.name.as_str());
        tracker.connect(now, name, EXPECTED, since, || event.metadata.clone());
        if let Some(left_ms) = left_ms {
            tracker.set_lease(name, EXPECTED, left_ms);
        }
    }

    fn follow(&mut self, message: Message, common: &mut Common) {
        let Message {
            user,
            timestamp,
            payload,
            raw: _,
            stored,
            delayed_ms,
        } = message;
        let sent = (timestamp, delayed_ms);
        if common.has_taken(&user, &payload, stored) {
            if self.take_overtaken(&user, timestamp, &payload, common) {
                self.followed.is_back(common.names.intern(&user), &user);
            }
            return;
        }
        if let Payload::Online { .. } | Payload::Offline { .. } = &payload
            && (self.refuse_statement(&user, common).is_some()
                || self.is_overtaken(&user, sent, &payload, common))
        {
            return;
        }
        let handled = match track(&user, timestamp, &payload, stored, common) {
            Ok(handled) => handled,
            Err(stated) => {
                self.note_statement(&stated, common);
                self.followed.missed.insert(stated.user, (stated, false));
                return;
            }
        };
        self.tracked(&user, sent, &payload, handled, common);
    }

    /// A message is to be handled again. Where its connection is as the message makes it already, the
    /// tracker finds nothing new.
    fn make_up_for(&mut self, message: &Message, common: &Common) {
        let Message { user, payload, .. } = message;
        let is_live = |conn: &str| common.tracker.is_live(user, conn);
        match payload {
            Payload::Connect { conn, .. } | Payload::Heartbeat { conn, .. }
                if is_live(conn) == Some(true) =>
            {
                self.end_stated_online(user, common);
            }
            Payload::Disconnect { conn, reason } if is_live(conn) == Some(false) => {
                self.end_stated_online(user, common);
                if let Some(left) = common.tracker.departure(user, reason.reason) {
                    self.missed(left, common);
                }
            }
            _ => {}
        }
    }

    /// The tracker has taken a message.
    pub(super) fn tracked(
        &mut self,
        user: &str,
        sent: (u64, u64),
        payload: &Payload,
        handled: InputResult<Metadata>,
        common: &mut Common,
    ) {
        if let Effect::Stale | Effect::Refused(_) = handled.effect {
            return;
        }
        if let Payload::Connect { conn, metadata } | Payload::Heartbeat { conn, metadata } = payload
        {
            let (updates, metadata) = (&mut self.events.updates, metadata.as_ref());
            updates.take(user, conn, sent.0, metadata, common);
        }
        if matches!(handled.effect, Effect::Opened | Effect::Adopted) {
            self.end_stated_online(user, common);
            self.is_heard_from(user, common);
        }
        if self.lifts_offline(user, sent, payload, common) {
            self.followed.is_back(common.names.intern(user), user);
        }
        if let Some(transition) = handled.transition {
            if handled.effect == Effect::Opened && matches!(transition, Transition::Online { .. }) {
                self.has_come(user, common);
            }
            self.missed(transition, common);
        }
    }

    /// A transition that the other shard announces.
    pub(super) fn missed(&mut self, transition: Transition<Metadata>, common: &Common) {
        let event = self.event_of(transition, common);
        let user = event.user;
        // The other shard may expect them, and so may this one.
        let is_stated = self.statements.get(user).is_some();
        if is_stated || self.told_of_one_to_expect(&event, common).is_none() {
            self.has_left(&event, common);
        }
        match event.change {
            _ if self.statements.is_offline(user) => {}
            // The tracker knows that they are online.
            Change::Online | Change::Updated => {
                self.followed.is_back(user, event.name.as_str());
            }
            Change::Offline { .. } => {
                let event = self.followed.is_over(event);
                self.followed.reshown.remove(event.name.as_str());
                self.followed.missed.insert(user, (event, true));
            }
        }
    }

    /// Takes what is of use only to those who publish, and forgets what was missed that
    /// no viewer was told of.
    pub(super) fn tidy_followed(&mut self, common: &mut Common) {
        let now = common.now();
        while let Some(user) = common.tracker.take_reshown() {
            self.followed.reshown.insert(user);
        }
        while let Some(user) = common.tracker.take_changed_activities() {
            if common.settings.status.is_some()
                && let Some(user) = common.names.find(&user)
            {
                self.events.updates.statuses.check_at(user, now);
            }
        }
        let ledger = &self.events.updates.decisions.ledger;
        if self.followed.missed.len() > ledger.len() + MISSED_MAX {
            let missed = &mut self.followed.missed;
            missed.retain(|user, (event, _)| {
                event.change == Change::Online || ledger.get(*user).is_some()
            });
        }
    }

    fn compare_shown(&mut self, user: Id, common: &Common) {
        let Some(entry) = self.events.updates.decisions.ledger.get(user) else {
            return;
        };
        let event = entry.current();
        let is_expected = self.followed.expected.contains_key(&user);
        if !is_expected && is_shown_otherwise(event.name.as_str(), &event.metadata, common) {
            self.followed.reshown.insert(event.name.as_str().into());
        }
    }
}

/// Whether something of what the connection has said of itself that a user is to be shown by isn't in what
/// is shown.
fn is_shown_otherwise(user: &str, shown: &Metadata, common: &Common) -> bool {
    let tracked = common.tracker.shown(user);
    let mut said = tracked.into_iter().flat_map(Metadata::entries);
    said.any(|entry| shown.get(entry.key) != Some(entry.value))
}

#[cfg(test)]
mod tests;
