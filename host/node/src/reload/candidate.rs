//! Starts and ends canaries and shadows. Revisions of the plugin store start a canary and change
//! its share. A canary is ended by an operator or by its own rules.
//!
//! A canary that breaks a rule is taken out at once, whether the store is reachable or not. Its end
//! is then written to the store as the next revision.

mod change;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use presence_config::Stage;
use presence_config::digest::Digest;
use presence_config::revision::{Candidate, Revision};
use presence_rules::loader::Loader;
use presence_rules::store_cache::{SavedCanary, StoreCache};
use presence_sandbox::Blueprint;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Reload;
use super::store::KEEP;
use crate::candidate::canary::{CanaryMonitor, CanaryPolicy, End};
use crate::candidate::report::ShadowRun;
use crate::candidate::{CandidatePipeline, Mode, Pipelines};
use crate::clock;
use crate::link::alerts::Alerts;
use crate::store::state::StoreState;
use crate::store::{SCANNED_MAX, Store, WriteResult, next_number};
use crate::tasks::blocking;
pub(crate) use change::PipelineChange;
use change::{ActiveChoice, CanaryChoice};

/// The delay before the end of a canary is written again.
const AGAIN: Duration = Duration::from_secs(2);

/// How often the time for which a canary has been watched is written to disk, in milliseconds of
/// that time.
const SAVE_EVERY_MS: u64 = 10_000;

/// An order about shadows.
pub(crate) enum ShadowOrder {
    Begin(Box<Shadow>),
    /// End the running shadow. The answer comes when it has ended, or says why it didn't.
    End(oneshot::Sender<Result<(), String>>),
}

/// A shadow that was loaded and may begin.
pub(crate) struct Shadow {
    pub(crate) plugin: String,
    pub(crate) digest: Digest,
    pub(crate) lasts: Duration,
    pub(crate) blueprint: Blueprint,
    pub(crate) chain: Arc<[Stage]>,
    /// The generation of the active pipeline for which it was loaded.
    pub(crate) generation: u64,
    /// The answer: whether it has begun, or why not.
    pub(crate) answer: oneshot::Sender<Result<(), String>>,
}

/// When the running shadow ends. `None` if none runs.
#[derive(Default)]
pub(super) struct ShadowTime(Option<Instant>);

impl ShadowTime {
    /// Waits until the shadow's time is over.
    pub(super) async fn until_over(&mut self) {
        match self.0 {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
    }
}

/// The canary's state on this node.
pub(super) struct Canary {
    cache: Arc<StoreCache>,
    /// The candidate that runs, if any.
    running: Option<Candidate>,
    /// Decides when the canary ends by itself.
    watch: Option<CanaryMonitor>,
    /// The task that writes the watched time to disk, and the time written last.
    keeping: Option<JoinHandle<()>>,
    saved_ms: u64,
    /// The future that writes a canary's end to the store.
    writing: Option<BoxFuture<'static, ()>>,
    /// The last canary that has ended on this node, and why. It doesn't begin again, even if it is
    /// still in the store.
    ended: Option<(Candidate, String)>,
}

impl Canary {
    pub(super) fn new(cache: Arc<StoreCache>) -> Self {
        Self {
            cache,
            running: None,
            watch: None,
            keeping: None,
            saved_ms: 0,
            writing: None,
            ended: None,
        }
    }

