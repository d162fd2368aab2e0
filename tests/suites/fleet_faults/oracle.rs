//! Checks whether the promises were kept: compares what viewers were told with what users did. It
//! knows what a client sees, and nothing else of nodes, shards and leases.

mod source_logs;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use self::source_logs::SourceLogs;
use super::people::{USERS, VIEWERS, may_see};
use super::trace::{Entry, Fact};

/// The times on which the promises depend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) timeout_ms: u64,
    pub(super) lease_ms: u64,
    pub(super) heartbeat_ms: u64,
    /// The time for messages, beacons, claims and questions on a busy machine.
    pub(super) allowance_ms: u64,
    /// Whether all shards change hands by orderly hand-overs. Then nothing is told twice, not even
    /// in different epochs.
    pub(super) is_orderly: bool,
}

impl Terms {
    /// How long a user who has left may be shown as online.
    fn shown_ms_max(&self) -> u64 {
        self.timeout_ms + self.lease_ms + self.allowance_ms
    }

    /// How long a connection may be silent and still count as surely connected: a timeout, minus a
    /// heartbeat's interval, and minus the time for which a stopped router swallows messages until
    /// the broker closes its connection.
    fn silence_ms_max(&self) -> u64 {
        self.timeout_ms.saturating_sub(1_500 + self.heartbeat_ms)
    }
}

/// The result.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) violations: Vec<String>,
    /// How many messages about users were received.
    pub(super) told: usize,
    /// How many epochs followed another one.
    pub(super) successions: usize,
    /// How many users were surely connected without a pause for the last three quarters of the time
    /// since the first user came. For them, the first promise is checked throughout.
    pub(super) steady: usize,
    /// How many times something was held up that the test had not caused.
    pub(super) stalls: usize,
}

/// A connection that is open.
#[derive(Debug, Default)]
struct Conn {
    /// Since when it has sent messages without long pauses. `None` before its first message.
    steady_since: Option<u64>,
    spoke_at: u64,
    is_closing: bool,
}

#[derive(Debug)]
struct Oracle {
    terms: Terms,
    now: u64,
    conns: BTreeMap<(usize, u64), Conn>,
    left_at: BTreeMap<usize, u64>,
    /// How many faults last now.
    failing: usize,
    /// When the current series of faults began, in which each followed soon after the one before,
    /// and when the last of them ended.
    faults_began_at: Option<u64>,
    faults_ended_at: u64,
    shown: BTreeSet<(usize, usize)>,
    source_logs: SourceLogs,
    late: BTreeSet<(usize, usize)>,
    verdict: Verdict,
}

/// Judges all that happened, from an empty world.
pub(super) fn judge(terms: Terms, trace: &[Entry]) -> Verdict {
    let mut oracle = Oracle {
        terms,
        now: 0,
        conns: BTreeMap::new(),
        left_at: BTreeMap::new(),
        failing: 0,
        faults_began_at: None,
        faults_ended_at: 0,
        shown: BTreeSet::new(),
        source_logs: SourceLogs::new(terms.is_orderly),
        late: BTreeSet::new(),
        verdict: Verdict::default(),
    };
    for entry in trace {
        oracle.now = entry.at;
        oracle.look_for_ghosts();
        oracle.apply(&entry.fact);
    }
    let open = oracle.source_logs.end();
    open.into_iter().for_each(|it| oracle.add_violation(it));
    let mut verdict = oracle.verdict;
    verdict.successions = oracle.source_logs.successions;
    // The start of the brokers and nodes before that doesn't count.
    let begin = trace
        .iter()
        .find(|it| matches!(it.fact, Fact::Opens { .. }))
        .map_or(0, |it| it.at);
    let quarter = begin + oracle.now.saturating_sub(begin) / 4;
    let ends_steady = |user: &usize| {
        let mut conns = oracle.conns.range((*user, 0)..=(*user, u64::MAX));
        conns.any(|(_, conn)| {
            let silent_ms = oracle.now.saturating_sub(conn.spoke_at);
            conn.steady_since.is_some_and(|since| since < quarter)
                && silent_ms <= terms.silence_ms_max()
        })
    };
    verdict.steady = (0..USERS).filter(ends_steady).count();
    verdict
}

/// Who has a connection at the end of a trace.
pub(super) fn connected(trace: &[Entry]) -> BTreeSet<usize> {
    let mut conns = BTreeSet::new();
    for entry in trace {
        match &entry.fact {
            Fact::Opens { user, conn } => drop(conns.insert((*user, *conn))),
            Fact::Closed { user, conn } => drop(conns.remove(&(*user, *conn))),
            _ => {}
        }
    }
    conns.into_iter().map(|(user, _)| user).collect()
}

/// The viewers whose view is wrong at the end of a trace, as texts. It has to be empty.
pub(super) fn differences(trace: &[Entry]) -> Vec<String> {
    let mut shown = BTreeSet::new();
    for entry in trace {
        if let Fact::ViewChanged {
            viewer,
            user,
            online,
            ..
        } = &entry.fact
        {
            match online {
                true => drop(shown.insert((*viewer, *user))),
                false => drop(shown.remove(&(*viewer, *user))),
            }
        }
    }
    let connected = connected(trace);
    let mut differences = Vec::new();
    for viewer in 0..VIEWERS {
        for user in 0..USERS {
            let is_shown = shown.contains(&(viewer, user));
            if is_shown != (connected.contains(&user) && may_see(viewer, user)) {
                let state = if is_shown { "online" } else { "offline" };
                differences.push(format!("viewer {viewer} shows user {user} as {state}"));
            }
        }
    }
    differences
}

