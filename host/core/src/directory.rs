//! The directory: who is whose contact, who is in which group, who has blocked
//! whom, and users' settings.
//!
//! A directory is a value. A change makes a new one that shares the unchanged parts, and lists the
//! questions whose answers differ, so that only verdicts that asked these questions are decided
//! again.

mod answer;
mod change;
mod setting;

pub use answer::Answer;
pub use change::{Changes, Edit};
pub use setting::{Setting, UserSettings};

use std::sync::Arc;

use roaring::RoaringBitmap;

use crate::audience::Audience;
use crate::names::Id;

/// Something that a rule can ask the directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Question {
    /// A user's contacts.
    Contacts(Id),
    /// The users who have the user among their contacts.
    WithContact(Id),
    /// The members of a group.
    Members(Arc<str>),
    /// The users who share a group with the user.
    CoMembers(Id),
    /// The users whom the user has blocked.
    BlockedBy(Id),
    /// The users who have blocked the user.
    Blockers(Id),
    /// Everyone the directory knows.
    Everyone,
    /// The groups a user is in.
    Groups(Id),
    /// A user's settings.
    Settings(Id),
    /// Everyone who has a setting with a certain value.
    WithSetting(Arc<Setting>),
}

impl Question {
    /// The user whom the question is about, if any.
    pub fn user(&self) -> Option<Id> {
        match self {
            Self::Contacts(user)
            | Self::WithContact(user)
            | Self::CoMembers(user)
            | Self::BlockedBy(user)
            | Self::Blockers(user)
            | Self::Groups(user)
            | Self::Settings(user) => Some(*user),
            Self::Members(_) | Self::Everyone | Self::WithSetting(_) => None,
        }
    }
}

/// A persistent map: a changed copy shares the unchanged parts.
type Map<K, V> =
    imbl::GenericHashMap<K, V, foldhash::fast::FixedState, imbl::shared_ptr::DefaultSharedPtr>;

/// The content of a tenant's directory at one moment.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    users: Map<Id, User>,
    groups: Map<Arc<str>, Arc<RoaringBitmap>>,
    with_setting: Map<Arc<Setting>, Arc<RoaringBitmap>>,
    everyone: Arc<RoaringBitmap>,
    /// The number of contacts, group members, blocks and settings. For an on-demand directory, the
    /// number of entries in its answers.
    entries: u64,
    /// For an on-demand directory: the answers that are cached, which are all that it knows.
    answers: Option<Map<Question, Answer>>,
    /// Unreadable entries of the source of which no earlier content is known, as the questions that
    /// they would answer.
    unreadable: Map<Question, ()>,
}

#[derive(Clone, Debug, Default)]
struct User {
    contacts: Option<Arc<RoaringBitmap>>,
    contacts_of: Option<Arc<RoaringBitmap>>,
    blocked: Option<Arc<RoaringBitmap>>,
    blockers: Option<Arc<RoaringBitmap>>,
    groups: Option<Arc<Vec<Arc<str>>>>,
    settings: Option<Arc<UserSettings>>,
}

/// The answer isn't cached yet. It must be fetched, and the rule asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheMiss;

impl Directory {
    /// An empty directory in which nothing is missing.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty on-demand directory, which is asked question by question. A question that hasn't
    /// been [answered](Edit::answer) is not cached.
    pub fn on_demand() -> Self {
        Self {
            answers: Some(Map::default()),
            ..Self::default()
        }
    }

    /// The directory of a source of which nothing is known yet. It answers no question, so that
    /// nobody is notified by it.
    pub fn unavailable() -> Self {
        Self::on_demand()
    }

    /// Whether the directory is asked question by question, or [nothing is known of
    /// it](Self::unavailable).
    pub fn is_on_demand(&self) -> bool {
        self.answers.is_some()
    }

    /// Whether the directory has the answer to a question.
    pub fn has(&self, question: &Question) -> bool {
        match &self.answers {
            Some(answers) => answers.contains_key(question),
            None => !self.is_unreadable(question),
        }
    }

    /// The users who are the answer to a question. It is empty for questions whose answer isn't a
    /// set of users.
    ///
    /// # Errors
    /// [`CacheMiss`] if an on-demand directory hasn't got the answer, or the entry that holds it
    /// [can't be read](Edit::unreadable).
    pub fn audience(&self, question: &Question) -> Result<Audience, CacheMiss> {
        if let Some(answer) = self.answer(question)? {
            return Ok(answer.audience());
        }
        let set = match question {
            Question::Contacts(user) => self.user(*user).and_then(|user| user.contacts.clone()),
            Question::WithContact(user) => {
                self.user(*user).and_then(|user| user.contacts_of.clone())
            }
            Question::BlockedBy(user) => self.user(*user).and_then(|user| user.blocked.clone()),
            Question::Blockers(user) => self.user(*user).and_then(|user| user.blockers.clone()),
            Question::Members(group) => self.groups.get(group).cloned(),
            Question::CoMembers(user) => return Ok(self.co_members(*user)),
            Question::Everyone => Some(Arc::clone(&self.everyone)),
            Question::WithSetting(setting) => self.with_setting.get(setting).cloned(),
            Question::Groups(_) | Question::Settings(_) => None,
        };
        Ok(set.map_or_else(Audience::nobody, Audience::from))
    }

