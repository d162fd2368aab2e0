//! Changes of a directory, and the questions whose answers they change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::{Answer, Directory, Question, Setting, User, UserSettings, setting};
use crate::names::Id;

/// If at most this many users join or leave a group at once, it is computed for whom nothing
/// changes, since they share another group with these users. Otherwise, the co-members of all
/// members count as changed.
const JOINED_MAX: u64 = 64;

/// The questions to which a directory's answer has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The users whose co-members have changed. If one user joins a group, these are all its
    /// members.
    co_members: RoaringBitmap,
    others: BTreeSet<Question>,
}

impl Changes {
    /// The questions, in a stable order.
    pub fn iter(&self) -> impl Iterator<Item = Question> {
        let (before, after) = (..Question::CoMembers(Id(0)), Question::CoMembers(Id(0))..);
        let co_members = self
            .co_members
            .iter()
            .map(|user| Question::CoMembers(Id(user)));
        let before = self.others.range(before).cloned();
        before
            .chain(co_members)
            .chain(self.others.range(after).cloned())
    }

    /// The users whose co-members have changed.
    pub fn co_members(&self) -> &RoaringBitmap {
        &self.co_members
    }

    /// The other questions, in a stable order.
    pub fn others(&self) -> impl Iterator<Item = &Question> {
        self.others.iter()
    }

    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.co_members.is_empty() && self.others.is_empty()
    }

    /// The number of questions with a new answer.
    pub fn len(&self) -> usize {
        self.co_members.len() as usize + self.others.len()
    }

    /// These changes, together with those of a later edit.
    #[must_use]
    pub fn and(mut self, later: Self) -> Self {
        self.co_members |= later.co_members;
        self.others.extend(later.others);
        self
    }

    fn insert(&mut self, question: Question) {
        match question {
            Question::CoMembers(user) => drop(self.co_members.insert(user.0)),
            question => drop(self.others.insert(question)),
        }
    }
}

/// For each user, which other users have begun to name them (true), or ceased to (false). It is
/// applied at the end, user by user, since a user is named in many lists.
type Inverse = BTreeMap<Id, BTreeMap<Id, bool>>;

/// A directory that is being changed.
#[derive(Debug)]
pub struct Edit {
    directory: Directory,
    changed: Changes,
    /// Changes of who has whom as a contact, by contact.
    contacts_of: Inverse,
    /// Changes of who has blocked whom, by blocked user.
    blockers: Inverse,
    /// Users who have got or lost an entry, even an empty one: an entry makes a user known.
    mentioned: BTreeSet<Id>,
}

impl Edit {
    pub(super) fn new(directory: Directory) -> Self {
        Self {
            directory,
            changed: Changes::default(),
            contacts_of: Inverse::new(),
            blockers: Inverse::new(),
            mentioned: BTreeSet::new(),
        }
    }

    /// Sets a user's contacts. A user is never their own contact.
    pub fn contacts(&mut self, user: Id, contacts: Option<RoaringBitmap>) {
        self.readable(Question::Contacts(user));
        let contacts = contacts.map(|mut contacts| {
            contacts.remove(user.0);
            contacts
        });
        let entry = self.directory.users.entry(user).or_default();
        if entry.contacts.is_some() != contacts.is_some() {
            self.mentioned.insert(user);
        }
        let before = entry.contacts.take().unwrap_or_default();
        entry.contacts = contacts.map(Arc::new);
        let after = entry.contacts.clone().unwrap_or_default();
        if before == after {
            return;
        }
        self.count(before.len(), after.len());
        self.changed.insert(Question::Contacts(user));
        note(&mut self.contacts_of, user, &before, &after);
    }

    /// Sets whom a user has blocked.
    pub fn blocked(&mut self, user: Id, blocked: Option<RoaringBitmap>) {
        self.readable(Question::BlockedBy(user));
        let entry = self.directory.users.entry(user).or_default();
        if entry.blocked.is_some() != blocked.is_some() {
            self.mentioned.insert(user);
        }
        let before = entry.blocked.take().unwrap_or_default();
        entry.blocked = blocked.map(Arc::new);
        let after = entry.blocked.clone().unwrap_or_default();
        if before != after {
            self.count(before.len(), after.len());
            self.changed.insert(Question::BlockedBy(user));
            note(&mut self.blockers, user, &before, &after);
        }
    }

