//! What runs beside the active pipeline, as the revisions of the plugin store say: a canary
//! begins, its share grows, and it ends by an operator or by itself.
//!
//! A canary that breaks a rule of its own decides on nobody any more at once, whether the store
//! is there or not. That it has ended is written into the store as the next revision.

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
use crate::beside::canary::{CanaryMonitor, CanaryPolicy, End};
use crate::beside::report::ShadowRun;
use crate::beside::{CandidatePipeline, Mode, Pipelines};
use crate::clock;
use crate::link::alerts::Alerts;
use crate::store::state::StoreState;
use crate::store::{LOOK_MAX, Store, WriteResult, next_number};
use crate::tasks::blocking;
pub(crate) use change::PipelineChange;
use change::{ActiveChoice, CanaryChoice};

/// How long is waited before the end of a canary is written again.
const AGAIN: Duration = Duration::from_secs(2);

/// How often it is kept for how long a canary has been watched, in milliseconds of that time.
const KEPT_EVERY_MS: u64 = 10_000;

/// What is to become of a shadow.
pub(crate) enum ShadowOrder {
    Begin(Box<Shadow>),
    /// The one that runs is to end: answered when it has, or with why it doesn't.
    End(oneshot::Sender<Result<(), String>>),
}

/// A shadow that is to begin.
pub(crate) struct Shadow {
    pub(crate) plugin: String,
    pub(crate) digest: Digest,
    pub(crate) lasts: Duration,
    pub(crate) blueprint: Blueprint,
    pub(crate) chain: Arc<[Stage]>,
    /// The pipeline that it was loaded to run beside.
    pub(crate) generation: u64,
    /// Whether it has begun, or why not.
    pub(crate) answer: oneshot::Sender<Result<(), String>>,
}

/// The shadow that runs.
#[derive(Default)]
pub(super) struct ShadowTime(Option<Instant>);

impl ShadowTime {
    /// Waits until it is over.
    pub(super) async fn is_over(&mut self) {
        match self.0 {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
    }
}

/// The canary that runs.
pub(super) struct Canary {
    kept: Arc<StoreCache>,
    /// Which one runs.
    running: Option<Candidate>,
    /// What waits for its end.
    watch: Option<CanaryMonitor>,
    /// What keeps for how long it has been watched, and when that was last kept.
    keeping: Option<JoinHandle<()>>,
    kept_ms: u64,
    /// What writes that one has ended.
    writing: Option<BoxFuture<'static, ()>>,
    /// The last that has ended here, and why: it doesn't begin again, whatever is still in the
    /// store.
    ended: Option<(Candidate, String)>,
}

impl Canary {
    pub(super) fn new(kept: Arc<StoreCache>) -> Self {
        Self {
            kept,
            running: None,
            watch: None,
            keeping: None,
            kept_ms: 0,
            writing: None,
            ended: None,
        }
    }

