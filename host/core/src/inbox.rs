//! Delivery per viewer: each viewer's messages are published on a subject of their own, with
//! sequence numbers without gaps.
//!
//! The numbers of a limited number of viewers are kept. Beyond the limit, all are forgotten, and a
//! new epoch begins. So no number occurs twice in an epoch, and a subscriber notices that the
//! numbers start again.

use bytes::Bytes;
use hashbrown::HashMap;
use roaring::RoaringBitmap;

use crate::names::{Id, Name};

/// The maximum number of viewers whose sequence numbers are kept. They take about 16 MB.
const VIEWERS_MAX: usize = 1 << 20;

/// A message to one viewer alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The viewer whom the message is for.
    pub viewer: Name,
    /// How many times all numbers have started again since the source's start. Each time, a new
    /// epoch begins.
    pub renewed: u64,
    /// The sequence number among the messages of this source to this viewer, from 1.
    pub seq: u64,
    /// The body, a JSON object.
    pub body: Bytes,
}

/// Numbers the messages to each viewer.
#[derive(Debug, Default)]
pub struct Inboxes {
    seqs: HashMap<Id, u64, foldhash::fast::FixedState>,
    renewed: u64,
}

impl Inboxes {
    /// Takes the next sequence number for a viewer. Also returns how many times the numbers have
    /// started again.
    pub fn number(&mut self, viewer: Id) -> (u64, u64) {
        if self.seqs.len() >= VIEWERS_MAX && !self.seqs.contains_key(&viewer) {
            self.forget();
        }
        let seq = self.seqs.entry(viewer).or_default();
        *seq += 1;
        (self.renewed, *seq)
    }

    /// Forgets all numbers, if there are any. The next ones belong to a new epoch.
    pub fn forget(&mut self) {
        if self.seqs.is_empty() {
            return;
        }
        self.seqs = HashMap::default();
        self.renewed += 1;
    }

    /// The viewers whose numbers are kept.
    pub fn ids(&self) -> RoaringBitmap {
        self.seqs.keys().map(|viewer| viewer.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_no_gaps_and_come_once_an_epoch() {
        let mut inboxes = Inboxes::default();
        assert_eq!(inboxes.number(Id(1)), (0, 1));
        assert_eq!(inboxes.number(Id(2)), (0, 1));
        assert_eq!(inboxes.number(Id(1)), (0, 2));
        inboxes.forget();
        assert_eq!(inboxes.number(Id(1)), (1, 1));
        inboxes.forget();
        inboxes.forget();
        assert_eq!(inboxes.number(Id(1)), (2, 1));
    }

    #[test]
    fn no_more_viewers_are_kept_than_there_is_room_for() {
        let mut inboxes = Inboxes::default();
        for viewer in 0..VIEWERS_MAX as u32 {
            inboxes.number(Id(viewer));
        }
        assert_eq!(inboxes.number(Id(0)), (0, 2));
        assert_eq!(inboxes.number(Id(u32::MAX)), (1, 1));
        assert_eq!(inboxes.number(Id(0)), (1, 1));
        assert_eq!(inboxes.ids().len(), 2);
    }
}
