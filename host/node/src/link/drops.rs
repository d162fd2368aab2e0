//! Messages that the broker's client drops because a subscription's queue is full. The client
//! reports each drop in an event with the subscription's number. If there are too many events at a
//! time, it drops events as well.
//!
//! So the subscription's number is used for counting only. To recover lost messages, the reader of a
//! subscription checks whether the subscription may have been full when the client dropped anything
//! at all ([`LossDetector`]), and if so fetches its data again.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::Subscriber;
use tokio::sync::watch;

/// How late the client may report a drop, in milliseconds; also how long a message may wait to be
/// read.
const LATE_MS: u64 = 10_000;

/// The least time between two fetches of lost data, in milliseconds: a directory service, for
/// example, must not be asked for everything more often.
const REFETCH_MS: u64 = 1_000;

/// How many prefixes one log line names.
const PREFIXES_MAX: usize = 5;

/// What kind of messages a subscription receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SubscriptionKind {
    /// Messages of users and applications.
    Inputs,
    /// Queries and requests for explanations.
    Questions,
    /// Changes that the directory service announces.
    Invalidations,
    /// Questions of other nodes.
    Hellos,
    /// Markers of the pulse.
    Markers,
    /// Subscriptions that the client makes itself: a directory's bucket, and replies.
    Other,
}

impl SubscriptionKind {
    /// All of them, in the order of their declaration.
    const ALL: [Self; 6] = [
        Self::Inputs,
        Self::Questions,
        Self::Invalidations,
        Self::Hellos,
        Self::Markers,
        Self::Other,
    ];

    /// Its index in `ALL`.
    fn place(self) -> usize {
        self as usize
    }

    /// Its name in metrics and in the log.
    fn as_str(self) -> &'static str {
        match self {
            Self::Inputs => "inputs",
            Self::Questions => "questions",
            Self::Invalidations => "invalidations",
            Self::Hellos => "hello",
            Self::Markers => "pulse",
            Self::Other => "other",
        }
    }

    /// The consequence of a drop, and how to prevent it.
    fn consequence(self) -> &'static str {
        match self {
            Self::Inputs => {
                "raise [nats] intake_queue and [engine] worker_queue, or take load off this machine"
            }
            Self::Questions => "those who asked get no answer: raise [nats] intake_queue",
            Self::Invalidations => {
                "all of the directory's answers are asked again: raise [nats] intake_queue, or \
                 have the service say that everything has changed"
            }
            Self::Hellos => "other nodes are asked",
            Self::Markers => "the next one says the same",
            Self::Other => "what is missing is read again",
        }
    }
}

/// Counts of dropped messages.
#[derive(Debug, Default)]
pub(crate) struct Drops {
    /// The watched subscriptions, by the numbers that the client has given them.
    numbers: Arc<Mutex<HashMap<u64, WatchedSubscription>>>,
    /// How many drops the client has reported, of any subscription.
    reported: watch::Sender<u64>,
    /// Whether several tenants read inputs on this client, so that no single reader can count the
    /// missing messages.
    has_several_readers: AtomicBool,
    by_subscription: [Count; SubscriptionKind::ALL.len()],
    /// Dropped messages by the prefix of their tenant, if several tenants share the client.
    by_prefix: Mutex<BTreeMap<Arc<str>, [DropsBelow; SubscriptionKind::ALL.len()]>>,
}

/// A watched subscription.
#[derive(Debug)]
struct WatchedSubscription {
    kind: SubscriptionKind,
    /// The first token of its subject, if it can be a tenant's prefix.
    prefix: Option<Arc<str>>,
}

/// A subscription whose dropped messages are counted by what it receives.
pub(crate) struct WatchedSubscriber {
    subscriber: Subscriber,
    number: Option<u64>,
    numbers: Arc<Mutex<HashMap<u64, WatchedSubscription>>>,
}

impl Deref for WatchedSubscriber {
    type Target = Subscriber;

    fn deref(&self) -> &Subscriber {
        &self.subscriber
    }
}

impl DerefMut for WatchedSubscriber {
    fn deref_mut(&mut self) -> &mut Subscriber {
        &mut self.subscriber
    }
}

impl Drop for WatchedSubscriber {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            lock(&self.numbers).remove(&number);
        }
    }
}

/// The watched subscriptions, locked. A panic can't leave them half-changed.
fn lock(
    numbers: &Mutex<HashMap<u64, WatchedSubscription>>,
) -> MutexGuard<'_, HashMap<u64, WatchedSubscription>> {
    numbers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Dropped messages of one kind of subscription below a prefix.
