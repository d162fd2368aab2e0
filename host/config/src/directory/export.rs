//! A directory as it is written to a file: by ids, in an order that doesn't depend on its source.

use std::collections::{BTreeMap, BTreeSet};

use presence_core::audience::Audience;
use presence_core::directory::{Directory, Question};
use presence_core::names::{Id, Names};
use serde::Serialize;
use serde_json::value::RawValue;

/// What a directory file holds.
#[derive(Debug, Default, Serialize)]
pub struct Export {
    /// Who may see whom: by user, their contacts.
    pub contacts: BTreeMap<String, BTreeSet<String>>,
    /// By group, its members.
    pub groups: BTreeMap<String, BTreeSet<String>>,
    /// By user, who is blocked.
    pub blocks: BTreeMap<String, BTreeSet<String>>,
    /// By user, their settings.
    pub settings: BTreeMap<String, BTreeMap<String, Box<RawValue>>>,
}

impl Export {
    /// Everything that a directory says. It must not be one that is asked on demand.
    pub fn of(directory: &Directory, names: &Names) -> Self {
        let (users, groups) = directory.edit().subjects();
        let name = |id: Id| names.name(id).map(|name| name.as_str().to_owned());
        let list = |question: Question| Self::list(directory, &question, names);
        let mut export = Self::default();
        for (id, user) in users.into_iter().filter_map(|id| Some((id, name(id)?))) {
            // An empty entry counts, too: it makes the user known.
            let entry = |question| directory.has_entry(&question).then(|| list(question));
            if let Some(contacts) = entry(Question::Contacts(id)) {
                export.contacts.insert(user.clone(), contacts);
            }
            if let Some(blocked) = entry(Question::BlockedBy(id)) {
                export.blocks.insert(user.clone(), blocked);
            }
            if let Some(settings) = Self::settings(directory, id) {
                export.settings.insert(user, settings);
            }
        }
        for group in groups {
            let members = list(Question::Members(group.clone()));
            export.groups.insert(group.to_string(), members);
        }
        export
    }

    /// The ids that answer a question.
    pub(super) fn list(
        directory: &Directory,
        question: &Question,
        names: &Names,
    ) -> BTreeSet<String> {
        let audience = directory.audience(question);
        let audience = audience.unwrap_or_else(|_| Audience::nobody());
        let name = |id: Id| names.name(id).map(|name| name.as_str().to_owned());
        audience.ids().filter_map(name).collect()
    }

    /// A user's settings, if there are any.
    pub(super) fn settings(
        directory: &Directory,
        id: Id,
    ) -> Option<BTreeMap<String, Box<RawValue>>> {
        let settings = directory.settings(id)?.iter().filter_map(|(key, value)| {
            let value = RawValue::from_string(value.to_string()).ok()?;
            Some((key.to_string(), value))
        });
        Some(settings.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::Content;

    #[test]
    fn what_is_written_reads_as_the_same_directory() {
        let text = r#"{"contacts":{"b":["a","c"],"a":[]},"groups":{"t":["a","ü\n"]},
            "blocks":{"b":["gone"]},"settings":{"c":{"online":{"contactsExcept":["b"]}}}}"#;
        let written = |text: &str| {
            let names = Names::new();
            let content = Content::parse(text, &names).unwrap();
            let (directory, _) = content.replace(&Directory::new());
            serde_json::to_string(&Export::of(&directory, &names)).unwrap()
        };
        let once = written(text);
        let expected = r#"{"contacts":{"a":[],"b":["a","c"]},"groups":{"t":["a","ü\n"]},"blocks":{"b":["gone"]},"settings":{"c":{"online":{"contactsExcept":["b"]}}}}"#;
        assert_eq!(once, expected);
        assert_eq!(written(&once), once);
    }
}
