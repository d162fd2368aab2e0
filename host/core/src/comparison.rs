//! The comparison of two pipelines: which viewers gain or lose sight of a user, and which stage
//! causes the difference.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;

use crate::names::Id;
use crate::rules::{StageOutcome, StageReport};
use crate::verdicts::Verdict;

/// The difference between two verdicts on the same event.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// Viewers whom only the new verdict admits.
    pub gained: RoaringBitmap,
    /// Viewers whom only the old verdict admits.
    pub lost: RoaringBitmap,
    /// Viewers whom both verdicts admit, but show different things.
    pub shown_differently: RoaringBitmap,
}

impl Difference {
    /// How the new verdict differs from the old one.
    pub fn between(old: &Verdict, new: &Verdict) -> Self {
        let mut shown_differently = RoaringBitmap::new();
        for before in &old.renditions {
            let others = new.renditions.iter();
            let others = others
                .filter(|after| after.keys != before.keys || after.last_seen != before.last_seen);
            for after in others {
                shown_differently |= before.audience.intersection(&after.audience).bitmap();
            }
        }
        Self {
            gained: new.audience.difference(&old.audience).bitmap(),
            lost: old.audience.difference(&new.audience).bitmap(),
            shown_differently,
        }
    }

    /// Whether the verdicts don't differ.
    pub fn is_empty(&self) -> bool {
        self.gained.is_empty() && self.lost.is_empty() && self.shown_differently.is_empty()
    }
}

/// Pairs of a viewer and a user, by user.
#[derive(Debug, Default)]
pub struct Pairs {
    users: BTreeMap<Id, RoaringBitmap>,
    pairs: u64,
}

/// Numbers of pairs, users and viewers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PairCount {
    /// The number of pairs.
    pub pairs: u64,
    /// The number of different users among them.
    pub users: u64,
    /// The number of different viewers among them.
    pub viewers: u64,
}

impl Pairs {
    /// Adds viewers of a user.
    pub fn add(&mut self, user: Id, viewers: &RoaringBitmap) {
        if !viewers.is_empty() {
            let of_user = self.users.entry(user).or_default();
            let before = of_user.len();
            *of_user |= viewers;
            self.pairs += of_user.len() - before;
        }
    }

    /// The number of pairs.
    pub fn len(&self) -> u64 {
        self.pairs
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.pairs == 0
    }

    /// The numbers of pairs, users and viewers.
    pub fn count(&self) -> PairCount {
        let mut all = RoaringBitmap::new();
        for viewers in self.users.values() {
            all |= viewers;
        }
        PairCount {
            pairs: self.pairs,
            users: self.users.len() as u64,
            viewers: all.len(),
        }
    }

    /// All ids in here, as numbers.
    pub fn ids(&self) -> RoaringBitmap {
        let mut ids: RoaringBitmap = self.users.keys().map(|user| user.0).collect();
        for viewers in self.users.values() {
            ids |= viewers;
        }
        ids
    }
}

/// The first stage of the new pipeline that treats a viewer differently than in the old one,
/// preceded by the same stage of the old pipeline. `None` as the old stage: the old pipeline lacks
/// it.
pub fn first_difference<'a>(
    old: &'a [StageReport],
    new: &'a [StageReport],
) -> Option<(Option<&'a StageReport>, &'a StageReport)> {
    let pairs = new.iter().enumerate().map(|(place, stage)| {
        // A plugin may occur more than once in a chain.
        let is_same = |other: &&StageReport| other.plugin == stage.plugin;
        let nth = new.iter().take(place).filter(is_same).count();
        (old.iter().filter(is_same).nth(nth), stage)
    });
    let mut differing = pairs.filter(|(old, new)| match old {
        Some(old) => old.outcome != new.outcome || old.failure != new.failure,
        None => !matches!(
            new.outcome,
            StageOutcome::Kept | StageOutcome::Absent | StageOutcome::NotAsked
        ),
    });
    differing.next()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::audience::Audience;
    use crate::rules::Rendition;

    fn verdict(parts: &[(&[u32], &[&str])]) -> Verdict {
        let rendition = |(viewers, keys): &(&[u32], &[&str])| Rendition {
            audience: viewers.iter().copied().map(Id).collect::<Audience>(),
            keys: keys.iter().map(|key| (*key).into()).collect(),
            last_seen: true,
        };
        Verdict::new(Id(9), parts.iter().map(rendition).collect())
    }

    #[test]
    fn who_gains_who_loses_and_who_is_shown_something_else() {
        let old = verdict(&[(&[1, 2, 3], &["device"]), (&[4], &[])]);
        let new = verdict(&[(&[2, 4, 5], &["device"]), (&[3], &[])]);
        let difference = Difference::between(&old, &new);
        assert_eq!(difference.lost, RoaringBitmap::from([1]));
        assert_eq!(difference.gained, RoaringBitmap::from([5]));
        assert_eq!(difference.shown_differently, RoaringBitmap::from([3, 4]));
        assert!(Difference::between(&old, &old).is_empty());
    }

    #[test]
    fn pairs_are_counted_once() {
        let mut pairs = Pairs::default();
        pairs.add(Id(1), &RoaringBitmap::from([2, 3]));
        pairs.add(Id(1), &RoaringBitmap::from([3, 4]));
        pairs.add(Id(5), &RoaringBitmap::from([4]));
        pairs.add(Id(6), &RoaringBitmap::new());
        let count = PairCount {
            pairs: 4,
            users: 2,
            viewers: 3,
        };
        assert_eq!((pairs.count(), pairs.len()), (count, 4));
        assert_eq!(pairs.ids(), RoaringBitmap::from([1, 2, 3, 4, 5]));
    }

    fn stage(plugin: &str, outcome: StageOutcome) -> StageReport {
        StageReport {
            plugin: Arc::from(plugin),
            version: "1.0.0".into(),
            sha256: Arc::from(""),
            role: "filter",
            is_fallback: false,
            outcome,
            reasons: Vec::new(),
            viewer_reasons: Vec::new(),
            failure: None,
        }
    }

    #[test]
    fn the_first_stage_that_does_something_else_parts_them() {
        use StageOutcome::{Absent, Admitted, Kept, Removed};
        let old = [stage("a", Admitted), stage("b", Kept), stage("b", Kept)];
        let new = [stage("a", Admitted), stage("b", Kept), stage("b", Removed)];
        let (before, after) = first_difference(&old, &new).unwrap();
        assert_eq!(before.unwrap().outcome, Kept);
        assert_eq!(after.outcome, Removed);
        assert!(first_difference(&old, &old).is_none());
        // A stage that the old pipeline lacks, and that does nothing, is no difference.
        let more = [
            stage("a", Admitted),
            stage("c", Absent),
            stage("c", Removed),
        ];
        let (before, after) = first_difference(&old, &more).unwrap();
        assert!(before.is_none());
        assert_eq!((&*after.plugin, after.outcome), ("c", Removed));
    }
}