    /// Waits until the canary ends by itself. Meanwhile, it drives a pending write of an earlier
    /// end.
    pub(super) async fn next_end(&mut self) -> End {
        loop {
            let Self { watch, writing, .. } = self;
            let looked = async {
                match watch {
                    Some(watch) => watch.next().await,
                    None => std::future::pending().await,
                }
            };
            let written = async {
                match writing {
                    Some(writing) => writing.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                end = looked => if let Some(end) = end {
                    return end;
                },
                () = written => self.writing = None,
            }
            self.keep_time();
        }
    }

    /// Writes the watched time to disk at intervals.
    fn keep_time(&mut self) {
        let watched = self.watch.as_ref().and_then(CanaryMonitor::watched_ms);
        let Some((candidate, watched_ms)) = self.running.clone().zip(watched) else {
            return;
        };
        let is_writing = self.keeping.as_ref().is_some_and(|it| !it.is_finished());
        if is_writing || watched_ms < self.saved_ms.saturating_add(SAVE_EVERY_MS) {
            return;
        }
        self.saved_ms = watched_ms;
        let cache = Arc::clone(&self.cache);
        let canary = SavedCanary {
            candidate,
            watched_ms,
            ended: None,
        };
        self.keeping = Some(blocking(move || cache.save_canary(&canary)));
    }

    /// Writes to disk that a canary has ended on this node.
    async fn keep_end(&mut self, candidate: Candidate, why: String) {
        let (cache, before) = (Arc::clone(&self.cache), self.keeping.take());
        let canary = SavedCanary {
            candidate,
            watched_ms: 0,
            ended: Some(why),
        };
        let keep = async {
            if let Some(before) = before {
                let _ = before.await;
            }
            let _ = blocking(move || cache.save_canary(&canary)).await;
        };
        // A disk may hang.
        if timeout(KEEP, keep).await.is_err() {
            tracing::warn!("the disk takes long to keep that a canary has ended");
        }
    }

    /// Why a canary doesn't begin again, if it has ended on this node.
    fn has_ended(&self, candidate: &Candidate) -> Option<&str> {
        let (ended, why) = self.ended.as_ref()?;
        ended.is_same(candidate).then_some(why)
    }
}

/// The message that a canary has ended on this node, and what to do.
pub(crate) fn has_ended(why: &str) -> String {
    format!(
        "it has ended on this node ({why}): `presence plugins abort` ends it in the store, and \
         then it can begin again"
    )
}

/// The result of putting a loaded change in force.
pub(super) enum ApplyResult {
    Done,
    /// The canary doesn't run, for this reason.
    WithoutCanary(String),
    /// It must be loaded again, because the canary that it builds on has ended meanwhile.
    Again,
}

impl Reload {
    /// Puts a loaded change in force.
    pub(super) async fn apply(
        &mut self,
        change: PipelineChange,
        candidate: Option<Candidate>,
    ) -> ApplyResult {
        let ended = candidate.as_ref();
        let ended = ended.and_then(|it| self.canary.has_ended(it));
        let result = ended.map_or(ApplyResult::Done, |why| {
            ApplyResult::WithoutCanary(has_ended(why))
        });
        let candidate = candidate.filter(|_| matches!(result, ApplyResult::Done));
        let running = self.tenant.running.borrow().clone();
        let before = Pipelines::from(&running);
        let canary = running
            .candidate
            .clone()
            .filter(|it| matches!(it.mode, Mode::Canary(_)));
        let needs_canary = matches!(change.active, ActiveChoice::Candidate)
            || (matches!(change.candidate, CanaryChoice::Same) && candidate.is_some());
        if needs_canary && canary.is_none() {
            // The canary has ended while this was loaded.
            self.load_pipeline(Loader::fingerprint(&self.config));
            return ApplyResult::Again;
        }
        let had_canary = canary.is_some();
        let is_swapped = !matches!(change.active, ActiveChoice::Same);
        let active = match (change.active, &canary) {
            (ActiveChoice::New(blueprint), _) => self.tenant.next_generation(blueprint),
            (ActiveChoice::Candidate, Some(canary)) => canary.generation.clone(),
            (ActiveChoice::Same | ActiveChoice::Candidate, _) => before.active.clone(),
        };
        let mode = candidate.as_ref().map(|it| Mode::Canary(it.percent));
        let pipeline = match (change.candidate, mode) {
            (CanaryChoice::New(blueprint, chain), Some(mode)) => Some(CandidatePipeline {
                generation: self.tenant.next_generation(blueprint),
                mode,
                meter: Arc::default(),
                chain,
            }),
            (CanaryChoice::Same, Some(mode)) => {
                canary.map(|canary| CandidatePipeline { mode, ..canary })
            }
            _ => None,
        };
        let after = Pipelines {
            active,
            candidate: pipeline,
        };
        if after.assignment() == before.assignment() {
            // The pipelines stay, but the canary's rules may have changed.
            self.watch(candidate, 0);
            return result;
        }
        self.tenant.set_pipelines(after).await;
        if is_swapped {
            self.log_swapped(&running.blueprint);
        }
        match &candidate {
            Some(it) => tracing::info!(
                candidate = it.label(),
                percent = %it.percent,
                "a canary decides on a share of the users"
            ),
            None if had_canary => tracing::info!("the canary has ended"),
            None => {}
        }
        self.watch(candidate, 0);
        result
    }

    /// Watches the canary with which the node has started. If it had ended on this node before, it
    /// doesn't run, and its end is written to the store.
    pub(super) async fn watch_canary(&mut self) {
        let wanted = self.wanted_revision();
        let Some(candidate) = wanted.and_then(|it| it.candidate.clone()) else {
            return;
        };
        let (cache, which) = (Arc::clone(&self.canary.cache), candidate.clone());
        let kept = blocking(move || cache.canary(&which)).await;
        let kept = kept.ok().flatten();
        let watched_ms = kept.as_ref().map_or(0, |it| it.watched_ms);
        match kept.and_then(|it| it.ended) {
            Some(why) => {
                self.canary.ended = Some((candidate.clone(), why.clone()));
                // An alert was raised when it ended.
                self.write_end(candidate, (false, why), None);
            }
            None => self.watch(Some(candidate), watched_ms),
        }
    }

