//! The presence tracker of one shard: from connects, heartbeats and
//! disconnects to "this user came online" and "this user went offline".
//!
//! It is a state machine without any I/O. Time is an argument (milliseconds of a monotonic clock),
//! and no input can make it fail. The caller's contract:
//!
//! 1. hand over every input with the time at which it arrived;
//! 2. if the host may miss inputs, report up to when all inputs have been received
//!    (`received_up_to`): leases and graces run only by these reports;
//! 3. when `next_deadline` is reached, call `expire` until it returns `None`. Inputs that arrived
//!    by then go first: a heartbeat at the very millisecond of the deadline keeps its connection.
//!
//! Liveness depends only on when messages arrive. A sender's timestamp only says when the user was
//! last seen, and orders the messages of one connection. It counts as no later than the stamp,
//! which is the time that is written into bodies. Time does not run backwards: a `now` that is
//! earlier than a previous one counts as the previous one.
//!
//! A heartbeat is one hash look-up and a few writes. Deadlines are lazy, see
//! `timer_queue`.

#![expect(
    clippy::indexing_slicing,
    reason = "slabs are indexed by keys that the tables and connections hold, never by an outdated one"
)]

mod activities;
mod activity;
mod changes;
mod connection;
mod damping;
mod expiry;
mod places;
mod quotas;
mod receive_clock;
mod record;
mod remote;
mod roster;
mod shown_connection;
mod silent_starts;
mod slab;
mod stream_order;
mod timer_queue;
mod types;
mod user;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::Arc;

pub use self::activity::Activity;
use self::changes::UnsavedChanges;
use self::connection::{Close, CloseOrder, LiveConnection, ReceivedAt, State};
pub use self::damping::Damping;
use self::places::OrderCounter;
use self::receive_clock::ReceiveClock;
pub use self::record::{Connected, Cursor, TrackerRecord, UserState};
pub use self::remote::RemoteHeartbeat;
use self::roster::Roster;
pub use self::silent_starts::SilentStarts;
use self::slab::Key;
use self::timer_queue::TimerQueue;
pub use self::types::{Effect, InputResult, Reason, TrackerSettings, Transition};
use self::user::PendingOffline;
use crate::clock::Clock;
use crate::message::StreamPlace;
use crate::quota::{Cap, CapHolder, Quota};

/// A connection that has timed out: user, connection, and the newest timestamp in its messages.
pub(crate) type ExpiredConnection = (Arc<str>, Box<str>, u64);

/// Who is connected, and who is therefore online.
///
/// `M` is a connection's metadata, which the tracker doesn't interpret.
#[derive(Debug)]
pub struct Tracker<M> {
    settings: TrackerSettings,
    clock: Clock,
    receive_clock: ReceiveClock,
    roster: Roster<M>,
    timers: TimerQueue,
    changes: UnsavedChanges,
    /// Users whose activity may have changed, since a connection reported another one, or ended.
    changed_activities: Vec<Arc<str>>,
    /// Users who stay online, and whose shown connection or metadata has changed.
    reshown: Vec<Arc<str>>,
    orders: OrderCounter,
    /// Live connections that were restored, and are not in their user's list yet.
    unlinked: Vec<Key>,
    /// Connections that report typing, by the time of a report. The newest report may be later: see
    /// `LiveConnection::typing_at`.
    typing: BinaryHeap<Reverse<(u64, Key)>>,
    /// The users and connections of this tracker, counted against the limits of its tenant.
    online_users: CapHolder,
    live_connections: CapHolder,
    /// How many closes were forgotten early, since there was no room for them.
    closes_forgotten: u64,
    /// How many offlines were held back by damping, since their users flip.
    damped_offlines: u64,
    /// How many graces are running.
    running_graces: usize,
    /// The stream to which the connections' message numbers belong. 0: none.
    stream: u64,
    /// Connections that have timed out since they were last taken. `None`: they are not kept.
    expired: Option<Vec<ExpiredConnection>>,
}

