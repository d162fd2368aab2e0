//! The directory: who is whose contact, who is in which group, who has blocked
//! whom, and users' settings.
//!
//! A directory is a value. A change makes a new one that shares what stayed the
//! same, and says which questions it answers differently, so that just the verdicts
//! that asked them are decided again.

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
    /// Who has the user among their contacts.
    WithContact(Id),
    /// The members of a group.
    Members(Arc<str>),
    /// Who shares a group with the user.
    CoMembers(Id),
    /// Whom the user has blocked.
    BlockedBy(Id),
    /// Who has blocked the user.
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
    /// The user it is about, where it is about one.
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

/// A map of which a changed copy shares what stayed the same.
type Map<K, V> =
    imbl::GenericHashMap<K, V, foldhash::fast::FixedState, imbl::shared_ptr::DefaultSharedPtr>;

/// What the team's directory says, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    users: Map<Id, User>,
    groups: Map<Arc<str>, Arc<RoaringBitmap>>,
    with_setting: Map<Arc<Setting>, Arc<RoaringBitmap>>,
    everyone: Arc<RoaringBitmap>,
    /// How many contacts, members of groups, blocks and settings there are, or what answers
    /// count as.
    entries: u64,
    /// Where the directory is asked question by question: what has been answered,
    /// and all that it knows. Any other answer isn't cached.
    answers: Option<Map<Question, Answer>>,
    /// Entries that the source has and that can't be read, where nothing is known of
    /// them from before: as the questions that they would answer.
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

/// An answer that isn't cached yet: it has to be fetched, and the rule asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheMiss;

impl Directory {
    /// An empty directory that knows all there is to know.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty directory that is asked question by question: one that hasn't
    /// been [answered](Edit::answer) is not cached.
    pub fn on_demand() -> Self {
        Self {
            answers: Some(Map::default()),
            ..Self::default()
        }
    }

    /// The directory of a source of which nothing has been known yet: no question's
    /// answer is known, so that nobody is told by it.
    pub fn unavailable() -> Self {
        Self::on_demand()
    }

    /// Whether it is asked question by question, or [nothing is known of
    /// it](Self::unavailable).
    pub fn is_on_demand(&self) -> bool {
        self.answers.is_some()
    }

    /// Whether it has the answer to a question.
    pub fn has(&self, question: &Question) -> bool {
        match &self.answers {
            Some(answers) => answers.contains_key(question),
            None => !self.is_unreadable(question),
        }
    }

    /// The audience that answers a question. Questions that aren't answered by
    /// an audience have an empty one.
    ///
    /// # Errors
    /// [`CacheMiss`] if a directory that is asked question by question hasn't
    /// got the answer, or the entry that holds it [can't be read](Edit::unreadable).
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

    /// What it takes to answer a question whose answer has to be made each time, in units of
    /// about one instruction.
    pub fn work(&self, question: &Question) -> u64 {
        match question {
            Question::CoMembers(user) if self.answers.is_none() => {
                let groups = self.members_of_groups(*user);
                groups.map(|members| 64 + members.len() / 16).sum()
            }
            _ => 0,
        }
    }

    /// The names of the groups a user is in, in their alphabetical order.
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

    /// A user's setting, as JSON text in its one form.
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

    /// All the settings of a user who has an entry for them.
    pub fn settings(&self, user: Id) -> Option<&UserSettings> {
        self.user(user).and_then(|user| user.settings.as_deref())
    }

    /// Whether the source has an entry of its own for what is asked: a user's contacts,
    /// whom they have blocked, their settings, or who is in a group. An entry may say
    /// that there is nobody; questions that gather what many entries say have none.
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

    /// All the numbers that the directory holds.
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

    /// How many users it knows.
    pub fn len(&self) -> u64 {
        self.everyone.len()
    }

    /// How many entries it has: contacts, members of groups, blocks and settings; where it is
    /// asked question by question, what its answers name.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// How many groups it knows.
    pub fn group_count(&self) -> usize {
        self.groups.len()
    }

    /// Whether it knows nobody.
    pub fn is_empty(&self) -> bool {
        self.everyone.is_empty()
    }

    /// A copy to change.
    pub fn edit(&self) -> Edit {
        Edit::new(self.clone())
    }

    /// What was answered to a question; none where all is known without asking.
    fn answer(&self, question: &Question) -> Result<Option<&Answer>, CacheMiss> {
        match &self.answers {
            Some(answers) => answers.get(question).map(Some).ok_or(CacheMiss),
            None if self.is_unreadable(question) => Err(CacheMiss),
            None => Ok(None),
        }
    }

    fn is_unreadable(&self, question: &Question) -> bool {
        // Nearly always there is none, and a question costs a hash.
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
        // Each group is looked through once, however many there are, and the largest one, which
        // mostly has all the others' members, is shared and not copied.
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
    /// Whether the directory knows the user: being blocked by another is not
    /// being known.
    fn is_known(&self) -> bool {
        self.contacts.is_some()
            || self.contacts_of.is_some()
            || self.blocked.is_some()
            || self.groups.is_some()
            || self.settings.is_some()
    }
}
