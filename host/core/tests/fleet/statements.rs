//! Applications that state of a user that the user is online, or offline. An application repeats
//! its statement while it is to hold, since a message may be lost. If no message is lost, it only
//! repeats it until an owner has answered.

use presence_core::message::Kind;

use crate::broker::Random;
use crate::users::metadata;
use crate::world::CALM_FROM;

/// How often a statement is repeated.
pub(crate) const REPEAT_MS: u64 = 450;

/// How long a statement that a user is online holds if it isn't repeated, in some runs.
pub(crate) const STATEMENT_TTL_MS: u64 = 1_500;

/// How long a stopped router may hold a statement that isn't repeated any more.
const HELD_MS: u64 = 2_500;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stated {
    Nothing,
    Online,
    Offline,
}

#[derive(Debug)]
pub(crate) struct App {
    /// Whether its user has no connections, and is only online by its statements. A statement about
    /// any other user holds until the user connects.
    pub(crate) is_alone: bool,
    /// Whether it stops repeating a statement once an owner has answered.
    relies_on_answers: bool,
    /// What it states now, and since when.
    says: Stated,
    since: u64,
    repeats_at: u64,
    changes_at: u64,
    /// Which of its statements holds.
    holds: Stated,
    /// When it last stated that the user is offline.
    hidden_at: Option<u64>,
    /// When it last stated that the user is online.
    shown_at: Option<u64>,
    is_calm: bool,
    /// How many statements it has begun. Each is about another device.
    times: u64,
    /// How long a statement that a user is online holds if it isn't repeated.
    ttl_ms: Option<u64>,
}

/// The time from which on an application that relies on answers makes no new statement.
const SETTLED_FROM: u64 = 7_500;

/// How long after a connect of its user an application that relies on answers makes no new
/// statement, since the connect may be delivered again.
const CONNECT_MS: u64 = 1_500;

/// What an application does in one step.
#[derive(Debug, Default)]
pub(crate) struct Acts {
    /// What it states, and the further fields of its message.
    pub(crate) states: Option<(Kind, String)>,
    /// Whether the user must connect once more.
    pub(crate) connects: bool,
}

impl App {
    pub(crate) fn new(
        is_alone: bool,
        relies_on_answers: bool,
        ttl_ms: Option<u64>,
        random: &mut Random,
    ) -> Self {
        Self {
            ttl_ms,
            is_alone,
            relies_on_answers,
            says: Stated::Nothing,
            since: 0,
            repeats_at: u64::MAX,
            changes_at: match is_alone {
                true => random.within(50, 1_500),
                false => random.within(2_000, 5_000),
            },
            holds: Stated::Nothing,
            hidden_at: None,
            shown_at: None,
            is_calm: false,
            times: 0,
        }
    }

