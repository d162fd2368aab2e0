//! A canary that ends by itself: it is aborted by its rules, or promoted after a while.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use presence_config::abort_on::AbortOn;

use super::judge::{CALLS_MIN, Judge};
use super::meter::{Meter, Side};
use crate::clock;

/// How often is looked whether it is to end.
const LOOK: Duration = Duration::from_secs(1);

/// By what a canary ends by itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) abort_on: AbortOn,
    /// After how many milliseconds it is promoted; none where an operator does that.
    pub(crate) promote_after_ms: Option<u64>,
    /// For how many milliseconds it has been running, on this node or another.
    pub(crate) ran_ms: u64,
}

/// How a canary ends by itself, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It decides on nobody any more.
    Abort(String),
    /// It decides on everyone.
    Promote(String),
}

/// What is watched of a canary.
struct Watch {
    judge: Judge,
    promote_at: Option<u64>,
    terms: Terms,
}

impl Watch {
    fn new(terms: Terms, meter: &Meter, now: u64) -> Self {
        let left = |after: u64| after.saturating_sub(terms.ran_ms);
        Self {
            judge: Judge::new(terms.abort_on.clone(), meter, now),
            promote_at: terms
                .promote_after_ms
                .map(|after| now.saturating_add(left(after))),
            terms,
        }
    }

    /// Whether it is to end now.
    fn look(&mut self, meter: &Meter, now: u64) -> Option<End> {
        if let Some(reason) = self.judge.look(meter, now) {
            return Some(End::Abort(reason));
        }
        let is_due = self.promote_at.is_some_and(|at| at <= now);
        let calls = meter.calls(Side::Candidate).calls.load(Ordering::Relaxed);
        // One that nobody has seen at work has proved nothing.
        (is_due && calls >= CALLS_MIN).then(|| {
            let after = Duration::from_millis(self.terms.promote_after_ms.unwrap_or_default());
            End::Promote(format!(
                "no rule was broken within {} s, in {calls} calls on this node",
                after.as_secs()
            ))
        })
    }
}

/// Waits until a canary is to end by itself.
pub(crate) async fn ends(terms: Terms, meter: Arc<Meter>) -> End {
    let mut watch = Watch::new(terms, &meter, clock::now_ms());
    let mut looks = tokio::time::interval(LOOK);
    loop {
        looks.tick().await;
        if let Some(end) = watch.look(&meter, clock::now_ms()) {
            return end;
        }
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

    #[test]
    fn a_canary_is_promoted_after_its_time_once_it_has_been_at_work() {
        let meter = Meter::default();
        let terms = Terms {
            promote_after_ms: Some(60_000),
            ran_ms: 10_000,
            ..Terms::default()
        };
        let mut watch = Watch::new(terms, &meter, 1_000);
        decides(&meter, CALLS_MIN - 1);
        assert_eq!(watch.look(&meter, 50_999), None);
        assert_eq!(watch.look(&meter, 51_000), None);
        decides(&meter, 1);
        let Some(End::Promote(why)) = watch.look(&meter, 51_000) else {
            panic!("it is due");
        };
        assert_eq!(
            why,
            "no rule was broken within 60 s, in 20 calls on this node"
        );
    }

    #[test]
    fn a_broken_rule_comes_before_a_promotion() {
        let meter = Meter::default();
        let terms = Terms {
            abort_on: "errors>1%".parse().unwrap(),
            promote_after_ms: Some(0),
            ran_ms: 0,
        };
        let mut watch = Watch::new(terms, &meter, 1_000);
        decides(&meter, 100);
        let failure = presence_core::rules::Failure {
            plugin: "rule".into(),
            error: "trapped".into(),
        };
        for _ in 0..2 {
            let took = Duration::from_micros(5);
            meter.calls(Side::Candidate).count(took, Some(&failure));
        }
        let end = watch.look(&meter, 2_000);
        assert!(matches!(end, Some(End::Abort(_))), "{end:?}");
    }
}
