//! Why a viewer can or can't see a user: a decision like any other, with a witness
//! beside it who takes note of what each stage does.

use presence_core::audience::Audience;
use presence_core::names::Id;
use presence_core::rules::{Context, Explanation, Failure, Rendition, StageReport, Turn};

use crate::Pipeline;
use crate::call::Seen;
use crate::slot::Slot;

/// Takes note of what the stages do to a viewer.
pub(crate) struct Witness {
    viewer: Id,
    stages: Vec<StageReport>,
    /// What the stage that is being called has given as its reasons.
    reasons: Vec<String>,
}

impl Witness {
    /// Hears a reason that a component gives.
    pub(crate) fn hear(&mut self, reason: String) {
        self.reasons.push(reason);
    }

    /// A filter was called.
    pub(crate) fn filtered<P, R>(
        &mut self,
        slot: &Slot<P, R>,
        before: &Audience,
        after: &Result<Audience, Failure>,
    ) {
        let after = after.as_ref().map(|after| after.contains(self.viewer));
        self.note(slot, before, after);
    }

    /// The redactor was called.
    pub(crate) fn redacted<P, R>(
        &mut self,
        slot: &Slot<P, R>,
        before: &Audience,
        renditions: &Result<Vec<Rendition>, Failure>,
    ) {
        let shows = |rendition: &Rendition| rendition.audience.contains(self.viewer);
        let after = renditions.as_ref().map(|all| all.iter().any(shows));
        self.note(slot, before, after);
    }

    fn note<P, R>(&mut self, slot: &Slot<P, R>, before: &Audience, after: Result<bool, &Failure>) {
        let turn = match (before.contains(self.viewer), &after) {
            (_, Err(_)) => Turn::Failed,
            (false, Ok(true)) => Turn::Admitted,
            (true, Ok(false)) => Turn::Removed,
            (true, Ok(true)) => Turn::Kept,
            (false, Ok(false)) => Turn::Absent,
        };
        self.stages.push(StageReport {
            reasons: std::mem::take(&mut self.reasons),
            failure: after.err().map(|failure| failure.error.clone()),
            ..report(slot, turn)
        });
    }
}

impl Pipeline {
    /// Decides, and tells what each stage did to a viewer.
    pub(crate) fn explain(&mut self, context: Context<'_>, viewer: Id) -> Explanation {
        let mut seen = Seen {
            witness: Some(Box::new(Witness {
                viewer,
                stages: Vec::new(),
                reasons: Vec::new(),
            })),
            ..Seen::default()
        };
        let decision = self.run(context, &mut seen);
        let asked = seen.witness.map(|witness| witness.stages);
        let asked = asked.unwrap_or_default();
        let filters = self.filters.iter();
        let unreached = filters.map(|slot| report(slot, Turn::NotReached));
        let unreached = unreached.chain(
            self.redactor
                .iter()
                .map(|slot| report(slot, Turn::NotReached)),
        );
        let unreached: Vec<_> = unreached.skip(asked.len()).collect();
        let enrichers = self.enrichers.iter();
        let enrichers = enrichers.map(|slot| report(slot, Turn::NotAsked));
        Explanation {
            stages: enrichers.chain(asked).chain(unreached).collect(),
            decision,
        }
    }
}

fn report<P, R>(slot: &Slot<P, R>, turn: Turn) -> StageReport {
    let plugin = &slot.in_force().plugin;
    StageReport {
        plugin: plugin.name.clone(),
        version: plugin.manifest.version.to_string(),
        sha256: plugin.sha256.clone(),
        role: plugin.manifest.role.as_str(),
        stands_in: slot.has_stand_in(),
        turn,
        reasons: Vec::new(),
        failure: None,
    }
}