    /// The estimated cost of computing the answer to a question, in units of about one instruction;
    /// 0 if the answer is stored.
    pub fn work(&self, question: &Question) -> u64 {
        match question {
            Question::CoMembers(user) if self.answers.is_none() => {
                let groups = self.members_of_groups(*user);
                groups.map(|members| 64 + members.len() / 16).sum()
            }
            _ => 0,
        }
    }

    /// The names of the user's groups, in alphabetical order.
    ///
    /// # Errors
    /// As [`Self::audience`].
    pub fn groups(&self, user: Id) -> Result<&[Arc<str>], CacheMiss> {
        match self.answer(&Question::Groups(user))? {
            Some(Answer::Groups(groups)) => Ok(groups),
            Some(_) => Ok(&[]),
            None => Ok(self.groups_of(user)),
        }
    }

    /// A user's setting, as canonical JSON text.
    ///
    /// # Errors
    /// As [`Self::audience`].
    pub fn setting(&self, user: Id, key: &str) -> Result<Option<&str>, CacheMiss> {
        let settings = match self.answer(&Question::Settings(user))? {
            Some(Answer::Settings(settings)) => Some(&**settings),
            Some(_) => None,
            None => self.user(user).and_then(|user| user.settings.as_deref()),
        };
        Ok(settings
            .and_then(|settings| settings.get(key))
            .map(|value| &**value))
    }

    /// All settings of a user, if there is an entry for them.
    pub fn settings(&self, user: Id) -> Option<&UserSettings> {
        self.user(user).and_then(|user| user.settings.as_deref())
    }

    /// Whether the source has an entry of its own that answers the question: a user's contacts,
    /// blocks or settings, or a group's members. An entry may be empty. Questions whose answers are
    /// collected from several entries have none.
    pub fn has_entry(&self, question: &Question) -> bool {
        let user = |user: &Id| self.users.get(user);
        match question {
            Question::Contacts(id) => user(id).is_some_and(|user| user.contacts.is_some()),
            Question::BlockedBy(id) => user(id).is_some_and(|user| user.blocked.is_some()),
            Question::Settings(id) => user(id).is_some_and(|user| user.settings.is_some()),
            Question::Members(group) => self.groups.contains_key(group),
            _ => false,
        }
    }

    /// All ids in the directory, as numbers.
    pub fn ids(&self) -> RoaringBitmap {
        let mut ids = RoaringBitmap::clone(&self.everyone);
        for (user, entry) in &self.users {
            ids.insert(user.0);
            if let Some(blocked) = &entry.blocked {
                ids |= &**blocked;
            }
        }
        let unreadable = self.unreadable.keys().filter_map(Question::user);
        ids.extend(unreadable.map(|user| user.0));
        for (question, answer) in self.answers.iter().flatten() {
            ids.extend(question.user().map(|user| user.0));
            if let Answer::Users(users) = answer {
                ids |= &**users;
            }
        }
        ids
    }

    /// The number of users that the directory knows.
    pub fn len(&self) -> u64 {
        self.everyone.len()
    }

    /// The number of entries: contacts, group members, blocks and settings. For an on-demand
    /// directory, the number of entries in its answers.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The number of groups.
    pub fn group_count(&self) -> usize {
        self.groups.len()
    }

    /// Whether the directory knows no user.
    pub fn is_empty(&self) -> bool {
        self.everyone.is_empty()
    }

    /// Begins a changed copy.
    pub fn edit(&self) -> Edit {
        Edit::new(self.clone())
    }

    /// The cached answer to a question. `None` if the directory isn't on-demand, and computes its
    /// answers.
    fn answer(&self, question: &Question) -> Result<Option<&Answer>, CacheMiss> {
        match &self.answers {
            Some(answers) => answers.get(question).map(Some).ok_or(CacheMiss),
            None if self.is_unreadable(question) => Err(CacheMiss),
            None => Ok(None),
        }
    }

    fn is_unreadable(&self, question: &Question) -> bool {
        // There is almost never an unreadable entry, and the look-up costs a hash.
        !self.unreadable.is_empty() && self.unreadable.contains_key(question)
    }

    fn user(&self, user: Id) -> Option<&User> {
        self.users.get(&user)
    }

    fn groups_of(&self, user: Id) -> &[Arc<str>] {
        let groups = self.user(user).and_then(|user| user.groups.as_deref());
        groups.map_or(&[], Vec::as_slice)
    }

    fn co_members(&self, user: Id) -> Audience {
        let groups = self.members_of_groups(user);
        let Some(largest) = groups.max_by_key(|members| members.len()) else {
            return Audience::nobody();
        };
        // Each group is read once. The largest one, which mostly has all members of the others, is
        // shared and not copied.
        let mut others = RoaringBitmap::new();
        for members in self.members_of_groups(user) {
            if !Arc::ptr_eq(members, largest) {
                others |= &**members;
            }
        }
        let largest = Audience::from(Arc::clone(largest));
        largest.union(&others.into()).without(user)
    }

    /// The members of each group that a user is in.
    fn members_of_groups(&self, user: Id) -> impl Iterator<Item = &Arc<RoaringBitmap>> {
        let groups = self.groups_of(user).iter();
        groups.filter_map(|group| self.groups.get(group))
    }
}

impl User {
    /// Whether the directory knows the user. A user who is only blocked by others isn't known.
    fn is_known(&self) -> bool {
        self.contacts.is_some()
            || self.contacts_of.is_some()
            || self.blocked.is_some()
            || self.groups.is_some()
            || self.settings.is_some()
    }
}
