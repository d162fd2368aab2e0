//! The tracker's rules in their simplest form: lists that are searched, and deadlines that are
//! computed at each question. The tracker's optimizations must make no difference to the results.

use presence_core::tracker::{Activity, Effect, InputResult, Reason, TrackerSettings, Transition};

type Metadata = u64;

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) settings: TrackerSettings,
    now: u64,
    /// How long the host has been able to hear, in milliseconds.
    receive_clock_ms: i64,
    received_up_to: Option<u64>,
    /// When that was last reported.
    told_at: u64,
    /// How much of the elapsed time may still count as heard.
    room_ms: u64,
    ranks: i64,
    /// In the order in which they became known.
    users: Vec<User>,
    connections: Vec<Connection>,
}

#[derive(Debug)]
struct User {
    name: String,
    last_seen: u64,
    /// Since when, in heard time, and why.
    pending: Option<(i64, Reason)>,
}

#[derive(Debug)]
struct Connection {
    user: String,
    id: String,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Unknown,
    Live {
        heard_at: u64,
        /// The start of the lease, in heard time.
        lease_from: i64,
        opened: u64,
        newest: u64,
        activity: Option<Activity>,
        metadata: Metadata,
        /// A newer connection has a higher rank. Below 0 if no connect was received.
        rank: i64,
    },
    Closed {
        timestamp: u64,
        newest: u64,
        handled_at: u64,
        /// The newest timestamp of later messages that were considered older than the close.
        ignored: Option<u64>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    EndGrace(usize),
    Lease(usize),
    Forget(usize),
}

impl Model {
    pub(crate) fn new(settings: TrackerSettings) -> Self {
        Self {
            settings,
            now: 0,
            receive_clock_ms: 0,
            received_up_to: settings.receive_step_ms.is_none().then_some(0),
            told_at: 0,
            room_ms: 0,
            ranks: 0,
            users: Vec::new(),
            connections: Vec::new(),
        }
    }

    pub(crate) fn connect(
        &mut self,
        now: u64,
        user: &str,
        id: &str,
        timestamp: u64,
        metadata: Metadata,
    ) -> InputResult<Metadata> {
        let timestamp = timestamp.min(now);
        let index = self.entry(user, id);
        let opened = match self.connections[index].state {
            State::Live { opened, .. } => opened.max(timestamp),
            State::Closed { .. } if self.is_late(index, now, timestamp) => {
                self.ignore(index, timestamp);
                return Effect::Stale.into();
            }
            State::Closed { .. } | State::Unknown => timestamp,
        };
        self.live(index, now, opened, timestamp, metadata, Effect::Opened)
    }

    pub(crate) fn heartbeat(
        &mut self,
        now: u64,
        user: &str,
        id: &str,
        timestamp: u64,
        metadata: Metadata,
    ) -> InputResult<Metadata> {
        let timestamp = timestamp.min(now);
        let index = self.entry(user, id);
        let opened = match self.connections[index].state {
            State::Live { opened, .. } => opened,
            State::Closed { newest, .. } if timestamp > newest => newest + 1,
            State::Closed {
                newest,
                handled_at,
                ignored,
                ..
            } => {
                let is_recent = now <= handled_at + self.settings.reorder_ms;
                let is_tie = is_recent && timestamp == newest;
                let goes_on = !is_recent && ignored.is_some_and(|it| it < timestamp);
                if !is_tie && !goes_on {
                    self.ignore(index, timestamp);
                    return Effect::Stale.into();
                }
                timestamp
            }
            State::Unknown => 0,
        };
        self.live(index, now, opened, timestamp, metadata, Effect::Adopted)
    }

