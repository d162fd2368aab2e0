//! The strict reader of all directory data: the sections of a directory file, the values of a KV
//! bucket, and the answers of a service.
//!
//! A key that occurs twice in an object is refused at every depth: it would depend on the reader
//! which one counts, and one of them may be a block. Ids are interned as they are read, since a
//! directory may be large.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use presence_core::directory::UserSettings;
use presence_core::message::{ID_BYTES_MAX, is_id};
use presence_core::names::{Id, Names};
use roaring::RoaringBitmap;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Unexpected,
    Visitor,
};
use serde_json::value::RawValue;

use super::content::{Content, SECTIONS, Sections};
use super::room::Room;

/// Reads a text in the form of a directory file, and which sections it names.
pub(super) fn whole(text: &str, names: &Names, room: &Room) -> serde_json::Result<Content> {
    read(text, DirectorySeed(names, room))
}

/// A JSON list of user ids, as the set of their numbers.
pub(super) fn ids(json: &str, names: &Names) -> serde_json::Result<RoaringBitmap> {
    read(json, Ids(names, &Room::unlimited()))
}

/// A JSON object of a user's settings.
pub(super) fn settings(json: &str) -> serde_json::Result<UserSettings> {
    read(json, SettingsOfOne(&Room::unlimited()))
}

/// A JSON list of groups' names.
pub(super) fn groups(json: &str) -> serde_json::Result<Vec<String>> {
    let groups: Vec<String> = serde_json::from_str(json)?;
    match groups.iter().find(|group| !is_id(group)) {
        Some(group) => Err(serde_json::Error::custom(no_id("the group", group))),
        None => Ok(groups),
    }
}

fn read<'de, S: DeserializeSeed<'de>>(json: &'de str, seed: S) -> serde_json::Result<S::Value> {
    let mut input = serde_json::Deserializer::from_str(json);
    let value = seed.deserialize(&mut input).map_err(|error| {
        // If the text is cut off, this error says more than the one about an entry.
        let is_whole = serde_json::from_str::<IgnoredAny>(json);
        is_whole.err().unwrap_or(error)
    })?;
    input.end()?;
    Ok(value)
}

/// The error about a text that can't be an id.
fn no_id(what: &str, text: &str) -> String {
    format!("{what} `{text}` must be a string of 1 to {ID_BYTES_MAX} bytes")
}

/// The whole object.
struct DirectorySeed<'a>(&'a Names, &'a Room);

impl<'de> DeserializeSeed<'de> for DirectorySeed<'_> {
    type Value = Content;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Content, D::Error> {
        input.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for DirectorySeed<'_> {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with {}", SECTIONS.join(", "))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
        let Self(names, room) = self;
        let user = |text: &str| names.intern(text);
        let lists = Ids(names, room);
        let settings = SettingsOfOne(room);
        let mut content = Content::default();
        let mut named = BTreeSet::new();
        while let Some(section) = map.next_key::<String>()? {
            if !named.insert(section.clone()) {
                return Err(A::Error::custom(format!("`{section}` is there twice")));
            }
            match section.as_str() {
                "contacts" => content.contacts = map.next_value_seed(ById(user, lists, room))?,
                "blocks" => content.blocks = map.next_value_seed(ById(user, lists, room))?,
                "groups" => {
                    content.groups = map.next_value_seed(ById(str::to_owned, lists, room))?
                }
                "settings" => content.settings = map.next_value_seed(ById(user, settings, room))?,
                other => return Err(A::Error::unknown_field(other, &SECTIONS)),
            }
        }
        content.sections = match named.len() {
            count if count == SECTIONS.len() => Sections::All,
            _ => Sections::Some,
        };
        Ok(content)
    }
}

/// An object whose keys are ids. The function converts each id to a key of the map.
struct ById<'a, F, S>(F, S, &'a Room);

impl<'de, K, F, S> DeserializeSeed<'de> for ById<'_, F, S>
where
    K: Ord,
    F: Fn(&str) -> K,
    S: DeserializeSeed<'de> + Copy,
{
    type Value = BTreeMap<K, S::Value>;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Self::Value, D::Error> {
        let Self(key_of, value, room) = self;
        input.deserialize_map(Object {
            what: "an object by id",
            key: |key: &str| match is_id(key) {
                true => Ok(key_of(key)),
                false => Err(no_id("the key", key)),
            },
            value,
            room: Some(room),
        })
    }
}

/// The settings of one user: JSON texts by key.
#[derive(Clone, Copy)]
struct SettingsOfOne<'a>(&'a Room);

impl<'de> DeserializeSeed<'de> for SettingsOfOne<'_> {
    type Value = UserSettings;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<UserSettings, D::Error> {
        input.deserialize_map(Object {
            what: "an object of settings",
            key: |key: &str| Ok(key.into()),
            value: Text,
            room: Some(self.0),
        })
    }
}

/// An object in which each key occurs once.
struct Object<'a, F, S> {
    what: &'static str,
    key: F,
    value: S,
    /// Each key takes room for one item. `None`: keys take no room.
    room: Option<&'a Room>,
}

