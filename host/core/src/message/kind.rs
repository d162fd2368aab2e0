//! The kinds of input messages, and their subjects.

use crate::json;

/// The subjects that the host subscribes to.
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

    /// The kind of the messages on a subject (without a tenant's prefix).
    pub fn of_subject(subject: &str) -> Option<Self> {
        // Every message passes here: this compares lengths first.
        Some(match subject {
            "presence.connect" => Self::Connect,
            "presence.disconnect" => Self::Disconnect,
            "presence.heartbeat" => Self::Heartbeat,
            "presence.events.user_online" => Self::Online,
            "presence.events.user_offline" => Self::Offline,
            _ => return None,
        })
    }

    /// The `type` of an application's event.
    pub(super) fn event_type(self) -> Option<&'static str> {
        match self {
            Self::Online => Some("user_online"),
            Self::Offline => Some("user_offline"),
            Self::Connect | Self::Disconnect | Self::Heartbeat => None,
        }
    }

    /// The `type` that a message of this kind must have. `None` if `given`, as JSON text, is right
    /// or absent, or if the kind has no type.
    pub(super) fn other_type(self, given: Option<&str>) -> Option<&'static str> {
        let (given, expected) = given.zip(self.event_type())?;
        (json::text(given).as_deref() != Some(expected)).then_some(expected)
    }

    pub(super) fn has_connection(self) -> bool {
        matches!(self, Self::Connect | Self::Disconnect | Self::Heartbeat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_found_by_its_subject() {
        for kind in Kind::ALL {
            assert_eq!(Kind::of_subject(kind.subject()), Some(kind));
        }
        assert_eq!(Kind::of_subject("presence.events.user_updated"), None);
    }
}
