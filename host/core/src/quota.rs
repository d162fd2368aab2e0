//! Quotas: limits of what a tenant may use, so that none takes from the others. They read no clock:
//! the caller passes the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const NS_PER_S: u64 = 1_000_000_000;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quota {
    /// Messages per second.
    Messages,
    /// Live connections.
    Connections,
    /// Live connections of one user.
    UserConnections,
    /// Users with connections.
    Users,
    /// Remembered closes of connections.
    Closes,
    /// Applications' statements in force.
    Statements,
    /// Users with an own status.
    Statuses,
    /// Viewers of one user.
    Audience,
    /// Processor time per second.
    Cpu,
    /// Queries per second.
    Queries,
    /// Dead letters per second.
    DeadLetters,
    /// Entries of the directory.
    DirectoryEntries,
    /// Plugins in the pipeline, and the bytes of their files.
    Plugins,
    /// Memory of all instances of plugins.
    PluginMemory,
}

impl Quota {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Messages,
        Self::Connections,
        Self::UserConnections,
        Self::Users,
        Self::Closes,
        Self::Statements,
        Self::Statuses,
        Self::Audience,
        Self::Cpu,
        Self::Queries,
        Self::DeadLetters,
        Self::DirectoryEntries,
        Self::Plugins,
        Self::PluginMemory,
    ];

    /// The quota's name in a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Connections => "connections",
            Self::UserConnections => "user_connections",
            Self::Users => "users",
            Self::Closes => "closes",
            Self::Statements => "statements",
            Self::Statuses => "statuses",
            Self::Audience => "audience",
            Self::Cpu => "cpu",
            Self::Queries => "queries",
            Self::DeadLetters => "dead_letters",
            Self::DirectoryEntries => "directory_entries",
            Self::Plugins => "plugins",
            Self::PluginMemory => "plugin_memory",
        }
    }
}

/// A rate limit: what wasn't used can be used later, up to a burst. Clones share the limit.
#[derive(Clone, Debug, Default)]
pub struct Rate(Arc<RateState>);

#[derive(Debug, Default)]
struct RateState {
    per_s: AtomicU64,
    /// How long one use takes at this rate, in nanoseconds; 0 without a limit.
    ns_each: AtomicU64,
    burst_ns: AtomicU64,
    /// When everything used so far would be done at this rate.
    done_ns: AtomicU64,
    /// How many extra uses are allowed beside the rate.
    extra: AtomicU64,
}

impl Rate {
    /// A limit of `per_s` uses per second, and of `burst` at once. 0 per second: no limit.
    pub fn new(per_s: u64, burst: u64) -> Self {
        let rate = Self::default();
        rate.change(per_s, burst);
        rate
    }

    /// Changes the limit. If the rate differs, past use is forgotten.
    pub fn change(&self, per_s: u64, burst: u64) {
        let ns_each = NS_PER_S.checked_div(per_s).map_or(0, |ns| ns.max(1));
        let burst_ns = ns_each.saturating_mul(burst.max(1));
        // Past use is measured by the rate at which it happened.
        if self.0.per_s.swap(per_s, Ordering::Relaxed) != per_s {
            self.0.done_ns.store(0, Ordering::Relaxed);
        }
        self.0.ns_each.store(ns_each, Ordering::Relaxed);
        self.0.burst_ns.store(burst_ns, Ordering::Relaxed);
    }

    /// The limit per second; 0 without a limit.
    pub fn per_s(&self) -> u64 {
        self.0.per_s.load(Ordering::Relaxed)
    }

    /// The limit of uses at once.
    pub fn burst(&self) -> u64 {
        let burst_ns = self.0.burst_ns.load(Ordering::Relaxed);
        let ns_each = self.0.ns_each.load(Ordering::Relaxed);
        burst_ns.checked_div(ns_each).unwrap_or(0)
    }

    /// Sets this limit to 1/`parts` of another one.
    pub fn set_to_fraction_of(&self, whole: &Self, parts: u64) {
        let part = |of: u64| of.div_ceil(parts.max(1));
        self.change(part(whole.per_s()), part(whole.burst()));
    }

