//! The metadata of a message: checked once, and kept as text.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::strict::{self, Keys};
use super::{Builder, Entry, LIMITS_MAX, Limits, Metadata, Object, is_public, place, slice};
use crate::json::{Scanner, Text};

/// Each key is compared with all keys before it, up to this number of keys.
const SCANNED_KEYS_MAX: usize = 16;

/// The text of a JSON object that has been checked. Two are equal if their texts are.
#[derive(Clone, Copy, Debug)]
pub struct CheckedMetadata<'a> {
    text: &'a str,
    /// Where the entries are in the text, if that was noted when it was checked.
    places: Option<&'a [Entry]>,
}

/// Where checked metadata is in a message's body.
#[derive(Clone, Debug)]
pub(crate) struct MetadataPlace {
    text: Range<u32>,
    /// Where the entries are in its text, if that was noted.
    entries: Option<Box<[Entry]>>,
}

/// Keys, unescaped, and their values as JSON text, in order. A few are stored inline.
pub type Entries<'a> = SmallVec<[(Cow<'a, str>, &'a str); 6]>;

impl PartialEq for CheckedMetadata<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for CheckedMetadata<'_> {}

impl PartialEq for MetadataPlace {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for MetadataPlace {}

impl MetadataPlace {
    /// The metadata, which is in this body.
    pub(crate) fn of<'a>(&'a self, body: &'a str) -> CheckedMetadata<'a> {
        CheckedMetadata {
            text: slice(body, &self.text),
            places: self.entries.as_deref(),
        }
    }
}

impl Limits {
    /// Parses the text of a metadata object, in time proportional to its length.
    ///
    /// # Errors
    /// What is wrong with it, as a text to follow the field's name.
    pub fn read(self, text: &str) -> Result<CheckedMetadata<'_>, String> {
        self.check_bytes(text.len())?;
        if !text.trim_ascii_start().starts_with('{') {
            return Err("must be an object".into());
        }
        parse(text, self).map_err(|error| strict::describe(&error))?;
        Ok(CheckedMetadata { text, places: None })
    }

    /// Checks a metadata object that is a part of a message's body.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn place(self, object: &str, body: &str) -> Result<MetadataPlace, String> {
        self.read(object)?;
        Ok(MetadataPlace {
            text: place(object, body),
            entries: None,
        })
    }

    /// Reads the metadata object that comes next in a message's body. `None`: it isn't plain, or
    /// isn't valid metadata. [`Self::place`] finds out. `notes_entries`: whether its entries will
    /// be read.
    pub(crate) fn scan(self, json: &mut Scanner<'_>, notes_entries: bool) -> Option<MetadataPlace> {
        let mut keys = SmallVec::<[&str; SCANNED_KEYS_MAX]>::new();
        let mut entries = SmallVec::<[Entry; 8]>::new();
        let from = json.rest();
        let object = json.object(|json, key| {
            if keys.len() == SCANNED_KEYS_MAX || keys.contains(&key) {
                return None;
            }
            keys.push(key);
            let value = match json.quoted() {
                Some(value) => value,
                None => json
                    .value()
                    .filter(|value| self.check_parsed_value(value).is_ok())?,
            };
            if notes_entries {
                entries.push(Entry::plain(key, value, from));
            }
            Some(())
        })?;
        self.check_size(keys.len(), object.len()).ok()?;
        Some(MetadataPlace {
            text: place(object, json.text()),
            entries: notes_entries.then(|| entries.as_slice().into()),
        })
    }
}

