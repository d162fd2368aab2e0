//! Random scripts: the tracker agrees with the model at every step, each user's transitions
//! alternate, and in the end nothing is left.

use std::collections::HashSet;

use presence_core::tracker::{
    Activity, Damping, InputResult, Reason, Tracker, TrackerSettings, Transition,
};
use proptest::prelude::*;

use crate::model::Model;

const USERS: [&str; 3] = ["alice", "bob", "carol"];
const CONNECTIONS: [&str; 3] = ["web", "phone", "tv"];

#[derive(Clone, Debug)]
struct Step {
    after_ms: u64,
    action: Action,
}

#[derive(Clone, Debug)]
enum Action {
    Connect(Sender, Option<Activity>),
    Heartbeat(Sender, Option<Activity>),
    Disconnect(Sender, Reason),
    /// Everything up to this long ago has been heard.
    Heard(u64),
    /// Some inputs up to this long ago were lost.
    Missed(u64),
    /// This many milliseconds pass, in which everything is heard step by step.
    Listen(u64),
    Reconfigure(TrackerSettings),
    /// The host wakes up late: work that became due since the last step is done only now.
    Wake,
}

#[derive(Clone, Debug)]
struct Sender {
    user: &'static str,
    conn: &'static str,
    /// How far its clock, or its message, is behind. Negative: ahead.
    behind_ms: i64,
}

fn settings() -> impl Strategy<Value = TrackerSettings> {
    let grace_ms = prop_oneof![Just(0), 1..200u64];
    // A step is a part of the timeout.
    let step = prop_oneof![1 => Just(None), 2 => (1..30u64).prop_map(Some)];
    (0..60u64, grace_ms, 0..30u64, step).prop_map(|(timeout_ms, grace_ms, reorder_ms, step)| {
        TrackerSettings {
            timeout_ms: timeout_ms.max(step.map_or(0, |step| 2 * step)),
            grace_ms,
            reorder_ms,
            shows_newest: true,
            receive_step_ms: step,
            // Limits and damping have their own tests.
            damping: Damping::OFF,
            ..TrackerSettings::default()
        }
    })
}

