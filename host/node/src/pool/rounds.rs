//! Whose turn it is on a thread: tenants take turns by deficit round robin, over the time
//! that their turns have been measured to take, and a tenant's shards one after another.
//!
//! What a turn will take isn't known before. So a tenant may overdraw what it is given in a
//! round, by a step at most, and pays for that out of the next ones.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::FixedState;

use super::Address;

/// How much time a tenant is given each round, in nanoseconds.
pub(super) const QUANTUM_NS: i64 = 2_000_000;

/// Shards that have something to do, by tenant.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    /// The tenants that wait, in the order of their turns.
    queue: VecDeque<u32>,
    tenants: HashMap<u32, Tenant, FixedState>,
    /// Whether the first of them has been given its time in this round.
    is_begun: bool,
}

#[derive(Debug, Default)]
struct Tenant {
    /// Its shards that wait.
    shards: VecDeque<u32>,
    /// How much time it may still take, in nanoseconds; what it has overdrawn, if negative.
    left_ns: i64,
    is_queued: bool,
}

/// A shard whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) shard: Address,
    /// After how many nanoseconds another tenant is to have its turn; none if nobody waits.
    pub(super) limit_ns: Option<i64>,
}

impl Rounds {
    /// A shard has something to do. It must not be in already.
    pub(super) fn push(&mut self, shard: Address) {
        let tenant = self.tenants.entry(shard.tenant).or_default();
        tenant.shards.push_back(shard.shard);
        if !std::mem::replace(&mut tenant.is_queued, true) {
            self.queue.push_back(shard.tenant);
        }
    }

    /// Whose turn it is; none if there is nothing to do.
    pub(super) fn next(&mut self) -> Option<Turn> {
        loop {
            let Some(first) = self.queue.front() else {
                // Nobody is kept waiting by what anyone has overdrawn.
                self.tenants.clear();
                return None;
            };
            // Who is in the queue is known.
            let tenant = self.tenants.entry(*first).or_default();
            let is_alone = self.queue.len() == 1;
            if !std::mem::replace(&mut self.is_begun, true) {
                let left_ns = if is_alone { 0 } else { tenant.left_ns };
                tenant.left_ns = left_ns.saturating_add(QUANTUM_NS);
            }
            if tenant.left_ns > 0
                && let Some(shard) = tenant.shards.pop_front()
            {
                return Some(Turn {
                    shard: Address {
                        tenant: *first,
                        shard,
                    },
                    limit_ns: (!is_alone).then_some(tenant.left_ns),
                });
            }
            // It has nothing more to do, or had its time.
            self.is_begun = false;
            let Some(first) = self.queue.pop_front() else {
                continue;
            };
            tenant.is_queued = !tenant.shards.is_empty();
            if tenant.is_queued {
                self.queue.push_back(first);
            } else if tenant.left_ns >= 0 {
                // Nothing is saved up.
                self.tenants.remove(&first);
            }
        }
    }

    /// A turn of a tenant's has taken so long.
    pub(super) fn took(&mut self, tenant: u32, ns: u64) {
        if let Some(tenant) = self.tenants.get_mut(&tenant) {
            let ns = i64::try_from(ns).unwrap_or(i64::MAX);
            tenant.left_ns = tenant.left_ns.saturating_sub(ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn address(tenant: u32, shard: u32) -> Address {
        Address { tenant, shard }
    }

    /// Has tenants work in virtual time, each for so long a turn and with always more to
    /// do, until so much time is over. Says how long each has worked.
    fn busy(turns_ns: &[u64], until_ns: u64) -> Vec<u64> {
        let mut rounds = Rounds::default();
        for tenant in 0..turns_ns.len() {
            rounds.push(address(tenant as u32, 0));
        }
        let (mut now, mut worked) = (0, vec![0; turns_ns.len()]);
        while now < until_ns {
            let turn = rounds.next().unwrap();
            let tenant = turn.shard.tenant;
            let ns = turns_ns[tenant as usize];
            (now, worked[tenant as usize]) = (now + ns, worked[tenant as usize] + ns);
            rounds.took(tenant, ns);
            rounds.push(turn.shard);
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
        let mut rounds = Rounds::default();
        for tenant in flooding.clone() {
            (0..4).for_each(|shard| rounds.push(address(tenant, shard)));
        }
        let (mut now, mut asked_at, mut waits) = (0, None, Vec::new());
        for step in 0..3_000_u64 {
            if step % 7 == 0 && asked_at.is_none() {
                rounds.push(address(quiet, 0));
                asked_at = Some(now);
            }
            let turn = rounds.next().unwrap();
            if turn.shard.tenant == quiet {
                waits.push(now - asked_at.take().unwrap());
                now += MS / 10;
                rounds.took(quiet, MS / 10);
            } else {
                assert!(turn.limit_ns.unwrap() > 0);
                now += turn_ns;
                rounds.took(turn.shard.tenant, turn_ns);
                rounds.push(turn.shard);
            }
        }
        assert!(waits.len() > 300);
        let round = flooding.count() as u64 * (QUANTUM_NS as u64 + turn_ns);
        assert!(waits.iter().all(|wait| *wait <= round), "{waits:?}");
    }

    #[test]
    fn shards_of_a_tenant_take_turns_and_one_tenant_alone_is_not_limited() {
        let mut rounds = Rounds::default();
        (0..3).for_each(|shard| rounds.push(address(1, shard)));
        for shard in [0, 1, 2, 0, 1] {
            let turn = rounds.next().unwrap();
            assert_eq!((turn.shard, turn.limit_ns), (address(1, shard), None));
            rounds.took(1, 500 * MS);
            rounds.push(turn.shard);
        }
    }

    #[test]
    fn what_was_overdrawn_is_paid_back_once_others_wait() {
        let mut rounds = Rounds::default();
        rounds.push(address(1, 0));
        rounds.next().unwrap();
        rounds.took(1, 20 * MS);
        rounds.push(address(2, 0));
        rounds.push(address(1, 0));
        let mut others = 0;
        loop {
            let turn = rounds.next().unwrap();
            if turn.shard.tenant == 1 {
                break;
            }
            others += 1;
            rounds.took(2, MS);
            rounds.push(turn.shard);
        }
        assert!((17..=20).contains(&others), "{others}");
    }

    #[test]
    fn who_has_nothing_to_do_takes_no_room() {
        let mut rounds = Rounds::default();
        for tenant in 0..100 {
            rounds.push(address(tenant, 0));
        }
        while let Some(turn) = rounds.next() {
            rounds.took(turn.shard.tenant, 100 * MS);
        }
        assert!(rounds.tenants.is_empty() && rounds.queue.is_empty());
    }
}
