//! Event metadata: a JSON object, kept as text and read by key.
//!
//! It is parsed and checked once, where it comes in ([`Limits::read`]). After that, a value is only
//! parsed if a rule asks for it, and is written as it came in. Each entry says whether it is
//! public: whether it may be broadcast, or is only for the components.

use std::ops::Range;
use std::sync::Arc;

use crate::json;

mod checked;
mod strict;

pub(crate) use checked::MetadataPlace;
pub use checked::{CheckedMetadata, Entries};
pub use strict::{LIMITS_MAX, Limits};

/// Up to this number of entries, a key is found by a linear search; beyond it, by a sorted index.
const FEW: usize = 16;

/// Keys that are never broadcast, whatever the configuration says.
pub const NEVER_PUBLIC: [&str; 2] = ["ip", "socketId"];

/// The metadata of a connection or an event. Cloning it shares it. Two are equal if their entries
/// are.
#[derive(Clone, Debug, Default)]
pub struct Metadata(Option<Arc<Object>>);

#[derive(Clone, Debug, Default)]
struct Object {
    /// All that the entries refer to, and sometimes more: the text of a JSON object as it came in,
    /// or entries that were written one by one.
    text: String,
    entries: Vec<Entry>,
    /// The places of all entries, sorted by key; empty if there are at most `FEW`.
    index: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// The key as JSON text.
    quoted: Range<u32>,
    /// The unescaped key, which is mostly a part of `quoted`.
    key: Range<u32>,
    value: Range<u32>,
    public: bool,
}

impl Entry {
    /// The entry with a key without escapes, and a value, which are parts of `text`. It isn't
    /// public.
    fn plain(key: &str, value: &str, text: &str) -> Self {
        let key = place(key, text);
        Self {
            quoted: key.start - 1..key.end + 1,
            key,
            value: place(value, text),
            public: false,
        }
    }

    fn of<'a>(&self, text: &'a str) -> EntryRef<'a> {
        EntryRef {
            key: slice(text, &self.key),
            value: slice(text, &self.value),
            public: self.public,
        }
    }
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.entries().eq(other.entries())
    }
}

impl Eq for Metadata {}

impl Metadata {
    /// Parses the text of a JSON object. The result is empty if it isn't one, or exceeds
    /// [`LIMITS_MAX`]. Keys for which `public` is true may be broadcast.
    pub fn parse(text: &str, public: impl Fn(&str) -> bool) -> Self {
        let checked = LIMITS_MAX.read(text);
        checked.map_or_else(|_| Self::default(), |checked| checked.metadata(public))
    }

    /// The value under a key, as JSON text.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.entry(key).map(|entry| entry.value)
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.0.as_deref().map_or(0, |object| object.entries.len())
    }

    /// The approximate length as JSON text, in bytes.
    pub fn bytes(&self) -> usize {
        let entries = self.entries();
        let entry = |entry: EntryRef<'_>| entry.key.len() + entry.value.len() + 4;
        2 + entries.map(entry).sum::<usize>()
    }

    /// All entries, in order.
    pub fn entries(&self) -> impl Iterator<Item = EntryRef<'_>> {
        let (text, entries) = self.parts();
        entries.iter().map(move |entry| entry.of(text))
    }

    fn parts(&self) -> (&str, &[Entry]) {
        let object = self.0.as_deref();
        object.map_or(("", &[]), |object| (&object.text, &object.entries))
    }

    /// Whether the public entries are the same. Formatting makes no difference: neither the order
    /// of keys, nor white space.
    pub fn reads_as(&self, other: &Self) -> bool {
        let public = |it: &EntryRef<'_>| it.public;
        let count = self.entries().filter(public).count();
        count == other.entries().filter(public).count()
            && self.entries().filter(public).all(|entry| {
                let same = other.entry(entry.key).filter(public);
                same.is_some_and(|same| json::is_same(entry.value, same.value))
            })
    }

    fn entry(&self, key: &str) -> Option<EntryRef<'_>> {
        let object = self.0.as_deref()?;
        let entry = object.entries.get(object.place_of(key).ok()?)?;
        Some(entry.of(&object.text))
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Begins a changed copy.
    pub fn edit(&self) -> Builder {
        Builder(self.0.as_deref().cloned().unwrap_or_default())
    }

    /// Appends a JSON object with the public entries for whose key `wanted` is true.
    pub fn write_public(&self, json: &mut Vec<u8>, wanted: impl Fn(&str) -> bool) {
        let (text, entries) = self.parts();
        let text = |range: &Range<u32>| slice(text, range);
        json.push(b'{');
        let empty = json.len();
        // The part of the text with the last entries that can be copied as they are.
        let mut run = 0..0;
        for entry in entries
            .iter()
            .filter(|it| it.public && wanted(text(&it.key)))
        {
            let next = entry.quoted.start..entry.value.end;
            let is_whole = entry.quoted.end + 1 == entry.value.start;
            if is_whole && !run.is_empty() && text(&(run.end..next.start)) == "," {
                run.end = next.end;
                continue;
            }
            json.extend_from_slice(text(&run).as_bytes());
            if json.len() > empty {
                json.push(b',');
            }
            run = next;
            if !is_whole {
                json.extend_from_slice(text(&entry.quoted).as_bytes());
                json.push(b':');
                run.start = entry.value.start;
            }
        }
        json.extend_from_slice(text(&run).as_bytes());
        json.push(b'}');
    }

    /// Whether any entry may be broadcast.
    pub fn has_public(&self) -> bool {
        self.entries().any(|entry| entry.public)
    }
}

/// A change of a metadata key: the key, and its value as JSON text. `None`: the key is removed.
pub type MetadataChange = (String, Option<String>);

