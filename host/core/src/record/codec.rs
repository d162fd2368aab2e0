//! The encoding of records, as keys and values for a store that doesn't interpret them.
//!
//! Users are stored by their ids, since numbers aren't valid in another process. Additions to the
//! format come last among the variants and fields of a type. Any other change requires a new
//! [`FORMAT`](super::FORMAT).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Record, Stored};
use crate::departed::{Departure, KnownMetadata};
use crate::event::{Change, Event, Reason};
use crate::ledger::LedgerEntry;
use crate::metadata::Metadata;
use crate::names::{Names, NamesGuard};
use crate::recipients::{Recipients, ShownDigest};
use crate::status::{OwnStatus, Status};
use crate::step::Step;
use crate::tracker::{self, Activity, Connected, SilentStarts, UserState};

/// The variants are in the order in which records are restored.
#[derive(Serialize, Deserialize)]
enum Key<'a> {
    Connection(&'a str, &'a str),
    NewestTimestamp(&'a str, &'a str),
    User(&'a str),
    Ledger(&'a str),
    Status(&'a str),
    Waiting(&'a str),
    Stated(&'a str),
    Departed(&'a str),
}

/// The last two variants have the sequence number of the connection's last message from a stream.
#[derive(Serialize, Deserialize)]
enum Connection<'a> {
    Live(#[serde(borrow)] Live<'a>),
    Closed(Closed),
    ClosedByStream(Closed, u32),
    LiveByStream(#[serde(borrow)] Live<'a>, u32),
}

#[derive(Serialize, Deserialize)]
struct Live<'a> {
    opened: u64,
    newest: u64,
    #[serde(borrow)]
    metadata: Entries<'a>,
    order: i64,
    activity: Option<Activity>,
    silence: Option<SilentStarts>,
}

#[derive(Serialize, Deserialize)]
struct Closed {
    timestamp: u64,
    newest: u64,
    kept_since: u64,
}

#[derive(Serialize, Deserialize)]
struct User {
    last_seen: u64,
    pending: Option<(u64, Reason)>,
}

#[derive(Serialize, Deserialize)]
struct Online<'a> {
    timestamp: u64,
    #[serde(borrow)]
    metadata: Entries<'a>,
    told: Parts<'a>,
    connect_delay_ms: u64,
}

/// Follows an [`Online`] that an application has stated.
const STATED: [u8; 1] = [1];

#[derive(Serialize, Deserialize)]
struct Left<'a> {
    timestamp: u64,
    last_seen: u64,
    reason: Reason,
    #[serde(borrow)]
    metadata: Entries<'a>,
    /// What was known while the user was online: all of it, or only what is under `keys`.
    online: Entries<'a>,
    keys: Option<Vec<&'a str>>,
    told: Parts<'a>,
}

/// For each part of the viewers who were shown the same: the digest of that, and the viewers.
type Parts<'a> = Vec<([u8; 8], Vec<&'a str>)>;

/// The user's timestamp, and the status.
type SavedStatus<'a> = (u64, StatusText<'a>);

/// A JSON string, and when it expires. `None`: the user has cleared the status.
type StatusText<'a> = Option<(&'a str, Option<u64>)>;

#[derive(Serialize, Deserialize)]
struct Waiting<'a> {
    timestamp: u64,
    /// For a user who went offline: when they were last seen, and why they went.
    offline: Option<(u64, Reason)>,
    #[serde(borrow)]
    metadata: Entries<'a>,
    next: Next<'a>,
}

#[derive(Serialize, Deserialize)]
enum Next<'a> {
    Announce(bool),
    #[serde(borrow)]
    Notify(Parts<'a>),
    Reshow,
}

/// Keys, values as JSON text, and whether they may be broadcast.
type Entries<'a> = Vec<(&'a str, &'a str, bool)>;

