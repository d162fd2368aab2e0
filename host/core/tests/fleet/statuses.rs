//! Users' activities and own statuses. Some users say them once, with each connect. The others say
//! them with each heartbeat, and change them now and then.

use std::fmt::Write as _;

use crate::broker::Random;
use crate::rules::Shows;
use crate::users::Conn;
use crate::world::CALM_FROM;

/// The minimum time between two updates of a user, and how long "typing" holds.
pub(crate) const MIN_INTERVAL_MS: u64 = 150;
pub(crate) const TYPING_MS: u64 = 1_200;

/// How long a connection reports the same activity.
const ACTIVITY_MS: u64 = 700;

const ACTIVITIES: [&str; 3] = ["idle", "active", "typing"];

/// The number of the connection that said the shown status, if it is said once per connect.
pub(crate) fn said_once(shows: &Shows) -> Option<u64> {
    let status = shows.status.as_deref()?;
    status.strip_prefix("said by c")?.parse().ok()
}

/// Whether a connection has a status, for users who say it once per connect.
fn has_status(conn: u64) -> bool {
    !conn.is_multiple_of(3)
}

#[derive(Debug)]
pub(crate) struct Says {
    /// Whether the user says it with each heartbeat.
    pub(crate) repeats: bool,
    /// The number of the user's status text, if there is one, and when it expires, by the time of
    /// the run.
    text: Option<u64>,
    expires_at: Option<u64>,
    times: u64,
    changes_at: u64,
}

impl Says {
    pub(crate) fn new(random: &mut Random) -> Self {
        Self {
            repeats: random.chance(50),
            text: None,
            expires_at: None,
            times: 0,
            changes_at: 0,
        }
    }

    /// The status keys of a message at `t`, as text behind the other keys of its metadata.
    pub(crate) fn keys(
        &mut self,
        (t, beginning): (u64, u64),
        conn: u64,
        is_connect: bool,
        random: &mut Random,
    ) -> String {
        let mut keys = String::new();
        if !self.repeats {
            if is_connect {
                let activity = ACTIVITIES[Self::calm_activity(conn)];
                let _ = write!(keys, r#","activity":"{activity}""#);
                if has_status(conn) {
                    let _ = write!(keys, r#","status":{{"text":"said by c{conn}"}}"#);
                }
            }
            return keys;
        }
        if t >= self.changes_at && t < CALM_FROM - 1_000 {
            self.changes_at = t + random.within(200, 2_500);
            self.times += 1;
            self.text = random.chance(80).then_some(self.times);
            self.expires_at = random.chance(30).then(|| t + random.within(100, 1_000));
        }
        let activity = match t < CALM_FROM {
            true => (conn + t / ACTIVITY_MS) as usize % ACTIVITIES.len(),
            false => Self::calm_activity(conn),
        };
        let activity = ACTIVITIES[activity];
        let _ = write!(keys, r#","activity":"{activity}","status":"#);
        let _ = match (self.text, self.expires_at) {
            (None, _) => write!(keys, "null"),
            (Some(text), None) => write!(keys, r#"{{"text":"text {text}"}}"#),
            (Some(text), Some(at)) => {
                let at = beginning + at;
                write!(keys, r#"{{"text":"text {text}","expiresAt":{at}}}"#)
            }
        };
        keys
    }

    /// Whether viewers are finally shown what was said. `first`: the number of the first connect
    /// since the user was away for long. `last`: the number of the last connect, if it was
    /// certainly handled. `is_heard`: whether all connects were handled.
    pub(crate) fn is_shown(
        &self,
        shows: &Shows,
        conns: &[Conn],
        (first, last): (u64, Option<u64>),
        is_heard: bool,
    ) -> bool {
        let foremost = conns.iter().map(|conn| Self::calm_activity(conn.id)).max();
        if self.repeats {
            let status = shows.status.as_deref();
            let text = self.text.filter(|_| self.expires_at.is_none());
            let text = text.map(|text| format!("text {text}"));
            let activity = foremost.map(|activity| ACTIVITIES[activity]);
            return status == text.as_deref() && shows.activity.as_deref() == activity;
        }
        // A user who was typing has become active.
        let activity = foremost.map(|activity| ACTIVITIES[activity.min(1)]);
        let has_activity = !is_heard || shows.activity.as_deref() == activity;
        let said = said_once(shows);
        let is_newest = last.is_none_or(|last| match has_status(last) {
            true => said == Some(last),
            // The connection that said an earlier status may have gone in the meantime.
            false => said.is_none_or(|said| (first..last).contains(&said)),
        });
        has_activity && is_newest
    }

    /// The activity that a connection reports when everything has settled.
    fn calm_activity(conn: u64) -> usize {
        conn as usize % ACTIVITIES.len()
    }
}
