//! Input messages, parsed into types that can only hold valid values.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use bytestring::ByteString;
use serde::Deserialize;

use crate::event::Reason;
use crate::json;
use crate::metadata::{self, CheckedMetadata, MetadataPlace, place, slice};

mod careful;
mod diagnosis;
mod fields;
mod kind;

pub use diagnosis::{Cause, Rejection};
pub use kind::Kind;

/// The first millisecond of 2001. An earlier timestamp can't be in milliseconds: it is usually in
/// seconds.
const MS_MIN: u64 = 978_307_200_000;

/// The limits of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The maximum length of a body that is published because of the message, in bytes.
    pub body_bytes_max: usize,
    /// The limits of its metadata.
    pub metadata: metadata::Limits,
}

/// The default limits of metadata, with this maximum length of a published body.
impl From<usize> for Limits {
    fn from(body_bytes_max: usize) -> Self {
        Self {
            body_bytes_max,
            metadata: metadata::Limits::default(),
        }
    }
}

/// The maximum length of a `userId` or `connId`, in bytes.
pub const ID_BYTES_MAX: usize = 256;

/// Whether a text can be an id.
pub fn is_id(text: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&text.len())
}

/// By how many bytes a published body may be longer than the message it is made from, because of
/// the fields that the host adds. The content of a message doesn't get longer when it is written
/// again.
const GROWTH_BYTES_MAX: usize = 512;

/// A well-formed message. It holds its body, and where in it its parts are.
#[derive(Clone, Debug)]
pub struct Message {
    /// What kind of message it is.
    pub kind: Kind,
    /// The sender's timestamp, in milliseconds since the Unix epoch.
    pub timestamp: u64,
    /// When the user was last seen, if it is an offline.
    pub last_seen: u64,
    /// The reason that a disconnect or an offline states.
    pub reason: StatedReason,
    /// The position in the stream that the message comes from. `None` if it comes from no stream,
    /// or in the stream's order.
    pub stream_place: Option<StreamPlace>,
    /// How much later than other messages that were sent at the same time it may have arrived, in
    /// milliseconds: for example, since a node of a fleet held it while it was stopped.
    pub delayed_ms: u64,
    body: ByteString,
    user: BodyPart,
    /// Empty if the message is about no connection.
    conn: BodyPart,
    metadata: Option<MetadataPlace>,
}

/// A text of a message's body.
#[derive(Clone, Debug, PartialEq, Eq)]
enum BodyPart {
    /// It is a part of the body. Many messages share the memory of their bodies, so counting
    /// references to it would be slow.
    Place(Range<u32>),
    /// Its JSON form has escapes.
    Unescaped(Box<str>),
}

impl BodyPart {
    /// `text`: a part of the body, if it is borrowed.
    fn new(text: Cow<'_, str>, body: &str) -> Self {
        match text {
            Cow::Borrowed(part) => Self::Place(place(part, body)),
            Cow::Owned(text) => Self::Unescaped(text.into()),
        }
    }

    fn text<'a>(&'a self, body: &'a str) -> &'a str {
        match self {
            Self::Place(place) => slice(body, place),
            Self::Unescaped(text) => text,
        }
    }
}

/// A position in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamPlace {
    /// The number of the stream. A later stream has a greater number. A stream whose sequence
    /// numbers start again counts as another stream.
    pub stream: u64,
    /// The sequence number of the message in the stream.
    pub sequence: u64,
}

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// A connection was made.
    Connect {
        /// The connection.
        conn: &'a str,
        /// The metadata of the connection.
        metadata: Option<CheckedMetadata<'a>>,
    },
    /// A connection is alive.
    Heartbeat {
        /// The connection.
        conn: &'a str,
        /// The metadata of the connection.
        metadata: Option<CheckedMetadata<'a>>,
    },
    /// A connection was closed.
    Disconnect {
        /// The connection.
        conn: &'a str,
        /// Why.
        reason: StatedReason,
    },
    /// An application states that a user is online.
    Online {
        /// The metadata of the statement.
        metadata: Option<CheckedMetadata<'a>>,
    },
    /// An application states that a user is offline.
    Offline {
        /// When the user was last seen.
        last_seen: u64,
        /// Why.
        reason: StatedReason,
        /// The metadata of the statement.
        metadata: Option<CheckedMetadata<'a>>,
    },
}

impl Payload<'_> {
    /// The kind of message that has this payload.
    pub fn kind(self) -> Kind {
        match self {
            Self::Connect { .. } => Kind::Connect,
            Self::Heartbeat { .. } => Kind::Heartbeat,
            Self::Disconnect { .. } => Kind::Disconnect,
            Self::Online { .. } => Kind::Online,
            Self::Offline { .. } => Kind::Offline,
        }
    }
}