    pub(crate) fn disconnect(
        &mut self,
        now: u64,
        user: &str,
        id: &str,
        timestamp: u64,
        reason: Reason,
    ) -> InputResult<Metadata> {
        let timestamp = timestamp.min(now);
        let index = self.entry(user, id);
        let effect = match self.connections[index].state {
            State::Live { opened, .. } if timestamp < opened => return Effect::Stale.into(),
            State::Closed { .. } if self.is_late(index, now, timestamp) => {
                return Effect::Stale.into();
            }
            State::Closed {
                timestamp: closed, ..
            } if timestamp == closed => return Effect::Remembered.into(),
            State::Live { .. } => Effect::Closed,
            State::Closed { .. } | State::Unknown => Effect::Remembered,
        };
        let known = match self.connections[index].state {
            State::Live { newest, .. } | State::Closed { newest, .. } => newest,
            State::Unknown => 0,
        };
        self.connections[index].state = State::Closed {
            timestamp,
            newest: known.max(timestamp),
            handled_at: now,
            ignored: None,
        };

        let since = self.lease_from(now);
        let is_last = effect == Effect::Closed && self.live_connections(user) == 0;
        let grace_ms = self.settings.grace_ms;
        let user = self.user(user);
        if let Some(pending) = user.pending.as_mut().filter(|_| timestamp > user.last_seen) {
            pending.1 = reason;
        }
        user.last_seen = user.last_seen.max(timestamp);
        if is_last && grace_ms > 0 {
            user.pending = Some((since, reason));
        }
        let offline = is_last && grace_ms == 0;
        InputResult {
            effect,
            transition: offline.then(|| user.offline(now, reason, None)),
        }
    }

    pub(crate) fn set_activity(
        &mut self,
        now: u64,
        user: &str,
        id: &str,
        timestamp: u64,
        said: Activity,
    ) {
        let mut connections = self.connections.iter_mut();
        let found = connections.find(|it| it.user == user && it.id == id);
        if let Some(State::Live {
            newest,
            opened,
            activity,
            ..
        }) = found.map(|it| &mut it.state)
            && (timestamp.min(now) == *newest
                || (activity.is_none() && timestamp.min(now) >= *opened))
        {
            *activity = Some(said);
        }
    }

    /// The user's activity: typing if it is so on any connection, else active if it is so on any.
    pub(crate) fn activity(&self, user: &str) -> Option<Activity> {
        let said: Vec<_> = self
            .connections
            .iter()
            .filter(|it| it.user == user)
            .filter_map(|it| match it.state {
                State::Live { activity, .. } => activity,
                State::Closed { .. } | State::Unknown => None,
            })
            .collect();
        let order = [Activity::Typing, Activity::Active, Activity::Idle];
        order.into_iter().find(|activity| said.contains(activity))
    }

    fn ignore(&mut self, index: usize, timestamp: u64) {
        if let State::Closed { ignored, .. } = &mut self.connections[index].state {
            *ignored = Some(timestamp).max(*ignored);
        }
    }

    /// Whether a message was sent before the close that has overtaken it.
    fn is_late(&self, index: usize, now: u64, timestamp: u64) -> bool {
        let State::Closed {
            timestamp: closed,
            handled_at,
            ..
        } = self.connections[index].state
        else {
            return false;
        };
        now <= handled_at + self.settings.reorder_ms && timestamp < closed
    }

    /// The metadata of the newest live connection.
    pub(crate) fn shown(&self, user: &str) -> Option<Metadata> {
        let live = self.connections.iter().filter(|it| it.user == user);
        let ranked = live.filter_map(|it| match it.state {
            State::Live { rank, metadata, .. } => Some((rank, metadata)),
            State::Closed { .. } | State::Unknown => None,
        });
        ranked.max().map(|(_, metadata)| metadata)
    }

    /// Lets time pass. A host that always hears has heard all of it.
    fn advance_to(&mut self, now: u64) {
        self.now = now;
        if self.settings.receive_step_ms.is_none() {
            self.receive_clock_ms += (now - self.received_up_to.unwrap()) as i64;
            self.received_up_to = Some(now);
            self.told_at = now;
        }
    }

    /// The start of a lease that is renewed now, in heard time.
    fn lease_from(&mut self, now: u64) -> i64 {
        self.advance_to(now);
        let step = self.settings.receive_step_ms.unwrap_or(0);
        let ahead = self
            .received_up_to
            .map_or(step, |at| now.saturating_sub(at));
        self.receive_clock_ms + ahead.min(step) as i64
    }

    /// Everything up to `at` has been heard.
    pub(crate) fn heard(&mut self, now: u64, at: u64) {
        self.listen(now, at, self.settings.receive_step_ms);
    }

    /// Some inputs up to `at` were lost.
    pub(crate) fn missed(&mut self, now: u64, at: u64) {
        self.listen(now, at, self.settings.receive_step_ms.and(Some(0)));
    }

