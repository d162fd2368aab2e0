//! Answers of an on-demand directory, which is asked question by question.

use std::sync::Arc;

use roaring::RoaringBitmap;

use super::{Question, UserSettings, setting};
use crate::audience::Audience;

/// The answer of the directory's source to a question, shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Users: the answer to every question except those about groups and settings.
    Users(Arc<RoaringBitmap>),
    /// The names of groups, in alphabetical order, without duplicates.
    Groups(Arc<Vec<Arc<str>>>),
    /// A user's settings.
    Settings(Arc<UserSettings>),
}

impl Answer {
    /// An answer with these users.
    pub fn users(users: RoaringBitmap) -> Self {
        Self::Users(Arc::new(users))
    }

    /// An answer with these groups, which may be in any order.
    pub fn groups(mut groups: Vec<Arc<str>>) -> Self {
        groups.sort_unstable();
        groups.dedup();
        Self::Groups(Arc::new(groups))
    }

    /// An answer with these settings.
    pub fn settings(mut settings: UserSettings) -> Self {
        setting::canonicalise(&mut settings, None);
        Self::Settings(Arc::new(settings))
    }

    /// The answer, fit for a certain question: users are not their own contacts or co-members.
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

    /// How many entries the answer counts as: what it names, and at least one.
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
