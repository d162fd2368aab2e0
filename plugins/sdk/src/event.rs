//! The event a call is about.

use crate::bindings::events;

pub use crate::bindings::events::{Kind, OfflineReason as Reason, Value};

/// The event a call is about.
///
/// Its kind and user came with the call. The rest is asked of the host when it
/// is read, and what was not read can't make the host decide again: read only
/// what the rule needs.
#[derive(Debug)]
pub struct Event(events::Event);

impl Event {
    /// What happened to the user.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The id of the user whose presence changed.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.0.user
    }

    /// When it happened, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn timestamp(&self) -> u64 {
        events::timestamp()
    }

    /// When the user was last seen, in milliseconds since the Unix epoch. None
    /// while the user is online.
    #[must_use]
    pub fn last_seen(&self) -> Option<u64> {
        events::last_seen()
    }

    /// Why the user went offline. None while the user is online.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        events::reason()
    }

    /// The metadata value under a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Value> {
        events::get(key)
    }

    /// The metadata value under a key, if it is a string.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<String> {
        match events::get(key) {
            Some(Value::Text(text)) => Some(text),
            Some(Value::Json(_)) | None => None,
        }
    }

    /// All metadata, in the order in which it arrived. Prefer [`get`](Self::get):
    /// after this, a change of any key makes the host decide again.
    #[must_use]
    pub fn entries(&self) -> Vec<(String, Value)> {
        events::entries()
    }

    #[doc(hidden)]
    #[must_use]
    pub fn from_call(event: events::Event) -> Self {
        Self(event)
    }
}
