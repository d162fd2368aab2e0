//! A plugin: one file, compiled, with its manifest.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, InstancePre, Linker};

use crate::api::Api;
use crate::call::Call;
use crate::capability::{Capabilities, Capability};
use crate::error::{one_line, shortened};
use crate::lines::Lines;
use crate::manifest::{Manifest, Role};
use crate::pause::Ticks;
use crate::recorder::LineRecorder;
use crate::{Engine, Limits, LoadError, bounds, wasi};

/// A compiled plugin, linked to the host's interfaces and nothing else.
pub struct Plugin {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Its manifest.
    pub manifest: Manifest,
    /// The SHA-256 of its file, in hexadecimal.
    pub sha256: Arc<str>,
    /// Whether it is a stateful enricher: each shard then has an instance of its own.
    pub(crate) keeps_state: bool,
    /// The capabilities that it asks for: those that its manifest names, or else those that its
    /// imports need.
    pub(crate) asks: Capabilities,
    /// The version of the API that it was built against.
    pub(crate) api: &'static Api,
    pub(crate) linked: InstancePre<Call>,
    /// The log lines of its instances.
    pub(crate) lines: Arc<Lines>,
    /// How long its file is, in bytes.
    pub file_bytes: usize,
    /// What the host needs for one of its instances besides memories and tables, in bytes.
    pub(crate) fixed_bytes: usize,
    /// The clock for the deadlines of its calls.
    pub(crate) ticks: Ticks,
    known: Known,
}

/// Results that hold for all tenants that use the plugin.
#[derive(Default)]
struct Known {
    /// The component linked to the host functions of a set of capabilities.
    linked: Mutex<Vec<(Capabilities, InstancePre<Call>)>>,
    /// The limits within which it has passed its self-tests.
    passed: Mutex<VecDeque<Limits>>,
}

/// How many results of each kind are kept for a plugin.
const KNOWN_MAX: usize = 64;

impl Plugin {
    /// How many of its log lines were left out, since it wrote too many.
    pub fn lines_left_out(&self) -> u64 {
        self.lines.total()
    }

    /// Compiles a plugin's file. This takes long: call it where nobody waits.
    ///
    /// # Errors
    /// If the file isn't a component or has no manifest, or if it imports an interface that plugins
    /// aren't given.
    pub fn load(engine: &Engine, name: &str, bytes: &[u8]) -> Result<Self, LoadError> {
        let manifest = Manifest::read(name, bytes)?;
        let api = Api::of(&manifest.api).map_err(|what| LoadError::NotAPlugin {
            plugin: name.into(),
            what,
        })?;
        Self::link(engine, name, bytes, manifest, api)
    }

    /// The same compiled plugin under another name, with a limit of log lines of its own.
    #[must_use]
    pub fn with_name(&self, name: &str) -> Self {
        Self {
            name: name.into(),
            manifest: self.manifest.clone(),
            sha256: Arc::clone(&self.sha256),
            keeps_state: self.keeps_state,
            asks: self.asks,
            api: self.api,
            linked: self.linked.clone(),
            lines: Arc::default(),
            file_bytes: self.file_bytes,
            fixed_bytes: self.fixed_bytes,
            ticks: self.ticks.clone(),
            known: Known::default(),
        }
    }

    /// The same plugin. Everything that its instances write is passed to the recorder.
    #[must_use]
    pub fn with_recorder(&self, recorder: &Arc<LineRecorder>) -> Self {
        Self {
            lines: Lines::with_recorder(recorder).into(),
            ..self.with_name(&self.name)
        }
    }

    /// The component, linked only to the host functions of these capabilities.
    pub(crate) fn linked_to(&self, granted: Capabilities) -> wasmtime::Result<InstancePre<Call>> {
        let mut known = locked(&self.known.linked);
        if let Some((_, linked)) = known.iter().find(|(it, _)| *it == granted) {
            return Ok(linked.clone());
        }
        let linked = linked(self.api, self.linked.component(), granted)?;
        if known.len() < KNOWN_MAX {
            known.push((granted, linked.clone()));
        }
        Ok(linked)
    }

    /// Whether it has passed its self-tests within these limits, perhaps for another tenant: it
    /// needn't run them again.
    pub(crate) fn has_passed(&self, limits: &Limits) -> bool {
        locked(&self.known.passed).contains(limits)
    }

    /// Notes that it has passed its self-tests within these limits.
    pub(crate) fn mark_passed(&self, limits: Limits) {
        let mut passed = locked(&self.known.passed);
        if passed.contains(&limits) {
            return;
        }
        if passed.len() >= KNOWN_MAX {
            passed.pop_front();
        }
        passed.push_back(limits);
    }

