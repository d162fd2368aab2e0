//! The rules that abort a canary: what is measured over a window, and how many calls or users are
//! needed. The reason of an abort is a sentence with the figures.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use presence_config::abort_on::{AbortOn, AbortRule, CanaryMeasure};

use super::latency::Counts;
use super::meter::{Meter, Side};

/// The length of the window, in milliseconds.
pub(crate) const WINDOW_MS: u64 = 60_000;

/// How many calls of the candidate are needed before failures count.
pub(crate) const CALLS_MIN: u64 = 20;

/// How many calls of each pipeline are needed before their times are compared.
pub(crate) const TIMED_CALLS_MIN: u64 = 500;

/// How many compared users are needed before hidden and shown users count.
pub(crate) const USERS_MIN: u64 = 10;

/// The measurements of a canary within the window.
#[derive(Debug)]
pub(crate) struct CanaryAnalysis {
    rules: AbortOn,
    samples: VecDeque<Sample>,
}

/// The counters at some time.
#[derive(Clone, Debug)]
struct Sample {
    at: u64,
    calls: u64,
    failures: u64,
    active: Counts,
    candidate: Counts,
}

impl Sample {
    fn of(meter: &Meter, at: u64) -> Self {
        let candidate = meter.calls(Side::Candidate);
        Self {
            at,
            calls: candidate.calls.load(Ordering::Relaxed),
            failures: candidate.failures.load(Ordering::Relaxed),
            active: meter.calls(Side::Active).latency.counts(),
            candidate: candidate.latency.counts(),
        }
    }
}

impl CanaryAnalysis {
    /// For a canary that begins now.
    pub(crate) fn new(rules: AbortOn, meter: &Meter, now: u64) -> Self {
        Self {
            rules,
            samples: [Sample::of(meter, now)].into(),
        }
    }

    /// Checks the rules. Returns why the canary must end now, if it must. To be called about once a
    /// second.
    pub(crate) fn evaluate(&mut self, meter: &Meter, now: u64) -> Option<String> {
        if self.rules.is_empty() {
            return None;
        }
        let since = now.saturating_sub(WINDOW_MS);
        // The newest sample that is as old as the window stays: the window begins with it.
        while self.samples.get(1).is_some_and(|next| next.at <= since) {
            self.samples.pop_front();
        }
        let sample = Sample::of(meter, now);
        let first = self.samples.front().unwrap_or(&sample);
        let reason = self
            .rules
            .rules()
            .find_map(|rule| broken(rule, meter, first, &sample, since));
        self.samples.push_back(sample);
        reason
    }
}

/// Why a rule is broken, if it is.
fn broken(
    rule: AbortRule,
    meter: &Meter,
    first: &Sample,
    now: &Sample,
    since: u64,
) -> Option<String> {
    match rule.measure {
        CanaryMeasure::Errors => {
            let calls = now.calls - first.calls;
            let failures = now.failures - first.failures;
            let part = part(failures, calls, CALLS_MIN)?;
            rule.is_broken_by(part).then(|| {
                let part = per_cent(part);
                format!("{failures} of {calls} calls of the candidate failed ({part})")
            })
        }
        CanaryMeasure::P99 => {
            let active = now.active.since(&first.active);
            let candidate = now.candidate.since(&first.candidate);
            if active.len().min(candidate.len()) < TIMED_CALLS_MIN {
                return None;
            }
            let (active, candidate) = (active.percentile(99)?, candidate.percentile(99)?);
            let factor = candidate.as_secs_f64() / active.as_secs_f64();
            rule.is_broken_by(factor).then(|| {
                format!(
                    "99 % of the candidate's calls took up to {}, and those of the active pipeline \
                     up to {} ({factor:.1} times as long)",
                    micros(candidate),
                    micros(active)
                )
            })
        }
        CanaryMeasure::Hidden | CanaryMeasure::Shown => {
            let users = meter.compared().users_since(since);
            let (concerned, what) = match rule.measure {
                CanaryMeasure::Hidden => (
                    users.hidden,
                    "hides {} from somebody who may see them by the",
                ),
                _ => (
                    users.shown,
                    "shows {} to somebody who may not see them by the",
                ),
            };
            let part = part(concerned, users.compared, USERS_MIN)?;
            rule.is_broken_by(part).then(|| {
                let of = format!("{concerned} of {} users", users.compared);
                let what = what.replace("{}", &of);
                format!("the candidate {what} active pipeline ({})", per_cent(part))
            })
        }
    }
    .map(|figures| {
        let seconds = WINDOW_MS / 1_000;
        let mut reason = format!("within {seconds} s, {figures}: the rule was {rule}");
        if rule.measure == CanaryMeasure::Errors
            && let Some(last) = meter.calls(Side::Candidate).last_failure()
        {
            // The plugin's own text is left out: it may name users, and the reason is kept and
            // shown.
            let _ = write!(reason, "; the last failure was in `{}`", last.plugin);
        }
        reason
    })
}

