//! What there is to ask about.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Event;
use super::event::About;
use crate::Reason;
use crate::bindings::filter::presence::plugin::events::Kind;

/// A set of users.
pub(crate) type Users = BTreeSet<String>;

/// A host: a directory, and a clock that stands still. Begin with
/// [`new`](Self::new), say what the directory has, and then have something happen.
#[derive(Clone, Debug, Default)]
pub struct Host {
    pub(crate) now: u64,
    contacts: BTreeMap<String, Users>,
    groups: BTreeMap<String, Users>,
    blocks: BTreeMap<String, Users>,
    /// Each value as JSON text in its one form.
    settings: BTreeMap<String, BTreeMap<String, String>>,
}

impl Host {
    /// A host whose directory knows nobody. It is the beginning of 1970.
    ///
    /// ```
    /// use presence_plugin::{directory, now, testing::Host};
    ///
    /// let outcome = Host::new().online("ada").call(|event| {
    ///     (now(), directory::everyone().len(), event.user().to_owned())
    /// });
    /// assert_eq!(outcome.answer, (0, 0, "ada".to_owned()));
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What time it is, in milliseconds since the Unix epoch.
    ///
    /// ```
    /// use presence_plugin::{now, testing::Host};
    ///
    /// let host = Host::new().now(1_698_000_000_000);
    /// assert_eq!(host.online("ada").call(|_| now()).answer, 1_698_000_000_000);
    /// ```
    #[must_use]
    pub fn now(mut self, ms: u64) -> Self {
        self.now = ms;
        self
    }

    /// Who a user's contacts are. Nobody is their own contact.
    ///
    /// ```
    /// use presence_plugin::{directory, testing::Host};
    ///
    /// let host = Host::new().contacts("ada", ["ben", "cleo"]);
    /// let outcome = host.online("ada").call(|_| directory::contacts("ada").viewers());
    /// assert_eq!(outcome.answer, ["ben", "cleo"]);
    /// ```
    #[must_use]
    pub fn contacts<U: Into<String>>(
        mut self,
        user: &str,
        contacts: impl IntoIterator<Item = U>,
    ) -> Self {
        let mut contacts = set(contacts);
        contacts.remove(user);
        self.contacts.insert(user.to_owned(), contacts);
        self
    }

    /// Who is in a group.
    ///
    /// ```
    /// use presence_plugin::{directory, testing::Host};
    ///
    /// let host = Host::new().group("team-a", ["ada", "ben"]);
    /// let outcome = host.online("ada").call(|_| directory::groups("ben"));
    /// assert_eq!(outcome.answer, ["team-a"]);
    /// ```
    #[must_use]
    pub fn group<U: Into<String>>(
        mut self,
        group: &str,
        members: impl IntoIterator<Item = U>,
    ) -> Self {
        self.groups.insert(group.to_owned(), set(members));
        self
    }

    /// Whom a user has blocked.
    ///
    /// ```
    /// use presence_plugin::{directory, testing::Host};
    ///
    /// let host = Host::new().blocks("ada", ["eve"]);
    /// let outcome = host.online("ada").call(|_| directory::blocked_by("ada").viewers());
    /// assert_eq!(outcome.answer, ["eve"]);
    /// ```
    #[must_use]
    pub fn blocks<U: Into<String>>(
        mut self,
        user: &str,
        blocked: impl IntoIterator<Item = U>,
    ) -> Self {
        self.blocks.insert(user.to_owned(), set(blocked));
        self
    }

    /// A user's setting.
    ///
    /// # Panics
    ///
    /// If the value has no JSON form.
    ///
    /// ```
    /// use presence_plugin::{directory, testing::Host};
    ///
    /// let host = Host::new().setting("ada", "invisible", true);
    /// let outcome = host.online("ada").call(|_| directory::setting("ada", "invisible"));
    /// assert_eq!(outcome.answer, Ok(Some(true)));
    /// ```
    #[must_use]
    pub fn setting(mut self, user: &str, key: &str, value: impl Serialize) -> Self {
        let settings = self.settings.entry(user.to_owned()).or_default();
        settings.insert(key.to_owned(), json(value));
        self
    }