impl<'a> Connection<'a> {
    fn of(state: &'a Connected<Metadata>) -> Self {
        match state {
            Connected::Live {
                opened,
                newest,
                metadata,
                activity,
                order,
                silence,
                stream_seq,
            } => {
                let live = Live {
                    opened: *opened,
                    newest: *newest,
                    metadata: entries(metadata),
                    order: *order,
                    activity: *activity,
                    silence: *silence,
                };
                match *stream_seq {
                    0 => Self::Live(live),
                    stream_seq => Self::LiveByStream(live, stream_seq),
                }
            }
            Connected::Closed {
                timestamp,
                newest,
                kept_since,
                stream_seq,
            } => {
                let closed = Closed {
                    timestamp: *timestamp,
                    newest: *newest,
                    kept_since: *kept_since,
                };
                match *stream_seq {
                    0 => Self::Closed(closed),
                    stream_seq => Self::ClosedByStream(closed, stream_seq),
                }
            }
        }
    }

    fn connected(self) -> Connected<Metadata> {
        let live = |live: Live<'_>, stream_seq| Connected::Live {
            opened: live.opened,
            newest: live.newest,
            metadata: metadata_of(live.metadata),
            activity: live.activity,
            order: live.order,
            silence: live.silence,
            stream_seq,
        };
        let closed = |closed: Closed, stream_seq| Connected::Closed {
            timestamp: closed.timestamp,
            newest: closed.newest,
            kept_since: closed.kept_since,
            stream_seq,
        };
        match self {
            Self::Live(it) => live(it, 0),
            Self::LiveByStream(it, stream_seq) => live(it, stream_seq),
            Self::Closed(it) => closed(it, 0),
            Self::ClosedByStream(it, stream_seq) => closed(it, stream_seq),
        }
    }
}