#[derive(Clone, Copy, Debug, Default)]
struct DropsBelow {
    known: u64,
    /// How many of them were logged.
    logged: u64,
}

/// The first token of a subject, if it can be a tenant's prefix.
fn prefix_of(subject: &str) -> Option<&str> {
    let (first, _) = subject.split_once('.')?;
    let others = ["presence", "_INBOX"];
    let is_other = others.contains(&first) || first.starts_with(['$', '*', '>']);
    (!is_other).then_some(first)
}

#[derive(Debug, Default)]
struct Count {
    /// How many drops the client has reported. It doesn't report all of them.
    reported: AtomicU64,
    /// How many messages are known to have been dropped.
    known: AtomicU64,
    /// How many of them were logged.
    logged: AtomicU64,
}

impl Drops {
    /// Notes what a subscription receives, and its subject, until the subscription ends.
    pub(crate) fn watch(
        &self,
        subscriber: Subscriber,
        kind: SubscriptionKind,
        subject: &str,
    ) -> WatchedSubscriber {
        let number = number(&subscriber);
        if let Some(number) = number {
            self.watch_number(number, kind, subject);
        }
        WatchedSubscriber {
            subscriber,
            number,
            numbers: Arc::clone(&self.numbers),
        }
    }

    fn watch_number(&self, number: u64, kind: SubscriptionKind, subject: &str) {
        let prefix = prefix_of(subject).map(Into::into);
        lock(&self.numbers).insert(number, WatchedSubscription { kind, prefix });
    }

    /// Notes that the client has reported a drop of a subscription.
    pub(crate) fn note_report(&self, number: u64) {
        let (kind, prefix) = {
            let numbers = lock(&self.numbers);
            let known = numbers.get(&number);
            known.map_or((SubscriptionKind::Other, None), |it| {
                (it.kind, it.prefix.clone())
            })
        };
        if let Some(prefix) = prefix.filter(|_| self.has_several_readers()) {
            let mut by_prefix = self.by_prefix();
            let of_prefix = by_prefix.entry(prefix).or_default();
            if let Some(of_kind) = of_prefix.get_mut(kind.place()) {
                of_kind.known += 1;
            }
        }
        self.of(kind).reported.fetch_add(1, Ordering::Relaxed);
        // A single reader of inputs counts all missing messages itself.
        if kind != SubscriptionKind::Inputs || self.has_several_readers() {
            self.count(kind, 1);
        }
        self.reported.send_modify(|reported| *reported += 1);
    }

    /// From now on, several tenants read inputs: drops of inputs are counted as the client reports
    /// them.
    pub(crate) fn read_by_several(&self) {
        self.has_several_readers.store(true, Ordering::Relaxed);
    }

    /// Whether several tenants read inputs on this client.
    pub(crate) fn has_several_readers(&self) -> bool {
        self.has_several_readers.load(Ordering::Relaxed)
    }

    /// A receiver of the number of drops that the client has reported.
    pub(crate) fn follow(&self) -> watch::Receiver<u64> {
        self.reported.subscribe()
    }

    /// How many drops the client has reported, of any subscription.
    pub(crate) fn all_reported(&self) -> u64 {
        *self.reported.borrow()
    }

    /// How many drops the client has reported of subscriptions of this kind.
    pub(crate) fn reported_of(&self, kind: SubscriptionKind) -> u64 {
        self.of(kind).reported.load(Ordering::Relaxed)
    }

    /// Counts dropped messages. The first is logged at once, the others by [`Self::report`].
    pub(crate) fn count(&self, kind: SubscriptionKind, count: u64) {
        if self.of(kind).known.fetch_add(count, Ordering::Relaxed) == 0 {
            self.log(kind);
        }
    }

    /// Logs the drops that haven't been logged yet.
    pub(crate) fn report(&self) {
        SubscriptionKind::ALL
            .into_iter()
            .for_each(|it| self.log(it));
    }

