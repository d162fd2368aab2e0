//! The event a call is about.

use crate::bindings::events;

/// ```
/// use presence_plugin::{Event, Kind};
///
/// fn is_online(event: &Event) -> bool {
///     event.kind() == Kind::Online
/// }
/// # let host = presence_plugin::testing::Host::new();
/// # assert!(host.online("ada").call(is_online).answer);
/// ```
pub use crate::bindings::filter::presence::plugin::events::Kind;

/// ```
/// use presence_plugin::{Event, Reason};
///
/// fn may_come_back(event: &Event) -> bool {
///     event.reason() == Some(Reason::Timeout)
/// }
/// # let host = presence_plugin::testing::Host::new();
/// # assert!(host.offline("ada", 0, Reason::Timeout).call(may_come_back).answer);
/// # assert!(!host.online("ada").call(may_come_back).answer);
/// ```
pub use crate::bindings::filter::presence::plugin::events::OfflineReason as Reason;

/// ```
/// use presence_plugin::Value;
///
/// fn is_true(value: &Value) -> bool {
///     matches!(value, Value::Json(json) if json == "true")
/// }
///
/// assert!(is_true(&Value::Json("true".to_owned())));
/// // A string is another value.
/// assert!(!is_true(&Value::Text("true".to_owned())));
/// ```
pub use crate::bindings::filter::presence::plugin::events::Value;

/// The event a call is about.
///
/// Its kind and user came with the call. The rest is asked of the host when it
/// is read, and what was not read can't make the host decide again: read only
/// what the rule needs.
///
/// ```
/// use presence_plugin::{Audience, Event};
///
/// /// Only who has said so is shown.
/// fn filter(event: &Event, audience: Audience) -> Audience {
///     match event.text("status").as_deref() {
///         Some("available") => audience,
///         _ => Audience::nobody(),
///     }
/// }
/// # let host = presence_plugin::testing::Host::new();
/// # let ada = host.online("ada").metadata("status", "available");
/// # assert_eq!(ada.call(|event| filter(event, Audience::of(["ben"])).len()).answer, 1);
/// # assert_eq!(host.online("ada").call(|event| filter(event, Audience::of(["ben"])).len()).answer, 0);
/// ```
#[derive(Debug)]
pub struct Event(events::Event);

impl Event {
    /// What happened to the user.
    ///
    /// ```
    /// use presence_plugin::{Kind, testing::Host};
    ///
    /// let host = Host::new();
    /// let outcome = host.online("ada").call(|event| event.kind());
    /// assert_eq!(outcome.answer, Kind::Online);
    /// ```
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The id of the user whose presence changed.
    ///
    /// ```
    /// use presence_plugin::testing::Host;
    ///
    /// let host = Host::new();
    /// let outcome = host.online("ada").call(|event| event.user().to_owned());
    /// assert_eq!(outcome.answer, "ada");
    /// ```
    #[must_use]
    pub fn user(&self) -> &str {
        &self.0.user
    }

    /// When it happened, in milliseconds since the Unix epoch.
    ///
    /// ```
    /// use presence_plugin::testing::Host;
    ///
    /// let host = Host::new();
    /// let outcome = host.online("ada").timestamp(1_000).call(|event| event.timestamp());
    /// assert_eq!(outcome.answer, 1_000);
    /// ```
    #[must_use]
    pub fn timestamp(&self) -> u64 {
        events::timestamp()
    }

    /// When the user was last seen, in milliseconds since the Unix epoch. None
    /// while the user is online.
    ///
    /// ```
    /// use presence_plugin::{Reason, testing::Host};
    ///
    /// let host = Host::new();
    /// let outcome = host.offline("ada", 1_000, Reason::Logout).call(|event| event.last_seen());
    /// assert_eq!(outcome.answer, Some(1_000));
    /// ```
    #[must_use]
    pub fn last_seen(&self) -> Option<u64> {
        events::last_seen()
    }

    /// Why the user went offline. None while the user is online.
    ///
    /// ```
    /// use presence_plugin::{Reason, testing::Host};
    ///
    /// let host = Host::new();
    /// let outcome = host.offline("ada", 1_000, Reason::Logout).call(|event| event.reason());
    /// assert_eq!(outcome.answer, Some(Reason::Logout));
    /// ```
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        events::reason()
    }

    /// The metadata value under a key.
    ///
    /// ```
    /// use presence_plugin::{Value, testing::Host};
    ///
    /// let host = Host::new();
    /// let outcome = host.online("ada").metadata("tabs", 2).call(|event| event.get("tabs"));
    /// assert_eq!(outcome.answer, Some(Value::Json("2".to_owned())));
    /// ```
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Value> {
        events::get(key)
    }

    /// The metadata value under a key, if it is a string.
    ///
    /// ```
    /// use presence_plugin::testing::Host;
    ///
    /// let host = Host::new();
    /// let outcome = host.online("ada").metadata("device", "web").call(|event| event.text("device"));
    /// assert_eq!(outcome.answer, Some("web".to_owned()));
    /// ```
    #[must_use]
    pub fn text(&self, key: &str) -> Option<String> {
        match events::get(key) {
            Some(Value::Text(text)) => Some(text),
            Some(Value::Json(_)) | None => None,
        }
    }

    /// All metadata, in the order in which it arrived. Prefer [`get`](Self::get):
    /// after this, a change of any key makes the host decide again.
    ///
    /// ```
    /// use presence_plugin::testing::Host;
    ///
    /// let host = Host::new();
    /// let outcome = host.online("ada").metadata("a", 1).metadata("b", 2).call(|event| event.entries().len());
    /// assert_eq!(outcome.answer, 2);
    /// ```
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
