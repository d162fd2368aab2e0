//! Heartbeats: which replicas receive them, and how the owner tells its standbys of them.
//!
//! Where there are many heartbeats, an owner tells its standbys in batches what it has received
//! ([`Heard`](crate::Heard)), and how far its receive clock has advanced. The standbys then receive
//! no heartbeats themselves, which would cost them as much as the owner. Their receive clocks
//! advance by the owner's messages, and so stand still when the owner falls silent. The standbys
//! receive heartbeats again as soon as they notice that, when another node owns the shard, or when
//! there are only few heartbeats.

use super::{Mutation, Out, Replica, Role};
use crate::Input;
use crate::fleet::told::{Mismatch, Said};

/// The maximum length of a batch in bytes, up to the entry of one more connection.
const HEARD_BYTES: usize = 32 << 10;

/// After how many intervals without a message the owner is considered silent.
const SILENT_INTERVALS: u64 = 3;

/// Fewer than `told_from / FEW_PART` heartbeats in an interval are few. There must be few for
/// half a timeout before the owner stops telling of them, since some senders send all their
/// heartbeats at once, once in half a timeout.
const FEW_PART: usize = 4;

/// How a replica tells of heartbeats, or is told of them.
#[derive(Debug, Default)]
pub(super) struct Hearing {
    /// Whether this owner tells its standbys of heartbeats.
    tells: bool,
    /// When the current interval ends. What was received in it is told then.
    until: u64,
    /// The number of heartbeats in this interval that the standbys have been told of.
    count: usize,
    /// For how many intervals in a row there have been few heartbeats.
    few: u64,
    /// Whether this standby relies on the owner's messages instead of receiving heartbeats.
    is_told: bool,
    /// Since when the owner's messages have come without a break, and when the last one came.
    told: Option<(u64, u64)>,
    /// The owner's receive clock, by its last message.
    clock: Option<u64>,
    /// How long the messages that are being applied have been held, in milliseconds.
    pub(super) held_ms: u64,
}

impl Hearing {
    /// When to check what there is to tell, or whether the owner is silent.
    pub(super) fn next_at(&self, heard_ms: u64) -> Option<u64> {
        if self.tells {
            return Some(self.until);
        }
        let (_, at) = self.told.filter(|_| self.is_told)?;
        Some(at + SILENT_INTERVALS * heard_ms)
    }

    /// Ignores how far the owner's receive clock advances up to the next message.
    pub(super) fn forget_clock(&mut self) {
        self.clock = None;
    }
}

impl Replica {
    /// Whether this replica receives heartbeats. If not, the owner tells it of them, and heartbeats
    /// needn't be handed to it.
    pub fn takes_heartbeats(&self) -> bool {
        !self.hearing.is_told
    }

    /// Whether to tell this replica up to when everything has been received: see
    /// [`Shard::needs_clock`].
    ///
    /// [`Shard::needs_clock`]: crate::Shard::needs_clock
    pub fn needs_clock(&self) -> bool {
        self.catching_up.is_some() || self.shard.needs_clock()
    }

    /// The replica begins to lead.
    pub(super) fn begin_to_tell(&mut self, now: u64) {
        let figures = self.settings.fleet;
        self.hearing = Hearing {
            until: now + figures.heard_ms,
            ..Hearing::default()
        };
        self.shard.keep_heard(figures.standbys > 0);
    }

    /// The replica stops leading.
    pub(super) fn stop_telling(&mut self) {
        self.hearing.tells = false;
        self.shard.keep_heard(false);
    }

    /// Tells the standbys what has been received, if it is time.
    pub(super) fn tell_heard(&mut self, now: u64, out: &mut Vec<Out>) {
        let Some(heard) = self.shard.heard() else {
            return;
        };
        let (count, bytes, has_changes) = (heard.count(), heard.bytes(), heard.has_changes());
        let (is_over, many) = (now >= self.hearing.until, self.settings.told_from);
        let heard_ms = self.settings.fleet.heard_ms;
        if !self.hearing.tells {
            if count >= many {
                self.hearing.tells = true;
                self.say_heard(true, out);
            } else if is_over {
                self.shard.take_heard();
            } else {
                return;
            }
            (self.hearing.until, self.hearing.few) = (now + heard_ms, 0);
            self.hearing.count = 0;
            return;
        }
        if is_over {
            let count = self.hearing.count + count;
            self.hearing.few = match count < many.div_ceil(FEW_PART) {
                true => self.hearing.few + 1,
                false => 0,
            };
            self.hearing.until = now + heard_ms;
            self.hearing.tells = self.hearing.few * heard_ms <= self.settings.timeout_ms / 2;
            self.say_heard(self.hearing.tells, out);
            self.hearing.count = 0;
        } else if has_changes || bytes >= HEARD_BYTES.min(self.settings.told_bytes / 2) {
            self.say_heard(true, out);
        }
    }

