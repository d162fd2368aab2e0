//! Decides when a canary ends by itself: it is aborted by its rules, or promoted after some time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use presence_config::abort_on::AbortOn;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::analysis::{CALLS_MIN, CanaryAnalysis};
use super::meter::{Meter, Side};
use crate::clock;

/// How often the rules are checked.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// How much time between two checks counts as watched at most, in milliseconds: a process that was
/// suspended has not watched.
const STEP_MS_MAX: u64 = 5_000;

/// When a canary ends by itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct CanaryPolicy {
    pub(crate) abort_on: AbortOn,
    /// After how many milliseconds it is promoted. `None` if only an operator promotes it.
    pub(crate) promote_after_ms: Option<u64>,
    /// For how many milliseconds it was watched on this node before.
    pub(crate) watched_ms: u64,
}

/// An end of a canary, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It is taken out, and decides on nobody.
    Abort(String),
    /// It becomes the active pipeline.
    Promote(String),
}

/// Watches a running canary. After it has reported a promotion, it watches on until the promotion
/// is in force.
pub(crate) struct CanaryMonitor {
    analysis: CanaryAnalysis,
    policy: CanaryPolicy,
    /// Whether the promotion was reported.
    is_promoted: bool,
    meter: Arc<Meter>,
    /// When the rules were last checked, by the host's clock.
    looked_at: u64,
    looks: Interval,
}

impl CanaryMonitor {
    pub(crate) fn new(policy: CanaryPolicy, meter: Arc<Meter>) -> Self {
        Self::at(policy, meter, clock::now_ms())
    }

    fn at(policy: CanaryPolicy, meter: Arc<Meter>, now: u64) -> Self {
        let mut looks = interval(CHECK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            analysis: CanaryAnalysis::new(policy.abort_on.clone(), &meter, now),
            policy,
            is_promoted: false,
            meter,
            looked_at: now,
            looks,
        }
    }

    /// For how many milliseconds it has been watched. `None` if it isn't promoted by itself.
    pub(crate) fn watched_ms(&self) -> Option<u64> {
        self.policy.promote_after_ms.map(|_| self.policy.watched_ms)
    }

    /// Waits for the next check. Returns whether the canary ends, and how.
    pub(crate) async fn next(&mut self) -> Option<End> {
        self.looks.tick().await;
        self.check(clock::now_ms())
    }

    fn check(&mut self, now: u64) -> Option<End> {
        let step = now.saturating_sub(self.looked_at).min(STEP_MS_MAX);
        self.looked_at = now;
        self.policy.watched_ms += step;
        if let Some(reason) = self.analysis.evaluate(&self.meter, now) {
            return Some(End::Abort(reason));
        }
        let after = self.policy.promote_after_ms;
        let is_due = after.is_some_and(|after| after <= self.policy.watched_ms);
        let calls = self.meter.calls(Side::Candidate);
        let calls = calls.calls.load(Ordering::Relaxed);
        // A canary with few calls has proved nothing.
        if !is_due || calls < CALLS_MIN || std::mem::replace(&mut self.is_promoted, true) {
            return None;
        }
        let after = Duration::from_millis(after.unwrap_or_default());
        Some(End::Promote(format!(
            "no rule was broken within {} s, in {calls} calls on this node",
            after.as_secs()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decides(meter: &Meter, times: u64) {
        for _ in 0..times {
            meter
                .calls(Side::Candidate)
                .count(Duration::from_micros(5), None);
        }
    }

    fn fails(meter: &Meter, times: u64) {
        let failure = presence_core::rules::Failure {
            plugin: "rule".into(),
            error: "trapped".into(),
        };
        for _ in 0..times {
            let took = Duration::from_micros(5);
            meter.calls(Side::Candidate).count(took, Some(&failure));
        }
    }

    /// Checks at each of these seconds. Returns the first end.
    fn looks(watch: &mut CanaryMonitor, seconds: std::ops::RangeInclusive<u64>) -> Option<End> {
        seconds.into_iter().find_map(|at| watch.check(at * 1_000))
    }

    #[tokio::test]
    async fn a_canary_is_promoted_after_its_time_once_it_has_been_at_work() {
        let meter = Arc::<Meter>::default();
        let policy = CanaryPolicy {
            promote_after_ms: Some(60_000),
            watched_ms: 10_000,
            ..CanaryPolicy::default()
        };
        let mut watch = CanaryMonitor::at(policy, Arc::clone(&meter), 1_000);
        decides(&meter, CALLS_MIN - 1);
        assert_eq!(looks(&mut watch, 1..=51), None);
        assert_eq!(watch.watched_ms(), Some(60_000));
        decides(&meter, 1);
        let Some(End::Promote(why)) = watch.check(51_000) else {
            panic!("it is due");
        };
        assert_eq!(
            why,
            "no rule was broken within 60 s, in 20 calls on this node"
        );
    }

    #[tokio::test]
    async fn a_time_in_which_nobody_looked_is_not_watched() {
        let meter = Arc::<Meter>::default();
        let policy = CanaryPolicy {
            promote_after_ms: Some(60_000),
            ..CanaryPolicy::default()
        };
        let mut watch = CanaryMonitor::at(policy, Arc::clone(&meter), 1_000);
        decides(&meter, CALLS_MIN);
        assert_eq!(watch.check(3_600_000), None);
        assert_eq!(watch.watched_ms(), Some(STEP_MS_MAX));
        assert_eq!(looks(&mut watch, 3_601..=3_654), None);
        assert!(looks(&mut watch, 3_655..=3_655).is_some());
    }

    #[tokio::test]
    async fn a_broken_rule_comes_before_a_promotion_and_after_one_that_is_not_in_force_yet() {
        for promoted_first in [false, true] {
            let meter = Arc::<Meter>::default();
            let policy = CanaryPolicy {
                abort_on: "errors>1%".parse().unwrap(),
                promote_after_ms: Some(0),
                watched_ms: 0,
            };
            let mut watch = CanaryMonitor::at(policy, Arc::clone(&meter), 1_000);
            decides(&meter, 100);
            if promoted_first {
                assert!(matches!(watch.check(2_000), Some(End::Promote(_))));
                assert_eq!(watch.check(3_000), None, "once is enough");
            }
            fails(&meter, 2);
            let end = watch.check(4_000);
            assert!(matches!(end, Some(End::Abort(_))), "{end:?}");
        }
    }
}
