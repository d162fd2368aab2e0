//! A tenant's table of user ids. Each id is interned once: it gets a number, and is stored in the
//! JSON form in which it is written.
//!
//! Sets of users are sets of these numbers, so the cost of a rule doesn't depend on the length of
//! ids, and writing an audience is copying bytes. A [sweep](Names::begin_sweep) frees the ids that
//! nothing refers to.

use std::fmt;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use foldhash::quality::FixedState;
use hashbrown::HashTable;
use roaring::RoaringBitmap;

/// A user id's number in its tenant's [`Names`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub u32);

/// The maximum length of an id's JSON form, with its comma, that is stored inline. With it, a
/// [`Name`] takes 48 bytes. The form of a UUID has 39 bytes.
const SHORT_MAX: usize = 46;

/// About how many bytes of a list are collected before they are appended to it.
const BLOCK_BYTES: usize = 512;

/// A user id: its text and its JSON form. Cloning doesn't allocate: it copies or shares.
#[derive(Clone, PartialEq, Eq)]
pub struct Name(Form);

/// `"…",`: quoted, escaped, and with the comma that follows it in a list.
#[derive(Clone, PartialEq, Eq)]
enum Form {
    /// Stored inline, so that writing an audience needn't follow a pointer for each id.
    Short {
        len: u8,
        /// The form, followed by zeroes.
        json: [u8; SHORT_MAX],
    },
    Long {
        json: Arc<str>,
        /// The text, if escaping made the JSON form differ from it.
        text: Option<Arc<str>>,
    },
}

impl Name {
    fn new(text: &str) -> Self {
        let mut json = crate::json::quoted(text);
        let escaped = json.len() != text.len() + 2;
        json.push(',');
        let mut short = [0; SHORT_MAX];
        match (short.get_mut(..json.len()), u8::try_from(json.len())) {
            (Some(place), Ok(len)) if !escaped => {
                place.copy_from_slice(json.as_bytes());
                Self(Form::Short { len, json: short })
            }
            _ => Self(Form::Long {
                json: json.into(),
                text: escaped.then(|| text.into()),
            }),
        }
    }

    /// The id as its sender wrote it.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// Whether the id equals this text.
    pub fn is(&self, text: &str) -> bool {
        self.as_bytes() == text.as_bytes()
    }

    /// The id as its sender wrote it.
    fn as_bytes(&self) -> &[u8] {
        if let Form::Long {
            text: Some(text), ..
        } = &self.0
        {
            return text.as_bytes();
        }
        let json = self.json_element();
        json.get(1..json.len() - 2).unwrap_or_default()
    }

    /// The id as a JSON string.
    pub fn json(&self) -> &[u8] {
        let json = self.json_element();
        json.get(..json.len() - 1).unwrap_or_default()
    }

    /// The id as an element of a JSON array, with the comma behind it.
    pub(crate) fn json_element(&self) -> &[u8] {
        self.0.json_element()
    }
}

