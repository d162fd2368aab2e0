//! The metadata of a message. It is parsed once; later uses go by the positions of its entries.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytestring::ByteString;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::strict::{self, Keys};
use super::{Builder, Limits, Metadata};
use crate::json::{Scanner, Text};

/// The text of a JSON object that has been checked. Clones share the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedMetadata {
    text: ByteString,
    entries: Entries,
}

/// Each key is compared with all keys before it, up to this number of keys.
const SCANNED_KEYS_MAX: usize = 16;

/// Up to four entries are stored inline.
type Entries = SmallVec<[Entry; 4]>;

/// The position of an entry in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// The key, without its quotes.
    key: Range<u32>,
    has_escapes: bool,
    value: Range<u32>,
}

impl Limits {
    /// Parses the text of a metadata object, in time proportional to its length.
    ///
    /// # Errors
    /// What is wrong with it, as a text to follow the field's name.
    pub fn read(self, text: ByteString) -> Result<CheckedMetadata, String> {
        self.check_bytes(text.len())?;
        if !text.trim_ascii_start().starts_with('{') {
            return Err("must be an object".into());
        }
        let mut json = serde_json::Deserializer::from_str(&text);
        let object = Object {
            limits: self,
            text: &text,
        };
        let read = object.deserialize(&mut json);
        let read = read.and_then(|entries| json.end().map(|()| entries));
        let entries = read.map_err(|error| strict::describe(&error))?;
        Ok(CheckedMetadata { text, entries })
    }

    /// Reads the metadata object that comes next in `text`. `None`: it isn't plain, or isn't valid
    /// metadata. [`Self::read`] finds out.
    pub(crate) fn scan<'a>(
        self,
        json: &mut Scanner<'a>,
        text: &'a ByteString,
    ) -> Option<CheckedMetadata> {
        let object = slice_from(text, json.offset());
        // No text is longer than the highest limit, so positions fit.
        let range = |part: &str| {
            let start = offset(object, part) as u32;
            start..start + part.len() as u32
        };
        let mut entries = Entries::new();
        let part = json.object(|json, key| {
            let is_there = |entry: &Entry| slice(object, &entry.key) == key;
            if entries.len() == SCANNED_KEYS_MAX || entries.iter().any(is_there) {
                return None;
            }
            let value = match json.quoted() {
                Some(plain) => plain,
                None => json
                    .value()
                    .filter(|it| self.check_parsed_value(it).is_ok())?,
            };
            entries.push(Entry {
                key: range(key),
                has_escapes: false,
                value: range(value),
            });
            Some(())
        })?;
        self.check_size(entries.len(), part.len()).ok()?;
        Some(CheckedMetadata {
            text: text.slice_ref(part),
            entries,
        })
    }
}

impl CheckedMetadata {
    /// The text as it came in.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The value under a key, as JSON text.
    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.entries.iter().find(|entry| self.key(entry) == key);
        found.map(|entry| slice(&self.text, &entry.value))
    }

    /// All keys, unescaped, and their values as JSON text, in order.
    pub fn entries(&self) -> impl Iterator<Item = (Cow<'_, str>, &str)> {
        let entries = self.entries.iter();
        entries.map(|entry| (self.key(entry), slice(&self.text, &entry.value)))
    }

    fn key(&self, entry: &Entry) -> Cow<'_, str> {
        let written = slice(&self.text, &entry.key);
        match entry.has_escapes {
            false => Cow::Borrowed(written),
            true => Cow::Owned(serde_json::from_str(&format!("\"{written}\"")).unwrap_or_default()),
        }
    }

    /// The entries as [`Metadata`]. Keys for which `public` is true may be broadcast.
    pub fn metadata(&self, public: impl Fn(&str) -> bool) -> Metadata {
        let mut builder = Builder::with_capacity(self.text.len());
        for (key, value) in self.entries() {
            builder.append(&key, value, public(&key));
        }
        builder.build()
    }
}

/// Parses the object with which this text begins.
#[derive(Clone, Copy)]
struct Object<'a> {
    limits: Limits,
    text: &'a str,
}

