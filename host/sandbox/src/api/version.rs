//! What makes a version of `presence:plugin`.

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
    /// Offers what components may import that are granted this.
    pub(crate) link: fn(&mut Linker<Call>, Capabilities) -> Result<()>,
    pub(crate) configure: Find<String, std::result::Result<(), String>>,
    pub(crate) enrich: Find<EventArg, Vec<MetadataChange>>,
    pub(crate) filter: Find<(EventArg, u32), u32>,
    pub(crate) redact: Find<(EventArg, u32), Vec<RenditionResult>>,
    /// Whether a component exports something of that.
    pub(crate) keeps_state: fn(&Component) -> bool,
    /// None of a component that has neither.
    pub(crate) stateful: fn(&Instance, &mut Store<Call>) -> Result<Option<Stateful>>,
}

impl Api {
    /// Whether it offers an import.
    pub(crate) fn offers(&self, import: &str) -> bool {
        let import = import.strip_prefix("presence:plugin/");
        import.is_some_and(|import| import.ends_with(&format!("@{}", self.version)))
    }
}
