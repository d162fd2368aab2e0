//! The oracle: it compares what viewers were told with what users did. Of shards' owners, it only
//! knows what a consumer sees.

use std::collections::{BTreeMap, BTreeSet};

use crate::client::{Client, Event};
use crate::node::{FLEET, TIMEOUT_MS};
use crate::rules::{Shows, VIEWERS, may_see};
use crate::statuses;
use crate::stream::StreamMode;
use crate::users::{HEARTBEAT_MS, Last, User};

/// The margin by which a user who has left may be shown as online for longer than a timeout and a
/// lease. It covers the heartbeat and the message that were in transit, the two margins of a lease,
/// the claim, a beacon, and a question with one repetition.
pub(crate) const MARGIN_MS: u64 = 900;
pub(crate) const SHOWN_MS_MAX: u64 = TIMEOUT_MS + FLEET.lease_ms + MARGIN_MS;

#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) violations: Vec<String>,
    /// When a fault last began or ended.
    pub(crate) fault_at: u64,
    /// When a fault last began or ended that may have cut a hand-over short.
    pub(crate) hurt_at: u64,
    /// When each server was last without a majority.
    pub(crate) alone_at: [u64; 3],
    /// The generation of the rules, and when it changed.
    pub(crate) generation: usize,
    pub(crate) rules_at: u64,
    /// The grace for users who have left.
    grace_ms: u64,
    reported: BTreeSet<(usize, usize)>,
    /// What was told in the present epoch of each shard.
    told: BTreeMap<u32, Telling>,
    pub(crate) events: usize,
    /// Whether no message of an application or connection is lost.
    hears_all: bool,
    /// The status that each viewer was last told of an online user, and when.
    statuses: BTreeMap<(usize, usize), (u64, u64)>,
}

#[derive(Debug, Default)]
struct Telling {
    epoch: u64,
    /// What each viewer was last told of a user: what is shown, or `None` for offline.
    shown: BTreeMap<(usize, usize), Option<Shows>>,
}

impl Oracle {
    pub(crate) fn new(grace_ms: u64, stream: StreamMode) -> Self {
        Self {
            grace_ms,
            hears_all: stream == StreamMode::OneFault,
            ..Self::default()
        }
    }

    pub(crate) fn violated(&mut self, t: u64, what: String) {
        self.violations.push(format!("{t}: {what}"));
    }

    /// A client considers a user gone. The first promise: nobody who stayed connected is reported
    /// offline. `late`: an owner was stopped in the middle of a write, and when it continues, it
    /// says what it decided at this time. If no later owner was heard of, this is judged by what
    /// could be known then.
    pub(crate) fn is_gone(
        &mut self,
        t: u64,
        client: usize,
        user: &User,
        (late, last): (Option<u64>, Last),
    ) {
        let alone_at = self.alone_at[user.server];
        let is_heard = alone_at == 0 || t > alone_at + TIMEOUT_MS + 2 * HEARTBEAT_MS;
        let is_shown = self.sight(t, client, user.number).0;
        let by = late.unwrap_or(t);
        if is_heard && is_shown && user.is_surely_connected(by, TIMEOUT_MS, last) {
            let what = format!(
                "user {} stayed connected, and client {client} was told that the user left: {:?}",
                user.number, user.conns
            );
            self.violated(t, what);
        }
    }

    /// The second promise: nobody who has left is online for longer than the timeout and the lease.
    pub(crate) fn look(&mut self, t: u64, clients: &[Client], users: &[User]) {
        for client in clients {
            for user in users {
                let fault_at = self.fault_at.max(self.alone_at[client.server]);
                let has_left = user
                    .offline_since(t)
                    .is_some_and(|since| t > since.max(fault_at) + SHOWN_MS_MAX + self.grace_ms);
                let is_hidden = !may_see(client.number, user.number, self.generation)
                    && t > fault_at.max(self.rules_at) + SHOWN_MS_MAX;
                let is_late = has_left || is_hidden;
                let place = (client.number, user.number);
                if !client.view.contains_key(&user.number) || !is_late {
                    self.reported.remove(&place);
                } else if self.reported.insert(place) {
                    let what = format!(
                        "user {} left at {} or is hidden, and client {} shows them as online",
                        user.number, user.left_at, client.number
                    );
                    self.violated(t, what);
                }
            }
        }
    }

