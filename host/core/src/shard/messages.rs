//! A message that has arrived: what the tracker makes of it, or what it states.

use bytestring::ByteString;

use super::{Ignored, Output, Shard, count};
use crate::event::Change;
use crate::json;
use crate::message::{Cause, Kind, Message, Rejection, Says};
use crate::metadata::Metadata;
use crate::rules::Rules;
use crate::tracker::{Effect, Quota, Transition};

/// What became of a message.
pub(super) enum Outcome {
    Taken,
    Ignored(Ignored),
    /// All of it was refused, or a part that is named.
    Refused(Rejection),
}

impl Shard {
    /// Says whether it was ignored or refused, and why.
    pub(super) fn message(
        &mut self,
        message: Message,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) -> Outcome {
        let Message {
            user,
            timestamp,
            says,
            payload: _,
        } = message;
        if let Says::Online { .. } | Says::Offline { .. } = &says
            && let Some(rejection) = self.refuse_statement(&user)
        {
            return Outcome::Refused(rejection);
        }
        let broadcast = &self.settings.broadcast;
        let handled = match &says {
            Says::Connect { conn, metadata } => {
                count(&mut self.counters.taken, Kind::Connect as usize);
                let keep = || connection_metadata(broadcast, conn, metadata.as_deref());
                self.tracker.connect(self.now, &user, conn, timestamp, keep)
            }
            Says::Heartbeat { conn, metadata } => {
                count(&mut self.counters.taken, Kind::Heartbeat as usize);
                let keep = || connection_metadata(broadcast, conn, metadata.as_deref());
                self.tracker
                    .heartbeat(self.now, &user, conn, timestamp, keep)
            }
            Says::Disconnect { conn, reason } => {
                count(&mut self.counters.taken, Kind::Disconnect as usize);
                let reason = self.reason(*reason);
                self.tracker
                    .disconnect(self.now, &user, conn, timestamp, reason)
            }
            Says::Online { metadata } => {
                count(&mut self.counters.taken, Kind::Online as usize);
                let metadata = metadata
                    .as_deref()
                    .map(|text| Metadata::parse(text, |_| true));
                let event = self.event(
                    &user,
                    timestamp.min(self.clock.stamp()),
                    Change::Online,
                    metadata.unwrap_or_default(),
                );
                self.state(event, rules, out);
                return Outcome::Taken;
            }
            Says::Offline {
                last_seen,
                reason,
                metadata,
            } => {
                count(&mut self.counters.taken, Kind::Offline as usize);
                let reason = self.reason(*reason);
                let metadata = metadata
                    .as_deref()
                    .map(|text| Metadata::parse(text, |_| true));
                let timestamp = timestamp.min(self.clock.stamp());
                let change = Change::Offline {
                    last_seen: timestamp.min(*last_seen),
                    reason,
                };
                let event = self.event(&user, timestamp, change, metadata.unwrap_or_default());
                self.state(event, rules, out);
                return Outcome::Taken;
            }
        };
        match handled.effect {
            Effect::Stale => {
                self.counters.stale += 1;
                let ignored = ignored(user, timestamp, says);
                return ignored.map_or(Outcome::Taken, Outcome::Ignored);
            }
            Effect::Refused(quota) => return Outcome::Refused(self.exceeded(quota, &user)),
            _ => {}
        }
        let mut refused = None;
        if let Says::Connect { conn, metadata } | Says::Heartbeat { conn, metadata } = &says {
            refused = self.take_status(&user, conn, timestamp, metadata.as_deref());
        }
        let lifted = matches!(says, Says::Connect { .. }) && self.lift_offline(&user);
        if let Some(transition) = handled.transition {
            let came = matches!(transition, Transition::Online { .. });
            self.transition(transition, rules, out);
            if came {
                self.note_lag(&user, timestamp);
            }
        } else if lifted {
            self.reappear(&user, rules, out);
        }
        self.update(rules, out);
        refused.map_or(Outcome::Taken, Outcome::Refused)
    }

    fn exceeded(&self, quota: Quota, user: &str) -> Rejection {
        let tracker = &self.settings.tracker;
        let of_user = tracker.connections_per_user_max;
        let error = match quota {
            Quota::Connections => format!(
                "the user `{user}` has {of_user} live connections, as many as one may have \
                 ([tracker] connections_per_user_max): this one is not taken"
            ),
            Quota::Closes => format!(
                "nothing is known of this connection of the user `{user}`, and there is no room to \
                 remember its close: {of_user} are remembered of the user ([tracker] \
                 connections_per_user_max), or too many of all ([tracker] closes_max)"
            ),
        };
        Rejection::new(Cause::QuotaExceeded, error)
    }

    /// Refuses what an application states of a further user, where
    /// too many statements hold.
    fn refuse_statement(&self, user: &str) -> Option<Rejection> {
        if self.statements.len() < self.settings.statements_max {
            return None;
        }
        let id = self.names.find(user);
        if id.is_some_and(|id| self.statements.get(id).is_some()) {
            return None;
        }
        let error = format!(
            "as many statements of applications hold as there may be ([tracker] statements_max): \
             none is taken of a further user, `{user}`"
        );
        Some(Rejection::new(Cause::QuotaExceeded, error))
    }

    /// Notes how long the message was on its way with which a user came online.
    fn note_lag(&mut self, user: &str, timestamp: u64) {
        if let Some(user) = self.names.find(user)
            && let Some(entry) = self.ledger.get_mut(user)
        {
            entry.lag_ms = self.clock.wall().saturating_sub(timestamp);
        }
    }
}

/// A connection's metadata: what is broadcast of it first, in the configured
/// order, then what is there for the components alone.
fn connection_metadata(broadcast: &[String], conn: &str, text: Option<&str>) -> Metadata {
    let given = text.map_or_else(Metadata::default, |text| Metadata::parse(text, |_| false));
    let conn = json::quoted(conn);
    let mut metadata = Metadata::default().edit();
    for key in broadcast {
        let value = if key == "connId" {
            Some(&*conn)
        } else {
            given.get(key)
        };
        if let Some(value) = value {
            metadata.set(key, value, true);
        }
    }
    for entry in given
        .entries()
        .filter(|entry| !broadcast.iter().any(|key| key == entry.key))
    {
        metadata.set(entry.key, entry.value, false);
    }
    metadata.build()
}

/// A message of a connection that was ignored.
fn ignored(user: ByteString, timestamp: u64, says: Says) -> Option<Ignored> {
    let (kind, conn, why) = match says {
        Says::Connect { conn, .. } => (
            Kind::Connect,
            conn,
            "the connection has just been closed, and this was sent before that, by its timestamp",
        ),
        Says::Heartbeat { conn, .. } => (
            Kind::Heartbeat,
            conn,
            "the connection is closed, and the timestamp is not newer than the last one known of it",
        ),
        Says::Disconnect { conn, .. } => (
            Kind::Disconnect,
            conn,
            "the timestamp is older than that of the connection's newest connect or disconnect",
        ),
        Says::Online { .. } | Says::Offline { .. } => return None,
    };
    Some(Ignored {
        kind,
        user,
        conn,
        timestamp,
        why,
    })
}
