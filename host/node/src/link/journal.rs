//! The journal: published messages are kept here until the broker has acknowledged them, so that
//! they can be published again after a lost connection. Answers to requests wait here in the same
//! order, but are handed over only once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_nats::Subject;
use bytes::Bytes;
use presence_config::subjects::Source;

use super::shared_input::Receipt;

/// The approximate size of an entry without its subject and its body, in bytes.
const ENTRY_BYTES: usize = 128;

/// A message to publish, and to publish again if the connection is lost.
#[derive(Clone, Debug)]
pub(crate) struct JournalEntry {
    pub(crate) subject: Subject,
    pub(crate) body: Bytes,
    /// Whether it is numbered, and whether it is published again.
    pub(crate) delivery: DeliveryMode,
    /// Until when it may be published. `None`: without a limit.
    pub(crate) fence: Option<Arc<EpochFence>>,
}

/// Whether a message has a sequence number, and whether it is published again.
#[derive(Clone, Debug)]
pub(crate) enum DeliveryMode {
    /// An answer: published once, whether or not the broker gets it.
    AtMostOnce,
    /// Published until the broker has it. It has no sequence number.
    Unnumbered,
    /// Published until the broker has it, with this sequence number.
    Numbered(SequenceNumber),
}

/// Until when an owner may publish for a shard: while its node's lease lasts, and until the fence
/// is ended because another node takes over.
#[derive(Debug)]
pub(crate) struct EpochFence {
    lease: Arc<NodeLease>,
    is_over: AtomicBool,
}

/// A node's lease in a fleet, as publishers see it.
#[derive(Debug, Default)]
pub(crate) struct NodeLease {
    /// The node may publish before this time, by the host's clock.
    until: AtomicU64,
    /// Whether the node has left the fleet.
    is_over: AtomicBool,
    /// How many messages were dropped because their shards belonged to another node, or could have.
    dropped: AtomicU64,
}

impl NodeLease {
    pub(crate) fn set_until(&self, until: u64) {
        self.until.store(until, Ordering::Release);
    }

    pub(crate) fn until(&self) -> u64 {
        self.until.load(Ordering::Acquire)
    }

    /// The node has left the fleet: from now on, nothing is published under this lease.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    /// How many messages were dropped because their shards belonged to another node, or could have.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Identifies a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LeaseId(usize);

impl LeaseId {
    /// The id of a lease. It is unique while the lease exists.
    pub(crate) fn of(lease: &Arc<NodeLease>) -> Self {
        Self(Arc::as_ptr(lease).addr())
    }
}

/// Whether a message may be published now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PublishPermission {
    /// It may be published.
    Allowed,
    /// The lease has run out. It may be published once the lease is renewed, and never if the fence
    /// ends.
    LeaseExpired,
    /// It may not be published, now or later.
    Revoked,
}

impl EpochFence {
    pub(crate) fn new(lease: Arc<NodeLease>) -> Arc<Self> {
        Arc::new(Self {
            lease,
            is_over: AtomicBool::new(false),
        })
    }

    /// Another node owns the shard, or is about to: nothing is published through this fence from
    /// now on.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    fn permission(&self, now: u64) -> PublishPermission {
        let is_over = |it: &AtomicBool| it.load(Ordering::Acquire);
        if is_over(&self.is_over) || is_over(&self.lease.is_over) {
            return PublishPermission::Revoked;
        }
        match now < self.lease.until() {
            true => PublishPermission::Allowed,
            false => PublishPermission::LeaseExpired,
        }
    }
}

/// A message's place in the sequence of its source.
#[derive(Clone, Debug)]
pub(crate) struct SequenceNumber {
    pub(crate) source: Arc<Source>,
    /// How often the numbers on the subject have started again since the source's start.
    pub(crate) renewed: u64,
    /// The message's number on the subject.
    pub(crate) seq: u64,
}

impl JournalEntry {
    /// An answer to a request, on the request's reply subject.
    pub(crate) fn answer(to: String, body: Vec<u8>) -> Self {
        Self {
            subject: to.into(),
            body: body.into(),
            delivery: DeliveryMode::AtMostOnce,
            fence: None,
        }
    }

    /// The acknowledgement to JetStream that a message has been handled.
    pub(crate) fn ack(receipt: &Receipt, fence: Option<Arc<EpochFence>>) -> Self {
        Self {
            subject: receipt.subject(),
            body: Bytes::from_static(b"+ACK"),
            delivery: DeliveryMode::Unnumbered,
            fence,
        }
    }

    /// Whether it is published only once, whether or not the broker gets it.
    pub(crate) fn is_at_most_once(&self) -> bool {
        matches!(self.delivery, DeliveryMode::AtMostOnce)
    }

    /// Whether the entry may be published at the time that `now` returns.
    pub(crate) fn permission(&self, now: impl FnOnce() -> u64) -> PublishPermission {
        let fence = self.fence.as_ref();
        fence.map_or(PublishPermission::Allowed, |fence| fence.permission(now()))
    }

    /// The lease under which it is published. `None` if it needs none.
    pub(crate) fn lease(&self) -> Option<LeaseId> {
        let fence = self.fence.as_ref();
        fence.map(|fence| LeaseId::of(&fence.lease))
    }