    /// Sets the members of a group.
    pub fn group(&mut self, name: &str, members: Option<RoaringBitmap>) {
        let name: Arc<str> = name.into();
        self.readable(Question::Members(Arc::clone(&name)));
        let after = members.map(Arc::new);
        let before = match &after {
            Some(after) => self
                .directory
                .groups
                .insert(Arc::clone(&name), Arc::clone(after)),
            None => self.directory.groups.remove(&name),
        };
        let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
        if before == after {
            return;
        }
        self.count(before.len(), after.len());
        let moved = &*before ^ &*after;
        self.co_members_changed(&name, &(&*before | &*after), &moved);
        for user in moved.into_iter().map(Id) {
            self.changed.insert(Question::Groups(user));
            let entry = self.directory.users.entry(user).or_default();
            let groups = Arc::make_mut(entry.groups.get_or_insert_default());
            match groups.binary_search(&name) {
                Ok(place) => drop(groups.remove(place)),
                Err(place) => groups.insert(place, Arc::clone(&name)),
            }
            if groups.is_empty() {
                entry.groups = None;
            }
        }
        self.changed.insert(Question::Members(name));
    }

    /// Notes whose co-members change when the users `moved` join or leave a group. `all`: the
    /// members before and after. For members who share another group with a moved user, nothing
    /// changes.
    fn co_members_changed(&mut self, group: &str, all: &RoaringBitmap, moved: &RoaringBitmap) {
        if moved.len() > JOINED_MAX {
            self.changed.co_members |= all;
            return;
        }
        for user in moved {
            let others = self.directory.groups_of(Id(user)).iter();
            let others = others.filter(|other| ***other != *group);
            let others = others.filter_map(|other| self.directory.groups.get(other));
            let mut changed = others.fold(all.clone(), |changed, other| changed - &**other);
            changed.remove(user);
            if !changed.is_empty() {
                changed.insert(user);
                self.changed.co_members |= changed;
            }
        }
    }

    /// Sets a user's settings.
    pub fn settings(&mut self, user: Id, settings: Option<UserSettings>) {
        self.readable(Question::Settings(user));
        let entry = self.directory.users.entry(user).or_default();
        let before = entry.settings.take();
        let after = settings.map(|mut settings| {
            setting::canonicalise(&mut settings, before.as_deref());
            Arc::new(settings)
        });
        if before.is_some() != after.is_some() {
            self.mentioned.insert(user);
        }
        entry.settings.clone_from(&after);
        let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
        if before == after {
            return;
        }
        self.count(before.len() as u64, after.len() as u64);
        self.changed.insert(Question::Settings(user));
        let is_new = |(key, value): &(&_, &_)| before.get(*key) != Some(*value);
        let is_gone = |(key, value): &(&_, &_)| after.get(*key) != Some(*value);
        for (key, value) in before.iter().filter(is_gone) {
            self.with_setting(user, key, value, false);
        }
        for (key, value) in after.iter().filter(is_new) {
            self.with_setting(user, key, value, true);
        }
    }

    /// Notes whether a user has a setting with this value.
    fn with_setting(&mut self, user: Id, key: &str, value: &str, has_it: bool) {
        let setting = Arc::new(Setting {
            key: key.into(),
            value: value.into(),
        });
        let index = &mut self.directory.with_setting;
        let users = Arc::make_mut(index.entry(Arc::clone(&setting)).or_default());
        if has_it {
            users.insert(user.0);
        } else {
            users.remove(user.0);
        }
        if users.is_empty() {
            index.remove(&setting);
        }
        self.changed.insert(Question::WithSetting(setting));
    }

    /// The source has an entry that can't be read: a user's contacts, blocks or settings, or a
    /// group's members. Its last known content stays. If there is none, the answer counts as not
    /// cached, so that nobody new is notified by it. Questions whose answers are collected from
    /// several entries use the others.
    pub fn unreadable(&mut self, entry: Question) {
        let is_known = self.directory.has_entry(&entry);
        if !is_known
            && self
                .directory
                .unreadable
                .insert(entry.clone(), ())
                .is_none()
        {
            self.changed.insert(entry);
        }
    }

