//! What users do: they connect, send heartbeats, disconnect, fall silent and come back.

use bytes::Bytes;
use bytestring::ByteString;
use presence_core::event::Reason;
use presence_core::message::{Message, Payload, StatedReason};

use crate::broker::Random;
use crate::node::BEGINNING;
use crate::rules::user_id;

pub(crate) const USERS: usize = 6;
pub(crate) const HEARTBEAT_MS: u64 = 500;

/// A connection of a user.
#[derive(Clone, Debug)]
pub(crate) struct Conn {
    pub(crate) id: u64,
    pub(crate) since: u64,
    pub(crate) next_heartbeat: u64,
    pub(crate) closes_at: u64,
}

/// What is known of a user besides what the user does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Last {
    /// When the owner of the user's shard last said to a client that the user is online.
    pub(crate) said_at: u64,
    /// Since when the shard has had owners: nobody can have heard what was sent before.
    pub(crate) owned_from: u64,
}

#[derive(Debug)]
pub(crate) struct User {
    pub(crate) number: usize,
    /// Where its gateway is connected.
    pub(crate) server: usize,
    /// Whether its gateway writes the user into the subject, so that the broker partitions.
    pub(crate) is_partitioned: bool,
    /// Whether it never falls silent.
    pub(crate) is_polite: bool,
    /// Whether its connects come from a stream: they may be late.
    pub(crate) is_stored: bool,
    /// How far its clock is off.
    skew: u64,
    pub(crate) conns: Vec<Conn>,
    next_conn: u64,
    pub(crate) connects_at: u64,
    /// Since when it has had no connection.
    pub(crate) left_at: u64,
    /// When a connection of it was closed last.
    pub(crate) closed_at: u64,
}

fn conn_id(conn: u64) -> String {
    format!("c{conn}")
}

/// Each connection is of a device of its own.
fn metadata(device: &str) -> ByteString {
    format!(r#"{{"device":"{device}"}}"#).into()
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
            connects_at: random.within(50, 1_500),
            left_at: 0,
            closed_at: 0,
        }
    }

    /// What it sends at `t`, and when it acts again. `calm`: it neither begins nor ends anything any more.
    pub(crate) fn act(&mut self, t: u64, calm: bool, random: &mut Random) -> (Vec<Message>, u64) {
        let mut sent = Vec::new();
        if t >= self.connects_at {
            // Now and then a further device.
            self.connects_at = match random.chance(25) {
                true => t + random.within(300, 2_000),
                false => u64::MAX,
            };
            if !calm {
                self.next_conn += 1;
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
                sent.push(self.message(
                    t,
                    |id| Payload::Connect {
                        metadata: Some(metadata(&id)),
                        conn: id,
                    },
                    conn,
                ));
            }
        }
        let mut closed = Vec::new();
        for index in 0..self.conns.len() {
            let conn = self.conns[index].clone();
            if t >= conn.closes_at && !calm {
                closed.push(conn.id);
                // Some fall silent.
                if random.chance(75) || self.is_polite {
                    sent.push(self.message(
                        t,
                        |id| Payload::Disconnect {
                            conn: id,
                            reason: StatedReason {
                                reason: Reason::Disconnect,
                                known: true,
                            },
                        },
                        conn.id,
                    ));
                }
            } else if t >= conn.next_heartbeat {
                self.conns[index].next_heartbeat = t + HEARTBEAT_MS;
                sent.push(self.message(
                    t,
                    |id| Payload::Heartbeat {
                        metadata: Some(metadata(&id)),
                        conn: id,
                    },
                    conn.id,
                ));
            }
        }
        if !closed.is_empty() {
            self.conns.retain(|conn| !closed.contains(&conn.id));
            self.closed_at = t;
            if self.conns.is_empty() {
                self.left_at = t;
                let away_ms = match random.chance(50) {
                    true => random.within(50, 900),
                    false => random.within(900, 6_000),
                };
                self.connects_at = self.connects_at.min(t + away_ms);
            }
        }
        let conns = self.conns.iter();
        let next = conns.map(|conn| match calm {
            true => conn.next_heartbeat,
            false => conn.next_heartbeat.min(conn.closes_at),
        });
        let next = next.chain([self.connects_at]).min().unwrap();
        (sent, next.max(t + 1))
    }

    /// Whether it has been connected at `t` by what nobody can have missed: a connection that has
    /// sent heartbeats, or its only one for long, of which somebody has heard.
    pub(crate) fn is_surely_connected(&self, t: u64, timeout_ms: u64, last: Last) -> bool {
        let heard_from = |conn: &Conn| conn.since.max(last.owned_from);
        let long = |conn: &Conn| t >= heard_from(conn) + 2 * HEARTBEAT_MS + 50;
        let fresh = |conn: &Conn| {
            let is_only = t >= conn.since + 300 && t >= self.closed_at + 2 * timeout_ms;
            is_only && last.said_at >= conn.since
        };
        let is_sure = |conn: &Conn| long(conn) || (!self.is_stored && fresh(conn));
        self.conns.iter().any(is_sure)
    }

    /// Whether one of its connections is of a device.
    pub(crate) fn has(&self, device: &str) -> bool {
        self.conns.iter().any(|conn| conn_id(conn.id) == device)
    }

    fn message(&self, t: u64, payload: impl Fn(ByteString) -> Payload, conn: u64) -> Message {
        Message {
            user: user_id(self.number).into(),
            timestamp: BEGINNING + t - self.skew,
            payload: payload(conn_id(conn).into()),
            raw: Bytes::new(),
            stored: None,
        }
    }
}