impl Oracle {
    fn add_violation(&mut self, what: String) {
        self.verdict
            .violations
            .push(format!("{} ms: {what}", self.now));
    }

    fn apply(&mut self, fact: &Fact) {
        match fact {
            Fact::Opens { user, conn } => {
                self.conns.insert((*user, *conn), Conn::default());
            }
            Fact::Spoke { user, conn } => self.note_message(*user, *conn),
            Fact::Closes { user, conn } => {
                if let Some(conn) = self.conns.get_mut(&(*user, *conn)) {
                    conn.is_closing = true;
                }
            }
            Fact::Closed { user, conn } => {
                self.conns.remove(&(*user, *conn));
                if !self.has_connections(*user) {
                    self.left_at.insert(*user, self.now);
                }
            }
            Fact::FaultBegins(_) => {
                self.fault_begins();
                self.failing += 1;
            }
            Fact::FaultEnds(_) => {
                self.failing = self.failing.saturating_sub(1);
                self.faults_ended_at = self.now;
            }
            Fact::Stall(_) => {
                self.verdict.stalls += 1;
                self.fault_begins();
                self.faults_ended_at = self.now;
                self.source_logs.stall();
            }
            Fact::Received {
                online,
                user,
                viewers,
                ..
            } => {
                self.verdict.told += 1;
                for viewer in viewers {
                    if !may_see(*viewer, *user) {
                        let state = if *online { "online" } else { "offline" };
                        self.add_violation(format!(
                            "user {user} is hidden from viewer {viewer}, who was told: {state}"
                        ));
                    }
                }
                let found = self.source_logs.apply(fact);
                found.into_iter().for_each(|it| self.add_violation(it));
            }
            Fact::Beacon { .. } => {
                let found = self.source_logs.apply(fact);
                found.into_iter().for_each(|it| self.add_violation(it));
            }
            Fact::Missed { client } => self.source_logs.missed(*client),
            Fact::ViewChanged {
                viewer,
                user,
                online: true,
                ..
            } => {
                self.shown.insert((*viewer, *user));
                if !may_see(*viewer, *user) {
                    self.add_violation(format!("viewer {viewer} sees user {user}, who is hidden"));
                }
            }
            Fact::ViewChanged {
                viewer, user, why, ..
            } => {
                self.shown.remove(&(*viewer, *user));
                if self.stayed_connected(*user) {
                    self.add_violation(format!(
                        "user {user} stayed connected, and viewer {viewer} was told that they left ({why})"
                    ));
                }
            }
        }
    }

    fn fault_begins(&mut self) {
        let recovered_at = self.faults_ended_at + self.terms.shown_ms_max();
        let is_first = self.faults_began_at.is_none() || self.now > recovered_at;
        if self.failing == 0 && is_first {
            self.faults_began_at = Some(self.now);
        }
        self.source_logs.fault();
    }

    fn note_message(&mut self, user: usize, conn: u64) {
        let silence_ms_max = self.terms.silence_ms_max();
        let now = self.now;
        if let Some(conn) = self.conns.get_mut(&(user, conn)) {
            let paused = now > conn.spoke_at + silence_ms_max;
            if conn.steady_since.is_none() || paused {
                conn.steady_since = Some(now);
            }
            conn.spoke_at = now;
        }
    }

    fn has_connections(&self, user: usize) -> bool {
        let mut conns = self.conns.range((user, 0)..=(user, u64::MAX));
        conns.next().is_some()
    }

    /// The first promise: whether the user has been connected all the time. Shortly after a fault,
    /// a message may come from a decision before it, so the user has to have been connected since
    /// before the fault.
    fn stayed_connected(&self, user: usize) -> bool {
        let recovered_at = self.faults_ended_at + self.terms.shown_ms_max();
        let fails = self.failing > 0 || self.now <= recovered_at;
        let since = match self.faults_began_at {
            Some(began_at) if fails => began_at.saturating_sub(1_000),
            _ => self.now.saturating_sub(2_000),
        };
        let mut conns = self.conns.range((user, 0)..=(user, u64::MAX));
        conns.any(|(_, conn)| {
            !conn.is_closing
                && conn.steady_since.is_some_and(|steady| steady <= since)
                && self.now <= conn.spoke_at + self.terms.silence_ms_max()
        })
    }

    /// The second promise: nobody who left is online for longer than timeout and lease, counted
    /// from when they left or from the last fault.
    fn look_for_ghosts(&mut self) {
        if self.failing > 0 {
            self.late.clear();
            return;
        }
        let mut late = BTreeSet::new();
        for (viewer, user) in &self.shown {
            let left_at = self.left_at.get(user).copied().unwrap_or_default();
            let since = left_at.max(self.faults_ended_at);
            if self.now > since + self.terms.shown_ms_max() && !self.has_connections(*user) {
                late.insert((*viewer, *user));
            }
        }
        let new: Vec<_> = late.difference(&self.late).copied().collect();
        self.late = late;
        for (viewer, user) in new {
            let left_at = self.left_at.get(&user).copied().unwrap_or_default();
            self.add_violation(format!(
                "user {user} left at {left_at} ms, and viewer {viewer} sees them online"
            ));
        }
    }
}