    /// Watches a canary. `watched_ms`: for how long it was watched on this node before. If the same
    /// canary runs already, its current time counts instead.
    fn watch(&mut self, candidate: Option<Candidate>, watched_ms: u64) {
        let pipeline = self.tenant.running.borrow().candidate.clone();
        let pipeline = pipeline.filter(|it| matches!(it.mode, Mode::Canary(_)));
        let (candidate, pipeline) = candidate.zip(pipeline).unzip();
        let canary = &mut self.canary;
        let before = canary.watch.as_ref().and_then(CanaryMonitor::watched_ms);
        let is_same = |it: &Candidate| {
            let before = canary.running.as_ref();
            before.is_some_and(|before| before.is_same(it))
        };
        let watched_ms = match candidate.as_ref().is_some_and(is_same) {
            true => before.unwrap_or_default(),
            false => watched_ms,
        };
        let policy = candidate.as_ref().map(|candidate| CanaryPolicy {
            abort_on: candidate.abort_on.clone(),
            promote_after_ms: candidate.promote_after_ms,
            watched_ms,
        });
        let watched = policy.zip(pipeline);
        canary.watch = watched.map(|(policy, pipeline)| CanaryMonitor::new(policy, pipeline.meter));
        canary.running = candidate;
        canary.saved_ms = watched_ms;
    }

    /// Carries out an order about shadows.
    pub(super) async fn on_shadow_order(&mut self, order: ShadowOrder) {
        match order {
            ShadowOrder::Begin(shadow) => self.begin_shadow(*shadow).await,
            ShadowOrder::End(answer) => {
                let ended = match self.end_shadow().await {
                    true => Ok(()),
                    false => Err("no shadow runs".into()),
                };
                // The requester may have given up.
                let _ = answer.send(ended);
            }
        }
    }

    /// Begins a shadow, if possible.
    async fn begin_shadow(&mut self, shadow: Shadow) {
        let running = self.tenant.running.borrow().clone();
        let mode = running.candidate.as_ref().map(|it| it.mode);
        let refused = match mode {
            Some(Mode::Canary(_)) => Some("a canary runs: end it first"),
            Some(Mode::Shadow) => Some(
                "another shadow runs: it ends by itself, or by `presence plugins shadow --end`",
            ),
            None if running.generation != shadow.generation => {
                Some("the pipeline was swapped meanwhile: try again")
            }
            None if !self.permits_shadow(&shadow) => {
                Some("the configuration has changed meanwhile, and it may not run any more")
            }
            None => None,
        };
        if let Some(why) = refused {
            // The requester may have given up.
            let _ = shadow.answer.send(Err(why.into()));
            return;
        }
        let pipeline = CandidatePipeline {
            generation: self.tenant.next_generation(shadow.blueprint),
            mode: Mode::Shadow,
            meter: Arc::default(),
            chain: shadow.chain,
        };
        let ran = ShadowRun {
            plugin: shadow.plugin,
            digest: shadow.digest,
            from: clock::now_ms(),
            lasts: shadow.lasts,
            meter: Arc::clone(&pipeline.meter),
        };
        tracing::info!(
            plugin = ran.plugin,
            digest = ran.digest.short(),
            "a shadow begins"
        );
        self.status.show_shadow(ran);
        self.shadow.0 = Some(Instant::now() + shadow.lasts);
        let active = Pipelines::from(&running).active;
        let pipeline = Some(pipeline);
        self.tenant
            .set_pipelines(Pipelines {
                active,
                candidate: pipeline,
            })
            .await;
        let _ = shadow.answer.send(Ok(()));
    }

    /// Ends the shadow. Returns whether one was running.
    pub(super) async fn end_shadow(&mut self) -> bool {
        self.shadow.0 = None;
        let running = self.tenant.running.borrow().clone();
        let pipeline = running.candidate.as_ref();
        let is_there = pipeline.is_some_and(|it| it.mode == Mode::Shadow);
        if is_there {
            let active = Pipelines::from(&running).active;
            self.tenant.set_pipelines(Pipelines::alone(active)).await;
            tracing::info!("the shadow has ended");
        }
        is_there
    }

    /// Handles the end of a canary by its own rules.
    pub(super) async fn end_canary(&mut self, end: End) {
        let Some(candidate) = self.canary.running.clone() else {
            return;
        };
        let named = candidate.label();
        let (what, why, is_promoted) = match end {
            End::Abort(why) => (
                "canary-aborted",
                format!("abort the canary {named}: {why}"),
                false,
            ),
            End::Promote(why) => {
                let why = format!("promote the canary {named}: {why}");
                ("canary-promoted", why, true)
            }
        };
        tracing::warn!("{why}");
        let alert = Some((what, json!({"candidate": named, "why": why})));
        if !is_promoted {
            // This is done at once, without waiting for the store.
            let active = Pipelines::from(&*self.tenant.running.borrow()).active;
            self.canary.ended = Some((candidate.clone(), why.clone()));
            self.tenant.set_pipelines(Pipelines::alone(active)).await;
            self.watch(None, 0);
            self.canary.keep_end(candidate.clone(), why.clone()).await;
        }
        // A promoted canary runs as a canary, with its rules, until the new revision is in force.
        self.write_end(candidate, (is_promoted, why), alert);
    }

