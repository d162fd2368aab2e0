//! Deciding again on users who are online, when something has changed that the decisions were made
//! from.
//!
//! Within a shard, all losses of a correction are told before any gain. Each user is decided on,
//! and the losses are told. When no user is left, the gains are told, by the verdict at that time.
//! There is no order between shards: who may see one user doesn't depend on who may see another.
//! The messages are rate-limited. Decisions that change nothing, and new events, don't count
//! towards the rate.

use std::sync::Arc;

use super::decisions::Decisions;
use super::env::Env;
use super::rate_limiter::RateLimiter;
use super::types::Output;

/// How many users are decided on again before new inputs get their turn: an event waits for no more
/// than these.
const CORRECTIONS_AT_ONCE: usize = 8;

/// Makes decisions again, at a limited rate.
#[derive(Debug)]
pub(super) struct Corrections {
    limiter: RateLimiter,
}

impl Corrections {
    /// At most `messages_per_s` messages a second; 0: no limit.
    pub(super) fn new(messages_per_s: u64) -> Self {
        Self {
            limiter: RateLimiter::new(messages_per_s),
        }
    }

    /// Changes the rate from now on.
    pub(super) fn change_rate(&mut self, messages_per_s: u64) {
        self.limiter.change(messages_per_s);
    }

    /// When to call [`Self::correct`].
    pub(super) fn next_deadline(&self, decisions: &Decisions, now: u64) -> Option<u64> {
        let correct_at = (!decisions.dirty.is_empty()).then(|| now.max(self.limiter.next_at()));
        correct_at
            .into_iter()
            .chain(decisions.retries.next_at())
            .min()
    }

    /// Decides again on some of the dirty users, as the rate allows.
    pub(super) fn correct(&mut self, decisions: &mut Decisions, env: &mut Env<'_>) {
        let now = env.common.now();
        while let Some(user) = decisions.retries.pop_due(now) {
            decisions.verdicts.forget(user);
            decisions.dirty.mark(user);
        }
        for _ in 0..CORRECTIONS_AT_ONCE {
            if env.is_full() || self.limiter.next_at() > now {
                return;
            }
            let Some((user, phase)) = decisions.dirty.next() else {
                return;
            };
            let Some(entry) = decisions.ledger.get(user) else {
                continue;
            };
            let event = Arc::clone(entry.current());
            let before = env.out.len();
            decisions.decide(&event, phase, env);
            let is_message = |it: &&Output| !matches!(it, Output::Fetch(_));
            let messages = env.out.iter().skip(before).filter(is_message).count();
            env.common.counters.corrections += messages as u64;
            self.limiter.published(now, messages);
        }
    }
}
