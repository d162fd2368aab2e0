//! A stage in a worker's pipeline: its instance, and the fallback that is called instead once it
//! has taken over.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use presence_core::rules::{Context, Failure, StageOutcome, StageReport};

use crate::api::{Api, Find};
use crate::breaker::Admission;
use crate::call::{Call, Observations, StageCall};
use crate::instance::{CallCost, Instance};
use crate::latency::{Began, Sampler};
use crate::{Limits, LoadError, Quarantine, Stage};

/// A stage's instance, called with `A` and answering with `R`.
pub(crate) struct Slot<A, R> {
    pub(crate) stage: Arc<Stage>,
    instance: Instance<A, R>,
    /// The last good generation of the plugin, once it has taken over.
    fallback: Option<Box<Slot<A, R>>>,
    /// Whether the log says already that the last good generation can't take over.
    has_no_fallback: bool,
    /// Which of its calls are measured.
    sampler: Sampler,
    /// Selects the export of the stage's role in a version of the API.
    export: fn(&Api) -> Find<A, R>,
    limits: Limits,
}

impl<A, R> Slot<A, R> {
    /// The stage that is in force: this one, or the one that took over from it.
    pub(crate) fn in_force(&self) -> &Stage {
        match &self.fallback {
            Some(fallback) => fallback.in_force(),
            None => &self.stage,
        }
    }

    /// The plugin's name.
    pub(crate) fn name(&self) -> Arc<str> {
        Arc::clone(&self.in_force().plugin.name)
    }

    /// A report on the stage in force for an explanation, before it is called.
    pub(crate) fn report(&self) -> StageReport {
        let plugin = &self.in_force().plugin;
        StageReport {
            plugin: plugin.name.clone(),
            version: plugin.manifest.version.to_string(),
            sha256: plugin.sha256.clone(),
            role: plugin.manifest.role.as_str(),
            is_fallback: self.fallback.is_some(),
            outcome: StageOutcome::NotAsked,
            reasons: Vec::new(),
            viewer_reasons: Vec::new(),
            failure: None,
        }
    }

    /// Whether the last good generation has taken over from the stage in any worker. In this one,
    /// it takes over at the next call.
    pub(crate) fn is_replaced(&self) -> bool {
        self.stage.health.is_replaced()
    }
}

impl<A, R> Slot<A, R> {
    /// A slot whose instance is made when it is first called.
    pub(crate) fn new(stage: &Arc<Stage>, export: fn(&Api) -> Find<A, R>, limits: Limits) -> Self {
        Self {
            instance: Instance::new(stage, export, limits),
            stage: Arc::clone(stage),
            fallback: None,
            has_no_fallback: false,
            sampler: Sampler::default(),
            export,
            limits,
        }
    }

    /// Makes the instance now.
    pub(crate) fn make(&mut self) -> Result<(), LoadError> {
        self.instance.make()
    }

    /// Whether there is an instance, so that the next call needn't make one.
    pub(crate) fn is_made(&self) -> bool {
        self.fallback.is_some() || self.instance.is_made()
    }

    /// Drops the instances that weren't called since the last `release_unused`.
    pub(crate) fn release_unused(&mut self) {
        self.instance.release_unused();
        if let Some(fallback) = &mut self.fallback {
            fallback.release_unused();
        }
    }

    /// Gives calls the longer deadline of loading.
    pub(crate) fn use_load_limits(&mut self) {
        self.instance.use_load_limits();
    }

    /// The cost of the instance's last call.
    pub(crate) fn last_cost(&self) -> Option<CallCost> {
        self.instance.last_cost()
    }

