//! `presence:plugin` in all versions that this host speaks. Each is a module of its
//! own, which offers that version's interfaces, and turns the exports of components
//! built against it into those that the newest version has: the rest of the sandbox
//! knows of no other.

mod v0_1_0;
mod v0_2_0;

use presence_core::rules::MetadataChange;
use semver::Version;
use wasmtime::component::{Instance, Linker};
use wasmtime::{Result, Store};

use crate::call::Call;
use crate::state::Stateful;

pub(crate) use v0_2_0::{EventArg, Kind, RenditionResult, State};

/// The versions, in their order.
const VERSIONS: [&Api; 2] = [&v0_1_0::API, &v0_2_0::API];

/// The newest.
pub(crate) const NEWEST: &str = v0_2_0::API.version;

/// What a component exports, called with `A` and answering with `R`.
pub(crate) type Export<A, R> = Box<dyn Fn(&mut Store<Call>, A) -> Result<R> + Send>;

/// Finds an export in a component's instance.
pub(crate) type Find<A, R> = fn(&Instance, &mut Store<Call>) -> Result<Export<A, R>>;

/// A version of `presence:plugin`.
pub(crate) struct Api {
    pub(crate) version: &'static str,
    /// Offers what components may import.
    pub(crate) link: fn(&mut Linker<Call>) -> Result<()>,
    pub(crate) configure: Find<String, std::result::Result<(), String>>,
    pub(crate) enrich: Find<EventArg, Vec<MetadataChange>>,
    pub(crate) filter: Find<(EventArg, u32), u32>,
    pub(crate) redact: Find<(EventArg, u32), Vec<RenditionResult>>,
    /// None of a component that has neither.
    pub(crate) stateful: fn(&Instance, &mut Store<Call>) -> Result<Option<Stateful>>,
}

impl Api {
    /// The version of a name, or what to do about a component that was built against it.
    pub(crate) fn of(version: &str) -> std::result::Result<&'static Self, String> {
        let known = VERSIONS.into_iter().find(|api| api.version == version);
        known.ok_or_else(|| {
            let spoken: Vec<_> = VERSIONS.iter().map(|api| api.version).collect();
            let spoken = spoken.join(", ");
            let is_newer = Version::parse(NEWEST)
                .is_ok_and(|newest| Version::parse(version).is_ok_and(|asked| asked > newest));
            let or = if is_newer { "update the host, or " } else { "" };
            format!(
                "it was built for presence:plugin {version}, and this host speaks {spoken}: \
                 {or}build it against {NEWEST}"
            )
        })
    }

    /// Whether it offers an import.
    pub(crate) fn offers(&self, import: &str) -> bool {
        let import = import.strip_prefix("presence:plugin/");
        import.is_some_and(|import| import.ends_with(&format!("@{}", self.version)))
    }
}

#[cfg(test)]
mod tests;
