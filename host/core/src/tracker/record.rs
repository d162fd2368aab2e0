//! The tracker's records, which survive a restart: how those that have changed are taken, and how
//! they are restored.
//!
//! A change is noted once, as a key. The record is made when records are taken. A heartbeat notes
//! no change, and so costs nothing here: the newest timestamps of the connections are read in
//! turns, one part of the connections at a time.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;

use super::Tracker;
use super::activity::Activity;
use super::changes::UnsavedChanges;
use super::connection::{Close, Connection, LiveConnection, ReceivedAt, SaveState, State};
use super::places::OrderCounter;
use super::roster::Roster;
use super::silent_starts::SilentStarts;
use super::slab::Key;
use super::types::Reason;
use super::user::PendingOffline;
use crate::digest::PartedDigest;

/// A record of something that the tracker knows. Its state is `None` if it was forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrackerRecord<M> {
    /// A connection.
    Connection {
        /// The user.
        user: Arc<str>,
        /// The connection's id.
        conn: Arc<str>,
        /// What is known of it.
        state: Option<Connected<M>>,
    },
    /// When a live connection was last heard from, by its sender's clock.
    NewestTimestamp {
        /// The user.
        user: Arc<str>,
        /// The connection's id.
        conn: Arc<str>,
        /// The newest timestamp in any of its messages. `None`: the connection was forgotten.
        newest: Option<u64>,
    },
    /// What is known of a user beyond their connections.
    User {
        /// The user.
        user: Arc<str>,
        /// Their state. `None`: the user was forgotten.
        state: Option<UserState>,
    },
}

/// What is known of a connection. All times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connected<M> {
    /// It is live.
    Live {
        /// The timestamp of its newest connect.
        opened: u64,
        /// The newest timestamp in any of its messages.
        newest: u64,
        /// The metadata of its newest connect.
        metadata: M,
        /// The activity that it reported last.
        activity: Option<Activity>,
        /// Its order among the user's live connections: the highest is the newest.
        order: i64,
        /// The starts of the host since its last message. `None`: it has sent one in this run.
        silence: Option<SilentStarts>,
        /// The number, in the stream, of its last message, cut to 32 bits; 0: none.
        stream_seq: u32,
    },
    /// It was closed, and the close is remembered.
    Closed {
        /// The timestamp of the close.
        timestamp: u64,
        /// The newest timestamp in any of its messages.
        newest: u64,
        /// When the close was handled, by the host's clock.
        kept_since: u64,
        /// As in `Live`.
        stream_seq: u32,
    },
}

/// What is known of a user beyond their connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserState {
    /// The newest timestamp in any of the user's messages.
    pub last_seen: u64,
    /// The grace that runs, if any: when it began by the host's clock, moved on by the length of
    /// all pauses since, and the reason of the disconnect.
    pub pending: Option<(u64, Reason)>,
}

/// The slots of a tracker that are still to be read: those of connections, then those of users.
#[derive(Clone, Debug)]
pub struct Cursor {
    connections: Range<usize>,
    users: Range<usize>,
    /// The orders that had been given when the reading began.
    orders: OrderCounter,
}

/// How long the host may pause before the records of graces are noted as changed, in milliseconds.
/// After a restart, a grace may seem to have run for this much longer than it has.
const PAUSE_MS: u64 = 500;

impl<M: Clone> Tracker<M> {
    /// Sets whether changes are noted from now on, for [`Self::take_records`]. Call it before
    /// the first input, and later only to stop.
    pub fn keep_records(&mut self, keep: bool) {
        self.changes = UnsavedChanges {
            wanted: keep,
            ..UnsavedChanges::default()
        };
    }

    /// Whether there are records to take now or, of live connections, later.
    pub fn has_records(&self) -> bool {
        let UnsavedChanges {
            connections,
            users,
            removed_connections,
            removed_users,
            ..
        } = &self.changes;
        (self.changes.wanted && self.live_connections.count() > 0)
            || !(connections.is_empty()
                && users.is_empty()
                && removed_connections.is_empty()
                && removed_users.is_empty())
    }

