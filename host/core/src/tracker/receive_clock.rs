//! The receive clock: how long the host has been able to receive.
//!
//! A timeout is a statement about a client, so only time counts in which the client's messages
//! could arrive. The caller reports up to when everything has been received. From one report to the
//! next, the clock advances by the time between them, but by at most one step. The rest was a
//! pause, whatever the cause (a silent broker, a lost connection, a stopped process). If a message
//! was lost on the way, all of the time was a pause. However many reports come at once, the clock
//! never advances by more than the time that has passed and one step: a broker that was stopped
//! first answers all that it was asked meanwhile, and only then reads what clients have sent.
//! Without a step, the host always receives, and the clock advances with `now`.
//!
//! The clock does not run during a restart, in which nothing is received.

/// Where the clock begins. It is far from zero: a lease that is cut counts from a moment in the
/// past, which may be before the host received anything.
const BEGINNING: u64 = 1 << 42;

/// How long the host has been able to receive. All times are in milliseconds.
#[derive(Debug)]
pub(super) struct ReceiveClock {
    /// The most that the clock advances at a time. `None`: the host always receives.
    step_ms: Option<u64>,
    clock: u64,
    /// Up to when everything has been received, by `now`. `None`: it isn't known yet.
    received_up_to: Option<u64>,
    /// When the last report was made, by `now`.
    moved_at: u64,
    /// By how much the clock may advance at the next report: the time that has passed and that it
    /// hasn't advanced by, up to one step.
    room_ms: u64,
    losses: LostTime,
    /// The length of all pauses, except the time before the first report.
    paused_ms: u64,
}

impl ReceiveClock {
    pub(super) fn new(step_ms: Option<u64>) -> Self {
        let mut clock = Self {
            step_ms: None,
            clock: BEGINNING,
            received_up_to: Some(0),
            moved_at: 0,
            room_ms: 0,
            paused_ms: 0,
            losses: LostTime::default(),
        };
        clock.change_step(step_ms, 0);
        clock
    }

    /// Sets another step from now on.
    pub(super) fn change_step(&mut self, step_ms: Option<u64>, now: u64) {
        if self.step_ms.is_some() != step_ms.is_some() {
            self.received_up_to = step_ms.is_none().then_some(now);
        }
        self.step_ms = step_ms;
    }

    /// The time that the clock shows.
    pub(super) fn clock(&self) -> u64 {
        self.clock
    }

    /// Up to when everything has been received, by `now`; 0 if that isn't known yet.
    pub(super) fn received_up_to(&self) -> u64 {
        self.received_up_to.unwrap_or(0)
    }

    /// As [`Self::received_up_to`], but no later than `now`; `now` if it isn't known yet.
    pub(super) fn known_up_to(&self, now: u64) -> u64 {
        self.received_up_to.map_or(now, |at| at.min(now))
    }

    /// The length of all pauses so far.
    pub(super) fn paused_ms(&self) -> u64 {
        self.paused_ms
    }

    /// Moves the time on to `now`. Without a step, the clock advances with it.
    pub(super) fn advance_to(&mut self, now: u64) {
        if self.step_ms.is_none() {
            let since = now.saturating_sub(self.received_up_to.unwrap_or(now));
            self.clock = self.clock.saturating_add(since);
            self.received_up_to = Some(now);
            self.moved_at = now;
        }
    }

    /// Everything has been received up to `at`, as is known at `now`. Returns whether the leases
    /// have to be checked: a connection may have missed more than a timeout of receiving by now, or
    /// will have before the next check.
    pub(super) fn received(&mut self, now: u64, at: u64, timeout_ms: u64) -> bool {
        self.advance(now, at, self.step_ms.unwrap_or(0), timeout_ms)
    }

    /// As [`Self::received`], but something that arrived by `at` was lost: the clock stands still.
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
        let passed = self.received_up_to.map(|before| at.saturating_sub(before));
        let gained = passed.unwrap_or(0).min(room_ms).min(gain_ms_max);
        self.room_ms = room_ms - gained;
        self.go_on((now, at), passed, gained, timeout_ms)
    }

    /// The receive clock of another host has advanced by `gained_ms` up to `now`, and so does this
    /// one. Returns the same as [`Self::received`].
    pub(super) fn gain(&mut self, now: u64, gained_ms: u64, timeout_ms: u64) -> bool {
        if self.step_ms.is_none() {
            return false;
        }
        self.room_ms = 0;
        let passed = self.received_up_to.map(|before| now.saturating_sub(before));
        self.go_on((now, now), passed, gained_ms, timeout_ms)
    }

    /// Advances by `gained`. `passed`: the time since the last report; `None` at the first one.
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
        // A lease may begin up to one step ahead of the clock, and may have missed that step, too.
        let missed = lost > 0 && {
            let slack_ms = self.slack_ms(timeout_ms);
            let lately = self.losses.add(self.clock, lost, window_ms);
            lately.saturating_add(step_ms) > timeout_ms - slack_ms && self.losses.look(slack_ms)
        };
        self.clock = self.clock.saturating_add(gained);
        self.received_up_to = self.received_up_to.max(Some(at));
        self.moved_at = now;
        missed
    }

    /// How much may be lost between two checks. A check finds each connection that has missed a
    /// timeout less this, so none can miss a whole timeout before the next check.
    pub(super) fn slack_ms(&self, timeout_ms: u64) -> u64 {
        let step_ms = self.step_ms.unwrap_or(0);
        (timeout_ms / 8).min(timeout_ms.saturating_sub(step_ms) / 2)
    }

    /// The moment of this clock from which a lease or grace counts that begins at `now`. The clock
    /// will show it when everything up to `now` has been received.
    pub(super) fn lease_start(&self, now: u64) -> u64 {
        let step_ms = self.step_ms.unwrap_or(0);
        let ahead = self.received_up_to.map(|at| now.saturating_sub(at));
        let ahead = ahead.map_or(step_ms, |ahead| ahead.min(step_ms));
        self.clock.saturating_add(ahead)
    }

    /// When to handle a task that is due at a moment of this clock, by `now`. `None`: not before
    /// the next report.
    pub(super) fn deadline(&self, due: u64) -> Option<u64> {
        if self.step_ms.is_some() {
            return (due <= self.clock).then_some(self.moved_at);
        }
        let left = due.saturating_sub(self.clock);
        Some(self.received_up_to().saturating_add(left))
    }

    /// Assumes that much has been lost, so that the next loss has the leases checked.
    pub(super) fn assume_loss(&mut self) {
        self.losses.recent = u64::MAX;
        self.losses.not_looked = u64::MAX;
        self.losses.began = self.clock;
    }
}

/// How much time of receiving was lost lately. A loss that is further back than a lease is long
/// matters to no live connection. This is a cheap bound: while it is low, no lease has to be checked.
#[derive(Debug, Default)]
struct LostTime {
    /// The losses in the current window, and in the one before it.
    recent: u64,
    before: u64,
    /// When the current window began, by the receive clock.
    began: u64,
    /// The loss since the last check of the leases.
    not_looked: u64,
}

impl LostTime {
    /// Adds a loss at a moment of the receive clock. Returns the loss of at least the last
    /// `window_ms`.
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

    /// Whether a check of the leases is due: more than `slack_ms` was lost since the last one. If
    /// so, the caller makes it.
    fn look(&mut self, slack_ms: u64) -> bool {
        let is_due = self.not_looked > slack_ms;
        if is_due {
            self.not_looked = 0;
        }
        is_due
    }
}
