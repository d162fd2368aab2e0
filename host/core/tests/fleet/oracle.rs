//! The oracle: what viewers were told, held against what users did. It knows nothing of shards'
//! owners but what a consumer sees.

use std::collections::{BTreeMap, BTreeSet};

use crate::client::{Client, Event};
use crate::node::{FLEET, TIMEOUT_MS};
use crate::rules::{Shows, VIEWERS, may_see};
use crate::statuses;
use crate::stream::StreamMode;
use crate::users::{HEARTBEAT_MS, Last, User};

/// How long a user who has left may be shown as online: a timeout, a lease, and this margin.
/// In it are the heartbeat and the message that were on their way, the two margins of a lease, the
/// claim, a beacon, and a question with one repetition.
pub(crate) const MARGIN_MS: u64 = 900;
pub(crate) const SHOWN_MS_MAX: u64 = TIMEOUT_MS + FLEET.lease_ms + MARGIN_MS;

#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) violations: Vec<String>,
    /// When something last began or ceased to fail.
    pub(crate) fault_at: u64,
    /// When something last began or ceased to fail that may have cut a hand-over short.
    pub(crate) hurt_at: u64,
    /// When a server last was without the majority.
    pub(crate) alone_at: [u64; 3],
    /// The generation of the rules, and when they changed.
    pub(crate) generation: usize,
    pub(crate) rules_at: u64,
    /// How long users are waited for who have left.
    grace_ms: u64,
    reported: BTreeSet<(usize, usize)>,
    /// What was told in each epoch of a shard, and whether what was told before is known.
    told: BTreeMap<u32, Telling>,
    pub(crate) events: usize,
    /// Whether nothing that is said is lost.
    hears_all: bool,
    /// The status that each viewer was told last of a user who is online, and when.
    statuses: BTreeMap<(usize, usize), (u64, u64)>,
}

#[derive(Debug, Default)]
struct Telling {
    epoch: u64,
    /// What each viewer was told last of a user: what is shown, or that the user is offline.
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

    /// A client takes a user for gone. The first promise: nobody who stayed connected is reported offline.
    /// An owner that was stopped in the middle of a write, and no owner after it was heard of, says when
    /// it goes on what it decided before: that is judged by what could be known then.
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

    /// The second: nobody who left is online for longer than timeout and lease.
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

    /// The fourth promise, of what is published: nobody is told the same twice in one epoch, nor in the next if the
    /// shard was handed over (`after`: the epoch that it was handed over from).
    /// `left_at`: when its user had no connection last.
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
            // An owner whose time is over: consumers drop it.
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

    /// What a user has said once of themselves is taken back by nobody while they are online. They may
    /// have gone and come back, and viewers have been told only how they are shown now.
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

    /// Whether a viewer may see a user by each of the generations of rules that nodes may go by
    /// at `t`: by all of them, and by any.
    fn sight(&self, t: u64, viewer: usize, user: usize) -> (bool, bool) {
        let is_new = t <= self.rules_at.max(self.fault_at) + SHOWN_MS_MAX;
        let first = if is_new { 0 } else { self.generation };
        let mut sights = (first..=self.generation).map(|it| may_see(viewer, user, it));
        (sights.clone().all(|it| it), sights.any(|it| it))
    }

    /// The third: in the end, each viewer knows exactly what is.
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