impl<'a> CheckedMetadata<'a> {
    /// The text as it came in.
    pub fn text(self) -> &'a str {
        self.text
    }

    /// The entries of the object.
    pub fn entries(self) -> Entries<'a> {
        if let Some(places) = self.places {
            let entries = places.iter().map(|place| {
                let [key, value] = [&place.key, &place.value].map(|it| slice(self.text, it));
                (Cow::Borrowed(key), value)
            });
            return entries.collect();
        }
        let mut entries = Entries::new();
        let plain = Scanner::new(self.text).object(|json, key| {
            entries.push((Cow::Borrowed(key), json.value()?));
            Some(())
        });
        match plain {
            Some(_) => entries,
            None => parse(self.text, LIMITS_MAX).unwrap_or_default(),
        }
    }

    /// The entries as [`Metadata`]. Keys for which `public` is true may be broadcast.
    pub fn metadata(self, public: impl Fn(&str) -> bool) -> Metadata {
        if let Some(places) = self.places {
            let entries = places.iter().map(|place| {
                let key = slice(self.text, &place.key);
                Entry {
                    public: is_public(key, public(key)),
                    ..place.clone()
                }
            });
            let object = Object {
                entries: entries.collect(),
                text: self.text.to_owned(),
                index: Vec::new(),
            };
            return Builder(object).build();
        }
        let entries = self.entries();
        let mut builder = Builder::with_capacity(entries.len(), self.text.len());
        for (key, value) in entries {
            builder.append(&key, value, public(&key));
        }
        builder.build()
    }
}

/// Parses the text of an object, and checks it.
fn parse(text: &str, limits: Limits) -> serde_json::Result<Entries<'_>> {
    let mut json = serde_json::Deserializer::from_str(text);
    let entries = ObjectVisitor { limits }.deserialize(&mut json)?;
    json.end()?;
    Ok(entries)
}

struct ObjectVisitor {
    limits: Limits,
}

impl<'de> DeserializeSeed<'de> for ObjectVisitor {
    type Value = Entries<'de>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Entries<'de>, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Entries<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<'de>, A::Error> {
        let (mut entries, mut keys) = (Entries::new(), Keys::default());
        while let Some(Text(key)) = map.next_key::<Text<'de>>()? {
            keys.insert(key.clone()).map_err(A::Error::custom)?;
            let checked = self.limits.check_keys(entries.len() + 1);
            checked.map_err(A::Error::custom)?;
            let value = map.next_value::<&RawValue>()?.get();
            let checked = self.limits.check_parsed_value(value);
            checked.map_err(A::Error::custom)?;
            entries.push((key, value));
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> CheckedMetadata<'_> {
        Limits::default().read(text).unwrap()
    }

    #[test]
    fn entries_are_found_where_they_are() {
        let text =
            " { \"a\" : [1, {\"b\": 2}] ,\"\\u0062\\n\":\"x\",\n\"\":-1.50, \"c\":\"\\\"\" } ";
        let checked = read(text);
        assert_eq!(checked.text(), text);
        let entries = checked.entries().into_vec();
        let expected = [
            ("a", r#"[1, {"b": 2}]"#),
            ("b\n", r#""x""#),
            ("", "-1.50"),
            ("c", r#""\"""#),
        ];
        assert_eq!(entries, expected.map(|(key, value)| (key.into(), value)));
        let metadata = checked.metadata(|key| key != "c");
        let mut public = Vec::new();
        metadata.write_public(&mut public, |_| true);
        let expected = r#"{"a":[1, {"b": 2}],"b\n":"x","":-1.50}"#;
        assert_eq!(String::from_utf8(public).unwrap(), expected);
        assert_eq!(metadata.get("c"), Some(r#""\"""#));
    }

    #[test]
    fn what_is_scanned_is_what_is_read() {
        let body = r#"{"a":{"device":"web" , "n" :[1],"ip":"::1"},"b":1}"#;
        let mut json = Scanner::new(body);
        let mut scanned = None;
        json.object(|json, key| match key {
            "a" => {
                scanned = Limits::default().scan(json, true);
                scanned.as_ref().map(drop)
            }
            _ => json.value().map(drop),
        });
        let scanned = scanned.unwrap();
        let (scanned, read) = (scanned.of(body), read(&body[5..43]));
        assert_eq!(scanned, read);
        assert_eq!(scanned.entries(), read.entries());
        let public = |key: &str| key != "n";
        assert_eq!(scanned.metadata(public), read.metadata(public));
        let mut written = Vec::new();
        scanned
            .metadata(|_| true)
            .write_public(&mut written, |_| true);
        assert_eq!(
            String::from_utf8(written).unwrap(),
            r#"{"device":"web","n":[1]}"#
        );
    }

    #[test]
    fn there_may_be_no_entry() {
        assert_eq!(read("{}").entries().len(), 0);
        assert!(read("{ }").metadata(|_| true).is_empty());
    }
}
