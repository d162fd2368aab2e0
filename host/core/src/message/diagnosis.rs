//! Why a message was refused. This is only computed for a refused message.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::value::RawValue;

use super::kind::Kind;
use crate::quota::Quota;

/// The reasons that a dead letter can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The payload isn't JSON.
    InvalidJson,
    /// It is JSON, but not an object.
    NotAnObject,
    /// A required field is missing.
    MissingField,
    /// A field has an invalid value.
    InvalidField,
    /// What would be published of the message exceeds the broker's `max_payload`.
    TooLarge,
    /// A component failed on the event.
    PluginFailed,
    /// A quota would have been exceeded.
    QuotaExceeded,
    /// The message came on the subject of another shard of the fleet than its user's.
    WrongShard,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::InvalidJson,
        Self::NotAnObject,
        Self::MissingField,
        Self::InvalidField,
        Self::TooLarge,
        Self::PluginFailed,
        Self::QuotaExceeded,
        Self::WrongShard,
    ];

    /// The reason as a dead letter spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid-json",
            Self::NotAnObject => "not-an-object",
            Self::MissingField => "missing-field",
            Self::InvalidField => "invalid-field",
            Self::TooLarge => "too-large",
            Self::PluginFailed => "plugin-failed",
            Self::QuotaExceeded => "quota-exceeded",
            Self::WrongShard => "wrong-shard",
        }
    }
}

/// Why a message was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The reason.
    pub cause: Cause,
    /// The exact error, in one line.
    pub error: String,
    /// The exceeded quota, for [`Cause::QuotaExceeded`].
    pub quota: Option<Quota>,
}

impl Rejection {
    /// A rejection without a quota.
    pub fn new(cause: Cause, error: String) -> Self {
        Self {
            cause,
            error,
            quota: None,
        }
    }

    /// A rejection, since a quota would have been exceeded.
    pub fn over(quota: Quota, error: String) -> Self {
        Self {
            quota: Some(quota),
            ..Self::new(Cause::QuotaExceeded, error)
        }
    }

    /// The rejection of a message that exceeds the rate of messages.
    pub fn excess(per_s: u64) -> Self {
        let error = format!(
            "more than {per_s} messages a second arrive ([limits] messages_per_s and \
             messages_burst): this one is refused"
        );
        Self::over(Quota::Messages, error)
    }

    pub(super) fn missing(field: &str) -> Self {
        Self::new(Cause::MissingField, format!("`{field}` is missing"))
    }

    pub(super) fn field(field: &str, must: &str) -> Self {
        Self::new(Cause::InvalidField, format!("`{field}` {must}"))
    }
}

/// What is wrong with a message that couldn't be parsed into its fields.
pub(super) fn diagnose(kind: Kind, text: &str, error: &serde_json::Error) -> Rejection {
    // The fields' values are parsed one by one, so that an error in one doesn't hide an error in
    // another.
    let whole = match serde_json::from_str::<&RawValue>(text) {
        Ok(whole) => whole.get(),
        Err(error) => {
            return Rejection::new(Cause::InvalidJson, format!("not JSON: {error}"));
        }
    };
    let found = match whole.bytes().next() {
        Some(b'{') => None,
        Some(b'n') => Some("null"),
        Some(b't' | b'f') => Some("a boolean"),
        Some(b'"') => Some("a string"),
        Some(b'[') => Some("an array"),
        _ => Some("a number"),
    };
    if let Some(found) = found {
        let error = format!("the message must be a JSON object, not {found}");
        return Rejection::new(Cause::NotAnObject, error);
    }
    let fields = match serde_json::from_str::<HashMap<Cow<'_, str>, &RawValue>>(whole) {
        Ok(fields) => fields,
        Err(error) => {
            return Rejection::new(Cause::InvalidJson, format!("not JSON: {error}"));
        }
    };
    for (field, needed) in [
        ("userId", true),
        ("connId", kind.has_connection()),
        ("timestamp", true),
    ] {
        match fields.get(field) {
            None if needed => return Rejection::missing(field),
            Some(raw)
                if field == "userId" && serde_json::from_str::<String>(raw.get()).is_err() =>
            {
                return Rejection::field(field, super::careful::MUST_BE_TEXT);
            }
            _ => {}
        }
    }
    Rejection::new(Cause::InvalidJson, format!("not well-formed: {error}"))
}