impl Form {
    fn json_element(&self) -> &[u8] {
        match self {
            Self::Short { len, json } => json.get(..usize::from(*len)).unwrap_or_default(),
            Self::Long { json, .. } => json.as_bytes(),
        }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// The maximum size of the new ids that plugins may name until the next sweep, in bytes; and about
/// how many bytes an id takes beside its text.
const NAMED_BYTES_MAX: usize = 128 << 20;
const NAMED_BYTES: usize = 64;

/// A tenant's user ids, shared by its shards.
#[derive(Debug, Default)]
pub struct Names {
    table: RwLock<Table>,
    /// The size of the ids that plugins have named since the last sweep, in bytes.
    named_bytes: AtomicUsize,
    /// Whether this size isn't limited, since nothing sweeps.
    is_unbounded: bool,
}

#[derive(Debug, Default)]
struct Table {
    hasher: FixedState,
    numbers: HashTable<u32>,
    names: Vec<Option<Name>>,
    free: Vec<u32>,
    /// During a sweep: the numbers that nobody is known to use.
    unseen: Option<RoaringBitmap>,
}

impl Names {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty table that is never swept, so plugins may name any number of ids.
    pub fn unbounded() -> Self {
        Self {
            is_unbounded: true,
            ..Self::default()
        }
    }

    /// The number of an id. A new id gets a number.
    pub fn intern(&self, text: &str) -> Id {
        {
            let table = self.read_table();
            if let (Some(number), None) = (table.find(text), &table.unseen) {
                return Id(number);
            }
        }
        self.write_table().intern(text)
    }

    /// As [`Self::intern`], for an id that a plugin names. `None` if the id is new, and plugins
    /// have named too many new ids since the last sweep: a plugin can make up ids faster than they
    /// are freed.
    pub fn intern_named(&self, text: &str) -> Option<Id> {
        {
            let table = self.read_table();
            match (table.find(text), &table.unseen) {
                (Some(number), None) => return Some(Id(number)),
                (Some(_), Some(_)) => {}
                (None, _) => {
                    let bytes = NAMED_BYTES + text.len();
                    let before = self.named_bytes.fetch_add(bytes, Ordering::Relaxed);
                    if before + bytes > NAMED_BYTES_MAX && !self.is_unbounded {
                        self.named_bytes.fetch_sub(bytes, Ordering::Relaxed);
                        return None;
                    }
                }
            }
        }
        Some(self.write_table().intern(text))
    }

    /// Whether plugins have named so many new ids that a sweep should begin soon.
    pub fn is_sweep_due(&self) -> bool {
        self.named_bytes.load(Ordering::Relaxed) > NAMED_BYTES_MAX / 2
    }

    /// As [`Self::intern`], and also returns the id's shared name.
    pub fn intern_name(&self, text: &str) -> (Id, Name) {
        loop {
            {
                let table = self.read_table();
                if let (Some(number), None) = (table.find(text), &table.unseen)
                    && let Some(name) = table.get(Id(number))
                {
                    return (Id(number), name.clone());
                }
            }
            let id = self.intern(text);
            // A sweep may have come in between. Then the id is interned again.
            if let Some(name) = self.name(id) {
                return (id, name);
            }
        }
    }

    /// The number of an id, if it has one.
    pub fn find(&self, text: &str) -> Option<Id> {
        self.read_table().find(text).map(Id)
    }

    /// The id of a number that is in use.
    pub fn name(&self, id: Id) -> Option<Name> {
        self.read_table().get(id).cloned()
    }

    /// The table, locked for reading many names at once.
    pub fn read(&self) -> NamesGuard<'_> {
        NamesGuard(self.read_table())
    }

    /// The number of ids in use.
    pub fn len(&self) -> usize {
        let table = self.read_table();
        table.names.len() - table.free.len()
    }

    /// Whether no id is in use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Begins to look for ids that nothing refers to. Whatever is interned from here on is kept.
    /// All holders of numbers then report theirs ([`Self::keep`]), and [`Self::finish_sweep`] frees
    /// the rest.
    pub fn begin_sweep(&self) {
        let table = &mut *self.write_table();
        let mut unseen = RoaringBitmap::new();
        unseen.insert_range(0..u32::try_from(table.names.len()).unwrap_or(u32::MAX));
        for number in &table.free {
            unseen.remove(*number);
        }
        table.unseen = Some(unseen);
    }

    /// Keeps these numbers in the current sweep.
    pub fn keep(&self, ids: &RoaringBitmap) {
        if let Some(unseen) = &mut self.write_table().unseen {
            *unseen -= ids;
        }
    }

    /// Ends a sweep, and returns how many ids it freed.
    pub fn finish_sweep(&self) -> usize {
        let table = &mut *self.write_table();
        let unseen = table.unseen.take().unwrap_or_default();
        self.named_bytes.store(0, Ordering::Relaxed);
        let mut given_back = 0;
        for number in unseen {
            given_back += usize::from(table.remove(number));
        }
        given_back
    }

    // A panic can't leave the table half-changed, so a poisoned lock is safe to use.
    fn read_table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_table(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A table of names, locked for reading.
#[derive(Debug)]
pub struct NamesGuard<'a>(RwLockReadGuard<'a, Table>);

impl NamesGuard<'_> {
    /// The id of a number that is in use.
    pub fn name(&self, id: Id) -> Option<&Name> {
        self.0.get(id)
    }

    /// The number of an id, if it has one.
    pub fn find(&self, text: &str) -> Option<Id> {
        self.0.find(text).map(Id)
    }

    /// Appends ids to a JSON list, each as a JSON string with a comma behind it, until the list has
    /// `bytes_max` bytes. Returns how many ids it has handled. An id whose number is not in use is
    /// left out.
    pub fn write_list(&self, ids: &[Id], bytes_max: usize, json: &mut Vec<u8>) -> usize {
        // The ids are collected in a block. Each copy has the fixed size of the inline form: a copy
        // of variable length would need a function call.
        let mut block = [0; BLOCK_BYTES + SHORT_MAX];
        let mut filled = 0;
        let mut left = bytes_max.saturating_sub(json.len());
        for (place, id) in ids.iter().enumerate() {
            let Some(Name(form)) = self.0.get(*id) else {
                continue;
            };
            let (len, short) = match form {
                Form::Short { len, json } => (usize::from(*len), Some(json)),
                Form::Long { json, .. } => (json.len(), None),
            };
            if len > left {
                json.extend_from_slice(block.get(..filled).unwrap_or_default());
                return place;
            }
            left -= len;
            match (short, block.get_mut(filled..filled + SHORT_MAX)) {
                (Some(short), Some(room)) => {
                    room.copy_from_slice(short);
                    filled += len;
                }
                _ => {
                    json.extend_from_slice(block.get(..filled).unwrap_or_default());
                    json.extend_from_slice(form.json_element());
                    filled = 0;
                }
            }
        }
        json.extend_from_slice(block.get(..filled).unwrap_or_default());
        ids.len()
    }
}

impl Table {
    fn get(&self, id: Id) -> Option<&Name> {
        self.names.get(id.0 as usize)?.as_ref()
    }

