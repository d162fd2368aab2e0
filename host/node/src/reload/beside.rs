//! What runs beside the active pipeline, as the revisions of the plugin store say: a canary
//! begins, its share grows, and it ends by an operator or by itself.
//!
//! A canary that breaks a rule of its own decides on nobody any more at once, whether the store
//! is there or not. That it has ended is written into the store as the next revision.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use presence_config::digest::Digest;
use presence_config::escape::together;
use presence_config::revision::{Candidate, Revision};
use presence_config::{Config, Stage};
use presence_rules::loader::{Attempt, Loader};
use presence_sandbox::Blueprint;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};

use super::Reload;
use crate::beside::canary::{End, Terms, ends};
use crate::beside::report::ShadowRun;
use crate::beside::{Beside, Mode, Pipelines};
use crate::clock;
use crate::store::{LOOK_MAX, Store, Written, next_number};
use crate::tenant::Running;

/// How long is waited before the end of a canary is written again.
const AGAIN: Duration = Duration::from_secs(2);

/// What a load has to put in force.
#[derive(Default)]
pub(crate) struct Change {
    active: Active,
    candidate: Wanted,
}

/// Which pipeline is the active one.
#[derive(Default)]
enum Active {
    /// The one that is.
    #[default]
    Same,
    /// The canary: it is promoted.
    Beside,
    New(Blueprint),
}

/// Which pipeline is the canary's.
#[derive(Default)]
enum Wanted {
    #[default]
    None,
    /// The one that is.
    Same,
    New(Blueprint, Arc<[Stage]>),
}

impl Change {
    /// Whether what runs is left alone: the active pipeline, and that nothing runs beside it.
    pub(super) fn is_none(&self) -> bool {
        matches!(
            (&self.active, &self.candidate),
            (Active::Same, Wanted::None)
        )
    }

    /// Loads what a configuration and a revision say, where it isn't what runs.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub(crate) fn load(
        loader: &Loader,
        config: &Config,
        revision: Option<&Revision>,
        running: &Running,
        attempt: &Attempt,
    ) -> anyhow::Result<Self> {
        let beside = running.beside.as_ref();
        let canary = beside.filter(|it| matches!(it.mode, Mode::Canary(_)));
        let promoted = canary.filter(|it| *it.chain == *config.pipeline);
        let active = match promoted {
            Some(_) => Active::Beside,
            None => {
                let before = Some(&*running.blueprint);
                let loaded = loader.attempt(config, true, before, attempt);
                match loaded.map_err(together)? {
                    same if same.is_same(&running.blueprint) => Active::Same,
                    new => Active::New(new),
                }
            }
        };
        let Some(chain) = revision.and_then(Revision::candidate_stages) else {
            return Ok(Self {
                active,
                candidate: Wanted::None,
            });
        };
        let goes_on = canary.is_some_and(|it| *it.chain == *chain);
        if goes_on && matches!(active, Active::Same) {
            return Ok(Self {
                active,
                candidate: Wanted::Same,
            });
        }
        let before = match (&active, promoted) {
            (Active::New(new), _) => new,
            (Active::Beside, Some(promoted)) => &promoted.generation.blueprint,
            (Active::Same | Active::Beside, _) => &*running.blueprint,
        };
        let mut with = config.clone();
        with.pipeline.clone_from(&chain);
        let loaded = loader.attempt_beside(&with, before, attempt);
        Ok(Self {
            active,
            candidate: Wanted::New(loaded.map_err(together)?, chain.into()),
        })
    }
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
#[derive(Default)]
pub(super) struct Canary {
    /// What waits for its end.
    watched: Option<BoxFuture<'static, End>>,
    /// What writes that one has ended.
    writing: Option<BoxFuture<'static, ()>>,
    /// The last that has ended here: it doesn't begin again, whatever is still in the store.
    ended: Option<Candidate>,
}

