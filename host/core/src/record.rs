//! What is kept over a restart, and the bytes that it is kept as: keys and values
//! for a store that knows nothing of them.
//!
//! Users are stored by their ids, since numbers don't outlive the process. What
//! is added to the format comes last among the variants and fields of its type;
//! whatever else changes it makes another [`FORMAT`].

use std::sync::Arc;

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use crate::departed::{Departure, Known};
use crate::event::{Change, Event, Reason};
use crate::ledger::Entry;
use crate::metadata::Metadata;
use crate::names::{Name, Names, Reading};
use crate::shard::Step;
use crate::statements::Statement;
use crate::status::{Status, Word};
use crate::told::{Shown, Told};
use crate::tracker::{self, Activity, Connected, Seen};

/// Which format this is.
pub const FORMAT: u32 = 3;

/// A piece of what a shard knows.
#[derive(Clone, Debug)]
pub enum Record {
    /// Of its tracker.
    Tracker(tracker::Record<Metadata>),
    /// Of its ledger; none if the user is offline.
    Told {
        /// Of whom.
        user: Name,
        /// What is known and was said of them.
        entry: Option<Entry>,
    },
    /// Of its departures; none if it isn't remembered any more.
    Departed {
        /// Whose.
        user: Name,
        /// The user's last one.
        departure: Option<Departure>,
    },
    /// Of its statuses.
    Status {
        /// Whose.
        user: Name,
        /// The user's newest word on themselves, if it is known.
        word: Option<Word>,
    },
    /// Of its events that wait; none if none of the user's does any more.
    Waiting {
        /// Whose.
        user: Name,
        /// What is next for each, in their order.
        steps: Vec<Step>,
    },
    /// What an application stated of a user, and holds; none if nothing does.
    Stated {
        /// Of whom.
        user: Name,
        /// What, and when it was said, by the clock of `now`.
        statement: Option<(u64, Statement)>,
    },
}

/// A record as it is stored: its key, and its value unless it is to be removed.
pub type Stored = (Vec<u8>, Option<Vec<u8>>);

/// In the order in which they are restored.
#[derive(Serialize, Deserialize)]
enum Key<'a> {
    Connection(&'a str, &'a str),
    Heard(&'a str, &'a str),
    User(&'a str),
    Told(&'a str),
    Status(&'a str),
    Waiting(&'a str),
    Stated(&'a str),
    Departed(&'a str),
}

#[derive(Serialize, Deserialize)]
enum Connection<'a> {
    Live {
        opened: u64,
        newest: u64,
        #[serde(borrow)]
        metadata: Entries<'a>,
        order: i64,
        activity: Option<Activity>,
        silent_since: Option<u64>,
    },
    Closed {
        timestamp: u64,
        newest: u64,
        kept_since: u64,
    },
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
    lag_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct Left<'a> {
    timestamp: u64,
    last_seen: u64,
    reason: Reason,
    #[serde(borrow)]
    metadata: Entries<'a>,
    /// What was known while the user was online: all of it, or what is under these keys.
    online: Entries<'a>,
    keys: Option<Vec<&'a str>>,
    told: Parts<'a>,
}

/// Those of the viewers who were shown the same, and a digest of that.
type Parts<'a> = Vec<([u8; 8], Vec<&'a str>)>;

/// When a user said it, and what.
type Said<'a> = (u64, Saying<'a>);

/// A JSON string, and when it expires.
type Saying<'a> = Option<(&'a str, Option<u64>)>;

#[derive(Serialize, Deserialize)]
struct Waiting<'a> {
    timestamp: u64,
    /// Of a user who went offline: when they were last seen, and why.
    offline: Option<(u64, Reason)>,
    #[serde(borrow)]
    metadata: Entries<'a>,
    next: Next<'a>,
}

#[derive(Serialize, Deserialize)]
enum Next<'a> {
    Announce(bool),
    #[serde(borrow)]
    Tell(Parts<'a>),
    Show,
}

/// Keys, values as JSON text, and whether they may be broadcast.
type Entries<'a> = Vec<(&'a str, &'a str, bool)>;