    /// How many messages were dropped, for each kind of subscription.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let count = |kind: SubscriptionKind| self.of(kind).known.load(Ordering::Relaxed);
        SubscriptionKind::ALL
            .into_iter()
            .map(move |it| (it.as_str(), count(it)))
    }

    /// How many messages were dropped below a tenant's prefix.
    pub(crate) fn counts_below(&self, prefix: &str) -> Vec<(&'static str, u64)> {
        let of_prefix = self.by_prefix().get(prefix).copied().unwrap_or_default();
        let kinds = SubscriptionKind::ALL.into_iter().zip(of_prefix);
        kinds.map(|(kind, it)| (kind.as_str(), it.known)).collect()
    }

    /// How many of the dropped messages were not below a tenant's prefix.
    pub(crate) fn counts_elsewhere(&self) -> Vec<(&'static str, u64)> {
        let by_prefix = self.by_prefix();
        let below = |kind: SubscriptionKind| -> u64 {
            let of_kind = by_prefix.values().filter_map(|it| it.get(kind.place()));
            of_kind.map(|it| it.known).sum()
        };
        let kinds = SubscriptionKind::ALL.into_iter().zip(self.counts());
        kinds
            .map(|(kind, (name, count))| (name, count.saturating_sub(below(kind))))
            .collect()
    }

    /// The prefixes with the most drops since the last log line, as text. The drops then count as
    /// logged.
    fn take_unlogged(&self, kind: SubscriptionKind) -> String {
        let mut unlogged: Vec<_> = {
            let mut by_prefix = self.by_prefix();
            let of_kind = by_prefix.iter_mut().filter_map(|(prefix, of_prefix)| {
                let it = of_prefix.get_mut(kind.place())?;
                let dropped = it.known - it.logged;
                it.logged = it.known;
                (dropped > 0).then(|| (dropped, Arc::clone(prefix)))
            });
            of_kind.collect()
        };
        unlogged.sort_by(|a, b| b.cmp(a));
        let others = unlogged.len().saturating_sub(PREFIXES_MAX);
        let named = unlogged.iter().take(PREFIXES_MAX);
        let mut said: Vec<_> = named
            .map(|(dropped, prefix)| format!("{dropped} of `{prefix}`"))
            .collect();
        if others > 0 {
            said.push(format!("and of {others} others"));
        }
        said.join(", ")
    }

    fn by_prefix(
        &self,
    ) -> MutexGuard<'_, BTreeMap<Arc<str>, [DropsBelow; SubscriptionKind::ALL.len()]>> {
        self.by_prefix
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self, kind: SubscriptionKind) {
        let of = self.of(kind);
        let total = of.known.load(Ordering::Relaxed);
        let dropped = total.saturating_sub(of.logged.swap(total, Ordering::Relaxed));
        if dropped == 0 {
            return;
        }
        let (what, so) = (kind.as_str(), kind.consequence());
        if self.has_several_readers() {
            // Called even if the log leaves the line out: it marks the drops as logged.
            let prefixes = self.take_unlogged(kind);
            // The current span may be of another tenant than the one that lost messages.
            tracing::warn!(
                parent: None,
                dropped,
                total,
                prefixes,
                "{what} of the tenants of one account arrive faster than they are taken in, and \
                 some are dropped: {so}"
            );
        } else {
            tracing::warn!(
                dropped,
                total,
                "{what} arrive faster than they are taken in, and some are dropped: {so}"
            );
        }
    }

    fn of(&self, kind: SubscriptionKind) -> &Count {
        let count = self.by_subscription.get(kind.place());
        #[expect(clippy::expect_used, reason = "there is one for each")]
        count.expect("a count for each")
    }
}

