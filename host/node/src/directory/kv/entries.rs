//! Turns a bucket's entries into changes of the directory. An invalid entry is logged once, and
//! counted for as long as it is in the bucket.

use std::collections::BTreeMap;

use bytes::Bytes;
use presence_config::directory::entry::{self, Key};
use presence_core::directory::{Changes, Directory, Edit, Question};
use presence_core::names::Names;

/// How many invalid entries of one update are logged, at most.
const LINES_MAX: usize = 20;

/// Values by key. `None`: the key was deleted.
pub(crate) type Entries = BTreeMap<String, Option<Bytes>>;

/// The invalid entries of a bucket: the reason for each key.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    keys: BTreeMap<String, String>,
    values: BTreeMap<String, String>,
}

impl Refusals {
    /// How many keys are invalid, and how many values can't be read.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.keys.len(), self.values.len())
    }

    /// The directory with these entries changed. An entry that can't be read keeps its known value.
    /// If it has none, its answer counts as missing.
    pub(super) fn change(
        &mut self,
        entries: Entries,
        names: &Names,
        before: &Directory,
    ) -> (Directory, Changes) {
        let mut edit = begin(before);
        self.take(entries, names, &mut edit);
        edit.finish()
    }

    /// The directory with these entries and no others.
    pub(super) fn replace(
        &mut self,
        mut entries: Entries,
        names: &Names,
        before: &Directory,
    ) -> (Directory, Changes) {
        let mut edit = begin(before);
        add_deletions(&mut entries, &edit, names);
        self.keys.retain(|key, _| entries.contains_key(key));
        self.values.retain(|key, _| entries.contains_key(key));
        self.take(entries, names, &mut edit);
        edit.finish()
    }

    fn take(&mut self, entries: Entries, names: &Names, edit: &mut Edit) {
        let mut news = Vec::new();
        for (text, value) in entries {
            let key = match Key::parse(&text) {
                Ok(key) => key,
                Err(_) if value.is_none() => {
                    self.keys.remove(&text);
                    continue;
                }
                Err(why) => {
                    if self.keys.insert(text.clone(), why.clone()).is_none() {
                        news.push((text, why));
                    }
                    continue;
                }
            };
            match key.apply(edit, names, value.as_deref()) {
                Ok(()) => drop(self.values.remove(&text)),
                Err(error) => {
                    edit.unreadable(key.question(names));
                    let why = format!("{error:#}");
                    let before = self.values.insert(text.clone(), why.clone());
                    if before.as_ref() != Some(&why) {
                        news.push((text, why));
                    }
                }
            }
        }
        for (key, why) in news.iter().take(LINES_MAX) {
            tracing::error!(key, "directory entry not taken: {why}");
        }
        if let Some(more) = news.len().checked_sub(LINES_MAX).filter(|more| *more > 0) {
            tracing::error!("{more} more directory entries not taken");
        }
    }
}

/// Begins an edit of a directory, or of an empty one if the old one was filled on demand.
fn begin(before: &Directory) -> Edit {
    if before.is_on_demand() {
        Directory::new().edit()
    } else {
        before.edit()
    }
}

/// Adds deletions for all entries that the directory holds and the bucket lacks.
fn add_deletions(entries: &mut Entries, edit: &Edit, names: &Names) {
    let (users, groups) = edit.subjects();
    let of_user = |user| {
        [
            Question::Contacts(user),
            Question::BlockedBy(user),
            Question::Settings(user),
        ]
    };
    let users = users.into_iter().flat_map(of_user);
    let groups = groups.into_iter().map(Question::Members);
    let held = users.chain(groups).chain(edit.unreadable_entries());
    for key in held.filter_map(|question| entry::key_of(&question, names)) {
        entries.entry(key).or_insert(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(entries: &[(&str, Option<&'static str>)]) -> Entries {
        let entries = entries.iter();
        let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
        entries
            .map(|(key, value)| ((*key).to_owned(), value.map(bytes)))
            .collect()
    }

    fn has(directory: &Directory, question: &Question) -> Option<u64> {
        directory.audience(question).ok().map(|all| all.len())
    }

    #[test]
    fn updates_change_what_they_name_and_a_whole_one_all() {
        let names = Names::new();
        let mut refusals = Refusals::default();
        let whole = entries(&[
            ("contacts.a", Some(r#"["b","c"]"#)),
            ("groups.t", Some(r#"["a","d"]"#)),
            ("contacts.gone", None),
            ("settings.a", Some(r#"{"x":1}"#)),
        ]);
        let (directory, _) = refusals.replace(whole, &names, &Directory::unavailable());
        let a = names.intern("a");
        let contacts = Question::Contacts(a);
        assert_eq!(has(&directory, &contacts), Some(2));
        assert_eq!(directory.setting(a, "x"), Ok(Some("1")));

        let part = entries(&[("contacts.a", Some("[7]")), ("groups.t", None)]);
        let (changed, changes) = refusals.change(part, &names, &directory);
        assert_eq!(has(&changed, &contacts), Some(2), "what was known stays");
        assert!(changes.iter().any(|it| it == Question::Members("t".into())));
        assert_eq!(refusals.counts(), (0, 1));

        let whole = entries(&[("contacts.a", Some("[7]"))]);
        let (same, _) = refusals.replace(whole, &names, &changed);
        assert_eq!(has(&same, &contacts), Some(2));
        assert_eq!(same.setting(a, "x"), Ok(None));

        let (last, _) = refusals.replace(Entries::new(), &names, &same);
        assert!(last.is_empty());
        assert_eq!(refusals.counts(), (0, 0));
    }

    #[test]
    fn an_entry_of_which_nothing_is_known_is_not_at_hand_until_it_can_be_read_or_is_gone() {
        let names = Names::new();
        let mut refusals = Refusals::default();
        let blocks = Question::BlockedBy(names.intern("a"));
        for end in [Some(r#"["b"]"#), None] {
            let part = entries(&[("blocks.a", Some(r#"["b","#))]);
            let (closed, changes) = refusals.change(part, &names, &Directory::new());
            assert_eq!(has(&closed, &blocks), None);
            assert!(changes.iter().eq([blocks.clone()]));
            let (open, _) = refusals.change(entries(&[("blocks.a", end)]), &names, &closed);
            assert_eq!(has(&open, &blocks), Some(u64::from(end.is_some())));
            let (open, changes) = refusals.replace(Entries::new(), &names, &closed);
            assert_eq!(has(&open, &blocks), Some(0));
            assert!(changes.iter().eq([blocks.clone()]));
        }
    }

    #[test]
    fn a_key_that_is_not_canonical_is_refused_for_as_long_as_it_is_there() {
        let names = Names::new();
        let mut refusals = Refusals::default();
        let part = entries(&[("blocks.=YQ", Some(r#"["b"]"#)), ("friends.a", Some("[]"))]);
        let (directory, changes) = refusals.change(part.clone(), &names, &Directory::new());
        assert!(changes.is_empty());
        assert_eq!(refusals.counts(), (2, 0));
        let (_, changes) = refusals.replace(part, &names, &directory);
        assert!(changes.is_empty());
        let gone = entries(&[("blocks.=YQ", None)]);
        refusals.change(gone, &names, &directory);
        assert_eq!(refusals.counts(), (1, 0));
        refusals.replace(Entries::new(), &names, &directory);
        assert_eq!(refusals.counts(), (0, 0));
    }
}