impl Canary {
    /// Waits until the canary ends by itself, and has such an end written meanwhile.
    pub(super) async fn ends(&mut self) -> End {
        let watched = async {
            match &mut self.watched {
                Some(watched) => watched.await,
                None => std::future::pending().await,
            }
        };
        let writing = async {
            if let Some(writing) = &mut self.writing {
                writing.await;
                self.writing = None;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            end = watched => {
                self.watched = None;
                end
            }
            () = writing => std::future::pending().await,
        }
    }
}

impl Reload {
    /// Puts in force what has been loaded.
    pub(super) async fn put(&mut self, change: Change, candidate: Option<Candidate>) {
        let ended = self.canary.ended.as_ref();
        let has_ended = |it: &Candidate| ended.is_some_and(|ended| ended.is_same(it));
        let candidate = candidate.filter(|it| !has_ended(it));
        let running = self.tenant.running.borrow().clone();
        let before = Pipelines::from(&running);
        let canary = running
            .beside
            .clone()
            .filter(|it| matches!(it.mode, Mode::Canary(_)));
        let needs_canary = matches!(change.active, Active::Beside)
            || (matches!(change.candidate, Wanted::Same) && candidate.is_some());
        if needs_canary && canary.is_none() {
            // It ended while this was loaded.
            return self.load_pipeline(Loader::stamp(&self.config));
        }
        let had_canary = canary.is_some();
        let is_swapped = !matches!(change.active, Active::Same);
        let active = match (change.active, &canary) {
            (Active::New(blueprint), _) => self.tenant.next_generation(blueprint),
            (Active::Beside, Some(canary)) => canary.generation.clone(),
            (Active::Same | Active::Beside, _) => before.active.clone(),
        };
        let mode = candidate.as_ref().map(|it| Mode::Canary(it.percent));
        let beside = match (change.candidate, mode) {
            (Wanted::New(blueprint, chain), Some(mode)) => Some(Beside {
                generation: self.tenant.next_generation(blueprint),
                mode,
                meter: Arc::default(),
                chain,
            }),
            (Wanted::Same, Some(mode)) => canary.map(|canary| Beside { mode, ..canary }),
            _ => None,
        };
        let after = Pipelines { active, beside };
        if after.assignment() == before.assignment() {
            // The terms may be others.
            return self.watch(candidate);
        }
        self.tenant.put(after).await;
        if is_swapped {
            self.say_swapped(&running.blueprint);
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
        self.watch(candidate);
    }

    /// Has the canary that the node began with end by its rules.
    pub(super) fn watch_canary(&mut self) {
        let wanted = self.wanted_revision();
        self.watch(wanted.and_then(|it| it.candidate.clone()));
    }

    fn watch(&mut self, candidate: Option<Candidate>) {
        let beside = self.tenant.running.borrow().beside.clone();
        self.canary.watched = candidate.zip(beside).map(|(candidate, beside)| {
            let terms = Terms {
                abort_on: candidate.abort_on,
                promote_after_ms: candidate.promote_after_ms,
                ran_ms: clock::now_ms().saturating_sub(candidate.started_at),
            };
            let ends: BoxFuture<'static, End> = Box::pin(ends(terms, beside.meter));
            ends
        });
    }

    /// Has a plugin run in a shadow.
    pub(super) async fn begin_shadow(&mut self, shadow: Shadow) {
        let running = self.tenant.running.borrow().clone();
        let mode = running.beside.as_ref().map(|it| it.mode);
        let refused = match mode {
            Some(Mode::Canary(_)) => Some("a canary runs: end it first"),
            Some(Mode::Shadow) => Some("another shadow runs: it ends by itself"),
            None if running.generation != shadow.generation => {
                Some("the pipeline was swapped meanwhile: try again")
            }
            None => None,
        };
        if let Some(why) = refused {
            // The one who asked may have given up.
            let _ = shadow.answer.send(Err(why.into()));
            return;
        }
        let beside = Beside {
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
        self.tenant.put(Pipelines { active, beside }).await;
        let _ = shadow.answer.send(Ok(()));
    }

    /// The shadow's time is over.
    pub(super) async fn end_shadow(&mut self) {
        self.shadow.0 = None;
        let running = self.tenant.running.borrow().clone();
        if running
            .beside
            .as_ref()
            .is_some_and(|it| it.mode == Mode::Shadow)
        {
            let active = Pipelines::from(&running).active;
            self.tenant.put(Pipelines::alone(active)).await;
        }
    }

    /// The canary has ended by itself.
    pub(super) async fn end_canary(&mut self, end: End) {
        let wanted = self.wanted_revision();
        let candidate = wanted.and_then(|it| it.candidate.clone());
        let (Some(candidate), Some(from)) = (candidate, &self.store) else {
            return;
        };
        let (store, node) = (from.store.clone(), self.config.node.name.clone());
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
        self.alerts
            .raise(what, json!({"candidate": named, "why": why}));
        if !is_promoted {
            // Nobody waits for the store.
            let active = Pipelines::from(&*self.tenant.running.borrow()).active;
            self.canary.ended = Some(candidate.clone());
            self.tenant.put(Pipelines::alone(active)).await;
        }
        self.canary.writing = Some(Box::pin(write(store, node, candidate, is_promoted, why)));
    }
}

/// Writes that a canary has ended, until it is written or somebody has done so before.
async fn write(store: Store, node: String, candidate: Candidate, is_promoted: bool, why: String) {
    let mut is_said = false;
    loop {
        match try_write(&store, &node, &candidate, is_promoted, &why).await {
            Ok(()) => return,
            Err(error) if !std::mem::replace(&mut is_said, true) => {
                tracing::warn!("the end of a canary can't be written yet: {error:#}");
            }
            Err(_) => {}
        }
        sleep(AGAIN).await;
    }
}

async fn try_write(
    store: &Store,
    node: &str,
    candidate: &Candidate,
    is_promoted: bool,
    why: &str,
) -> anyhow::Result<()> {
    loop {
        let revisions = store.revisions(LOOK_MAX).await?;
        let mut good = revisions.iter().rev();
        let Some(newest) = good.find_map(|it| it.revision.as_ref().ok()) else {
            return Ok(());
        };
        let is_it = |it: &Candidate| it.is_same(candidate);
        if !newest.candidate.as_ref().is_some_and(is_it) {
            return Ok(());
        }
        let chain = match is_promoted {
            true => candidate.in_place(&newest.chain),
            false => newest.chain.clone(),
        };
        let number = next_number(&revisions, newest.revision);
        let next = Revision {
            revision: number.context("there is no higher number of a revision")?,
            chain,
            candidate: None,
            who: format!("the node {node}"),
            when: clock::now_ms(),
            why: why.to_owned(),
        };
        if let Written::Done = store.write(&next).await? {
            return Ok(());
        }
    }
}
