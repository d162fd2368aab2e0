//! The scheduler of a thread: tenants take turns by deficit round robin, over the measured time of
//! their turns. A tenant's shards take turns one after another.
//!
//! A tenant with a weight gets that multiple of the time. A tenant may also have a limit on the
//! time that it uses per second. When that is used up, it rests until it has time again, even if
//! nobody else waits.
//!
//! The length of a turn isn't known in advance. So a tenant may exceed its time in a round, by one
//! step at most, and pays for this in its next rounds. If its turn is paused in the middle of a
//! plugin's call, it pays at once: the others run until its next turn would be due. A tenant
//! whose calls may be slow has no turn in a pause, and is next after it. What was paid in the pause
//! counts only for the tenants that had turns in it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::Address;
use super::thread_share::ThreadShare;

/// The time that a tenant with weight 1 gets per round, in nanoseconds. So others wait for at most
/// this long, including those that had nothing to do when a turn began.
pub(super) const QUANTUM_NS: i64 = 250_000;

const NS_PER_US: u64 = 1_000;

/// Shards that have something to do, by tenant.
#[derive(Debug, Default)]
pub(super) struct Scheduler {
    /// The tenants that wait, in the order of their turns.
    queue: VecDeque<u32>,
    tenants: HashMap<u32, Tenant, FixedState>,
    /// The tenants that have used up their processor time, and wait until they have some again.
    resting: Vec<u32>,
    /// The tenant whose turn is paused, and how much time it had left at the pause, in nanoseconds.
    /// It is the first of the queue when the pause ends.
    paused: Option<(u32, i64)>,
    /// The tenants that have no turn in the current pause, because their calls may be slow.
    deferred: Vec<u32>,
    /// Whether the first of the queue has got its time for this round.
    is_begun: bool,
}

#[derive(Debug)]
struct Tenant {
    share: Arc<ThreadShare>,
    /// Its waiting shards.
    shards: VecDeque<u32>,
    /// How much time it has left, in nanoseconds. Negative if it has exceeded its time.
    left_ns: i64,
    /// The time that it got while its turn was paused and others were put off, in nanoseconds. It
    /// pays this back when the turn is over.
    owes_ns: i64,
    /// Used time that hasn't been counted yet, in nanoseconds: less than a microsecond.
    unspent_ns: u64,
    /// Whether it is in the queue or rests.
    is_queued: bool,
}

/// The turn of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) shard: Address,
    /// The turn's length in nanoseconds. After it, others may have their turns.
    pub(super) limit_ns: u64,
}

impl Scheduler {
    /// Adds a shard that has something to do. It must not be waiting already.
    pub(super) fn push(&mut self, shard: Address, share: &Arc<ThreadShare>) {
        let tenant = self.tenants.entry(shard.tenant);
        let tenant = tenant.or_insert_with(|| Tenant {
            share: Arc::clone(share),
            shards: VecDeque::new(),
            left_ns: 0,
            owes_ns: 0,
            unspent_ns: 0,
            is_queued: false,
        });
        tenant.shards.push_back(shard.shard);
        if !std::mem::replace(&mut tenant.is_queued, true) {
            self.queue.push_back(shard.tenant);
        }
    }

    /// Pauses the turn of a tenant. `ns`: how much of the turn's time hasn't been counted yet.
    /// Others have their turns until this tenant would have its next.
    pub(super) fn pause(&mut self, tenant: u32, now_ns: u64, ns: u64) {
        self.charge(tenant, now_ns, ns);
        let mut left_ns = 0;
        if let Some(tenant) = self.tenants.get_mut(&tenant) {
            // It leaves the rest of its time to the tenants that wait.
            tenant.left_ns = tenant.left_ns.min(0);
            left_ns = tenant.left_ns;
        }
        self.paused = Some((tenant, left_ns));
    }

    /// Whether other tenants wait beside the one whose turn it is.
    pub(super) fn is_contended(&self) -> bool {
        self.queue.len() > 1
    }

    /// Notes that a call of a tenant's plugins was slow.
    pub(super) fn note_slow(&self, tenant: u32, now_ns: u64) {
        if let Some(tenant) = self.tenants.get(&tenant) {
            tenant.share.note_slow(now_ns);
        }
    }

