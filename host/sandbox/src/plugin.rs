//! A plugin: one file, compiled, with its manifest.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use wasmtime::component::{InstancePre, Linker};

use crate::api::Api;
use crate::call::Call;
use crate::error::{one_line, shortened};
use crate::lines::Lines;
use crate::manifest::{Manifest, Role};
use crate::recorder::LineRecorder;
use crate::{Engine, LoadError, bounds, wasi};

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
    /// What it was built against.
    pub(crate) api: &'static Api,
    pub(crate) linked: InstancePre<Call>,
    /// What its instances write to the log.
    pub(crate) lines: Arc<Lines>,
    /// What its instances take in the host beside their memories and tables, in bytes.
    pub(crate) fixed_bytes: usize,
}

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
            api: self.api,
            linked: self.linked.clone(),
            lines: Arc::default(),
            fixed_bytes: self.fixed_bytes,
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
        let takes_wasi = manifest.asks_for(wasi::CAPABILITY);
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
        let mut linker = Linker::new(&engine.wasmtime);
        let linked = (api.link)(&mut linker)
            .and_then(|()| wasi::deny(&mut linker, &component))
            .and_then(|()| linker.instantiate_pre(&component));
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
            api,
            fixed_bytes,
            linked,
            lines: Arc::default(),
        })
    }
}

/// The SHA-256 of some bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> Arc<str> {
    let digest = Sha256::digest(bytes);
    let digits = digest.iter().map(|byte| format!("{byte:02x}"));
    digits.collect::<String>().into()
}