    /// Tells the standbys what has been received, if what viewers are to be told may follow from
    /// it. The standbys must know it first.
    pub(super) fn tell_news(&mut self, out: &mut Vec<Out>) {
        if self.hearing.tells && self.shard.heard().is_some_and(|heard| heard.is_news()) {
            self.say_heard(true, out);
        }
    }

    /// Tells the standbys everything that has been received.
    pub(super) fn tell_all_heard(&mut self, out: &mut Vec<Out>) {
        if self.hearing.tells && self.shard.heard().is_some_and(|heard| heard.count() > 0) {
            self.say_heard(true, out);
        }
    }

    /// Tells the standbys to receive heartbeats themselves.
    pub(super) fn tell_no_more(&mut self, out: &mut Vec<Out>) {
        if std::mem::take(&mut self.hearing.tells) {
            self.say_heard(false, out);
        }
    }

    /// The owner leads again after a break, and doesn't tell what it received meanwhile. The
    /// standbys' receive clocks don't advance for that time.
    pub(super) fn tell_of_break(&mut self, out: &mut Vec<Out>) {
        let said = Said::Heard {
            clock: 0,
            goes_on: false,
            entries: Vec::new(),
        };
        self.say_next(said, out);
    }

    fn say_heard(&mut self, goes_on: bool, out: &mut Vec<Out>) {
        let heard = self.shard.take_heard();
        self.hearing.count += heard.count();
        let said = Said::Heard {
            clock: self.shard.lease_from(),
            goes_on,
            entries: match self.skips(Mutation::NoHeartbeats) {
                true => Vec::new(),
                false => heard.into_entries(),
            },
        };
        self.say_next(said, out);
    }

    /// Applies what the owner has received.
    pub(super) fn take_heard(
        &mut self,
        now: u64,
        (clock, goes_on): (u64, bool),
        entries: Vec<u8>,
    ) -> Result<(), Mismatch> {
        // The clock may have been ahead of what the owner received in the end.
        let before = self.hearing.clock;
        self.hearing.clock = before.max(Some(clock));
        let gained_ms = self.hearing.is_told.then(|| {
            let gained = before.map(|before| clock.saturating_sub(before));
            gained.unwrap_or_default()
        });
        let silent_ms = SILENT_INTERVALS * self.settings.fleet.heard_ms;
        let taken =
            self.shard
                .follow_heard(now, (gained_ms, silent_ms + self.hearing.held_ms), entries);
        self.shard.take_told();
        taken.map_err(|_| Mismatch::Unreadable)?;
        if !goes_on {
            self.hear_by_itself(now);
            return Ok(());
        }
        let told = self.hearing.told.filter(|(_, at)| now < at + silent_ms);
        let since = told.map_or(now, |(since, _)| since);
        self.hearing.told = Some((since, now));
        let follows = matches!(self.role, Role::Follow { .. });
        if follows && !self.hearing.is_told && now >= since + silent_ms {
            self.hearing.is_told = true;
            // What this standby has received itself may be part of the owner's next message.
            self.hearing.clock = None;
        }
        Ok(())
    }

    /// Makes this replica receive heartbeats from now on. Its receive clock doesn't advance for the
    /// time since the owner's last message.
    pub(super) fn hear_by_itself(&mut self, now: u64) {
        let was_told = std::mem::take(&mut self.hearing.is_told);
        (self.hearing.told, self.hearing.clock) = (None, None);
        if was_told {
            self.shard.follow(now, Input::LostUpTo { at: now });
        }
    }

    /// Whether to ignore an input, since the replica relies on the owner's messages instead.
    pub(super) fn goes_by_told(&self, input: &Input) -> bool {
        self.hearing.is_told && matches!(input, Input::ReceivedUpTo { .. })
    }

    /// Makes the standby receive heartbeats again if the owner has fallen silent.
    pub(super) fn look_for_silence(&mut self, now: u64) {
        let at = self.hearing.next_at(self.settings.fleet.heard_ms);
        if self.hearing.is_told && at.is_some_and(|at| now >= at) {
            self.hear_by_itself(now);
        }
    }
}
