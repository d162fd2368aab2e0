//! The tracker and time: leases that run out and graces that end, by the receive
//! clock, and closes that are forgotten.

use super::Tracker;
use super::connection::{LiveConnection, NOT_QUEUED, State};
use super::receive_clock::ReceiveClock;
use super::slab::Key;
use super::timer_queue::{LATEST, Task};
use super::types::{Reason, TrackerSettings, Transition};

impl<M: Clone> Tracker<M> {
    /// When to call `expire`. It may turn out that nothing is due then, but
    /// nothing is due before.
    pub fn next_deadline(&self) -> Option<u64> {
        let heard = self.timers.next_by_receive_clock();
        let heard = heard.and_then(|due| self.receive_clock.deadline(due));
        heard
            .into_iter()
            .chain(self.timers.next_by_host_clock())
            .min()
    }

    /// Runs the tasks that are due at `now`, up to the next transition. Call it until it returns
    /// `None`. Transitions come in the order of their deadlines.
    pub fn expire(&mut self, now: u64) -> Option<Transition<M>> {
        let now = self.advance(now);
        while let Some((due, task)) = self.timers.pop_due(now, self.receive_clock.clock()) {
            let transition = match task {
                Task::EndGrace(key) => self.end_grace(key, due),
                Task::Lease(key) => self.check_lease(key, due),
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

    /// The host has been handed all inputs up to `at`, as it knows at `now`. Leases and graces run
    /// on by the time since the last such report, or by one step if that is less. The rest was a
    /// pause.
    ///
    /// All pauses together lengthen a lease by at most one timeout. If a connection was last heard
    /// from two timeouts ago or longer, what is left of its lease is cut to a third of the timeout:
    /// time for one heartbeat, since the host may just have woken.
    pub fn received_up_to(&mut self, now: u64, at: u64) {
        self.run_clock(now, at, ReceiveClock::received);
    }

    /// As [`Self::received_up_to`], but some inputs up to `at` were lost on the way to this host:
    /// the time since the last report was a pause.
    pub fn lost_up_to(&mut self, now: u64, at: u64) {
        self.run_clock(now, at, ReceiveClock::lost);
    }

    pub(super) fn run_clock(
        &mut self,
        now: u64,
        at: u64,
        run: impl FnOnce(&mut ReceiveClock, u64, u64, u64) -> bool,
    ) {
        let now = self.advance(now);
        // A host that always receives needs no reports.
        if self.settings.receive_step_ms.is_none() {
            return;
        }
        let before = self.receive_clock.paused_ms();
        if run(
            &mut self.receive_clock,
            now,
            at.min(now),
            self.settings.timeout_ms,
        ) {
            self.queue_cuts();
        }
        self.note_graces(self.receive_clock.paused_ms() - before);
        while let Some(key) = self.timers.pop_cut(self.receive_clock.received_up_to()) {
            self.cut_lease(key);
        }
    }

    /// Sets how far wall time is ahead of the time that is given as `now`, in milliseconds;
    /// negative: behind.
    pub fn set_ahead(&mut self, now: u64, ahead_ms: i64) {
        // Otherwise the stamp would depend on how often the clock is moved on.
        self.advance(now);
        self.clock.set_ahead(ahead_ms);
    }

    /// Replaces the settings. All leases, graces and closes go by the new ones from now on.
    pub fn reconfigure(&mut self, settings: TrackerSettings) {
        let now = self.clock.now();
        self.settings = settings;
        self.receive_clock
            .change_step(settings.receive_step_ms, now);
        // Deadlines may have come nearer, and an entry must never be late.
        self.timers.clear();
        for key in self.roster.connections.keys() {
            let connection = &mut self.roster.connections[key];
            connection.lease_entry = NOT_QUEUED;
            connection.forgetting_queued = false;
            self.queue_lease(key);
            self.queue_forgetting(key);
        }
        for key in self.roster.users.keys() {
            self.roster.users[key].grace_entry = NOT_QUEUED;
            self.queue_grace(key);
        }
        self.receive_clock.assume_loss();
        self.queue_cuts();
        self.show_newest();
    }

    pub(super) fn queue_lease(&mut self, key: Key) {
        let Some(deadline) = self.lease_deadline(key) else {
            return;
        };
        let entry = &mut self.roster.connections[key].lease_entry;
        if *entry > deadline {
            *entry = deadline;
            self.timers.push(deadline, Task::Lease(key));
        }
    }

    pub(super) fn queue_forgetting(&mut self, key: Key) {
        let Some(deadline) = self.forgetting_deadline(key) else {
            return;
        };
        let queued = &mut self.roster.connections[key].forgetting_queued;
        if !std::mem::replace(queued, true) {
            self.timers.push(deadline, Task::Forget(key));
        }
    }

    pub(super) fn queue_grace(&mut self, key: Key) {
        let Some(deadline) = self.grace_deadline(key) else {
            return;
        };
        let entry = &mut self.roster.users[key].grace_entry;
        if *entry > deadline {
            *entry = deadline;
            self.timers.push(deadline, Task::EndGrace(key));
        }
    }

    fn check_lease(&mut self, key: Key, due: u64) -> Option<Transition<M>> {
        let entry = &mut self.roster.connections.get_mut(key)?.lease_entry;
        // The deadline has come nearer, and an earlier entry counts instead of this one.
        if *entry != due {
            return None;
        }
        *entry = NOT_QUEUED;
        if self.lease_deadline(key)? > due {
            self.queue_lease(key);
            return None;
        }
        let State::Live(life) = &self.roster.connections[key].state else {
            return None;
        };
        let last_heartbeat = life.newest;
        if let Some(expired) = &mut self.expired {
            let connection = &self.roster.connections[key];
            let user = &self.roster.users[connection.user];
            expired.push((user.name.clone(), connection.id.clone(), last_heartbeat));
        }
        self.time_out(key, last_heartbeat)
    }

    pub(super) fn time_out(&mut self, key: Key, last_heartbeat: u64) -> Option<Transition<M>> {
        // Nobody closed it. The close gets its last timestamp, so that the sender's next message is
        // newer, however far the sender's clock is behind.
        self.close(key, last_heartbeat, last_heartbeat);
        if let State::Closed(close) = &mut self.roster.connections[key].state {
            close.is_silent = true;
        }
        let user = self.roster.connections[key].user;
        let transition = (self.roster.users[user].live == 0)
            .then(|| self.go_offline(user, Reason::Timeout, Some(last_heartbeat)));
        self.bound_closes(key);
        transition
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
        let entry = &mut self.roster.users.get_mut(key)?.grace_entry;
        if *entry != due {
            return None;
        }
        *entry = NOT_QUEUED;
        if self.grace_deadline(key)? > due {
            self.queue_grace(key);
            return None;
        }
        self.finish_grace(key)
    }

    pub(super) fn finish_grace(&mut self, key: Key) -> Option<Transition<M>> {
        let pending = self.roster.users[key].pending.take()?;
        self.running_graces -= 1;
        self.mark_user_changed(key);
        let offline = self.go_offline(key, pending.reason, None);
        self.remove_user_if_spent(key);
        Some(offline)
    }

    /// Queues a cut for each lease that may need one: those of connections that have missed more
    /// than a timeout of receiving since they were last heard from, or will have before this is
    /// called again. Any other lease is over by the time of its cut.
    fn queue_cuts(&mut self) {
        let timeout_ms = self.settings.timeout_ms;
        let missed_ms = timeout_ms - self.receive_clock.slack_ms(timeout_ms);
        let (up_to, clock) = (
            self.receive_clock.received_up_to(),
            self.receive_clock.clock(),
        );
        for key in self.roster.connections.keys() {
            let State::Live(life) = &self.roster.connections[key].state else {
                continue;
            };
            let passed = i128::from(up_to) - i128::from(life.received_at);
            let used = i128::from(clock) - i128::from(life.lease_from);
            if passed - used > i128::from(missed_ms) {
                self.timers.cut_at(cut_at(life, timeout_ms), key);
            }
        }
    }

    fn cut_lease(&mut self, key: Key) {
        let timeout_ms = self.settings.timeout_ms;
        let Some(connection) = self.roster.connections.get_mut(key) else {
            return;
        };
        let State::Live(life) = &mut connection.state else {
            return;
        };
        // It may have been heard from since.
        if cut_at(life, timeout_ms) > self.receive_clock.received_up_to() {
            return;
        }
        let end = self.receive_clock.clock().saturating_add(timeout_ms / 3);
        life.lease_from = life.lease_from.min(end.saturating_sub(timeout_ms));
        self.queue_lease(key);
    }

    /// The deadline by the receive clock. `None` if the connection isn't live.
    fn lease_deadline(&self, key: Key) -> Option<u64> {
        let State::Live(life) = &self.roster.connections.get(key)?.state else {
            return None;
        };
        let deadline = life.lease_from.saturating_add(self.settings.timeout_ms);
        Some(deadline.min(LATEST))
    }

    /// The deadline by the host's clock. `None` if the connection isn't closed.
    fn forgetting_deadline(&self, key: Key) -> Option<u64> {
        let State::Closed(close) = &self.roster.connections.get(key)?.state else {
            return None;
        };
        let kept_ms = self.settings.timeout_ms.saturating_mul(2);
        Some(close.kept_since.saturating_add(kept_ms).min(LATEST))
    }

    /// The deadline by the receive clock. `None` if no offline of the user is pending.
    fn grace_deadline(&self, key: Key) -> Option<u64> {
        let pending = self.roster.users.get(key)?.pending.as_ref()?;
        let grace_ms = self.settings.grace_ms.max(pending.held_ms);
        let deadline = pending.since.saturating_add(grace_ms);
        Some(deadline.min(LATEST))
    }
}

/// When a lease is cut, by the host's clock.
fn cut_at<M>(life: &LiveConnection<M>, timeout_ms: u64) -> u64 {
    life.received_at
        .saturating_add(timeout_ms.saturating_mul(2))
}