impl Record {
    /// Encodes the record for the store.
    pub fn encode(&self, names: &Names) -> Stored {
        match self {
            Self::Tracker(tracker::TrackerRecord::Connection { user, conn, state }) => {
                let key = Key::Connection(user, conn);
                let value = state.as_ref().map(Connection::of);
                stored(&key, value.as_ref())
            }
            Self::Tracker(tracker::TrackerRecord::NewestTimestamp { user, conn, newest }) => {
                stored(&Key::NewestTimestamp(user, conn), newest.as_ref())
            }
            Self::Tracker(tracker::TrackerRecord::User { user, state }) => {
                let value =
                    state.map(|UserState { last_seen, pending }| User { last_seen, pending });
                stored(&Key::User(user), value.as_ref())
            }
            Self::Ledger { user, entry } => {
                let names = names.read();
                let value = entry.as_ref().map(|entry| Online {
                    timestamp: entry.event.timestamp,
                    metadata: entries(&entry.event.metadata),
                    told: parts(&entry.recipients, &names),
                    connect_delay_ms: entry.connect_delay_ms,
                });
                let (key, mut value) = stored(&Key::Ledger(user.as_str()), value.as_ref());
                let is_stated = entry.as_ref().is_some_and(|entry| entry.is_stated);
                if let Some(value) = value.as_mut().filter(|_| is_stated) {
                    value.extend(STATED);
                }
                (key, value)
            }
            Self::Departed { user, departure } => {
                let names = names.read();
                let value = departure.as_ref().map(|departure| Left {
                    timestamp: departure.timestamp,
                    last_seen: departure.last_seen,
                    reason: departure.reason,
                    metadata: entries(&departure.metadata),
                    online: entries(departure.known.metadata()),
                    keys: departure.known.keys().map(Iterator::collect),
                    told: parts(&departure.recipients, &names),
                });
                stored(&Key::Departed(user.as_str()), value.as_ref())
            }
            Self::Status { user, own_status } => {
                let value: Option<SavedStatus<'_>> = own_status.as_ref().map(|own_status| {
                    let status = own_status.status.as_ref();
                    let saying = status.map(|status| (&*status.text, status.expires_at));
                    (own_status.timestamp, saying)
                });
                stored(&Key::Status(user.as_str()), value.as_ref())
            }
            Self::Stated { user, statement } => {
                stored(&Key::Stated(user.as_str()), statement.as_ref())
            }
            Self::Waiting { user, steps } => {
                let names = names.read();
                let steps: Vec<_> = steps.iter().map(|step| waiting(step, &names)).collect();
                let value = (!steps.is_empty()).then_some(steps);
                stored(&Key::Waiting(user.as_str()), value.as_ref())
            }
        }
    }

    /// Decodes what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// If it is something else.
    pub fn decode(key: &[u8], value: &[u8], names: &Names) -> Result<Self, postcard::Error> {
        let record = match postcard::from_bytes(key)? {
            Key::Connection(user, conn) => {
                let state = postcard::from_bytes::<Connection<'_>>(value)?.connected();
                tracker::TrackerRecord::Connection {
                    user: user.into(),
                    conn: conn.into(),
                    state: Some(state),
                }
            }
            Key::NewestTimestamp(user, conn) => tracker::TrackerRecord::NewestTimestamp {
                user: user.into(),
                conn: conn.into(),
                newest: Some(postcard::from_bytes(value)?),
            },
            Key::User(user) => {
                let User { last_seen, pending } = postcard::from_bytes(value)?;
                tracker::TrackerRecord::User {
                    user: user.into(),
                    state: Some(UserState { last_seen, pending }),
                }
            }
            Key::Ledger(user) => {
                let (online, rest) = postcard::take_from_bytes::<Online<'_>>(value)?;
                let (id, user) = names.intern_name(user);
                let event = Event {
                    user: id,
                    name: user.clone(),
                    timestamp: online.timestamp,
                    change: Change::Online,
                    metadata: metadata_of(online.metadata),
                };
                let told = recipients_of(online.told, names);
                let entry = Some(LedgerEntry {
                    connect_delay_ms: online.connect_delay_ms,
                    is_stated: rest == STATED,
                    ..LedgerEntry::new(Arc::new(event), told)
                });
                return Ok(Self::Ledger { user, entry });
            }
            Key::Departed(user) => {
                let left: Left<'_> = postcard::from_bytes(value)?;
                let (id, user) = names.intern_name(user);
                let departure = Some(Departure {
                    user: id,
                    reason: left.reason,
                    timestamp: left.timestamp,
                    last_seen: left.last_seen,
                    metadata: metadata_of(left.metadata),
                    known: KnownMetadata::restored(metadata_of(left.online), left.keys),
                    recipients: recipients_of(left.told, names),
                });
                return Ok(Self::Departed { user, departure });
            }
            Key::Status(user) => {
                let (timestamp, saying): SavedStatus<'_> = postcard::from_bytes(value)?;
                let own_status = OwnStatus {
                    timestamp,
                    status: saying.map(|(text, expires_at)| Status {
                        text: text.into(),
                        expires_at,
                    }),
                };
                let (_, user) = names.intern_name(user);
                let own_status = Some(own_status);
                return Ok(Self::Status { user, own_status });
            }
            Key::Stated(user) => {
                let statement = Some(postcard::from_bytes(value)?);
                let (_, user) = names.intern_name(user);
                return Ok(Self::Stated { user, statement });
            }
            Key::Waiting(user) => {
                let (id, user) = names.intern_name(user);
                let steps: Vec<Waiting<'_>> = postcard::from_bytes(value)?;
                let steps = steps.into_iter().map(|step| {
                    let event = Arc::new(Event {
                        user: id,
                        name: user.clone(),
                        timestamp: step.timestamp,
                        change: step.offline.map_or(Change::Online, |(last_seen, reason)| {
                            Change::Offline { last_seen, reason }
                        }),
                        metadata: metadata_of(step.metadata),
                    });
                    match step.next {
                        Next::Announce(broadcast_by_shard) => {
                            Step::Announce(event, broadcast_by_shard)
                        }
                        Next::Notify(told) => Step::Notify(event, recipients_of(told, names)),
                        Next::Reshow => Step::Reshow(event),
                    }
                });
                let steps = steps.collect();
                return Ok(Self::Waiting { user, steps });
            }
        };
        Ok(Self::Tracker(record))
    }
}