    fn listen(&mut self, now: u64, at: u64, gain_max: Option<u64>) {
        self.advance_to(now);
        let (Some(step), Some(gain_max)) = (self.settings.receive_step_ms, gain_max) else {
            return;
        };
        let passed = self
            .received_up_to
            .map_or(0, |before| at.saturating_sub(before));
        let room_ms = (self.room_ms + (now - self.told_at)).min(step);
        let gained = passed.min(room_ms).min(gain_max);
        self.room_ms = room_ms - gained;
        self.receive_clock_ms += gained as i64;
        let up_to = self.received_up_to.map_or(at, |before| before.max(at));
        self.received_up_to = Some(up_to);
        self.told_at = now;
        let timeout = self.settings.timeout_ms;
        for connection in &mut self.connections {
            if let State::Live {
                heard_at,
                lease_from,
                ..
            } = &mut connection.state
                && up_to >= *heard_at + 2 * timeout
            {
                let left = *lease_from + timeout as i64 - self.receive_clock_ms;
                *lease_from += left.min((timeout / 3) as i64) - left;
            }
        }
    }

    pub(crate) fn reconfigure(&mut self, now: u64, settings: TrackerSettings) {
        if self.settings.receive_step_ms.is_some() != settings.receive_step_ms.is_some() {
            self.received_up_to = settings.receive_step_ms.is_none().then_some(now);
        }
        self.settings = settings;
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let heard = self.heard_tasks().filter_map(|(due, _)| {
            let left = due - self.receive_clock_ms;
            match self.settings.receive_step_ms {
                None => Some(self.now.saturating_add_signed(left.max(0))),
                Some(_) => (left <= 0).then_some(self.told_at),
            }
        });
        heard.chain(self.other_tasks().map(|(at, _)| at)).min()
    }

    /// Does all work that is due.
    pub(crate) fn expire(&mut self, now: u64) -> Vec<Transition<Metadata>> {
        let mut transitions = Vec::new();
        self.advance_to(now);
        while let Some(task) = self.first_due() {
            match task {
                Task::EndGrace(index) => {
                    let (_, reason) = self.users[index].pending.take().unwrap();
                    transitions.push(self.users[index].offline(now, reason, None));
                }
                Task::Lease(index) => {
                    let connection = &mut self.connections[index];
                    let State::Live { newest, .. } = connection.state else {
                        unreachable!()
                    };
                    connection.state = State::Closed {
                        timestamp: newest,
                        newest,
                        handled_at: now,
                        ignored: None,
                    };
                    let user = connection.user.clone();
                    if self.live_connections(&user) == 0 {
                        let user = self.user(&user);
                        transitions.push(user.offline(now, Reason::Timeout, Some(newest)));
                    }
                }
                Task::Forget(index) => {
                    self.connections.remove(index);
                }
            }
            let connections = &self.connections;
            self.users.retain(|user| {
                user.pending.is_some() || connections.iter().any(|it| it.user == user.name)
            });
        }
        transitions
    }

    /// The users with a live connection or a pending grace, by name.
    pub(crate) fn online(&self) -> Vec<(String, usize)> {
        let mut online: Vec<_> = self
            .users
            .iter()
            .map(|user| (user, self.live_connections(&user.name)))
            .filter(|(user, live)| *live > 0 || user.pending.is_some())
            .map(|(user, live)| (user.name.clone(), live))
            .collect();
        online.sort();
        online
    }

    pub(crate) fn remembered(&self) -> usize {
        self.connections
            .iter()
            .filter(|it| matches!(it.state, State::Closed { .. }))
            .count()
    }