    fn text(&self, number: u32) -> &[u8] {
        self.get(Id(number)).map_or(b"", Name::as_bytes)
    }

    fn find(&self, text: &str) -> Option<u32> {
        let text = text.as_bytes();
        let hash = self.hasher.hash_one(text);
        self.numbers
            .find(hash, |number| self.text(*number) == text)
            .copied()
    }

    fn intern(&mut self, text: &str) -> Id {
        if let Some(number) = self.find(text) {
            if let Some(unseen) = &mut self.unseen {
                unseen.remove(number);
            }
            return Id(number);
        }
        let name = Some(Name::new(text));
        let number = match self.free.pop() {
            Some(number) => {
                if let Some(slot) = self.names.get_mut(number as usize) {
                    *slot = name;
                }
                number
            }
            None => {
                self.names.push(name);
                u32::try_from(self.names.len() - 1).unwrap_or(u32::MAX)
            }
        };
        let Self {
            hasher,
            numbers,
            names,
            ..
        } = self;
        numbers.insert_unique(hasher.hash_one(text.as_bytes()), number, |number| {
            let name = names.get(*number as usize).and_then(Option::as_ref);
            hasher.hash_one(name.map_or(&b""[..], Name::as_bytes))
        });
        Id(number)
    }

    fn remove(&mut self, number: u32) -> bool {
        let hash = self.hasher.hash_one(self.text(number));
        if let Ok(entry) = self.numbers.find_entry(hash, |other| *other == number) {
            entry.remove();
        }
        let taken = self.names.get_mut(number as usize).and_then(Option::take);
        if taken.is_some() {
            self.free.push(number);
        }
        taken.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_number_and_its_text_comes_back() {
        let names = Names::new();
        let plain = names.intern("12345");
        let odd = names.intern("a\"b\n");
        assert_eq!(names.intern("12345"), plain);
        assert_ne!(plain, odd);
        assert_eq!(names.name(odd).unwrap().as_str(), "a\"b\n");
        assert_eq!(names.name(odd).unwrap().json(), br#""a\"b\n""#);
        assert_eq!(names.name(plain).unwrap().json(), br#""12345""#);
        assert_eq!(names.find("nobody"), None);
    }

    #[test]
    fn a_list_is_written_as_far_as_it_fits_whatever_the_ids_look_like() {
        let names = Names::new();
        let texts: Vec<_> = (0..100)
            .map(|number| match number % 4 {
                0 => format!("user-{number}"),
                1 => format!("\"{number}\n"),
                2 => format!("{number:0>43}"),
                _ => format!("{number:0>256}"),
            })
            .collect();
        let ids: Vec<_> = texts.iter().map(|text| names.intern(text)).collect();
        let written = |bytes_max| {
            let mut json = b"[".to_vec();
            let count = names.read().write_list(&ids, bytes_max, &mut json);
            assert!(json.len() <= bytes_max.max(1));
            let last = json.last_mut().unwrap();
            if *last == b',' {
                *last = b']';
            } else {
                json.push(b']');
            }
            let list: Vec<String> = serde_json::from_slice(&json).unwrap();
            assert_eq!(list, texts[..count]);
            (count, json.len())
        };
        let (all, bytes) = written(usize::MAX);
        assert_eq!(all, texts.len());
        assert_eq!(written(bytes).0, texts.len());
        assert_eq!(written(bytes - 1).0, texts.len() - 1);
        assert_eq!(written(0).0, 0);
        for bytes_max in (0..bytes).step_by(37) {
            written(bytes_max);
        }
        // The number is no longer in use.
        names.begin_sweep();
        assert_eq!(names.finish_sweep(), 100);
        let mut json = Vec::new();
        assert_eq!(names.read().write_list(&ids, 0, &mut json), 100);
        assert!(json.is_empty());
    }

    #[test]
    fn a_plugin_makes_up_no_more_ids_than_there_is_room_for_until_the_next_sweep() {
        let (names, unbounded) = (Names::new(), Names::unbounded());
        let known = names.intern("known");
        for names in [&names, &unbounded] {
            names
                .named_bytes
                .store(NAMED_BYTES_MAX - NAMED_BYTES - 4, Ordering::Relaxed);
        }
        assert!(names.intern_named("last").is_some());
        assert!(names.is_sweep_due());
        assert_eq!(names.intern_named("more"), None);
        assert!(unbounded.intern_named("more than that").is_some());
        // Known ids cost nothing, and ids from elsewhere aren't limited.
        assert_eq!(names.intern_named("known"), Some(known));
        names.intern("other");
        assert!(names.intern_named("other").is_some());
        names.begin_sweep();
        names.finish_sweep();
        assert!(!names.is_sweep_due());
        assert!(names.intern_named("more").is_some());
    }

    #[test]
    fn a_sweep_gives_back_what_nobody_keeps_or_asks_for() {
        let names = Names::new();
        let ids: Vec<_> = ["kept", "asked", "gone"]
            .map(|name| names.intern(name))
            .into();
        names.begin_sweep();
        names.keep(&RoaringBitmap::from_iter([ids[0].0]));
        assert_eq!(names.intern("asked"), ids[1]);
        let new = names.intern("new");
        assert_eq!(names.finish_sweep(), 1);
        assert_eq!(names.find("gone"), None);
        assert_eq!(names.find("new"), Some(new));
        assert_eq!(names.len(), 3);
        assert_eq!(names.intern("reuses the number"), ids[2]);
    }
}
