//! What is read piece by piece as it was at one moment, while it goes on changing.
//!
//! Who reads holds the [`Moment`]. Of what has not been read by then, the first change keeps what was
//! there before. So nothing is copied at once, and nothing is kept while nobody reads.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use roaring::RoaringBitmap;

/// A moment as of which something is read. What is kept for that is forgotten once this is gone.
#[derive(Debug, Default)]
pub struct Moment(Arc<()>);

/// What is still to be read of one store, as of each moment that somebody reads it as of. Each thing
/// in the store has a number.
#[derive(Debug)]
pub(crate) struct Readings<T>(Vec<Reading<T>>);

#[derive(Debug)]
struct Reading<T> {
    moment: Weak<()>,
    /// The numbers of what is still as it was, perhaps of more.
    left: RoaringBitmap,
    /// With which of them it goes on.
    next: u32,
    /// What has changed since, as it was.
    kept: VecDeque<T>,
}

impl<T> Default for Readings<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Clone> Readings<T> {
    /// From now on all that has these numbers is to be read as it is now, beginning with a number.
    pub(crate) fn begin(&mut self, moment: &Moment, numbers: RoaringBitmap, first: u32) {
        self.forget_ended();
        self.0.push(Reading {
            moment: Arc::downgrade(&moment.0),
            left: numbers,
            next: first,
            kept: VecDeque::new(),
        });
    }

    /// Whether nobody reads.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What has this number is about to change. It is given as it is, if it is there.
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

    /// As [`Self::keep`], of everything.
    pub(crate) fn keep_all(&mut self, value: impl Fn(u32) -> Option<T>) {
        for reading in &mut self.0 {
            let left = std::mem::take(&mut reading.left);
            reading.kept.extend(left.into_iter().filter_map(&value));
        }
    }

    /// Reads on, as of a moment: so many at most. `value`: what has a number. Says whether there
    /// was anything left to read.
    pub(crate) fn read(
        &mut self,
        moment: &Moment,
        count: usize,
        value: impl Fn(u32) -> Option<T>,
        mut take: impl FnMut(T),
    ) -> bool {
        let moment = Arc::as_ptr(&moment.0);
        let Some(place) = self.0.iter().position(|it| it.moment.as_ptr() == moment) else {
            return false;
        };
        let Some(reading) = self.0.get_mut(place) else {
            return false;
        };
        // Memory is given back first.
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

    /// All that is kept as it was.
    pub(crate) fn kept(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flat_map(|it| &it.kept)
    }

    fn forget_ended(&mut self) {
        self.0.retain(|it| it.moment.strong_count() > 0);
    }
}

impl<T> Reading<T> {
    fn pop(&mut self) -> Option<u32> {
        let next = self.left.range(self.next..).next();
        let number = next.or_else(|| self.left.min())?;
        self.left.remove(number);
        self.next = number;
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_reads_any_more_is_not_kept() {
        let (mut readings, moment) = (Readings::default(), Moment::default());
        readings.begin(&moment, (0..9).collect(), 0);
        readings.keep(4, || Some("four"));
        assert_eq!(readings.kept().count(), 1);
        drop(moment);
        readings.keep(5, || Some("five"));
        assert_eq!(readings.kept().count(), 0);
    }

    #[test]
    fn each_is_read_once_beginning_with_the_first() {
        let (mut readings, moment) = (Readings::default(), Moment::default());
        readings.begin(&moment, (0..9).collect(), 6);
        readings.keep(4, || Some(40));
        readings.keep(4, || Some(41));
        let mut read = Vec::new();
        let value = |number| (number != 3).then_some(number);
        while readings.read(&moment, 2, value, |it| read.push(it)) {}
        assert_eq!(read, [40, 6, 7, 8, 0, 1, 2, 5]);
    }
}