impl<M: Clone> Tracker<M> {
    /// A tracker without users.
    pub fn new(settings: TrackerSettings) -> Self {
        Self {
            settings,
            clock: Clock::default(),
            receive_clock: ReceiveClock::new(settings.receive_step_ms),
            roster: Roster::default(),
            timers: TimerQueue::default(),
            changes: UnsavedChanges::default(),
            changed_activities: Vec::new(),
            reshown: Vec::new(),
            orders: OrderCounter::default(),
            unlinked: Vec::new(),
            typing: BinaryHeap::new(),
            online_users: CapHolder::default(),
            live_connections: CapHolder::default(),
            closes_forgotten: 0,
            damped_offlines: 0,
            running_graces: 0,
            stream: 0,
            expired: None,
        }
    }

    /// Returns this tracker with its users and connections counted against these limits, which
    /// other trackers share. Call it before the first input.
    #[must_use]
    pub fn within(self, users: &Cap, connections: &Cap) -> Self {
        Self {
            online_users: CapHolder::of(users),
            live_connections: CapHolder::of(connections),
            ..self
        }
    }

    /// Sets how many users and connections there may be, in all trackers that share the limits.
    pub fn change_maxima(&self, users: usize, connections: usize) {
        self.online_users.change(users);
        self.live_connections.change(connections);
    }

    /// A transport reports that a connection was opened.
    ///
    /// Repeating it is harmless: it renews the lease. `metadata` is called if this is the newest
    /// connect of the connection. A connect that is older than the connection's close, and arrives
    /// soon after it, is stale.
    pub fn connect(
        &mut self,
        now: u64,
        user: &str,
        conn: &str,
        timestamp: u64,
        metadata: impl FnOnce() -> M,
    ) -> InputResult<M>
    where
        M: PartialEq,
    {
        self.connect_at(now, (user, conn), timestamp, None, metadata)
    }

    /// As [`Self::connect`]. `place`: the message's place in a stream; `None` if it comes from no
    /// stream.
    pub fn connect_at(
        &mut self,
        now: u64,
        (user, conn): (&str, &str),
        timestamp: u64,
        place: Option<StreamPlace>,
        metadata: impl FnOnce() -> M,
    ) -> InputResult<M>
    where
        M: PartialEq,
    {
        let (heard, timestamp) = self.arrival(now, timestamp);
        let order = self.settings.order(conn);
        let key = self.roster.entry(user, conn);
        let connection = &mut self.roster.connections[key];
        match &mut connection.state {
            State::Live(life) => {
                let was_silent = life.renew(heard, timestamp);
                let is_newest = timestamp >= life.opened;
                let was_adopted = life.place.order < 0;
                let mut says_otherwise = false;
                if is_newest {
                    life.opened = timestamp;
                    let metadata = metadata();
                    says_otherwise = life.metadata != metadata;
                    life.metadata = metadata;
                }
                let user = connection.user;
                self.roster.users[user].see(timestamp);
                self.queue_lease(key);
                if is_newest {
                    // An adopted connection gets its place in the order with its first connect.
                    if was_adopted {
                        self.unlink(key);
                        let order = self.order_opened(user, place);
                        self.roster
                            .change_live(key, |life| life.place.order = order);
                        self.link(key);
                    }
                    if self.is_shown(key) && (was_adopted || says_otherwise) {
                        self.note_reshown(key);
                    }
                }
                if is_newest || was_silent {
                    self.mark_changed(key);
                }
                Effect::Renewed.into()
            }
            State::Closed(close) if close.has_overtaken(heard.at, timestamp, order) => {
                close.ignored = close.ignored.max(Some(timestamp));
                Effect::Stale.into()
            }
            State::Closed(_) | State::Unknown => {
                let user = connection.user;
                let order = self.order_opened(user, place);
                let life = LiveConnection::new(heard, timestamp, timestamp, metadata(), order);
                self.make_live(key, life, Effect::Opened)
            }
        }
    }

