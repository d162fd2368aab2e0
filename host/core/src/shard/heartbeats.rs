//! What a shard has heard from its connections, for standbys that take in no heartbeats.
//!
//! A heartbeat costs a standby nearly all that it costs the owner: it is received, read, and found
//! to change nothing. So the owner keeps what it has heard, in as few bytes as possible, and
//! standbys take in many heartbeats at once.

use serde::{Deserialize, Serialize};

use super::Shard;
use super::env::Common;
use super::messages::connection_metadata;
use crate::message::Payload;
use crate::metadata::LIMITS_MAX;
use crate::tracker::{Effect, RemoteHeartbeat};

/// What was heard of one connection.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Entry<'a> {
    /// A heartbeat of a connection that was live.
    Renewed(#[serde(borrow)] Heartbeat<'a>),
    /// A heartbeat that made a connection live.
    Adopted(#[serde(borrow)] Heartbeat<'a>),
    /// A timeout of a connection. `timestamp`: the newest in any of its messages.
    Expired {
        user: &'a str,
        conn: &'a str,
        timestamp: u64,
    },
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Heartbeat<'a> {
    user: &'a str,
    conn: &'a str,
    timestamp: u64,
    metadata: Option<&'a str>,
}

/// What was heard of connections, in this order, encoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeartbeatBatch {
    entries: Vec<u8>,
    count: usize,
    is_news: bool,
    has_changes: bool,
}

/// Entries that can't be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnreadableHeartbeats;

impl HeartbeatBatch {
    /// How many entries there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How long the entries are, in bytes.
    pub fn bytes(&self) -> usize {
        self.entries.len()
    }

    /// Whether viewers may have to be told of something in it: more than that connections are
    /// alive.
    pub fn is_news(&self) -> bool {
        self.is_news
    }

    /// Whether a connection has become live, or has timed out.
    pub fn has_changes(&self) -> bool {
        self.has_changes
    }

    /// The encoded entries, for [`Shard::apply_heartbeats`].
    pub fn into_entries(self) -> Vec<u8> {
        self.entries
    }

    fn add(&mut self, entry: &Entry<'_>) {
        // Plain data in memory can always be encoded.
        if let Ok(entries) = postcard::to_extend(entry, std::mem::take(&mut self.entries)) {
            self.entries = entries;
            self.count += 1;
        }
    }

    pub(super) fn heartbeat(
        &mut self,
        (user, conn): (&str, &str),
        timestamp: u64,
        metadata: Option<&str>,
        (effect, is_status): (Effect, bool),
    ) {
        let heartbeat = Heartbeat {
            user,
            conn,
            timestamp,
            metadata,
        };
        if effect == Effect::Renewed {
            self.is_news |= is_status;
            self.add(&Entry::Renewed(heartbeat));
        } else {
            (self.is_news, self.has_changes) = (true, true);
            self.add(&Entry::Adopted(heartbeat));
        }
    }

    pub(crate) fn expired(&mut self, user: &str, conn: &str, timestamp: u64) {
        (self.is_news, self.has_changes) = (true, true);
        self.add(&Entry::Expired {
            user,
            conn,
            timestamp,
        });
    }
}

impl Shard {
    /// Sets whether what is heard of connections is kept from now on, for
    /// [`Self::take_heartbeats`].
    pub fn keep_heartbeats(&mut self, keep: bool) {
        self.common.tracker.keep_expired(keep);
        self.common.heartbeats = keep.then(HeartbeatBatch::default);
    }

    /// What has been heard since it was last taken. `None`: it isn't kept.
    pub fn heartbeats(&self) -> Option<&HeartbeatBatch> {
        self.common.heartbeats.as_ref()
    }

    /// Takes what has been heard since the last call.
    pub fn take_heartbeats(&mut self) -> HeartbeatBatch {
        let heard = self.common.heartbeats.as_mut();
        heard.map(std::mem::take).unwrap_or_default()
    }

    /// The receive clock's time at `now`, in milliseconds. Leases run by it.
    pub fn receive_clock_ms(&mut self, now: u64) -> u64 {
        self.common.tracker.advance_to(now);
        self.common.tracker.receive_clock_ms()
    }

    /// The moment of the receive clock from which a lease counts that begins now, in milliseconds.
    pub fn lease_from(&self) -> u64 {
        self.common.tracker.lease_from()
    }

    /// Takes in what the owner has heard. `gained_ms`: by how much the owner's receive clock has
    /// advanced; `None` if this shard takes in heartbeats itself. `late_ms`: how long ago the owner
    /// heard it, at most.
    ///
    /// # Errors
    /// The entries can't be decoded. Those before the first bad one are taken in.
    pub fn apply_heartbeats(
        &mut self,
        now: u64,
        (gained_ms, late_ms): (Option<u64>, u64),
        entries: &[u8],
    ) -> Result<(), UnreadableHeartbeats> {
        let Self {
            common, presence, ..
        } = self;
        common.clock.advance_to(now);
        let now = common.now();
        if let Some(gained_ms) = gained_ms {
            common.tracker.advance_remote(now, gained_ms);
        }
        let mut rest = entries;
        while !rest.is_empty() {
            let (entry, after) =
                postcard::take_from_bytes(rest).map_err(|_| UnreadableHeartbeats)?;
            rest = after;
            let adopted = matches!(entry, Entry::Adopted(_));
            match entry {
                Entry::Renewed(heartbeat) | Entry::Adopted(heartbeat) => {
                    let Heartbeat {
                        user,
                        conn,
                        timestamp,
                        metadata,
                    } = heartbeat;
                    // The owner has checked it.
                    let read = || metadata.and_then(|text| LIMITS_MAX.read(text).ok());
                    let broadcast = &common.settings.broadcast;
                    let handled = common.tracker.heartbeat_remote(
                        now,
                        (user, conn),
                        timestamp,
                        RemoteHeartbeat { adopted, late_ms },
                        || connection_metadata(broadcast, conn, read()),
                    );
                    let is_status = metadata.is_some() && common.settings.status.is_some();
                    if adopted && handled.effect == Effect::Renewed {
                        // The connection was known here before. But perhaps it didn't end a
                        // statement yet.
                        presence.end_stated_online(user, common);
                    }
                    if handled.effect == Effect::Renewed && !is_status {
                        continue;
                    }
                    let metadata = read();
                    let payload = Payload::Heartbeat { conn, metadata };
                    presence.apply_tracked(user, (timestamp, 0), payload, handled, common);
                }
                Entry::Expired {
                    user,
                    conn,
                    timestamp,
                } => {
                    let ended = common.tracker.expire_remote(now, user, conn, timestamp);
                    if let Some(transition) = ended {
                        presence.note_missed(transition, common);
                    }
                }
            }
        }
        presence.tidy_followed(common);
        Ok(())
    }
}

impl Common {
    /// Keeps the connections that have timed out, if what is heard is kept.
    pub(super) fn note_expired(&mut self) {
        let Some(heard) = &mut self.heartbeats else {
            return;
        };
        for (user, conn, timestamp) in self.tracker.take_expired() {
            heard.expired(&user, &conn, timestamp);
        }
    }
}