    /// Allows as many extra uses, at any time, as the rate allows in `ms` milliseconds. 0: no extra
    /// uses.
    pub fn allow_extra(&self, ms: u64) {
        let extra = self.per_s().saturating_mul(ms).div_ceil(1_000);
        self.0.extra.store(extra, Ordering::Relaxed);
    }

    /// Takes one use. Returns whether it is allowed now; if not, it doesn't count.
    pub fn take(&self, now_ns: u64) -> bool {
        let ns_each = self.0.ns_each.load(Ordering::Relaxed);
        if ns_each == 0 {
            return true;
        }
        let take_one = |extra: u64| extra.checked_sub(1);
        let extra = &self.0.extra;
        if extra.load(Ordering::Relaxed) > 0
            && extra
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take_one)
                .is_ok()
        {
            return true;
        }
        let latest = now_ns.saturating_add(self.0.burst_ns.load(Ordering::Relaxed));
        let taken = |done: u64| {
            let done = done.max(now_ns).saturating_add(ns_each);
            (done <= latest).then_some(done)
        };
        let relaxed = Ordering::Relaxed;
        self.0.done_ns.fetch_update(relaxed, relaxed, taken).is_ok()
    }

    /// Counts uses that have happened, whether or not they were allowed.
    pub fn spend(&self, now_ns: u64, count: u64) {
        let ns_each = self.0.ns_each.load(Ordering::Relaxed);
        if ns_each == 0 {
            return;
        }
        let earliest = now_ns.saturating_sub(self.0.burst_ns.load(Ordering::Relaxed));
        let took = ns_each.saturating_mul(count);
        let spent = |done: u64| Some(done.max(earliest).saturating_add(took));
        let relaxed = Ordering::Relaxed;
        let _ = self.0.done_ns.fetch_update(relaxed, relaxed, spent);
    }

    /// When the past use is compensated at this rate. It is in the past if it already is.
    pub fn free_at_ns(&self) -> u64 {
        match self.0.ns_each.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.0.done_ns.load(Ordering::Relaxed),
        }
    }
}

/// A limit of how many there may be of something at a time, shared by several holders. Clones share
/// the limit.
#[derive(Clone, Debug, Default)]
pub struct Cap(Arc<CapState>);

#[derive(Debug, Default)]
struct CapState {
    /// 0 without a limit.
    max: AtomicUsize,
    held: AtomicUsize,
}

impl Cap {
    /// A limit of `max`; 0 without a limit.
    pub fn new(max: usize) -> Self {
        let cap = Self::default();
        cap.change(max);
        cap
    }

    /// Changes the limit. What is held already stays.
    pub fn change(&self, max: usize) {
        self.0.max.store(max, Ordering::Relaxed);
    }

    /// The limit; 0 without a limit.
    pub fn max(&self) -> usize {
        self.0.max.load(Ordering::Relaxed)
    }

    /// How many are held in all.
    pub fn held(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    /// A separate cap with the same limit.
    #[must_use]
    pub fn with_same_limit(&self) -> Self {
        Self::new(self.max())
    }
}

/// How many one holder has of what a [`Cap`] limits. They are given back when this is dropped.
#[derive(Debug, Default)]
pub struct CapHolder {
    cap: Cap,
    count: usize,
}

impl CapHolder {
    /// A holder that has none yet.
    pub fn of(cap: &Cap) -> Self {
        Self {
            cap: cap.clone(),
            count: 0,
        }
    }

    /// How many this holder has.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The limit for all holders together.
    pub fn max(&self) -> usize {
        self.cap.max()
    }

    /// Changes the limit for all holders together.
    pub fn change(&self, max: usize) {
        self.cap.change(max);
    }

    /// Takes one more, if the limit allows it. Returns whether it did.
    pub fn take(&mut self) -> bool {
        let max = match self.cap.max() {
            0 => usize::MAX,
            max => max,
        };
        let more = |held: usize| (held < max).then_some(held + 1);
        let relaxed = Ordering::Relaxed;
        let taken = self.cap.0.held.fetch_update(relaxed, relaxed, more).is_ok();
        self.count += usize::from(taken);
        taken
    }

