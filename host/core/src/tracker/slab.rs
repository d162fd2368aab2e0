//! Values in reused slots, found by a key that never means another value.

use std::num::NonZeroU32;
use std::ops::{Index, IndexMut};

/// A value and its serial number; `None` if the slot is vacant.
pub(super) type Slot<T> = Option<(NonZeroU32, T)>;

#[derive(Debug)]
pub(super) struct Slab<T> {
    slots: Vec<Slot<T>>,
    vacant: Vec<u32>,
    /// The serial number of the next value.
    serial: NonZeroU32,
}

/// The key of a value. Keys are ordered by age. The next value in a slot has another serial number,
/// so a key whose value is gone finds nothing; serial numbers repeat only after four thousand
/// million values. There is a key for each connection, so keys are small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    serial: NonZeroU32,
    slot: u32,
}

impl Key {
    /// The slot of its value.
    pub(super) fn slot(self) -> u32 {
        self.slot
    }
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            vacant: Vec::new(),
            serial: NonZeroU32::MIN,
        }
    }
}

impl<T> Slab<T> {
    pub(super) fn insert(&mut self, value: T) -> Key {
        let slot = self.vacant.pop().unwrap_or_else(|| self.new_slot());
        let serial = self.serial;
        self.serial = serial.checked_add(1).unwrap_or(NonZeroU32::MIN);
        if let Some(vacant) = self.slots.get_mut(slot as usize) {
            *vacant = Some((serial, value));
        }
        Key { serial, slot }
    }

    #[expect(clippy::expect_used, reason = "no memory has room for so many")]
    fn new_slot(&mut self) -> u32 {
        let slot = u32::try_from(self.slots.len()).expect("there are fewer than 2^32 slots");
        self.slots.push(None);
        slot
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        let (_, value) = slot.take_if(|(holder, _)| *holder == key.serial)?;
        self.vacant.push(key.slot);
        Some(value)
    }

    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let (holder, value) = self.slots.get(key.slot as usize)?.as_ref()?;
        (*holder == key.serial).then_some(value)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (holder, value) = self.slots.get_mut(key.slot as usize)?.as_mut()?;
        (*holder == key.serial).then_some(value)
    }

    /// The value in a slot, and its key.
    pub(super) fn at(&self, slot: u32) -> Option<(Key, &T)> {
        let (serial, value) = self.slots.get(slot as usize)?.as_ref()?;
        let serial = *serial;
        Some((Key { serial, slot }, value))
    }

    /// As [`Self::at`], by index.
    pub(super) fn at_place(&self, place: usize) -> Option<(Key, &T)> {
        self.at(u32::try_from(place).ok()?)
    }

    /// The values in `count` slots, from the slot `from` on.
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

    /// All values, in the order of the slots.
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().flatten().map(|(_, value)| value)
    }

    /// All keys, in the order of the slots.
    pub(super) fn keys(&self) -> Vec<Key> {
        let slots = (0..).zip(&self.slots);
        let keys = slots.filter_map(|(slot, value)| {
            let serial = value.as_ref()?.0;
            Some(Key { serial, slot })
        });
        keys.collect()
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
