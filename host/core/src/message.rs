//! What comes in: messages, parsed at the edge into types that can't be wrong.

use std::borrow::Cow;

use bytes::Bytes;
use bytestring::ByteString;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::event::Reason;

mod diagnosis;

pub use diagnosis::{Cause, Rejection};

/// The longest `userId` and `connId`, in bytes.
pub const ID_BYTES_MAX: usize = 256;

/// Whether a text can be an id.
pub fn is_id(text: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&text.len())
}

/// How much longer than a message what is published of it may be: the fields that
/// the host adds. What a message holds is never longer when it is written again.
const GROWTH_BYTES_MAX: usize = 512;

/// The subjects that are listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `presence.connect`
    Connect,
    /// `presence.disconnect`
    Disconnect,
    /// `presence.heartbeat`
    Heartbeat,
    /// `presence.events.user_online`, from an application.
    Online,
    /// `presence.events.user_offline`, from an application.
    Offline,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Connect,
        Self::Disconnect,
        Self::Heartbeat,
        Self::Online,
        Self::Offline,
    ];

    /// The subject, without a tenant's prefix.
    pub fn subject(self) -> &'static str {
        match self {
            Self::Connect => "presence.connect",
            Self::Disconnect => "presence.disconnect",
            Self::Heartbeat => "presence.heartbeat",
            Self::Online => "presence.events.user_online",
            Self::Offline => "presence.events.user_offline",
        }
    }

    /// The kind that a subject (without a tenant's prefix) carries.
    pub fn of_subject(subject: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.subject() == subject)
    }

    fn has_connection(self) -> bool {
        matches!(self, Self::Connect | Self::Disconnect | Self::Heartbeat)
    }
}

/// A well-formed message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Whom it is about.
    pub user: ByteString,
    /// The sender's time, in milliseconds since the Unix epoch.
    pub timestamp: u64,
    /// What it says.
    pub says: Says,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Says {
    /// A connection was made.
    Connect {
        /// The connection.
        conn: ByteString,
        /// A JSON object.
        metadata: Option<ByteString>,
    },
    /// A connection is alive.
    Heartbeat {
        /// The connection.
        conn: ByteString,
        /// A JSON object.
        metadata: Option<ByteString>,
    },
    /// A connection was closed.
    Disconnect {
        /// The connection.
        conn: ByteString,
        /// Why.
        reason: Why,
    },
    /// An application states that a user is online.
    Online {
        /// A JSON object.
        metadata: Option<ByteString>,
    },
    /// An application states that a user is offline.
    Offline {
        /// When the user was last seen.
        last_seen: u64,
        /// Why.
        reason: Why,
        /// A JSON object.
        metadata: Option<ByteString>,
    },
}

/// A reason as it was understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Why {
    /// The reason.
    pub reason: Reason,
    /// Whether it was one of those known.
    pub known: bool,
}