/// The reason that a message states, as the host understands it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatedReason {
    /// The reason.
    pub reason: Reason,
    /// Whether the stated reason is a known one.
    pub known: bool,
}

impl StatedReason {
    /// The reason that is stated in a JSON text.
    fn of(json: Option<&str>) -> Self {
        let text = json.map(json::text);
        let (reason, known) = match text.as_ref().map(Option::as_deref) {
            None | Some(Some("client_disconnect" | "server_shutdown" | "disconnect")) => {
                (Reason::Disconnect, true)
            }
            Some(Some("timeout")) => (Reason::Timeout, true),
            Some(Some("logout")) => (Reason::Logout, true),
            Some(_) => (Reason::Disconnect, false),
        };
        Self { reason, known }
    }
}

impl Message {
    /// Parses the body of a message. The message shares the memory of the body.
    ///
    /// # Errors
    /// What is wrong with the body, for its dead letter.
    pub fn parse(
        kind: Kind,
        payload: &Bytes,
        limits: impl Into<Limits>,
    ) -> Result<Self, Rejection> {
        let Limits {
            body_bytes_max,
            metadata,
        } = limits.into();
        let body = ByteString::try_from(payload.clone())
            .map_err(|error| Rejection::new(Cause::InvalidJson, format!("not UTF-8: {error}")))?;
        let parts = match fields::read(kind, &body, metadata) {
            Some(parts) => parts,
            None => careful::read(kind, &body, metadata)?,
        };
        let message = parts.message(kind, body);
        let bytes_max = body_bytes_max - GROWTH_BYTES_MAX.min(body_bytes_max / 2);
        if message.is_published() && payload.len() > bytes_max {
            let error = format!(
                "{} bytes long, and with what is added no more than {bytes_max} fit the broker's max_payload",
                payload.len()
            );
            return Err(Rejection::new(Cause::TooLarge, error));
        }
        Ok(message)
    }

    /// The user whom it is about.
    pub fn user(&self) -> &str {
        self.user.text(&self.body)
    }

    /// What it says.
    pub fn payload(&self) -> Payload<'_> {
        let conn = self.conn.text(&self.body);
        let metadata = self.metadata.as_ref().map(|it| it.of(&self.body));
        let (last_seen, reason) = (self.last_seen, self.reason);
        match self.kind {
            Kind::Connect => Payload::Connect { conn, metadata },
            Kind::Heartbeat => Payload::Heartbeat { conn, metadata },
            Kind::Disconnect => Payload::Disconnect { conn, reason },
            Kind::Online => Payload::Online { metadata },
            Kind::Offline => Payload::Offline {
                last_seen,
                reason,
                metadata,
            },
        }
    }

    /// The body that it was parsed from, for a dead letter.
    pub fn body(&self) -> &Bytes {
        self.body.as_bytes()
    }

    /// As [`Self::body`].
    pub fn into_body(self) -> Bytes {
        self.body.into_bytes()
    }
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        let carrier = |it: &Self| (it.stream_place, it.delayed_ms);
        (self.user(), self.timestamp, self.payload())
            == (other.user(), other.timestamp, other.payload())
            && self.body == other.body
            && carrier(self) == carrier(other)
    }
}

impl Eq for Message {}

/// The user whom the body of a message is about. `None` if the body can't be read, so that no such
/// message is accepted. The rest of the body isn't checked.
pub fn user_of(body: &[u8]) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct About<'a> {
        #[serde(rename = "userId", borrow)]
        user: Cow<'a, str>,
    }
    let text = str::from_utf8(body).ok()?;
    let parsed = || serde_json::from_str(text).ok().map(|About { user }| user);
    fields::user(text).map(Cow::Borrowed).or_else(parsed)
}

/// The checked content of a message's body.
#[derive(Debug, PartialEq, Eq)]
struct Parts {
    user: BodyPart,
    /// Empty if the message is about no connection.
    conn: BodyPart,
    timestamp: u64,
    metadata: Option<MetadataPlace>,
    last_seen: Option<u64>,
    reason: StatedReason,
}

impl Parts {
    /// The message with this content.
    #[inline]
    fn message(self, kind: Kind, body: ByteString) -> Message {
        Message {
            kind,
            timestamp: self.timestamp,
            last_seen: self.last_seen.unwrap_or(self.timestamp),
            reason: self.reason,
            stream_place: None,
            delayed_ms: 0,
            body,
            user: self.user,
            conn: self.conn,
            metadata: self.metadata,
        }
    }
}

