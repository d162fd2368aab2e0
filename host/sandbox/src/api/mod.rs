//! The versions of `presence:plugin` that this host supports. Each version is a module of its own:
//! it links the version's interfaces, and adapts the exports of components built against it to the
//! types of the newest version. The rest of the sandbox only knows the newest version.

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

/// All supported versions, oldest first.
const VERSIONS: [&Api; 2] = [&v0_1_0::API, &v0_2_0::API];

/// The newest supported version.
pub(crate) const NEWEST: &str = v0_2_0::API.version;

impl Api {
    /// Finds a version by its number. The error says what to do about a component that was built
    /// against an unsupported version.
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