    /// Takes the records of all that has changed since the last call, and the newest timestamps of
    /// one part of the connections, of `parts` that take turns. Of two records of the same thing,
    /// the later one holds.
    pub fn take_records(&mut self, parts: usize) -> Vec<TrackerRecord<M>> {
        let Self {
            changes, roster, ..
        } = self;
        let mut records = Vec::new();
        for (user, conn) in changes.removed_connections.drain(..) {
            records.push(TrackerRecord::NewestTimestamp {
                user: Arc::clone(&user),
                conn: Arc::clone(&conn),
                newest: None,
            });
            let state = None;
            records.push(TrackerRecord::Connection { user, conn, state });
        }
        for user in changes.removed_users.drain(..) {
            records.push(TrackerRecord::User { user, state: None });
        }
        let taken = changes.connections.drain(..);
        records.extend(taken.filter_map(|key| connection_record(roster, key)));
        let taken = changes.users.drain(..);
        let at = self.receive_clock.known_up_to(self.clock.now());
        let since = |pending: &PendingOffline| {
            let ran = self.receive_clock.clock().saturating_sub(pending.since);
            at.saturating_sub(ran)
        };
        records.extend(taken.filter_map(|key| user_record(roster, key, since)));

        let slots = roster.connections.slots();
        let count = slots.div_ceil(parts.max(1));
        if changes.next_slot >= slots || count == slots {
            changes.next_slot = 0;
        }
        let users = &roster.users;
        for connection in roster.connections.part(changes.next_slot, count) {
            if let State::Live(life) = &mut connection.state
                && !std::mem::replace(&mut life.is_newest_saved, true)
            {
                records.push(TrackerRecord::NewestTimestamp {
                    user: Arc::clone(&users[connection.user].name),
                    conn: Arc::from(&*connection.id),
                    newest: Some(life.newest),
                });
            }
        }
        changes.next_slot += count;
        records
    }

    /// All records, for another tracker: those of connections, then those of users.
    pub fn all_records(&mut self) -> Vec<TrackerRecord<M>> {
        let mut records = Vec::new();
        let mut cursor = self.cursor();
        while self.read(&mut cursor, usize::MAX, &mut records) {}
        records.into_iter().map(|(record, _)| record).collect()
    }

    /// A cursor over all records, for [`Self::read`].
    pub fn cursor(&self) -> Cursor {
        Cursor {
            connections: 0..self.roster.connections.slots(),
            users: 0..self.roster.users.slots(),
            orders: self.orders,
        }
    }

    /// Reads the next `slots` slots at most, in the order of [`Self::all_records`]. With each live
    /// connection comes the end of its lease, by [`Self::receive_clock_ms`]. Connections that were
    /// opened after the cursor was made are skipped, in whatever slot they are: the caller that handles
    /// those inputs again opens them, and in their order. Returns whether there is more.
    pub fn read(
        &mut self,
        cursor: &mut Cursor,
        slots: usize,
        records: &mut Vec<(TrackerRecord<M>, Option<u64>)>,
    ) -> bool {
        let roster = &mut self.roster;
        let clock = self.receive_clock.clock();
        for slot in cursor.connections.by_ref().take(slots) {
            let Some((key, connection)) = roster.connections.at_place(slot) else {
                continue;
            };
            let end = match &connection.state {
                State::Live(life)
                    if !connection.id.is_empty() && !cursor.orders.has_given(life.place.order) =>
                {
                    continue;
                }
                State::Live(life) => Some(life.lease_from.saturating_add(self.settings.timeout_ms)),
                State::Closed(_) | State::Unknown => None,
            };
            let record = connection_record(roster, key);
            records.extend(record.map(|record| (record, end)));
        }
        if !cursor.connections.is_empty() {
            return true;
        }
        let at = self.receive_clock.known_up_to(self.clock.now());
        let since =
            |pending: &PendingOffline| at.saturating_sub(clock.saturating_sub(pending.since));
        for slot in cursor.users.by_ref().take(slots) {
            if let Some((key, _)) = roster.users.at_place(slot) {
                let record = user_record(roster, key, since);
                records.extend(record.map(|record| (record, None)));
            }
        }
        !cursor.users.is_empty()
    }

