//! What another host has heard of connections, and hands on later: this one takes in no heartbeats
//! meanwhile. Connects and disconnects reach this one at once, so a heartbeat may be handed on after
//! a disconnect that was sent behind it.

use super::connection::{Close, Order, State};
use super::types::{InputResult, Reason, Transition};
use super::{ExpiredConnection, Tracker};

/// What another host made of a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeardElsewhere {
    /// It adopted the connection.
    pub adopted: bool,
    /// How long ago it took it, at most.
    pub late_ms: u64,
}

impl HeardElsewhere {
    /// Whether a heartbeat is of a life after a close that this host has handled.
    fn follows(self, close: &mut Close, at: u64, timestamp: u64, order: Order) -> bool {
        if !close.is_silent && close.is_recent(at, self.late_ms) {
            // It may have been sent before the close. Senders' timestamps don't tell, since each host
            // takes them as no later than their arrival there.
            return self.adopted && close.is_followed_by(at, timestamp, order);
        }
        // The other host has handled that close, too.
        self.adopted || close.is_followed_by(at, timestamp, order)
    }
}

impl<M: Clone> Tracker<M> {
    /// Another host has heard for so much longer, and has handed on all that it heard: leases and
    /// graces run on by that.
    pub fn heard_for(&mut self, now: u64, gained_ms: u64) {
        self.run_clock(now, now, |clock, now, _, timeout_ms| {
            clock.gain(now, gained_ms, timeout_ms)
        });
    }

    /// As [`Self::heartbeat`], of a heartbeat that another host has taken.
    pub fn heartbeat_elsewhere(
        &mut self,
        now: u64,
        (user, conn): (&str, &str),
        timestamp: u64,
        heard: HeardElsewhere,
        metadata: impl FnOnce() -> M,
    ) -> InputResult<M> {
        let follows =
            |close: &mut Close, at, timestamp, order| heard.follows(close, at, timestamp, order);
        self.sign_of_life(now, (user, conn), timestamp, metadata, follows)
    }

    /// Another host takes a connection for gone that it last heard from with this timestamp.
    pub fn end_silent(
        &mut self,
        now: u64,
        user: &str,
        conn: &str,
        timestamp: u64,
    ) -> Option<Transition<M>> {
        let now = self.advance(now);
        let key = self.roster.find(user, conn)?;
        let State::Live(life) = &self.roster.connections[key].state else {
            return None;
        };
        // It has been heard from here since. The timestamp alone doesn't say so: each host takes that of
        // a sender whose clock is ahead as its own time.
        let silent_ms = now.saturating_sub(life.heard_at);
        if life.newest > timestamp && silent_ms < self.settings.timeout_ms / 2 {
            return None;
        }
        let last_heartbeat = life.newest.max(timestamp);
        self.time_out(key, last_heartbeat)
    }

    /// Another host says that the grace of a user has ended. One that has run here for less than half of
    /// its time is of a later disconnect, which the other host hadn't handled by then.
    pub fn end_grace_of(&mut self, now: u64, user: &str) -> Option<Transition<M>> {
        self.advance(now);
        let key = self.roster.find_user(user)?;
        let pending = self.roster.users[key].pending.as_ref()?;
        let grace_ms = self.settings.grace_ms.max(pending.held_ms);
        let ran_ms = self.receive_clock.clock().saturating_sub(pending.since);
        match ran_ms < grace_ms / 2 {
            true => None,
            false => self.finish_grace(key),
        }
    }

    /// Nobody was told that a user came online whose grace runs: they have left, and nobody is to be told
    /// so.
    pub fn drop_grace_of(&mut self, user: &str) -> Option<Transition<M>> {
        let key = self.roster.find_user(user)?;
        self.finish_grace(key)
    }

    /// Whether a connection is live; none if nothing is known of it.
    pub(crate) fn is_live(&self, user: &str, conn: &str) -> Option<bool> {
        let key = self.roster.find(user, conn)?;
        match &self.roster.connections[key].state {
            State::Live(_) => Some(true),
            State::Closed(_) => Some(false),
            State::Unknown => None,
        }
    }

    /// That a known user has left; none if the user is online, or isn't known. Where users have a grace,
    /// its end says when they have left, and there is none here.
    pub(crate) fn departure(&self, user: &str, reason: Reason) -> Option<Transition<M>> {
        let user = &self.roster.users[self.roster.find_user(user)?];
        let has_left = !user.is_online() && self.settings.grace_ms == 0;
        has_left.then(|| Transition::Offline {
            user: user.name.clone(),
            at: self.clock.stamp(),
            last_seen: user.last_seen,
            reason,
            last_heartbeat: None,
        })
    }

    /// Whether connections that time out are kept from now on, for [`Self::take_expired`].
    pub(crate) fn keep_expired(&mut self, keep: bool) {
        self.expired = keep.then(Vec::new);
    }

    /// Those that have timed out since this was last called.
    pub(crate) fn take_expired(&mut self) -> impl Iterator<Item = ExpiredConnection> {
        let expired = self.expired.as_mut();
        expired.map(std::mem::take).unwrap_or_default().into_iter()
    }
}
