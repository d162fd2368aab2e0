//! A stage in its place in a worker's pipeline: an instance, what is known of
//! its failures, and what is called in its stead while it is in quarantine.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use presence_core::rules::{Context, Failure};

use crate::api::{Api, Find};
use crate::breaker::{Breaker, Tripped};
use crate::call::{Call, Seen};
use crate::instance::Instance;
use crate::trial::Spent;
use crate::{Limits, LoadError, Stage};

/// How a stage's plugin fares, in all workers together.
#[derive(Debug, Default)]
pub struct Health {
    in_quarantine: AtomicUsize,
}

impl Health {
    /// In how many workers the plugin is in quarantine.
    pub fn in_quarantine(&self) -> usize {
        self.in_quarantine.load(Ordering::Relaxed)
    }
}

/// A stage's instance, called with `A` and answering with `R`.
pub(crate) struct Slot<A, R> {
    pub(crate) stage: Arc<Stage>,
    instance: Instance<A, R>,
    breaker: Breaker,
    /// The last good generation, once it has taken over for good.
    stand_in: Option<Box<Slot<A, R>>>,
    /// Its role's export, in a version of the API.
    export: fn(&Api) -> Find<A, R>,
    limits: Limits,
}

impl<A, R> Slot<A, R> {
    /// The stage that is in force: this one, or the one that took over from it.
    pub(crate) fn in_force(&self) -> &Stage {
        match &self.stand_in {
            Some(stand_in) => stand_in.in_force(),
            None => &self.stage,
        }
    }

    /// The plugin's name.
    pub(crate) fn name(&self) -> Arc<str> {
        Arc::clone(&self.in_force().plugin.name)
    }

    /// Whether another one has taken over from it.
    pub(crate) fn has_stand_in(&self) -> bool {
        self.stand_in.is_some()
    }

    /// Whether it is in quarantine with nobody in its place.
    pub(crate) fn is_out_of_service(&self, now: u64) -> bool {
        self.stand_in.is_none() && !self.breaker.allows(now)
    }
}

impl<A, R> Slot<A, R> {
    pub(crate) fn new(
        stage: &Arc<Stage>,
        export: fn(&Api) -> Find<A, R>,
        limits: Limits,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            instance: Instance::new(&stage.plugin, export, &stage.config, limits)?,
            stage: Arc::clone(stage),
            breaker: Breaker::default(),
            stand_in: None,
            export,
            limits,
        })
    }

    /// Gives its calls as much time as there is while a plugin is loaded.
    pub(crate) fn at_leisure(&mut self) {
        self.instance.at_leisure();
    }

    /// What its last call took.
    pub(crate) fn spent(&self) -> Option<Spent> {
        self.instance.spent()
    }

    /// Calls it, unless it is in quarantine. Sets `replaced` when the last good
    /// generation has taken over, and answers from then on.
    pub(crate) fn call<T>(
        &mut self,
        context: Context<'_>,
        seen: &mut Seen,
        replaced: &mut bool,
        with: impl FnOnce(&mut Call) -> wasmtime::Result<A>,
        read: impl FnOnce(&mut Call, R) -> wasmtime::Result<T>,
    ) -> Result<T, Failure> {
        if let Some(stand_in) = &mut self.stand_in {
            return stand_in.call(context, seen, replaced, with, read);
        }
        if !self.breaker.allows(context.now) {
            return Err(Failure {
                plugin: Arc::clone(&self.stage.plugin.name),
                error: "is in quarantine, since it failed again and again".into(),
            });
        }
        let outcome = self.instance.call(context, seen, with, read);
        // For want of an answer it is called again, and then it counts.
        if seen.is_speculative() {
            return outcome;
        }
        match &outcome {
            Ok(_) => {
                if self.breaker.succeeded() {
                    self.stage
                        .health
                        .in_quarantine
                        .fetch_sub(1, Ordering::Relaxed);
                    tracing::info!(
                        plugin = &*self.stage.plugin.name,
                        "answers again: out of quarantine"
                    );
                }
            }
            Err(failure) => {
                if self.breaker.failed(context.now, self.limits.quarantine) == Tripped::Now {
                    *replaced |= self.quarantine(failure);
                }
            }
        }
        outcome
    }

    /// Takes over the state of the slot whose place it takes, as far as there is one.
    pub(crate) fn take_over(&mut self, before: &mut Self) {
        if let Some(stand_in) = &mut before.stand_in {
            return self.take_over(stand_in);
        }
        if let Err(error) = self.instance.take_over(&mut before.instance) {
            let plugin = &*self.stage.plugin.name;
            tracing::warn!(
                plugin,
                error,
                "can't take over the state of the generation before it, and begins without"
            );
        }
    }

    /// Takes the plugin out of service. Says whether another took its place.
    fn quarantine(&mut self, failure: &Failure) -> bool {
        self.stage
            .health
            .in_quarantine
            .fetch_add(1, Ordering::Relaxed);
        let (plugin, error) = (&*self.stage.plugin.name, &*failure.error);
        let Some(last_good) = &self.stage.last_good else {
            tracing::error!(
                plugin,
                error,
                "put into quarantine, since it failed again and again"
            );
            return false;
        };
        match Self::new(last_good, self.export, self.limits) {
            Ok(stand_in) => {
                self.stand_in = Some(Box::new(stand_in));
                tracing::error!(
                    plugin,
                    error,
                    "failed again and again: its last good generation takes over"
                );
                true
            }
            Err(refusal) => {
                tracing::error!(plugin, error, %refusal, "put into quarantine; its last good generation can't take over");
                false
            }
        }
    }
}

impl<A, R> Drop for Slot<A, R> {
    fn drop(&mut self) {
        if self.breaker.is_open() {
            self.stage
                .health
                .in_quarantine
                .fetch_sub(1, Ordering::Relaxed);
        }
    }
}
