//! Reading a store piece by piece as it was at one moment, while it changes.
//!
//! The reader holds a [`ReadPoint`]. When an element that hasn't been read yet is changed for the
//! first time, its old value is kept for the reader. So nothing is copied at once, and nothing is
//! kept while nobody reads.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use roaring::RoaringBitmap;

/// A moment as of which something is read. When it is dropped, the values kept for it are
/// forgotten.
#[derive(Debug, Default)]
pub struct ReadPoint(Arc<()>);

/// The ongoing reads of one store, one for each moment. Each element of the store has a number.
#[derive(Debug)]
pub(crate) struct SnapshotReads<T>(Vec<SnapshotRead<T>>);

#[derive(Debug)]
struct SnapshotRead<T> {
    point: Weak<()>,
    /// The numbers of elements that are unread and unchanged. It may contain numbers without an
    /// element.
    left: RoaringBitmap,
    /// The old values of elements that were changed before they were read.
    kept: VecDeque<T>,
}

impl<T> Default for SnapshotReads<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Clone> SnapshotReads<T> {
    /// Begins to read the elements with these numbers as they are now, in the order of the numbers.
    pub(crate) fn begin(&mut self, point: &ReadPoint, numbers: RoaringBitmap) {
        self.forget_ended();
        self.0.push(SnapshotRead {
            point: Arc::downgrade(&point.0),
            left: numbers,
            kept: VecDeque::new(),
        });
    }

    /// Whether nothing is being read.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// To be called before the element with this number changes. `value`: its present value, `None`
    /// if it doesn't exist.
    pub(crate) fn keep(&mut self, number: u32, value: impl FnOnce() -> Option<T>) {
        if self.is_empty() {
            return;
        }
        self.forget_ended();
        if self.0.iter().all(|it| !it.left.contains(number)) {
            return;
        }
        let value = value();
        for reading in &mut self.0 {
            if reading.left.remove(number) {
                reading.kept.extend(value.clone());
            }
        }
    }

    /// Passes at most `count` more elements, as of a moment, to `take`. `value`: the present value
    /// of an element. Returns whether anything was left to read.
    pub(crate) fn read(
        &mut self,
        point: &ReadPoint,
        count: usize,
        value: impl Fn(u32) -> Option<T>,
        mut take: impl FnMut(T),
    ) -> bool {
        let point = Arc::as_ptr(&point.0);
        let Some(place) = self.0.iter().position(|it| it.point.as_ptr() == point) else {
            return false;
        };
        let Some(reading) = self.0.get_mut(place) else {
            return false;
        };
        // Kept values come first, so that their memory is freed.
        let kept = reading.kept.len().min(count);
        reading.kept.drain(..kept).for_each(&mut take);
        for _ in kept..count {
            let Some(number) = reading.pop() else {
                self.0.swap_remove(place);
                return kept > 0;
            };
            if let Some(value) = value(number) {
                take(value);
            }
        }
        true
    }

    /// All kept values.
    pub(crate) fn kept(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flat_map(|it| &it.kept)
    }

    fn forget_ended(&mut self) {
        self.0.retain(|it| it.point.strong_count() > 0);
    }
}

impl<T> SnapshotRead<T> {
    fn pop(&mut self) -> Option<u32> {
        let number = self.left.min()?;
        self.left.remove(number);
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_reads_any_more_is_not_kept() {
        let (mut reads, point) = (SnapshotReads::default(), ReadPoint::default());
        reads.begin(&point, (0..9).collect());
        reads.keep(4, || Some("four"));
        assert_eq!(reads.kept().count(), 1);
        drop(point);
        reads.keep(5, || Some("five"));
        assert_eq!(reads.kept().count(), 0);
    }

    #[test]
    fn each_is_read_once() {
        let (mut reads, point) = (SnapshotReads::default(), ReadPoint::default());
        reads.begin(&point, (0..9).collect());
        reads.keep(4, || Some(40));
        reads.keep(4, || Some(41));
        let mut read = Vec::new();
        let value = |number| (number != 3).then_some(number);
        while reads.read(&point, 2, value, |it| read.push(it)) {}
        assert_eq!(read, [40, 0, 1, 2, 5, 6, 7, 8]);
    }
}