    /// Starts to write a canary's end to the store. `alert`: the alert that reports it.
    fn write_end(
        &mut self,
        candidate: Candidate,
        (is_promoted, why): (bool, String),
        alert: Option<(&'static str, Value)>,
    ) {
        let Some(from) = &self.store else {
            return;
        };
        let end = CanaryEnd {
            store: from.store.clone(),
            state: Arc::clone(&from.state),
            node: self.config.node.name.clone(),
            candidate,
            is_promoted,
            why,
            alerts: self.alerts.clone(),
            alert,
        };
        self.canary.writing = Some(Box::pin(end.write()));
    }
}

/// A canary's end that is being written to the store.
struct CanaryEnd {
    store: Store,
    state: Arc<StoreState>,
    node: String,
    candidate: Candidate,
    is_promoted: bool,
    why: String,
    alerts: Alerts,
    /// The alert to raise. `None` if there is none, or if it was raised.
    alert: Option<(&'static str, Value)>,
}

/// The result of writing a canary's end.
enum EndWritten {
    /// The end is written.
    Done,
    /// Another node or an operator has ended the canary.
    ByOthers,
    /// Another revision was written at the same time: try again.
    NotYet,
}

impl CanaryEnd {
    /// Writes the end until this succeeds or somebody else has ended the canary. The alert is
    /// raised at most once, and not if another node was faster: that node has raised it.
    async fn write(mut self) {
        let mut alert = self.alert.take();
        let mut is_said = false;
        loop {
            let written = {
                let mut written = pin!(self.try_write());
                tokio::select! {
                    written = &mut written => written,
                    // An aborted canary is out already, so the alert doesn't have to wait.
                    () = sleep(AGAIN), if !self.is_promoted => {
                        self.raise_alert(&mut alert);
                        written.await
                    }
                }
            };
            match written {
                Ok(EndWritten::Done) => return self.raise_alert(&mut alert),
                Ok(EndWritten::ByOthers) => return,
                Ok(EndWritten::NotYet) => {}
                Err(error) => {
                    if !self.is_promoted {
                        self.raise_alert(&mut alert);
                    }
                    if !std::mem::replace(&mut is_said, true) {
                        tracing::warn!("the end of a canary can't be written yet: {error:#}");
                    }
                }
            }
            sleep(AGAIN).await;
        }
    }

    /// Raises the alert, if it wasn't raised yet.
    fn raise_alert(&self, alert: &mut Option<(&'static str, Value)>) {
        if let Some((what, about)) = alert.take() {
            self.alerts.raise(what, about);
        }
    }

    async fn try_write(&self) -> anyhow::Result<EndWritten> {
        let revisions = self.store.revisions(SCANNED_MAX).await?;
        let mut good = revisions.iter().rev();
        let newest = good.find_map(|it| it.revision.as_ref().ok());
        // This happens if the bucket was lost. The canary is then still in force.
        let newest = newest.context("the bucket has no revision that can be read")?;
        let is_it = |it: &Candidate| it.is_same(&self.candidate);
        if !newest.candidate.as_ref().is_some_and(is_it) {
            let revision = newest.revision;
            if newest.who == self.who() && newest.why == self.why {
                // It was written by this node, but the store's answer was lost.
                return Ok(EndWritten::Done);
            }
            tracing::info!(revision, "the canary has ended in the store already");
            // If this node refuses that revision, the canary was ended by this node alone.
            let refused = self.state.refused();
            let is_refused = refused.is_some_and(|(number, _)| number >= revision);
            return Ok(match is_refused {
                true => EndWritten::Done,
                false => EndWritten::ByOthers,
            });
        }
        let chain = match self.is_promoted {
            true => self.candidate.applied_to(&newest.chain),
            false => newest.chain.clone(),
        };
        let in_force = self.state.in_force().map_or(0, |it| it.revision);
        let number = next_number(&revisions, in_force);
        let next = Revision {
            revision: number.context("there is no higher number of a revision")?,
            chain,
            candidate: None,
            who: self.who(),
            when: clock::now_ms(),
            why: self.why.clone(),
        };
        Ok(match self.store.write(&next).await? {
            WriteResult::Done => EndWritten::Done,
            WriteResult::Conflict(_) => EndWritten::NotYet,
        })
    }

    fn who(&self) -> String {
        format!("the node {}", self.node)
    }
}
