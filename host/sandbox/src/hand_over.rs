//! Hands the state of stateful enrichers from one pipeline to another.

use crate::Stage;
use crate::pipeline::Enricher;

/// Hands the state of each old enricher to the enricher that replaces it: one that does the same if
/// there is one, or else one with the same name and role.
pub(crate) fn take_over(after: &mut [Enricher], before: &mut [Enricher]) {
    let mut before: Vec<_> = before.iter_mut().collect();
    let mut after: Vec<_> = after.iter_mut().collect();
    // A plugin may be in a chain more than once, so stages that do the same come first.
    for fits in [
        Stage::is_same as fn(&Stage, &Stage) -> bool,
        Stage::can_replace,
    ] {
        after.retain_mut(|enricher| {
            let mut stages = before.iter().map(|before| &before.stage);
            let place = stages.position(|stage| fits(&enricher.stage, stage));
            if let Some(place) = place {
                enricher.take_over(before.remove(place));
            }
            place.is_none()
        });
    }
}

/// Copies the state of the enrichers of a pipeline that keeps running. Enrichers that do the same
/// in both get no copy: they share one state.
pub(crate) fn copy(after: &mut [Enricher], active: &mut [Enricher]) {
    let mut active: Vec<_> = active.iter_mut().collect();
    let mut after: Vec<_> = after.iter_mut().collect();
    let stages = |active: &[&mut Enricher], fits: &dyn Fn(&Stage) -> bool| {
        active.iter().position(|it| fits(&it.stage))
    };
    after.retain(|enricher| {
        let same = stages(&active, &|stage| enricher.stage.is_same(stage));
        same.map(|place| active.remove(place)).is_none()
    });
    for enricher in after {
        if let Some(place) = stages(&active, &|stage| enricher.stage.can_replace(stage)) {
            enricher.take_over(active.remove(place));
        }
    }
}

/// Swaps the instances of the stateful enrichers that do the same in both pipelines.
pub(crate) fn exchange_same(these: &mut [Enricher], others: &mut [Enricher]) {
    let mut others: Vec<_> = others.iter_mut().collect();
    for enricher in these.iter_mut().filter(|it| it.stage.plugin.keeps_state) {
        let mut stages = others.iter().map(|other| &other.stage);
        let place = stages.position(|stage| enricher.stage.is_same(stage));
        if let Some(place) = place {
            enricher.exchange_instance(others.remove(place));
        }
    }
}
