//! The users whose records have changed since they were last taken.

use std::collections::BTreeMap;

use crate::names::{Id, Name};

/// Users whose records have changed since they were last taken.
#[derive(Debug, Default)]
pub(crate) struct ChangedUsers {
    /// Whether anybody takes records.
    wanted: bool,
    users: BTreeMap<Id, Name>,
}

impl ChangedUsers {
    /// Sets whether changes are noted from now on. Those noted so far are dropped.
    pub(crate) fn keep(&mut self, wanted: bool) {
        *self = Self {
            wanted,
            users: BTreeMap::new(),
        };
    }

    /// Notes that a user's record has changed.
    pub(crate) fn note(&mut self, user: Id, name: &Name) {
        if self.wanted {
            self.users.entry(user).or_insert_with(|| name.clone());
        }
    }

    /// Whether no change is noted.
    pub(crate) fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Takes all noted users, in a stable order.
    pub(crate) fn take(&mut self) -> BTreeMap<Id, Name> {
        std::mem::take(&mut self.users)
    }

    /// The noted users, as numbers.
    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> {
        self.users.keys().map(|user| user.0)
    }
}