impl Record {
    /// The id of the user it is about.
    pub fn user(&self) -> &str {
        match self {
            Self::Tracker(
                tracker::Record::Connection { user, .. }
                | tracker::Record::Heard { user, .. }
                | tracker::Record::User { user, .. },
            ) => user,
            Self::Told { user, .. }
            | Self::Departed { user, .. }
            | Self::Status { user, .. }
            | Self::Waiting { user, .. }
            | Self::Stated { user, .. } => user.as_str(),
        }
    }

    /// All the numbers of ids it holds.
    pub fn ids(&self) -> RoaringBitmap {
        match self {
            Self::Told {
                entry: Some(entry), ..
            } => {
                let mut ids = entry.told.audience().bitmap();
                ids.insert(entry.event.user.0);
                ids
            }
            Self::Departed {
                departure: Some(departure),
                ..
            } => departure.ids(),
            Self::Waiting { steps, .. } => {
                let ids = steps.iter().map(Step::ids);
                ids.fold(RoaringBitmap::new(), |all, ids| all | ids)
            }
            Self::Told { entry: None, .. }
            | Self::Departed {
                departure: None, ..
            }
            | Self::Tracker(_)
            | Self::Status { .. }
            | Self::Stated { .. } => RoaringBitmap::new(),
        }
    }

    /// The record as it is stored.
    pub fn encode(&self, names: &Names) -> Stored {
        match self {
            Self::Tracker(tracker::Record::Connection { user, conn, state }) => {
                let key = Key::Connection(user, conn);
                let value = state.as_ref().map(|state| match state {
                    Connected::Live {
                        opened,
                        newest,
                        metadata,
                        activity,
                        order,
                        silent_since,
                    } => Connection::Live {
                        opened: *opened,
                        newest: *newest,
                        metadata: entries(metadata),
                        order: *order,
                        activity: *activity,
                        silent_since: *silent_since,
                    },
                    Connected::Closed {
                        timestamp,
                        newest,
                        kept_since,
                    } => Connection::Closed {
                        timestamp: *timestamp,
                        newest: *newest,
                        kept_since: *kept_since,
                    },
                });
                stored(&key, value.as_ref())
            }
            Self::Tracker(tracker::Record::Heard { user, conn, newest }) => {
                stored(&Key::Heard(user, conn), newest.as_ref())
            }
            Self::Tracker(tracker::Record::User { user, state }) => {
                let value = state.map(|Seen { last_seen, pending }| User { last_seen, pending });
                stored(&Key::User(user), value.as_ref())
            }
            Self::Told { user, entry } => {
                let names = names.read();
                let value = entry.as_ref().map(|entry| Online {
                    timestamp: entry.event.timestamp,
                    metadata: entries(&entry.event.metadata),
                    told: parts(&entry.told, &names),
                    lag_ms: entry.lag_ms,
                });
                stored(&Key::Told(user.as_str()), value.as_ref())
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
                    told: parts(&departure.told, &names),
                });
                stored(&Key::Departed(user.as_str()), value.as_ref())
            }
            Self::Status { user, word } => {
                let value: Option<Said<'_>> = word.as_ref().map(|word| {
                    let status = word.status.as_ref();
                    let saying = status.map(|status| (&*status.text, status.expires_at));
                    (word.timestamp, saying)
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

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// When it is something else.
    pub fn decode(key: &[u8], value: &[u8], names: &Names) -> Result<Self, postcard::Error> {
        let record = match postcard::from_bytes(key)? {
            Key::Connection(user, conn) => {
                let state = match postcard::from_bytes(value)? {
                    Connection::Live {
                        opened,
                        newest,
                        metadata,
                        order,
                        activity,
                        silent_since,
                    } => Connected::Live {
                        opened,
                        newest,
                        metadata: metadata_of(metadata),
                        activity,
                        order,
                        silent_since,
                    },
                    Connection::Closed {
                        timestamp,
                        newest,
                        kept_since,
                    } => Connected::Closed {
                        timestamp,
                        newest,
                        kept_since,
                    },
                };
                tracker::Record::Connection {
                    user: user.into(),
                    conn: conn.into(),
                    state: Some(state),
                }
            }
            Key::Heard(user, conn) => tracker::Record::Heard {
                user: user.into(),
                conn: conn.into(),
                newest: Some(postcard::from_bytes(value)?),
            },
            Key::User(user) => {
                let User { last_seen, pending } = postcard::from_bytes(value)?;
                tracker::Record::User {
                    user: user.into(),
                    state: Some(Seen { last_seen, pending }),
                }
            }
            Key::Told(user) => {
                let online: Online<'_> = postcard::from_bytes(value)?;
                let (id, user) = names.intern_name(user);
                let event = Event {
                    user: id,
                    name: user.clone(),
                    timestamp: online.timestamp,
                    change: Change::Online,
                    metadata: metadata_of(online.metadata),
                };
                let told = told_of(online.told, names);
                let entry = Some(Entry {
                    lag_ms: online.lag_ms,
                    ..Entry::new(Arc::new(event), told)
                });
                return Ok(Self::Told { user, entry });
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
                    known: Known::restored(metadata_of(left.online), left.keys),
                    told: told_of(left.told, names),
                });
                return Ok(Self::Departed { user, departure });
            }
            Key::Status(user) => {
                let (timestamp, saying): Said<'_> = postcard::from_bytes(value)?;
                let word = Word {
                    timestamp,
                    status: saying.map(|(text, expires_at)| Status {
                        text: text.into(),
                        expires_at,
                    }),
                };
                let (_, user) = names.intern_name(user);
                let word = Some(word);
                return Ok(Self::Status { user, word });
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
                        Next::Announce(ours) => Step::Announce(event, ours),
                        Next::Tell(told) => Step::Tell(event, told_of(told, names)),
                        Next::Show => Step::Show(event),
                    }
                });
                let steps = steps.collect();
                return Ok(Self::Waiting { user, steps });
            }
        };
        Ok(Self::Tracker(record))
    }
}

