//! A tenant's table of user ids: each id is interned once, as a number and in
//! the JSON form in which it is written out.
//!
//! Sets of users are sets of those numbers, so a rule's cost doesn't depend on
//! how long ids are, and writing an audience is copying bytes. Ids that nothing
//! refers to are given back by a [sweep](Names::begin_sweep).

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

/// How long the JSON form of an id may be, with its comma, to be kept in place: as long as
/// there is room for it beside the other form. That of a UUID takes 39.
const SHORT_MAX: usize = 46;

/// How many bytes of a list are gathered, more or less, before they are appended to it.
const BLOCK_BYTES: usize = 512;

/// A user id: its text and its JSON form. Cloning one shares or copies it, and allocates
/// nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Name(Form);

/// `"…",`: quoted, escaped, and with the comma that follows it in a list.
#[derive(Clone, PartialEq, Eq)]
enum Form {
    /// In place, so that writing an audience doesn't look for each id elsewhere.
    Short {
        len: u8,
        /// Zeroes behind the form.
        json: [u8; SHORT_MAX],
    },
    Long {
        json: Arc<str>,
        /// The text, where escaping made the JSON form differ from it.
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

    /// Whether it is this id.
    pub fn is(&self, text: &str) -> bool {
        self.as_bytes() == text.as_bytes()
    }

    /// As [`Self::as_str`].
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

/// How many bytes ids may take, until the next sweep, that nobody knew before a plugin named
/// them: about each takes as much beside its text.
const NAMED_BYTES_MAX: usize = 128 << 20;
const NAMED_BYTES: usize = 64;

/// A tenant's user ids, shared by its shards.
#[derive(Debug, Default)]
pub struct Names {
    table: RwLock<Table>,
    /// How many bytes those take that plugins have named since the last sweep.
    named_bytes: AtomicUsize,
    /// Whether that is not bounded, since nothing sweeps.
    is_unbounded: bool,
}

#[derive(Debug, Default)]
struct Table {
    hasher: FixedState,
    numbers: HashTable<u32>,
    names: Vec<Option<Name>>,
    free: Vec<u32>,
    /// While a sweep goes on: the numbers that nobody has been seen to need.
    unseen: Option<RoaringBitmap>,
}

impl Names {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty table that nothing sweeps: plugins may name as many ids as they like.
    pub fn unbounded() -> Self {
        Self {
            is_unbounded: true,
            ..Self::default()
        }
    }

    /// The number of an id, which gets one if it has none.
    pub fn intern(&self, text: &str) -> Id {
        {
            let table = self.read_table();
            if let (Some(number), None) = (table.find(text), &table.unseen) {
                return Id(number);
            }
        }
        self.write_table().intern(text)
    }

    /// As [`Self::intern`], of an id that a plugin names. None if it is new, and too many have
    /// been since the last sweep: a plugin can make them up faster than they are given back.
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

    /// Whether plugins have named so many new ids that a sweep had better not wait.
    pub fn is_sweep_due(&self) -> bool {
        self.named_bytes.load(Ordering::Relaxed) > NAMED_BYTES_MAX / 2
    }

    /// As [`Self::intern`], with the id's shared name beside its number.
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
            // A sweep may come in between, and then the id is interned again.
            if let Some(name) = self.name(id) {
                return (id, name);
            }
        }
    }

    /// The number of an id, if it has one.
    pub fn find(&self, text: &str) -> Option<Id> {
        self.read_table().find(text).map(Id)
    }

    /// The id behind a number that is in use.
    pub fn name(&self, id: Id) -> Option<Name> {
        self.read_table().get(id).cloned()
    }

    /// The table, locked for reading many names at once.
    pub fn read(&self) -> NamesGuard<'_> {
        NamesGuard(self.read_table())
    }

    /// How many ids are in use.
    pub fn len(&self) -> usize {
        let table = self.read_table();
        table.names.len() - table.free.len()
    }

    /// Whether no id is in use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Begins to look for ids that nothing refers to. From here on, whatever
    /// is interned is kept. Everyone who holds numbers then says which
    /// ([`Self::keep`]), and [`Self::finish_sweep`] gives back the rest.
    pub fn begin_sweep(&self) {
        let table = &mut *self.write_table();
        let mut unseen = RoaringBitmap::new();
        unseen.insert_range(0..u32::try_from(table.names.len()).unwrap_or(u32::MAX));
        for number in &table.free {
            unseen.remove(*number);
        }
        table.unseen = Some(unseen);
    }

    /// Keeps these numbers over the sweep that is going on.
    pub fn keep(&self, ids: &RoaringBitmap) {
        if let Some(unseen) = &mut self.write_table().unseen {
            *unseen -= ids;
        }
    }

    /// Ends a sweep, and says how many ids it gave back.
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

    // A panic can't leave the table half-changed, so a poisoned lock is a good one.
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
    /// The id behind a number that is in use.
    pub fn name(&self, id: Id) -> Option<&Name> {
        self.0.get(id)
    }

    /// The number of an id, if it has one.
    pub fn find(&self, text: &str) -> Option<Id> {
        self.0.find(text).map(Id)
    }

    /// Appends ids to a list that may be so long, as many of them as fit: each as a JSON
    /// string, with a comma behind it. Says how many it has dealt with; an id whose number
    /// is not in use is left out.
    pub fn write_list(&self, ids: &[Id], bytes_max: usize, json: &mut Vec<u8>) -> usize {
        // They are gathered in a block, each copied with all the room that there is for one:
        // copying as many bytes as each happens to have takes a call.
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
        // One that is not in use any more.
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
        // What is known costs nothing, and what comes from elsewhere is not held up.
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
