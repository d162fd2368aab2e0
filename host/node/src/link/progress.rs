//! For each source: how far its messages were handed to the broker's client, and how far the broker
//! has them. Sources write the first, the pulse writes the second.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// A node's sources, as the pulse sees them. Each has a [`DeliveryProgress`].
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    each: Vec<Arc<DeliveryProgress>>,
    /// Notified when a message waits to be acknowledged.
    ack_requested: Arc<Notify>,
    intervals: Arc<Mutex<PollIntervals>>,
}

/// How often the broker is asked for acknowledgements, in milliseconds: the shortest requested
/// interval.
#[derive(Debug)]
struct PollIntervals {
    /// The interval while no tenant requests one.
    default_ms: u64,
    requested: BTreeMap<u64, u64>,
    /// How many requests were ever made. The count numbers the next one.
    count: u64,
}

/// A tenant's request for a poll interval. Dropping it withdraws the request.
#[derive(Debug)]
pub(crate) struct PollInterval {
    intervals: Arc<Mutex<PollIntervals>>,
    number: u64,
}

impl PollInterval {
    /// Changes the requested interval: the broker is asked at least this often, in milliseconds.
    pub(crate) fn set(&self, ms: u64) {
        locked(&self.intervals).requested.insert(self.number, ms);
    }
}

impl Drop for PollInterval {
    fn drop(&mut self) {
        locked(&self.intervals).requested.remove(&self.number);
    }
}

fn locked(intervals: &Mutex<PollIntervals>) -> MutexGuard<'_, PollIntervals> {
    intervals.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sources {
    /// No sources yet. `every_ms`: how often the broker is asked while no tenant requests an
    /// interval, in milliseconds.
    pub(crate) fn new(every_ms: u64) -> Self {
        Self {
            each: Vec::new(),
            ack_requested: Arc::default(),
            intervals: Arc::new(Mutex::new(PollIntervals {
                default_ms: every_ms,
                requested: BTreeMap::new(),
                count: 0,
            })),
        }
    }

    /// Adds a source.
    pub(crate) fn add(&mut self) -> Arc<DeliveryProgress> {
        let progress = Arc::new(DeliveryProgress::new(Arc::clone(&self.ack_requested)));
        self.each.push(Arc::clone(&progress));
        progress
    }

    /// Has the broker asked at least this often, in milliseconds, while the result exists. It holds
    /// for all clones of these sources.
    pub(crate) fn request_interval(&self, ms: u64) -> PollInterval {
        let number = {
            let mut intervals = locked(&self.intervals);
            intervals.count += 1;
            intervals.count
        };
        let interval = PollInterval {
            intervals: Arc::clone(&self.intervals),
            number,
        };
        interval.set(ms);
        interval
    }

    /// How often the broker is asked: the shortest requested interval.
    pub(crate) fn poll_interval(&self) -> Duration {
        Duration::from_millis(self.poll_interval_ms())
    }

    /// As [`Self::poll_interval`], in milliseconds.
    pub(crate) fn poll_interval_ms(&self) -> u64 {
        let intervals = locked(&self.intervals);
        let least = intervals.requested.values().min();
        *least.unwrap_or(&intervals.default_ms)
    }

    /// Waits until a message waits to be acknowledged.
    pub(crate) async fn ack_requested(&self) {
        self.ack_requested.notified().await;
    }

    /// Whether the broker may lack a message of any source.
    pub(crate) fn are_behind(&self) -> bool {
        self.each.iter().any(|source| source.is_behind())
    }

    /// The mark of each source: see [`DeliveryProgress::mark`].
    pub(crate) fn marks(&self) -> Vec<(u64, u64)> {
        self.each.iter().map(|source| source.mark()).collect()
    }

    /// Notes that the broker has every message before these marks, for the sources whose messages
    /// went to the connection with the number `link`.
    pub(crate) fn acknowledge(&self, marks: &[(u64, u64)], link: u64) {
        for (source, (handed_to, end)) in self.each.iter().zip(marks) {
            if *handed_to == link {
                source.acknowledge(*end);
            }
        }
    }
}

/// How far one source has come. The places are those of its journal.
#[derive(Debug)]
pub(crate) struct DeliveryProgress {
    /// The number of the connection to which messages are handed: the client counts its connects.
    link: AtomicU64,
    /// The place behind the last message that was handed to this connection.
    end: AtomicU64,
    /// The place behind the last message that the broker is known to have.
    acknowledged: AtomicU64,
    advanced: Notify,
    /// Notified when a message waits to be acknowledged.
    ack_requested: Arc<Notify>,
}

impl DeliveryProgress {
    fn new(ack_requested: Arc<Notify>) -> Self {
        Self {
            link: AtomicU64::new(0),
            end: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            advanced: Notify::new(),
            ack_requested,
        }
    }

    /// From this place on, messages are handed to the connection with the number `link`.
    pub(crate) fn begin(&self, link: u64, place: u64) {
        // The order matters: a reader that sees the new connection must not see a place of the old
        // one.
        self.end.store(place, Ordering::Release);
        self.link.store(link, Ordering::Release);
    }

    /// Messages before this place have been handed over.
    pub(crate) fn advance(&self, end: u64) {
        self.end.store(end, Ordering::Release);
    }

    /// Asks the pulse for an acknowledgement soon.
    pub(crate) fn request_ack(&self) {
        self.ack_requested.notify_one();
    }

    /// The place behind the last message that the broker is known to have.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Waits until the broker has more messages. It may return without any.
    pub(crate) async fn until_advanced(&self) {
        self.advanced.notified().await;
    }

    /// The connection's number, and the place behind the last message handed to it.
    fn mark(&self) -> (u64, u64) {
        let link = self.link.load(Ordering::Acquire);
        (link, self.end.load(Ordering::Acquire))
    }

    fn acknowledge(&self, end: u64) {
        if self.acknowledged.fetch_max(end, Ordering::AcqRel) < end {
            self.advanced.notify_one();
        }
    }

    fn is_behind(&self) -> bool {
        self.end.load(Ordering::Relaxed) > self.acknowledged.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_is_asked_as_often_as_the_one_who_needs_it_most_wants() {
        let sources = Sources::new(500);
        assert_eq!(sources.poll_interval().as_millis(), 500);
        let (slow, quick) = (sources.request_interval(900), sources.request_interval(100));
        assert_eq!(sources.poll_interval().as_millis(), 100);
        drop(quick);
        assert_eq!(sources.poll_interval().as_millis(), 900);
        slow.set(700);
        assert_eq!(sources.poll_interval().as_millis(), 700);
    }

    #[test]
    fn what_is_handed_to_a_new_connection_is_marked_from_its_beginning() {
        let progress = DeliveryProgress::new(Arc::default());
        progress.begin(1, 0);
        progress.advance(7);
        assert_eq!((progress.mark(), progress.is_behind()), ((1, 7), true));
        progress.acknowledge(5);
        progress.acknowledge(3);
        assert_eq!(progress.acknowledged(), 5);
        progress.begin(2, 5);
        assert_eq!((progress.mark(), progress.is_behind()), ((2, 5), false));
    }
}
