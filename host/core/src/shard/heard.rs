//! A message that has arrived: what the tracker makes of it, or what it states.

use bytestring::ByteString;

use super::{Ignored, Output, Shard, count};
use crate::event::Change;
use crate::json;
use crate::message::{Kind, Message, Says};
use crate::metadata::Metadata;
use crate::rules::Rules;
use crate::tracker::{Effect, Transition};

impl Shard {
    /// Says whether it was ignored, and why.
    pub(super) fn message(
        &mut self,
        message: Message,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) -> Option<Ignored> {
        let Message {
            user,
            timestamp,
            says,
        } = message;
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
                return None;
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
                return None;
            }
        };
        if handled.effect == Effect::Stale {
            self.counters.stale += 1;
            return ignored(user, timestamp, says);
        }
        if let Says::Connect { conn, metadata } | Says::Heartbeat { conn, metadata } = &says {
            self.take_status(&user, conn, timestamp, metadata.as_deref());
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
        None
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