fn sender() -> impl Strategy<Value = Sender> {
    let behind_ms = prop_oneof![3 => Just(0), 3 => 0..40i64, 1 => -40..0i64];
    let names = (
        prop::sample::select(&USERS[..]),
        prop::sample::select(&CONNECTIONS[..]),
    );
    (names, behind_ms).prop_map(|((user, conn), behind_ms)| Sender {
        user,
        conn,
        behind_ms,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let reason = prop_oneof![
        Just(Reason::Disconnect),
        Just(Reason::Timeout),
        Just(Reason::Logout)
    ];
    let activity = || prop::option::of(prop::sample::select(&Activity::ALL[..]));
    let action = prop_oneof![
        6 => (sender(), activity()).prop_map(|(sender, says)| Action::Connect(sender, says)),
        8 => (sender(), activity()).prop_map(|(sender, says)| Action::Heartbeat(sender, says)),
        6 => (sender(), reason).prop_map(|(sender, reason)| Action::Disconnect(sender, reason)),
        6 => prop_oneof![2 => Just(0), 1 => 0..40u64].prop_map(Action::Heard),
        2 => prop_oneof![2 => Just(0), 1 => 0..40u64].prop_map(Action::Missed),
        4 => (0..100u64).prop_map(Action::Listen),
        1 => settings().prop_map(Action::Reconfigure),
        1 => Just(Action::Wake),
    ];
    let after_ms = prop_oneof![4 => 0..4u64, 3 => 0..30u64, 1 => 0..300u64];
    (after_ms, action).prop_map(|(after_ms, action)| Step { after_ms, action })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_tracker_agrees_with_the_model(
        settings in settings(),
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut pair = Pair::new(settings);
        for (number, step) in steps.into_iter().enumerate() {
            pair.step(step, number as u64);
            pair.compare();
        }
        pair.finish();
    }
}

struct Pair {
    now: u64,
    tracker: Tracker<u64>,
    model: Model,
    online: HashSet<String>,
}

impl Pair {
    fn new(settings: TrackerSettings) -> Self {
        let (tracker, model) = (Tracker::new(settings), Model::new(settings));
        // The time is late enough that a sender's clock may be behind.
        Self {
            now: 1000,
            tracker,
            model,
            online: HashSet::new(),
        }
    }

    fn step(&mut self, step: Step, metadata: u64) {
        let now = self.now + step.after_ms;
        match step.action {
            Action::Wake => self.expire(now),
            _ => self.advance(now),
        }
        self.now = now;
        let timestamp = |sender: &Sender| now.saturating_add_signed(-sender.behind_ms);
        let (tracker, model) = (&mut self.tracker, &mut self.model);
        let (was, should) = match step.action.clone() {
            Action::Connect(sender, _) => {
                let Sender { user, conn, .. } = sender;
                let ts = timestamp(&sender);
                let was = tracker.connect(now, user, conn, ts, || metadata);
                (was, model.connect(now, user, conn, ts, metadata))
            }
            Action::Heartbeat(sender, _) => {
                let Sender { user, conn, .. } = sender;
                let ts = timestamp(&sender);
                let was = tracker.heartbeat(now, user, conn, ts, || metadata);
                (was, model.heartbeat(now, user, conn, ts, metadata))
            }
            Action::Disconnect(sender, reason) => {
                let Sender { user, conn, .. } = sender;
                let ts = timestamp(&sender);
                let was = tracker.disconnect(now, user, conn, ts, reason);
                (was, model.disconnect(now, user, conn, ts, reason))
            }
            Action::Heard(ago) => {
                tracker.received_up_to(now, now - ago);
                model.heard(now, now - ago);
                return;
            }
            Action::Missed(ago) => {
                tracker.lost_up_to(now, now - ago);
                model.missed(now, now - ago);
                return;
            }
            Action::Listen(ms) => return self.listen(now + ms),
            Action::Reconfigure(settings) => {
                // All work that is due is done first, so that both know the time.
                self.expire(now);
                self.tracker.reconfigure(settings);
                self.model.reconfigure(now, settings);
                return;
            }
            Action::Wake => return,
        };
        assert_eq!(was, should);
        if let Action::Connect(sender, Some(says)) | Action::Heartbeat(sender, Some(says)) =
            step.action
        {
            let Sender { user, conn, .. } = sender;
            let ts = timestamp(&sender);
            tracker.set_activity(now, user, conn, ts, says);
            model.set_activity(now, user, conn, ts, says);
        }
        let InputResult { transition, .. } = was;
        transition
            .iter()
            .for_each(|transition| self.alternates(transition));
    }

    /// Hears everything until a time, and does all work that becomes due.
    fn listen(&mut self, until: u64) {
        let step = self.model.settings.receive_step_ms.unwrap_or(1_000);
        loop {
            self.tracker.received_up_to(self.now, self.now);
            self.model.heard(self.now, self.now);
            self.expire(self.now);
            self.compare();
            if self.now >= until {
                return;
            }
            let next = until.min(self.now + step);
            self.advance(next);
            self.now = next;
        }
    }

    /// Goes from deadline to deadline, separately in the tracker and the model, up to but not
    /// including `until`.
    fn advance(&mut self, until: u64) {
        let mut was = Vec::new();
        let mut now = self.now;
        while let Some(deadline) = self.tracker.next_deadline().filter(|at| *at < until) {
            now = now.max(deadline);
            was.extend(std::iter::from_fn(|| self.tracker.expire(now)));
        }
        let mut should = Vec::new();
        let mut now = self.now;
        while let Some(deadline) = self.model.next_deadline().filter(|at| *at < until) {
            now = now.max(deadline);
            should.extend(self.model.expire(now));
        }
        assert_eq!(was, should);
        was.iter()
            .for_each(|transition| self.alternates(transition));
    }

    fn expire(&mut self, now: u64) {
        let was: Vec<_> = std::iter::from_fn(|| self.tracker.expire(now)).collect();
        assert_eq!(was, self.model.expire(now));
        was.iter()
            .for_each(|transition| self.alternates(transition));
    }

    fn alternates(&mut self, transition: &Transition<u64>) {
        match transition {
            Transition::Online { user, .. } => assert!(self.online.insert(user.to_string())),
            Transition::Offline {
                user,
                at,
                last_seen,
                ..
            } => {
                assert!(self.online.remove(&**user));
                assert!(last_seen <= at);
            }
        }
    }

    fn compare(&self) {
        let mut online: Vec<_> = self
            .tracker
            .users()
            .map(|(user, live)| (user.to_string(), live))
            .collect();
        online.sort();
        assert_eq!(online, self.model.online());
        assert_eq!(online.len(), self.tracker.online_users());
        assert_eq!(online.len(), self.online.len());
        for user in USERS {
            assert_eq!(self.tracker.is_online(user), self.online.contains(user));
            assert_eq!(self.tracker.activity(user), self.model.activity(user));
            assert_eq!(self.tracker.shown(user).copied(), self.model.shown(user));
        }
        let live: usize = online.iter().map(|(_, live)| live).sum();
        assert_eq!(live, self.tracker.connections());
        assert_eq!(self.model.remembered(), self.tracker.remembered());
    }

    fn finish(mut self) {
        // The longest timeout and grace, and the time for which a close is remembered.
        self.listen(self.now + 400);
        self.advance(u64::MAX);
        self.compare();
        assert!(self.online.is_empty() && self.tracker.is_empty());
        assert_eq!(
            (self.tracker.connections(), self.tracker.remembered()),
            (0, 0)
        );
        assert_eq!(self.tracker.next_deadline(), None);
    }
}