    /// Moves the time on to `now`. A host that always receives has received everything up to then.
    pub fn advance_to(&mut self, now: u64) {
        self.advance(now);
    }

    /// The time of the receive clock, in milliseconds since an arbitrary moment. Leases run by it.
    pub fn receive_clock_ms(&self) -> u64 {
        self.receive_clock.clock()
    }

    /// From when a lease counts that begins now, by the clock of [`Self::receive_clock_ms`]: at
    /// most one step ahead of it.
    pub fn lease_from(&self) -> u64 {
        self.receive_clock.lease_start(self.clock.now())
    }

    /// The live connections, and how much is left of the lease of each, in milliseconds.
    pub fn leases(&self) -> impl Iterator<Item = (&Arc<str>, &str, u64)> {
        let clock = self.receive_clock.clock();
        self.roster
            .connections
            .values()
            .filter_map(move |connection| {
                let State::Live(life) = &connection.state else {
                    return None;
                };
                let end = life.lease_from.saturating_add(self.settings.timeout_ms);
                let user = &self.roster.users[connection.user].name;
                Some((user, &*connection.id, end.saturating_sub(clock)))
            })
    }

    /// Sets how much is left of the lease of a live connection, in milliseconds.
    pub fn set_lease(&mut self, user: &str, conn: &str, left_ms: u64) {
        let timeout_ms = self.settings.timeout_ms;
        let clock = self.receive_clock.clock();
        if let Some(key) = self.roster.find(user, conn)
            && let State::Live(life) = &mut self.roster.connections[key].state
        {
            let end = clock.saturating_add(left_ms.min(timeout_ms));
            life.lease_from = end.saturating_sub(timeout_ms);
            self.queue_lease(key);
        }
    }

    /// Restores a record, before the first input, and in the order of the variants. The time for
    /// which the host was down doesn't count for a grace. It doesn't count for a lease either, at
    /// the first start after the connection was heard from.
    pub fn restore(&mut self, now: u64, down_ms: u64, record: TrackerRecord<M>) {
        let now = self.advance(now);
        match record {
            TrackerRecord::Connection { user, conn, state } => {
                if let Some(state) = state {
                    self.restore_connection(now, &user, &conn, state);
                }
            }
            TrackerRecord::NewestTimestamp { user, conn, newest } => {
                let newest = newest.unwrap_or_default().min(now);
                if let Some(key) = self.roster.find(&user, &conn)
                    && let connection = &mut self.roster.connections[key]
                    && let State::Live(life) = &mut connection.state
                {
                    life.newest = life.newest.max(newest);
                    life.is_newest_saved = true;
                    self.roster.users[connection.user].see(newest);
                }
            }
            TrackerRecord::User { user, state } => {
                let Some(UserState { last_seen, pending }) = state else {
                    return;
                };
                let key = self.roster.user_entry(&user);
                let user = &mut self.roster.users[key];
                user.saving.saved = true;
                user.see(last_seen.min(now));
                if let Some((since, reason)) = pending.filter(|_| !user.is_online()) {
                    let ran = now.saturating_sub(since.saturating_add(down_ms));
                    // Nothing was heard while the host was down.
                    let since = self.receive_clock.clock().saturating_sub(ran);
                    user.pending = Some(Box::new(PendingOffline {
                        since,
                        reason,
                        // Nobody is damped for what they did in an earlier run.
                        held_ms: 0,
                    }));
                    self.running_graces += 1;
                    self.online_users.take_unchecked();
                    self.queue_grace(key);
                    // Its beginning has moved by the time for which the host was down: store that.
                    self.mark_user_changed(key);
                }
                self.remove_user_if_spent(key);
            }
        }
    }

