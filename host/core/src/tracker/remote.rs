//! Heartbeats and timeouts that another host has taken in, and passes on later. This host takes in
//! no heartbeats meanwhile. Connects and disconnects reach this host at once, so a heartbeat may be
//! passed on after a disconnect that was sent after it.

use super::connection::{Close, CloseOrder, State};
use super::types::{InputResult, Reason, Transition};
use super::{ExpiredConnection, Tracker};

/// How another host handled a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteHeartbeat {
    /// Whether it adopted the connection.
    pub adopted: bool,
    /// How long ago it received the heartbeat, at most, in milliseconds.
    pub late_ms: u64,
}

impl RemoteHeartbeat {
    /// Whether a heartbeat belongs to a new life of a connection, after a close that this host has
    /// handled.
    fn follows(self, close: &mut Close, at: u64, timestamp: u64, order: CloseOrder) -> bool {
        if !close.is_silent && close.is_recent(at, self.late_ms) {
            // The heartbeat may have been sent before the close. The timestamps don't say: a host
            // takes a sender's timestamp as no later than its own time.
            return self.adopted && close.accept_heartbeat(at, timestamp, order);
        }
        // The other host has handled that close, too.
        self.adopted || close.accept_heartbeat(at, timestamp, order)
    }
}

impl<M: Clone> Tracker<M> {
    /// Another host has received for `gained_ms` longer, and has passed on all that it heard:
    /// leases and graces run on by this time.
    pub fn advance_remote(&mut self, now: u64, gained_ms: u64) {
        self.run_clock(now, now, |clock, now, _, timeout_ms| {
            clock.gain(now, gained_ms, timeout_ms)
        });
    }

    /// As [`Self::heartbeat`], for a heartbeat that another host has received.
    pub fn heartbeat_remote(
        &mut self,
        now: u64,
        (user, conn): (&str, &str),
        timestamp: u64,
        heard: RemoteHeartbeat,
        metadata: impl FnOnce() -> M,
    ) -> InputResult<M> {
        let follows =
            |close: &mut Close, at, timestamp, order| heard.follows(close, at, timestamp, order);
        self.sign_of_life(now, (user, conn), timestamp, metadata, follows)
    }

    /// Another host has timed a connection out, whose newest timestamp there is `timestamp`.
    pub fn expire_remote(
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
        // This host has heard from it since. The timestamp alone doesn't say so: if a sender's
        // clock is ahead, each host takes its own time instead of the sender's.
        let silent_ms = now.saturating_sub(life.received_at);
        if life.newest > timestamp && silent_ms < self.settings.timeout_ms / 2 {
            return None;
        }
        let last_heartbeat = life.newest.max(timestamp);
        self.time_out(key, last_heartbeat)
    }

    /// Another host has ended the grace of a user. A grace that has run here for less than half of
    /// its time goes on: it belongs to a later disconnect, which the other host had not handled by
    /// then.
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

    /// Ends the grace of a user of whom viewers were never told. The offline that it returns is not
    /// to be announced either.
    pub fn drop_grace_of(&mut self, user: &str) -> Option<Transition<M>> {
        let key = self.roster.find_user(user)?;
        self.finish_grace(key)
    }

    /// Whether a connection is live. `None` if nothing is known of it.
    pub(crate) fn is_live(&self, user: &str, conn: &str) -> Option<bool> {
        let key = self.roster.find(user, conn)?;
        match &self.roster.connections[key].state {
            State::Live(_) => Some(true),
            State::Closed(_) => Some(false),
            State::Unknown => None,
        }
    }

    /// The offline of a known user who has left. `None` if the user is online or unknown. Also
    /// `None` if users have a grace: then its end makes the offline.
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

    /// Sets whether connections that time out are kept from now on, for [`Self::take_expired`].
    pub(crate) fn keep_expired(&mut self, keep: bool) {
        self.expired = keep.then(Vec::new);
    }

    /// Takes the connections that have timed out since the last call.
    pub(crate) fn take_expired(&mut self) -> impl Iterator<Item = ExpiredConnection> {
        let expired = self.expired.as_mut();
        expired.map(std::mem::take).unwrap_or_default().into_iter()
    }
}