    /// Ends the pause, and continues the paused turn. The tenants that were put off are next after
    /// it, and get back what was paid without them. Returns how much time the turn has, in
    /// nanoseconds.
    pub(super) fn resume(&mut self) -> u64 {
        let Some((number, left_ns)) = self.paused.take() else {
            return 0;
        };
        let mut has_ns = 0;
        if let Some(tenant) = self.tenants.get_mut(&number) {
            has_ns = u64::try_from(tenant.left_ns).unwrap_or(0);
            if !self.deferred.is_empty() {
                let given_ns = tenant.left_ns.saturating_sub(left_ns);
                tenant.owes_ns = tenant.owes_ns.saturating_add(given_ns);
            }
        }
        let place = self.queue.iter().position(|it| *it == number);
        if let Some(place) = place {
            self.queue.rotate_left(place + 1);
            self.queue.pop_back();
        }
        for deferred in self.deferred.drain(..).rev() {
            self.queue.push_front(deferred);
        }
        self.queue.push_front(number);
        self.is_begun = true;
        has_ns
    }

    /// The next turn. `None` if there is nothing to do, or if the paused turn must continue.
    pub(super) fn next(&mut self, now_ns: u64) -> Option<Turn> {
        self.wake(now_ns);
        loop {
            let Some(first) = self.queue.front() else {
                // Nobody waits, so debts are forgotten.
                self.tenants.retain(|_, tenant| tenant.is_queued);
                return None;
            };
            let Some(tenant) = self.tenants.get_mut(first) else {
                // Can't happen: every tenant in the queue is known.
                self.queue.pop_front();
                continue;
            };
            let is_paused = self.paused.is_some_and(|(it, _)| it == *first);
            if self.paused.is_some() && !is_paused && tenant.share.is_slow(now_ns) {
                self.deferred.extend(self.queue.pop_front());
                self.is_begun = false;
                continue;
            }
            if !is_paused && tenant.share.free_at_ns() > now_ns {
                tenant.share.rest();
                self.resting.extend(self.queue.pop_front());
                self.is_begun = false;
                continue;
            }
            if self.paused.is_none() {
                let owes_ns = std::mem::take(&mut tenant.owes_ns);
                tenant.left_ns = tenant.left_ns.saturating_sub(owes_ns);
            }
            let is_alone = self.queue.len() == 1;
            if !std::mem::replace(&mut self.is_begun, true) {
                let left_ns = if is_alone { 0 } else { tenant.left_ns };
                let given_ns = QUANTUM_NS.saturating_mul(tenant.share.weight());
                tenant.left_ns = left_ns.saturating_add(given_ns);
            }
            if is_paused && tenant.left_ns > 0 {
                return None;
            }
            if tenant.left_ns > 0
                && let Some(shard) = tenant.shards.pop_front()
            {
                return Some(Turn {
                    shard: Address {
                        tenant: *first,
                        shard,
                    },
                    limit_ns: tenant.left_ns.unsigned_abs(),
                });
            }
            // It has nothing more to do, or has used up its time.
            self.is_begun = false;
            let Some(first) = self.queue.pop_front() else {
                continue;
            };
            tenant.is_queued = is_paused || !tenant.shards.is_empty();
            if tenant.is_queued {
                self.queue.push_back(first);
            } else if tenant.left_ns >= 0 {
                // Time that is left over isn't saved for later.
                self.tenants.remove(&first);
            }
        }
    }

    /// Puts resting tenants back into the queue if they have time again.
    fn wake(&mut self, now_ns: u64) {
        let Self {
            queue,
            tenants,
            resting,
            ..
        } = self;
        resting.retain(|number| {
            let Some(tenant) = tenants.get(number) else {
                return false;
            };
            let is_free = tenant.share.free_at_ns() <= now_ns;
            if is_free {
                tenant.share.wake();
                queue.push_back(*number);
            }
            !is_free
        });
    }

    /// When the first of the resting tenants has time again, if any rests.
    pub(super) fn free_at_ns(&self) -> Option<u64> {
        let resting = self.resting.iter();
        let resting = resting.filter_map(|number| self.tenants.get(number));
        resting.map(|tenant| tenant.share.free_at_ns()).min()
    }