/// One entry of a [`Metadata`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// The key, unescaped.
    pub key: &'a str,
    /// The value, as JSON text.
    pub value: &'a str,
    /// Whether it may be broadcast.
    pub public: bool,
}

/// Metadata that is being built.
#[derive(Clone, Debug, Default)]
pub struct Builder(Object);

impl Builder {
    /// Empty, with capacity for this many entries, and this many bytes as JSON text.
    pub fn with_capacity(entries: usize, bytes: usize) -> Self {
        Self(Object {
            text: String::with_capacity(bytes),
            entries: Vec::with_capacity(entries),
            index: Vec::new(),
        })
    }

    /// Sets a key to a JSON text. An existing key keeps its place, and a new one is added at the
    /// end.
    pub fn set(&mut self, key: &str, value: &str, public: bool) {
        match self.0.place_of(key) {
            Ok(place) => {
                let value = self.0.push(value);
                if let Some(entry) = self.0.entries.get_mut(place) {
                    (entry.value, entry.public) = (value, is_public(key, public));
                }
            }
            Err(rank) => {
                self.append(key, value, public);
                self.0.index_last(rank);
            }
        }
    }

    /// Adds a new key with a JSON text as its value, at the end. The key must not exist yet.
    pub fn append(&mut self, key: &str, value: &str, public: bool) {
        let (object, public) = (&mut self.0, is_public(key, public));
        if !object.text.is_empty() {
            object.text.push(',');
        }
        let (quoted, key) = object.push_key(key);
        object.text.push(':');
        let value = object.push(value);
        object.entries.push(Entry {
            quoted,
            key,
            value,
            public,
        });
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &str) {
        if let Ok(place) = self.0.place_of(key) {
            self.0.entries.remove(place);
            self.0.unindex(place as u32);
        }
    }

    /// The finished metadata.
    pub fn build(mut self) -> Metadata {
        if self.0.index.is_empty() && self.0.entries.len() > FEW {
            self.0.index_all();
        }
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

    /// Appends a key as JSON text. Returns where that is, and where the unescaped key is.
    fn push_key(&mut self, key: &str) -> (Range<u32>, Range<u32>) {
        let is_plain = |byte: u8| !matches!(byte, 0..b' ' | b'"' | b'\\');
        if key.bytes().all(is_plain) {
            let start = self.text.len() as u32;
            self.text.push('"');
            let key = self.push(key);
            self.text.push('"');
            return (start..self.text.len() as u32, key);
        }
        let unescaped = self.push(key);
        (self.push(&json::quoted(key)), unescaped)
    }

    /// The place of a key, or else the rank at which it must be inserted into the index.
    fn place_of(&self, key: &str) -> Result<usize, usize> {
        if self.index.is_empty() {
            let holds = |entry: &Entry| slice(&self.text, &entry.key) == key;
            return self.entries.iter().position(holds).ok_or(0);
        }
        let rank = self
            .index
            .binary_search_by(|place| self.key_at(*place).cmp(key))?;
        let place = self.index.get(rank).copied().unwrap_or_default();
        Ok(place as usize)
    }

    fn key_at(&self, place: u32) -> &str {
        let entry = self.entries.get(place as usize);
        entry.map_or("", |entry| slice(&self.text, &entry.key))
    }

    /// Adds the last entry to the index, at this rank.
    fn index_last(&mut self, rank: usize) {
        let place = self.entries.len() - 1;
        if !self.index.is_empty() {
            self.index.insert(rank, place as u32);
        } else if place >= FEW {
            self.index_all();
        }
    }

    fn index_all(&mut self) {
        let mut index: Vec<_> = (0..self.entries.len() as u32).collect();
        index.sort_unstable_by(|a, b| self.key_at(*a).cmp(self.key_at(*b)));
        self.index = index;
    }

    /// Removes an entry from the index, after it was removed from the entries.
    fn unindex(&mut self, removed: u32) {
        if self.entries.len() <= FEW {
            return self.index.clear();
        }
        self.index.retain(|place| *place != removed);
        for place in self.index.iter_mut().filter(|place| **place > removed) {
            *place -= 1;
        }
    }
}

/// Whether a key may be broadcast. `public`: whether the configuration allows it.
fn is_public(key: &str, public: bool) -> bool {
    public && !NEVER_PUBLIC.contains(&key)
}

/// Where a part of a text is in it.
pub(crate) fn place(part: &str, text: &str) -> Range<u32> {
    // Messages are far smaller than 4 GiB.
    let start = (part.as_ptr().addr() - text.as_ptr().addr()) as u32;
    start..start + part.len() as u32
}

/// The part at a place.
pub(crate) fn slice<'a>(text: &'a str, range: &Range<u32>) -> &'a str {
    text.get(range.start as usize..range.end as usize)
        .unwrap_or_default()
}

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
    fn many_keys_are_found_set_and_removed_as_few_are() {
        let mut builder = Metadata::default().edit();
        let key = |number: u32| format!("k{}", number * 7_919 % 1_000);
        for number in 0..1_000 {
            builder.set(&key(number), &number.to_string(), true);
        }
        for number in (0..1_000).step_by(3) {
            builder.remove(&key(number));
        }
        for number in (1..1_000).step_by(3) {
            builder.set(&key(number), "true", true);
        }
        let metadata = builder.build();
        assert_eq!(metadata.len(), 666);
        for number in 0..1_000 {
            let expected = match number % 3 {
                0 => None,
                1 => Some("true".to_owned()),
                _ => Some(number.to_string()),
            };
            assert_eq!(metadata.get(&key(number)), expected.as_deref());
        }
        let first = metadata.entries().next().unwrap();
        assert_eq!((first.key, first.value), (&*key(1), "true"));
        assert!(metadata.bytes() >= written(&metadata).len());
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
