//! The users who wait for answers of the directory.

use std::collections::BTreeSet;

use hashbrown::HashMap;
use roaring::RoaringBitmap;

use crate::directory::{Changes, Directory, Question};
use crate::names::Id;
use crate::reverse_deps::ReverseDeps;

/// The users who wait, and the questions whose answers they wait for.
#[derive(Debug, Default)]
pub(crate) struct PendingFetches {
    questions: HashMap<Id, BTreeSet<Question>, foldhash::fast::FixedState>,
    users: ReverseDeps,
}

impl PendingFetches {
    /// Notes the questions whose answers a user waits for. They replace earlier ones.
    pub(crate) fn note(&mut self, user: Id, questions: BTreeSet<Question>) {
        self.forget(user);
        for question in &questions {
            self.users.insert(question, user);
        }
        self.questions.insert(user, questions);
    }

    /// Forgets a user, who no longer waits.
    pub(crate) fn forget(&mut self, user: Id) {
        for question in self.questions.remove(&user).into_iter().flatten() {
            self.users.remove(&question, user);
        }
    }

    /// The questions whose answers a user waits for.
    pub(crate) fn of(&self, user: Id) -> impl Iterator<Item = &Question> {
        self.questions.get(&user).into_iter().flatten()
    }

    /// Whether any user waits for this answer.
    pub(crate) fn has(&self, question: &Question) -> bool {
        self.users.of(question).next().is_some()
    }

    /// The users who waited for one of the changed answers, and for whom now all answers are
    /// available, in a stable order.
    pub(crate) fn answered(&self, changes: &Changes, directory: &Directory) -> BTreeSet<Id> {
        let mut waiting = BTreeSet::new();
        for question in changes.iter() {
            waiting.extend(self.users.of(&question));
        }
        waiting.retain(|user| self.is_answered(*user, directory));
        waiting
    }

    /// Whether a user waits, and all the answers are available.
    pub(crate) fn is_answered(&self, user: Id, directory: &Directory) -> bool {
        let questions = self.questions.get(&user);
        questions.is_some_and(|all| all.iter().all(|question| directory.has(question)))
    }

    /// All ids in here, as numbers.
    pub(crate) fn ids(&self) -> RoaringBitmap {
        let about = self.users.questions().filter_map(Question::user);
        about
            .chain(self.questions.keys().copied())
            .map(|id| id.0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::Answer;

    #[test]
    fn who_finds_all_that_they_wait_for_is_served() {
        let (one, two) = (Question::Contacts(Id(7)), Question::Everyone);
        let mut pending = PendingFetches::default();
        pending.note(Id(1), [one.clone(), two.clone()].into());
        pending.note(Id(2), [two.clone()].into());
        pending.note(Id(3), [one.clone()].into());
        pending.forget(Id(3));
        assert_eq!(pending.ids().iter().collect::<Vec<_>>(), [1, 2, 7]);

        let nobody = || Some(Answer::users(RoaringBitmap::new()));
        let mut edit = Directory::on_demand().edit();
        edit.answer(two.clone(), nobody());
        let (directory, changes) = edit.finish();
        assert_eq!(pending.answered(&changes, &directory), [Id(2)].into());
        pending.forget(Id(2));
        assert!(pending.has(&two), "the other waits for it still");

        let mut edit = directory.edit();
        edit.answer(one.clone(), nobody());
        let (directory, changes) = edit.finish();
        assert_eq!(pending.answered(&changes, &directory), [Id(1)].into());
        pending.forget(Id(1));
        assert!(!pending.has(&one) && pending.ids().is_empty());
    }
}