    fn live(
        &mut self,
        index: usize,
        now: u64,
        opened: u64,
        timestamp: u64,
        new_metadata: Metadata,
        begun: Effect,
    ) -> InputResult<Metadata> {
        let lease_from = self.lease_from(now);
        let Connection { user, id, state } = &mut self.connections[index];
        let (name, conn) = (user.clone(), id.clone());
        self.ranks += 1;
        let is_connect = begun == Effect::Opened;
        let new_rank = if is_connect { self.ranks } else { -self.ranks };
        let (effect, newest, activity, kept) = match *state {
            State::Live {
                newest,
                activity,
                metadata,
                rank,
                opened: before,
                ..
            } => {
                let says = is_connect && timestamp >= before;
                let kept = match (says, rank > 0) {
                    (false, _) => (metadata, rank),
                    (true, true) => (new_metadata, rank),
                    (true, false) => (new_metadata, new_rank),
                };
                (Effect::Renewed, newest.max(timestamp), activity, kept)
            }
            State::Closed { .. } | State::Unknown => {
                (begun, timestamp, None, (new_metadata, new_rank))
            }
        };
        *state = State::Live {
            heard_at: now,
            lease_from,
            opened,
            newest,
            activity,
            metadata: kept.0,
            rank: kept.1,
        };
        let is_first = effect != Effect::Renewed && self.live_connections(&name) == 1;
        let user = self.user(&name);
        user.last_seen = user.last_seen.max(timestamp);
        let was_offline = is_first && user.pending.take().is_none();
        let online = || Transition::Online {
            user: name.into(),
            at: now,
            conn: conn.into(),
            metadata: new_metadata,
        };
        InputResult {
            effect,
            transition: was_offline.then(online),
        }
    }

    fn entry(&mut self, user: &str, id: &str) -> usize {
        if !self.users.iter().any(|it| it.name == user) {
            self.users.push(User {
                name: user.into(),
                last_seen: 0,
                pending: None,
            });
        }
        self.connections
            .iter()
            .position(|it| it.user == user && it.id == id)
            .unwrap_or_else(|| {
                let state = State::Unknown;
                self.connections.push(Connection {
                    user: user.into(),
                    id: id.into(),
                    state,
                });
                self.connections.len() - 1
            })
    }

    fn user(&mut self, name: &str) -> &mut User {
        self.users.iter_mut().find(|it| it.name == name).unwrap()
    }

    fn live_connections(&self, user: &str) -> usize {
        let live = |it: &&Connection| it.user == user && matches!(it.state, State::Live { .. });
        self.connections.iter().filter(live).count()
    }

    /// The task that has been due for longest. At the same time, tasks are ordered by kind.
    fn first_due(&self) -> Option<Task> {
        let heard = self.heard_tasks();
        let heard = heard.map(|(due, task)| (due - self.receive_clock_ms, task));
        let others = self.other_tasks();
        let others = others.map(|(at, task)| (at as i64 - self.now as i64, task));
        let due = heard.chain(others).filter(|(left, _)| *left <= 0);
        due.min().map(|(_, task)| task)
    }

    /// The tasks that depend on heard time, and when each is due in heard time.
    fn heard_tasks(&self) -> impl Iterator<Item = (i64, Task)> {
        let TrackerSettings {
            timeout_ms,
            grace_ms,
            ..
        } = self.settings;
        let graces = self.users.iter().enumerate();
        let graces = graces.filter_map(move |(index, user)| {
            let (since, _) = user.pending?;
            Some((since + grace_ms as i64, Task::EndGrace(index)))
        });
        let leases = self.connections.iter().enumerate();
        let leases = leases.filter_map(move |(index, it)| match it.state {
            State::Live { lease_from, .. } => {
                Some((lease_from + timeout_ms as i64, Task::Lease(index)))
            }
            State::Closed { .. } => None,
            State::Unknown => unreachable!("handled by the input that made it"),
        });
        graces.chain(leases)
    }

    /// The tasks that depend on the host's clock, and when each is due.
    fn other_tasks(&self) -> impl Iterator<Item = (u64, Task)> {
        let timeout_ms = self.settings.timeout_ms;
        let connections = self.connections.iter().enumerate();
        connections.filter_map(move |(index, it)| match it.state {
            State::Closed { handled_at, .. } => {
                Some((handled_at + 2 * timeout_ms, Task::Forget(index)))
            }
            State::Live { .. } | State::Unknown => None,
        })
    }
}

impl User {
    fn offline(
        &self,
        at: u64,
        reason: Reason,
        last_heartbeat: Option<u64>,
    ) -> Transition<Metadata> {
        let user = self.name.as_str().into();
        Transition::Offline {
            user,
            at,
            last_seen: self.last_seen,
            reason,
            last_heartbeat,
        }
    }
}
