//! Iteration over the viewers of an audience, many at a time where possible.

use roaring::RoaringBitmap;

use crate::names::Id;

/// The maximum number of viewers that are taken at once.
pub const CHUNK: usize = 32;

/// The viewers in an audience, in ascending order.
#[derive(Clone)]
pub struct Ids<'a> {
    base: roaring::bitmap::Iter<'a>,
    /// The next members of `base`, from `place` to `end`.
    chunk: [u32; CHUNK],
    place: usize,
    end: usize,
    missing: &'a [u32],
    added: &'a [u32],
}

impl<'a> Ids<'a> {
    /// The members of a bitmap except the `missing` ones, and the `added` ids. Both lists are in
    /// ascending order.
    pub(super) fn new(base: &'a RoaringBitmap, missing: &'a [u32], added: &'a [u32]) -> Self {
        Self {
            base: base.iter(),
            chunk: [0; CHUNK],
            place: 0,
            end: 0,
            missing,
            added,
        }
    }

    /// The next member of the bitmap, without advancing.
    #[inline]
    fn peek(&mut self) -> Option<u32> {
        if self.place == self.end {
            self.end = self.base.next_many(&mut self.chunk).len();
            self.place = 0;
        }
        self.chunk.get(self.place).copied().filter(|_| self.end > 0)
    }
}

impl Ids<'_> {
    /// Fills `room` with the next viewers, at most [`CHUNK`], and returns them. Empty at the end.
    pub fn fill<'a>(&mut self, room: &'a mut [Id; CHUNK]) -> &'a [Id] {
        let mut count = 0;
        if let Some(chunk) = self.plain_chunk() {
            for (place, id) in room.iter_mut().zip(chunk) {
                *place = Id(*id);
            }
            count = chunk.len();
            self.place = self.end;
        } else {
            for (place, id) in room.iter_mut().zip(self) {
                *place = id;
                count += 1;
            }
        }
        room.get(..count).unwrap_or_default()
    }

    /// The next members of the bitmap, if all of them are in the audience, and no added id comes
    /// before the last of them.
    fn plain_chunk(&mut self) -> Option<&[u32]> {
        self.peek()?;
        let chunk = self.chunk.get(self.place..self.end)?;
        let last = chunk.last()?;
        let is_behind = |few: &[u32]| few.first().is_none_or(|first| first > last);
        (is_behind(self.missing) && is_behind(self.added)).then_some(chunk)
    }
}

impl Iterator for Ids<'_> {
    type Item = Id;

    #[inline]
    fn next(&mut self) -> Option<Id> {
        while let Some(id) = self.peek() {
            if let Some((first, added)) = self.added.split_first()
                && *first < id
            {
                self.added = added;
                return Some(Id(*first));
            }
            self.place += 1;
            match self.missing.split_first() {
                Some((first, missing)) if *first == id => self.missing = missing,
                _ => return Some(Id(id)),
            }
        }
        let (first, added) = self.added.split_first()?;
        self.added = added;
        Some(Id(*first))
    }
}
