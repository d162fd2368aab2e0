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
    /// What it says of itself.
    pub manifest: Manifest,
    /// The SHA-256 of its file, in hexadecimal.
    pub sha256: Arc<str>,
    /// Whether it is an enricher that keeps a state: each shard then has an instance of its
    /// own.
    pub(crate) keeps_state: bool,
    /// What it asks for: the functions that its manifest names, or else those that it imports.
    pub(crate) asks: Capabilities,
    /// What it was built against.
    pub(crate) api: &'static Api,
    pub(crate) linked: InstancePre<Call>,
    /// What its instances write to the log.
    pub(crate) lines: Arc<Lines>,
    /// How long its file is, in bytes.
    pub file_bytes: usize,
    /// What its instances take in the host beside their memories and tables, in bytes.
    pub(crate) fixed_bytes: usize,
    /// The clock by which its calls end.
    pub(crate) ticks: Ticks,
    known: Known,
}

/// What has been found of a plugin, and holds for all tenants that use it.
#[derive(Default)]
struct Known {
    /// With no more of the host than this.
    linked: Mutex<Vec<(Capabilities, InstancePre<Call>)>>,
    /// Within which limits it has passed its self-tests.
    passed: Mutex<VecDeque<Limits>>,
}

/// How much is known of a plugin at most, of each kind.
const KNOWN_MAX: usize = 64;

impl Plugin {
    /// How many lines of the log were left out, since it wrote too many of them.
    pub fn lines_left_out(&self) -> u64 {
        self.lines.total()
    }

    /// Compiles a plugin's file. This takes long: do it where nobody waits.
    ///
    /// # Errors
    /// Without a manifest, if it isn't a component, or if it asks for an
    /// interface that plugins aren't given.
    pub fn load(engine: &Engine, name: &str, bytes: &[u8]) -> Result<Self, LoadError> {
        let manifest = Manifest::read(name, bytes)?;
        let api = Api::of(&manifest.api).map_err(|what| LoadError::NotAPlugin {
            plugin: name.into(),
            what,
        })?;
        Self::link(engine, name, bytes, manifest, api)
    }

    /// The same compiled code under another name. What it writes to the log is limited by
    /// itself.
    #[must_use]
    pub fn renamed(&self, name: &str) -> Self {
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

    /// The same plugin, of which all that its instances write is recorded.
    #[must_use]
    pub fn recorded(&self, recorder: &Arc<LineRecorder>) -> Self {
        Self {
            lines: Lines::recorded(recorder).into(),
            ..self.renamed(&self.name)
        }
    }

    /// With no more of the host than this.
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

    /// Whether it has passed its self-tests within these limits: it need not again, for another
    /// tenant.
    pub(crate) fn has_passed(&self, limits: &Limits) -> bool {
        locked(&self.known.passed).contains(limits)
    }

    /// It has passed its self-tests within these limits.
    pub(crate) fn passes(&self, limits: Limits) {
        let mut passed = locked(&self.known.passed);
        if passed.contains(&limits) {
            return;
        }
        if passed.len() >= KNOWN_MAX {
            passed.pop_front();
        }
        passed.push_back(limits);
    }

    /// What it asks for, as a manifest and a configuration spell it.
    pub fn asks(&self) -> Vec<&'static str> {
        self.asks.iter().map(Capability::as_str).collect()
    }

    /// Compiles it, and gives it what a version of the API offers.
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
        // Said before the linker says it, in its own words and one at a time.
        let imports = component.component_type();
        let imports = imports.imports(&engine.wasmtime);
        let foreign = imports.map(|(name, _)| name.to_owned());
        let named = manifest.named();
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

/// A component with what it may have of the host.
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

/// What a component imports of what must be granted: the functions, each with what it needs.
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

/// What a plugin asks for. A manifest that names some of what must be granted for functions of
/// the host names all of it; one that names none asks for what the component imports.
fn asks(named: Capabilities, imported: &[(String, Capability)]) -> Result<Capabilities, String> {
    if named.within(Capabilities::KINDS).is_empty() {
        let imported = imported.iter().map(|(_, needed)| *needed);
        return Ok(named.and(imported.collect()));
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
        let less = Capabilities::ALL.less(Capabilities::NONE.with(Capability::Contacts));
        let error = plugin.linked_to(less).err().unwrap();
        assert!(one_line(&error).contains("contacts"), "{error:#}");
    }
}
