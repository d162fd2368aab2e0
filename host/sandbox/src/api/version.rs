//! The parts in which versions of `presence:plugin` can differ.

use presence_core::metadata::MetadataChange;
use wasmtime::component::{Component, Instance, Linker};
use wasmtime::{Result, Store};

use super::export::Find;
use super::stateful::Stateful;
use super::types::{EventArg, RenditionResult};
use crate::call::Call;
use crate::capability::Capabilities;

/// A version of `presence:plugin`.
pub(crate) struct Api {
    pub(crate) version: &'static str,
    /// Links the functions that a component with these capabilities may import.
    pub(crate) link: fn(&mut Linker<Call>, Capabilities) -> Result<()>,
    pub(crate) configure: Find<String, std::result::Result<(), String>>,
    pub(crate) enrich: Find<EventArg, Vec<MetadataChange>>,
    pub(crate) filter: Find<(EventArg, u32), u32>,
    pub(crate) redact: Find<(EventArg, u32), Vec<RenditionResult>>,
    /// Whether a component exports `save` or `restore`.
    pub(crate) keeps_state: fn(&Component) -> bool,
    /// Looks up `save` and `restore`. `None` if the component exports neither.
    pub(crate) stateful: fn(&Instance, &mut Store<Call>) -> Result<Option<Stateful>>,
}

impl Api {
    /// Whether an import is an interface of `presence:plugin` in this version.
    pub(crate) fn offers(&self, import: &str) -> bool {
        let import = import.strip_prefix("presence:plugin/");
        import.is_some_and(|import| import.ends_with(&format!("@{}", self.version)))
    }
}