    /// A user comes online, at the host's time and without metadata.
    ///
    /// ```
    /// use presence_plugin::{Kind, testing::Host};
    ///
    /// let outcome = Host::new().online("ada").call(|event| (event.kind(), event.last_seen()));
    /// assert_eq!(outcome.answer, (Kind::Online, None));
    /// ```
    pub fn online(&self, user: &str) -> Event<'_> {
        self.event(user, Kind::Online, None)
    }

    /// A user goes offline, at the host's time and without metadata. The user was
    /// last seen at that time (milliseconds since the Unix epoch).
    ///
    /// ```
    /// use presence_plugin::{Reason, testing::Host};
    ///
    /// let host = Host::new().now(31_000);
    /// let offline = host.offline("ada", 1_000, Reason::Timeout);
    /// let outcome = offline.call(|event| (event.timestamp(), event.last_seen(), event.reason()));
    /// assert_eq!(outcome.answer, (31_000, Some(1_000), Some(Reason::Timeout)));
    /// ```
    pub fn offline(&self, user: &str, last_seen_ms: u64, reason: Reason) -> Event<'_> {
        self.event(user, Kind::Offline, Some((last_seen_ms, reason)))
    }

    fn event(&self, user: &str, kind: Kind, departure: Option<(u64, Reason)>) -> Event<'_> {
        let about = About {
            user: user.to_owned(),
            kind,
            timestamp: self.now,
            departure,
            metadata: Vec::new(),
        };
        Event { host: self, about }
    }
}

/// What the directory answers.
impl Host {
    pub(crate) fn contacts_of(&self, user: &str) -> Users {
        self.contacts.get(user).cloned().unwrap_or_default()
    }

    pub(crate) fn with_contact(&self, user: &str) -> Users {
        let owners = self.contacts.iter();
        let owners = owners.filter(|(_, contacts)| contacts.contains(user));
        owners.map(|(owner, _)| owner.clone()).collect()
    }

    pub(crate) fn members(&self, group: &str) -> Users {
        self.groups.get(group).cloned().unwrap_or_default()
    }

    /// Everyone in the user's groups but the user.
    pub(crate) fn co_members(&self, user: &str) -> Users {
        let groups = self.groups.values();
        let groups = groups.filter(|members| members.contains(user));
        let mut members: Users = groups.flatten().cloned().collect();
        members.remove(user);
        members
    }

    pub(crate) fn blocked_by(&self, user: &str) -> Users {
        self.blocks.get(user).cloned().unwrap_or_default()
    }

    pub(crate) fn blockers(&self, user: &str) -> Users {
        let blockers = self.blocks.iter();
        let blockers = blockers.filter(|(_, blocked)| blocked.contains(user));
        blockers.map(|(blocker, _)| blocker.clone()).collect()
    }

    /// Everyone of whom the directory says something. Being blocked is not that.
    pub(crate) fn everyone(&self) -> Users {
        let owners = self.contacts.keys().chain(self.blocks.keys());
        let owners = owners.chain(self.settings.keys());
        let others = self.contacts.values().chain(self.groups.values()).flatten();
        owners.chain(others).cloned().collect()
    }

    /// A user's groups, in alphabetical order.
    pub(crate) fn groups_of(&self, user: &str) -> Vec<String> {
        let groups = self.groups.iter();
        let groups = groups.filter(|(_, members)| members.contains(user));
        groups.map(|(group, _)| group.clone()).collect()
    }

    pub(crate) fn setting_of(&self, user: &str, key: &str) -> Option<String> {
        self.settings.get(user)?.get(key).cloned()
    }

    /// Everyone with a setting. Its value is JSON text in its one form.
    pub(crate) fn with_setting(&self, key: &str, value: &str) -> Users {
        let users = self.settings.iter();
        let users = users.filter(|(_, own)| own.get(key).is_some_and(|own| own == value));
        users.map(|(user, _)| user.clone()).collect()
    }
}

pub(crate) fn set<U: Into<String>>(users: impl IntoIterator<Item = U>) -> Users {
    users.into_iter().map(Into::into).collect()
}

/// A value as JSON text in its one form: no spaces, and keys in order.
///
/// # Panics
///
/// If it has no JSON form.
pub(crate) fn json(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(mut value) => {
            value.sort_all_objects();
            value.to_string()
        }
        Err(error) => panic!("the value has no JSON form: {error}"),
    }
}