    /// What the application does at `t`.
    pub(crate) fn act(&mut self, t: u64, random: &mut Random) -> Acts {
        let mut acts = Acts::default();
        if t > self.calm_from() && !self.is_calm {
            self.is_calm = true;
            self.changes_at = u64::MAX;
            // For a user with connections, it then states nothing, or goes on for a while.
            if !self.is_alone && !self.relies_on_answers {
                acts.connects = true;
                match random.chance(50) {
                    true => self.begin(Stated::Nothing, t),
                    false => self.changes_at = t + random.within(700, 900),
                }
            }
        }
        if t >= self.changes_at {
            self.changes_at = match (self.is_calm, random.chance(50)) {
                (true, _) => u64::MAX,
                (false, true) => t + random.within(600, 2_000),
                (false, false) => t + random.within(2_000, 6_000),
            };
            // Without repetition, nobody knows whether an owner receives a statement before the
            // user's last connection ends.
            let shows = !self.is_alone && !self.relies_on_answers && random.chance(40);
            let is_silent = self.is_alone && self.ttl_ms.is_some() && random.chance(50);
            let next = match self.says {
                _ if shows => Stated::Online,
                Stated::Online if is_silent && !self.is_calm => Stated::Nothing,
                Stated::Offline if self.is_alone => Stated::Online,
                Stated::Offline if self.relies_on_answers => Stated::Offline,
                Stated::Offline | Stated::Online if !self.is_alone && !self.is_calm => {
                    Stated::Nothing
                }
                Stated::Nothing if self.is_alone => Stated::Online,
                _ => Stated::Offline,
            };
            self.begin(next, t);
        }
        if t >= self.repeats_at {
            self.repeats_at = t + REPEAT_MS;
            self.holds = self.says;
            acts.states = Some(match self.says {
                Stated::Online => {
                    self.shown_at = Some(t);
                    (Kind::Online, metadata(&self.device(), ""))
                }
                Stated::Offline | Stated::Nothing => {
                    self.hidden_at = Some(t);
                    let fields = format!(r#","lastSeen":{},"reason":"logout""#, u64::MAX);
                    (Kind::Offline, fields)
                }
            });
        }
        acts
    }

    fn begin(&mut self, says: Stated, t: u64) {
        self.says = says;
        self.since = t;
        self.repeats_at = match says {
            Stated::Nothing => u64::MAX,
            Stated::Online | Stated::Offline => t,
        };
        self.times += 1;
    }

    /// The number of the statement that an owner must answer.
    pub(crate) fn question(&self) -> u64 {
        self.times
    }

    /// An owner has answered the statement of this number.
    pub(crate) fn is_answered(&mut self, question: u64) {
        if self.relies_on_answers && question == self.times {
            self.repeats_at = u64::MAX;
        }
    }

    fn calm_from(&self) -> u64 {
        match self.relies_on_answers {
            true => SETTLED_FROM,
            false => CALM_FROM,
        }
    }

    /// When the application acts next.
    pub(crate) fn next_at(&self) -> u64 {
        let calm_at = match self.is_calm {
            true => u64::MAX,
            false => self.calm_from() + 1,
        };
        self.repeats_at.min(self.changes_at).min(calm_at)
    }

    /// The user has connected, so no earlier statement holds any longer.
    pub(crate) fn is_overtaken(&mut self, t: u64) {
        self.holds = Stated::Nothing;
        if self.relies_on_answers {
            self.begin(Stated::Nothing, t);
            if !self.is_calm {
                self.changes_at = self.changes_at.max(t + CONNECT_MS);
            }
        } else if self.says == Stated::Offline {
            self.since = t;
        }
    }

    /// The device in the present statement.
    pub(crate) fn device(&self) -> String {
        format!("s{}", self.times)
    }

    /// Whether the user is online at `t`.
    pub(crate) fn is_online(&self, t: u64, is_connected: bool) -> bool {
        match self.holds {
            Stated::Nothing => is_connected,
            Stated::Online => is_connected || self.is_showing() || t < self.ends_at(),
            Stated::Offline => false,
        }
    }

    /// The latest end of the last statement that the user is online, unless it is repeated. Without
    /// faults, it ends after half that time.
    fn ends_at(&self) -> u64 {
        let shown_at = self.shown_at.unwrap_or_default();
        self.ttl_ms.map_or(u64::MAX, |ttl_ms| shown_at + 2 * ttl_ms)
    }

    /// How long after the last fault no owner can have missed as many repetitions as end a
    /// statement.
    pub(crate) fn unheard_ms(&self) -> u64 {
        self.ttl_ms.map_or(0, |ttl_ms| ttl_ms + REPEAT_MS)
    }

    /// Whether it is stating that the user is online.
    pub(crate) fn is_showing(&self) -> bool {
        self.says == Stated::Online
    }

    /// Whether it has ever stated this device.
    pub(crate) fn has_shown(&self, device: &str) -> bool {
        let number = device.strip_prefix('s').and_then(|it| it.parse().ok());
        number.is_some_and(|number: u64| number <= self.times)
    }

    /// Until when the user may be online by a statement that is no longer repeated, although the
    /// user connected at `came_at`; 0 if they can't be. Another connect ends it.
    pub(crate) fn may_show_until(&self, came_at: u64) -> u64 {
        let is_stated = self.shown_at.is_some_and(|at| came_at <= at + HELD_MS);
        match is_stated && self.says != Stated::Offline {
            true => self.ends_at(),
            false => 0,
        }
    }

    /// Whether the user may be online by a connection against the statement, since the statement
    /// isn't repeated.
    pub(crate) fn is_unclear(&self) -> bool {
        self.holds == Stated::Offline && self.says != Stated::Offline
    }

    /// Since when it has been stating that the user is offline.
    pub(crate) fn hides_since(&self) -> Option<u64> {
        (self.says == Stated::Offline).then_some(self.since)
    }

    /// Since when it has been stating that the user is online.
    pub(crate) fn shows_since(&self) -> Option<u64> {
        (self.says == Stated::Online).then_some(self.since)
    }

    /// Whether no statement can make anybody consider the user gone.
    pub(crate) fn hides_nobody(&self, t: u64) -> bool {
        self.holds != Stated::Offline && self.hidden_at.is_none_or(|at| t > at + HELD_MS)
    }
}
