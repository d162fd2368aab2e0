//! Heartbeats: who takes them in, and who is told of them.
//!
//! Where there are many of them, an owner tells those who follow what it has heard, some of it at a time
//! ([`Heard`](crate::Heard)), and how far its receive clock has gone. Those who follow
//! then take in no heartbeats themselves, which would cost them as much as the owner. Their
//! clocks go on by what they are told, and so stand still when the owner falls silent. They take in heartbeats
//! again as soon as that is noticed, when another node owns the shard, or when there are only few.

use super::{Mutation, Out, Replica, Role};
use crate::Input;
use crate::fleet::told::{Mismatch, Said};

/// How long what is told at once is, in bytes, and that of one connection more.
const HEARD_BYTES: usize = 32 << 10;

/// After how many intervals without a word an owner is taken to be silent.
const SILENT_INTERVALS: u64 = 3;

/// How many heartbeats are few in an interval: this part of those from which on they are told of. There
/// are to be few for half a timeout: some senders send all of theirs at once, and as often as that.
const FEW_PART: usize = 4;

/// What is told of heartbeats.
#[derive(Debug, Default)]
pub(super) struct Hearing {
    /// Whether it tells others.
    tells: bool,
    /// Until when heartbeats are counted, and are told of then.
    until: u64,
    /// How many there have been.
    count: usize,
    /// For how many intervals in a row there have been few.
    few: u64,
    /// Whether it goes by what it is told.
    is_told: bool,
    /// Since when it has been told without a break, and when it was told last.
    told: Option<(u64, u64)>,
    /// The owner's receive clock, as it was told last.
    clock: Option<u64>,
    /// For how long what it takes in now has been held, in milliseconds.
    pub(super) held_ms: u64,
}

impl Hearing {
    /// When to look what there is to tell, or whether the owner is silent.
    pub(super) fn next_at(&self, heard_ms: u64) -> Option<u64> {
        if self.tells {
            return Some(self.until);
        }
        let (_, at) = self.told.filter(|_| self.is_told)?;
        Some(at + SILENT_INTERVALS * heard_ms)
    }

    /// What passes up to when the owner's clock is told next counts for nothing.
    pub(super) fn forget_clock(&mut self) {
        self.clock = None;
    }
}

impl Replica {
    /// Whether it takes in heartbeats. Otherwise the owner tells it of them, and they needn't be
    /// handed to it.
    pub fn takes_heartbeats(&self) -> bool {
        !self.hearing.is_told
    }

    /// Whether it is to be told up to when everything has been received: see [`Shard::needs_clock`].
    ///
    /// [`Shard::needs_clock`]: crate::Shard::needs_clock
    pub fn needs_clock(&self) -> bool {
        self.catching_up.is_some() || self.shard.needs_clock()
    }

    /// It begins to lead.
    pub(super) fn begin_to_tell(&mut self, now: u64) {
        let figures = self.settings.fleet;
        self.hearing = Hearing {
            until: now + figures.heard_ms,
            ..Hearing::default()
        };
        self.shard.keep_heard(figures.standbys > 0);
    }

    /// It leads no longer.
    pub(super) fn stop_telling(&mut self) {
        self.hearing.tells = false;
        self.shard.keep_heard(false);
    }

    /// Tells those who follow what has been heard, if it is time.
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

    /// What viewers are to be told may come of something that was heard: those who follow are to know
    /// that first.
    pub(super) fn tell_news(&mut self, out: &mut Vec<Out>) {
        if self.hearing.tells && self.shard.heard().is_some_and(|heard| heard.is_news()) {
            self.say_heard(true, out);
        }
    }

    /// Those who follow are to know all that has been heard.
    pub(super) fn tell_all_heard(&mut self, out: &mut Vec<Out>) {
        if self.hearing.tells && self.shard.heard().is_some_and(|heard| heard.count() > 0) {
            self.say_heard(true, out);
        }
    }

    /// Those who follow are to take in heartbeats themselves.
    pub(super) fn tell_no_more(&mut self, out: &mut Vec<Out>) {
        if std::mem::take(&mut self.hearing.tells) {
            self.say_heard(false, out);
        }
    }

    /// It leads again: of what it has heard meanwhile it tells nobody. Those who follow are to count none
    /// of that time.
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

    /// Takes in what the owner has heard.
    pub(super) fn take_heard(
        &mut self,
        now: u64,
        (clock, goes_on): (u64, bool),
        entries: Vec<u8>,
    ) -> Result<(), Mismatch> {
        // It may have been ahead of what has been received in the end.
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
            // What it has heard itself by now may be part of what the owner will have heard.
            self.hearing.clock = None;
        }
        Ok(())
    }

    /// It takes in heartbeats from now on. What has passed since it was told last counts for nothing.
    pub(super) fn hear_by_itself(&mut self, now: u64) {
        let was_told = std::mem::take(&mut self.hearing.is_told);
        (self.hearing.told, self.hearing.clock) = (None, None);
        if was_told {
            self.shard.follow(now, Input::LostUpTo { at: now });
        }
    }

    /// Whether it goes by what it is told, and not by what reaches it itself.
    pub(super) fn goes_by_told(&self, input: &Input) -> bool {
        self.hearing.is_told && matches!(input, Input::ReceivedUpTo { .. })
    }

    /// Takes in heartbeats again if the owner has fallen silent.
    pub(super) fn look_for_silence(&mut self, now: u64) {
        let at = self.hearing.next_at(self.settings.fleet.heard_ms);
        if self.hearing.is_told && at.is_some_and(|at| now >= at) {
            self.hear_by_itself(now);
        }
    }
}