    /// Waits until the canary ends by itself, and has such an end written meanwhile.
    pub(super) async fn ends(&mut self) -> End {
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

    /// Keeps from time to time for how long it has been watched.
    fn keep_time(&mut self) {
        let watched = self.watch.as_ref().and_then(CanaryMonitor::watched_ms);
        let Some((candidate, watched_ms)) = self.running.clone().zip(watched) else {
            return;
        };
        let is_writing = self.keeping.as_ref().is_some_and(|it| !it.is_finished());
        if is_writing || watched_ms < self.kept_ms.saturating_add(KEPT_EVERY_MS) {
            return;
        }
        self.kept_ms = watched_ms;
        let kept = Arc::clone(&self.kept);
        let canary = SavedCanary {
            candidate,
            watched_ms,
            ended: None,
        };
        self.keeping = Some(blocking(move || kept.save_canary(&canary)));
    }

    /// Keeps that one has ended here.
    async fn keep_end(&mut self, candidate: Candidate, why: String) {
        let (kept, before) = (Arc::clone(&self.kept), self.keeping.take());
        let canary = SavedCanary {
            candidate,
            watched_ms: 0,
            ended: Some(why),
        };
        let keep = async {
            if let Some(before) = before {
                let _ = before.await;
            }
            let _ = blocking(move || kept.save_canary(&canary)).await;
        };
        // A disk may hang.
        if timeout(KEEP, keep).await.is_err() {
            tracing::warn!("the disk takes long to keep that a canary has ended");
        }
    }

    /// Why a canary doesn't begin again, if it has ended here.
    fn has_ended(&self, candidate: &Candidate) -> Option<&str> {
        let (ended, why) = self.ended.as_ref()?;
        ended.is_same(candidate).then_some(why)
    }
}

/// That a canary has ended on this node, and what to do.
pub(crate) fn has_ended(why: &str) -> String {
    format!(
        "it has ended on this node ({why}): `presence plugins abort` ends it in the store, and \
         then it can begin again"
    )
}

/// What came of putting in force what has been loaded.
pub(super) enum ApplyResult {
    Done,
    /// The canary doesn't run: why.
    WithoutCanary(String),
    /// It is loaded once more: meanwhile, the canary has ended that it went by.
    Again,
}

impl Reload {
    /// Puts in force what has been loaded.
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
            .beside
            .clone()
            .filter(|it| matches!(it.mode, Mode::Canary(_)));
        let needs_canary = matches!(change.active, ActiveChoice::Candidate)
            || (matches!(change.candidate, CanaryChoice::Same) && candidate.is_some());
        if needs_canary && canary.is_none() {
            // It ended while this was loaded.
            self.load_pipeline(Loader::stamp(&self.config));
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
        let beside = match (change.candidate, mode) {
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
        let after = Pipelines { active, beside };
        if after.assignment() == before.assignment() {
            // The terms may be others.
            self.watch(candidate, 0);
            return result;
        }
        self.tenant.set_pipelines(after).await;
        if is_swapped {
            self.log_swapped(&running.blueprint);
        }
        match &candidate {
            Some(it) => tracing::info!(
                candidate = it.named(),
                percent = %it.percent,
                "a canary decides on a share of the users"
            ),
            None if had_canary => tracing::info!("the canary has ended"),
            None => {}
        }
        self.watch(candidate, 0);
        result
    }

    /// Has the canary that the node began with end by its rules; one that had ended before does
    /// not run, and that is written.
    pub(super) async fn watch_canary(&mut self) {
        let wanted = self.wanted_revision();
        let Some(candidate) = wanted.and_then(|it| it.candidate.clone()) else {
            return;
        };
        let (kept, which) = (Arc::clone(&self.canary.kept), candidate.clone());
        let kept = blocking(move || kept.canary(&which)).await;
        let kept = kept.ok().flatten();
        let watched_ms = kept.as_ref().map_or(0, |it| it.watched_ms);
        match kept.and_then(|it| it.ended) {
            Some(why) => {
                self.canary.ended = Some((candidate.clone(), why.clone()));
                // An alert has said so when it ended.
                self.write_end(candidate, (false, why), None);
            }
            None => self.watch(Some(candidate), watched_ms),
        }
    }

    /// Watches a canary that has been watched for so long on this node, or for as long as it has
    /// been if it is the one that runs.
    fn watch(&mut self, candidate: Option<Candidate>, watched_ms: u64) {
        let beside = self.tenant.running.borrow().beside.clone();
        let beside = beside.filter(|it| matches!(it.mode, Mode::Canary(_)));
        let (candidate, beside) = candidate.zip(beside).unzip();
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
        let watched = policy.zip(beside);
        canary.watch = watched.map(|(policy, beside)| CanaryMonitor::new(policy, beside.meter));
        canary.running = candidate;
        canary.kept_ms = watched_ms;
    }

    /// Does with the shadow what is wanted.
    pub(super) async fn order_shadow(&mut self, order: ShadowOrder) {
        match order {
            ShadowOrder::Begin(shadow) => self.begin_shadow(*shadow).await,
            ShadowOrder::End(answer) => {
                let ended = match self.end_shadow().await {
                    true => Ok(()),
                    false => Err("no shadow runs".into()),
                };
                // The one who asked may have given up.
                let _ = answer.send(ended);
            }
        }
    }

    /// Has a plugin run in a shadow.
    async fn begin_shadow(&mut self, shadow: Shadow) {
        let running = self.tenant.running.borrow().clone();
        let mode = running.beside.as_ref().map(|it| it.mode);
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
            // The one who asked may have given up.
            let _ = shadow.answer.send(Err(why.into()));
            return;
        }
        let beside = CandidatePipeline {
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
            meter: Arc::clone(&beside.meter),
        };
        tracing::info!(
            plugin = ran.plugin,
            digest = ran.digest.short(),
            "a shadow begins"
        );
        self.status.show_shadow(ran);
        self.shadow.0 = Some(Instant::now() + shadow.lasts);
        let active = Pipelines::from(&running).active;
        let beside = Some(beside);
        self.tenant
            .set_pipelines(Pipelines { active, beside })
            .await;
        let _ = shadow.answer.send(Ok(()));
    }

