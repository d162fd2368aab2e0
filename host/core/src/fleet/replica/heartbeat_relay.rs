//! Heartbeats: which replicas receive them, and how the owner tells its standbys of them.
//!
//! Where there are many heartbeats, an owner tells its standbys in batches what it has received
//! ([`HeartbeatBatch`](crate::HeartbeatBatch)), and how far its receive clock has advanced. The
//! standbys then receive no heartbeats themselves, which would cost them as much as the owner.
//! Their receive clocks advance by the owner's messages, and so stand still when the owner falls
//! silent. The standbys receive heartbeats again as soon as they notice that, when another node
//! owns the shard, or when there are only few heartbeats.

use super::{Mutation, Replica, ReplicaOutput, Role};
use crate::Input;
use crate::fleet::standby_message::{Mismatch, StandbyContent};

/// The maximum length of a batch in bytes, up to the entry of one more connection.
const RELAY_BYTES: usize = 32 << 10;

/// After how many intervals without a message the owner is considered silent.
const SILENT_INTERVALS: u64 = 3;

/// An interval with fewer than `relay_heartbeats_min / FEW_PART` heartbeats is quiet. After half a
/// timeout of quiet intervals the owner stops telling of heartbeats: some senders send all of theirs
/// at once, once in half a timeout.
const FEW_PART: usize = 4;

/// How a replica tells of heartbeats, or is told of them.
#[derive(Debug, Default)]
pub(super) struct HeartbeatRelay {
    /// Whether this owner tells its standbys of heartbeats.
    is_relaying: bool,
    /// When the current interval ends. What was received in it is told then.
    until: u64,
    /// The number of heartbeats in this interval that the standbys have been told of.
    count: usize,
    /// For how many intervals in a row there have been few heartbeats.
    few: u64,
    /// Whether this standby relies on the owner's messages instead of receiving heartbeats.
    is_relayed: bool,
    /// Since when the owner's messages have come without a break, and when the last one came.
    received: Option<(u64, u64)>,
    /// The owner's receive clock, by its last message.
    clock: Option<u64>,
    /// How long the messages that are being applied have been held, in milliseconds.
    pub(super) held_ms: u64,
}

impl HeartbeatRelay {
    /// When to check what there is to tell, or whether the owner is silent.
    pub(super) fn next_at(&self, relay_ms: u64) -> Option<u64> {
        if self.is_relaying {
            return Some(self.until);
        }
        let (_, at) = self.received.filter(|_| self.is_relayed)?;
        Some(at + SILENT_INTERVALS * relay_ms)
    }

    /// Ignores how far the owner's receive clock advances up to the next message.
    pub(super) fn forget_clock(&mut self) {
        self.clock = None;
    }
}

impl Replica {
    /// Whether this replica receives heartbeats. If not, the owner tells it of them, and heartbeats
    /// needn't be handed to it.
    pub fn receives_heartbeats(&self) -> bool {
        !self.relay.is_relayed
    }

    /// Whether to tell this replica up to when everything has been received: see
    /// [`Shard::needs_clock`].
    ///
    /// [`Shard::needs_clock`]: crate::Shard::needs_clock
    pub fn needs_clock(&self) -> bool {
        self.catching_up.is_some() || self.shard.needs_clock()
    }

    /// The replica begins to lead.
    pub(super) fn begin_relay(&mut self, now: u64) {
        let figures = self.settings.fleet;
        self.relay = HeartbeatRelay {
            until: now + figures.relay_ms,
            ..HeartbeatRelay::default()
        };
        self.shard.keep_heartbeats(figures.standbys > 0);
    }

    /// The replica stops leading.
    pub(super) fn stop_relay(&mut self) {
        self.relay.is_relaying = false;
        self.shard.keep_heartbeats(false);
    }

    /// Tells the standbys what has been received, if it is time.
    pub(super) fn relay_heartbeats(&mut self, now: u64, out: &mut Vec<ReplicaOutput>) {
        let Some(heard) = self.shard.heartbeats() else {
            return;
        };
        let (count, bytes, has_changes) = (heard.count(), heard.bytes(), heard.has_changes());
        let (is_over, many) = (now >= self.relay.until, self.settings.relay_heartbeats_min);
        let relay_ms = self.settings.fleet.relay_ms;
        if !self.relay.is_relaying {
            if count >= many {
                self.relay.is_relaying = true;
                self.send_heartbeats(true, out);
            } else if is_over {
                self.shard.take_heartbeats();
            } else {
                return;
            }
            (self.relay.until, self.relay.few) = (now + relay_ms, 0);
            self.relay.count = 0;
            return;
        }
        if is_over {
            let count = self.relay.count + count;
            self.relay.few = match count < many.div_ceil(FEW_PART) {
                true => self.relay.few + 1,
                false => 0,
            };
            self.relay.until = now + relay_ms;
            self.relay.is_relaying = self.relay.few * relay_ms <= self.settings.timeout_ms / 2;
            self.send_heartbeats(self.relay.is_relaying, out);
            self.relay.count = 0;
        } else if has_changes
            || bytes >= RELAY_BYTES.min(self.settings.standby_message_bytes_max / 2)
        {
            self.send_heartbeats(true, out);
        }
    }

