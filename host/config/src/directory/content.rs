//! What a source of a directory says about all users.

use std::collections::BTreeMap;

use presence_core::directory::{Changes, Directory, UserSettings};
use presence_core::names::{Id, Names};
use roaring::RoaringBitmap;

use super::reader;
use super::room::Room;

/// The whole content of a source.
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
        reader::whole(text, names, &Room::unlimited())
    }

    /// As [`Self::parse`], for a directory that may have this many entries. `None` if it surely has
    /// more: the rest isn't read then.
    pub fn parse_within(
        text: &str,
        names: &Names,
        entries_max: u64,
    ) -> serde_json::Result<Option<Self>> {
        let room = Room::of(entries_max);
        match reader::whole(text, names, &room) {
            Err(_) if room.is_exceeded() => Ok(None),
            read => read.map(Some),
        }
    }

    /// Whether it is empty without naming all sections. A directory that is meant to be empty names
    /// each of them.
    pub fn is_blank(&self) -> bool {
        let is_empty = self.contacts.is_empty()
            && self.groups.is_empty()
            && self.blocks.is_empty()
            && self.settings.is_empty();
        is_empty && self.sections != Sections::All
    }

    /// Replaces the content of `before` by this content. What this doesn't mention is removed.
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
    fn no_more_is_read_than_a_directory_may_have() {
        let users = |count: u32| -> String {
            let lists = (0..count).map(|user| format!("\"{user}\":[\"{}\"]", user + 1));
            let lists: Vec<_> = lists.collect();
            format!("{{\"contacts\":{{{}}}}}", lists.join(","))
        };
        let read = |text: &str| {
            let names = Names::new();
            let content = Content::parse_within(text, &names, 100).unwrap();
            (content.is_some(), names.len())
        };
        assert_eq!(read(&users(100)), (true, 101));
        let (is_taken, interned) = read(&users(100_000));
        assert!(!is_taken && interned < 400, "{interned}");
        // Settings, and groups without members, count as well.
        let settings: Vec<_> = (0..1_000).map(|it| format!("\"{it}\":1")).collect();
        let settings = format!("{{\"settings\":{{\"a\":{{{}}}}}}}", settings.join(","));
        assert!(!read(&settings).0);
        let groups: Vec<_> = (0..1_000).map(|it| format!("\"{it}\":[]")).collect();
        assert!(!read(&format!("{{\"groups\":{{{}}}}}", groups.join(","))).0);
        // Other problems are reported as usual.
        assert!(Content::parse_within("{\"contacts\":[]}", &Names::new(), 1).is_err());
    }

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
