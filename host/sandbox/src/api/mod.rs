//! `presence:plugin` in all versions that this host speaks. Each is a module of its
//! own, which offers that version's interfaces, and turns the exports of components
//! built against it into those that the newest version has: the rest of the sandbox
//! knows of no other.

mod export;
mod stateful;
mod types;
mod v0_1_0;
mod v0_2_0;
mod version;

use semver::Version;

pub(crate) use export::{Export, Find};
pub(crate) use stateful::Stateful;
pub(crate) use types::{EventArg, Kind, LocalTime, RenditionResult};
pub(crate) use version::Api;

/// The versions, in their order.
const VERSIONS: [&Api; 2] = [&v0_1_0::API, &v0_2_0::API];

/// The newest.
pub(crate) const NEWEST: &str = v0_2_0::API.version;

impl Api {
    /// The version of a name, or what to do about a component that was built against it.
    pub(crate) fn of(version: &str) -> Result<&'static Self, String> {
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
}

#[cfg(test)]
mod tests;