    /// A connection says that it is alive.
    ///
    /// An unknown connection is adopted: this host may have restarted, or have missed the connect.
    /// A closed one is adopted if the heartbeat is newer than all that is known of the connection,
    /// or if it has the same timestamp and arrives right after the close. If the sender's clock is
    /// behind, the second newer heartbeat counts (`Close::accept_heartbeat`). `metadata` is called
    /// only for an adoption; otherwise nothing is allocated.
    pub fn heartbeat(
        &mut self,
        now: u64,
        user: &str,
        conn: &str,
        timestamp: u64,
        metadata: impl FnOnce() -> M,
    ) -> InputResult<M> {
        self.sign_of_life(
            now,
            (user, conn),
            timestamp,
            metadata,
            Close::accept_heartbeat,
        )
    }

    /// `follows`: whether the message belongs to a new life of a closed connection.
    fn sign_of_life(
        &mut self,
        now: u64,
        (user, conn): (&str, &str),
        timestamp: u64,
        metadata: impl FnOnce() -> M,
        follows: impl FnOnce(&mut Close, u64, u64, CloseOrder) -> bool,
    ) -> InputResult<M> {
        let (heard, timestamp) = self.arrival(now, timestamp);
        let order = self.settings.order(conn);
        let key = self.roster.entry(user, conn);
        let connection = &mut self.roster.connections[key];
        let opened = match &mut connection.state {
            State::Live(life) => {
                let was_silent = life.renew(heard, timestamp);
                self.roster.users[connection.user].see(timestamp);
                self.queue_lease(key);
                if was_silent {
                    self.mark_changed(key);
                }
                return Effect::Renewed.into();
            }
            State::Closed(close) => match follows(close, heard.at, timestamp, order) {
                true => timestamp.min(close.newest + 1),
                // It was sent before the close.
                false => return Effect::Stale.into(),
            },
            // The time of the connect isn't known. With 0, any disconnect ends the connection.
            State::Unknown => 0,
        };
        let life = LiveConnection::new(
            heard,
            opened,
            timestamp,
            metadata(),
            self.orders.next_adopted(),
        );
        self.make_live(key, life, Effect::Adopted)
    }

    /// A transport reports that a connection was closed.
    ///
    /// The close is remembered for twice the timeout, even if the connection was unknown. So a
    /// message that was sent before the close, and arrives after it, does no harm.
    pub fn disconnect(
        &mut self,
        now: u64,
        user: &str,
        conn: &str,
        timestamp: u64,
        reason: Reason,
    ) -> InputResult<M> {
        let (heard, timestamp) = self.arrival(now, timestamp);
        let key = self.roster.entry(user, conn);
        let order = self.settings.order(conn);
        let connection = &self.roster.connections[key];
        let was_live = match &connection.state {
            // It ended an earlier life of this connection.
            State::Live(life) if timestamp < life.opened => return Effect::Stale.into(),
            // It repeats the disconnect that is known.
            State::Closed(close) if timestamp == close.timestamp => {
                return Effect::Remembered.into();
            }
            State::Closed(close) if close.has_overtaken(heard.at, timestamp, order) => {
                return Effect::Stale.into();
            }
            State::Live(_) => true,
            State::Unknown if !self.has_room_for_close(key) => {
                self.remove(key);
                return Effect::Refused(Quota::Closes).into();
            }
            State::Closed(_) | State::Unknown => false,
        };
        let newest = connection.newest().max(timestamp);
        self.close(key, timestamp, newest);

        let user_key = self.roster.connections[key].user;
        let user = &mut self.roster.users[user_key];
        let is_newest = timestamp > user.last_seen;
        user.see(timestamp);
        if !was_live {
            if let Some(pending) = user.pending.as_mut().filter(|_| is_newest) {
                pending.reason = reason;
                self.mark_user_changed(user_key);
            }
            return Effect::Remembered.into();
        }
        let transition = if user.live > 0 {
            None
        } else {
            let held_ms = match self.settings.damping.threshold {
                0 => 0,
                _ => {
                    let flips = user.flips.get_or_insert_default();
                    flips.flip(heard.at, &self.settings.damping)
                }
            };
            self.damped_offlines += u64::from(held_ms > self.settings.grace_ms);
            if held_ms.max(self.settings.grace_ms) > 0 {
                user.pending = Some(Box::new(PendingOffline {
                    since: heard.lease_from,
                    reason,
                    held_ms,
                }));
                self.running_graces += 1;
                self.mark_user_changed(user_key);
                self.queue_grace(user_key);
                None
            } else {
                Some(self.go_offline(user_key, reason, None))
            }
        };
        self.bound_closes(key);
        InputResult {
            effect: Effect::Closed,
            transition,
        }
    }

