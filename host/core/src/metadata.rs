//! Event metadata: a JSON object, kept as text and read by key.
//!
//! Values are never parsed further than a rule asks for, and are written out as
//! they came in. Each entry knows whether it is public: whether it may be
//! broadcast, or is there for the components alone.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::json;

/// Keys that are never broadcast, whoever asks for it.
pub const NEVER_PUBLIC: [&str; 2] = ["ip", "socketId"];

/// The metadata of a connection or an event. Cloning it shares it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata(Option<Arc<Object>>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Object {
    text: String,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    key: Range<u32>,
    value: Range<u32>,
    public: bool,
}

impl Metadata {
    /// Reads the text of a JSON object. What isn't one has no metadata: whoever
    /// takes it in has checked it. Of a key given twice, the last value holds.
    /// Keys for which `public` holds may be broadcast.
    pub fn parse(text: &str, public: impl Fn(&str) -> bool) -> Self {
        struct Object<F>(F, usize);
        impl<'de, F: Fn(&str) -> bool> Visitor<'de> for Object<F> {
            type Value = Builder;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Builder, A::Error> {
                let mut builder = Builder::with_capacity(self.1);
                while let Some((Key(key), value)) = map.next_entry::<Key<'de>, &RawValue>()? {
                    builder.set(&key, value.get(), (self.0)(&key));
                }
                Ok(builder)
            }
        }
        serde_json::Deserializer::from_str(text)
            .deserialize_map(Object(public, text.len()))
            .map(Builder::build)
            .unwrap_or_default()
    }

    /// The value under a key, as JSON text.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.entries()
            .find(|entry| entry.key == key)
            .map(|entry| entry.value)
    }

    /// All entries, in order.
    pub fn entries(&self) -> impl Iterator<Item = EntryRef<'_>> {
        let object = self.0.as_deref();
        let entries = object.map_or(&[][..], |object| object.entries.as_slice());
        entries.iter().map(move |entry| EntryRef {
            key: slice(object, &entry.key),
            value: slice(object, &entry.value),
            public: entry.public,
        })
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// A copy to change.
    pub fn edit(&self) -> Builder {
        Builder(self.0.as_deref().cloned().unwrap_or_default())
    }

    /// Appends, as a JSON object, the public entries that are wanted.
    pub fn write_public(&self, json: &mut Vec<u8>, wanted: impl Fn(&str) -> bool) {
        json.push(b'{');
        let mut first = true;
        for entry in self
            .entries()
            .filter(|entry| entry.public && wanted(entry.key))
        {
            if !first {
                json.push(b',');
            }
            first = false;
            json::push_quoted(json, entry.key);
            json.push(b':');
            json.extend_from_slice(entry.value.as_bytes());
        }
        json.push(b'}');
    }

    /// Whether any entry may be broadcast.
    pub fn has_public(&self) -> bool {
        self.entries().any(|entry| entry.public)
    }
}

/// One entry of a [`Metadata`].
#[derive(Clone, Copy, Debug)]
pub struct EntryRef<'a> {
    /// The key, unescaped.
    pub key: &'a str,
    /// The value, as JSON text.
    pub value: &'a str,
    /// Whether it may be broadcast.
    pub public: bool,
}

/// Metadata in the making.
#[derive(Clone, Debug, Default)]
pub struct Builder(Object);

impl Builder {
    /// Empty, with room for so many bytes of keys and values.
    fn with_capacity(bytes: usize) -> Self {
        Self(Object {
            text: String::with_capacity(bytes),
            entries: Vec::with_capacity(8),
        })
    }

    /// Sets a key to a value, given as JSON text, in the place the key has or at the end.
    pub fn set(&mut self, key: &str, value: &str, public: bool) {
        let object = &mut self.0;
        let public = public && !NEVER_PUBLIC.contains(&key);
        let value = object.push(value);
        let place = object.place_of(key);
        match place.and_then(|place| object.entries.get_mut(place)) {
            Some(entry) => (entry.value, entry.public) = (value, public),
            None => {
                let key = object.push(key);
                object.entries.push(Entry { key, value, public });
            }
        }
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &str) {
        if let Some(place) = self.0.place_of(key) {
            self.0.entries.remove(place);
        }
    }

    /// The metadata.
    pub fn build(self) -> Metadata {
        Metadata((!self.0.entries.is_empty()).then(|| Arc::new(self.0)))
    }
}

impl Object {
    fn push(&mut self, text: &str) -> Range<u32> {
        // Metadata comes in messages, which are far smaller than 4 GiB.
        let start = self.text.len() as u32;
        self.text.push_str(text);
        start..self.text.len() as u32
    }

    fn place_of(&self, key: &str) -> Option<usize> {
        let holds = |entry: &Entry| slice(Some(self), &entry.key) == key;
        self.entries.iter().position(holds)
    }
}

fn slice<'a>(object: Option<&'a Object>, range: &Range<u32>) -> &'a str {
    let text = object.map_or("", |object| object.text.as_str());
    text.get(range.start as usize..range.end as usize)
        .unwrap_or_default()
}

/// A key, borrowed from the text where it has no escapes.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    fn written(metadata: &Metadata) -> String {
        let mut json = Vec::new();
        metadata.write_public(&mut json, |_| true);
        String::from_utf8(json).unwrap()
    }

    #[test]
    fn values_come_out_as_they_went_in() {
        let text = r#"{"device":"web","n":1.50,"list":[1, 2],"a\"b":null}"#;
        let metadata = Metadata::parse(text, |_| true);
        assert_eq!(written(&metadata), text);
        assert_eq!(metadata.get("n"), Some("1.50"));
        assert_eq!(metadata.get("a\"b"), Some("null"));
        assert_eq!(metadata.get("none"), None);
    }

    #[test]
    fn the_last_of_two_equal_keys_holds() {
        let metadata = Metadata::parse(r#"{"a":1,"b":2,"a":3}"#, |_| true);
        assert_eq!(written(&metadata), r#"{"a":3,"b":2}"#);
    }

    #[test]
    fn private_keys_are_read_but_not_written() {
        let metadata = Metadata::parse(r#"{"device":"web","ip":"::1","x":1}"#, |key| key != "x");
        assert_eq!(written(&metadata), r#"{"device":"web"}"#);
        assert_eq!(metadata.get("ip"), Some("\"::1\""));
        assert!(!Metadata::parse(r#"{"socketId":1}"#, |_| true).has_public());
    }

    #[test]
    fn an_edit_leaves_the_original_alone() {
        let metadata = Metadata::parse(r#"{"a":1,"b":2}"#, |_| true);
        let mut builder = metadata.edit();
        builder.set("a", "true", true);
        builder.remove("b");
        builder.set("c", "\"new\"", true);
        assert_eq!(written(&builder.build()), r#"{"a":true,"c":"new"}"#);
        assert_eq!(written(&metadata), r#"{"a":1,"b":2}"#);
    }
}
