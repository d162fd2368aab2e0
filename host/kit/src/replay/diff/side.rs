//! One of the two runs: what viewers are told in it, per stay.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use presence_config::Config;
use presence_config::capture::Recorded;
use presence_core::names::{Id, Names};
use presence_core::publish::{Publication, Subject};
use presence_core::rules::StageReport;
use presence_core::{Output, message};
use presence_sandbox::{Blueprint, Pipeline};
use roaring::RoaringBitmap;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::online_period::{Delivery, OnlinePeriod};
use crate::replay::replayer::{ReplayInputs, Replayer};

/// Identifies a stay: when it began, the user, and its number among the user's stays. It is the
/// same in both runs, since both have the same connections and statements.
pub(super) type Key = (u64, Id, u64);

pub(super) struct Side {
    replayer: Replayer,
    /// A second instance of the pipeline for explanations, so that their failures don't count as
    /// the run's.
    explaining: Pipeline,
    log: Log,
}

/// What has been told in the run.
pub(super) struct Log {
    /// The names of users and viewers; both runs share them.
    names: Arc<Names>,
    /// The current stay of each user who is online.
    pub(super) open: HashMap<Id, (Key, OnlinePeriod)>,
    /// The stays that have ended since this was last taken.
    pub(super) ended: Vec<(Key, OnlinePeriod)>,
    /// The users about whom something was told since this was last taken.
    pub(super) touched: BTreeSet<Id>,
    begun: HashMap<Id, u64>,
    /// Events that became dead letters because a plugin failed.
    pub(super) failures: u64,
}

/// An event on the subject of all events.
#[derive(Deserialize)]
struct Broadcast {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "userId")]
    user: String,
}

/// An event for viewers.
#[derive(Deserialize)]
struct Filtered {
    #[serde(rename = "type")]
    kind: Box<str>,
    #[serde(rename = "userId")]
    user: String,
    #[serde(rename = "lastSeen")]
    last_seen: Option<u64>,
    #[serde(rename = "visibleTo")]
    viewers: Vec<String>,
    metadata: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct DeadLetter {
    reason: String,
}

impl Side {
    pub(super) fn new(
        config: &Config,
        blueprint: &Blueprint,
        inputs: &ReplayInputs,
        names: &Arc<Names>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            replayer: Replayer::new(config, blueprint, inputs)?,
            explaining: blueprint.instantiate()?,
            log: Log {
                names: Arc::clone(names),
                open: HashMap::new(),
                ended: Vec::new(),
                touched: BTreeSet::new(),
                begun: HashMap::new(),
                failures: 0,
            },
        })
    }

    pub(super) fn log(&mut self) -> &mut Log {
        &mut self.log
    }

    pub(super) fn play(&mut self, recorded: &Recorded) -> anyhow::Result<()> {
        let log = &mut self.log;
        self.replayer
            .play(recorded, |at, outputs| log.take(at, &outputs))
    }

    /// Lets time go on until nothing is due, and ends the stays that are left.
    pub(super) fn settle(&mut self) -> anyhow::Result<()> {
        let log = &mut self.log;
        self.replayer.settle(|at, outputs| log.take(at, &outputs))?;
        log.ended.extend(log.open.drain().map(|(_, period)| period));
        Ok(())
    }

    /// What each stage does to a viewer.
    pub(super) fn stages(&mut self, viewer: &str, user: &str) -> Vec<StageReport> {
        let Replayer { now, shard, .. } = &mut self.replayer;
        let rules = &mut self.explaining;
        let found = shard.explain(*now, viewer, user, rules, &mut Vec::new());
        found.stages
    }
}

impl Log {
    /// Takes in the outputs of one step.
    fn take(&mut self, at: u64, outputs: &[Output]) -> anyhow::Result<()> {
        let mut gone = Vec::new();
        for output in outputs {
            let Output::Publish(Publication { subject, body, .. }) = output else {
                continue;
            };
            match subject {
                Subject::Events => {
                    let event: Broadcast = serde_json::from_slice(body)?;
                    let user = self.names.intern(&event.user);
                    if event.kind == "user_offline" {
                        gone.push(user);
                    } else {
                        self.begin(at, user);
                    }
                }
                Subject::FilteredOnline | Subject::FilteredOffline | Subject::FilteredUpdated => {
                    self.add(at, serde_json::from_slice(body)?);
                }
                Subject::DeadLetters => {
                    let letter: DeadLetter = serde_json::from_slice(body)?;
                    let failed = letter.reason == message::Cause::PluginFailed.as_str();
                    self.failures += u64::from(failed);
                }
                Subject::Online | Subject::Offline | Subject::Updated => {}
            }
        }
        // Last, since viewers are told of the offline in the same step.
        let ended = gone.into_iter().filter_map(|user| self.open.remove(&user));
        self.ended.extend(ended);
        Ok(())
    }

    fn begin(&mut self, at: u64, user: Id) {
        let begun = &mut self.begun;
        self.open.entry(user).or_insert_with(|| {
            let number = begun.entry(user).or_default();
            *number += 1;
            ((at, user, *number), OnlinePeriod::default())
        });
    }

    fn add(&mut self, at: u64, filtered: Filtered) {
        let user = self.names.intern(&filtered.user);
        let viewers = filtered.viewers.iter();
        let viewers = viewers.map(|viewer| self.names.intern(viewer).0);
        let viewers: RoaringBitmap = viewers.collect();
        let told = Delivery {
            at,
            kind: filtered.kind,
            last_seen: filtered.last_seen,
            metadata: filtered.metadata.map(|metadata| metadata.get().into()),
        };
        if let Some((_, period)) = self.open.get_mut(&user) {
            period.add(viewers, &Arc::new(told));
            self.touched.insert(user);
        }
    }
}
