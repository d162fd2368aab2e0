//! Changing a directory, and keeping account of which answers change with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::{Answer, Directory, Question, Setting, Settings, User, setting};
use crate::names::Id;

/// How many may join or leave a group at once for it to be worked out whose answer
/// doesn't change with that, since they share another group with all of those.
const JOINED_MAX: u64 = 64;

/// The questions to which a directory's answer has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Whose co-members have changed: of one join, everyone's in the group.
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

    /// Whose co-members have changed.
    pub fn co_members(&self) -> &RoaringBitmap {
        &self.co_members
    }

    /// The questions about anything else, in a stable order.
    pub fn others(&self) -> impl Iterator<Item = &Question> {
        self.others.iter()
    }

    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.co_members.is_empty() && self.others.is_empty()
    }

    /// How many questions have a new answer.
    pub fn len(&self) -> usize {
        self.co_members.len() as usize + self.others.len()
    }

    fn insert(&mut self, question: Question) {
        match question {
            Question::CoMembers(user) => drop(self.co_members.insert(user.0)),
            question => drop(self.others.insert(question)),
        }
    }
}

/// Who has come to name somebody (true), and who doesn't any more (false). It is applied
/// at the end, one who is named after the other, since each is in many lists.
type Inverse = BTreeMap<Id, BTreeMap<Id, bool>>;

/// A directory that is being changed.
#[derive(Debug)]
pub struct Edit {
    directory: Directory,
    changed: Changes,
    /// Whose contact somebody has become, or is no more.
    contacts_of: Inverse,
    /// By whom somebody has been blocked, or is no more.
    blockers: Inverse,
}

impl Edit {
    pub(super) fn new(directory: Directory) -> Self {
        Self {
            directory,
            changed: Changes::default(),
            contacts_of: Inverse::new(),
            blockers: Inverse::new(),
        }
    }

    /// Says who a user's contacts are. The user is never their own contact.
    pub fn contacts(&mut self, user: Id, contacts: Option<RoaringBitmap>) {
        self.readable(Question::Contacts(user));
        let contacts = contacts.map(|mut contacts| {
            contacts.remove(user.0);
            contacts
        });
        let entry = self.directory.users.entry(user).or_default();
        let before = entry.contacts.take().unwrap_or_default();
        entry.contacts = contacts.map(Arc::new);
        let after = entry.contacts.clone().unwrap_or_default();
        if before == after {
            return;
        }
        self.changed.insert(Question::Contacts(user));
        note(&mut self.contacts_of, user, &before, &after);
    }

    /// Says whom a user has blocked.
    pub fn blocked(&mut self, user: Id, blocked: Option<RoaringBitmap>) {
        self.readable(Question::BlockedBy(user));
        let entry = self.directory.users.entry(user).or_default();
        let before = entry.blocked.take().unwrap_or_default();
        entry.blocked = blocked.map(Arc::new);
        let after = entry.blocked.clone().unwrap_or_default();
        if before != after {
            self.changed.insert(Question::BlockedBy(user));
            note(&mut self.blockers, user, &before, &after);
        }
    }

    /// Says who is in a group.
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

    /// Notes whose co-members change when some of a group's members, of now or of before,
    /// join or leave it: who shares another group with them sees no difference.
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

