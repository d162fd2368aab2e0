//! A node's lease: an entry in the fleet's bucket that the node writes again and again.
//!
//! The holder counts the lease from *before* it sent the renewal that was acknowledged, by a clock
//! that nobody sets and that goes on while the machine sleeps, and stops relying on it a margin
//! before it ends. Others count from when they *saw* the renewal, and wait for a margin more. So
//! they never take it for ended before its holder does, whatever clock the broker has.
//!
//! Every renewal is a compare-and-swap on the one before. A node that takes a lease for ended deletes
//! the entry by a compare-and-swap on the revision it saw last: then no later renewal succeeds,
//! and the lease is over for good. One whose outcome isn't known yet may still succeed; so the next
//! one waits for the entry to be read.

use std::collections::BTreeMap;

use super::FleetSettings;

/// What a write into the bucket came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is stored under this revision.
    Stored(u64),
    /// The key's last revision was another than expected.
    Refused,
    /// No answer came in time: it may have been stored, or be stored yet.
    Unknown,
}

/// What a node's lease is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// A renewal is to be sent, as the number that is given, on this revision.
    Send {
        /// Its number among those of this session.
        count: u64,
        /// The revision that is to be the key's last.
        revision: u64,
    },
    /// The entry is to be read.
    Read,
    /// Nothing is to be done now.
    Wait,
}

/// A node's own lease.
#[derive(Debug)]
pub struct Lease {
    settings: FleetSettings,
    /// The revision of the entry, as far as is known.
    revision: u64,
    /// When the newest renewal was sent of which it is known that it was stored.
    held_from: Option<u64>,
    /// When the renewals were sent of which that isn't known.
    sent: BTreeMap<u64, u64>,
    count: u64,
    /// What is under way, and since when.
    under_way: Option<(Step, u64)>,
    /// Whether it is to be read before anything else.
    is_doubtful: bool,
    is_lost: bool,
    /// Whether it is to be renewed at once, since what it says has changed.
    is_stale: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Write,
    Read,
}

impl Lease {
    /// A lease that isn't held yet, on an entry of this revision: 0 if there never was one.
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

    /// Until when its holder may rely on it; none if it isn't held.
    pub fn until(&self) -> Option<u64> {
        let lasts_ms = self
            .settings
            .lease_ms
            .saturating_sub(self.settings.margin_ms);
        let from = self.held_from.filter(|_| !self.is_lost)?;
        Some(from.saturating_add(lasts_ms))
    }

    /// Whether the holder has reached the bucket lately: what others say reaches it, too.
    pub fn is_in_touch(&self, now: u64) -> bool {
        let within_ms = self.settings.lease_ms / 3 * 2;
        self.held_from
            .is_some_and(|from| !self.is_lost && now < from.saturating_add(within_ms))
    }

    /// Whether it is over for good: someone else has ended it.
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// What the entry says has changed: it is written again as soon as possible.
    pub fn write_again(&mut self) {
        self.is_stale = true;
    }

    /// What is to be done now.
    pub fn poll(&mut self, now: u64) -> Renewal {
        if self.is_lost {
            return Renewal::Wait;
        }
        if let Some((step, since)) = self.under_way {
            if now < since.saturating_add(self.patience_ms()) {
                return Renewal::Wait;
            }
            // Whatever has become of it, the entry says.
            self.is_doubtful |= step == Step::Write;
            self.under_way = None;
        }
        if self.is_doubtful {
            self.under_way = Some((Step::Read, now));
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
        self.under_way = Some((Step::Write, now));
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
            (Some((_, since)), _) => since.saturating_add(self.patience_ms()),
            (None, Some(from)) if !self.is_doubtful && !self.is_stale => {
                from.saturating_add(self.settings.lease_ms / 3)
            }
            _ => now,
        };
        Some(at)
    }

    /// What a renewal came to. One that is refused may have been preceded by one of our own of
    /// which we don't know: the entry says.
    pub fn written(&mut self, count: u64, outcome: Outcome) {
        match outcome {
            Outcome::Stored(revision) => self.is_stored(count, revision),
            Outcome::Refused | Outcome::Unknown => self.is_doubtful = true,
        }
        if count == self.count {
            self.under_way = self.under_way.filter(|(step, _)| *step != Step::Write);
        }
    }

    /// The entry was read, or a change of it was seen: of this revision, and a renewal of
    /// ours, by its number; or not ours, or deleted.
    pub fn seen(&mut self, revision: u64, ours: Option<u64>) {
        // What is older than a renewal that was acknowledged says nothing new.
        if revision < self.revision {
            return;
        }
        match ours {
            Some(count) => self.is_stored(count, revision),
            // Before the first renewal, it is what others left.
            None if self.held_from.is_none() => self.revision = revision,
            None if revision > self.revision => self.is_lost = true,
            None => {}
        }
    }

    /// There is no such entry any more, not even that it was deleted: someone has removed it
    /// otherwise. So nothing is known that a renewal could be based on.
    pub fn removed(&mut self) {
        self.is_lost |= self.held_from.is_some();
        self.revision = 0;
    }

    /// The answer to a read, whose outcome was handed to [`Self::seen`].
    pub fn read(&mut self) {
        self.is_doubtful = false;
        self.under_way = self.under_way.filter(|(step, _)| *step != Step::Read);
    }

    fn is_stored(&mut self, count: u64, revision: u64) {
        self.revision = self.revision.max(revision);
        if let Some(at) = self.sent.get(&count) {
            self.held_from = self.held_from.max(Some(*at));
        }
        self.sent.retain(|other, _| *other > count);
    }

    /// How long an answer is waited for.
    fn patience_ms(&self) -> u64 {
        self.settings.lease_ms / 6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: FleetSettings = FleetSettings {
        heard_ms: 500,
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
        // The answer takes its time, and that is none of the lease's.
        assert_eq!(lease.poll(1_090), Renewal::Wait);
        lease.written(1, Outcome::Stored(7));
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
        lease.written(1, Outcome::Stored(7));
        assert_eq!(lease.poll(1_200), send(2, 7));
        assert_eq!(lease.poll(1_300), Renewal::Read);
        // It was stored.
        lease.seen(9, Some(2));
        lease.read();
        assert_eq!(lease.until(), Some(1_750));
        assert_eq!(lease.poll(1_400), send(3, 9));
    }

    #[test]
    fn a_refusal_is_the_end_only_if_the_entry_is_anothers() {
        let mut lease = Lease::new(SETTINGS, 0);
        lease.poll(1_000);
        lease.written(1, Outcome::Stored(7));
        lease.poll(1_200);
        lease.written(2, Outcome::Refused);
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
        lease.written(1, Outcome::Refused);
        assert_eq!(lease.poll(1_010), Renewal::Read);
        lease.seen(41, None);
        lease.read();
        assert_eq!(lease.poll(1_020), send(2, 41));
    }
}
