//! The receive clock: how long the host has been able to receive.
//!
//! A time-out is a statement about a client, so only time counts in which the client's
//! messages could arrive. The caller reports up to when everything has been received. From
//! one report to the next the clock advances by the time between them, but by no more than
//! a step: the rest was a pause, whatever the cause (a silent broker, a lost connection, a
//! stopped process). If something was lost on the way, all of the time was a pause. The clock
//! never advances by more than the time that passed and a step, however many reports come at
//! once: a broker that was stopped first answers all that it was asked meanwhile, and only
//! then reads what clients have sent it. Without a step the host always receives, and the
//! clock goes with `now`.
//!
//! It does not run during a restart, in which nothing was received.

/// Where the clock begins: far from zero, since a lease that is cut counts from a
/// moment before the host received anything.
const BEGINNING: u64 = 1 << 42;

/// How long the host has been able to receive. All times are in milliseconds.
#[derive(Debug)]
pub(super) struct ReceiveClock {
    /// How far the clock advances at once at most; none if the host always receives.
    step_ms: Option<u64>,
    clock: u64,
    /// Up to when everything has been received, by `now`; none if that isn't known yet.
    heard_up_to: Option<u64>,
    /// When that was last reported, by `now`.
    moved_at: u64,
    /// How far the clock may advance at once: what time has passed and it hasn't
    /// advanced by, up to a step.
    room_ms: u64,
    losses: LostTime,
    /// How long all pauses took, but for the one before anything was heard.
    paused_ms: u64,
}

impl ReceiveClock {
    pub(super) fn new(step_ms: Option<u64>) -> Self {
        let mut clock = Self {
            step_ms: None,
            clock: BEGINNING,
            heard_up_to: Some(0),
            moved_at: 0,
            room_ms: 0,
            paused_ms: 0,
            losses: LostTime::default(),
        };
        clock.change_step(step_ms, 0);
        clock
    }

    /// Goes by another step from here on.
    pub(super) fn change_step(&mut self, step_ms: Option<u64>, now: u64) {
        if self.step_ms.is_some() != step_ms.is_some() {
            self.heard_up_to = step_ms.is_none().then_some(now);
        }
        self.step_ms = step_ms;
    }

    /// What the clock shows.
    pub(super) fn clock(&self) -> u64 {
        self.clock
    }

    /// Up to when everything has been heard, by `now`.
    pub(super) fn heard_up_to(&self) -> u64 {
        self.heard_up_to.unwrap_or(0)
    }

    /// As [`Self::heard_up_to`]; `now` where that isn't known yet.
    pub(super) fn known_up_to(&self, now: u64) -> u64 {
        self.heard_up_to.map_or(now, |at| at.min(now))
    }

    /// How long all pauses took so far.
    pub(super) fn paused_ms(&self) -> u64 {
        self.paused_ms
    }

    /// It has become `now`.
    pub(super) fn pass(&mut self, now: u64) {
        if self.step_ms.is_none() {
            let since = now.saturating_sub(self.heard_up_to.unwrap_or(now));
            self.clock = self.clock.saturating_add(since);
            self.heard_up_to = Some(now);
            self.moved_at = now;
        }
    }

    /// Everything has been heard up to `at`, as is known `now`. Says whether connections are to be looked
    /// at: some may have missed more than a time-out of hearing by now, or will before the next look.
    pub(super) fn received(&mut self, now: u64, at: u64, timeout_ms: u64) -> bool {
        self.advance(now, at, self.step_ms.unwrap_or(0), timeout_ms)
    }

    /// As [`Self::received`], but something of what came by `at` was lost: the clock stands
    /// still.
    pub(super) fn lost(&mut self, now: u64, at: u64, timeout_ms: u64) -> bool {
        self.advance(now, at, 0, timeout_ms)
    }

    fn advance(&mut self, now: u64, at: u64, gain_ms_max: u64, timeout_ms: u64) -> bool {
        let Some(step_ms) = self.step_ms else {
            return false;
        };
        let room_ms = self
            .room_ms
            .saturating_add(now.saturating_sub(self.moved_at));
        let room_ms = room_ms.min(step_ms);
        // Nothing is known of the time before the first report.
        let passed = self.heard_up_to.map(|before| at.saturating_sub(before));
        let gained = passed.unwrap_or(0).min(room_ms).min(gain_ms_max);
        self.room_ms = room_ms - gained;
        self.go_on((now, at), passed, gained, timeout_ms)
    }