    /// Calls the plugin, or the last good generation once it has taken over. Fails while it is in
    /// quarantine.
    pub(crate) fn call<T>(
        &mut self,
        context: Context<'_>,
        observed: &mut Observations,
        with: impl FnMut(&mut Call) -> wasmtime::Result<A>,
        read: impl FnMut(&mut Call, R) -> wasmtime::Result<T>,
    ) -> Result<T, Failure> {
        let outcome = self.call_in_service(context, observed, with, read);
        outcome.unwrap_or_else(|| {
            let stage = self.in_force();
            let last = stage.health.last_failure();
            let last = last.map_or_else(String::new, |last| {
                format!(", most recently: {}", last.error)
            });
            let why = match stage.withdrawn() {
                Some(why) => format!("it may not run any more: {why}"),
                None => format!("it failed on user after user{last}"),
            };
            Err(Failure {
                plugin: self.name(),
                error: format!("is in quarantine, since {why}"),
            })
        })
    }

    /// As [`call`](Self::call). `None` while the plugin is in quarantine.
    pub(crate) fn call_in_service<T>(
        &mut self,
        context: Context<'_>,
        observed: &mut Observations,
        with: impl FnMut(&mut Call) -> wasmtime::Result<A>,
        read: impl FnMut(&mut Call, R) -> wasmtime::Result<T>,
    ) -> Option<Result<T, Failure>> {
        if self.stage.withdrawn().is_some() {
            return None;
        }
        self.start_fallback();
        if let Some(fallback) = &mut self.fallback {
            return fallback.call_in_service(context, observed, with, read);
        }
        let (stage, quarantine) = (&self.stage, self.limits.quarantine);
        let breaker = &stage.health.breaker;
        if observed.is_uncounted {
            if breaker.is_open() {
                return None;
            }
            let outcome = self.instance.call(context, observed, with, read);
            observed.fuel += self.fuel_of_last();
            return Some(outcome);
        }
        let admission = match breaker.admit(context.monotonic, quarantine) {
            Admission::Refused => return None,
            admitted => admitted,
        };
        let began = self.sampler.begin();
        let traced = observed.calls.is_some().then(Began::now);
        let outcome = self.instance.call(context, observed, with, read);
        let fuel = self.fuel_of_last();
        observed.fuel += fuel;
        if let (Some(calls), Some(began)) = (&mut observed.calls, traced) {
            calls.push(StageCall {
                plugin: Arc::clone(&stage.plugin.name),
                role: stage.plugin.manifest.role.as_str(),
                began: began.at,
                took: began.elapsed(),
                has_failed: outcome.is_err(),
            });
        }
        if let Some(began) = began {
            let calls = &stage.health.calls;
            calls.latency.count(began.elapsed());
            calls.fuel.fetch_add(fuel, Ordering::Relaxed);
        }
        match (&outcome, admission) {
            // An answer wasn't cached: the plugin is called again, and that call counts.
            _ if observed.is_speculative() => {
                if let Admission::Trial(due) = admission {
                    breaker.reopen_trial(due);
                }
            }
            (Ok(_), Admission::Trial(_)) => {
                breaker.close();
                let plugin = &*stage.plugin.name;
                tracing::info!(plugin, "answers again: out of quarantine");
            }
            (Ok(_), _) => {}
            (Err(failure), _) => {
                stage.health.calls.failures.fetch_add(1, Ordering::Relaxed);
                let user = context.event.name.as_str();
                if breaker.failed(
                    context.monotonic,
                    (user, &failure.error),
                    admission,
                    quarantine,
                ) {
                    self.quarantine(&failure.error);
                    self.start_fallback();
                }
            }
        }
        Some(outcome)
    }

    /// The fuel that the instance's last call used. After a failure it is unknown, and taken to be
    /// the limit.
    fn fuel_of_last(&self) -> u64 {
        let spent = self.instance.last_cost();
        spent.map_or(self.limits.fuel, |spent| spent.fuel)
    }