/// The part `some / all`. `None` if `all` is less than `min`.
fn part(some: u64, all: u64, min: u64) -> Option<f64> {
    (all >= min).then(|| some as f64 / all as f64)
}

fn per_cent(part: f64) -> String {
    format!("{:.2} %", part * 100.0)
}

fn micros(time: Duration) -> String {
    format!("{} µs", time.as_micros())
}

#[cfg(test)]
mod tests {
    use presence_core::comparison::Difference;
    use presence_core::names::Id;
    use presence_core::rules::Failure;

    use super::*;

    fn analysis(rules: &str, meter: &Meter) -> CanaryAnalysis {
        CanaryAnalysis::new(rules.parse().unwrap(), meter, 0)
    }

    fn calls(meter: &Meter, side: Side, count: u64, micros: u64, fails: bool) {
        let failure = fails.then(|| Failure {
            plugin: "contacts".into(),
            error: "trapped: unreachable".into(),
        });
        for _ in 0..count {
            let took = Duration::from_micros(micros);
            meter.calls(side).count(took, failure.as_ref());
        }
    }

    #[test]
    fn failures_end_a_canary_from_a_least_number_of_calls_on() {
        let meter = Meter::default();
        let mut analysis = analysis("errors>10%", &meter);
        calls(&meter, Side::Candidate, CALLS_MIN - 1, 5, true);
        assert_eq!(analysis.evaluate(&meter, 1_000), None);
        calls(&meter, Side::Candidate, 1, 5, false);
        let reason = analysis.evaluate(&meter, 2_000).unwrap();
        assert_eq!(
            reason,
            "within 60 s, 19 of 20 calls of the candidate failed (95.00 %): the rule was \
             errors>10%; the last failure was in `contacts`"
        );
    }

    #[test]
    fn what_was_before_the_window_counts_no_longer() {
        let meter = Meter::default();
        let mut analysis = analysis("errors>50%", &meter);
        calls(&meter, Side::Candidate, 100, 5, true);
        calls(&meter, Side::Candidate, 100, 5, false);
        assert_eq!(analysis.evaluate(&meter, 1_000), None, "no more than half");
        for second in 2..=62 {
            assert_eq!(analysis.evaluate(&meter, second * 1_000), None);
        }
        calls(&meter, Side::Candidate, 100, 5, false);
        assert_eq!(analysis.evaluate(&meter, 63_000), None);
        calls(&meter, Side::Candidate, 101, 5, true);
        let reason = analysis.evaluate(&meter, 64_000).unwrap();
        assert!(reason.contains("101 of 201 calls"), "{reason}");
    }

    #[test]
    fn times_are_compared_once_there_are_enough_of_both() {
        let meter = Meter::default();
        let mut analysis = analysis("p99>2x", &meter);
        calls(&meter, Side::Candidate, TIMED_CALLS_MIN, 500, false);
        calls(&meter, Side::Active, TIMED_CALLS_MIN - 1, 100, false);
        assert_eq!(analysis.evaluate(&meter, 1_000), None);
        calls(&meter, Side::Active, 1, 100, false);
        let reason = analysis.evaluate(&meter, 2_000).unwrap();
        assert!(reason.contains("times as long"), "{reason}");
        assert!(reason.ends_with("p99>2x"), "{reason}");
    }

    #[test]
    fn users_who_are_hidden_or_shown_end_it() {
        for (rule, what) in [
            ("hidden>10%", "hides 2 of 10"),
            ("shown>10%", "shows 2 of 10"),
        ] {
            let meter = Meter::default();
            let mut analysis = analysis(rule, &meter);
            for user in 0..10 {
                let viewers = (user < 2).then_some(99).into_iter().collect();
                let (lost, gained) = match rule.starts_with("hidden") {
                    true => (viewers, Default::default()),
                    false => (Default::default(), viewers),
                };
                assert_eq!(analysis.evaluate(&meter, 1_000), None);
                let difference = Difference {
                    lost,
                    gained,
                    ..Difference::default()
                };
                meter
                    .compared()
                    .count_comparison(500, Id(user), &difference);
            }
            let reason = analysis.evaluate(&meter, 1_000).unwrap();
            assert!(reason.contains(what), "{reason}");
            assert!(reason.contains("(20.00 %)"), "{reason}");
        }
    }
}
