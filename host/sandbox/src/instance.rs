//! One instance of a component, in a store of its own, within its limits. If a call fails, or the
//! instance has used up its memory, the next call gets a new instance.

use std::sync::Arc;

use presence_core::rules::{Context, Failure};
use wasmtime::component::InstancePre;
use wasmtime::{Store, UpdateDeadline};

use crate::api::{Api, Export, Find, Stateful};
use crate::call::{Call, Observations};
use crate::error::{one_line, shortened};
use crate::failure::{CallFailure, HANDLES_MAX, LIFTED_BYTES_MAX};
use crate::manifest::Role;
use crate::memory::{Memory, MemoryBudget};
use crate::pause::{Deadline, TICK_MS};
use crate::{Limits, LoadError, Plugin, Stage};

/// `save` and `restore` may each use the fuel of this many calls.
const HAND_OVER_CALLS: u64 = 10;

/// How often a call is tried that runs past its deadline. Fuel ends nearly every call that is slow
/// itself. A call that runs past its deadline mostly got no processor, so it is tried again.
const LATE_CALLS_MAX: u32 = 3;

/// The cost of a call.
#[derive(Clone, Copy, Debug)]
pub struct CallCost {
    /// The fuel that it used.
    pub fuel: u64,
    /// The memory that the instance has after the call, in bytes. An instance never gives memory
    /// back.
    pub memory_bytes: usize,
}

/// Why an instance couldn't be made.
enum StartFailure {
    /// Instantiating or configuring the plugin failed as a call: it trapped, or exceeded a limit.
    CallFailure(CallFailure),
    /// The plugin isn't what it should be, or refuses its configuration.
    Unfit(LoadError),
}

/// An instance, called with `A` and answering with `R`.
pub(crate) struct Instance<A, R> {
    pub(crate) plugin: Arc<Plugin>,
    /// The component, linked to the host functions that it may call.
    linked: InstancePre<Call>,
    export: Find<A, R>,
    config: String,
    limits: Limits,
    /// The memory budget that it shares with other instances.
    memory: MemoryBudget,
    /// `None` before the first call, after a failure, and after the instance was released.
    live: Option<Live<A, R>>,
    /// Whether the next instance is the first one, or the first after a release: it is then made with
    /// the longer deadline of loading.
    is_fresh: bool,
    /// Whether it was called since the last `release_unused`.
    is_used: bool,
}

/// An instance that hasn't failed.
struct Live<A, R> {
    store: Store<Call>,
    function: Export<A, R>,
    /// `None` unless the plugin is a stateful enricher.
    stateful: Option<Stateful>,
}

impl<A, R> Instance<A, R> {
    /// An instance that is made when it is first called.
    pub(crate) fn new(stage: &Stage, export: fn(&Api) -> Find<A, R>, limits: Limits) -> Self {
        let plugin = &stage.plugin;
        Self {
            plugin: Arc::clone(plugin),
            linked: stage.linked().clone(),
            export: export(plugin.api),
            config: stage.config.to_string(),
            limits: limits.capped_by(plugin.manifest.limits),
            memory: stage.memory.clone(),
            live: None,
            is_fresh: true,
            is_used: false,
        }
    }

    /// Makes and configures the instance now, if there is none.
    pub(crate) fn make(&mut self) -> Result<(), LoadError> {
        if self.live.is_none() {
            let live = match self.start(self.limits.while_loading()) {
                Ok(live) => live,
                Err(StartFailure::CallFailure(failure)) => {
                    return Err(self.configure_error(failure.error));
                }
                Err(StartFailure::Unfit(error)) => return Err(error),
            };
            self.live = Some(live);
            self.is_fresh = false;
        }
        Ok(())
    }

    /// Whether there is an instance, so that the next call needn't make one.
    pub(crate) fn is_made(&self) -> bool {
        self.live.is_some()
    }

    /// Drops the instance if it wasn't called since the last `release_unused`. The next call makes
    /// a new one.
    pub(crate) fn release_unused(&mut self) {
        if !std::mem::take(&mut self.is_used) && self.live.take().is_some() {
            self.is_fresh = true;
        }
    }