    /// Counts the entry as dropped, if it needs a lease.
    pub(crate) fn count_dropped(&self) {
        if let Some(fence) = &self.fence {
            fence.lease.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        ENTRY_BYTES + self.subject.len() + self.body.len()
    }
}

/// A queue of messages in publishing order. A message's place is its index, counted from 0 since
/// the start.
#[derive(Debug)]
pub(crate) struct Journal {
    entries: VecDeque<JournalEntry>,
    /// The place of the first entry.
    begin: u64,
    /// How many entries wait for the broker's acknowledgement. Answers don't.
    unacknowledged: usize,
    bytes: usize,
    bytes_max: usize,
}

impl Journal {
    /// An empty journal, which is full at about `bytes_max` bytes.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            begin: 0,
            unacknowledged: 0,
            bytes: 0,
            bytes_max,
        }
    }

    /// The place of the first entry that is kept, or of the next one if there is none.
    pub(crate) fn begin(&self) -> u64 {
        self.begin
    }

    /// The place that the next entry gets.
    pub(crate) fn end(&self) -> u64 {
        self.begin + self.entries.len() as u64
    }

    /// Whether an entry waits for the broker's acknowledgement.
    pub(crate) fn waits(&self) -> bool {
        self.unacknowledged > 0
    }

    /// Whether there is room for another entry. An empty journal always has room.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes < self.bytes_max
    }

    /// The approximate size of all entries, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn push(&mut self, entry: JournalEntry) {
        self.bytes += entry.bytes();
        self.unacknowledged += usize::from(!entry.is_at_most_once());
        self.entries.push_back(entry);
    }

    /// The entry at a place. `None` if it is not kept, or not there yet.
    pub(crate) fn get(&self, place: u64) -> Option<&JournalEntry> {
        let place = place.checked_sub(self.begin)?;
        self.entries.get(usize::try_from(place).ok()?)
    }

    /// Removes entries from the front: those before `acknowledged`, which the broker has, and
    /// answers before `handed`, which were handed to the client.
    pub(crate) fn forget(&mut self, acknowledged: u64, handed: u64) {
        while let Some(entry) = self.entries.front() {
            let is_answer = entry.is_at_most_once();
            if self.begin >= acknowledged && !(is_answer && self.begin < handed) {
                break;
            }
            self.begin += 1;
            self.unacknowledged -= usize::from(!is_answer);
            self.bytes -= entry.bytes();
            self.entries.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use presence_config::subjects::Subjects;

    use super::*;

    fn entry(seq: u64, bytes: usize) -> JournalEntry {
        let source = Source::new("n", 0, 1, &Subjects::new(None), false);
        JournalEntry {
            subject: "s".into(),
            body: vec![0; bytes].into(),
            delivery: DeliveryMode::Numbered(SequenceNumber {
                source: Arc::new(source),
                renewed: 0,
                seq,
            }),
            fence: None,
        }
    }

    fn seq(entry: Option<&JournalEntry>) -> Option<u64> {
        match &entry?.delivery {
            DeliveryMode::Numbered(number) => Some(number.seq),
            DeliveryMode::AtMostOnce | DeliveryMode::Unnumbered => None,
        }
    }

    #[test]
    fn messages_are_kept_until_they_are_acknowledged() {
        let mut journal = Journal::new(1_000);
        for seq in 1..=4 {
            journal.push(entry(seq, 10));
        }
        assert_eq!((journal.begin(), journal.end()), (0, 4));
        journal.forget(2, 4);
        journal.forget(1, 4);
        assert_eq!((journal.begin(), journal.end()), (2, 4));
        assert_eq!((seq(journal.get(1)), seq(journal.get(2))), (None, Some(3)));
        assert!(journal.waits());
        journal.forget(9, 9);
        assert_eq!((journal.begin(), journal.end(), journal.bytes()), (4, 4, 0));
        assert!(!journal.waits());
    }

    #[test]
    fn what_an_owner_says_waits_for_its_lease_and_is_dropped_when_its_time_is_over() {
        let lease = Arc::<NodeLease>::default();
        let fence = EpochFence::new(Arc::clone(&lease));
        let fenced = JournalEntry {
            fence: Some(Arc::clone(&fence)),
            ..entry(1, 10)
        };
        lease.set_until(100);
        assert_eq!(fenced.permission(|| 99), PublishPermission::Allowed);
        assert_eq!(fenced.permission(|| 100), PublishPermission::LeaseExpired);
        lease.set_until(200);
        assert_eq!(fenced.permission(|| 100), PublishPermission::Allowed);
        fence.end();
        assert_eq!(fenced.permission(|| 100), PublishPermission::Revoked);
        let other = JournalEntry {
            fence: Some(EpochFence::new(Arc::clone(&lease))),
            ..entry(1, 10)
        };
        assert_eq!(other.permission(|| 100), PublishPermission::Allowed);
        lease.end();
        assert_eq!(other.permission(|| 100), PublishPermission::Revoked);
        other.count_dropped();
        assert_eq!(lease.dropped(), 1);
        assert_eq!(
            entry(1, 10).permission(|| 1_000),
            PublishPermission::Allowed
        );
    }

    #[test]
    fn answers_are_kept_until_they_are_handed_over() {
        let answer = || JournalEntry::answer("r".into(), b"{}".into());
        let mut journal = Journal::new(1_000);
        journal.push(answer());
        journal.push(answer());
        assert!(!journal.waits());
        journal.forget(0, 1);
        assert_eq!((journal.begin(), journal.end()), (1, 2));
        journal.forget(0, 2);
        assert_eq!((journal.begin(), journal.bytes()), (2, 0));
        journal.push(entry(1, 10));
        journal.push(answer());
        journal.forget(2, 4);
        assert_eq!(journal.begin(), 2, "behind what is not acknowledged");
        journal.forget(3, 4);
        assert_eq!((journal.begin(), journal.end(), journal.bytes()), (4, 4, 0));
    }

    #[test]
    fn it_is_full_at_its_bytes_and_takes_one_message_however_large() {
        let mut journal = Journal::new(1_000);
        assert!(journal.has_room());
        journal.push(entry(1, 5_000));
        assert!(!journal.has_room());
        journal.forget(1, 1);
        journal.push(entry(2, 100));
        assert!(journal.has_room());
    }
}
