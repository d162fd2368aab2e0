//! Delivery per viewer: each viewer's messages on a subject of their own, numbered
//! without gaps.
//!
//! The numbers of a bounded number of viewers are kept. When there would be more,
//! all are forgotten and a new epoch begins, so that no number comes twice within
//! one, and a subscriber sees why theirs begins anew.

use bytes::Bytes;
use hashbrown::HashMap;
use roaring::RoaringBitmap;

use crate::names::{Id, Name};

/// Of how many viewers the numbers are kept: some 16 MB of them.
const VIEWERS_MAX: usize = 1 << 20;

/// A message to one viewer alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Whom it is for.
    pub viewer: Name,
    /// When the numbers began, in milliseconds since the Unix epoch; none while they
    /// are those since the source's start.
    pub epoch_ms: Option<u64>,
    /// The how-manieth message of this source to this viewer it is, from 1.
    pub seq: u64,
    /// The body, a JSON object.
    pub body: Bytes,
}

/// Numbers the messages to each viewer.
#[derive(Debug, Default)]
pub struct Inboxes {
    seqs: HashMap<Id, u64, foldhash::fast::FixedState>,
    epoch_ms: Option<u64>,
}

impl Inboxes {
    /// The epoch and the number of the next message to a viewer.
    pub fn number(&mut self, now: u64, viewer: Id) -> (Option<u64>, u64) {
        if self.seqs.len() >= VIEWERS_MAX && !self.seqs.contains_key(&viewer) {
            self.forget(now);
        }
        let seq = self.seqs.entry(viewer).or_default();
        *seq += 1;
        (self.epoch_ms, *seq)
    }

    /// Forgets all numbers, if there are any. Those to come are of another epoch.
    pub fn forget(&mut self, now: u64) {
        if self.seqs.is_empty() {
            return;
        }
        self.seqs = HashMap::default();
        let later = self.epoch_ms.map_or(now, |before| now.max(before + 1));
        self.epoch_ms = Some(later);
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
        assert_eq!(inboxes.number(5, Id(1)), (None, 1));
        assert_eq!(inboxes.number(5, Id(2)), (None, 1));
        assert_eq!(inboxes.number(5, Id(1)), (None, 2));
        inboxes.forget(6);
        assert_eq!(inboxes.number(6, Id(1)), (Some(6), 1));
        inboxes.forget(6);
        inboxes.forget(6);
        assert_eq!(inboxes.number(6, Id(1)), (Some(7), 1));
    }

    #[test]
    fn no_more_viewers_are_kept_than_there_is_room_for() {
        let mut inboxes = Inboxes::default();
        for viewer in 0..VIEWERS_MAX as u32 {
            inboxes.number(1, Id(viewer));
        }
        assert_eq!(inboxes.number(2, Id(0)), (None, 2));
        assert_eq!(inboxes.number(3, Id(u32::MAX)), (Some(3), 1));
        assert_eq!(inboxes.number(4, Id(0)), (Some(3), 1));
        assert_eq!(inboxes.ids().len(), 2);
    }
}
