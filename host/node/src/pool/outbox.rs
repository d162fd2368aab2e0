//! The outbox: the messages that the shards of one thread publish, in order. Each is passed to the
//! broker's client when that has room. It is kept until the broker has acknowledged it. After a
//! lost connection, it is passed on again with the same number.
//!
//! Nothing here blocks: a message without room stays in the outbox, and while the outbox is full,
//! shards with messages in it are paused.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::clock;
use crate::link::journal::{Journal, JournalEntry, LeaseId, NodeLease, PublishPermission};
use crate::link::progress::DeliveryProgress;

use super::OutboxSettings;

/// How often the connection is checked while a message waits for it, in milliseconds.
pub(super) const CHECK_EVERY_MS: u64 = 50;

/// After how long without room the log says so, in milliseconds.
const FULL_MS: u64 = 1_000;

/// Carries messages to the broker.
pub(crate) trait Transport: Send + 'static {
    /// How often it has connected. Messages that were handed to an earlier connection may be lost.
    fn link(&self) -> u64;

    /// Whether it is connected.
    fn is_connected(&self) -> bool;

    /// Hands over a message. `None` if there is no room for it now.
    fn try_send(&self, entry: &JournalEntry) -> Option<anyhow::Result<()>>;

    /// Hands over a message when there is room for it. If the future is dropped before that, it
    /// does nothing.
    fn send(&self, entry: JournalEntry) -> BoxFuture<'static, anyhow::Result<()>>;
}

/// The outbox of one thread.
pub(super) struct Outbox<C> {
    transport: C,
    handed: Arc<DeliveryProgress>,
    journal: Journal,
    shard_bytes_max: Option<usize>,
    /// The number of the connection to which messages are handed.
    link: u64,
    /// The place of the next message to hand over.
    next: u64,
    /// The place before which messages were handed to an earlier connection.
    handed_before: u64,
    /// The future that hands over the message at `next`, which waits for room.
    stuck: Option<BoxFuture<'static, anyhow::Result<()>>>,
    repeated: u64,
    /// Messages of which it isn't known whether they may be published, because their node's lease
    /// has run out. They are put aside, by lease and with their places, so that they don't block
    /// the messages of other tenants. There are no more than waited when the lease ran out: without
    /// a lease, a shard decides nothing.
    aside: HashMap<LeaseId, Vec<(u64, JournalEntry)>>,
    /// Whether there was a connection at the last check.
    is_connected: bool,
    /// Since when the outbox has been full, and whether that was logged.
    full_since: Option<u64>,
    is_full_told: bool,
    beacon_ms: u64,
    /// When the next beacons are due. `None` until a source has begun.
    beacon_at: Option<u64>,
}

impl<C: Transport> Outbox<C> {
    /// An empty outbox.
    pub(super) fn new(
        transport: C,
        handed: Arc<DeliveryProgress>,
        OutboxSettings {
            bytes_max,
            shard_bytes_max,
            beacon_ms,
        }: OutboxSettings,
    ) -> Self {
        Self {
            transport,
            handed,
            journal: Journal::new(bytes_max),
            shard_bytes_max,
            link: 0,
            next: 0,
            handed_before: 0,
            stuck: None,
            repeated: 0,
            aside: HashMap::new(),
            is_connected: false,
            full_since: None,
            is_full_told: false,
            beacon_ms,
            beacon_at: None,
        }
    }

    /// Puts a message in, and returns the place behind it. [`Self::hand_over`] hands it over.
    pub(super) fn push(&mut self, entry: JournalEntry) -> u64 {
        if !entry.is_at_most_once() && !self.journal.waits() {
            self.handed.request_ack();
        }
        self.journal.push(entry);
        self.journal.end()
    }

    /// Whether there is no room for more messages.
    pub(super) fn is_full(&self) -> bool {
        !self.journal.has_room()
    }

    /// How many bytes in it may be of one shard. The messages of others wait behind them. `None`:
    /// without a limit. This is so without a connection, since nothing can be published then.
    pub(super) fn shard_bytes_max(&self) -> Option<usize> {
        self.shard_bytes_max.filter(|_| self.is_connected)
    }