impl Message {
    /// Whether any of its content may be published.
    fn is_published(&self) -> bool {
        match self.kind {
            Kind::Connect | Kind::Heartbeat | Kind::Online => self.metadata.is_some(),
            Kind::Offline => true,
            Kind::Disconnect => false,
        }
    }
}

/// A request to decide again about an event on which a plugin has failed. It states nothing about
/// the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redrive {
    /// The user.
    pub user: ByteString,
    /// The event's timestamp, in milliseconds since the Unix epoch.
    pub timestamp: u64,
}

impl Redrive {
    /// Parses the body of the event.
    ///
    /// # Errors
    /// If the body is no event.
    pub fn parse(payload: &[u8]) -> Result<Self, Rejection> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Event {
            user_id: String,
            timestamp: u64,
        }
        let event: Event = serde_json::from_slice(payload)
            .map_err(|error| Rejection::new(Cause::InvalidJson, format!("no event: {error}")))?;
        Ok(Self {
            user: event.user_id.into(),
            timestamp: event.timestamp,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: Kind, body: &str) -> Result<Message, Rejection> {
        Message::parse(kind, &Bytes::copy_from_slice(body.as_bytes()), 1 << 20)
    }

    #[test]
    fn a_connect_is_read_without_copying() {
        let body = r#"{"userId":"u","connId":"c","timestamp":1698000000000,"metadata":{"device":"web"},"x":1}"#;
        let message = parse(Kind::Connect, body).unwrap();
        assert_eq!(message.user(), "u");
        let Payload::Connect { conn, metadata } = message.payload() else {
            panic!("not a connect")
        };
        assert_eq!(conn, "c");
        assert_eq!(metadata.unwrap().text(), r#"{"device":"web"}"#);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = format!(
            r#"{{"userId":"{}","connId":"c","timestamp":1698000000000}}"#,
            "x".repeat(257)
        );
        for (body, cause, word) in [
            ("", Cause::InvalidJson, "JSON"),
            ("{", Cause::InvalidJson, "JSON"),
            ("[1]", Cause::NotAnObject, "array"),
            ("null", Cause::NotAnObject, "null"),
            (
                r#"{"connId":"c","timestamp":1698000000000}"#,
                Cause::MissingField,
                "userId",
            ),
            (
                r#"{"userId":"u","timestamp":1698000000000}"#,
                Cause::MissingField,
                "connId",
            ),
            (
                r#"{"userId":"u","connId":"c"}"#,
                Cause::MissingField,
                "timestamp",
            ),
            (
                r#"{"userId":"","connId":"c","timestamp":1698000000000}"#,
                Cause::InvalidField,
                "userId",
            ),
            (
                r#"{"userId":7,"connId":"c","timestamp":1698000000000}"#,
                Cause::InvalidField,
                "userId",
            ),
            (
                r#"{"userId":"u","connId":null,"timestamp":1698000000000}"#,
                Cause::InvalidField,
                "connId",
            ),
            (
                r#"{"userId":"u","connId":"c","timestamp":0}"#,
                Cause::InvalidField,
                "timestamp",
            ),
            (
                r#"{"userId":"u","connId":"c","timestamp":-1}"#,
                Cause::InvalidField,
                "timestamp",
            ),
            (
                r#"{"userId":"u","connId":"c","timestamp":1.5}"#,
                Cause::InvalidField,
                "timestamp",
            ),
            (
                r#"{"userId":"u","connId":"c","timestamp":"1"}"#,
                Cause::InvalidField,
                "timestamp",
            ),
            (
                r#"{"userId":"u","connId":"c","timestamp":1698000000000,"metadata":null}"#,
                Cause::InvalidField,
                "metadata",
            ),
            (r#"["u","c",1698000000000]"#, Cause::NotAnObject, "array"),
            (
                r#"{"userId":"\ud800","connId":"c","timestamp":1698000000000}"#,
                Cause::InvalidField,
                "userId",
            ),
            (
                r#"{"userId":"u","connId":"\ud800","timestamp":1698000000000}"#,
                Cause::InvalidField,
                "connId",
            ),
            (
                r#"{"userId":"u","connId":"c","timestamp":1e999}"#,
                Cause::InvalidField,
                "timestamp",
            ),
            (
                r#"{"userId":"u","connId":"c","metadata":{"a":1e999}}"#,
                Cause::MissingField,
                "timestamp",
            ),
            (
                r#"{"userId":"u","connId":"c","timestamp":1698000000000,"metadata":{"a":1e999}}"#,
                Cause::InvalidField,
                "metadata",
            ),
            (
                r#"{"userId":"u","userId":"v","connId":"c","timestamp":1698000000000}"#,
                Cause::InvalidJson,
                "userId",
            ),
            (&long, Cause::InvalidField, "userId"),
        ] {
            let rejection = parse(Kind::Connect, body).unwrap_err();
            assert_eq!(rejection.cause, cause, "{body}: {rejection:?}");
            assert!(rejection.error.contains(word), "{body}: {rejection:?}");
        }
        let rejection =
            Message::parse(Kind::Connect, &Bytes::from_static(b"\xff"), 1 << 20).unwrap_err();
        assert_eq!(rejection.cause, Cause::InvalidJson);
    }

    #[test]
    fn times_in_seconds_are_refused_in_every_kind_of_message() {
        let fields = r#""userId":"u","connId":"c""#;
        for kind in Kind::ALL {
            for (timestamp, taken) in [(1_698_000_000, false), (MS_MIN - 1, false), (MS_MIN, true)]
            {
                let read = parse(kind, &format!(r#"{{{fields},"timestamp":{timestamp}}}"#));
                assert_eq!(read.is_ok(), taken, "{kind:?} at {timestamp}");
                if let Err(rejection) = read {
                    assert_eq!(rejection.cause, Cause::InvalidField);
                    assert!(rejection.error.contains("`timestamp`"), "{rejection:?}");
                    assert!(rejection.error.contains("seconds"), "{rejection:?}");
                }
            }
        }
        let body = format!(r#"{{{fields},"timestamp":1698000000000,"lastSeen":1698000000}}"#);
        let rejection = parse(Kind::Offline, &body).unwrap_err();
        assert!(rejection.error.contains("`lastSeen`"), "{rejection:?}");
        assert!(rejection.error.contains("seconds"), "{rejection:?}");
    }

    #[test]
    fn what_could_not_be_published_is_too_large() {
        let body = |bytes: usize| {
            let head =
                r#"{"userId":"u","connId":"c","timestamp":1698000000000,"metadata":{"device":""#;
            format!("{head}{}\"}}}}", "x".repeat(bytes - head.len() - 3))
        };
        for (bytes_max, fits) in [(16_000, 15_488), (2_000, 1_488)] {
            let parse =
                |bytes: usize| Message::parse(Kind::Connect, &Bytes::from(body(bytes)), bytes_max);
            assert!(parse(fits).is_ok());
            assert_eq!(parse(fits + 1).unwrap_err().cause, Cause::TooLarge);
            let farewell = Bytes::from(body(fits + 1));
            assert!(Message::parse(Kind::Disconnect, &farewell, bytes_max).is_ok());
        }
    }

    #[test]
    fn reasons_are_mapped_and_unknown_ones_marked() {
        for (reason, expected, known) in [
            ("\"client_disconnect\"", Reason::Disconnect, true),
            ("\"server_shutdown\"", Reason::Disconnect, true),
            ("\"timeout\"", Reason::Timeout, true),
            ("\"logout\"", Reason::Logout, true),
            ("\"log\\u006fut\"", Reason::Logout, true),
            ("7", Reason::Disconnect, false),
            ("\"boredom\"", Reason::Disconnect, false),
        ] {
            let body = format!(
                r#"{{"userId":"u","connId":"c","timestamp":1698000000000,"reason":{reason}}}"#
            );
            let message = parse(Kind::Disconnect, &body).unwrap();
            let Payload::Disconnect { reason, .. } = message.payload() else {
                panic!("not a disconnect")
            };
            assert_eq!(
                reason,
                StatedReason {
                    reason: expected,
                    known
                }
            );
        }
    }

    #[test]
    fn an_application_states_what_its_subject_says() {
        assert!(parse(Kind::Online, r#"{"userId":"u","timestamp":1698000000000}"#).is_ok());
        let escaped = r#"{"type":"user_onlin\u0065","userId":"u","timestamp":1698000000000}"#;
        assert!(parse(Kind::Online, escaped).is_ok());
        let body = r#"{"type":"user_offline","userId":"u","timestamp":1698000000000}"#;
        assert_eq!(
            parse(Kind::Online, body).unwrap_err().cause,
            Cause::InvalidField
        );
        let message = parse(Kind::Offline, body).unwrap();
        assert!(matches!(
            message.payload(),
            Payload::Offline {
                last_seen: 1_698_000_000_000,
                ..
            }
        ));
    }
}