    /// The host receives again after a start: every lease is renewed for a whole timeout. If a
    /// connection isn't heard from over several starts, the later ones renew its lease for less.
    pub fn renew_leases(&mut self, now: u64) {
        let at = self.advance(now);
        let begin = self.receive_clock.lease_start(at);
        let timeout_ms = self.settings.timeout_ms;
        for key in self.roster.connections.keys() {
            let State::Live(life) = &mut self.roster.connections[key].state else {
                continue;
            };
            let silence = life.silence();
            let mut silence = silence.unwrap_or_else(|| SilentStarts::from(at));
            let lease_ms = silence.lease_ms(at, timeout_ms);
            silence.starts = silence.starts.saturating_add(1);
            life.set_silence(Some(silence));
            life.received_at = at;
            life.lease_from = match lease_ms {
                // The lease is over at once: runs may be so short that the host receives nothing in
                // any of them.
                0 => self.receive_clock.clock().saturating_sub(timeout_ms),
                _ => begin.saturating_sub(timeout_ms - lease_ms),
            };
            self.queue_lease(key);
            self.mark_changed(key);
        }
    }

    fn restore_connection(&mut self, now: u64, user: &str, conn: &str, state: Connected<M>) {
        let lease_from = self.receive_clock.lease_start(now);
        let heard = ReceivedAt {
            at: now,
            lease_from,
        };
        let key = self.roster.entry(user, conn);
        let connection = &mut self.roster.connections[key];
        // The connection is known already, and that is newer than the record.
        if !matches!(connection.state, State::Unknown) {
            return;
        }
        connection.saving.saved = true;
        let user = &mut self.roster.users[connection.user];
        // The clock may have been set back in the meantime.
        let state = match state {
            Connected::Live {
                opened,
                newest,
                metadata,
                activity,
                order,
                silence,
                stream_seq,
            } => {
                let newest = newest.min(now);
                user.live += 1;
                self.unlinked.push(key);
                if activity == Some(Activity::Typing) {
                    self.typing.push(Reverse((now, key)));
                }
                if let Some(activity) = activity {
                    user.activities[activity as usize] += 1;
                }
                self.live_connections.take_unchecked();
                if user.live == 1 && user.pending.is_none() {
                    self.online_users.take_unchecked();
                }
                let mut life = LiveConnection::new(heard, opened.min(now), newest, metadata, order);
                life.is_newest_saved = true;
                life.activity = activity;
                if activity == Some(Activity::Typing) {
                    life.set_typing_at(now);
                }
                life.set_silence(silence);
                life.stream_seq = stream_seq;
                State::Live(life)
            }
            Connected::Closed {
                timestamp,
                newest,
                kept_since,
                stream_seq,
            } => State::Closed(Close {
                timestamp: timestamp.min(now),
                newest: newest.min(now),
                kept_since: kept_since.min(now),
                is_silent: false,
                is_first: false,
                ignored: None,
                stream_seq,
            }),
        };
        self.roster.set_state(key, state);
        let connection = &self.roster.connections[key];
        self.roster.users[connection.user].see(connection.newest());
        self.queue_lease(key);
        self.queue_forgetting(key);
    }

    /// The digest of the live connections that have an id. It is kept up to date from the first
    /// call on.
    pub fn live_digest(&mut self) -> PartedDigest {
        self.roster.live_digest()
    }

    /// Up to when everything has been received, by the host's clock; `None` if no grace runs. The
    /// store has to keep it: how long a stored grace has run is measured up to this moment.
    pub fn graces_at(&self) -> Option<u64> {
        (self.running_graces > 0).then(|| self.receive_clock.known_up_to(self.clock.now()))
    }