/// The number that the client has given to a subscription. Only its `Debug` text shows it.
fn number(subscription: &Subscriber) -> Option<u64> {
    let shown = format!("{subscription:?}");
    let (_, rest) = shown.split_once("sid: ")?;
    rest.split(|it: char| !it.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

/// Decides whether messages of a subscription may be lost. It can only have been full if as many
/// messages as it holds were read without finding it empty. Times are by the host's clock.
#[derive(Debug)]
pub(crate) struct LossDetector {
    /// How many messages the subscription holds.
    queue: u64,
    /// How many messages were read since it was last found empty.
    read: u64,
    /// When the subscription may last have been full, and when the client last reported a drop of
    /// any subscription. `None` once the lost data has been fetched again.
    full_at: Option<u64>,
    dropped_at: Option<u64>,
    refetched_at: Option<u64>,
}

impl LossDetector {
    /// Nothing is lost yet. `queue`: how many messages the subscription holds.
    pub(crate) fn new(queue: usize) -> Self {
        Self {
            queue: queue as u64,
            read: 0,
            full_at: None,
            dropped_at: None,
            refetched_at: None,
        }
    }

    /// Notes that `count` messages were read. `is_empty`: no further message waited.
    pub(crate) fn read(&mut self, count: usize, is_empty: bool, now: u64) {
        self.read += count as u64;
        if self.read >= self.queue {
            self.full_at = Some(now);
        }
        if is_empty {
            self.read = 0;
        }
    }

    /// Notes that the client has reported a drop, of any subscription.
    pub(crate) fn note_dropped(&mut self, now: u64) {
        self.dropped_at = Some(now);
    }

    /// When to fetch again what may be lost. `None` if nothing may be.
    pub(crate) fn due(&self) -> Option<u64> {
        let (full_at, dropped_at) = (self.full_at?, self.dropped_at?);
        let refetched_at = self.refetched_at.map_or(0, |at| at + REFETCH_MS);
        (full_at.abs_diff(dropped_at) <= LATE_MS).then(|| full_at.max(dropped_at).max(refetched_at))
    }

    /// Returns whether to fetch again now what may have been lost, and counts that as done.
    pub(crate) fn take_refetch(&mut self, now: u64) -> bool {
        let is_due = self.due().is_some_and(|at| at <= now);
        if is_due {
            (self.full_at, self.dropped_at) = (None, None);
            self.refetched_at = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_counted_for_its_subscription() {
        let drops = Drops::default();
        let mut followed = drops.follow();
        drops.watch_number(3, SubscriptionKind::Inputs, "presence.>");
        drops.watch_number(5, SubscriptionKind::Invalidations, "presence-directory.x");
        for number in [5, 5, 3, 9] {
            drops.note_report(number);
        }
        drops.count(SubscriptionKind::Inputs, 40);
        let counts: Vec<_> = drops.counts().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counts, [("inputs", 40), ("invalidations", 2), ("other", 1)]);
        assert_eq!(drops.reported_of(SubscriptionKind::Inputs), 1);
        assert_eq!(
            (drops.all_reported(), *followed.borrow_and_update()),
            (4, 4)
        );
    }

    #[test]
    fn of_inputs_that_several_read_is_counted_what_the_client_says() {
        let drops = Drops::default();
        drops.watch_number(3, SubscriptionKind::Inputs, "a.presence.>");
        drops.note_report(3);
        drops.read_by_several();
        drops.note_report(3);
        let counts: Vec<_> = drops.counts().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counts, [("inputs", 1)]);
    }

    #[test]
    fn of_several_tenants_is_known_below_whose_prefix_something_was_dropped() {
        let drops = Drops::default();
        drops.read_by_several();
        for (number, subject) in [
            (1, "a.presence.>"),
            (2, "b.presence.>"),
            (3, "_INBOX.x.*"),
            (4, "presence.>"),
        ] {
            drops.watch_number(number, SubscriptionKind::Inputs, subject);
        }
        for number in [1, 1, 1, 2, 3, 4] {
            drops.note_report(number);
        }
        let inputs = |counts: Vec<(&str, u64)>| counts.first().map(|(_, count)| *count);
        let below = |prefix: &str| inputs(drops.counts_below(prefix));
        assert_eq!(
            [below("a"), below("b"), below("c")],
            [Some(3), Some(1), Some(0)]
        );
        assert_eq!(inputs(drops.counts_elsewhere()), Some(2));
        // The first drop was logged at once.
        assert_eq!(
            drops.take_unlogged(SubscriptionKind::Inputs),
            "2 of `a`, 1 of `b`"
        );
        assert_eq!(drops.take_unlogged(SubscriptionKind::Inputs), "");
    }

    #[test]
    fn what_may_be_lost_is_what_came_to_a_subscription_that_may_have_been_full() {
        let mut losses = LossDetector::new(10);
        losses.note_dropped(100);
        losses.read(9, true, 101);
        losses.read(9, true, 102);
        assert!(!losses.take_refetch(200), "another's");
        losses.read(6, false, 300);
        losses.read(6, true, 301);
        assert!(losses.take_refetch(301), "said before it was read");
        assert!(!losses.take_refetch(2_000), "once");
        losses.read(10, true, 3_000);
        assert!(
            !losses.take_refetch(3_000),
            "the client hasn't dropped anything since"
        );
        losses.note_dropped(3_001);
        assert!(losses.take_refetch(3_001), "said after it was read");
    }

    #[test]
    fn however_much_is_lost_it_is_had_anew_now_and_then_and_at_last() {
        let mut losses = LossDetector::new(10);
        let mut healed = Vec::new();
        for now in 5_000..7_500 {
            losses.note_dropped(now);
            losses.read(10, false, now);
            if losses.take_refetch(now) {
                healed.push(now);
            }
        }
        assert_eq!(healed, [5_000, 6_000, 7_000]);
        assert_eq!(losses.due(), Some(8_000));
        assert!(losses.take_refetch(8_000));
    }

    #[test]
    fn what_was_full_long_before_lost_nothing() {
        let mut losses = LossDetector::new(10);
        losses.read(10, true, 0);
        losses.note_dropped(LATE_MS + 1);
        assert_eq!(losses.due(), None);
    }
}
