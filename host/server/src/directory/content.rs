//! What a source says of all users: read from JSON, with ids interned as they
//! come, since a directory may be large.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use presence_core::directory::{Changes, Directory, Settings};
use presence_core::message::is_id;
use presence_core::names::{Id, Names};
use roaring::RoaringBitmap;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// All that a source says.
#[derive(Debug, Default)]
pub(crate) struct Content {
    pub(super) contacts: BTreeMap<Id, RoaringBitmap>,
    pub(super) groups: BTreeMap<String, RoaringBitmap>,
    pub(super) blocks: BTreeMap<Id, RoaringBitmap>,
    pub(super) settings: BTreeMap<Id, Settings>,
}

/// What an id is.
const ID: &str = "a string of 1 to 256 bytes";

/// The sections of a directory.
pub(super) const SECTIONS: [&str; 4] = ["contacts", "groups", "blocks", "settings"];

impl Content {
    /// Reads the text of a directory file. Ids are interned in the file's order,
    /// which is the order in which audiences are written.
    pub(crate) fn parse(text: &str, names: &Names) -> serde_json::Result<Self> {
        let mut json = serde_json::Deserializer::from_str(text);
        let content = Whole(names).deserialize(&mut json)?;
        json.end()?;
        Ok(content)
    }

    /// Makes of the directory so far what this says: what it doesn't mention is gone.
    pub(crate) fn replace(self, before: &Directory) -> (Directory, Changes) {
        let mut edit = before.edit();
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

/// A JSON list of user ids, as the set of their numbers.
pub(super) fn ids(json: &str, names: &Names) -> serde_json::Result<RoaringBitmap> {
    let mut json = serde_json::Deserializer::from_str(json);
    let ids = Ids(names).deserialize(&mut json)?;
    json.end()?;
    Ok(ids)
}

/// A JSON object of a user's settings.
pub(super) fn settings(json: &str) -> serde_json::Result<Settings> {
    serde_json::from_str::<BTreeMap<Box<str>, Box<RawValue>>>(json).map(texts)
}

fn texts(settings: BTreeMap<Box<str>, Box<RawValue>>) -> Settings {
    let settings = settings.into_iter();
    settings
        .map(|(key, value)| (key, value.get().into()))
        .collect()
}

/// The whole object.
struct Whole<'a>(&'a Names);

impl<'de> DeserializeSeed<'de> for Whole<'_> {
    type Value = Content;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Content, D::Error> {
        input.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Whole<'_> {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with {}", SECTIONS.join(", "))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
        let Self(names) = self;
        let user = |text: &str| names.intern(text);
        let mut content = Content::default();
        let mut sections = BTreeSet::new();
        while let Some(section) = map.next_key::<String>()? {
            if !sections.insert(section.clone()) {
                return Err(A::Error::custom(format!("`{section}` is there twice")));
            }
            match section.as_str() {
                "contacts" => content.contacts = map.next_value_seed(Lists(names, user))?,
                "blocks" => content.blocks = map.next_value_seed(Lists(names, user))?,
                "groups" => content.groups = map.next_value_seed(Lists(names, str::to_owned))?,
                "settings" => {
                    let settings = map.next_value::<BTreeMap<String, BTreeMap<_, _>>>()?;
                    let settings = settings.into_iter();
                    content.settings = settings
                        .map(|(id, given)| (user(&id), texts(given)))
                        .collect();
                }
                other => return Err(A::Error::unknown_field(other, &SECTIONS)),
            }
        }
        Ok(content)
    }
}

/// An object of lists of user ids, its keys read by a function.
struct Lists<'a, F>(&'a Names, F);

impl<'de, K: Ord, F: Fn(&str) -> K> DeserializeSeed<'de> for Lists<'_, F> {
    type Value = BTreeMap<K, RoaringBitmap>;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Self::Value, D::Error> {
        input.deserialize_map(self)
    }
}

impl<'de, K: Ord, F: Fn(&str) -> K> Visitor<'de> for Lists<'_, F> {
    type Value = BTreeMap<K, RoaringBitmap>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of lists of user ids")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Self(names, key_of) = self;
        let mut lists = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            if !is_id(&key) {
                return Err(A::Error::custom(format!("the key `{key}` must be {ID}")));
            }
            // Whose list is wrong is said beside what serde says of the place.
            let list = map.next_value_seed(Ids(names));
            let list = list.map_err(|error| A::Error::custom(format!("of `{key}`: {error}")))?;
            if lists.insert(key_of(&key), list).is_some() {
                return Err(A::Error::custom(format!("`{key}` is listed twice")));
            }
        }
        Ok(lists)
    }
}

/// A list of user ids.
struct Ids<'a>(&'a Names);

impl<'de> DeserializeSeed<'de> for Ids<'_> {
    type Value = RoaringBitmap;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<RoaringBitmap, D::Error> {
        input.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Ids<'_> {
    type Value = RoaringBitmap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of user ids")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RoaringBitmap, A::Error> {
        let mut ids = RoaringBitmap::new();
        while let Some(id) = list.next_element_seed(UserId(self.0))? {
            ids.insert(id.0);
        }
        Ok(ids)
    }
}

/// A user id: a string that isn't empty.
struct UserId<'a>(&'a Names);

impl<'de> DeserializeSeed<'de> for UserId<'_> {
    type Value = Id;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Id, D::Error> {
        input.deserialize_str(self)
    }
}

impl Visitor<'_> for UserId<'_> {
    type Value = Id;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a user id: {ID}")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Id, E> {
        if !is_id(text) {
            return Err(E::invalid_value(serde::de::Unexpected::Str(text), &self));
        }
        Ok(self.0.intern(text))
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
        let (last, _) = parse("{}").replace(&same);
        assert!(last.is_empty());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, words) in [
            (
                r#"{"contacts":{"a":[7]}}"#,
                &["of `a`", "integer `7`", "line 1 column 19"][..],
            ),
            (r#"{"contacts":{"a":[""]}}"#, &["of `a`", "1 to 256 bytes"]),
            (r#"{"blocks":{"a":"b"}}"#, &["of `a`", "a list of user ids"]),
            (r#"{"friends":{}}"#, &["friends", "contacts"]),
            ("[]", &["an object with contacts, groups, blocks, settings"]),
            ("{} {}", &["trailing"]),
            (r#"{"blocks":{"a":[],"a":[]}}"#, &["`a` is listed twice"]),
            (r#"{"blocks":{},"blocks":{}}"#, &["`blocks` is there twice"]),
            (r#"{"groups":{"":[]}}"#, &["1 to 256 bytes"]),
        ] {
            let error = Content::parse(text, &Names::new()).unwrap_err().to_string();
            for word in words {
                assert!(error.contains(word), "{text}: {error}");
            }
        }
    }
}