fn stored<V: Serialize>(key: &Key<'_>, value: Option<&V>) -> Stored {
    (bytes(key), value.map(bytes))
}

/// Plain data in memory, which always has such a form.
fn bytes(value: &impl Serialize) -> Vec<u8> {
    postcard::to_allocvec(value).unwrap_or_default()
}

fn waiting<'a>(step: &'a Step, names: &'a Reading<'_>) -> Waiting<'a> {
    let event = step.event();
    Waiting {
        timestamp: event.timestamp,
        offline: match event.change {
            Change::Online | Change::Updated => None,
            Change::Offline { last_seen, reason } => Some((last_seen, reason)),
        },
        metadata: entries(&event.metadata),
        next: match step {
            Step::Announce(_, ours) => Next::Announce(*ours),
            Step::Tell(_, told) => Next::Tell(parts(told, names)),
            Step::Show(_) => Next::Show,
        },
    }
}

fn parts<'a>(told: &Told, names: &'a Reading<'_>) -> Parts<'a> {
    let parts = told.parts();
    let parts = parts.map(|(viewers, shown)| {
        let viewers = viewers.ids();
        let viewers = viewers.filter_map(|id| Some(names.name(id)?.as_str()));
        (shown.to_bytes(), viewers.collect())
    });
    parts.collect()
}