    /// Whether a user has a live connection, or lost the last one so recently
    /// that its grace still runs.
    pub fn is_online(&self, user: &str) -> bool {
        self.roster
            .find_user(user)
            .is_some_and(|key| self.roster.users[key].is_online())
    }

    /// The users that are online and how many live connections each has (none
    /// during a grace), in an order that depends on the inputs alone.
    pub fn users(&self) -> impl Iterator<Item = (&Arc<str>, usize)> {
        let users = self.roster.users.values();
        users
            .filter(|user| user.is_online())
            .map(|user| (&user.name, user.live as usize))
    }

    /// The range of the slots that hold users, for [`Self::users_at`].
    pub fn user_places(&self) -> Range<usize> {
        0..self.roster.users.slots()
    }

    /// The online users in a range of slots.
    pub fn users_at(&self, places: Range<usize>) -> impl Iterator<Item = &Arc<str>> {
        let users = places.filter_map(|place| self.roster.users.at_place(place));
        let online = users.filter(|(_, user)| user.is_online());
        online.map(|(_, user)| &user.name)
    }

    /// How many users are online.
    pub fn online_users(&self) -> usize {
        self.online_users.count()
    }

    /// How many connections are live.
    pub fn connections(&self) -> usize {
        self.live_connections.count()
    }

    /// How many closes are remembered.
    pub fn remembered(&self) -> usize {
        self.roster.connections.len() - self.live_connections.count()
    }

    /// Whether no user is known.
    pub fn is_empty(&self) -> bool {
        // A user is kept for as long as a connection, a close or a grace is.
        self.roster.users.len() == 0
    }

    /// The metadata of a live connection.
    pub fn metadata(&self, user: &str, conn: &str) -> Option<&M> {
        let key = self.roster.find(user, conn)?;
        match &self.roster.connections[key].state {
            State::Live(life) => Some(&life.metadata),
            State::Closed(_) | State::Unknown => None,
        }
    }

    /// How long ago the last message of a live connection arrived, in milliseconds. `None` if the
    /// connection isn't live.
    pub fn silent_ms(&self, now: u64, user: &str, conn: &str) -> Option<u64> {
        let key = self.roster.find(user, conn)?;
        match &self.roster.connections[key].state {
            State::Live(life) => Some(now.saturating_sub(life.received_at)),
            State::Closed(_) | State::Unknown => None,
        }
    }

    /// Moves the clocks on to `now`. Returns the time of arrival, and the sender's timestamp, which
    /// counts as no later than the stamp.
    fn arrival(&mut self, now: u64, timestamp: u64) -> (ReceivedAt, u64) {
        let at = self.advance(now);
        let lease_from = self.receive_clock.lease_start(at);
        (
            ReceivedAt { at, lease_from },
            timestamp.min(self.clock.stamp()),
        )
    }

    fn advance(&mut self, now: u64) -> u64 {
        self.clock.advance_to(now);
        let now = self.clock.now();
        self.receive_clock.advance_to(now);
        now
    }