    /// Says what a user's settings are.
    pub fn settings(&mut self, user: Id, settings: Option<Settings>) {
        self.readable(Question::Settings(user));
        let entry = self.directory.users.entry(user).or_default();
        let before = entry.settings.take();
        let after = settings.map(|mut settings| {
            setting::canonicalise(&mut settings, before.as_deref());
            Arc::new(settings)
        });
        if before == after {
            entry.settings = before;
            return;
        }
        entry.settings.clone_from(&after);
        self.changed.insert(Question::Settings(user));
        let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
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

    /// The source has an entry that can't be read: a user's contacts, whom they have
    /// blocked, their settings, or who is in a group. What is known of it stays. Where
    /// nothing is, the answer isn't at hand, so that nobody new is told by it; questions
    /// that gather what many entries say go by the others.
    pub fn unreadable(&mut self, entry: Question) {
        let user = |user| self.directory.users.get(&user);
        let is_known = match &entry {
            Question::Contacts(id) => user(*id).is_some_and(|user| user.contacts.is_some()),
            Question::BlockedBy(id) => user(*id).is_some_and(|user| user.blocked.is_some()),
            Question::Settings(id) => user(*id).is_some_and(|user| user.settings.is_some()),
            Question::Members(group) => self.directory.groups.contains_key(group),
            _ => true,
        };
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

    /// The entries that can't be read and of which nothing is known, in a stable order.
    pub fn unreadable_entries(&self) -> BTreeSet<Question> {
        self.directory.unreadable.keys().cloned().collect()
    }

    /// An entry says something, or is gone.
    fn readable(&mut self, entry: Question) {
        if self.directory.unreadable.remove(&entry).is_some() {
            self.changed.insert(entry);
        }
    }

    /// Says what the answer to a question is, for a directory that is asked question
    /// by question; or that it isn't at hand any more.
    pub fn answer(&mut self, question: Question, answer: Option<Answer>) {
        let Some(answers) = &mut self.directory.answers else {
            return;
        };
        let answer = answer.map(|answer| answer.to(&question));
        // What is the same stays, so that it is shared with what was made from it.
        if answers.get(&question) == answer.as_ref() {
            return;
        }
        match answer {
            Some(answer) => drop(answers.insert(question.clone(), answer)),
            None => drop(answers.remove(&question)),
        }
        self.changed.insert(question);
    }

    /// The users and the groups of whom the directory now holds something of
    /// their own: what a source that has no more to say of them takes away.
    pub fn subjects(&self) -> (Vec<Id>, Vec<Arc<str>>) {
        let mut users: Vec<_> = self.directory.users.keys().copied().collect();
        let mut groups: Vec<_> = self.directory.groups.keys().cloned().collect();
        users.sort_unstable();
        groups.sort_unstable();
        (users, groups)
    }

    /// The changed directory, and what changed.
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

    /// Brings "everyone" up to date with the users whom the changes touched.
    fn recount(&mut self) {
        if self.directory.is_on_demand() {
            return;
        }
        let touched: BTreeSet<_> = self.changed.others().filter_map(Question::user).collect();
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

/// Notes who has come to be named by a user, and who isn't any more.
fn note(inverse: &mut Inverse, user: Id, before: &RoaringBitmap, after: &RoaringBitmap) {
    for (named, is) in [(before - after, false), (after - before, true)] {
        for named in named {
            inverse.entry(Id(named)).or_default().insert(user, is);
        }
    }
}

/// Takes who names somebody, and who doesn't any more, into the set of those who do.
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
mod tests {
    use super::*;
    use crate::directory::NotAtHand;

    fn set(ids: &[u32]) -> Option<RoaringBitmap> {
        Some(ids.iter().copied().collect())
    }

    fn ask(directory: &Directory, question: Question) -> Vec<u32> {
        directory
            .audience(&question)
            .unwrap()
            .ids()
            .map(|id| id.0)
            .collect()
    }

    fn sample() -> Directory {
        let mut edit = Directory::new().edit();
        edit.contacts(Id(1), set(&[1, 2, 3]));
        edit.group("team", set(&[1, 4]));
        edit.group("all", set(&[1, 5]));
        edit.blocked(Id(1), set(&[3, 9]));
        edit.finish().0
    }

    #[test]
    fn questions_are_answered_both_ways() {
        let directory = sample();
        assert_eq!(ask(&directory, Question::Contacts(Id(1))), [2, 3]);
        assert_eq!(ask(&directory, Question::WithContact(Id(3))), [1]);
        assert_eq!(ask(&directory, Question::Members("team".into())), [1, 4]);
        assert_eq!(ask(&directory, Question::CoMembers(Id(1))), [4, 5]);
        assert_eq!(ask(&directory, Question::BlockedBy(Id(1))), [3, 9]);
        assert_eq!(ask(&directory, Question::Blockers(Id(9))), [1]);
        assert_eq!(ask(&directory, Question::Everyone), [1, 2, 3, 4, 5]);
        assert_eq!(ask(&directory, Question::Contacts(Id(77))), [0; 0]);
        let groups = directory.groups(Id(1)).unwrap();
        assert_eq!(groups, ["all".into(), "team".into()]);
        assert_eq!(
            directory.ids().iter().collect::<Vec<_>>(),
            [1, 2, 3, 4, 5, 9]
        );
    }

    #[test]
    fn a_change_names_just_the_questions_it_answers_anew() {
        let before = sample();
        let mut edit = before.edit();
        edit.contacts(Id(1), set(&[2, 6]));
        edit.group("team", set(&[1, 4]));
        edit.group("all", set(&[1]));
        let (after, changes) = edit.finish();
        let expected = [
            Question::Contacts(Id(1)),
            Question::WithContact(Id(3)),
            Question::WithContact(Id(6)),
            Question::Members("all".into()),
            Question::CoMembers(Id(1)),
            Question::CoMembers(Id(5)),
            Question::Everyone,
            Question::Groups(Id(5)),
        ];
        assert_eq!(changes.iter().collect::<Vec<_>>(), expected);
        assert_eq!(ask(&after, Question::Everyone), [1, 2, 4, 6]);
        assert_eq!(ask(&before, Question::Everyone), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_join_names_just_those_who_did_not_share_a_group_with_who_joins() {
        let before = {
            let mut edit = Directory::new().edit();
            edit.group("all", Some((0..1_000).collect()));
            edit.group("some", set(&[10, 11, 2_000]));
            edit.finish().0
        };
        let co_members = |changes: &Changes| changes.co_members().clone();
        let mut edit = before.edit();
        edit.group("all", Some((0..1_000).chain([2_000]).collect()));
        let (after, changes) = edit.finish();
        let mut expected: RoaringBitmap = (0..1_000).chain([2_000]).collect();
        expected.remove_range(10..=11);
        assert_eq!(co_members(&changes), expected);
        let others: Vec<_> = changes.others().cloned().collect();
        let expected = [Question::Members("all".into()), Question::Groups(Id(2_000))];
        assert_eq!(others, expected);
        // That they share one group less is no difference, either.
        let mut edit = after.edit();
        edit.group("some", set(&[10, 11]));
        let (_, changes) = edit.finish();
        assert!(co_members(&changes).is_empty());
    }

    #[test]
    fn whoever_is_named_or_not_answers_differ_just_where_they_are() {
        // All memberships of four users in two groups, and all others.
        let groups = |bits: u32| {
            [bits & 15, bits >> 4].map(|bits| {
                (0..4)
                    .filter(|user| bits & (1 << user) != 0)
                    .collect::<RoaringBitmap>()
            })
        };
        let put = |directory: &Directory, bits| {
            let mut edit = directory.edit();
            for (name, members) in ["a", "b"].into_iter().zip(groups(bits)) {
                edit.group(name, Some(members));
            }
            edit.finish()
        };
        for from in 0..256 {
            let (before, _) = put(&Directory::new(), from);
            for to in 0..256 {
                let (after, changes) = put(&before, to);
                for user in 0..4 {
                    let question = Question::CoMembers(Id(user));
                    let differ = ask(&before, question.clone()) != ask(&after, question);
                    assert!(
                        !differ || changes.co_members().contains(user),
                        "{from} {to}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_block_names_the_blocker_and_the_blocked_and_makes_nobody_known() {
        let before = sample();
        let mut edit = before.edit();
        edit.blocked(Id(1), set(&[9, 4]));
        edit.blocked(Id(8), set(&[9]));
        let (after, changes) = edit.finish();
        let expected = [
            Question::BlockedBy(Id(1)),
            Question::BlockedBy(Id(8)),
            Question::Blockers(Id(3)),
            Question::Blockers(Id(4)),
            Question::Blockers(Id(9)),
            Question::Everyone,
        ];
        assert_eq!(changes.iter().collect::<Vec<_>>(), expected);
        assert_eq!(ask(&after, Question::Blockers(Id(9))), [1, 8]);
        assert_eq!(ask(&after, Question::Blockers(Id(3))), [0; 0]);
        assert_eq!(ask(&after, Question::Everyone), [1, 2, 3, 4, 5, 8]);
        assert_eq!(ask(&before, Question::Blockers(Id(9))), [1]);
        // Though nothing else is said of them any more, their blockers are still known.
        let mut edit = after.edit();
        edit.group("team", None);
        let (after, _) = edit.finish();
        assert_eq!(ask(&after, Question::Blockers(Id(4))), [1]);
        assert_eq!(ask(&after, Question::Everyone), [1, 2, 3, 5, 8]);
        let mut edit = after.edit();
        edit.blocked(Id(1), None);
        edit.blocked(Id(8), None);
        let (after, _) = edit.finish();
        assert_eq!(ask(&after, Question::Blockers(Id(9))), [0; 0]);
        assert!(!after.users.contains_key(&Id(9)) && !after.users.contains_key(&Id(4)));
    }

    fn settings(settings: &[(&str, &str)]) -> Option<Settings> {
        let settings = settings.iter();
        Some(
            settings
                .map(|(key, value)| ((*key).into(), (*value).into()))
                .collect(),
        )
    }

    fn with(key: &str, value: &str) -> Question {
        Question::WithSetting(Arc::new(Setting::new(key, value).unwrap()))
    }

    #[test]
    fn anyone_who_has_a_setting_is_found_and_a_change_names_the_old_and_the_new_value() {
        let mut edit = Directory::new().edit();
        edit.settings(
            Id(1),
            settings(&[("seen", " \"nobody\""), ("quiet", "true")]),
        );
        edit.settings(Id(2), settings(&[("seen", "\"nobody\""), ("lists", "{}")]));
        let (before, _) = edit.finish();
        assert_eq!(ask(&before, with("seen", "\"nobody\" ")), [1, 2]);
        assert_eq!(ask(&before, with("quiet", "true")), [1]);
        assert_eq!(ask(&before, with("quiet", "false")), [0; 0]);
        assert_eq!(before.ids().iter().collect::<Vec<_>>(), [1, 2]);

        // Formatted otherwise, it is the same.
        let mut edit = before.edit();
        edit.settings(
            Id(2),
            settings(&[("lists", " { } "), ("seen", "\"nobod\\u0079\"")]),
        );
        let (_, changes) = edit.finish();
        assert!(changes.is_empty(), "{changes:?}");

        let mut edit = before.edit();
        edit.settings(
            Id(1),
            settings(&[("seen", "\"everyone\""), ("quiet", "true")]),
        );
        let (after, changes) = edit.finish();
        let expected = [
            Question::Settings(Id(1)),
            with("seen", "\"everyone\""),
            with("seen", "\"nobody\""),
        ];
        assert_eq!(changes.iter().collect::<Vec<_>>(), expected);
        assert_eq!(ask(&after, with("seen", "\"nobody\"")), [2]);
        assert_eq!(ask(&after, with("seen", "\"everyone\"")), [1]);
        assert_eq!(ask(&after, with("quiet", "true")), [1]);
        assert_eq!(ask(&before, with("seen", "\"nobody\"")), [1, 2]);
    }

    #[test]
    fn taking_everything_away_leaves_nothing() {
        let mut edit = sample().edit();
        edit.settings(Id(4), settings(&[("quiet", "true")]));
        let (users, groups) = edit.subjects();
        for user in users {
            edit.contacts(user, None);
            edit.blocked(user, None);
            edit.settings(user, None);
        }
        for group in groups {
            edit.group(&group, None);
        }
        let (directory, _) = edit.finish();
        assert!(directory.is_empty());
        assert!(directory.ids().is_empty());
        assert!(directory.with_setting.is_empty());
    }

    fn users(ids: &[u32]) -> Option<Answer> {
        set(ids).map(Answer::users)
    }

    #[test]
    fn an_entry_that_cannot_be_read_holds_what_was_known_or_is_not_at_hand() {
        let mut edit = sample().edit();
        edit.unreadable(Question::BlockedBy(Id(1)));
        edit.unreadable(Question::Members("team".into()));
        let (same, changes) = edit.finish();
        assert!(changes.is_empty());
        assert_eq!(ask(&same, Question::BlockedBy(Id(1))), [3, 9]);

        let entries = [
            Question::Contacts(Id(7)),
            Question::Members("new".into()),
            Question::BlockedBy(Id(7)),
            Question::Settings(Id(7)),
        ];
        let mut edit = same.edit();
        for entry in &entries {
            edit.unreadable(entry.clone());
            edit.unreadable(entry.clone());
        }
        let (closed, changes) = edit.finish();
        assert!(changes.iter().eq(entries.clone()));
        for entry in &entries {
            assert!(!closed.has(entry));
        }
        for question in [&entries[0], &entries[1], &entries[2]] {
            assert_eq!(closed.audience(question).unwrap_err(), NotAtHand);
        }
        assert_eq!(closed.setting(Id(7), "theme"), Err(NotAtHand));
        assert!(closed.ids().contains(7));
        assert_eq!(ask(&closed, Question::CoMembers(Id(1))), [4, 5]);
        assert!(closed.edit().unreadable_entries().iter().eq(&entries));

        let mut edit = closed.edit();
        edit.contacts(Id(7), set(&[1]));
        edit.group("new", None);
        edit.blocked(Id(7), None);
        edit.settings(Id(7), settings(&[("theme", "1")]));
        let (open, changes) = edit.finish();
        for entry in &entries {
            assert!(open.has(entry) && changes.iter().any(|change| change == *entry));
        }
        assert_eq!(ask(&open, Question::Contacts(Id(7))), [1]);
        assert_eq!(open.setting(Id(7), "theme"), Ok(Some("1")));
        assert!(open.edit().unreadable_entries().is_empty());
    }

    #[test]
    fn a_directory_on_demand_says_what_is_not_at_hand() {
        let question = Question::Contacts(Id(1));
        let mut edit = Directory::on_demand().edit();
        assert!(edit.directory.audience(&question).is_err());
        edit.answer(question.clone(), users(&[1, 2]));
        let (directory, changes) = edit.finish();
        assert_eq!(ask(&directory, question.clone()), [2]);
        assert!(changes.iter().eq([question.clone()]));
        assert!(directory.setting(Id(1), "theme").is_err());
        assert!(directory.groups(Id(1)).is_err());
        for other in [
            Question::WithContact(Id(2)),
            Question::Everyone,
            with("theme", "1"),
        ] {
            assert!(directory.audience(&other).is_err(), "{other:?}");
        }
    }

    #[test]
    fn an_answer_stands_until_another_takes_its_place_or_it_is_taken_away() {
        let about = |user| [Question::Settings(user), Question::Groups(user)];
        let [settings_of, groups_of] = about(Id(1));
        let mut edit = Directory::on_demand().edit();
        let theme = settings(&[("theme", " 1 ")]).map(Answer::settings);
        edit.answer(settings_of.clone(), theme);
        let groups = Answer::groups(vec!["b".into(), "a".into(), "b".into()]);
        edit.answer(groups_of.clone(), Some(groups));
        edit.answer(with("theme", "1"), users(&[1]));
        let (before, _) = edit.finish();
        assert_eq!(before.setting(Id(1), "theme"), Ok(Some("1")));
        assert_eq!(before.groups(Id(1)).unwrap(), ["a".into(), "b".into()]);
        assert_eq!(ask(&before, with("theme", "1")), [1]);

        let mut edit = before.edit();
        let same = settings(&[("theme", "1")]).map(Answer::settings);
        edit.answer(settings_of, same);
        edit.answer(with("theme", "1"), users(&[2]));
        edit.answer(groups_of.clone(), None);
        let (after, changes) = edit.finish();
        assert!(changes.iter().eq([groups_of.clone(), with("theme", "1")]));
        assert_eq!(after.setting(Id(1), "theme"), Ok(Some("1")));
        assert_eq!(after.groups(Id(1)), Err(NotAtHand));
        assert_eq!(ask(&after, with("theme", "1")), [2]);
    }

    #[test]
    fn answers_hold_the_ids_in_them_and_those_they_are_about() {
        let mut edit = Directory::on_demand().edit();
        edit.answer(Question::Contacts(Id(1)), users(&[2, 3]));
        edit.answer(Question::Groups(Id(4)), Some(Answer::groups(Vec::new())));
        edit.answer(Question::Everyone, users(&[5]));
        let (directory, _) = edit.finish();
        assert_eq!(directory.ids().iter().collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        let mut edit = directory.edit();
        edit.answer(Question::Contacts(Id(1)), None);
        let (directory, _) = edit.finish();
        assert_eq!(directory.ids().iter().collect::<Vec<_>>(), [4, 5]);
    }
}
