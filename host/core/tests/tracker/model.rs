//! The tracker's rules in their plainest form: lists that are searched, and
//! deadlines that are worked out anew whenever somebody asks. What the tracker
//! does to be fast must make no difference to it.

use presence_core::tracker::{Activity, Effect, Handled, Reason, Settings, Transition};

type Metadata = u64;

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) settings: Settings,
    pub(crate) paused: bool,
    hearing_since: u64,
    /// In the order in which they became known.
    users: Vec<User>,
    connections: Vec<Connection>,
}

#[derive(Debug)]
struct User {
    name: String,
    last_seen: u64,
    pending: Option<(u64, Reason)>,
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
        opened: u64,
        newest: u64,
        activity: Option<Activity>,
    },
    Closed {
        timestamp: u64,
        handled_at: u64,
        timed_out: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    EndGrace(usize),
    Lease(usize),
    Forget(usize),
}

impl Model {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            paused: false,
            hearing_since: 0,
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
    ) -> Handled<Metadata> {
        let timestamp = timestamp.min(now);
        let index = self.entry(user, id);
        let opened = match self.connections[index].state {
            State::Live { opened, .. } => opened.max(timestamp),
            State::Closed {
                timestamp: closed, ..
            } if timestamp <= closed => {
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
    ) -> Handled<Metadata> {
        let timestamp = timestamp.min(now);
        let index = self.entry(user, id);
        let opened = match self.connections[index].state {
            State::Live { opened, .. } => opened,
            State::Closed {
                timestamp: closed,
                timed_out: true,
                ..
            } if timestamp > closed => closed + 1,
            State::Closed { .. } => return Effect::Stale.into(),
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
    ) -> Handled<Metadata> {
        let timestamp = timestamp.min(now);
        let index = self.entry(user, id);
        let effect = match self.connections[index].state {
            State::Live { opened, .. } if timestamp < opened => return Effect::Stale.into(),
            State::Closed {
                timestamp: closed, ..
            } if timestamp <= closed => {
                return Effect::Stale.into();
            }
            State::Live { .. } => Effect::Closed,
            State::Closed { .. } | State::Unknown => Effect::Remembered,
        };
        let timed_out = reason == Reason::Timeout;
        self.connections[index].state = State::Closed {
            timestamp,
            handled_at: now,
            timed_out,
        };

        let is_last = effect == Effect::Closed && self.live_connections(user) == 0;
        let grace_ms = self.settings.grace_ms;
        let user = self.user(user);
        if let Some(pending) = user.pending.as_mut().filter(|_| timestamp > user.last_seen) {
            pending.1 = reason;
        }
        user.last_seen = user.last_seen.max(timestamp);
        if is_last && grace_ms > 0 {
            user.pending = Some((now, reason));
        }
        let offline = is_last && grace_ms == 0;
        Handled {
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
            newest, activity, ..
        }) = found.map(|it| &mut it.state)
            && timestamp.min(now) == *newest
        {
            *activity = Some(said);
        }
    }

    /// What the user is doing: typing on any connection, or else active on any.
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

    pub(crate) fn resume(&mut self, now: u64) {
        self.paused = false;
        self.hearing_since = now;
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.next_task().map(|(at, _)| at)
    }

    /// Does everything that is due.
    pub(crate) fn expire(&mut self, now: u64) -> Vec<Transition<Metadata>> {
        let mut transitions = Vec::new();
        while let Some((_, task)) = self.next_task().filter(|(at, _)| *at <= now) {
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
                        timestamp: now,
                        handled_at: now,
                        timed_out: true,
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
        metadata: Metadata,
        begun: Effect,
    ) -> Handled<Metadata> {
        let Connection { user, id, state } = &mut self.connections[index];
        let (name, conn) = (user.clone(), id.clone());
        let (effect, newest, activity) = match *state {
            State::Live {
                newest, activity, ..
            } => (Effect::Renewed, newest.max(timestamp), activity),
            State::Closed { .. } | State::Unknown => (begun, timestamp, None),
        };
        *state = State::Live {
            heard_at: now,
            opened,
            newest,
            activity,
        };
        let is_first = effect != Effect::Renewed && self.live_connections(&name) == 1;
        let user = self.user(&name);
        user.last_seen = user.last_seen.max(timestamp);
        let was_offline = is_first && user.pending.take().is_none();
        let online = || Transition::Online {
            user: name.into(),
            at: now,
            conn: conn.into(),
            metadata,
        };
        Handled {
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

    fn next_task(&self) -> Option<(u64, Task)> {
        let Settings {
            timeout_ms,
            grace_ms,
        } = self.settings;
        let graces = self.users.iter().enumerate().filter_map(|(index, user)| {
            user.pending
                .map(|(since, _)| (since + grace_ms, Task::EndGrace(index)))
        });
        let rest = self
            .connections
            .iter()
            .enumerate()
            .filter_map(|(index, it)| match it.state {
                State::Live { .. } if self.paused => None,
                State::Live { heard_at, .. } => Some((
                    heard_at.max(self.hearing_since) + timeout_ms,
                    Task::Lease(index),
                )),
                State::Closed { handled_at, .. } => {
                    Some((handled_at + 2 * timeout_ms, Task::Forget(index)))
                }
                State::Unknown => unreachable!("handled by the input that made it"),
            });
        graces.chain(rest).min()
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