    /// Makes a connection live.
    fn make_live(
        &mut self,
        key: Key,
        mut life: LiveConnection<M>,
        effect: Effect,
    ) -> InputResult<M> {
        life.stream_seq = self.roster.connections[key].stream_seq();
        let user_key = self.roster.connections[key].user;
        // A connection without an id is a placeholder, see `shard::standby`: its user is online
        // already, as far as viewers know. So no quota refuses it.
        let stands_for_others = self.roster.connections[key].id.is_empty();
        if stands_for_others {
            self.admit_unchecked(user_key);
        } else if let Err(quota) = self.admit(user_key) {
            if matches!(self.roster.connections[key].state, State::Unknown) {
                self.remove(key);
            }
            return Effect::Refused(quota).into();
        }
        let user = &mut self.roster.users[user_key];
        user.see(life.newest);
        user.live += 1;
        let in_grace = user.pending.take().is_some();
        self.running_graces -= usize::from(in_grace);
        let transition = (user.live == 1 && !in_grace).then(|| Transition::Online {
            user: user.name.clone(),
            at: self.clock.stamp(),
            conn: Arc::from(&*self.roster.connections[key].id),
            metadata: life.metadata.clone(),
        });
        self.roster.set_state(key, State::Live(life));
        self.link(key);
        if transition.is_none() && self.is_shown(key) {
            self.note_reshown(key);
        }
        self.mark_changed(key);
        if in_grace {
            self.mark_user_changed(user_key);
            // During the grace, the user kept the activity from before. The new connection replaces
            // it.
            self.changed_activities
                .push(Arc::clone(&self.roster.users[user_key].name));
        }
        self.queue_lease(key);
        InputResult { effect, transition }
    }

    /// Counts one more live connection of a user. Fails with the quota that it would exceed.
    fn admit(&mut self, user: Key) -> Result<(), Quota> {
        let user = &self.roster.users[user];
        let is_new = !user.is_online();
        if user.live as usize >= self.settings.connections_per_user_max {
            return Err(Quota::UserConnections);
        }
        if is_new && !self.online_users.take() {
            return Err(Quota::Users);
        }
        if !self.live_connections.take() {
            if is_new {
                self.online_users.release();
            }
            return Err(Quota::Connections);
        }
        Ok(())
    }

    /// Counts one more live connection of a user, even if that exceeds a quota.
    fn admit_unchecked(&mut self, user: Key) {
        if !self.roster.users[user].is_online() {
            self.online_users.take_unchecked();
        }
        self.live_connections.take_unchecked();
    }

    /// Marks a connection as closed, or replaces the close of a closed one.
    fn close(&mut self, key: Key, timestamp: u64, newest: u64) {
        let was_shown = self.is_shown(key);
        self.unlink(key);
        let connection = &self.roster.connections[key];
        let mut activity = None;
        if let State::Live(life) = &connection.state {
            activity = life.activity;
            self.roster.users[connection.user].live -= 1;
            self.live_connections.release();
        }
        let close = Close {
            timestamp,
            newest,
            kept_since: self.clock.now(),
            is_silent: false,
            is_first: match &connection.state {
                State::Unknown => true,
                State::Closed(close) => close.is_first,
                State::Live(_) => false,
            },
            ignored: None,
            stream_seq: connection.stream_seq(),
        };
        self.roster.set_state(key, State::Closed(close));
        self.count_activity(key, activity, None);
        let user = &self.roster.users[self.roster.connections[key].user];
        if was_shown && user.live > 0 {
            self.note_reshown(key);
        }
        self.mark_changed(key);
        self.queue_forgetting(key);
    }

    fn go_offline(
        &mut self,
        key: Key,
        reason: Reason,
        last_heartbeat: Option<u64>,
    ) -> Transition<M> {
        self.online_users.release();
        let user = &self.roster.users[key];
        Transition::Offline {
            user: user.name.clone(),
            at: self.clock.stamp(),
            last_seen: user.last_seen,
            reason,
            last_heartbeat,
        }
    }
}
