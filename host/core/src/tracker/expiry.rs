//! The tracker and time: leases that run out, graces that end, closes that are
//! forgotten, and pauses in which no lease is judged.

use super::connection::State;
use super::slab::Key;
use super::types::{Reason, Settings, Transition};
use super::{Task, Tracker};

impl<M: Clone> Tracker<M> {
    /// When to call `expire`. It may turn out that nothing is due then, but
    /// nothing is due before.
    pub fn next_deadline(&self) -> Option<u64> {
        let other = self.agenda.next_other();
        let Some(lease) = self.agenda.next_lease().filter(|_| !self.paused) else {
            return other;
        };
        // What a pause has put off is not due in the past.
        let lease = lease.max(self.hearing_since.saturating_add(self.settings.timeout_ms));
        Some(other.map_or(lease, |other| other.min(lease)))
    }

    /// Does what is due at `now`, up to the next transition. To be called until
    /// it returns `None`. Transitions come in the order of their deadlines.
    pub fn expire(&mut self, now: u64) -> Option<Transition<M>> {
        let now = self.advance(now);
        while let Some((due, task)) = self.agenda.pop_due(now, !self.paused) {
            let transition = match task {
                Task::EndGrace(key) => self.end_grace(key, due),
                Task::Lease(key) => self.judge_lease(key, due),
                Task::Forget(key) => {
                    self.forget(key, due);
                    None
                }
            };
            if transition.is_some() {
                return transition;
            }
        }
        None
    }

    /// The host can't hear: from now on silence means nothing, and no lease
    /// runs out.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// The host can hear again: every lease begins anew.
    pub fn resume(&mut self, now: u64) {
        self.paused = false;
        self.hearing_since = self.advance(now);
    }

    /// Judges all leases, graces and closes by other figures from now on.
    pub fn reconfigure(&mut self, settings: Settings) {
        self.settings = settings;
        // Deadlines may have come nearer, and an entry must never be late.
        self.agenda.clear();
        for key in self.roster.connections.keys() {
            let connection = &mut self.roster.connections[key];
            connection.lease_queued = false;
            connection.forgetting_queued = false;
            self.queue_lease(key);
            self.queue_forgetting(key);
        }
        for key in self.roster.users.keys() {
            self.roster.users[key].grace_queued = false;
            self.queue_grace(key);
        }
    }

    pub(super) fn queue_lease(&mut self, key: Key) {
        let Some(deadline) = self.lease_deadline(key) else {
            return;
        };
        let queued = &mut self.roster.connections[key].lease_queued;
        if !std::mem::replace(queued, true) {
            self.agenda.push(deadline, Task::Lease(key));
        }
    }

    pub(super) fn queue_forgetting(&mut self, key: Key) {
        let Some(deadline) = self.forgetting_deadline(key) else {
            return;
        };
        let queued = &mut self.roster.connections[key].forgetting_queued;
        if !std::mem::replace(queued, true) {
            self.agenda.push(deadline, Task::Forget(key));
        }
    }

    pub(super) fn queue_grace(&mut self, key: Key) {
        let Some(deadline) = self.grace_deadline(key) else {
            return;
        };
        let queued = &mut self.roster.users[key].grace_queued;
        if !std::mem::replace(queued, true) {
            self.agenda.push(deadline, Task::EndGrace(key));
        }
    }

    fn judge_lease(&mut self, key: Key, due: u64) -> Option<Transition<M>> {
        self.roster.connections.get_mut(key)?.lease_queued = false;
        if self.lease_deadline(key)? > due {
            self.queue_lease(key);
            return None;
        }
        let State::Live(life) = &self.roster.connections[key].state else {
            return None;
        };
        let last_heartbeat = life.newest;
        self.close(key, self.now, last_heartbeat, true);
        let user = self.roster.connections[key].user;
        (self.roster.users[user].live == 0)
            .then(|| self.go_offline(user, Reason::Timeout, Some(last_heartbeat)))
    }

    fn forget(&mut self, key: Key, due: u64) {
        let Some(connection) = self.roster.connections.get_mut(key) else {
            return;
        };
        connection.forgetting_queued = false;
        match self.forgetting_deadline(key) {
            Some(deadline) if deadline <= due => self.remove(key),
            _ => self.queue_forgetting(key),
        }
    }

    fn end_grace(&mut self, key: Key, due: u64) -> Option<Transition<M>> {
        self.roster.users.get_mut(key)?.grace_queued = false;
        if self.grace_deadline(key)? > due {
            self.queue_grace(key);
            return None;
        }
        let pending = self.roster.users[key].pending.take()?;
        self.note_user(key);
        let offline = self.go_offline(key, pending.reason, None);
        self.remove_user_if_spent(key);
        Some(offline)
    }

    /// None if the connection isn't live.
    fn lease_deadline(&self, key: Key) -> Option<u64> {
        let State::Live(life) = &self.roster.connections.get(key)?.state else {
            return None;
        };
        let began = life.heard_at.max(self.hearing_since);
        Some(began.saturating_add(self.settings.timeout_ms))
    }

    /// None if the connection isn't closed.
    fn forgetting_deadline(&self, key: Key) -> Option<u64> {
        let State::Closed(close) = &self.roster.connections.get(key)?.state else {
            return None;
        };
        let kept_ms = self.settings.timeout_ms.saturating_mul(2);
        Some(close.kept_since.saturating_add(kept_ms))
    }

    /// None if the user's offline isn't pending.
    fn grace_deadline(&self, key: Key) -> Option<u64> {
        let pending = self.roster.users.get(key)?.pending.as_ref()?;
        Some(pending.since.saturating_add(self.settings.grace_ms))
    }
}
