//! What a directory that is asked question by question has been answered.

use std::sync::Arc;

use roaring::RoaringBitmap;

use super::{Question, UserSettings, setting};
use crate::audience::Audience;

/// What the directory's source says in answer to a question, shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Users: to every question but those for groups and settings.
    Users(Arc<RoaringBitmap>),
    /// The names of groups, in their alphabetical order, each once.
    Groups(Arc<Vec<Arc<str>>>),
    /// A user's settings.
    Settings(Arc<UserSettings>),
}

impl Answer {
    /// These users.
    pub fn users(users: RoaringBitmap) -> Self {
        Self::Users(Arc::new(users))
    }

    /// These groups, in any order.
    pub fn groups(mut groups: Vec<Arc<str>>) -> Self {
        groups.sort_unstable();
        groups.dedup();
        Self::Groups(Arc::new(groups))
    }

    /// These settings.
    pub fn settings(mut settings: UserSettings) -> Self {
        setting::canonicalise(&mut settings, None);
        Self::Settings(Arc::new(settings))
    }

    /// The answer to a certain question: nobody is among those whom they know.
    pub(super) fn to(self, question: &Question) -> Self {
        match (self, question) {
            (
                Self::Users(mut users),
                Question::Contacts(user) | Question::WithContact(user) | Question::CoMembers(user),
            ) if users.contains(user.0) => {
                Arc::make_mut(&mut users).remove(user.0);
                Self::Users(users)
            }
            (answer, _) => answer,
        }
    }

    /// How many entries it counts as: what it names, and at least one.
    pub fn entries(&self) -> u64 {
        let named = match self {
            Self::Users(users) => users.len(),
            Self::Groups(groups) => groups.len() as u64,
            Self::Settings(settings) => settings.len() as u64,
        };
        named.max(1)
    }

    pub(super) fn audience(&self) -> Audience {
        match self {
            Self::Users(users) => Arc::clone(users).into(),
            Self::Groups(_) | Self::Settings(_) => Audience::nobody(),
        }
    }
}