    /// Another clock has gone on by so much up to `now`, and so does this one. Says what
    /// [`Self::received`] does.
    pub(super) fn gain(&mut self, now: u64, gained_ms: u64, timeout_ms: u64) -> bool {
        if self.step_ms.is_none() {
            return false;
        }
        self.room_ms = 0;
        let passed = self.heard_up_to.map(|before| now.saturating_sub(before));
        self.go_on((now, now), passed, gained_ms, timeout_ms)
    }

    /// Goes on by so much, of the time that has passed since something was last reported.
    fn go_on(
        &mut self,
        (now, at): (u64, u64),
        passed: Option<u64>,
        gained: u64,
        timeout_ms: u64,
    ) -> bool {
        let step_ms = self.step_ms.unwrap_or(0);
        let lost = passed.map_or(u64::MAX, |passed| passed.saturating_sub(gained));
        let paused = passed.map_or(0, |passed| passed.saturating_sub(gained));
        self.paused_ms = self.paused_ms.saturating_add(paused);
        let window_ms = timeout_ms.saturating_add(step_ms);
        // A lease may begin up to a step ahead of the clock, which is missed then as well.
        let missed = lost > 0 && {
            let slack_ms = self.slack_ms(timeout_ms);
            let lately = self.losses.add(self.clock, lost, window_ms);
            lately.saturating_add(step_ms) > timeout_ms - slack_ms && self.losses.look(slack_ms)
        };
        self.clock = self.clock.saturating_add(gained);
        self.heard_up_to = self.heard_up_to.max(Some(at));
        self.moved_at = now;
        missed
    }

    /// How much of a time-out connections may miss from one look at them to the next: one that has missed
    /// nearly a time-out is found by the look before.
    pub(super) fn slack_ms(&self, timeout_ms: u64) -> u64 {
        let step_ms = self.step_ms.unwrap_or(0);
        (timeout_ms / 8).min(timeout_ms.saturating_sub(step_ms) / 2)
    }

    /// What counts from `now` on counts from this moment of the clock: that which it
    /// will show when everything up to now has been heard.
    pub(super) fn begin(&self, now: u64) -> u64 {
        let step_ms = self.step_ms.unwrap_or(0);
        let ahead = self.heard_up_to.map(|at| now.saturating_sub(at));
        let ahead = ahead.map_or(step_ms, |ahead| ahead.min(step_ms));
        self.clock.saturating_add(ahead)
    }

    /// When to look at what is due at a moment of the clock, by `now`; none if that
    /// is not before more has been heard.
    pub(super) fn deadline(&self, due: u64) -> Option<u64> {
        if self.step_ms.is_some() {
            return (due <= self.clock).then_some(self.moved_at);
        }
        let left = due.saturating_sub(self.clock);
        Some(self.heard_up_to().saturating_add(left))
    }

    /// For the next while, any loss may be the one that makes a connection miss more
    /// than a time-out.
    pub(super) fn assume_loss(&mut self) {
        self.losses.recent = u64::MAX;
        self.losses.not_looked = u64::MAX;
        self.losses.began = self.clock;
    }
}

/// How much has been lost lately. Of a connection that is live, no loss counts that is
/// further back on the clock than its lease is long: so this says at little cost
/// that, as a rule, no connection need be looked at.
#[derive(Debug, Default)]
struct LostTime {
    /// In the window that has begun, and in the one before it.
    recent: u64,
    before: u64,
    /// When the window began, by the receive clock.
    began: u64,
    /// Since connections were looked at last.
    not_looked: u64,
}

impl LostTime {
    /// Adds a loss at a moment of the clock, and says how much has been lost in at
    /// least the last `window_ms` of it.
    fn add(&mut self, clock: u64, lost: u64, window_ms: u64) -> u64 {
        let elapsed = clock.saturating_sub(self.began);
        if elapsed > window_ms {
            let is_next = elapsed <= window_ms.saturating_mul(2);
            self.before = if is_next { self.recent } else { 0 };
            self.recent = 0;
            self.began = clock;
        }
        self.recent = self.recent.saturating_add(lost);
        self.not_looked = self.not_looked.saturating_add(lost);
        self.recent.saturating_add(self.before)
    }

    /// Whether connections are to be looked at, since more has been lost than that. Then they are.
    fn look(&mut self, slack_ms: u64) -> bool {
        let is_due = self.not_looked > slack_ms;
        if is_due {
            self.not_looked = 0;
        }
        is_due
    }
}
