//! Why a message was refused. Worked out only once it has been.

use super::Kind;

/// The closed set of reasons in a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The payload isn't JSON.
    InvalidJson,
    /// It is JSON, but not an object.
    NotAnObject,
    /// A field that must be there isn't.
    MissingField,
    /// A field has a value that it can't have.
    InvalidField,
    /// What would be published of it passes the broker's `max_payload`.
    TooLarge,
    /// A component failed on the event.
    PluginFailed,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::InvalidJson,
        Self::NotAnObject,
        Self::MissingField,
        Self::InvalidField,
        Self::TooLarge,
        Self::PluginFailed,
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
        }
    }
}

/// Why something became a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The reason.
    pub cause: Cause,
    /// What exactly, in one line.
    pub error: String,
}

impl Rejection {
    /// A rejection.
    pub fn new(cause: Cause, error: String) -> Self {
        Self { cause, error }
    }

    pub(super) fn missing(field: &str) -> Self {
        Self::new(Cause::MissingField, format!("`{field}` is missing"))
    }

    pub(super) fn field(field: &str, must: &str) -> Self {
        Self::new(Cause::InvalidField, format!("`{field}` {must}"))
    }
}

/// What is wrong with a message that didn't parse into its fields.
pub(super) fn diagnose(kind: Kind, text: &str, error: &serde_json::Error) -> Rejection {
    let value = match serde_json::from_str::<serde_json::Value>(text) {
        Ok(value) => value,
        Err(error) => {
            return Rejection::new(Cause::InvalidJson, format!("not JSON: {error}"));
        }
    };
    let Some(fields) = value.as_object() else {
        let found = match value {
            serde_json::Value::Null => "null",
            serde_json::Value::Bool(_) => "a boolean",
            serde_json::Value::Number(_) => "a number",
            serde_json::Value::String(_) => "a string",
            _ => "an array",
        };
        let error = format!("the message must be a JSON object, not {found}");
        return Rejection::new(Cause::NotAnObject, error);
    };
    for (field, needed) in [("userId", true), ("connId", kind.has_connection())] {
        match fields.get(field) {
            None if needed => return Rejection::missing(field),
            Some(value) if needed && !value.is_string() => {
                return Rejection::field(field, "must be a string");
            }
            _ => {}
        }
    }
    match fields.get("timestamp") {
        None => Rejection::missing("timestamp"),
        Some(value) if !value.is_u64() => {
            Rejection::field("timestamp", "must be a positive integer of milliseconds")
        }
        Some(_) => Rejection::new(Cause::InvalidJson, format!("not well-formed: {error}")),
    }
}
