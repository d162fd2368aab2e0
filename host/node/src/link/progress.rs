//! How far each source has handed its messages to the broker's client, and how far the
//! broker has them. Sources write the first, the pulse writes the second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// A node's sources, as the pulse knows them.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    each: Vec<Arc<DeliveryProgress>>,
    /// Said when something is there to be acknowledged.
    wanted: Arc<Notify>,
    every_ms: Arc<AtomicU64>,
}

impl Sources {
    /// None yet. `every_ms`: how often the broker is asked, in milliseconds.
    pub(crate) fn new(every_ms: u64) -> Self {
        Self {
            each: Vec::new(),
            wanted: Arc::default(),
            every_ms: Arc::new(every_ms.into()),
        }
    }

    /// One more source.
    pub(crate) fn add(&mut self) -> Arc<DeliveryProgress> {
        let progress = Arc::new(DeliveryProgress::new(Arc::clone(&self.wanted)));
        self.each.push(Arc::clone(&progress));
        progress
    }

    /// From now on the broker is asked this often, wherever these sources are known.
    pub(crate) fn ask_every(&self, ms: u64) {
        self.every_ms.store(ms, Ordering::Relaxed);
    }

    /// How often the broker is asked.
    pub(crate) fn every(&self) -> Duration {
        Duration::from_millis(self.every_ms.load(Ordering::Relaxed))
    }

    /// Waits until something is there to be acknowledged.
    pub(crate) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Whether the broker isn't known to have all.
    pub(crate) fn are_behind(&self) -> bool {
        self.each.iter().any(|source| source.is_behind())
    }

    /// Where each of them is: see [`DeliveryProgress::mark`].
    pub(crate) fn marks(&self) -> Vec<(u64, u64)> {
        self.each.iter().map(|source| source.mark()).collect()
    }

    /// The broker has all before these marks that was handed to the connection with
    /// this number.
    pub(crate) fn acknowledge(&self, marks: &[(u64, u64)], link: u64) {
        for (source, (handed_to, end)) in self.each.iter().zip(marks) {
            if *handed_to == link {
                source.acknowledge(*end);
            }
        }
    }
}

/// How far one source has come. Places are the journal's.
#[derive(Debug)]
pub(crate) struct DeliveryProgress {
    /// The connection that they were handed to, counted as the client counts.
    link: AtomicU64,
    /// Up to which place they were.
    end: AtomicU64,
    /// Up to which place the broker has them.
    acknowledged: AtomicU64,
    moved: Notify,
    /// Said when something is there to be acknowledged.
    wanted: Arc<Notify>,
}

impl DeliveryProgress {
    fn new(wanted: Arc<Notify>) -> Self {
        Self {
            link: AtomicU64::new(0),
            end: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            moved: Notify::new(),
            wanted,
        }
    }

    /// From this place on, messages are handed to this connection.
    pub(crate) fn begin(&self, link: u64, place: u64) {
        // In this order: who sees the new connection sees no place of the one before.
        self.end.store(place, Ordering::Release);
        self.link.store(link, Ordering::Release);
    }

    /// Messages up to this place have been handed over.
    pub(crate) fn advance(&self, end: u64) {
        self.end.store(end, Ordering::Release);
    }

    /// Asks for an acknowledgement soon.
    pub(crate) fn want(&self) {
        self.wanted.notify_one();
    }

    /// Up to which place the broker has the messages.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Waits until the broker has more of them. It may return too early.
    pub(crate) async fn moved(&self) {
        self.moved.notified().await;
    }

    /// The connection, and up to which place messages were handed to it.
    fn mark(&self) -> (u64, u64) {
        let link = self.link.load(Ordering::Acquire);
        (link, self.end.load(Ordering::Acquire))
    }

    fn acknowledge(&self, end: u64) {
        if self.acknowledged.fetch_max(end, Ordering::AcqRel) < end {
            self.moved.notify_one();
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
