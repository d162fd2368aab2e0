//! A pipeline that runs beside the active one: a canary, which decides on a share of the users,
//! or a shadow, which decides on nobody.
//!
//! What each would decide in the other's place is found out in the spare time of the pool's threads
//! ([`pool`](crate::pool)), and counted by the [`Meter`]. A canary has rules of its own
//! ([`canary`], [`analysis`]), which end it.

pub(crate) mod analysis;
pub(crate) mod canary;
pub(crate) mod latency;
pub(crate) mod meter;
pub(crate) mod report;

use std::sync::Arc;

use presence_config::Stage;
use presence_core::share::{Assignment, Share};

use crate::pool::Generation;
use meter::Meter;

/// The purpose of a pipeline beside the active one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It decides on a share of the users.
    Canary(Share),
    /// It decides on nobody. What it would decide is compared.
    Shadow,
}

/// A pipeline that runs beside the active one.
#[derive(Clone)]
pub(crate) struct CandidatePipeline {
    pub(crate) generation: Generation,
    pub(crate) mode: Mode,
    pub(crate) meter: Arc<Meter>,
    /// The stages that it was loaded from.
    pub(crate) chain: Arc<[Stage]>,
}

/// The pipelines of a tenant.
#[derive(Clone)]
pub(crate) struct Pipelines {
    pub(crate) active: Generation,
    pub(crate) candidate: Option<CandidatePipeline>,
}

impl Pipelines {
    /// A pipeline that decides on everyone.
    pub(crate) fn alone(active: Generation) -> Self {
        Self {
            active,
            candidate: None,
        }
    }

    /// Which pipeline decides on which users, by generation numbers.
    pub(crate) fn assignment(&self) -> Assignment {
        let candidate = self
            .candidate
            .as_ref()
            .and_then(|candidate| match candidate.mode {
                Mode::Canary(share) => Some((candidate.generation.number, share)),
                Mode::Shadow => None,
            });
        Assignment {
            active: self.active.number,
            candidate,
        }
    }

    /// Whether the enrichers change each user's events in the same way as with other pipelines.
    pub(crate) fn has_same_enrichers(&self, other: &Self) -> bool {
        let same = |a: &Generation, b: &Generation| a.blueprint.has_same_enrichers(&b.blueprint);
        let (mine, theirs) = (self.for_canary_users(), other.for_canary_users());
        let has_same_share = self.assignment().candidate.map(|it| it.1)
            == other.assignment().candidate.map(|it| it.1);
        same(&self.active, &other.active)
            && same(mine, theirs)
            && (has_same_share || same(&self.active, mine))
    }

    /// The pipeline that decides on users in a canary's share. Without a canary, the active one.
    fn for_canary_users(&self) -> &Generation {
        let candidate = self.candidate.as_ref();
        let canary = candidate.filter(|candidate| matches!(candidate.mode, Mode::Canary(_)));
        canary.map_or(&self.active, |canary| &canary.generation)
    }
}