    /// Takes over the state of the slot that this one replaces, if there is any.
    pub(crate) fn take_over(&mut self, before: &mut Self) {
        let may_not_run = |stage: &Stage| stage.withdrawn().is_some();
        if may_not_run(&self.stage) || may_not_run(&before.stage) {
            // A withdrawn plugin isn't called, but it may run again later with its state.
            if self.stage.is_same(&before.stage) {
                self.exchange_instance(before);
            }
            return;
        }
        if let Some(fallback) = &mut before.fallback {
            if !self.stage.lost_fallback() {
                self.take_over(fallback);
            }
            return;
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

    /// Swaps the instance with that of a slot that does the same within the same limits, unless a
    /// fallback has taken over in one of them.
    pub(crate) fn exchange_instance(&mut self, other: &mut Self) {
        let is_replaced = self.fallback.is_some() || other.fallback.is_some();
        if !is_replaced && self.limits == other.limits {
            std::mem::swap(&mut self.instance, &mut other.instance);
        }
    }

    /// Gives slots without an instance the instances of old slots that do the same. The old slots
    /// aren't used afterwards.
    pub(crate) fn take_instances(after: &mut [Self], before: &mut [Self]) {
        let mut before: Vec<_> = before.iter_mut().filter(|it| it.is_made()).collect();
        for slot in after.iter_mut().filter(|it| !it.is_made()) {
            let mut stages = before.iter().map(|it| &it.stage);
            if let Some(place) = stages.position(|stage| slot.stage.is_same(stage)) {
                slot.exchange_instance(before.remove(place));
            }
        }
    }

    /// Logs that the plugin is out of service. If there is a last good generation, it takes over in
    /// all workers.
    fn quarantine(&self, error: &str) {
        let plugin = &*self.stage.plugin.name;
        let Quarantine { users, ms, .. } = self.limits.quarantine;
        if let Some(last_good) = self.stage.fallback() {
            self.stage.health.replaced.store(true, Ordering::Relaxed);
            tracing::error!(
                plugin,
                error,
                last_good = %last_good.line(),
                "failed on {users} users in short order: its last good generation takes over"
            );
        } else {
            tracing::error!(
                plugin,
                error,
                "put into quarantine, since it failed on {users} users in short order: its events \
                 wait, until one call, which is tried in {ms} ms, succeeds, or the plugin is replaced"
            );
        }
    }

    /// Makes the fallback here, once the last good generation has taken over in any worker.
    fn start_fallback(&mut self) {
        if self.fallback.is_some() || !self.is_replaced() {
            return;
        }
        let Some(last_good) = self.stage.fallback() else {
            return;
        };
        let mut fallback = Self::new(last_good, self.export, self.limits);
        match fallback.make() {
            Ok(()) => self.fallback = Some(Box::new(fallback)),
            Err(refusal) if !std::mem::replace(&mut self.has_no_fallback, true) => {
                let plugin = &*self.stage.plugin.name;
                tracing::error!(plugin, %refusal, "its last good generation can't take over yet");
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;
    use std::time::Instant;

    use presence_core::audience::Audience;
    use presence_core::directory::Directory;
    use presence_core::names::Names;
    use serde_json::json;

    use super::*;
    use crate::api::{EventArg, Kind};
    use crate::pause::{TICK_MS, set_pause_work};
    use crate::{Engine, Plugin, self_test};

    /// How long a call may take here: long enough for a busy machine.
    const DEADLINE_MS: u64 = 20_000;

    type Filter = Slot<(EventArg, u32), u32>;

    /// A slot with the plugin `contacts`, whose instance isn't made yet, and its engine.
    fn contacts() -> (Engine, Filter) {
        let bytes = include_bytes!("../../../plugins/dist/contacts.wasm");
        // The engine's clock ticks until the engine is dropped.
        let engine = Engine::new().unwrap();
        let plugin = Plugin::load(&engine, "contacts", bytes).unwrap();
        let stage = Arc::new(Stage::new(Arc::new(plugin), json!({}), true, None));
        let limits = Limits {
            fuel: 10_000_000,
            memory_bytes_max: 1 << 24,
            deadline_ms: Some(DEADLINE_MS),
            metadata: Default::default(),
            quarantine: Quarantine {
                users: 1,
                window_ms: 1_000,
                ms: 1_000,
            },
        };
        let slot = Slot::new(&stage, |api| api.filter, limits);
        (engine, slot)
    }

    /// Calls the filter about a user of whom the directory knows nothing. `before` runs when the
    /// call begins.
    fn call(slot: &mut Filter, mut before: impl FnMut()) -> Result<u64, Failure> {
        let names = Arc::new(Names::new());
        let fields = json!({"type": "user_online", "userId": "ada", "timestamp": 1});
        let event = self_test::event(&names, fields.as_object().unwrap());
        let context = Context {
            now: 1,
            monotonic: 1,
            event: &Arc::new(event),
            directory: &Arc::new(Directory::new()),
            names: &names,
        };
        slot.call(
            context,
            &mut Observations::default(),
            |call| {
                before();
                let event = EventArg {
                    kind: Kind::Online,
                    user: "ada".into(),
                };
                Ok((event, call.put(Audience::nobody())?))
            },
            |call, token| Ok(call.audience(token)?.len()),
        )
    }

    /// Calls `contacts`. The first `calls` attempts get no processor until their deadline is over.
    /// Returns the outcome, and how many attempts were made.
    fn starved(calls: usize) -> (Result<u64, Failure>, usize) {
        let (engine, mut slot) = contacts();
        slot.make().unwrap();
        let mut made = 0;
        let outcome = call(&mut slot, || {
            made += 1;
            if made <= calls {
                // The clock ticks as if the thread hadn't run until after the deadline.
                for _ in 0..=DEADLINE_MS.div_ceil(TICK_MS) + 1 {
                    engine.ticks.tick(&engine.wasmtime);
                }
            }
        });
        let health = &slot.stage.health;
        assert_eq!(health.in_quarantine(), outcome.is_err());
        (outcome, made)
    }

    #[test]
    fn an_instance_is_made_at_the_first_call_and_given_back_once_nobody_calls_it() {
        let (_engine, mut slot) = contacts();
        assert!(slot.last_cost().is_none());
        assert_eq!(call(&mut slot, || ()), Ok(0));
        slot.release_unused();
        assert!(slot.last_cost().is_some(), "it was called since");
        slot.release_unused();
        assert!(slot.last_cost().is_none());
        assert_eq!(call(&mut slot, || ()), Ok(0));
        assert!(slot.last_cost().is_some());
    }

    #[test]
    fn a_call_that_is_paused_goes_on_and_what_others_take_meanwhile_is_none_of_its_time() {
        let (engine, mut slot) = contacts();
        slot.make().unwrap();
        let other = RefCell::new(contacts().1);
        other.borrow_mut().make().unwrap();
        let pauses = Rc::new(Cell::new(0));
        let (clock, counted) = (engine.clone(), Rc::clone(&pauses));
        set_pause_work(Rc::new(move || {
            let begun = Instant::now();
            counted.set(counted.get() + 1);
            let answer = other.try_borrow_mut().map(|mut it| call(&mut it, || ()));
            assert_eq!(answer.unwrap(), Ok(0), "another plugin is called meanwhile");
            for _ in 0..=DEADLINE_MS.div_ceil(TICK_MS) + 1 {
                clock.ticks.tick(&clock.wasmtime);
            }
            begun.elapsed()
        }));
        let began = Began::now();
        let raise = || engine.wasmtime.increment_epoch();
        assert_eq!(call(&mut slot, raise), Ok(0));
        assert!(pauses.get() > 0);
        assert!(began.elapsed() < began.at.elapsed());
    }

    #[test]
    fn a_call_that_got_no_processor_is_made_again_before_it_counts() {
        assert_eq!(starved(1), (Ok(0), 2));
        let (outcome, made) = starved(usize::MAX);
        assert_eq!(outcome.unwrap_err().error, "took longer than 20000 ms");
        assert_eq!(made, 3);
    }
}