    /// Takes one more, regardless of the limit, since it existed before.
    pub fn take_unchecked(&mut self) {
        self.cap.0.held.fetch_add(1, Ordering::Relaxed);
        self.count += 1;
    }

    /// Gives one back.
    pub fn release(&mut self) {
        if let Some(count) = self.count.checked_sub(1) {
            self.count = count;
            self.cap.0.held.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for CapHolder {
    fn drop(&mut self) {
        self.cap.0.held.fetch_sub(self.count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = NS_PER_S;

    fn taken(rate: &Rate, now_ns: u64) -> usize {
        (0..1_000).filter(|_| rate.take(now_ns)).count()
    }

    #[test]
    fn there_are_so_many_a_second_and_so_many_at_once_of_all_who_share_them() {
        let rate = Rate::new(10, 20);
        let other = rate.clone();
        assert_eq!([taken(&rate, 5 * S), taken(&other, 5 * S)], [20, 0]);
        assert_eq!([taken(&other, 6 * S), taken(&rate, 6 * S)], [10, 0]);
        assert_eq!(taken(&rate, 0), 0, "time doesn't run backwards");
        assert_eq!(taken(&rate, 6 * S + S / 10), 1);
        assert_eq!(taken(&rate, 100 * S), 20, "no more is saved up");
        rate.change(1, 1);
        assert_eq!(taken(&other, 200 * S), 1);
        rate.change(0, 0);
        assert_eq!(taken(&other, 200 * S), 1_000);
    }

    #[test]
    fn what_was_held_for_a_while_may_come_at_once() {
        let rate = Rate::new(10, 20);
        rate.allow_extra(2_050);
        assert_eq!(taken(&rate, 5 * S), 21 + 20);
        rate.allow_extra(60_000);
        rate.allow_extra(0);
        assert_eq!(taken(&rate, 6 * S), 10);
    }

    #[test]
    fn parts_of_a_rate_make_the_whole_and_follow_its_changes() {
        let (whole, part) = (Rate::new(10, 20), Rate::default());
        part.set_to_fraction_of(&whole, 2);
        assert_eq!([taken(&part, 5 * S), taken(&part, 6 * S)], [10, 5]);
        part.set_to_fraction_of(&whole, 2);
        assert_eq!(taken(&part, 6 * S), 0, "nothing has changed");
        part.set_to_fraction_of(&whole, 1);
        assert_eq!(taken(&part, 7 * S), 20);
        whole.change(0, 0);
        part.set_to_fraction_of(&whole, 3);
        assert_eq!(taken(&part, 7 * S), 1_000);
    }

    #[test]
    fn what_was_spent_is_made_up_for_by_the_rate() {
        // A tenth of the time, in microseconds, and at once half a second's worth.
        let rate = Rate::new(100_000, 50_000);
        let now = 100 * S;
        rate.spend(now, 50_000);
        assert_eq!(rate.free_at_ns(), now);
        rate.spend(now, 10_000);
        assert_eq!(rate.free_at_ns(), now + S / 10);
        rate.change(0, 0);
        assert_eq!(rate.free_at_ns(), 0);
    }

    #[test]
    fn what_one_part_holds_another_can_not_and_it_comes_back_with_its_end() {
        let cap = Cap::new(3);
        let (mut one, mut other) = (CapHolder::of(&cap), CapHolder::of(&cap));
        assert!(one.take() && one.take() && other.take());
        assert!(!other.take());
        one.release();
        assert!(other.take());
        one.take_unchecked();
        assert_eq!((cap.held(), one.count(), other.count()), (4, 2, 2));
        drop(other);
        assert!(one.take());
        assert!(!one.take());
        cap.change(0);
        assert!(one.take());
        one.release();
        drop(one);
        assert_eq!(cap.held(), 0);
    }
}