impl<'de, K, F, S> Visitor<'de> for Object<'_, F, S>
where
    K: Ord,
    F: Fn(&str) -> Result<K, String>,
    S: DeserializeSeed<'de> + Copy,
{
    type Value = BTreeMap<K, S::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some(text) = map.next_key::<String>()? {
            self.room
                .map_or(Ok(()), Room::take)
                .map_err(A::Error::custom)?;
            // The error names the key, besides the place that serde names.
            let value = map.next_value_seed(self.value);
            let value = value.map_err(|error| A::Error::custom(format!("of `{text}`: {error}")))?;
            let key = (self.key)(&text).map_err(A::Error::custom)?;
            if entries.insert(key, value).is_some() {
                return Err(A::Error::custom(format!("`{text}` is there twice")));
            }
        }
        Ok(entries)
    }
}

/// A list of user ids.
#[derive(Clone, Copy)]
struct Ids<'a>(&'a Names, &'a Room);

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
            self.1.take().map_err(A::Error::custom)?;
            ids.insert(id.0);
        }
        Ok(ids)
    }
}

/// A user id.
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
        write!(f, "a user id: a string of 1 to {ID_BYTES_MAX} bytes")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Id, E> {
        if !is_id(text) {
            return Err(E::invalid_value(Unexpected::Str(text), &self));
        }
        Ok(self.0.intern(text))
    }
}

/// A value as its JSON text, in which no object has a key twice.
#[derive(Clone, Copy)]
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Box<str>;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Box<str>, D::Error> {
        let text: Box<RawValue> = serde::Deserialize::deserialize(input)?;
        // The text is taken unchanged, and this checks its content.
        read(text.get(), StrictJson).map_err(D::Error::custom)?;
        // Refuses escapes and numbers that no reader accepts: a rule could never find the value.
        serde_json::from_str::<serde_json::Value>(text.get()).map_err(D::Error::custom)?;
        Ok(text.get().into())
    }
}

/// Any value, in which no object has a key twice.
#[derive(Clone, Copy)]
struct StrictJson;

impl<'de> DeserializeSeed<'de> for StrictJson {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictJson {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        let object = Object {
            what: "an object",
            key: |key: &str| Ok::<_, String>(key.to_owned()),
            value: self,
            room: None,
        };
        object.visit_map(map).map(drop)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str, names: &Names) -> serde_json::Result<Content> {
        super::whole(text, names, &Room::unlimited())
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
            (r#"{"contacts":[]}"#, &["an object by id"]),
            (
                r#"{"settings":{"a":[]}}"#,
                &["of `a`", "an object of settings"],
            ),
        ] {
            let error = whole(text, &Names::new()).unwrap_err().to_string();
            for word in words {
                assert!(error.contains(word), "{text}: {error}");
            }
        }
    }

    #[test]
    fn a_key_twice_is_refused_in_every_section_and_at_every_depth() {
        for (text, key) in [
            (r#"{"blocks":{},"blocks":{}}"#, "blocks"),
            (r#"{"contacts":{"a":[],"a":[]}}"#, "a"),
            (r#"{"contacts":{"a":[],"\u0061":[]}}"#, "a"),
            (r#"{"groups":{"a":[],"a":[]}}"#, "a"),
            (r#"{"blocks":{"a":["b"],"a":[]}}"#, "a"),
            (r#"{"settings":{"a":{"x":1},"a":{}}}"#, "a"),
            (r#"{"settings":{"a":{"x":true,"x":false}}}"#, "x"),
            (r#"{"settings":{"a":{"x":[{"y":["b"],"y":[]}]}}}"#, "y"),
        ] {
            let error = whole(text, &Names::new()).unwrap_err().to_string();
            assert!(
                error.contains(&format!("`{key}` is there twice")),
                "{error}"
            );
        }
        let error = settings(r#"{"invisible":true,"invisible":false}"#);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("`invisible` is there twice"), "{error}");
    }

    #[test]
    fn what_is_no_id_is_refused_everywhere() {
        let long = "x".repeat(ID_BYTES_MAX + 1);
        for id in ["", long.as_str()] {
            for text in [
                format!(r#"{{"contacts":{{"{id}":[]}}}}"#),
                format!(r#"{{"contacts":{{"a":["{id}"]}}}}"#),
                format!(r#"{{"groups":{{"{id}":[]}}}}"#),
                format!(r#"{{"groups":{{"a":["{id}"]}}}}"#),
                format!(r#"{{"blocks":{{"{id}":[]}}}}"#),
                format!(r#"{{"blocks":{{"a":["{id}"]}}}}"#),
                format!(r#"{{"settings":{{"{id}":{{}}}}}}"#),
            ] {
                let error = whole(&text, &Names::new()).unwrap_err().to_string();
                assert!(error.contains("1 to 256 bytes"), "{error}");
            }
            assert!(ids(&format!(r#"["{id}"]"#), &Names::new()).is_err());
            assert!(groups(&format!(r#"["{id}"]"#)).is_err());
        }
    }

    #[test]
    fn a_setting_keeps_its_text_and_must_be_readable() {
        let read = settings(r#"{"a": {"b": [1, -2.5, null, true, "c"]}}"#).unwrap();
        assert_eq!(
            read.get("a").map(|text| &**text),
            Some(r#"{"b": [1, -2.5, null, true, "c"]}"#)
        );
        for text in [r#"{"a":"\ud800"}"#, r#"{"a":1e999}"#, r#"{"a":}"#, "[]"] {
            assert!(settings(text).is_err(), "{text}");
        }
    }
}