    /// The shadow ends, if one runs. Says whether one did.
    pub(super) async fn end_shadow(&mut self) -> bool {
        self.shadow.0 = None;
        let running = self.tenant.running.borrow().clone();
        let beside = running.beside.as_ref();
        let is_there = beside.is_some_and(|it| it.mode == Mode::Shadow);
        if is_there {
            let active = Pipelines::from(&running).active;
            self.tenant.set_pipelines(Pipelines::alone(active)).await;
            tracing::info!("the shadow has ended");
        }
        is_there
    }

    /// The canary ends by itself.
    pub(super) async fn end_canary(&mut self, end: End) {
        let Some(candidate) = self.canary.running.clone() else {
            return;
        };
        let named = candidate.named();
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
            // Nobody waits for the store.
            let active = Pipelines::from(&*self.tenant.running.borrow()).active;
            self.canary.ended = Some((candidate.clone(), why.clone()));
            self.tenant.set_pipelines(Pipelines::alone(active)).await;
            self.watch(None, 0);
            self.canary.keep_end(candidate.clone(), why.clone()).await;
        }
        // One that is promoted runs as a canary, and by its rules, until that is in force.
        self.write_end(candidate, (is_promoted, why), alert);
    }

    /// Writes that a canary has ended, with an alert that says so.
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

/// The end of a canary, which is to be written.
struct CanaryEnd {
    store: Store,
    state: Arc<StoreState>,
    node: String,
    candidate: Candidate,
    is_promoted: bool,
    why: String,
    alerts: Alerts,
    /// What is to be said of it; none once it has been.
    alert: Option<(&'static str, Value)>,
}

/// What came of writing the end of a canary.
enum EndWritten {
    /// It is written.
    Done,
    /// Somebody else has ended the canary.
    ByOthers,
    /// Somebody else has written a revision meanwhile.
    NotYet,
}

impl CanaryEnd {
    /// Writes it, until it is written or somebody has ended it before. An alert says so once, and not
    /// where another node was faster, which has said so.
    async fn write(mut self) {
        let mut alert = self.alert.take();
        let mut is_said = false;
        loop {
            let written = {
                let mut written = pin!(self.try_write());
                tokio::select! {
                    written = &mut written => written,
                    // One that was aborted decides on nobody already.
                    () = sleep(AGAIN), if !self.is_promoted => {
                        self.tell(&mut alert);
                        written.await
                    }
                }
            };
            match written {
                Ok(EndWritten::Done) => return self.tell(&mut alert),
                Ok(EndWritten::ByOthers) => return,
                Ok(EndWritten::NotYet) => {}
                Err(error) => {
                    if !self.is_promoted {
                        self.tell(&mut alert);
                    }
                    if !std::mem::replace(&mut is_said, true) {
                        tracing::warn!("the end of a canary can't be written yet: {error:#}");
                    }
                }
            }
            sleep(AGAIN).await;
        }
    }

    /// Raises the alert, if it hasn't been raised.
    fn tell(&self, alert: &mut Option<(&'static str, Value)>) {
        if let Some((what, about)) = alert.take() {
            self.alerts.raise(what, about);
        }
    }

    async fn try_write(&self) -> anyhow::Result<EndWritten> {
        let revisions = self.store.revisions(LOOK_MAX).await?;
        let mut good = revisions.iter().rev();
        let newest = good.find_map(|it| it.revision.as_ref().ok());
        // As where the bucket was lost: what is in force is still the canary.
        let newest = newest.context("the bucket has no revision that can be read")?;
        let is_it = |it: &Candidate| it.is_same(&self.candidate);
        if !newest.candidate.as_ref().is_some_and(is_it) {
            let revision = newest.revision;
            if newest.who == self.who() && newest.why == self.why {
                // It was written, and the answer was lost.
                return Ok(EndWritten::Done);
            }
            tracing::info!(revision, "the canary has ended in the store already");
            // Where that isn't taken, it was this node that has ended it.
            let refused = self.state.refused();
            let is_refused = refused.is_some_and(|(number, _)| number >= revision);
            return Ok(match is_refused {
                true => EndWritten::Done,
                false => EndWritten::ByOthers,
            });
        }
        let chain = match self.is_promoted {
            true => self.candidate.in_place(&newest.chain),
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
            WriteResult::Taken(_) => EndWritten::NotYet,
        })
    }

    fn who(&self) -> String {
        format!("the node {}", self.node)
    }
}
