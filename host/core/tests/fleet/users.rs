//! What users do: they connect, send heartbeats, disconnect, fall silent and come back.

use bytes::Bytes;
use presence_core::message::{Kind, Message};

use crate::broker::Random;
use crate::node::{BEGINNING, GRACE_MS};
use crate::oracle::SHOWN_MS_MAX;
use crate::rules::{Shows, user_id};
use crate::statements::{App, REPEAT_MS};
use crate::statuses::Says;
use crate::stream::StreamMode;
use crate::world::CALM_FROM;

/// The number of users with connections, and of all users. The others are only known from
/// applications.
pub(crate) const CONNECTED_USERS: usize = 6;
pub(crate) const USERS: usize = CONNECTED_USERS + 2;
pub(crate) const HEARTBEAT_MS: u64 = 500;
/// After this time without a connection, everyone knows that a user who disconnected has left. For
/// other users, an outage may hide it for long.
const LONG_MS: u64 = 1_500;

/// A connection of a user.
#[derive(Clone, Debug)]
pub(crate) struct Conn {
    pub(crate) id: u64,
    pub(crate) since: u64,
    pub(crate) next_heartbeat: u64,
    pub(crate) closes_at: u64,
}

/// What is known of a user beside what the user does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Last {
    /// When the owner of the user's shard last told a client that the user is online.
    pub(crate) said_at: u64,
    /// Since when the shard has had owners. Nobody received what was sent before.
    pub(crate) owned_from: u64,
    /// When a fault last began or ended.
    pub(crate) fault_at: u64,
}

#[derive(Debug)]
pub(crate) struct User {
    pub(crate) number: usize,
    /// The server to which its gateway is connected.
    pub(crate) server: usize,
    /// Whether its gateway writes the user into the subject, so that the broker picks the shard.
    pub(crate) is_partitioned: bool,
    /// Whether it always sends a disconnect.
    pub(crate) is_polite: bool,
    /// Whether its connects come from the stream, so that they may be late.
    pub(crate) is_stored: bool,
    /// How far its clock is off.
    skew: u64,
    pub(crate) conns: Vec<Conn>,
    next_conn: u64,
    pub(crate) connects_at: u64,
    /// Whether it connects though it is calm.
    comes_back: bool,
    /// Whether it is calm, and whether it has connected since.
    is_calm: bool,
    came_back: bool,
    /// When it last connected, and its first connection since it was away for long, if that is
    /// known.
    came_at: u64,
    first_conn: u64,
    /// Since when it has had no connection.
    pub(crate) left_at: u64,
    /// When its last close of a connection was.
    pub(crate) closed_at: u64,
    /// The application that states whether the user is online, if there is one.
    pub(crate) app: Option<App>,
    /// The user's activities and statuses, if it has any.
    pub(crate) says: Option<Says>,
}

fn conn_id(conn: u64) -> String {
    format!("c{conn}")
}

