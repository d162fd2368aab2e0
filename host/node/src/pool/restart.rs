//! Restarts a shard that has panicked from its stored records, as after a crash of the process, but
//! for this shard alone. Its work in progress is dropped, with the input that it was handling, which
//! might make it fail again. Until it is back, inputs wait, control tasks are done,
//! and questions are answered with `unavailable`.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Address;
use super::hosted_shard::HostedShard;
use super::mailbox::Mailbox;
use super::outbox::{Outbox, Transport};
use super::shards::place;
use super::work::Task;
use crate::clock;
use crate::state::{RestoreRequested, Restored};
use crate::tasks;

/// How long is waited before a shard begins anew, where it has failed a while ago, and at
/// most: one that fails again and again is not to keep the others from their turns.
const WAIT_MS: (u64, u64) = (100, 10_000);

/// After how long without a failure the next one is the first again.
const FORGIVEN_MS: u64 = 60_000;

/// Where a shard is that has failed.
#[derive(Debug, Default)]
pub(super) struct Restart {
    phase: Phase,
    /// How long was waited the last time, and when it failed then.
    wait_ms: u64,
    failed_at: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    None,
    /// What was stored is to be read, no earlier than this.
    Due(u64),
    /// It is being read.
    Asked,
}

impl Restart {
    /// Whether the shard is to wait for what was stored.
    pub(super) fn is_under_way(&self) -> bool {
        self.phase != Phase::None
    }

    fn begin(&mut self, now: u64) {
        let is_first = self.wait_ms == 0 || now >= self.failed_at.saturating_add(FORGIVEN_MS);
        self.wait_ms = match is_first {
            true => WAIT_MS.0,
            false => (self.wait_ms * 2).min(WAIT_MS.1),
        };
        self.failed_at = now;
        self.phase = Phase::Due(now + self.wait_ms);
    }
}

impl HostedShard {
    /// It has failed: nothing of what it knew is used any more.
    pub(super) fn failed(&mut self, panic: &(dyn Any + Send)) {
        self.figures.restarts.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            "a shard has failed, and is restarted from the stored state: {}",
            tasks::message(panic)
        );
        self.shard.begin_anew(self.saver.is_some());
        self.restart.begin(clock::now_ms());
    }

    /// Whether it is to end while it begins anew, and can't: what was on its way to the store
    /// waits for a broker that can't be reached.
    pub(super) fn ends_unrestored<C: Transport>(&self, outbox: &mut Outbox<C>) -> bool {
        self.ending.is_some() && outbox.settled(self.published_end) == Some(false)
    }

    /// Has what was stored be read, once what was on its way to the store is there.
    pub(super) fn continue_restart<C: Transport>(
        &mut self,
        address: Address,
        mailbox: &Arc<Mailbox>,
        outbox: &Outbox<C>,
    ) {
        let now = clock::now_ms();
        let Phase::Due(at) = self.restart.phase else {
            return;
        };
        if now < at {
            return;
        }
        self.save(outbox);
        if self.saver.as_ref().is_some_and(|saver| saver.is_waiting()) {
            return;
        }
        let to = Arc::clone(mailbox);
        let restored = move |restored| to.put_first(address, Task::Restored(restored));
        let shards = self.tenant.shards;
        let asked = match (&self.saver, &self.tenant.restorer) {
            (Some(_), Some(restorer)) => restorer.ask(
                move |user| place(user, shards) == address.shard as usize,
                restored,
            ),
            _ => {
                restored(Restored::nothing());
                RestoreRequested::Yes
            }
        };
        if asked == RestoreRequested::Yes {
            self.restart.phase = Phase::Asked;
        }
    }

    /// What was stored is there.
    pub(super) fn restored<C: Transport>(&mut self, restored: Restored, outbox: &mut Outbox<C>) {
        let now = clock::now_ms();
        self.restart.phase = Phase::None;
        if self.shard.as_replica().is_some() {
            // It catches up from its owner.
            return;
        }
        self.sequencer.begin_epoch(restored.epoch.max(now));
        if self.sequencer.has_begun {
            outbox.begin_beacons(now);
        }
        let down_ms = restored.down_ms();
        self.shard.restore(now, down_ms, restored.records);
        self.shard.renew_leases(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_again_and_again_waits_for_longer_each_time() {
        let mut restart = Restart::default();
        let mut waits = Vec::new();
        let mut now = 1_000;
        for _ in 0..9 {
            restart.begin(now);
            waits.push(restart.wait_ms);
            now += 10;
        }
        assert_eq!(waits[..3], [100, 200, 400]);
        assert_eq!(waits.last(), Some(&WAIT_MS.1));
        restart.begin(now + FORGIVEN_MS);
        assert_eq!(restart.wait_ms, WAIT_MS.0);
    }
}