    /// The place of the first message that is kept.
    pub(super) fn begin(&self) -> u64 {
        self.journal.begin()
    }

    /// The place before which the broker has all messages.
    pub(super) fn acknowledged(&self) -> u64 {
        self.handed.acknowledged()
    }

    /// The size of all messages in it, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.journal.bytes()
    }

    /// How many messages have been handed over again.
    pub(super) fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Whether all messages before a place have been handed over. `None`: not yet, but there is a
    /// connection.
    pub(super) fn is_handed(&self, place: u64) -> Option<bool> {
        if self.next >= place {
            return Some(true);
        }
        (!self.is_connected).then_some(false)
    }

    /// Whether the broker has all messages before a place. `None`: not yet, but there is a
    /// connection.
    pub(super) fn settled(&mut self, place: u64) -> Option<bool> {
        if self.acknowledged() >= place {
            return Some(true);
        }
        self.handed.request_ack();
        (!self.is_connected).then_some(false)
    }

    /// Checks the connection, hands over what is possible, and removes messages that the broker
    /// has.
    pub(super) fn update(&mut self, now: u64) {
        self.check_connection();
        self.hand_over();
        self.forget();
        match (self.is_full(), self.full_since) {
            (false, _) => (self.full_since, self.is_full_told) = (None, false),
            (true, None) => self.full_since = Some(now),
            (true, Some(since)) if now >= since + FULL_MS && !self.is_full_told => {
                self.is_full_told = true;
                tracing::warn!(
                    parent: None,
                    bytes = self.journal.bytes(),
                    "NATS doesn't acknowledge messages, and the journal of this thread is full \
                     ([nats] journal_bytes): its shards process no input until it does"
                );
            }
            (true, Some(_)) => {}
        }
    }

    /// Hands to the client the messages that this connection hasn't got yet, in order, while the
    /// client has room.
    pub(super) fn hand_over(&mut self) {
        loop {
            // Read before anything is handed over: see `pulse`.
            let link = self.transport.link();
            if link != self.link {
                self.begin_link(link);
            }
            // Messages that were acknowledged meanwhile needn't be handed over again.
            if self.next < self.journal.begin() {
                self.next = self.journal.begin();
                self.stuck = None;
            }
            if !self.is_connected {
                self.stuck = None;
                return;
            }
            let sent = match &mut self.stuck {
                Some(stuck) => stuck.now_or_never(),
                None => {
                    let Some(entry) = self.journal.get(self.next) else {
                        // All other messages have been handed over, so those that were put aside go
                        // to the end.
                        match self.take_back() {
                            true => continue,
                            false => return,
                        }
                    };
                    if entry.is_at_most_once() && self.next < self.handed_before {
                        self.next += 1;
                        continue;
                    }
                    // Messages under the same lease stay in order.
                    let is_behind = entry.lease().is_some_and(|it| self.aside.contains_key(&it));
                    match entry.permission(clock::now_ms) {
                        PublishPermission::Allowed if !is_behind => {}
                        PublishPermission::Revoked => {
                            entry.count_dropped();
                            self.sent(Ok(()));
                            continue;
                        }
                        PublishPermission::Allowed | PublishPermission::LeaseExpired => {
                            self.put_aside();
                            self.sent(Ok(()));
                            continue;
                        }
                    }
                    let sent = self.transport.try_send(entry);
                    if sent.is_none() {
                        self.stuck = Some(self.transport.send(entry.clone()));
                    }
                    sent
                }
            };
            match sent {
                Some(sent) => self.sent(sent),
                None => return,
            }
        }
    }

    /// Puts the message at `next` aside, so that others don't wait for it.
    fn put_aside(&mut self) {
        if let Some(entry) = self.journal.get(self.next)
            && let Some(lease) = entry.lease()
        {
            self.aside
                .entry(lease)
                .or_default()
                .push((self.next, entry.clone()));
        }
    }

    /// Puts messages that were put aside back into the journal if their fences are decided. Returns
    /// whether there were any.
    fn take_back(&mut self) -> bool {
        let now = clock::now_ms();
        let is_known = |entries: &[(u64, JournalEntry)]| {
            let mut entries = entries.iter();
            entries.all(|(_, it)| it.permission(|| now) != PublishPermission::LeaseExpired)
        };
        let known = self.aside.extract_if(|_, entries| is_known(entries));
        let known: Vec<_> = known.flat_map(|(_, entries)| entries).collect();
        let is_any = !known.is_empty();
        for (_, entry) in known {
            self.push(entry);
        }
        is_any
    }

    /// Whether messages under this lease are put aside.
    pub(super) fn has_aside(&self, lease: &Arc<NodeLease>) -> bool {
        self.aside.contains_key(&LeaseId::of(lease))
    }

    /// The message at `next` has been handed over, or dropped.
    fn sent(&mut self, sent: anyhow::Result<()>) {
        if let Err(error) = sent {
            tracing::error!(parent: None, "a message could not be published: {error:#}");
        }
        self.stuck = None;
        let entry = self.journal.get(self.next);
        let is_counted = entry.is_some_and(|entry| !entry.is_at_most_once());
        self.next += 1;
        if is_counted {
            self.handed.advance(self.next);
        }
    }

    /// Whether it is time for the beacons of all sources on this thread. Returns `true` once per
    /// interval. Without a connection or room, it returns `false`, and beacons come soon after that
    /// is over.
    pub(super) fn is_beacon_due(&mut self, now: u64) -> bool {
        if self.beacon_at.is_none_or(|at| now < at) {
            return false;
        }
        let can_be_heard = self.is_connected && !self.is_full();
        let wait = if can_be_heard {
            self.beacon_ms
        } else {
            CHECK_EVERY_MS
        };
        self.beacon_at = Some(now + wait);
        can_be_heard
    }

    /// Begins to send beacons, the first at once.
    pub(super) fn begin_beacons(&mut self, now: u64) {
        self.beacon_at = Some(now);
    }

    /// When [`Self::update`] or the beacons are due, at the latest.
    pub(super) fn due(&self, now: u64) -> Option<u64> {
        let is_waiting = self.next < self.journal.end() || self.is_full() || !self.aside.is_empty();
        let look_at = is_waiting.then_some(now + CHECK_EVERY_MS);
        self.beacon_at.into_iter().chain(look_at).min()
    }

    /// Waits until the broker has acknowledged more, or the client has room again. It may return
    /// too early.
    pub(super) async fn until_advanced(outbox: &RefCell<Self>) {
        let (handed, waits) = {
            let outbox = outbox.borrow();
            (Arc::clone(&outbox.handed), outbox.journal.waits())
        };
        let sent = poll_fn(|context| match &mut outbox.borrow_mut().stuck {
            Some(stuck) => stuck.poll_unpin(context),
            None => Poll::Pending,
        });
        tokio::select! {
            biased;
            () = handed.until_advanced(), if waits => {}
            sent = sent => outbox.borrow_mut().sent(sent),
        }
    }

    /// Begins a new connection: messages that the broker may not have are handed over again, and
    /// beacons are sent soon.
    fn begin_link(&mut self, link: u64) {
        self.forget();
        self.check_connection();
        self.stuck = None;
        let begin = self.journal.begin();
        self.repeated += self.next.saturating_sub(begin);
        self.handed_before = self.handed_before.max(self.next);
        self.handed.begin(link, begin);
        (self.link, self.next) = (link, begin);
        // Most of the messages put aside are still in the journal, and are handed over again in
        // their order. The others would come too late, and are dropped. That leaves a gap in their
        // shards' numbers. Clients query then, and standbys catch up.
        for (place, entry) in self.aside.drain().flat_map(|(_, entries)| entries) {
            if place < begin {
                entry.count_dropped();
            }
        }
        self.beacon_at = self.beacon_at.map(|at| at.min(clock::now_ms()));
    }

    fn forget(&mut self) {
        self.journal.forget(self.handed.acknowledged(), self.next);
    }

    /// Checks whether the client is connected. This takes a lock.
    fn check_connection(&mut self) {
        self.is_connected = self.transport.is_connected();
    }
}