    /// The host has paused for `paused_ms`. With each pause, the stored beginning of a grace moves
    /// on, so the records of graces are noted as changed when the pauses add up to `PAUSE_MS`.
    pub(super) fn note_graces(&mut self, paused_ms: u64) {
        self.changes.paused_ms = self.changes.paused_ms.saturating_add(paused_ms);
        if self.changes.paused_ms < PAUSE_MS || self.running_graces == 0 {
            return;
        }
        self.changes.paused_ms = 0;
        for key in self.roster.users.keys() {
            if self.roster.users[key].pending.is_some() {
                self.mark_user_changed(key);
            }
        }
    }

    /// Notes that a connection has changed.
    pub(super) fn mark_changed(&mut self, key: Key) {
        if !self.changes.wanted {
            return;
        }
        let connection = &mut self.roster.connections[key];
        if !std::mem::replace(&mut connection.saving.changed, true) {
            self.changes.connections.push(key);
        }
        // As a rule, the records of connections say when the user was last seen, and the user needs
        // none.
        let (newest, user) = (connection.newest(), connection.user);
        if newest < self.roster.users[user].last_seen {
            self.mark_user_changed(user);
        }
    }

    /// Notes that what is known of a user beyond their connections has changed.
    pub(super) fn mark_user_changed(&mut self, key: Key) {
        let changed = &mut self.roster.users[key].saving.changed;
        if self.changes.wanted && !std::mem::replace(changed, true) {
            self.changes.users.push(key);
        }
    }

    /// Forgets a connection, and its user if nothing else is known of them.
    pub(super) fn remove(&mut self, key: Key) {
        let Some(connection) = self.roster.remove(key) else {
            return;
        };
        let user = &self.roster.users[connection.user];
        if self.changes.wanted && connection.saving.saved {
            let names = (Arc::clone(&user.name), Arc::from(&*connection.id));
            self.changes.removed_connections.push(names);
        }
        // It may have been the only connection whose record says when the user was last seen.
        if connection.newest() >= user.last_seen && !user.is_spent() {
            self.mark_user_changed(connection.user);
        }
        self.remove_user_if_spent(connection.user);
    }

    /// Forgets a user if nothing is known of the user any more.
    pub(super) fn remove_user_if_spent(&mut self, key: Key) {
        if let Some(user) = self.roster.remove_user_if_spent(key)
            && self.changes.wanted
            && user.saving.saved
        {
            self.changes.removed_users.push(user.name);
        }
    }
}

/// None if the connection has been forgotten since.
fn connection_record<M: Clone>(roster: &mut Roster<M>, key: Key) -> Option<TrackerRecord<M>> {
    let connection: &mut Connection<M> = roster.connections.get_mut(key)?;
    connection.saving = SAVED;
    let state = match &mut connection.state {
        State::Unknown => return None,
        State::Live(life) => {
            life.is_newest_saved = true;
            Connected::Live {
                opened: life.opened,
                newest: life.newest,
                metadata: life.metadata.clone(),
                activity: life.activity,
                order: life.place.order,
                silence: life.silence(),
                stream_seq: life.stream_seq,
            }
        }
        State::Closed(close) => Connected::Closed {
            timestamp: close.timestamp,
            newest: close.newest,
            kept_since: close.kept_since,
            stream_seq: close.stream_seq,
        },
    };
    Some(TrackerRecord::Connection {
        user: Arc::clone(&roster.users[connection.user].name),
        conn: Arc::from(&*connection.id),
        state: Some(state),
    })
}

/// None if the user has been forgotten since.
fn user_record<M>(
    roster: &mut Roster<M>,
    key: Key,
    since: impl Fn(&PendingOffline) -> u64,
) -> Option<TrackerRecord<M>> {
    let user = roster.users.get_mut(key)?;
    user.saving = SAVED;
    let pending = user.pending.as_deref();
    Some(TrackerRecord::User {
        user: Arc::clone(&user.name),
        state: Some(UserState {
            last_seen: user.last_seen,
            pending: pending.map(|pending| (since(pending), pending.reason)),
        }),
    })
}

const SAVED: SaveState = SaveState {
    saved: true,
    changed: false,
};