    /// Tells the standbys what has been received, if what viewers are to be told may follow from
    /// it. The standbys must know it first.
    pub(super) fn relay_news(&mut self, out: &mut Vec<ReplicaOutput>) {
        if self.relay.is_relaying && self.shard.heartbeats().is_some_and(|heard| heard.is_news()) {
            self.send_heartbeats(true, out);
        }
    }

    /// Tells the standbys everything that has been received.
    pub(super) fn relay_all(&mut self, out: &mut Vec<ReplicaOutput>) {
        if self.relay.is_relaying
            && self
                .shard
                .heartbeats()
                .is_some_and(|heard| heard.count() > 0)
        {
            self.send_heartbeats(true, out);
        }
    }

    /// Tells the standbys to receive heartbeats themselves.
    pub(super) fn end_relay(&mut self, out: &mut Vec<ReplicaOutput>) {
        if std::mem::take(&mut self.relay.is_relaying) {
            self.send_heartbeats(false, out);
        }
    }

    /// The owner leads again after a break, and doesn't tell what it received meanwhile. The
    /// standbys' receive clocks don't advance for that time.
    pub(super) fn announce_break(&mut self, out: &mut Vec<ReplicaOutput>) {
        let content = StandbyContent::Heartbeats {
            clock: 0,
            goes_on: false,
            entries: Vec::new(),
        };
        self.send_next(content, out);
    }

    fn send_heartbeats(&mut self, goes_on: bool, out: &mut Vec<ReplicaOutput>) {
        let heard = self.shard.take_heartbeats();
        self.relay.count += heard.count();
        let content = StandbyContent::Heartbeats {
            clock: self.shard.lease_from(),
            goes_on,
            entries: match self.skips(Mutation::NoHeartbeats) {
                true => Vec::new(),
                false => heard.into_entries(),
            },
        };
        self.send_next(content, out);
    }

    /// Applies what the owner has received.
    pub(super) fn apply_heartbeats(
        &mut self,
        now: u64,
        (clock, goes_on): (u64, bool),
        entries: Vec<u8>,
    ) -> Result<(), Mismatch> {
        // The clock may have been ahead of what the owner received in the end.
        let before = self.relay.clock;
        self.relay.clock = before.max(Some(clock));
        let gained_ms = self.relay.is_relayed.then(|| {
            let gained = before.map(|before| clock.saturating_sub(before));
            gained.unwrap_or_default()
        });
        let silent_ms = SILENT_INTERVALS * self.settings.fleet.relay_ms;
        let taken =
            self.shard
                .apply_heartbeats(now, (gained_ms, silent_ms + self.relay.held_ms), &entries);
        self.shard.take_standby_records();
        taken.map_err(|_| Mismatch::Unreadable)?;
        if !goes_on {
            self.resume_heartbeats(now);
            return Ok(());
        }
        let received = self.relay.received.filter(|(_, at)| now < at + silent_ms);
        let since = received.map_or(now, |(since, _)| since);
        self.relay.received = Some((since, now));
        let follows = matches!(self.role, Role::Follow { .. });
        if follows && !self.relay.is_relayed && now >= since + silent_ms {
            self.relay.is_relayed = true;
            // What this standby has received itself may be part of the owner's next message.
            self.relay.clock = None;
        }
        Ok(())
    }

    /// Makes this replica receive heartbeats from now on. Its receive clock doesn't advance for the
    /// time since the owner's last message.
    pub(super) fn resume_heartbeats(&mut self, now: u64) {
        let was_relayed = std::mem::take(&mut self.relay.is_relayed);
        (self.relay.received, self.relay.clock) = (None, None);
        if was_relayed {
            self.shard.follow(now, Input::LostUpTo { at: now });
        }
    }

    /// Whether to ignore an input, since the replica relies on the owner's messages instead.
    pub(super) fn ignores_input(&self, input: &Input) -> bool {
        self.relay.is_relayed && matches!(input, Input::ReceivedUpTo { .. })
    }

    /// Makes the standby receive heartbeats again if the owner has fallen silent.
    pub(super) fn check_for_silence(&mut self, now: u64) {
        let at = self.relay.next_at(self.settings.fleet.relay_ms);
        if self.relay.is_relayed && at.is_some_and(|at| now >= at) {
            self.resume_heartbeats(now);
        }
    }
}