/// The metadata field of a message. Each connection has its own device. `keys`: text of further
/// keys.
pub(crate) fn metadata(device: &str, keys: &str) -> String {
    format!(r#","metadata":{{"device":"{device}"{keys}}}"#)
}

impl User {
    pub(crate) fn new(number: usize, random: &mut Random) -> Self {
        Self {
            number,
            server: number % 3,
            is_partitioned: random.chance(50),
            is_polite: false,
            is_stored: false,
            skew: random.within(0, 40),
            conns: Vec::new(),
            next_conn: 0,
            comes_back: false,
            is_calm: false,
            came_back: false,
            connects_at: random.within(50, 1_500),
            came_at: 0,
            first_conn: 0,
            left_at: 0,
            closed_at: 0,
            app: None,
            says: None,
        }
    }

    /// The same user with an application. It states now and then that the user is offline, or, if
    /// the user has no connections, online.
    pub(crate) fn stated(self, app: App) -> Self {
        Self {
            connects_at: match app.is_alone {
                true => u64::MAX,
                false => self.connects_at,
            },
            app: Some(app),
            ..self
        }
    }

    /// What the user sends at `t`, and when it acts next. `calm`: it begins and ends nothing any
    /// more.
    pub(crate) fn act(&mut self, t: u64, calm: bool, random: &mut Random) -> (Vec<Message>, u64) {
        let mut sent = Vec::new();
        let acts = self.app.as_mut().map(|app| app.act(t, random));
        let acts = acts.unwrap_or_default();
        if let Some((kind, fields)) = acts.states {
            let reply_to = format!(r#"{fields},"replyTo":"{}""#, self.reply_to());
            sent.push(self.message(t, kind, 0, &reply_to));
        }
        let begins_calm = calm && !std::mem::replace(&mut self.is_calm, calm);
        // Some users say their status once more at the end.
        let is_early = t < CALM_FROM + 2 * HEARTBEAT_MS;
        let says_again = begins_calm && is_early && self.says.is_some() && random.chance(50);
        if acts.connects || (says_again && self.app.is_none()) {
            self.connects_at = t + random.within(100, 600);
            self.comes_back = true;
        }
        if t >= self.connects_at {
            // Now and then, a further device connects.
            self.connects_at = match random.chance(25) {
                true => t + random.within(300, 2_000),
                false => u64::MAX,
            };
            if !calm || std::mem::take(&mut self.comes_back) {
                self.came_back = calm;
                if let Some(app) = &mut self.app {
                    app.is_overtaken(t);
                }
                self.next_conn += 1;
                if self.is_polite && self.conns.is_empty() && t >= self.left_at + LONG_MS {
                    self.first_conn = self.next_conn;
                }
                self.came_at = t;
                let stays_ms = match random.chance(40) {
                    true => random.within(100, 2_000),
                    false => random.within(2_000, 9_000),
                };
                self.conns.push(Conn {
                    id: self.next_conn,
                    since: t,
                    next_heartbeat: t + random.within(1, HEARTBEAT_MS),
                    closes_at: t + stays_ms,
                });
                let conn = self.next_conn;
                let keys = self.keys(t, conn, true, random);
                let metadata = metadata(&conn_id(conn), &keys);
                sent.push(self.message(t, Kind::Connect, conn, &metadata));
            }
        }
        let mut closed = Vec::new();
        for index in 0..self.conns.len() {
            let conn = self.conns[index].clone();
            if t >= conn.closes_at && !calm {
                closed.push(conn.id);
                // Some connections end without a disconnect.
                if random.chance(75) || self.is_polite {
                    sent.push(self.message(t, Kind::Disconnect, conn.id, ""));
                }
            } else if t >= conn.next_heartbeat {
                self.conns[index].next_heartbeat = t + HEARTBEAT_MS;
                let is_bare = self.is_bare();
                let keys = self.keys(t, conn.id, false, random);
                let metadata = match is_bare {
                    true => String::new(),
                    false => metadata(&conn_id(conn.id), &keys),
                };
                sent.push(self.message(t, Kind::Heartbeat, conn.id, &metadata));
            }
        }
        if !closed.is_empty() {
            self.conns.retain(|conn| !closed.contains(&conn.id));
            self.closed_at = t;
            if self.conns.is_empty() {
                self.left_at = t;
                let away_ms = match random.within(0, 3) {
                    0 => random.within(20, GRACE_MS),
                    1 => random.within(50, 900),
                    _ => random.within(900, 6_000),
                };
                self.connects_at = self.connects_at.min(t + away_ms);
            }
        }
        let conns = self.conns.iter();
        let next = conns.map(|conn| match calm {
            true => conn.next_heartbeat,
            false => conn.next_heartbeat.min(conn.closes_at),
        });
        let states_at = self.app.as_ref().map(App::next_at);
        let next = next.chain([self.connects_at]).chain(states_at);
        let next = next.min().unwrap();
        (sent, next.max(t + 1))
    }

    /// Whether the user was certainly connected at `t`, in a way that no owner can have missed: by
    /// a connection that has sent heartbeats, or by its only connection for long, which some owner
    /// has received.
    pub(crate) fn is_surely_connected(&self, t: u64, timeout_ms: u64, last: Last) -> bool {
        if let Some(app) = &self.app {
            if !app.hides_nobody(t) {
                return false;
            }
            // A connection that has ended may still be considered live, and ends a later statement.
            let stands_from = match app.is_alone {
                true => 0,
                false => self.closed_at + SHOWN_MS_MAX + GRACE_MS,
            };
            let shows_since = app.shows_since();
            let heard_from = match app.unheard_ms() {
                0 => last.owned_from,
                unheard_ms => last.owned_from.max(last.fault_at + unheard_ms),
            };
            let shows_since = shows_since.map(|since| since.max(heard_from).max(stands_from));
            if shows_since.is_some_and(|since| t >= since + 2 * REPEAT_MS + 50) {
                return true;
            }
        }
        let heard_from = |conn: &Conn| conn.since.max(last.owned_from);
        let long = |conn: &Conn| t >= heard_from(conn) + 2 * HEARTBEAT_MS + 50;
        let fresh = |conn: &Conn| {
            let is_only = t >= conn.since + 300 && t >= self.closed_at + 2 * timeout_ms;
            is_only && last.said_at >= conn.since
        };
        let is_sure = |conn: &Conn| long(conn) || (!self.is_stored && fresh(conn));
        self.conns.iter().any(is_sure)
    }

    /// The subject for an owner's answer to the application.
    fn reply_to(&self) -> String {
        let question = self.app.as_ref().map_or(0, App::question);
        format!("{} {question}", self.number)
    }

    /// Whether the user is online at `t`.
    pub(crate) fn is_online(&self, t: u64) -> bool {
        let is_connected = !self.conns.is_empty();
        self.app
            .as_ref()
            .map_or(is_connected, |app| app.is_online(t, is_connected))
    }

    /// Since when the user has been offline at `t`, by a repeated statement, or by the end of its
    /// last connection.
    pub(crate) fn offline_since(&self, t: u64) -> Option<u64> {
        let hides_since = self.app.as_ref().and_then(App::hides_since);
        let is_clear = self.app.as_ref().is_none_or(|app| !app.is_unclear());
        let app = self.app.as_ref();
        let shown_until = app.map_or(0, |app| app.may_show_until(self.came_at));
        if t < shown_until {
            return None;
        }
        let has_left = !self.is_online(t) && (is_clear || self.conns.is_empty());
        hides_since.or_else(|| has_left.then_some(self.left_at.max(shown_until)))
    }

    /// Whether viewers are finally shown what its connections and its application have said.
    pub(crate) fn is_shown(&self, shows: &Shows, stream: StreamMode) -> bool {
        let is_heard = stream == StreamMode::OneFault;
        let newest = self.came_back.then_some(self.next_conn);
        let is_stated = match &self.app {
            Some(app) if app.is_showing() => {
                if app.device() != shows.device {
                    return false;
                }
                true
            }
            // The first connection may still be shown, or an earlier statement.
            Some(app) if self.says.is_none() && app.has_shown(&shows.device) => true,
            _ => false,
        };
        let mut conns = self.conns.iter();
        let is_connected = match newest.filter(|_| self.says.is_some()) {
            Some(newest) => conn_id(newest) == shows.device,
            // A connection whose connect was lost has no device.
            None if !is_heard && self.is_bare() && shows.device.is_empty() => true,
            None => conns.any(|conn| conn_id(conn.id) == shows.device),
        };
        let Some(says) = self.says.as_ref().filter(|_| !self.conns.is_empty()) else {
            return (is_stated || is_connected)
                && shows.activity.is_none()
                && shows.status.is_none();
        };
        let last = newest.or_else(|| is_heard.then_some(self.next_conn));
        let last = (self.first_conn, last);
        (is_stated || is_connected) && says.is_shown(shows, &self.conns, last, is_heard)
    }

    /// Whether its connections have no metadata in heartbeats.
    fn is_bare(&self) -> bool {
        self.says.as_ref().is_some_and(|says| !says.repeats)
    }

    /// The further metadata keys of a connection's message.
    fn keys(&mut self, t: u64, conn: u64, is_connect: bool, random: &mut Random) -> String {
        let times = (t, BEGINNING);
        let says = self.says.as_mut();
        says.map_or_else(String::new, |says| {
            says.keys(times, conn, is_connect, random)
        })
    }

    fn message(&self, t: u64, kind: Kind, conn: u64, fields: &str) -> Message {
        let (user, at) = (user_id(self.number), BEGINNING + t - self.skew);
        let conn = conn_id(conn);
        let body = format!(r#"{{"userId":"{user}","connId":"{conn}","timestamp":{at}{fields}}}"#);
        Message::parse(kind, &Bytes::from(body), 1 << 20).unwrap()
    }
}
