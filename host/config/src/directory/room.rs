//! Limits how much is read of what a source says: what exceeds the quota is never in memory.

use std::cell::Cell;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// How many ids, groups and keys of settings may be read for each allowed entry. An entry has its
/// own id and the id that it is about. The rest is for items that count as no entry.
const READ_PER_ENTRY: u64 = 3;

/// Room for ids, groups and keys of settings.
#[derive(Debug)]
pub(super) struct Room {
    left: Cell<u64>,
    is_exceeded: Cell<bool>,
}

impl Room {
    pub(super) fn unlimited() -> Self {
        Self::of(u64::MAX)
    }

    /// Room for a directory with this many entries.
    pub(super) fn of(entries_max: u64) -> Self {
        Self {
            left: Cell::new(entries_max.saturating_mul(READ_PER_ENTRY)),
            is_exceeded: Cell::new(false),
        }
    }

    /// Takes room for one more item.
    ///
    /// # Errors
    /// If there is no room for it.
    pub(super) fn take(&self) -> Result<(), &'static str> {
        match self.left.get().checked_sub(1) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => {
                self.is_exceeded.set(true);
                Err("has more entries than it may have")
            }
        }
    }

    /// Whether there was no room for some item.
    pub(super) fn is_exceeded(&self) -> bool {
        self.is_exceeded.get()
    }
}

/// Room for the values of a bucket, which are read one by one.
#[derive(Clone, Copy, Debug)]
pub struct ValueRoom(u64);

impl ValueRoom {
    /// Room for a directory with this many entries.
    pub fn of(entries_max: u64) -> Self {
        Self(entries_max.saturating_mul(READ_PER_ENTRY))
    }

    /// Takes room for a value. `None` if there isn't enough.
    #[must_use]
    pub fn take(self, value: &[u8]) -> Option<Self> {
        self.0.checked_sub(needed(value)).map(Self)
    }

    /// Gives back the room of a value that was removed.
    #[must_use]
    pub fn give_back(self, value: &[u8]) -> Self {
        Self(self.0.saturating_add(needed(value)))
    }
}

/// How much room a value needs. A value that can't be read needs some, too: it is kept with its
/// error.
fn needed(value: &[u8]) -> u64 {
    serde_json::from_slice(value).map_or(1, |Named(count)| count + 1)
}

/// How many items a list or an object has.
struct Named(u64);

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(NamedVisitor)
    }
}

struct NamedVisitor;

impl<'de> Visitor<'de> for NamedVisitor {
    type Value = Named;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list or an object")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Named, A::Error> {
        let mut count = 0;
        while list.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Named(count))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named, A::Error> {
        let mut count = 0;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Named(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_takes_room_for_what_it_names_and_for_whom_it_is_about() {
        let room = ValueRoom::of(2);
        let room = room.take(br#"["a","b"]"#).unwrap();
        let room = room.take(br#"{"x":[1,2,3]}"#).unwrap();
        let full = room.take(b"no JSON").unwrap();
        assert!(full.take(b"[]").is_none());
        let room = full.give_back(br#"["a","b"]"#);
        assert!(room.take(br#"["a","b","c"]"#).is_none());
        assert!(room.take(br#"["c","d"]"#).is_some());
        assert!(ValueRoom::of(u64::MAX).take(b"[]").is_some());
    }
}