    /// The unreadable entries of which no content is known, in a stable order.
    pub fn unreadable_entries(&self) -> BTreeSet<Question> {
        self.directory.unreadable.keys().cloned().collect()
    }

    /// Notes that an entry can be read, or is gone.
    fn readable(&mut self, entry: Question) {
        if self.directory.unreadable.remove(&entry).is_some() {
            self.changed.insert(entry);
        }
    }

    /// Sets the answer to a question in an on-demand directory. `None`: it is no longer cached.
    pub fn answer(&mut self, question: Question, answer: Option<Answer>) {
        let Some(answers) = &mut self.directory.answers else {
            return;
        };
        let answer = answer.map(|answer| answer.to(&question));
        // An equal answer isn't replaced, so that it stays shared with what was made from it.
        if answers.get(&question) == answer.as_ref() {
            return;
        }
        let after = answer.as_ref().map_or(0, Answer::entries);
        let before = match answer {
            Some(answer) => answers.insert(question.clone(), answer),
            None => answers.remove(&question),
        };
        self.count(before.as_ref().map_or(0, Answer::entries), after);
        self.changed.insert(question);
    }

    /// The users and groups for which the directory has an entry. A source compares them with what
    /// it still has, to find those to remove.
    pub fn subjects(&self) -> (Vec<Id>, Vec<Arc<str>>) {
        let mut users: Vec<_> = self.directory.users.keys().copied().collect();
        let mut groups: Vec<_> = self.directory.groups.keys().cloned().collect();
        users.sort_unstable();
        groups.sort_unstable();
        (users, groups)
    }

    /// The number of entries so far.
    pub fn entries(&self) -> u64 {
        self.directory.entries
    }

    fn count(&mut self, before: u64, after: u64) {
        let entries = &mut self.directory.entries;
        *entries = entries.saturating_add(after).saturating_sub(before);
    }

    /// The changed directory, and the changes.
    pub fn finish(mut self) -> (Directory, Changes) {
        for (contact, owners) in std::mem::take(&mut self.contacts_of) {
            let entry = self.directory.users.entry(contact).or_default();
            apply(&mut entry.contacts_of, owners);
            self.changed.insert(Question::WithContact(contact));
        }
        for (blocked, blockers) in std::mem::take(&mut self.blockers) {
            let entry = self.directory.users.entry(blocked).or_default();
            apply(&mut entry.blockers, blockers);
            self.changed.insert(Question::Blockers(blocked));
        }
        self.recount();
        (self.directory, self.changed)
    }

    /// Updates the set of all known users by the users whom the changes touched.
    fn recount(&mut self) {
        if self.directory.is_on_demand() {
            return;
        }
        let mut touched = std::mem::take(&mut self.mentioned);
        touched.extend(self.changed.others().filter_map(Question::user));
        let mut everyone = RoaringBitmap::clone(&self.directory.everyone);
        for user in touched {
            let entry = self.directory.users.get(&user);
            if entry.is_some_and(User::is_known) {
                everyone.insert(user.0);
                continue;
            }
            everyone.remove(user.0);
            if entry.is_some_and(|entry| entry.blockers.is_none()) {
                self.directory.users.remove(&user);
            }
        }
        if everyone != *self.directory.everyone {
            self.directory.everyone = Arc::new(everyone);
            self.changed.insert(Question::Everyone);
        }
    }
}

/// Notes whom a user has begun to name, and whom they have ceased to name.
fn note(inverse: &mut Inverse, user: Id, before: &RoaringBitmap, after: &RoaringBitmap) {
    for (named, is) in [(before - after, false), (after - before, true)] {
        for named in named {
            inverse.entry(Id(named)).or_default().insert(user, is);
        }
    }
}

/// Applies to the set of users who name somebody who has joined it, and who has left it.
fn apply(set: &mut Option<Arc<RoaringBitmap>>, changes: BTreeMap<Id, bool>) {
    let users = Arc::make_mut(set.get_or_insert_default());
    for (user, is) in changes {
        if is {
            users.insert(user.0)
        } else {
            users.remove(user.0)
        };
    }
    if users.is_empty() {
        *set = None;
    }
}

#[cfg(test)]
mod tests;