impl Why {
    fn of(raw: Option<&RawValue>) -> Self {
        let (reason, known) = match raw.map(RawValue::get) {
            None | Some(r#""client_disconnect""# | r#""server_shutdown""# | r#""disconnect""#) => {
                (Reason::Disconnect, true)
            }
            Some(r#""timeout""#) => (Reason::Timeout, true),
            Some(r#""logout""#) => (Reason::Logout, true),
            Some(_) => (Reason::Disconnect, false),
        };
        Self { reason, known }
    }
}

impl Message {
    /// Reads the body of a message. What it keeps of it is shared, not copied.
    /// What is published of it will not be longer than `body_bytes_max`.
    ///
    /// # Errors
    /// What is wrong with the body, for its dead letter.
    pub fn parse(kind: Kind, payload: &Bytes, body_bytes_max: usize) -> Result<Self, Rejection> {
        let text = ByteString::try_from(payload.clone())
            .map_err(|error| Rejection::new(Cause::InvalidJson, format!("not UTF-8: {error}")))?;
        let fields: Fields<'_> = serde_json::from_str(&text)
            .map_err(|error| diagnosis::diagnose(kind, &text, &error))?;
        let message = fields.check(kind, &text)?;
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

impl Message {
    /// Whether what it carries may be published again.
    fn is_published(&self) -> bool {
        match &self.says {
            Says::Connect { metadata, .. }
            | Says::Heartbeat { metadata, .. }
            | Says::Online { metadata } => metadata.is_some(),
            Says::Offline { .. } => true,
            Says::Disconnect { .. } => false,
        }
    }
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(rename = "userId", borrow)]
    user: Text<'a>,
    #[serde(rename = "connId", borrow, default, deserialize_with = "present")]
    conn: Option<&'a RawValue>,
    timestamp: u64,
    #[serde(borrow, default, deserialize_with = "present")]
    metadata: Option<&'a RawValue>,
    #[serde(rename = "type", borrow, default, deserialize_with = "present")]
    kind: Option<&'a RawValue>,
    #[serde(rename = "lastSeen", borrow, default, deserialize_with = "present")]
    last_seen: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    reason: Option<&'a RawValue>,
}

/// A string, borrowed from the message where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A field that is there, `null` or not.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(input: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(input).map(Some)
}

impl<'a> Fields<'a> {
    fn check(self, kind: Kind, text: &ByteString) -> Result<Message, Rejection> {
        if !kind.has_connection() {
            self.check_type(kind)?;
        }
        let user = id("userId", self.user.0, text)?;
        if self.timestamp == 0 {
            return Err(Rejection::field(
                "timestamp",
                "must be a positive integer of milliseconds",
            ));
        }
        let metadata = self.metadata.map(|raw| object(raw, text)).transpose()?;
        let conn = if kind.has_connection() {
            let raw = self.conn.ok_or_else(|| Rejection::missing("connId"))?;
            let Text(conn) = serde_json::from_str(raw.get())
                .map_err(|_| Rejection::field("connId", "must be a string"))?;
            id("connId", conn, text)?
        } else {
            ByteString::new()
        };
        let reason = Why::of(self.reason);
        let says = match kind {
            Kind::Connect => Says::Connect { conn, metadata },
            Kind::Heartbeat => Says::Heartbeat { conn, metadata },
            Kind::Disconnect => Says::Disconnect { conn, reason },
            Kind::Online => Says::Online { metadata },
            Kind::Offline => {
                let last_seen = self.last_seen.map(last_seen).transpose()?;
                let last_seen = last_seen.unwrap_or(self.timestamp);
                Says::Offline {
                    last_seen,
                    reason,
                    metadata,
                }
            }
        };
        Ok(Message {
            user,
            timestamp: self.timestamp,
            says,
        })
    }

    fn check_type(&self, kind: Kind) -> Result<(), Rejection> {
        let expected = if kind == Kind::Online {
            "\"user_online\""
        } else {
            "\"user_offline\""
        };
        match self.kind {
            Some(kind) if kind.get() != expected => Err(Rejection::field(
                "type",
                &format!("must be {expected} on this subject"),
            )),
            _ => Ok(()),
        }
    }
}

fn id(field: &str, id: Cow<'_, str>, text: &ByteString) -> Result<ByteString, Rejection> {
    if id.is_empty() {
        return Err(Rejection::field(field, "must not be empty"));
    }
    if id.len() > ID_BYTES_MAX {
        return Err(Rejection::field(field, "must be at most 256 bytes long"));
    }
    Ok(match id {
        Cow::Borrowed(id) => text.slice_ref(id),
        Cow::Owned(id) => id.into(),
    })
}

fn object(raw: &RawValue, text: &ByteString) -> Result<ByteString, Rejection> {
    if raw.get().starts_with('{') {
        Ok(text.slice_ref(raw.get()))
    } else {
        Err(Rejection::field("metadata", "must be an object"))
    }
}

fn last_seen(raw: &RawValue) -> Result<u64, Rejection> {
    let number = serde_json::from_str::<u64>(raw.get())
        .ok()
        .filter(|number| *number > 0);
    number.ok_or_else(|| Rejection::field("lastSeen", "must be a positive integer of milliseconds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: Kind, body: &str) -> Result<Message, Rejection> {
        Message::parse(kind, &Bytes::copy_from_slice(body.as_bytes()), 1 << 20)
    }

    #[test]
    fn a_connect_is_read_without_copying() {
        let body = r#"{"userId":"u","connId":"c","timestamp":5,"metadata":{"device":"web"},"x":1}"#;
        let message = parse(Kind::Connect, body).unwrap();
        assert_eq!(message.user, "u");
        let Says::Connect { conn, metadata } = message.says else {
            panic!("not a connect")
        };
        assert_eq!(conn, "c");
        assert_eq!(metadata.unwrap(), r#"{"device":"web"}"#);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = format!(
            r#"{{"userId":"{}","connId":"c","timestamp":1}}"#,
            "x".repeat(257)
        );
        for (body, cause, word) in [
            ("", Cause::InvalidJson, "JSON"),
            ("{", Cause::InvalidJson, "JSON"),
            ("[1]", Cause::NotAnObject, "array"),
            ("null", Cause::NotAnObject, "null"),
            (
                r#"{"connId":"c","timestamp":1}"#,
                Cause::MissingField,
                "userId",
            ),
            (
                r#"{"userId":"u","timestamp":1}"#,
                Cause::MissingField,
                "connId",
            ),
            (
                r#"{"userId":"u","connId":"c"}"#,
                Cause::MissingField,
                "timestamp",
            ),
            (
                r#"{"userId":"","connId":"c","timestamp":1}"#,
                Cause::InvalidField,
                "userId",
            ),
            (
                r#"{"userId":7,"connId":"c","timestamp":1}"#,
                Cause::InvalidField,
                "userId",
            ),
            (
                r#"{"userId":"u","connId":null,"timestamp":1}"#,
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
                r#"{"userId":"u","connId":"c","timestamp":1,"metadata":null}"#,
                Cause::InvalidField,
                "metadata",
            ),
            (
                r#"{"userId":"u","userId":"v","connId":"c","timestamp":1}"#,
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
    fn what_could_not_be_published_is_too_large() {
        let body = |bytes: usize| {
            let head = r#"{"userId":"u","connId":"c","timestamp":1,"metadata":{"device":""#;
            format!("{head}{}\"}}}}", "x".repeat(bytes - head.len() - 3))
        };
        for (bytes_max, fits) in [(65_536, 65_024), (2_000, 1_488)] {
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
            ("\"boredom\"", Reason::Disconnect, false),
        ] {
            let body = format!(r#"{{"userId":"u","connId":"c","timestamp":1,"reason":{reason}}}"#);
            let message = parse(Kind::Disconnect, &body).unwrap();
            let Says::Disconnect { reason, .. } = message.says else {
                panic!("not a disconnect")
            };
            assert_eq!(
                reason,
                Why {
                    reason: expected,
                    known
                }
            );
        }
    }

    #[test]
    fn an_application_states_what_its_subject_says() {
        assert!(parse(Kind::Online, r#"{"userId":"u","timestamp":1}"#).is_ok());
        let body = r#"{"type":"user_offline","userId":"u","timestamp":1}"#;
        assert_eq!(
            parse(Kind::Online, body).unwrap_err().cause,
            Cause::InvalidField
        );
        let message = parse(Kind::Offline, body).unwrap();
        assert!(matches!(message.says, Says::Offline { last_seen: 1, .. }));
    }
}
