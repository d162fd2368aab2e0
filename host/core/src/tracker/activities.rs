//! The tracker's activities: what connections report of what their users are doing.

use std::cmp::Reverse;
use std::sync::Arc;

use super::Tracker;
use super::activity::Activity;
use super::connection::State;
use super::slab::Key;

impl<M: Clone> Tracker<M> {
    /// A connection reports an activity, in a connect or heartbeat that was just handed over. It
    /// holds until the connection reports another one, or ends. A report is ignored if a newer
    /// message has overtaken it, unless the connection has reported no activity yet: heartbeats may
    /// overtake the connect that reports one.
    pub fn set_activity(
        &mut self,
        now: u64,
        user: &str,
        conn: &str,
        timestamp: u64,
        activity: Activity,
    ) {
        let (heard, timestamp) = self.arrival(now, timestamp);
        let Some(key) = self.roster.find(user, conn) else {
            return;
        };
        let State::Live(life) = &mut self.roster.connections[key].state else {
            return;
        };
        let is_overtaken = timestamp < life.newest && life.activity.is_some();
        if is_overtaken || timestamp < life.opened {
            return;
        }
        if activity == Activity::Typing {
            life.set_typing_at(heard.at);
            if life.activity != Some(activity) {
                self.typing.push(Reverse((heard.at, key)));
            }
        }
        if life.activity == Some(activity) {
            return;
        }
        let before = life.activity;
        self.roster
            .change_live(key, |life| life.activity = Some(activity));
        self.count_activity(key, before, Some(activity));
        self.mark_changed(key);
    }

    /// Turns typing into active, for connections that last reported typing `typing_ms` ago or
    /// longer.
    pub fn end_typing(&mut self, now: u64, typing_ms: u64) {
        let now = self.advance(now);
        while let Some(Reverse((typed_at, key))) = self.typing.peek().copied()
            && typed_at.saturating_add(typing_ms) <= now
        {
            self.typing.pop();
            let Some(connection) = self.roster.connections.get_mut(key) else {
                continue;
            };
            let State::Live(life) = &mut connection.state else {
                continue;
            };
            if life.activity != Some(Activity::Typing) {
                continue;
            }
            if life.typing_at().saturating_add(typing_ms) > now {
                self.typing.push(Reverse((life.typing_at(), key)));
                continue;
            }
            self.roster
                .change_live(key, |life| life.activity = Some(Activity::Active));
            self.count_activity(key, Some(Activity::Typing), Some(Activity::Active));
            self.mark_changed(key);
        }
    }

    /// When to call `end_typing`.
    pub fn next_typing_end(&self, typing_ms: u64) -> Option<u64> {
        let Reverse((typed_at, _)) = self.typing.peek()?;
        Some(typed_at.saturating_add(typing_ms))
    }

    /// The activity of a user: the highest one that a live connection reports.
    pub fn activity(&self, user: &str) -> Option<Activity> {
        let user = &self.roster.users[self.roster.find_user(user)?];
        let is_reported = |activity: &&Activity| user.activities[**activity as usize] > 0;
        Activity::ALL.iter().rev().find(is_reported).copied()
    }

    /// Whether a user has a live connection.
    pub fn is_connected(&self, user: &str) -> bool {
        let user = self.roster.find_user(user);
        user.is_some_and(|key| self.roster.users[key].live > 0)
    }

    /// Takes a user whose activity may have changed. A user may come more than once. Call it until
    /// it returns `None`.
    pub fn take_changed_activities(&mut self) -> Option<Arc<str>> {
        self.changed_activities.pop()
    }

    /// Forgets the activities of all connections. Returns the users who had one.
    pub fn forget_activities(&mut self) -> Vec<Arc<str>> {
        self.changed_activities.clear();
        for key in self.roster.connections.keys() {
            if let State::Live(life) = &self.roster.connections[key].state
                && let Some(activity) = life.activity
            {
                self.roster.change_live(key, |life| life.activity = None);
                self.count_activity(key, Some(activity), None);
                self.mark_changed(key);
            }
        }
        std::mem::take(&mut self.changed_activities)
    }

    /// Counts a change of a connection's activity.
    pub(super) fn count_activity(
        &mut self,
        key: Key,
        before: Option<Activity>,
        after: Option<Activity>,
    ) {
        if before == after {
            return;
        }
        let user = &mut self.roster.users[self.roster.connections[key].user];
        if let Some(before) = before {
            user.activities[before as usize] -= 1;
        }
        if let Some(after) = after {
            user.activities[after as usize] += 1;
        }
        // While no connection is live, the user keeps the last activity.
        if user.live > 0 {
            self.changed_activities.push(Arc::clone(&user.name));
        }
    }
}
