//! Restarts a shard that has panicked. It is restored from its stored records, as after a crash of
//! the process, but alone. Its work in progress is dropped, together with the input that it was
//! handling, which might make it fail again. During the restart, inputs wait, control tasks are
//! done, and questions are answered with `unavailable`.

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

/// The delay before a failed shard restarts: after its first failure, and at most. A shard that
/// fails again and again must not keep others from their turns.
const WAIT_MS: (u64, u64) = (100, 10_000);

/// After this long without a failure, the next one counts as the first.
const FORGIVEN_MS: u64 = 60_000;

/// The state of a shard's restart.
#[derive(Debug, Default)]
pub(super) struct Restart {
    phase: Phase,
    /// The delay of the last restart, and when the shard failed.
    wait_ms: u64,
    failed_at: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    None,
    /// The stored state must be read, at this time or later.
    Due(u64),
    /// The stored state is being read.
    Asked,
}

impl Restart {
    /// Whether the shard waits for its stored state.
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
    /// Handles a failure of the shard: everything that it knew is dropped.
    pub(super) fn on_panic(&mut self, panic: &(dyn Any + Send)) {
        self.figures.restarts.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            "a shard has failed, and is restarted from the stored state: {}",
            tasks::message(panic)
        );
        self.shard.reset(self.saver.is_some());
        self.restart.begin(clock::now_ms());
    }

    /// Whether the shard must stop while it restarts, and can't finish: its last changes wait for a
    /// broker that can't be reached.
    pub(super) fn ends_unrestored<C: Transport>(&self, outbox: &mut Outbox<C>) -> bool {
        self.ending.is_some() && outbox.settled(self.published_end) == Some(false)
    }

    /// Requests the stored state, once changes that were on their way to the store have been
    /// written.
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

    /// Continues with the stored state.
    pub(super) fn on_restored<C: Transport>(&mut self, restored: Restored, outbox: &mut Outbox<C>) {
        let now = clock::now_ms();
        self.restart.phase = Phase::None;
        if self.shard.as_replica().is_some() {
            // A replica catches up from its owner instead.
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
