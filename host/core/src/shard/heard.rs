//! What a shard has heard of its connections, for standbys that take in no heartbeats.
//!
//! A heartbeat costs a standby nearly all that it costs the shard that decides: it is received, read,
//! and found to change nothing. So the shard that decides keeps what it has heard, in as few bytes as
//! it takes, and standbys take in much of that at once.

use bytes::Bytes;
use bytestring::ByteString;
use serde::{Deserialize, Serialize};

use super::Shard;
use super::env::Common;
use super::messages::connection_metadata;
use crate::message::Payload;
use crate::metadata::LIMITS_MAX;
use crate::tracker::{Effect, HeardElsewhere};

/// What was heard of a connection.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Entry<'a> {
    /// A connection goes on.
    Renewed(#[serde(borrow)] Heartbeat<'a>),
    /// A connection that wasn't live.
    Adopted(#[serde(borrow)] Heartbeat<'a>),
    /// Nothing, for longer than the timeout. It was last heard from with this timestamp.
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

/// What was heard of connections, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    entries: Vec<u8>,
    count: usize,
    is_news: bool,
    has_changes: bool,
}

/// What was heard can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnreadableHeard;

impl Heard {
    /// How often something was heard.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How long it is, in bytes.
    pub fn bytes(&self) -> usize {
        self.entries.len()
    }

    /// Whether viewers may be told of something because of it: not only that connections are alive.
    pub fn is_news(&self) -> bool {
        self.is_news
    }

    /// Whether there are other connections now.
    pub fn has_changes(&self) -> bool {
        self.has_changes
    }

    /// As bytes, for [`Shard::follow_heard`].
    pub fn into_entries(self) -> Vec<u8> {
        self.entries
    }

    fn add(&mut self, entry: &Entry<'_>) {
        // Plain data in memory always has such a form.
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
    /// Whether what is heard of connections is kept from now on, for [`Self::take_heard`].
    pub fn keep_heard(&mut self, keep: bool) {
        self.common.tracker.keep_expired(keep);
        self.common.heard = keep.then(Heard::default);
    }

    /// What has been heard since this was last called.
    pub fn heard(&self) -> Option<&Heard> {
        self.common.heard.as_ref()
    }

    /// Takes it.
    pub fn take_heard(&mut self) -> Heard {
        let heard = self.common.heard.as_mut();
        heard.map(std::mem::take).unwrap_or_default()
    }

    /// How long has been heard by now, in milliseconds: what leases run by.
    pub fn heard_ms(&mut self, now: u64) -> u64 {
        self.common.tracker.pass(now);
        self.common.tracker.heard_ms()
    }

    /// From when on a lease counts that begins now, by the receive clock, in milliseconds.
    pub fn lease_from(&self) -> u64 {
        self.common.tracker.lease_from()
    }

    /// Takes in what the shard that this one follows has heard, and that it has heard for so much
    /// longer. If `gained_ms` is none, this one hears by itself. It was heard at most `late_ms` ago.
    ///
    /// # Errors
    /// If it can't be read. What comes before is taken in.
    pub fn follow_heard(
        &mut self,
        now: u64,
        (gained_ms, late_ms): (Option<u64>, u64),
        entries: Vec<u8>,
    ) -> Result<(), UnreadableHeard> {
        let Self {
            common, presence, ..
        } = self;
        common.clock.pass(now);
        let now = common.now();
        if let Some(gained_ms) = gained_ms {
            common.tracker.heard_for(now, gained_ms);
        }
        let whole = Bytes::from(entries);
        // It is a part of what is whole, and text.
        let part =
            |text: &str| ByteString::try_from(whole.slice_ref(text.as_bytes())).unwrap_or_default();
        let mut rest = &whole[..];
        while !rest.is_empty() {
            let (entry, after) = postcard::take_from_bytes(rest).map_err(|_| UnreadableHeard)?;
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
                    // The one who heard it has checked it.
                    let read = || metadata.and_then(|text| LIMITS_MAX.read(part(text)).ok());
                    let broadcast = &common.settings.broadcast;
                    let handled = common.tracker.heartbeat_elsewhere(
                        now,
                        (user, conn),
                        timestamp,
                        HeardElsewhere { adopted, late_ms },
                        || connection_metadata(broadcast, conn, read().as_ref()),
                    );
                    let is_status = metadata.is_some() && common.settings.status.is_some();
                    if adopted && handled.effect == Effect::Renewed {
                        // It was known here before, but perhaps not that it ended a statement.
                        presence.end_stated_online(user, common);
                    }
                    if handled.effect == Effect::Renewed && !is_status {
                        continue;
                    }
                    let payload = Payload::Heartbeat {
                        conn: part(conn),
                        metadata: read(),
                    };
                    presence.tracked(user, (timestamp, 0), &payload, handled, common);
                }
                Entry::Expired {
                    user,
                    conn,
                    timestamp,
                } => {
                    let ended = common.tracker.end_silent(now, user, conn, timestamp);
                    if let Some(transition) = ended {
                        presence.missed(transition, common);
                    }
                }
            }
        }
        presence.tidy_followed(common);
        Ok(())
    }
}

impl Common {
    /// Notes which connections have timed out, if that is kept.
    pub(super) fn note_expired(&mut self) {
        let Some(heard) = &mut self.heard else {
            return;
        };
        for (user, conn, timestamp) in self.tracker.take_expired() {
            heard.expired(&user, &conn, timestamp);
        }
    }
}
