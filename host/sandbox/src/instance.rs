//! One instance of a component, in a store of its own, within its limits. A
//! component that failed, or is about to, is begun afresh before its next call.

use std::sync::Arc;

use presence_core::rules::{Context, Failure};
use serde_json::Value;
use wasmtime::{Store, Trap};

use crate::api::{Api, Export, Find};
use crate::call::{Call, Seen};
use crate::engine::TICK_MS;
use crate::error::one_line;
use crate::manifest::Role;
use crate::memory::Memory;
use crate::state::Stateful;
use crate::trial::Spent;
use crate::{Limits, LoadError, Plugin};

/// The fuel of so many calls is for handing over a state, or for taking it over.
const HAND_OVER_CALLS: u64 = 10;

/// An instance, called with `A` and answering with `R`.
pub(crate) struct Instance<A, R> {
    pub(crate) plugin: Arc<Plugin>,
    export: Find<A, R>,
    config: String,
    limits: Limits,
    /// None once it has failed.
    live: Option<Live<A, R>>,
}

/// What there is of an instance while it hasn't failed.
struct Live<A, R> {
    store: Store<Call>,
    function: Export<A, R>,
    /// For a stateful enricher.
    stateful: Option<Stateful>,
}

impl<A, R> Instance<A, R> {
    /// An instance that has taken its configuration.
    pub(crate) fn new(
        plugin: &Arc<Plugin>,
        export: fn(&Api) -> Find<A, R>,
        config: &Value,
        limits: Limits,
    ) -> Result<Self, LoadError> {
        let limits = limits.within(plugin.manifest.limits);
        let config = config.to_string();
        let mut instance = Self {
            plugin: Arc::clone(plugin),
            export: export(plugin.api),
            config,
            limits,
            live: None,
        };
        instance.live = Some(instance.begin(limits.while_loading())?);
        Ok(instance)
    }

    /// Calls it. Adds what it read and asked in vain to what has been seen,
    /// whatever came of it.
    pub(crate) fn call<T>(
        &mut self,
        context: Context<'_>,
        seen: &mut Seen,
        with: impl FnOnce(&mut Call) -> wasmtime::Result<A>,
        read: impl FnOnce(&mut Call, R) -> wasmtime::Result<T>,
    ) -> Result<T, Failure> {
        let failure = |plugin: &Plugin, error: String| Failure {
            plugin: Arc::clone(&plugin.name),
            error,
        };
        let mut live = match self.live.take() {
            Some(live) => live,
            None => self
                .begin(self.limits)
                .map_err(|error| failure(&self.plugin, error.to_string()))?,
        };
        let store = &mut live.store;
        store.data_mut().begin(context, seen);
        let outcome = refill(store, self.limits).and_then(|()| {
            let args = with(store.data_mut())?;
            let result = (live.function)(store, args)?;
            read(store.data_mut(), result)
        });
        store.data_mut().end(seen);
        match outcome {
            Ok(outcome) => {
                let call = store.data();
                // Only what can be handed over is worth more than memory.
                let is_used_up = call.memory.is_used_up() && live.stateful.is_none();
                self.live = (call.has_tokens() && !is_used_up).then_some(live);
                Ok(outcome)
            }
            Err(error) => {
                let error = describe(&error, store.data(), self.limits);
                Err(failure(&self.plugin, error))
            }
        }
    }

    /// Gives its calls as much time as there is while a plugin is loaded.
    pub(crate) fn at_leisure(&mut self) {
        self.limits = self.limits.while_loading();
    }

    /// What its last call took, and what it holds. None where it is to be begun
    /// afresh: once it has failed, or has used up its memory.
    pub(crate) fn spent(&self) -> Option<Spent> {
        let store = &self.live.as_ref()?.store;
        let left = store.get_fuel().unwrap_or_default();
        Some(Spent {
            fuel: self.limits.fuel.saturating_sub(left),
            memory_bytes: store.data().memory.taken(),
        })
    }

    /// Takes over the state of the instance whose place it takes, if both have one:
    /// one that has failed has lost its own. Where that can't be done, it begins
    /// without.
    pub(crate) fn take_over(&mut self, before: &mut Self) -> Result<(), String> {
        if !self.is_stateful() || !before.is_stateful() {
            return Ok(());
        }
        let state = before.hand_over(Stateful::save)?;
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

    /// Calls a stateful enricher about its state: within the limits of any call, but
    /// for more fuel, since a state takes in many events.
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
        store.data_mut().end(&mut Seen::default());
        outcome.map_err(|error| describe(&error, store.data(), limits))
    }

    fn begin(&self, limits: Limits) -> Result<Live<A, R>, LoadError> {
        let plugin = || self.plugin.name.to_string();
        let refuses = |what| LoadError::Configure {
            plugin: plugin(),
            what,
        };
        let lacks = |what: &str, error: wasmtime::Error| LoadError::Link {
            plugin: plugin(),
            what: format!(
                "it doesn't export `{what}` as its role does: {}",
                one_line(error)
            ),
        };
        let memory = Memory::new(limits.memory_bytes_max);
        let call = Call::new(Arc::clone(&self.plugin.name), memory);
        let mut store = Store::new(self.plugin.linked.component().engine(), call);
        store.limiter(|call| &mut call.memory);
        let wrong = |store: &Store<Call>, error| refuses(describe(&error, store.data(), limits));
        let handle = refill(&mut store, limits)
            .and_then(|()| self.plugin.linked.instantiate(&mut store))
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
            return Err(LoadError::Link { plugin, what });
        }
        let configure = (self.plugin.api.configure)(&handle, &mut store)
            .map_err(|error| lacks("configure", error))?;
        let taken =
            configure(&mut store, self.config.clone()).map_err(|error| wrong(&store, error))?;
        taken.map_err(refuses)?;
        store.data_mut().memory.rest();
        store.data_mut().end(&mut Seen::default());
        Ok(Live {
            store,
            function,
            stateful,
        })
    }
}

fn refill(store: &mut Store<Call>, limits: Limits) -> wasmtime::Result<()> {
    store.set_fuel(limits.fuel)?;
    // Without a deadline the clock may tick for longer than anyone will wait.
    store.set_epoch_deadline(
        limits
            .deadline_ms
            .map_or(u64::MAX / 4, |ms| ms.div_ceil(TICK_MS) + 1),
    );
    Ok(())
}

/// A failure in one line, which says which limit was passed, if one was.
fn describe(error: &wasmtime::Error, call: &Call, limits: Limits) -> String {
    let refused = if call.memory.refused {
        let bytes = limits.memory_bytes_max;
        format!(", after it was refused more than {bytes} bytes of memory")
    } else {
        String::new()
    };
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => format!("used up its fuel of {}", limits.fuel),
        Some(Trap::Interrupt) => {
            format!(
                "took longer than {} ms",
                limits.deadline_ms.unwrap_or_default()
            )
        }
        Some(Trap::StackOverflow) => "recursed until its stack was used up".into(),
        Some(trap) => format!("trapped: {trap}{refused}"),
        None => format!("{}{refused}", one_line(error)),
    }
}
