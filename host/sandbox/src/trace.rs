//! A trace of a decision: what each stage did to one viewer, and why.

use presence_core::audience::Audience;
use presence_core::names::Id;
use presence_core::rules::{Failure, Rendition, StageOutcome, StageReport};

/// Records what the stages do to one viewer.
pub(crate) struct TraceRecorder {
    viewer: Id,
    stages: Vec<StageReport>,
    /// The reasons that the stage in progress has given about the event.
    reasons: Vec<String>,
    /// The reasons that it has given about the viewer alone.
    viewer_reasons: Vec<String>,
}

impl TraceRecorder {
    pub(crate) fn new(viewer: Id) -> Self {
        Self {
            viewer,
            stages: Vec::new(),
            reasons: Vec::new(),
            viewer_reasons: Vec::new(),
        }
    }

    /// Records a reason. It is about these viewers alone, or about the event if `viewers` is
    /// `None`.
    pub(crate) fn add_reason(&mut self, viewers: Option<&Audience>, reason: String) {
        match viewers {
            None => self.reasons.push(reason),
            Some(viewers) if viewers.contains(self.viewer) => self.viewer_reasons.push(reason),
            Some(_) => {}
        }
    }

    /// Records the outcome of a filter.
    pub(crate) fn add_filter(
        &mut self,
        stage: StageReport,
        before: &Audience,
        after: &Result<Audience, Failure>,
    ) {
        let after = after.as_ref().map(|after| after.contains(self.viewer));
        self.add_stage(stage, before, after);
    }

    /// Records the outcome of the redactor.
    pub(crate) fn add_redactor(
        &mut self,
        stage: StageReport,
        before: &Audience,
        renditions: &Result<Vec<Rendition>, Failure>,
    ) {
        let shows = |rendition: &Rendition| rendition.audience.contains(self.viewer);
        let after = renditions.as_ref().map(|all| all.iter().any(shows));
        self.add_stage(stage, before, after);
    }

    /// The reports of the stages that were called, in order.
    pub(crate) fn into_stages(self) -> Vec<StageReport> {
        self.stages
    }

    fn add_stage(&mut self, stage: StageReport, before: &Audience, after: Result<bool, &Failure>) {
        let outcome = match (before.contains(self.viewer), &after) {
            (_, Err(_)) => StageOutcome::Failed,
            (false, Ok(true)) => StageOutcome::Admitted,
            (true, Ok(false)) => StageOutcome::Removed,
            (true, Ok(true)) => StageOutcome::Kept,
            (false, Ok(false)) => StageOutcome::Absent,
        };
        self.stages.push(StageReport {
            outcome,
            reasons: std::mem::take(&mut self.reasons),
            viewer_reasons: std::mem::take(&mut self.viewer_reasons),
            failure: after.err().map(|failure| failure.error.clone()),
            ..stage
        });
    }
}
