//! A node's lease: an entry in the fleet's bucket that the node renews periodically.
//!
//! The holder counts the lease from *before* it sent the renewal that was acknowledged, and stops
//! relying on it a margin before it expires. Its clock is monotonic, and goes on while the machine
//! sleeps. Other nodes count from when they *saw* the renewal, and add a margin. So they never
//! consider the lease expired before its holder does, whatever the broker's clock says.
//!
//! Every renewal is a compare-and-swap on the previous one. A node that considers a lease expired
//! deletes the entry by a compare-and-swap on the revision that it saw last. Then no later renewal
//! succeeds, and the lease is over for good. A renewal whose outcome is unknown may still succeed,
//! so the holder reads the entry before it sends the next one.

use std::collections::BTreeMap;

use super::FleetSettings;

/// The outcome of a write into the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// It is stored under this revision.
    Stored(u64),
    /// The key's last revision was not the expected one.
    Refused,
    /// No answer came in time. The value may have been stored, or may still be stored later.
    Unknown,
}

/// What the holder is to do now about its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Send a renewal.
    Send {
        /// The number of the renewal within this session.
        count: u64,
        /// The revision that the key's last one must be.
        revision: u64,
    },
    /// Read the entry.
    Read,
    /// Do nothing.
    Wait,
}

/// The lease of this node.
#[derive(Debug)]
pub struct Lease {
    settings: FleetSettings,
    /// The last known revision of the entry.
    revision: u64,
    /// When the newest renewal was sent that is known to be stored.
    held_from: Option<u64>,
    /// When each renewal was sent whose outcome is unknown, by its number.
    sent: BTreeMap<u64, u64>,
    count: u64,
    /// The operation in progress, and since when.
    under_way: Option<(BucketRequest, u64)>,
    /// Whether the entry must be read before anything else.
    is_doubtful: bool,
    is_lost: bool,
    /// Whether the entry must be written again at once, since its content has changed.
    is_stale: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BucketRequest {
    Write,
    Read,
}

impl Lease {
    /// A lease that isn't held yet. `revision`: the entry's last revision, 0 if it never existed.
    pub fn new(settings: FleetSettings, revision: u64) -> Self {
        Self {
            settings,
            revision,
            held_from: None,
            sent: BTreeMap::new(),
            count: 0,
            under_way: None,
            is_doubtful: false,
            is_lost: false,
            is_stale: false,
        }
    }

    /// Until when the holder may rely on the lease. `None` if it isn't held.
    pub fn until(&self) -> Option<u64> {
        let lasts_ms = self
            .settings
            .lease_ms
            .saturating_sub(self.settings.margin_ms);
        let from = self.held_from.filter(|_| !self.is_lost)?;
        Some(from.saturating_add(lasts_ms))
    }

    /// Whether the holder has reached the bucket recently, so that messages of others can reach it,
    /// too.
    pub fn is_in_touch(&self, now: u64) -> bool {
        let within_ms = self.settings.lease_ms / 3 * 2;
        self.held_from
            .is_some_and(|from| !self.is_lost && now < from.saturating_add(within_ms))
    }

    /// Whether the lease is over for good, since another node has ended it.
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// The content of the entry has changed: write it again as soon as possible.
    pub fn write_again(&mut self) {
        self.is_stale = true;
    }

    /// What to do now.
    pub fn poll(&mut self, now: u64) -> Renewal {
        if self.is_lost {
            return Renewal::Wait;
        }
        if let Some((step, since)) = self.under_way {
            if now < since.saturating_add(self.answer_timeout_ms()) {
                return Renewal::Wait;
            }
            // Only the entry can tell what has become of the write.
            self.is_doubtful |= step == BucketRequest::Write;
            self.under_way = None;
        }
        if self.is_doubtful {
            self.under_way = Some((BucketRequest::Read, now));
            return Renewal::Read;
        }
        let due = self
            .held_from
            .is_none_or(|from| now >= from.saturating_add(self.settings.lease_ms / 3));
        if !due && !self.is_stale {
            return Renewal::Wait;
        }
        self.is_stale = false;
        self.count += 1;
        self.sent.insert(self.count, now);
        self.under_way = Some((BucketRequest::Write, now));
        Renewal::Send {
            count: self.count,
            revision: self.revision,
        }
    }

    /// When to poll again.
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        if self.is_lost {
            return None;
        }
        let at = match (self.under_way, self.held_from) {
            (Some((_, since)), _) => since.saturating_add(self.answer_timeout_ms()),
            (None, Some(from)) if !self.is_doubtful && !self.is_stale => {
                from.saturating_add(self.settings.lease_ms / 3)
            }
            _ => now,
        };
        Some(at)
    }

