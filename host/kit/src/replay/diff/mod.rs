//! How another plugin would change the result: plays the same input with the old and the new
//! plugin, and finds who is told about whom in only one of the runs.
//!
//! The runs are compared stay by stay: a stay is the time between a user's coming online and going
//! offline. Both runs have the same stays, since plugins don't affect them. A viewer who is told
//! about a stay only in the new run gains sight of the user; one who is told only in the old run
//! loses it; one who is told in both, but something else or at another time, is told otherwise.

mod online_period;
mod report;
mod side;
mod tally;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use presence_config::Config;
use presence_config::capture::Recorded;
use presence_core::comparison::first_difference;
use presence_core::names::{Id, Names};
use presence_core::rules::StageReport;
use presence_sandbox::Blueprint;

use self::online_period::{Difference, OnlinePeriod};
use self::report::{Report, Version};
use self::side::{Key, Side};
use self::tally::Tally;
use crate::replay::replayer::ReplayInputs;

/// Two runs, side by side.
pub(super) struct Diff {
    versions: [Version; 2],
    names: Arc<Names>,
    old: Side,
    new: Side,
    /// Stays that have ended in the old run, and not yet in the new one.
    waiting: BTreeMap<Key, OnlinePeriod>,
    tally: Tally,
    examples: Vec<Example>,
    examples_max: usize,
    /// The index of the example for each stay that hasn't ended yet.
    noticed: HashMap<Key, usize>,
}

/// A stay in which the runs differ.
struct Example {
    key: Key,
    difference: Difference,
    whys: Vec<StageDifference>,
}

/// The first stage that acts differently in the two runs, for one viewer.
struct StageDifference {
    viewer: Id,
    /// The stage in the old and in the new run. `None` if the run has no such stage.
    stages: [Option<StageReport>; 2],
}

impl Diff {
    /// Two runs that differ in a plugin. The report shows at most `examples_max` examples.
    pub(super) fn new(
        config: &Config,
        plugin: &str,
        [old, new]: [&Blueprint; 2],
        inputs: &ReplayInputs,
        examples_max: usize,
    ) -> anyhow::Result<Self> {
        let names = Arc::new(Names::unbounded());
        Ok(Self {
            versions: [old, new].map(|blueprint| Version::of(plugin, blueprint)),
            old: Side::new(config, old, inputs, &names)?,
            new: Side::new(config, new, inputs, &names)?,
            names,
            waiting: BTreeMap::new(),
            tally: Tally::default(),
            examples: Vec::new(),
            examples_max,
            noticed: HashMap::new(),
        })
    }

    /// Plays a message in both runs.
    pub(super) fn play(&mut self, recorded: &Recorded) -> anyhow::Result<()> {
        self.tally.message(recorded.at);
        self.old.play(recorded)?;
        self.new.play(recorded)?;
        self.end_periods();
        self.notice();
        Ok(())
    }

    /// Lets time go on until nothing is due, and makes the report.
    pub(super) fn finish(mut self) -> anyhow::Result<Report> {
        self.old.settle()?;
        self.new.settle()?;
        self.end_periods();
        for (key, period) in std::mem::take(&mut self.waiting) {
            self.end(key, &period, &OnlinePeriod::default());
        }
        self.examples.retain(|it| !it.difference.is_empty());
        self.examples.sort_by_key(|it| it.key);
        Ok(Report {
            failures: [self.old.log().failures, self.new.log().failures],
            versions: self.versions,
            names: self.names,
            tally: self.tally,
            examples: self.examples,
        })
    }

    /// Compares the stays that have ended in both runs.
    fn end_periods(&mut self) {
        self.waiting.extend(self.old.log().ended.drain(..));
        let mut ended = std::mem::take(&mut self.new.log().ended);
        ended.sort_unstable_by_key(|(key, _)| *key);
        for (key, new) in ended {
            let old = self.waiting.remove(&key).unwrap_or_default();
            self.end(key, &old, &new);
        }
    }

    fn end(&mut self, key: Key, old: &OnlinePeriod, new: &OnlinePeriod) {
        let difference = OnlinePeriod::difference(old, new);
        self.tally.period(key.1, &difference);
        let noticed = self.noticed.remove(&key);
        match noticed.and_then(|place| self.examples.get_mut(place)) {
            Some(example) => example.difference = difference,
            None => self.example(key, difference, Vec::new()),
        }
    }

    fn example(&mut self, key: Key, difference: Difference, whys: Vec<StageDifference>) {
        if self.examples.len() < self.examples_max && !difference.is_empty() {
            self.examples.push(Example {
                key,
                difference,
                whys,
            });
        }
    }

    /// Looks for stays that begin to differ, until there are enough examples. The reason for a
    /// difference can only be asked while the stay goes on.
    fn notice(&mut self) {
        let mut touched = std::mem::take(&mut self.old.log().touched);
        touched.append(&mut self.new.log().touched);
        for user in touched {
            if self.examples.len() >= self.examples_max {
                return;
            }
            let (old, new) = (
                self.old.log().open.get(&user),
                self.new.log().open.get(&user),
            );
            let (Some((key, old)), Some((_, new))) = (old, new) else {
                continue;
            };
            let (key, difference) = (*key, OnlinePeriod::difference(old, new));
            if difference.is_empty() || self.noticed.contains_key(&key) {
                continue;
            }
            let sample = difference.sample.as_ref().map(|(viewer, _)| viewer.0);
            let viewers = [difference.lost.min(), difference.gained.min(), sample];
            let viewers = viewers.into_iter().flatten().map(Id);
            let whys = viewers.filter_map(|viewer| self.why(viewer, user));
            let whys = whys.collect();
            self.noticed.insert(key, self.examples.len());
            self.example(key, difference, whys);
        }
    }

    fn why(&mut self, viewer: Id, user: Id) -> Option<StageDifference> {
        let name = |id| self.names.name(id);
        let (viewer_name, user_name) = (name(viewer)?, name(user)?);
        let (viewer_name, user_name) = (viewer_name.as_str(), user_name.as_str());
        let old = self.old.stages(viewer_name, user_name);
        let new = self.new.stages(viewer_name, user_name);
        let (old, new) = first_difference(&old, &new)?;
        let stages = [old.cloned(), Some(new.clone())];
        Some(StageDifference { viewer, stages })
    }
}
