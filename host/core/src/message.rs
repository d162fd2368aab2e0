//! What comes in: messages, parsed at the edge into types that can't be wrong.

use bytes::Bytes;
use bytestring::ByteString;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::event::Reason;
use crate::json;
use crate::metadata::{self, CheckedMetadata};

mod careful;
mod diagnosis;
mod fields;
mod kind;

pub use diagnosis::{Cause, Rejection};
pub use kind::Kind;

/// The first millisecond of 2001. A time before it is no time in milliseconds that
/// anybody sends: as a rule it is one in seconds.
const MS_MIN: u64 = 978_307_200_000;

/// What a message must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest body that may be published of it, in bytes.
    pub body_bytes_max: usize,
    /// How much metadata it may have.
    pub metadata: metadata::Limits,
}

/// So many bytes may be published, and as much metadata be sent as by default.
impl From<usize> for Limits {
    fn from(body_bytes_max: usize) -> Self {
        Self {
            body_bytes_max,
            metadata: metadata::Limits::default(),
        }
    }
}

/// The longest `userId` and `connId`, in bytes.
pub const ID_BYTES_MAX: usize = 256;

/// Whether a text can be an id.
pub fn is_id(text: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&text.len())
}

/// How much longer than a message what is published of it may be: the fields that
/// the host adds. What a message holds is never longer when it is written again.
const GROWTH_BYTES_MAX: usize = 512;

/// A well-formed message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Whom it is about.
    pub user: ByteString,
    /// The sender's time, in milliseconds since the Unix epoch.
    pub timestamp: u64,
    /// What it says.
    pub payload: Payload,
    /// The body that it was read from, for its dead letter.
    pub raw: Bytes,
    /// Where it stands in the stream that it comes from; none if it comes from none, or comes in
    /// the stream's order.
    pub stored: Option<StreamPlace>,
    /// How much later it may have arrived than others that were sent when it was, in milliseconds: as
    /// one that a node of a fleet held while it was stopped.
    pub delayed_ms: u64,
}

/// A place in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamPlace {
    /// Which stream: a later one is greater. One whose numbers begin anew is another.
    pub stream: u64,
    /// The number of the message in it.
    pub sequence: u64,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A connection was made.
    Connect {
        /// The connection.
        conn: ByteString,
        /// What is known of it.
        metadata: Option<CheckedMetadata>,
    },
    /// A connection is alive.
    Heartbeat {
        /// The connection.
        conn: ByteString,
        /// What is known of it.
        metadata: Option<CheckedMetadata>,
    },
    /// A connection was closed.
    Disconnect {
        /// The connection.
        conn: ByteString,
        /// Why.
        reason: StatedReason,
    },
    /// An application states that a user is online.
    Online {
        /// What is known of it.
        metadata: Option<CheckedMetadata>,
    },
    /// An application states that a user is offline.
    Offline {
        /// When the user was last seen.
        last_seen: u64,
        /// Why.
        reason: StatedReason,
        /// What is known of it.
        metadata: Option<CheckedMetadata>,
    },
}

impl Payload {
    /// What kind of message says so.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Connect { .. } => Kind::Connect,
            Self::Heartbeat { .. } => Kind::Heartbeat,
            Self::Disconnect { .. } => Kind::Disconnect,
            Self::Online { .. } => Kind::Online,
            Self::Offline { .. } => Kind::Offline,
        }
    }
}

/// A reason as it was understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatedReason {
    /// The reason.
    pub reason: Reason,
    /// Whether it was one of those known.
    pub known: bool,
}

impl StatedReason {
    fn of(raw: Option<&RawValue>) -> Self {
        let text = raw.map(|raw| json::text(raw.get()));
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
    /// Reads the body of a message. What it keeps of it is shared, not copied.
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
        let text = ByteString::try_from(payload.clone())
            .map_err(|error| Rejection::new(Cause::InvalidJson, format!("not UTF-8: {error}")))?;
        let message = match fields::read(kind, &text, metadata) {
            Some(message) => message,
            None => careful::read(kind, &text, metadata)?,
        };
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
}

/// What a message's body holds, checked.
struct Parts {
    user: ByteString,
    /// Empty where the message is of none.
    conn: ByteString,
    timestamp: u64,
    metadata: Option<CheckedMetadata>,
    last_seen: Option<u64>,
    reason: StatedReason,
}

impl Parts {
    /// The message whose body this text is.
    #[inline]
    fn message(self, kind: Kind, text: &ByteString) -> Message {
        let Self {
            user,
            conn,
            timestamp,
            metadata,
            last_seen,
            reason,
        } = self;
        let payload = match kind {
            Kind::Connect => Payload::Connect { conn, metadata },
            Kind::Heartbeat => Payload::Heartbeat { conn, metadata },
            Kind::Disconnect => Payload::Disconnect { conn, reason },
            Kind::Online => Payload::Online { metadata },
            Kind::Offline => Payload::Offline {
                last_seen: last_seen.unwrap_or(timestamp),
                reason,
                metadata,
            },
        };
        Message {
            user,
            timestamp,
            payload,
            raw: text.as_bytes().clone(),
            stored: None,
            delayed_ms: 0,
        }
    }
}

impl Message {
    /// Whether what it carries may be published again.
    fn is_published(&self) -> bool {
        match &self.payload {
            Payload::Connect { metadata, .. }
            | Payload::Heartbeat { metadata, .. }
            | Payload::Online { metadata } => metadata.is_some(),
            Payload::Offline { .. } => true,
            Payload::Disconnect { .. } => false,
        }
    }
}

/// An event of a user on which a plugin has failed: a request to decide about it again. It
/// states nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redrive {
    /// The user.
    pub user: ByteString,
    /// The event's time, in milliseconds since the Unix epoch.
    pub timestamp: u64,
}

impl Redrive {
    /// Reads the body of the event.
    ///
    /// # Errors
    /// If it isn't one.
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
        assert_eq!(message.user, "u");
        let Payload::Connect { conn, metadata } = message.payload else {
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
            let Payload::Disconnect { reason, .. } = message.payload else {
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
            message.payload,
            Payload::Offline {
                last_seen: 1_698_000_000_000,
                ..
            }
        ));
    }
}
