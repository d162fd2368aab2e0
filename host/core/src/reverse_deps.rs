//! The reverse dependencies of verdicts: for each question to the directory, the users whose
//! verdict used the answer.

use std::collections::BTreeSet;

use hashbrown::HashMap;

use crate::directory::Question;
use crate::names::Id;

/// For each question, the users for whom it was asked.
#[derive(Debug, Default)]
pub(crate) struct ReverseDeps(HashMap<Question, BTreeSet<Id>, foldhash::fast::FixedState>);

impl ReverseDeps {
    /// Notes that a question was asked for a user.
    pub(crate) fn insert(&mut self, question: &Question, user: Id) {
        self.0.entry_ref(question).or_default().insert(user);
    }

    /// Forgets that a question was asked for a user.
    pub(crate) fn remove(&mut self, question: &Question, user: Id) {
        if let Some(users) = self.0.get_mut(question) {
            users.remove(&user);
            if users.is_empty() {
                self.0.remove(question);
            }
        }
    }

    /// The users for whom a question was asked, in a stable order.
    pub(crate) fn of(&self, question: &Question) -> impl Iterator<Item = Id> {
        self.0.get(question).into_iter().flatten().copied()
    }

    /// The number of questions.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// All the questions.
    pub(crate) fn questions(&self) -> impl Iterator<Item = &Question> {
        self.0.keys()
    }
}
