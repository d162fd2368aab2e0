//! Values in reused slots, found by a key that never means another value.

use std::ops::{Index, IndexMut};

#[derive(Debug)]
pub(super) struct Slab<T> {
    slots: Vec<Option<(Key, T)>>,
    vacant: Vec<usize>,
    inserted: u64,
}

/// Keys are ordered by age. A slot's next value gets another serial number, so
/// a key that outlived its value finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    serial: u64,
    slot: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            vacant: Vec::new(),
            inserted: 0,
        }
    }
}

impl<T> Slab<T> {
    pub(super) fn insert(&mut self, value: T) -> Key {
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let key = Key {
            serial: self.inserted,
            slot,
        };
        self.inserted += 1;
        if let Some(vacant) = self.slots.get_mut(slot) {
            *vacant = Some((key, value));
        }
        key
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get_mut(key.slot)?;
        let (_, value) = slot.take_if(|(holder, _)| *holder == key)?;
        self.vacant.push(key.slot);
        Some(value)
    }

    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let (holder, value) = self.slots.get(key.slot)?.as_ref()?;
        (*holder == key).then_some(value)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (holder, value) = self.slots.get_mut(key.slot)?.as_mut()?;
        (*holder == key).then_some(value)
    }

    /// The values in so many slots, from one on.
    pub(super) fn part(&mut self, from: usize, count: usize) -> impl Iterator<Item = &mut T> {
        let slots = self.slots.iter_mut().skip(from).take(count).flatten();
        slots.map(|(_, value)| value)
    }

    /// How many slots there are, vacant ones included.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.vacant.len()
    }

    /// In the order of the slots.
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().flatten().map(|(_, value)| value)
    }

    /// In the order of the slots.
    pub(super) fn keys(&self) -> Vec<Key> {
        self.slots.iter().flatten().map(|(key, _)| *key).collect()
    }
}

impl<T> Index<Key> for Slab<T> {
    type Output = T;

    #[expect(clippy::expect_used, reason = "indexing by an outdated key is a bug")]
    fn index(&self, key: Key) -> &T {
        self.get(key).expect("a key in use has a value")
    }
}

impl<T> IndexMut<Key> for Slab<T> {
    #[expect(clippy::expect_used, reason = "indexing by an outdated key is a bug")]
    fn index_mut(&mut self, key: Key) -> &mut T {
        self.get_mut(key).expect("a key in use has a value")
    }
}