fn told_of(parts: Parts<'_>, names: &Names) -> Told {
    Told::new(parts.into_iter().map(|(shown, viewers)| {
        let viewers = viewers.into_iter().map(|viewer| names.intern(viewer));
        (viewers.collect(), Shown::from_bytes(shown))
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
mod tests {
    use super::*;

    /// The bytes of a format never change: one that differs is another format.
    #[test]
    fn records_have_the_bytes_of_their_format() {
        let names = Names::new();
        let metadata = metadata_of(vec![("device", "\"web\"", true), ("ip", "1", false)]);
        let (user, name) = names.intern_name("ann");
        let event = Arc::new(Event {
            user,
            name: name.clone(),
            timestamp: 300,
            change: Change::Online,
            metadata: metadata.clone(),
        });
        let gone = Arc::new(Event {
            change: Change::Offline {
                last_seen: 9,
                reason: Reason::Logout,
            },
            metadata: Metadata::default(),
            ..Event::clone(&event)
        });
        let part = |name: &str| [names.intern(name)].into_iter().collect();
        let told = Told::new([
            (part("ben"), Shown::from_bytes([7; 8])),
            (part("cleo"), Shown::from_bytes([8; 8])),
        ]);
        let connection = |state| tracker::Record::Connection {
            user: "ann".into(),
            conn: "c1".into(),
            state: Some(state),
        };
        let records = [
            Record::Tracker(connection(Connected::Live {
                opened: 1,
                newest: 2,
                metadata: metadata.clone(),
                activity: None,
                order: 5,
                silent_since: None,
            })),
            Record::Tracker(connection(Connected::Closed {
                timestamp: 1,
                newest: 2,
                kept_since: 3,
            })),
            Record::Tracker(tracker::Record::Heard {
                user: "ann".into(),
                conn: "c1".into(),
                newest: Some(5),
            }),
            Record::Tracker(tracker::Record::User {
                user: "ann".into(),
                state: Some(Seen {
                    last_seen: 6,
                    pending: Some((7, Reason::Logout)),
                }),
            }),
            Record::Told {
                user: name.clone(),
                entry: Some(Entry {
                    lag_ms: 300,
                    ..Entry::new(Arc::clone(&event), told.clone())
                }),
            },
            Record::Waiting {
                user: name.clone(),
                steps: vec![Step::Tell(gone, told.clone()), Step::Announce(event, true)],
            },
            Record::Departed {
                user: name.clone(),
                departure: Some(Departure {
                    user,
                    reason: Reason::Timeout,
                    timestamp: 10,
                    last_seen: 9,
                    metadata: metadata_of(vec![("lastHeartbeat", "9", true)]),
                    known: Known::some(&metadata, &["device".into()].into()),
                    told,
                }),
            },
            Record::Tracker(connection(Connected::Live {
                opened: 1,
                newest: 2,
                metadata: metadata.clone(),
                activity: Some(Activity::Typing),
                order: -1,
                silent_since: Some(4),
            })),
            Record::Status {
                user: name,
                word: Some(Word {
                    timestamp: 8,
                    status: Some(Status {
                        text: "\"away\"".into(),
                        expires_at: Some(9),
                    }),
                }),
            },
        ];
        let web = b"\x02\x06device\x05\"web\"\x01\x02ip\x011\x00";
        let told_bytes: &[u8] =
            b"\x02\x07\x07\x07\x07\x07\x07\x07\x07\x01\x03ben\x08\x08\x08\x08\x08\x08\x08\x08\x01\x04cleo";
        let bytes: [(&[u8], Vec<u8>); 9] = [
            (
                b"\x00\x03ann\x02c1",
                [b"\x00\x01\x02", &web[..], b"\x0a\x00\x00"].concat(),
            ),
            (b"\x00\x03ann\x02c1", b"\x01\x01\x02\x03".into()),
            (b"\x01\x03ann\x02c1", b"\x05".into()),
            (b"\x02\x03ann", b"\x06\x01\x07\x02".into()),
            (
                b"\x03\x03ann",
                [b"\xac\x02", &web[..], told_bytes, b"\xac\x02"].concat(),
            ),
            (
                b"\x05\x03ann",
                [
                    b"\x02\xac\x02\x01\x09\x02\x00\x01",
                    told_bytes,
                    &b"\xac\x02\x00"[..],
                    &web[..],
                    b"\x00\x01",
                ]
                .concat(),
            ),
            (
                b"\x07\x03ann",
                [
                    &b"\x0a\x09\x01\x01\x0dlastHeartbeat\x019\x01"[..],
                    b"\x01\x06device\x05\"web\"\x01\x01\x01\x06device",
                    told_bytes,
                ]
                .concat(),
            ),
            (
                b"\x00\x03ann\x02c1",
                [b"\x00\x01\x02", &web[..], b"\x01\x01\x02\x01\x04"].concat(),
            ),
            (b"\x04\x03ann", b"\x08\x01\x06\"away\"\x01\x09".into()),
        ];
        for (record, (key, value)) in records.iter().zip(bytes) {
            assert_eq!(record.encode(&names), (key.to_vec(), Some(value.clone())));
            // Other numbers stand for the same ids elsewhere.
            let elsewhere = Names::new();
            elsewhere.intern("somebody");
            let read = Record::decode(key, &value, &elsewhere).unwrap();
            assert_eq!(read.user(), "ann");
            assert_eq!(read.encode(&elsewhere), (key.to_vec(), Some(value)));
        }
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let names = Names::new();
        for (key, value) in [
            (&b"\x09\x03ann"[..], &b"\x05"[..]),
            (b"\x01\x03ann", b"\x05"),
            (b"\x00\x03ann\x02c1", b"\x07"),
            (b"\x03\x03ann", b""),
        ] {
            assert!(Record::decode(key, value, &names).is_err(), "{key:?}");
        }
    }
}
