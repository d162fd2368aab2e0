//! Quotas of the tracker's memory, so that no single user or sender can fill it.
//!
//! The close of an unknown connection is refused if there is no room to remember it. The close of a
//! live connection always counts: if there is no room, another close is forgotten early, or this
//! one is not remembered.

use super::Tracker;
use super::connection::State;
use super::slab::Key;

impl<M: Clone> Tracker<M> {
    /// How many closes were forgotten early, since there was no room for them.
    pub fn closes_forgotten(&self) -> u64 {
        self.closes_forgotten
    }

    /// How many offlines were held back by damping, since their users flip.
    pub fn damped_offlines(&self) -> u64 {
        self.damped_offlines
    }

    /// For how long the offline of a user would wait for a reconnect, in milliseconds, if
    /// their last connection were closed now.
    pub fn grace_ms(&self, user: &str) -> u64 {
        let user = self.roster.find_user(user);
        // The close that is asked about would be one more flip. It is counted in a copy.
        let flips = user.map(|key| self.roster.users[key].flips.as_deref());
        let now = self.clock.now();
        let held_ms = flips.map_or(0, |flips| {
            let mut flips = flips.copied().unwrap_or_default();
            flips.flip(now, &self.settings.damping)
        });
        self.settings.grace_ms.max(held_ms)
    }

    /// Whether there is room to remember the close of an unknown connection.
    pub(super) fn has_room_for_close(&self, key: Key) -> bool {
        let user = &self.roster.users[self.roster.connections[key].user];
        // The connection itself is counted already.
        let of_user = user.closed() - 1;
        of_user < self.settings.connections_per_user_max
            && self.remembered() - 1 < self.settings.closes_max
    }

    /// Forgets closes beyond the limits, after one more connection was closed.
    pub(super) fn bound_closes(&mut self, closed: Key) {
        let user = &self.roster.users[self.roster.connections[closed].user];
        if user.closed() > self.settings.connections_per_user_max {
            self.closes_forgotten += 1;
            self.remove(closed);
        }
        while self.remembered() > self.settings.closes_max
            && let Some(key) = self.timers.pop_forgetting()
        {
            let Some(connection) = self.roster.connections.get_mut(key) else {
                continue;
            };
            connection.forgetting_queued = false;
            if let State::Closed(_) = connection.state {
                self.closes_forgotten += 1;
                self.remove(key);
            }
        }
    }
}