    /// Takes the outcome of a renewal. A refused one may have been preceded by an own renewal whose
    /// outcome is unknown, so the entry must be read.
    pub fn written(&mut self, count: u64, outcome: WriteOutcome) {
        match outcome {
            WriteOutcome::Stored(revision) => self.note_stored(count, revision),
            WriteOutcome::Refused | WriteOutcome::Unknown => self.is_doubtful = true,
        }
        if count == self.count {
            self.under_way = self
                .under_way
                .filter(|(step, _)| *step != BucketRequest::Write);
        }
    }

    /// The entry was read, or a change of it was seen. `ours`: the number of the renewal if the
    /// entry was written by this session; `None` if another wrote it, or it was deleted.
    pub fn seen(&mut self, revision: u64, ours: Option<u64>) {
        // A revision older than that of an acknowledged renewal tells nothing new.
        if revision < self.revision {
            return;
        }
        match ours {
            Some(count) => self.note_stored(count, revision),
            // Before the first renewal, an entry of others only gives the revision to start from.
            None if self.held_from.is_none() => self.revision = revision,
            None if revision > self.revision => self.is_lost = true,
            None => {}
        }
    }

    /// The entry has vanished without a deletion marker, so it was removed in another way. No
    /// renewal can be based on it.
    pub fn removed(&mut self) {
        self.is_lost |= self.held_from.is_some();
        self.revision = 0;
    }

    /// A read is done. Its result was passed to [`Self::seen`] before.
    pub fn read(&mut self) {
        self.is_doubtful = false;
        self.under_way = self
            .under_way
            .filter(|(step, _)| *step != BucketRequest::Read);
    }

    fn note_stored(&mut self, count: u64, revision: u64) {
        self.revision = self.revision.max(revision);
        if let Some(at) = self.sent.get(&count) {
            self.held_from = self.held_from.max(Some(*at));
        }
        self.sent.retain(|other, _| *other > count);
    }

    /// How long to wait for an answer.
    fn answer_timeout_ms(&self) -> u64 {
        self.settings.lease_ms / 6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: FleetSettings = FleetSettings {
        relay_ms: 500,
        lease_ms: 600,
        margin_ms: 50,
        standbys: 1,
        digest_ms: 500,
        answer_ms: 200,
    };

    fn send(count: u64, revision: u64) -> Renewal {
        Renewal::Send { count, revision }
    }

    #[test]
    fn it_counts_from_before_the_renewal_was_sent() {
        let mut lease = Lease::new(SETTINGS, 0);
        assert_eq!(lease.poll(1_000), send(1, 0));
        assert_eq!(lease.until(), None);
        // The time until the answer doesn't extend the lease.
        assert_eq!(lease.poll(1_090), Renewal::Wait);
        lease.written(1, WriteOutcome::Stored(7));
        assert_eq!(lease.until(), Some(1_550));
        assert_eq!(lease.poll(1_199), Renewal::Wait);
        assert_eq!(lease.next_deadline(1_199), Some(1_200));
        assert_eq!(lease.poll(1_200), send(2, 7));
        assert!(lease.is_in_touch(1_399) && !lease.is_in_touch(1_400));
    }

    #[test]
    fn a_renewal_without_an_answer_is_looked_up_before_the_next() {
        let mut lease = Lease::new(SETTINGS, 0);
        lease.poll(1_000);
        lease.written(1, WriteOutcome::Stored(7));
        assert_eq!(lease.poll(1_200), send(2, 7));
        assert_eq!(lease.poll(1_300), Renewal::Read);
        // The renewal was stored.
        lease.seen(9, Some(2));
        lease.read();
        assert_eq!(lease.until(), Some(1_750));
        assert_eq!(lease.poll(1_400), send(3, 9));
    }

    #[test]
    fn a_refusal_is_the_end_only_if_the_entry_is_anothers() {
        let mut lease = Lease::new(SETTINGS, 0);
        lease.poll(1_000);
        lease.written(1, WriteOutcome::Stored(7));
        lease.poll(1_200);
        lease.written(2, WriteOutcome::Refused);
        assert_eq!(lease.poll(1_210), Renewal::Read);
        lease.seen(7, Some(1));
        lease.read();
        assert!(!lease.is_lost());
        assert_eq!(lease.poll(1_220), send(3, 7));
        lease.seen(8, None);
        assert!(lease.is_lost());
        assert_eq!((lease.until(), lease.poll(9_000)), (None, Renewal::Wait));
        assert_eq!(lease.next_deadline(9_000), None);
    }

    #[test]
    fn what_others_left_is_no_end_of_a_lease_that_has_not_begun() {
        let mut lease = Lease::new(SETTINGS, 0);
        assert_eq!(lease.poll(1_000), send(1, 0));
        lease.written(1, WriteOutcome::Refused);
        assert_eq!(lease.poll(1_010), Renewal::Read);
        lease.seen(41, None);
        lease.read();
        assert_eq!(lease.poll(1_020), send(2, 41));
    }
}
