//! What comes of a call.

use std::collections::BTreeSet;

use crate::log;

/// What comes of a call about an [`Event`](super::Event).
///
/// ```
/// use presence_plugin::testing::{Host, Read};
/// use presence_plugin::{directory, explain, now, reconsider_at};
///
/// let host = Host::new().now(1_000);
/// let outcome = host.online("ada").call(|event| {
///     if now() < 5_000 {
///         explain("it is early");
///         reconsider_at(5_000);
///     }
///     directory::blocked_by(event.user()).len()
/// });
/// assert_eq!(outcome.answer, 0);
/// assert_eq!(outcome.explained, ["it is early"]);
/// assert_eq!(outcome.reconsider_at, Some(5_000));
/// assert!(outcome.reads.contains(&Read::Now));
/// assert!(outcome.reads.contains(&Read::BlockedBy("ada".to_owned())));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome<T> {
    /// What was answered.
    pub answer: T,
    /// The reasons that were given with [`explain`](crate::explain).
    pub explained: Vec<String>,
    /// What was logged, unless the test has set a logger of its own.
    pub logged: Vec<(log::Level, String)>,
    /// When the host is to decide again, if it was asked to, in milliseconds since
    /// the Unix epoch. The earliest, if it was asked several times.
    pub reconsider_at: Option<u64>,
    /// What was read. While none of it changes, the host may reuse the answer of a
    /// filter or a redactor; so a rule should read no more than it must.
    pub reads: BTreeSet<Read>,
}

/// Something that a rule can read, and the host remembers. That an event says
/// when the user was last seen, or why they went, is not among it: the event
/// that a decision is kept for says neither.
///
/// ```
/// use presence_plugin::testing::{Host, Read};
///
/// let outcome = Host::new().online("ada").call(|event| event.text("device"));
/// assert_eq!(outcome.reads.into_iter().collect::<Vec<_>>(), [Read::Metadata("device".to_owned())]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Read {
    /// The event's timestamp.
    Timestamp,
    /// The metadata value under this key.
    Metadata(String),
    /// All metadata.
    AllMetadata,
    /// The time.
    Now,
    /// The contacts of this user.
    Contacts(String),
    /// Those who have this contact.
    WithContact(String),
    /// The members of this group.
    Members(String),
    /// Those who share a group with this user.
    CoMembers(String),
    /// Those whom this user has blocked.
    BlockedBy(String),
    /// Those who have blocked this user.
    Blockers(String),
    /// Whom the directory knows.
    Everyone,
    /// The groups of this user.
    Groups(String),
    /// A setting of this user.
    Settings(String),
    /// Those who have a setting: its key, and its value as JSON text.
    WithSetting(String, String),
}

/// What a redactor shows to a part of the audience.
///
/// ```
/// use presence_plugin::testing::Rendition;
///
/// let rendition = Rendition {
///     viewers: vec!["ben".to_owned()],
///     keys: vec!["device".to_owned()],
///     last_seen: false,
/// };
/// assert_eq!(rendition.viewers, ["ben"]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendition {
    /// Who gets it.
    pub viewers: Vec<String>,
    /// The metadata keys these viewers get.
    pub keys: Vec<String>,
    /// Whether these viewers get to know when the user was last seen.
    pub last_seen: bool,
}