    /// The fourth promise, about publications: nobody is told the same twice in one epoch, nor in
    /// the next epoch if the shard was handed over. `after`: the epoch from which it was handed
    /// over. `left_at`: when the user last had no connection.
    pub(crate) fn published(
        &mut self,
        t: u64,
        event: &Event,
        (after, left_at): (Option<u64>, u64),
    ) {
        self.events += 1;
        let sights: [_; VIEWERS] = std::array::from_fn(|viewer| self.sight(t, viewer, event.user));
        let telling = self.told.entry(event.shard).or_default();
        if event.epoch < telling.epoch {
            // The owner's time is over, and consumers drop the event.
            return;
        }
        if event.epoch > telling.epoch {
            let goes_on = after == Some(telling.epoch) && t > self.hurt_at + 1_000;
            if !goes_on {
                telling.shown.clear();
            }
            telling.epoch = event.epoch;
        }
        for viewer in (0..VIEWERS).filter(|viewer| event.visible_to[*viewer]) {
            let told = event.online.then(|| event.shows.clone());
            let before = telling.shown.insert((viewer, event.user), told.clone());
            if before == Some(told) {
                let what = format!(
                    "viewer {viewer} was told twice that user {} is {}, in epoch {}",
                    event.user,
                    if event.online { "online" } else { "offline" },
                    event.epoch
                );
                self.violations.push(format!("{t}: {what}"));
            }
            if event.online && !sights[viewer].1 {
                let what = format!("viewer {viewer} may not see user {}", event.user);
                self.violations.push(format!("{t}: {what}"));
            }
        }
        if self.hears_all {
            self.keeps_statuses(t, event, left_at);
        }
    }

    /// A status that a user has said once isn't taken back while they are online. They may have
    /// gone and come back, and viewers were only told how they are shown now.
    fn keeps_statuses(&mut self, t: u64, event: &Event, left_at: u64) {
        let status = statuses::said_once(&event.shows);
        for viewer in (0..VIEWERS).filter(|viewer| event.visible_to[*viewer]) {
            let place = (viewer, event.user);
            let before = match status.filter(|_| event.online) {
                Some(status) => self.statuses.insert(place, (status, t)),
                None => self.statuses.remove(&place),
            };
            let before = before.filter(|(_, at)| *at > left_at);
            let before = before.map(|(status, _)| status);
            if event.online && before > status {
                let what = format!(
                    "viewer {viewer} was told that user {} says {:?} again, after {before:?}",
                    event.user, event.shows.status
                );
                self.violations.push(format!("{t}: {what}"));
            }
        }
    }

    /// Whether a viewer may see a user by the generations of rules that nodes may use at `t`: by
    /// all of them, and by any of them.
    fn sight(&self, t: u64, viewer: usize, user: usize) -> (bool, bool) {
        let is_new = t <= self.rules_at.max(self.fault_at) + SHOWN_MS_MAX;
        let first = if is_new { 0 } else { self.generation };
        let mut sights = (first..=self.generation).map(|it| may_see(viewer, user, it));
        (sights.clone().all(|it| it), sights.any(|it| it))
    }

    /// The third promise: in the end, each viewer knows exactly what is true.
    pub(crate) fn end(&mut self, t: u64, clients: &[Client], users: &[User], stream: StreamMode) {
        for client in clients {
            for user in users {
                let is_online =
                    user.is_online(t) && may_see(client.number, user.number, self.generation);
                let shown = client.view.get(&user.number);
                let is_wrong = match shown {
                    Some(shown) => !(is_online && user.is_shown(&shown.shows, stream)),
                    None => is_online,
                };
                if is_wrong {
                    let what = format!(
                        "in the end, client {} shows user {} as {shown:?}: {:?}",
                        client.number, user.number, user.conns
                    );
                    self.violated(t, what);
                }
            }
        }
    }
}