    /// Calls the plugin. Adds what the call read, and its cache misses, to `observed`, even if the
    /// call fails. A call that ran past its deadline is retried at once: the machine may have been
    /// slow.
    pub(crate) fn call<T>(
        &mut self,
        context: Context<'_>,
        observed: &mut Observations,
        mut with: impl FnMut(&mut Call) -> wasmtime::Result<A>,
        mut read: impl FnMut(&mut Call, R) -> wasmtime::Result<T>,
    ) -> Result<T, Failure> {
        let mut late = 0;
        loop {
            let failure = match self.try_call(context, observed, &mut with, &mut read) {
                Ok(outcome) => return Ok(outcome),
                Err(failure) => failure,
            };
            late += 1;
            if failure.is_late && late < LATE_CALLS_MAX && !observed.is_speculative() {
                continue;
            }
            return Err(Failure {
                plugin: Arc::clone(&self.plugin.name),
                error: failure.error,
            });
        }
    }

    fn try_call<T>(
        &mut self,
        context: Context<'_>,
        observed: &mut Observations,
        with: impl FnOnce(&mut Call) -> wasmtime::Result<A>,
        read: impl FnOnce(&mut Call, R) -> wasmtime::Result<T>,
    ) -> Result<T, CallFailure> {
        self.is_used = true;
        let limits = match std::mem::take(&mut self.is_fresh) {
            true => self.limits.while_loading(),
            false => self.limits,
        };
        let mut live = match self.live.take() {
            Some(live) => live,
            None => self.start(limits).map_err(|refusal| match refusal {
                StartFailure::CallFailure(failure) => CallFailure {
                    error: self.configure_error(failure.error).to_string(),
                    ..failure
                },
                StartFailure::Unfit(error) => CallFailure {
                    error: error.to_string(),
                    is_late: false,
                },
            })?,
        };
        let store = &mut live.store;
        store.data_mut().begin(context, observed);
        let outcome = refill(store, self.limits).and_then(|()| {
            let args = with(store.data_mut())?;
            let result = (live.function)(store, args)?;
            read(store.data_mut(), result)
        });
        store.data_mut().end(observed);
        match outcome {
            Ok(outcome) => {
                let call = store.data();
                call.log_error();
                // A stateful instance is kept even if it has used up its memory: its state would be
                // lost.
                let is_used_up = call.memory.is_used_up() && live.stateful.is_none();
                self.live = (call.has_tokens() && !is_used_up).then_some(live);
                Ok(outcome)
            }
            Err(error) => Err(CallFailure::of(&error, store.data(), self.limits)),
        }
    }

    /// Gives calls the longer deadline of loading.
    pub(crate) fn use_load_limits(&mut self) {
        self.limits = self.limits.while_loading();
    }

    /// The cost of the last call. `None` if there is no instance: the call failed, or the instance
    /// used up its memory.
    pub(crate) fn last_cost(&self) -> Option<CallCost> {
        let store = &self.live.as_ref()?.store;
        let left = store.get_fuel().unwrap_or_default();
        Some(CallCost {
            fuel: self.limits.fuel.saturating_sub(left),
            memory_bytes: store.data().memory.taken(),
        })
    }

    /// Takes over the state of the instance that it replaces, if both are stateful. An instance
    /// that has failed has lost its state. If the state can't be handed over, this instance begins
    /// without one.
    pub(crate) fn take_over(&mut self, before: &mut Self) -> Result<(), String> {
        if !self.plugin.keeps_state || !before.is_stateful() {
            return Ok(());
        }
        self.make().map_err(|error| error.to_string())?;
        let state = before.hand_over(Stateful::save).inspect_err(|_| {
            // An instance that has trapped can't be called again. If `before` keeps running, it
            // needs a new one.
            before.live = None;
        })?;
        let taken = self.hand_over(|stateful, store| stateful.restore(store, state));
        if taken.is_err() {
            self.live = None;
        }
        taken
    }

    fn is_stateful(&self) -> bool {
        let live = self.live.as_ref();
        live.is_some_and(|live| live.stateful.is_some())
    }

    /// Calls `save` or `restore` of a stateful enricher. The limits of any call apply, with more
    /// fuel, since a state is about many events.
    fn hand_over<T>(
        &mut self,
        call: impl FnOnce(&Stateful, &mut Store<Call>) -> wasmtime::Result<T>,
    ) -> Result<T, String> {
        let Some(Live {
            store,
            stateful: Some(stateful),
            ..
        }) = &mut self.live
        else {
            return Err("has no state".into());
        };
        let limits = Limits {
            fuel: self.limits.fuel.saturating_mul(HAND_OVER_CALLS),
            ..self.limits
        };
        store.data_mut().begin_without_event();
        let outcome = refill(store, limits).and_then(|()| call(stateful, store));
        store.data_mut().end(&mut Observations::default());
        let call = store.data();
        let outcome = outcome.map_err(|error| CallFailure::of(&error, call, limits).error);
        if outcome.is_ok() {
            call.log_error();
        }
        outcome
    }