impl<'de> DeserializeSeed<'de> for Object<'de> {
    type Value = Entries;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Entries, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'de> {
    type Value = Entries;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let (mut entries, mut keys) = (Entries::new(), Keys::default());
        let mut at = 0;
        while let Some(key) = map.next_key::<Text<'de>>()? {
            let within = key.borrowed();
            let quoted = self.string(within, at);
            keys.insert(key.0).map_err(A::Error::custom)?;
            let checked = self.limits.check_keys(entries.len() + 1);
            checked.map_err(A::Error::custom)?;
            let value = self.value(&mut map, quoted.end)?;
            at = value.end;
            entries.push(Entry {
                key: quoted.start + 1..quoted.end - 1,
                has_escapes: within.is_none(),
                value,
            });
        }
        Ok(entries)
    }
}

impl<'de> Object<'de> {
    /// Parses the value of the key that ends at `at`. Returns the position of the value.
    fn value<A: MapAccess<'de>>(&self, map: &mut A, at: u32) -> Result<Range<u32>, A::Error> {
        let mut rest = slice_from(self.text, at as usize).bytes();
        let first = rest.find(|byte| !matches!(byte, b':' | b' ' | b'\n' | b'\r' | b'\t'));
        if first == Some(b'"') {
            let value = map.next_value::<Text<'de>>()?;
            return Ok(self.string(value.borrowed(), at));
        }
        let value = map.next_value::<&RawValue>()?.get();
        let checked = self.limits.check_parsed_value(value);
        checked.map_err(A::Error::custom)?;
        Ok(self.range(value))
    }

    /// The position of the next string, with its quotes. Only white space and punctuation may come
    /// between `at` and the string. `within`: the content of the string if it has no escapes.
    fn string(&self, within: Option<&str>, at: u32) -> Range<u32> {
        if let Some(within) = within {
            let Range { start, end } = self.range(within);
            return start - 1..end + 1;
        }
        let start = at
            + slice_from(self.text, at as usize)
                .find('"')
                .unwrap_or_default() as u32;
        let mut is_escaped = false;
        let closes = |byte: u8| {
            let closes = byte == b'"' && !is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            closes
        };
        let within = slice_from(self.text, start as usize + 1)
            .bytes()
            .position(closes);
        start..start + within.unwrap_or_default() as u32 + 2
    }

    /// The position of a part of the text.
    fn range(&self, part: &str) -> Range<u32> {
        // No text is longer than the highest limit, so the position fits.
        let start = offset(self.text, part) as u32;
        start..start + part.len() as u32
    }
}

/// The offset of a part of a text.
fn offset(text: &str, part: &str) -> usize {
    part.as_ptr().addr().wrapping_sub(text.as_ptr().addr())
}

fn slice_from(text: &str, start: usize) -> &str {
    text.get(start..).unwrap_or_default()
}

fn slice<'a>(text: &'a str, range: &Range<u32>) -> &'a str {
    let part = text.get(range.start as usize..range.end as usize);
    part.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> CheckedMetadata {
        Limits::default().read(text.into()).unwrap()
    }

    #[test]
    fn entries_are_found_where_they_are() {
        let text =
            " { \"a\" : [1, {\"b\": 2}] ,\"\\u0062\\n\":\"x\",\n\"\":-1.50, \"c\":\"\\\"\" } ";
        let checked = read(text);
        assert_eq!(checked.text(), text);
        let entries: Vec<_> = checked.entries().collect();
        let expected = [
            ("a", r#"[1, {"b": 2}]"#),
            ("b\n", r#""x""#),
            ("", "-1.50"),
            ("c", r#""\"""#),
        ];
        assert_eq!(entries, expected.map(|(key, value)| (key.into(), value)));
        for (key, value) in expected {
            assert_eq!(checked.get(key), Some(value));
        }
        assert_eq!(checked.get("d"), None);
        let metadata = checked.metadata(|key| key != "c");
        let mut public = Vec::new();
        metadata.write_public(&mut public, |_| true);
        let expected = r#"{"a":[1, {"b": 2}],"b\n":"x","":-1.50}"#;
        assert_eq!(String::from_utf8(public).unwrap(), expected);
        assert_eq!(metadata.get("c"), Some(r#""\"""#));
    }

    #[test]
    fn a_part_of_a_message_is_shared() {
        let message = ByteString::from(r#"{"userId":"a","metadata":{"device":"web"}}"#);
        let text = message.slice_ref(&message[25..41]);
        let checked = Limits::default().read(text).unwrap();
        assert_eq!(checked.get("device"), Some("\"web\""));
        assert_eq!(checked.text().as_ptr(), message[25..].as_ptr());
    }

    #[test]
    fn there_may_be_no_entry() {
        assert_eq!(read("{}").entries().count(), 0);
        assert!(read("{ }").metadata(|_| true).is_empty());
    }
}