    /// The capabilities that it asks for, as a manifest and a configuration spell them.
    pub fn asks(&self) -> Vec<&'static str> {
        self.asks.iter().map(Capability::as_str).collect()
    }

    /// Compiles a plugin, and links it to a version of the API.
    pub(crate) fn link(
        engine: &Engine,
        name: &str,
        bytes: &[u8],
        manifest: Manifest,
        api: &'static Api,
    ) -> Result<Self, LoadError> {
        let not = |error| LoadError::NotAPlugin {
            plugin: name.into(),
            what: one_line(error),
        };
        let fixed_bytes = bounds::check(name, bytes)?;
        let component = engine.component(bytes).map_err(not)?;
        // Checked before linking: the linker would name only one missing import, in its own words.
        let imports = component.component_type();
        let imports = imports.imports(&engine.wasmtime);
        let foreign = imports.map(|(name, _)| name.to_owned());
        let named = manifest.requested();
        let takes_wasi = named.has(Capability::Wasi);
        let is_offered = |name: &str| api.offers(name) || takes_wasi && wasi::offers(name);
        let foreign: Vec<_> = foreign.filter(|name| !is_offered(name)).collect();
        if !foreign.is_empty() {
            return Err(LoadError::Link {
                plugin: name.into(),
                what: format!(
                    "it imports {}, and plugins are given nothing but presence:plugin {}",
                    shortened(foreign.join(", ")),
                    api.version
                ),
            });
        }
        let imported = imported(&component);
        let asks = asks(named, &imported).map_err(|what| LoadError::Link {
            plugin: name.into(),
            what,
        })?;
        let linked = linked(api, &component, Capabilities::ALL);
        let linked = linked.map_err(|error| LoadError::Link {
            plugin: name.into(),
            what: one_line(error),
        })?;
        let keeps_state = manifest.role == Role::Enricher && (api.keeps_state)(&component);
        Ok(Self {
            name: name.into(),
            keeps_state,
            manifest,
            sha256: sha256(bytes),
            asks,
            api,
            file_bytes: bytes.len(),
            fixed_bytes,
            ticks: engine.ticks.clone(),
            linked,
            lines: Arc::default(),
            known: Known::default(),
        })
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Links a component only to the host functions of these capabilities. The functions of WASI that
/// it imports are linked, too, but denied.
fn linked(
    api: &Api,
    component: &Component,
    granted: Capabilities,
) -> wasmtime::Result<InstancePre<Call>> {
    let mut linker = Linker::new(component.engine());
    (api.link)(&mut linker, granted)?;
    wasi::deny(&mut linker, component)?;
    linker.instantiate_pre(component)
}

/// The imported functions that need a capability, each with the capability.
fn imported(component: &Component) -> Vec<(String, Capability)> {
    let engine = component.engine();
    let mut imported = Vec::new();
    for (name, import) in component.component_type().imports(engine) {
        let interface = name.strip_prefix("presence:plugin/");
        let interface = interface.and_then(|name| name.split('@').next());
        let (Some(interface), ComponentItem::ComponentInstance(instance)) = (interface, import.ty)
        else {
            continue;
        };
        let functions = instance.exports(engine).filter_map(|(function, _)| {
            let needed = Capability::needed_for(interface, function)?;
            Some((function.to_owned(), needed))
        });
        imported.extend(functions);
    }
    imported
}

/// The capabilities that a plugin asks for. If its manifest names any that host functions need, it
/// must name all that the imports need. If it names none of them, the plugin asks for those that
/// the imports need.
fn asks(named: Capabilities, imported: &[(String, Capability)]) -> Result<Capabilities, String> {
    if named.intersection(Capabilities::HOST_FUNCTIONS).is_empty() {
        let imported = imported.iter().map(|(_, needed)| *needed);
        return Ok(named.union(imported.collect()));
    }
    let unnamed = imported.iter().find(|(_, needed)| !named.has(*needed));
    match unnamed {
        None => Ok(named),
        Some((function, needed)) => Err(format!(
            "it imports `{function}`, and its manifest doesn't ask for that: put \"{}\" into its \
             capabilities",
            needed.as_str()
        )),
    }
}

/// The SHA-256 of some bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> Arc<str> {
    let digest = Sha256::digest(bytes);
    let digits = digest.iter().map(|byte| format!("{byte:02x}"));
    digits.collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_granted_is_not_linked() {
        let bytes = include_bytes!("../../../plugins/dist/contacts.wasm");
        let plugin = Plugin::load(&Engine::new().unwrap(), "contacts", bytes).unwrap();
        assert!(plugin.asks().contains(&"contacts"));
        assert!(!plugin.asks().contains(&"groups"));
        assert!(plugin.linked_to(plugin.asks).is_ok());
        let less = Capabilities::ALL.difference(Capabilities::NONE.with(Capability::Contacts));
        let error = plugin.linked_to(less).err().unwrap();
        assert!(one_line(&error).contains("contacts"), "{error:#}");
    }
}
