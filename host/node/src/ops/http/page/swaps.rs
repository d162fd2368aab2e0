//! The generations of the pipeline since the start, as noted once a second for the page: what each
//! changed, and since when each stage has been in force.

use std::collections::VecDeque;

use presence_sandbox::Blueprint;
use serde::Serialize;
use serde_json::Value;

/// How many generations are kept.
const KEPT: usize = 20;

/// The last generations, and the current stages.
#[derive(Default)]
pub(super) struct Swaps {
    /// The generations, oldest first.
    swaps: VecDeque<Swap>,
    stages: Vec<StageInForce>,
}

/// A generation.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Swap {
    generation: u64,
    /// When it was first noted, in milliseconds.
    at: u64,
    /// Whether it is the first generation.
    first: bool,
    changes: Vec<Change>,
}

/// A change of a stage by a generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Change {
    plugin: String,
    what: &'static str,
    version: Option<String>,
    sha256: Option<String>,
}

/// A stage, and since when it has been in force unchanged.
#[derive(Clone)]
struct StageInForce {
    stage: Stage,
    since: InForceSince,
}

/// The generation and the time since which a stage has been in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct InForceSince {
    generation: u64,
    at: u64,
}

/// What makes a stage differ from another.
#[derive(Clone, Debug, PartialEq)]
struct Stage {
    plugin: String,
    version: String,
    sha256: String,
    config: Value,
}

impl Swaps {
    /// Notes the pipeline that is in force.
    pub(super) fn note(&mut self, at: u64, generation: u64, blueprint: &Blueprint) {
        if self
            .swaps
            .back()
            .is_some_and(|it| it.generation == generation)
        {
            return;
        }
        let stages = blueprint.stages().map(|stage| Stage {
            plugin: stage.plugin.name.to_string(),
            version: stage.plugin.manifest.version.to_string(),
            sha256: stage.plugin.sha256.to_string(),
            config: stage.config.clone(),
        });
        self.take(at, generation, stages.collect());
    }

    fn take(&mut self, at: u64, generation: u64, stages: Vec<Stage>) {
        let first = self.swaps.is_empty();
        let mut before = std::mem::take(&mut self.stages);
        let order: Vec<_> = before.iter().map(|it| it.stage.clone()).collect();
        let since = InForceSince { generation, at };
        let mut changes = Vec::new();
        // Unchanged stages are matched first: a plugin may occur in the pipeline twice.
        let stayed: Vec<_> = stages
            .iter()
            .map(|stage| {
                let place = before.iter().position(|it| it.stage == *stage)?;
                Some(before.remove(place).since)
            })
            .collect();
        for (stage, stayed) in stages.into_iter().zip(stayed) {
            if stayed.is_none() {
                let old = before.iter().position(|it| it.stage.plugin == stage.plugin);
                let old = old.map(|place| before.remove(place).stage);
                let what = match old {
                    None => "added",
                    Some(old) if old.sha256 == stage.sha256 => "configured anew",
                    Some(_) => "replaced",
                };
                changes.push(Change {
                    plugin: stage.plugin.clone(),
                    what,
                    version: Some(stage.version.clone()),
                    sha256: Some(stage.sha256.clone()),
                });
            }
            self.stages.push(StageInForce {
                stage,
                since: stayed.unwrap_or(since),
            });
        }
        changes.extend(before.into_iter().map(|gone| Change {
            plugin: gone.stage.plugin,
            what: "removed",
            version: None,
            sha256: None,
        }));
        let is_reordered = !first && !self.stages.iter().map(|it| &it.stage).eq(&order);
        if changes.is_empty() && is_reordered {
            changes.push(Change {
                plugin: "the stages".into(),
                what: "stand in another order",
                version: None,
                sha256: None,
            });
        }
        if self.swaps.len() == KEPT {
            self.swaps.pop_front();
        }
        self.swaps.push_back(Swap {
            generation,
            at,
            first,
            changes,
        });
    }

    /// The generations, the oldest first.
    pub(super) fn all(&self) -> &VecDeque<Swap> {
        &self.swaps
    }

    /// Since when each stage has been in force; empty if `generation` isn't the last one that was
    /// noted.
    pub(super) fn since(&self, generation: u64) -> Vec<InForceSince> {
        match self.swaps.back() {
            Some(swap) if swap.generation == generation => {
                self.stages.iter().map(|it| it.since).collect()
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stage(plugin: &str, sha256: &str, config: Value) -> Stage {
        Stage {
            plugin: plugin.into(),
            version: "1.0.0".into(),
            sha256: sha256.into(),
            config,
        }
    }

    fn changes(swaps: &Swaps) -> Vec<(&str, &str)> {
        let last = swaps.swaps.back().unwrap().changes.iter();
        last.map(|it| (&*it.plugin, it.what)).collect()
    }

    #[test]
    fn each_generation_says_what_it_changed_and_each_stage_since_when_it_is_there() {
        let mut swaps = Swaps::default();
        let [a, b] = [stage("a", "1", json!({})), stage("b", "1", json!({}))];
        swaps.take(10, 1, vec![a.clone(), b.clone()]);
        assert_eq!(changes(&swaps), [("a", "added"), ("b", "added")]);
        let b2 = stage("b", "2", json!({}));
        swaps.take(20, 2, vec![a.clone(), b2.clone()]);
        assert_eq!(changes(&swaps), [("b", "replaced")]);
        let since = swaps.since(2);
        assert_eq!([since[0].generation, since[1].generation], [1, 2]);
        assert!(swaps.since(3).is_empty(), "it has not been seen yet");
        let a2 = stage("a", "1", json!({"x": 1}));
        swaps.take(30, 3, vec![a2.clone(), b2.clone()]);
        assert_eq!(changes(&swaps), [("a", "configured anew")]);
        swaps.take(40, 4, vec![b2.clone(), a2.clone()]);
        assert_eq!(changes(&swaps), [("the stages", "stand in another order")]);
        swaps.take(50, 5, vec![b2, a2.clone(), a2.clone()]);
        assert_eq!(changes(&swaps), [("a", "added")], "a second time");
        swaps.take(60, 6, vec![a2]);
        assert_eq!(changes(&swaps), [("b", "removed"), ("a", "removed")]);
        for generation in 7..100 {
            swaps.take(70, generation, vec![]);
        }
        assert_eq!(swaps.all().len(), KEPT);
    }
}
