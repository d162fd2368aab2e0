//! What a source says of all users, as a whole.

use std::collections::BTreeMap;

use presence_core::directory::{Changes, Directory, UserSettings};
use presence_core::names::{Id, Names};
use roaring::RoaringBitmap;

use super::reader;

/// All that a source says.
#[derive(Debug, Default)]
pub struct Content {
    pub(super) contacts: BTreeMap<Id, RoaringBitmap>,
    pub(super) groups: BTreeMap<String, RoaringBitmap>,
    pub(super) blocks: BTreeMap<Id, RoaringBitmap>,
    pub(super) settings: BTreeMap<Id, UserSettings>,
    pub(super) sections: Sections,
}

/// Which sections a text names, whatever is in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sections {
    /// Not all of them.
    #[default]
    Some,
    /// All of them.
    All,
}

/// The sections of a directory.
pub(super) const SECTIONS: [&str; 4] = ["contacts", "groups", "blocks", "settings"];

impl Content {
    /// Reads the text of a directory file. Ids are interned in the file's order,
    /// which is the order in which audiences are written.
    pub fn parse(text: &str, names: &Names) -> serde_json::Result<Self> {
        reader::whole(text, names)
    }

    /// Whether it says nothing of anybody, without naming all of the sections: what is
    /// meant to be empty says so of each.
    pub fn is_blank(&self) -> bool {
        let is_empty = self.contacts.is_empty()
            && self.groups.is_empty()
            && self.blocks.is_empty()
            && self.settings.is_empty();
        is_empty && self.sections != Sections::All
    }

    /// Makes of the directory so far what this says: what it doesn't mention is gone.
    pub fn replace(self, before: &Directory) -> (Directory, Changes) {
        let mut edit = match before.is_on_demand() {
            true => Directory::new().edit(),
            false => before.edit(),
        };
        let (users, groups) = edit.subjects();
        for user in users {
            if !self.contacts.contains_key(&user) {
                edit.contacts(user, None);
            }
            if !self.blocks.contains_key(&user) {
                edit.blocked(user, None);
            }
            if !self.settings.contains_key(&user) {
                edit.settings(user, None);
            }
        }
        for group in groups {
            if !self.groups.contains_key(&*group) {
                edit.group(&group, None);
            }
        }
        for (user, list) in self.contacts {
            edit.contacts(user, Some(list));
        }
        for (group, list) in self.groups {
            edit.group(&group, Some(list));
        }
        for (user, list) in self.blocks {
            edit.blocked(user, Some(list));
        }
        for (user, settings) in self.settings {
            edit.settings(user, Some(settings));
        }
        edit.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use presence_core::directory::Question;

    #[test]
    fn a_text_is_read_and_replaced_by_the_next() {
        let names = Names::new();
        let text = r#"{"contacts":{"12345":["67890","11111"]},"groups":{"t":["12345","22222"]},
            "blocks":{"12345":["11111"]},"settings":{"12345":{"seen":"nobody"}}}"#;
        let parse = |text| Content::parse(text, &names).unwrap();
        let (first, changes) = parse(text).replace(&Directory::new());
        assert!(!changes.is_empty());
        let user = names.intern("12345");
        assert_eq!(first.audience(&Question::Contacts(user)).unwrap().len(), 2);
        assert_eq!(first.setting(user, "seen"), Ok(Some("\"nobody\"")));
        let (same, changes) = parse(text).replace(&first);
        assert!(changes.is_empty());
        assert!(parse(r#"{"contacts":{},"groups":{},"blocks":{}}"#).is_blank());
        let all = r#"{"contacts":{},"groups":{},"blocks":{},"settings":{}}"#;
        assert!(!parse(all).is_blank() && !parse(text).is_blank());
        let (last, _) = parse("{}").replace(&same);
        assert!(last.is_empty());
    }
}
