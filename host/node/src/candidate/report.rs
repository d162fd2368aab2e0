//! The report on a pipeline beside the active one: the result of a shadow, or the progress of a
//! canary.

use std::sync::Arc;
use std::time::Duration;

use presence_config::digest::Digest;
use presence_core::body::explain::stage;
use presence_core::comparison::{Difference, PairCount};
use presence_core::names::{Id, Names};
use presence_core::rules::{Failure, StageReport};
use roaring::RoaringBitmap;
use serde::Serialize;
use serde_json::{Value, json};

use super::CandidatePipeline;
use super::meter::{Meter, PipelineTotals};

/// How many viewers of each kind an example names.
const VIEWERS_MAX: usize = 10;

/// The report. Times are in microseconds.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    decisions: Decisions,
    lost: PairCount,
    gained: PairCount,
    otherwise: PairCount,
    /// Differences whose pairs weren't kept, because there were too many.
    left_out: u64,
    active: Cost,
    candidate: Cost,
    #[serde(skip_serializing_if = "Option::is_none")]
    examples: Option<Vec<Example>>,
}

/// A running shadow, or the last one.
#[derive(Debug)]
pub(crate) struct ShadowRun {
    pub(crate) plugin: String,
    pub(crate) digest: Digest,
    /// When it began, in milliseconds since the Unix epoch.
    pub(crate) from: u64,
    pub(crate) lasts: Duration,
    pub(crate) meter: Arc<Meter>,
}

impl ShadowRun {
    /// The shadow as JSON, with its report.
    pub(crate) fn to_json(&self, running: Option<&CandidatePipeline>, report: &Report) -> Value {
        let is_it = |candidate: &CandidatePipeline| Arc::ptr_eq(&candidate.meter, &self.meter);
        json!({
            "plugin": self.plugin,
            "digest": self.digest,
            "from": self.from,
            "forMs": u64::try_from(self.lasts.as_millis()).unwrap_or(u64::MAX),
            "isOver": !running.is_some_and(is_it),
            "report": report,
        })
    }
}

/// The counts of decisions.
#[derive(Clone, Copy, Debug, Serialize)]
struct Decisions {
    compared: u64,
    same: u64,
    different: u64,
    /// Not compared, because there was no time.
    skipped: u64,
    /// Not compared, because an answer of the directory was missing.
    unanswered: u64,
}

/// The time and fuel that the decisions of one pipeline took.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cost {
    calls: u64,
    failures: u64,
    last_failure: Option<String>,
    fuel_mean: u64,
    fuel_max: u64,
    p50_micros: Option<f64>,
    p99_micros: Option<f64>,
}

/// An event on which the pipelines differ.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Example {
    user_id: String,
    lost: Viewers,
    gained: Viewers,
    otherwise: Viewers,
    why: Vec<StageDifference>,
}

/// Some viewers, and how many more there are.
#[derive(Clone, Debug, Serialize)]
struct Viewers {
    viewers: Vec<String>,
    more: u64,
}

/// The stage where the pipelines part for a viewer, with its reasons.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StageDifference {
    viewer_id: String,
    active: Option<Value>,
    candidate: Value,
}

impl StageDifference {
    pub(crate) fn new(
        viewer: &str,
        (active, candidate): (Option<&StageReport>, &StageReport),
    ) -> Self {
        Self {
            viewer_id: viewer.into(),
            active: active.map(stage),
            candidate: stage(candidate),
        }
    }
}

impl Example {
    pub(crate) fn new(
        user: &str,
        difference: &Difference,
        names: &Names,
        why: Vec<StageDifference>,
    ) -> Self {
        Self {
            user_id: user.into(),
            lost: Viewers::of(&difference.lost, names),
            gained: Viewers::of(&difference.gained, names),
            otherwise: Viewers::of(&difference.shown_differently, names),
            why,
        }
    }
}

impl Viewers {
    fn of(ids: &RoaringBitmap, names: &Names) -> Self {
        let viewers = ids.iter().take(VIEWERS_MAX);
        let viewers = viewers.filter_map(|id| names.name(Id(id)));
        let viewers: Vec<_> = viewers.map(|name| name.as_str().to_owned()).collect();
        Self {
            more: ids.len() - viewers.len() as u64,
            viewers,
        }
    }
}

impl Report {
    /// The report so far, without examples and errors of plugins. Those may name users and viewers,
    /// which not everyone with access to a node's health may see.
    pub(crate) fn figures(meter: &Meter) -> Self {
        let mut report = Self::of(meter);
        report.examples = None;
        for cost in [&mut report.active, &mut report.candidate] {
            cost.last_failure = None;
        }
        report
    }

    /// The report so far, in full.
    pub(crate) fn of(meter: &Meter) -> Self {
        let skipped = meter.skipped();
        let compared = meter.compared();
        Self {
            decisions: Decisions {
                compared: compared.decisions,
                same: compared.same,
                different: compared.decisions - compared.same,
                skipped,
                unanswered: compared.unanswered,
            },
            lost: compared.lost.count(),
            gained: compared.gained.count(),
            otherwise: compared.otherwise.count(),
            left_out: compared.left_out,
            active: Cost::of(&compared.active),
            candidate: Cost::of(&compared.candidate),
            examples: Some(compared.examples.clone()),
        }
    }
}

impl Cost {
    fn of(tried: &PipelineTotals) -> Self {
        let counts = tried.latency.counts();
        let micros = |time: Duration| time.as_nanos() as f64 / 1_000.0;
        let last = |failure: &Failure| format!("`{}` {}", failure.plugin, failure.error);
        Self {
            calls: tried.calls,
            failures: tried.failures,
            last_failure: tried.last_failure.as_ref().map(last),
            fuel_mean: tried.fuel / tried.calls.max(1),
            fuel_max: tried.fuel_max,
            p50_micros: counts.percentile(50).map(micros),
            p99_micros: counts.percentile(99).map(micros),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_say_nothing_that_a_plugin_says() {
        let meter = Meter::default();
        let failure = Failure {
            plugin: "contacts".into(),
            error: "no room for ada".into(),
        };
        let took = Duration::from_micros(5);
        for tried in [0, 1] {
            let mut compared = meter.compared();
            let compared = &mut *compared;
            let tried = [&mut compared.active, &mut compared.candidate]
                .into_iter()
                .nth(tried);
            tried.unwrap().count(took, 7, Some(&failure));
        }
        let text = |report: &Report| serde_json::to_string(report).unwrap();
        assert_eq!(text(&Report::of(&meter)).matches("ada").count(), 2);
        assert!(!text(&Report::figures(&meter)).contains("ada"));
    }
}