    /// Counts the time of a tenant's turn.
    pub(super) fn charge(&mut self, tenant: u32, now_ns: u64, ns: u64) {
        if let Some(tenant) = self.tenants.get_mut(&tenant) {
            let used_ns = tenant.unspent_ns.saturating_add(ns);
            tenant.share.spend(now_ns, used_ns / NS_PER_US);
            tenant.unspent_ns = used_ns % NS_PER_US;
            let ns = i64::try_from(ns).unwrap_or(i64::MAX);
            tenant.left_ns = tenant.left_ns.saturating_sub(ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use presence_core::quota::Rate;

    use super::*;

    const MS: u64 = 1_000_000;

    fn push(scheduler: &mut Scheduler, shard: Address) {
        let share = Arc::<ThreadShare>::default();
        share.note_quick();
        scheduler.push(shard, &share);
    }

    fn address(tenant: u32, shard: u32) -> Address {
        Address { tenant, shard }
    }

    /// Lets tenants work in virtual time until `until_ns`. Each turn of a tenant takes as long as
    /// `turns_ns` says, and there is always more to do. Returns how long each has worked.
    fn busy(turns_ns: &[u64], until_ns: u64) -> Vec<u64> {
        let mut scheduler = Scheduler::default();
        for tenant in 0..turns_ns.len() {
            push(&mut scheduler, address(tenant as u32, 0));
        }
        let (mut now, mut worked) = (0, vec![0; turns_ns.len()]);
        while now < until_ns {
            let turn = scheduler.next(0).unwrap();
            let tenant = turn.shard.tenant;
            let ns = turns_ns[tenant as usize];
            (now, worked[tenant as usize]) = (now + ns, worked[tenant as usize] + ns);
            scheduler.charge(tenant, 0, ns);
            push(&mut scheduler, turn.shard);
        }
        worked
    }

    #[test]
    fn tenants_that_always_have_more_to_do_get_the_same_time_however_long_their_turns_are() {
        let mut seed = 7_u64;
        let mut random = |max: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % max
        };
        for _ in 0..200 {
            let tenants = 2 + random(6) as usize;
            let turns: Vec<_> = (0..tenants).map(|_| 1_000 + random(20 * MS)).collect();
            let worked = busy(&turns, 2_000 * MS);
            let longest = turns.iter().max().unwrap();
            let bound = longest + 2 * QUANTUM_NS as u64;
            let spread = worked.iter().max().unwrap() - worked.iter().min().unwrap();
            assert!(spread <= bound, "{turns:?} {worked:?}");
        }
    }

    #[test]
    fn one_that_has_little_to_do_waits_for_no_more_than_a_round_of_the_others() {
        let (flooding, quiet) = (1..=3_u32, 9);
        let turn_ns = 5 * MS;
        let mut scheduler = Scheduler::default();
        for tenant in flooding.clone() {
            (0..4).for_each(|shard| push(&mut scheduler, address(tenant, shard)));
        }
        let (mut now, mut asked_at, mut waits) = (0, None, Vec::new());
        for step in 0..3_000_u64 {
            if step % 7 == 0 && asked_at.is_none() {
                push(&mut scheduler, address(quiet, 0));
                asked_at = Some(now);
            }
            let turn = scheduler.next(0).unwrap();
            if turn.shard.tenant == quiet {
                waits.push(now - asked_at.take().unwrap());
                now += MS / 10;
                scheduler.charge(quiet, 0, MS / 10);
            } else {
                assert!(turn.limit_ns > 0);
                now += turn_ns;
                scheduler.charge(turn.shard.tenant, 0, turn_ns);
                push(&mut scheduler, turn.shard);
            }
        }
        assert!(waits.len() > 300);
        let round = flooding.count() as u64 * (QUANTUM_NS as u64 + turn_ns);
        assert!(waits.iter().all(|wait| *wait <= round), "{waits:?}");
    }

    #[test]
    fn shards_of_a_tenant_take_turns_and_one_tenant_alone_pays_nothing_back() {
        let mut scheduler = Scheduler::default();
        (0..3).for_each(|shard| push(&mut scheduler, address(1, shard)));
        for shard in [0, 1, 2, 0, 1] {
            let turn = scheduler.next(0).unwrap();
            assert_eq!(turn.shard, address(1, shard));
            assert_eq!(turn.limit_ns, QUANTUM_NS as u64);
            scheduler.charge(1, 0, 500 * MS);
            push(&mut scheduler, turn.shard);
        }
    }

    #[test]
    fn what_was_overdrawn_is_paid_back_once_others_wait() {
        let mut scheduler = Scheduler::default();
        push(&mut scheduler, address(1, 0));
        scheduler.next(0).unwrap();
        scheduler.charge(1, 0, 20 * MS);
        push(&mut scheduler, address(2, 0));
        push(&mut scheduler, address(1, 0));
        let mut others = 0;
        loop {
            let turn = scheduler.next(0).unwrap();
            if turn.shard.tenant == 1 {
                break;
            }
            others += 1;
            scheduler.charge(2, 0, MS);
            push(&mut scheduler, turn.shard);
        }
        assert!((17..=20).contains(&others), "{others}");
    }

    #[test]
    fn a_tenant_of_twice_the_weight_gets_twice_the_time() {
        let shares = [1, 2, 5]
            .map(|weight| Arc::new(ThreadShare::new(weight, Rate::default(), Arc::default())));
        let mut scheduler = Scheduler::default();
        for (tenant, share) in shares.iter().enumerate() {
            scheduler.push(address(tenant as u32, 0), share);
        }
        let mut worked = [0; 3];
        for _ in 0..8_000 {
            let turn = scheduler.next(0).unwrap();
            let tenant = turn.shard.tenant as usize;
            worked[tenant] += 1;
            scheduler.charge(turn.shard.tenant, 0, MS);
            scheduler.push(turn.shard, &shares[tenant]);
        }
        assert!(
            worked
                .iter()
                .zip([1_000, 2_000, 5_000])
                .all(|(has, due)| has - due < 20),
            "{worked:?}"
        );
    }

    #[test]
    fn one_that_has_used_up_its_time_rests_and_others_go_on() {
        let cpu = Rate::new(100_000, 10_000);
        let limited = Arc::new(ThreadShare::new(1, cpu, Arc::default()));
        let other = Arc::<ThreadShare>::default();
        let mut scheduler = Scheduler::default();
        scheduler.push(address(1, 0), &limited);
        scheduler.push(address(2, 0), &other);
        let (mut now, mut worked) = (1_000 * MS, [0; 3]);
        let end = now + 1_000 * MS;
        while now < end {
            let turn = scheduler.next(now).unwrap();
            let tenant = turn.shard.tenant;
            now += MS;
            worked[tenant as usize] += 1;
            scheduler.charge(tenant, now, MS);
            scheduler.push(turn.shard, if tenant == 1 { &limited } else { &other });
        }
        // A tenth of the time, plus what was saved up before.
        assert!((100..=120).contains(&worked[1]), "{worked:?}");
        // Alone on the thread, it has to wait as well, but not when it is about to end.
        while scheduler
            .next(now)
            .is_some_and(|turn| turn.shard.tenant == 2)
        {}
        scheduler.charge(1, now, 100 * MS);
        scheduler.push(address(1, 1), &limited);
        while scheduler.next(now).is_some() {}
        let free_at = scheduler.free_at_ns().unwrap();
        assert!(limited.is_resting() && free_at > now);
        assert!(scheduler.next(free_at - 1).is_none());
        limited.remove_cpu_limit();
        assert_eq!(scheduler.next(now).unwrap().shard.tenant, 1);
        assert!(!limited.is_resting() && scheduler.free_at_ns().is_none());
    }

    /// Which tenants have a turn in a pause of tenant 1, whose turn has taken `ns`.
    fn in_pause(scheduler: &mut Scheduler, ns: u64) -> Vec<u32> {
        scheduler.pause(1, 0, ns);
        let mut had = Vec::new();
        while let Some(turn) = scheduler.next(0) {
            had.push(turn.shard.tenant);
            scheduler.charge(turn.shard.tenant, 0, MS / 4);
            push(scheduler, turn.shard);
        }
        scheduler.resume();
        had
    }

    #[test]
    fn while_a_turn_is_paused_others_have_theirs_as_if_it_had_ended() {
        let mut scheduler = Scheduler::default();
        (0..2).for_each(|shard| push(&mut scheduler, address(1, shard)));
        assert_eq!(scheduler.next(0).unwrap().shard, address(1, 0));
        assert!(in_pause(&mut scheduler, 5 * MS).is_empty(), "nobody waits");
        for tenant in [2, 3] {
            push(&mut scheduler, address(tenant, 0));
        }
        let had = in_pause(&mut scheduler, 5 * MS);
        let of = |tenant| had.iter().filter(|it| **it == tenant).count();
        assert_eq!(of(1), 0, "its own shards wait");
        assert!((19..=21).contains(&of(2)) && of(2) == of(3), "{had:?}");
        // It continues, and pays for the time that it takes from now on.
        scheduler.charge(1, 0, 2 * MS);
        push(&mut scheduler, address(1, 0));
        let next: Vec<_> = (0..16)
            .map(|_| {
                let turn = scheduler.next(0).unwrap();
                scheduler.charge(turn.shard.tenant, 0, MS / 4);
                push(&mut scheduler, turn.shard);
                turn.shard.tenant
            })
            .collect();
        assert!(!next.contains(&1), "{next:?}");
    }

    #[test]
    fn in_a_pause_nobody_has_a_turn_whose_calls_take_long() {
        let mut scheduler = Scheduler::default();
        for tenant in [1, 2, 3] {
            push(&mut scheduler, address(tenant, 0));
        }
        assert_eq!(scheduler.next(0).unwrap().shard.tenant, 1);
        scheduler.note_slow(2, 0);
        let had = in_pause(&mut scheduler, MS);
        assert!(had.len() >= 3 && had.iter().all(|it| *it == 3), "{had:?}");
        scheduler.charge(1, 0, 0);
        let next = (0..2).map(|_| {
            let turn = scheduler.next(0).unwrap();
            scheduler.charge(turn.shard.tenant, 0, MS / 4);
            turn.shard.tenant
        });
        assert!(
            next.collect::<Vec<_>>().contains(&2),
            "it has its turn afterwards"
        );
    }

    /// Tenant 1 has turns of 100 ms, which pause every millisecond. The turns of others take 1 ms
    /// and don't pause. Returns how long each has worked until `until_ns`.
    fn with_pauses(slow: &[u32], quick: &[u32], until_ns: u64) -> HashMap<u32, u64> {
        let mut scheduler = Scheduler::default();
        push(&mut scheduler, address(1, 0));
        for tenant in slow.iter().chain(quick) {
            push(&mut scheduler, address(*tenant, 0));
        }
        let (mut now, mut worked) = (0, HashMap::<u32, u64>::new());
        let mut work = |scheduler: &mut Scheduler, tenant, now: &mut u64| {
            *now += MS;
            *worked.entry(tenant).or_default() += MS;
            if tenant != 1 {
                scheduler.charge(tenant, 0, MS);
                push(scheduler, address(tenant, 0));
            }
        };
        while now < until_ns {
            slow.iter().for_each(|it| scheduler.note_slow(*it, 0));
            let turn = scheduler.next(0).unwrap();
            if turn.shard.tenant != 1 {
                work(&mut scheduler, turn.shard.tenant, &mut now);
                continue;
            }
            for _ in 0..100 {
                work(&mut scheduler, 1, &mut now);
                scheduler.pause(1, 0, MS);
                while let Some(turn) = scheduler.next(0) {
                    work(&mut scheduler, turn.shard.tenant, &mut now);
                }
                scheduler.resume();
            }
            push(&mut scheduler, address(1, 0));
        }
        worked
    }

    #[test]
    fn who_has_no_turn_in_pauses_gets_as_much_time_as_who_pauses() {
        for quick in [&[][..], &[3], &[3, 4, 5]] {
            let worked = with_pauses(&[2], quick, 10_000 * MS);
            assert!(worked[&2] + 200 * MS >= worked[&1], "{worked:?}");
            assert!(
                quick.iter().all(|it| worked[it] >= worked[&1]),
                "{worked:?}"
            );
        }
    }

    #[test]
    fn who_has_no_turn_in_pauses_waits_for_no_more_than_a_round_of_those_who_pause() {
        let mut scheduler = Scheduler::default();
        let busy = 1..=30_u32;
        busy.clone()
            .for_each(|it| push(&mut scheduler, address(it, 0)));
        // Nothing is known about its speed yet.
        scheduler.push(address(99, 0), &Arc::default());
        for _ in 0..1_000 {
            let tenant = scheduler.next(0).unwrap().shard.tenant;
            if tenant == 99 {
                return;
            }
            scheduler.pause(tenant, 0, MS);
            while let Some(turn) = scheduler.next(0) {
                scheduler.charge(turn.shard.tenant, 0, MS);
                push(&mut scheduler, turn.shard);
            }
            scheduler.resume();
            scheduler.charge(tenant, 0, MS / 10);
            push(&mut scheduler, address(tenant, 0));
        }
        panic!("it has no turn");
    }

    #[test]
    fn who_has_nothing_to_do_takes_no_room() {
        let mut scheduler = Scheduler::default();
        for tenant in 0..100 {
            push(&mut scheduler, address(tenant, 0));
        }
        while let Some(turn) = scheduler.next(0) {
            scheduler.charge(turn.shard.tenant, 0, 100 * MS);
        }
        assert!(scheduler.tenants.is_empty() && scheduler.queue.is_empty());
    }
}
