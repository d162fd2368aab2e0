//! The manifest: a plugin's description of itself, in a custom section of its file.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::LoadError;
use crate::api::{self, Api};
use crate::capability::{Capabilities, Capability};
use crate::error::one_line;

/// The section that holds the manifest.
pub const SECTION: &str = "presence:manifest";

/// How long a manifest may be, with all its self-tests.
const BYTES_MAX: usize = 1 << 20;

/// The newest version of the component API that this host speaks.
pub const API: &str = api::NEWEST;

/// A plugin's description of itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: semver::Version,
    /// The version of `presence:plugin` it was built against.
    pub api: String,
    /// Its role.
    pub role: Role,
    /// For a filter: whether it may add viewers.
    #[serde(default)]
    pub effect: Effect,
    /// For an enricher: whether it exports `save` and `restore`.
    #[serde(default)]
    pub stateful: bool,
    /// The names of the capabilities that it asks for.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Limits that it sets itself, lower than the host's.
    #[serde(default)]
    pub limits: OwnLimits,
    /// What happens when it has failed repeatedly. `None`: the default of its role.
    #[serde(default)]
    pub on_failure: Option<OnFailure>,
    /// Its self-tests, run at every load.
    #[serde(default)]
    pub tests: Vec<Case>,
}

/// What a plugin does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Changes an event's metadata.
    Enricher,
    /// Makes a new audience from the audience so far.
    Filter,
    /// Splits the final audience into renditions.
    Redactor,
}

/// What happens when a plugin has failed repeatedly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// It is in quarantine. For a filter or redactor, nobody new is told meanwhile. An enricher is
    /// skipped.
    Hold,
    /// The last good generation takes over.
    LastGood,
}

impl OnFailure {
    /// The policy as a manifest spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::LastGood => "last-good",
        }
    }
}

impl Role {
    /// The role as a manifest spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enricher => "enricher",
            Self::Filter => "filter",
            Self::Redactor => "redactor",
        }
    }

    /// The function that a plugin of this role exports.
    pub(crate) fn export(self) -> &'static str {
        match self {
            Self::Enricher => "enrich",
            Self::Filter => "filter",
            Self::Redactor => "redact",
        }
    }

    /// What happens if neither the manifest nor the operator says. An older filter may show what
    /// the newer one hides, so filters and redactors hold. Older metadata hurts nobody.
    pub fn on_failure(self) -> OnFailure {
        match self {
            Self::Enricher => OnFailure::LastGood,
            Self::Filter | Self::Redactor => OnFailure::Hold,
        }
    }
}

/// Whether a filter may add viewers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// It may only remove them.
    #[default]
    Narrow,
    /// It may add them.
    Widen,
}

/// Limits that a plugin sets itself. The host's limits apply as well.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnLimits {
    /// Fuel per call.
    pub fuel: Option<u64>,
    /// Memory per instance, in bytes.
    pub memory_bytes: Option<usize>,
    /// The deadline of a call, in milliseconds.
    pub deadline_ms: Option<u64>,
}

/// A self-test case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// The configuration.
    #[serde(default = "empty")]
    pub config: Value,
    /// The time, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub now: u64,
    /// The event, as it is broadcast.
    #[serde(default)]
    pub event: Map<String, Value>,
    /// Contacts, groups, blocks and settings.
    #[serde(default)]
    pub directory: Map<String, Value>,
    /// The audience before the call.
    #[serde(default)]
    pub audience: Vec<String>,
    /// The expected result.
    pub expect: Value,
}

/// The field that manifests of all versions have.
#[derive(Deserialize)]
struct Versioned {
    api: String,
}

fn empty() -> Value {
    Value::Object(Map::new())
}

impl Manifest {
    /// The capabilities that it asks for, with `widen` from its effect.
    pub(crate) fn requested(&self) -> Capabilities {
        let named = self.capabilities.iter();
        let named = named.filter_map(|name| Capability::from_manifest(name));
        match self.effect {
            Effect::Narrow => named.collect(),
            Effect::Widen => named.chain([Capability::Widen]).collect(),
        }
    }

    /// Reads the manifest out of a plugin's file.
    ///
    /// # Errors
    /// [`LoadError::NotAPlugin`], saying what is missing.
    pub fn read(plugin: &str, bytes: &[u8]) -> Result<Self, LoadError> {
        let not = |what: String| LoadError::NotAPlugin {
            plugin: plugin.into(),
            what,
        };
        let mut depth = 0_u32;
        let garbage = |error| not(format!("not a WebAssembly component: {}", one_line(error)));
        for payload in wasmparser::Parser::new(0).parse_all(bytes) {
            match payload.map_err(garbage)? {
                wasmparser::Payload::Version { encoding, .. }
                    if depth == 0 && encoding == wasmparser::Encoding::Module =>
                {
                    let what = "it is a core module, not a component: build it with `presence plugin build`";
                    return Err(not(what.into()));
                }
                wasmparser::Payload::ModuleSection { .. }
                | wasmparser::Payload::ComponentSection { .. } => depth += 1,
                wasmparser::Payload::End(_) => depth = depth.saturating_sub(1),
                wasmparser::Payload::CustomSection(section)
                    if depth == 0 && section.name() == SECTION =>
                {
                    let size = section.data().len();
                    if size > BYTES_MAX {
                        let what =
                            format!("its manifest has {size} bytes, and may have {BYTES_MAX}");
                        return Err(not(what));
                    }
                    let unread =
                        |error| not(format!("its manifest can't be read: {}", one_line(error)));
                    // Checked first, since a manifest of an unknown version may have other fields.
                    if let Ok(Versioned { api }) = serde_json::from_slice(section.data()) {
                        Api::of(&api).map_err(not)?;
                    }
                    let manifest = serde_json::from_slice(section.data()).map_err(unread)?;
                    return Ok(manifest);
                }
                _ => {}
            }
        }
        Err(not(format!(
            "it has no `{SECTION}` section: build it with `presence plugin build`"
        )))
    }
}