impl Record {
    /// Decodes the key of a record that [`Self::encode`] wrote without a value: the record is
    /// removed.
    ///
    /// # Errors
    /// If it is something else.
    pub fn decode_gone(key: &[u8], names: &Names) -> Result<Self, postcard::Error> {
        let name = |user| names.intern_name(user).1;
        Ok(match postcard::from_bytes(key)? {
            Key::Connection(user, conn) => Self::Tracker(tracker::TrackerRecord::Connection {
                user: user.into(),
                conn: conn.into(),
                state: None,
            }),
            Key::NewestTimestamp(user, conn) => {
                Self::Tracker(tracker::TrackerRecord::NewestTimestamp {
                    user: user.into(),
                    conn: conn.into(),
                    newest: None,
                })
            }
            Key::User(user) => Self::Tracker(tracker::TrackerRecord::User {
                user: user.into(),
                state: None,
            }),
            Key::Ledger(user) => Self::Ledger {
                user: name(user),
                entry: None,
            },
            Key::Status(user) => Self::Status {
                user: name(user),
                own_status: None,
            },
            Key::Waiting(user) => Self::Waiting {
                user: name(user),
                steps: Vec::new(),
            },
            Key::Stated(user) => Self::Stated {
                user: name(user),
                statement: None,
            },
            Key::Departed(user) => Self::Departed {
                user: name(user),
                departure: None,
            },
        })
    }
}

fn stored<V: Serialize>(key: &Key<'_>, value: Option<&V>) -> Stored {
    (bytes(key), value.map(bytes))
}

/// Plain data in memory, which can always be encoded.
fn bytes(value: &impl Serialize) -> Vec<u8> {
    postcard::to_allocvec(value).unwrap_or_default()
}

fn waiting<'a>(step: &'a Step, names: &'a NamesGuard<'_>) -> Waiting<'a> {
    let event = step.event();
    Waiting {
        timestamp: event.timestamp,
        offline: match event.change {
            Change::Online | Change::Updated => None,
            Change::Offline { last_seen, reason } => Some((last_seen, reason)),
        },
        metadata: entries(&event.metadata),
        next: match step {
            Step::Announce(_, broadcast_by_shard) => Next::Announce(*broadcast_by_shard),
            Step::Notify(_, told) => Next::Notify(parts(told, names)),
            Step::Reshow(_) => Next::Reshow,
        },
    }
}

fn parts<'a>(told: &Recipients, names: &'a NamesGuard<'_>) -> Parts<'a> {
    let parts = told.parts();
    let parts = parts.map(|(viewers, shown)| {
        let viewers = viewers.ids();
        let viewers = viewers.filter_map(|id| Some(names.name(id)?.as_str()));
        (shown.to_bytes(), viewers.collect())
    });
    parts.collect()
}

fn recipients_of(parts: Parts<'_>, names: &Names) -> Recipients {
    Recipients::new(parts.into_iter().map(|(shown, viewers)| {
        let viewers = viewers.into_iter().map(|viewer| names.intern(viewer));
        (viewers.collect(), ShownDigest::from_bytes(shown))
    }))
}

fn entries(metadata: &Metadata) -> Entries<'_> {
    let entries = metadata.entries();
    entries
        .map(|entry| (entry.key, entry.value, entry.public))
        .collect()
}

fn metadata_of(entries: Entries<'_>) -> Metadata {
    let mut metadata = Metadata::default().edit();
    for (key, value, public) in entries {
        metadata.set(key, value, public);
    }
    metadata.build()
}

#[cfg(test)]
mod tests;