    /// The error that the plugin refuses its configuration.
    fn configure_error(&self, what: String) -> LoadError {
        // The text of `LoadError::Configure` says "configuration" already, and the SDKs' messages
        // begin with it as well.
        let what = match what.strip_prefix("configuration: ") {
            Some(what) => what.to_owned(),
            None => what,
        };
        LoadError::Configure {
            plugin: self.plugin.name.to_string(),
            what,
        }
    }

    fn start(&self, limits: Limits) -> Result<Live<A, R>, StartFailure> {
        let plugin = || self.plugin.name.to_string();
        let lacks = |what: &str, error: wasmtime::Error| {
            StartFailure::Unfit(LoadError::Link {
                plugin: plugin(),
                what: format!(
                    "it doesn't export `{what}` as its role does: {}",
                    one_line(error)
                ),
            })
        };
        let mut memory = Memory::new(limits.memory_bytes_max, &self.memory);
        let fixed_bytes = self.plugin.fixed_bytes;
        if !memory.take_fixed(fixed_bytes) {
            let may = match memory.refused_by_budget {
                Some(max) => format!(
                    "all plugins together may have {max} ([limits] plugin_memory_bytes_max)"
                ),
                None => format!("may have {}", limits.memory_bytes_max),
            };
            return Err(StartFailure::CallFailure(CallFailure {
                error: format!(
                    "takes {fixed_bytes} bytes of memory for what it declares, and {may}"
                ),
                is_late: false,
            }));
        }
        let name = Arc::clone(&self.plugin.name);
        let log = Arc::clone(&self.plugin.lines);
        let deadline = Deadline::new(&self.plugin.ticks);
        let call = Call::new(name, log, memory, deadline, limits.metadata);
        let mut store = Store::new(self.linked.component().engine(), call);
        follow_deadline(&mut store);
        store.limiter(|call| &mut call.memory);
        store.set_hostcall_fuel(LIFTED_BYTES_MAX);
        store.set_max_component_handles(HANDLES_MAX);
        let wrong = |store: &Store<Call>, error| {
            StartFailure::CallFailure(CallFailure::of(&error, store.data(), limits))
        };
        let handle = refill(&mut store, limits)
            .and_then(|()| self.linked.instantiate(&mut store))
            .map_err(|error| wrong(&store, error))?;
        let role = self.plugin.manifest.role;
        let function =
            (self.export)(&handle, &mut store).map_err(|error| lacks(role.export(), error))?;
        let stateful = match role {
            Role::Enricher => (self.plugin.api.stateful)(&handle, &mut store)
                .map_err(|error| lacks("save` and `restore", error))?,
            Role::Filter | Role::Redactor => None,
        };
        if self.plugin.manifest.stateful && stateful.is_none() {
            let plugin = plugin();
            let what = "its manifest says that it is stateful, and it isn't an enricher that exports `save` and `restore`".into();
            return Err(StartFailure::Unfit(LoadError::Link { plugin, what }));
        }
        let configure = (self.plugin.api.configure)(&handle, &mut store)
            .map_err(|error| lacks("configure", error))?;
        let taken =
            configure(&mut store, self.config.clone()).map_err(|error| wrong(&store, error))?;
        store.data().log_error();
        taken.map_err(|what| StartFailure::Unfit(self.configure_error(shortened(what))))?;
        store.data_mut().memory.mark_baseline();
        store.data_mut().end(&mut Observations::default());
        Ok(Live {
            store,
            function,
            stateful,
        })
    }
}

fn refill(store: &mut Store<Call>, limits: Limits) -> wasmtime::Result<()> {
    store.set_fuel(limits.fuel)?;
    let ticks = limits.deadline_ms.map(|ms| ms.div_ceil(TICK_MS) + 1);
    store.data_mut().deadline.begin(ticks);
    Ok(())
}

/// Lets calls in this store pause, and ends them at their deadline. The engine's clock and a
/// [`Pauser`] raise the epoch. The call then pauses at its next epoch check, and is told whether it
/// may go on. A call that begins later checks as well, so no pause is missed that was requested
/// between two calls. The first call in a store checks in any case.
fn follow_deadline(store: &mut Store<Call>) {
    store.epoch_deadline_callback(|mut store| {
        Ok(match store.data_mut().deadline.pause() {
            true => UpdateDeadline::Continue(1),
            false => UpdateDeadline::Interrupt,
        })
    });
}
