//! What every call of a component is held to.

use presence_core::metadata;

use crate::Quarantine;
use crate::manifest::OwnLimits;

/// How long a plugin may take for its configuration, and for each of its self-tests,
/// while it is loaded.
const LOADING_MS: u64 = 5_000;

/// What every call is held to. A plugin may ask for less, never for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Fuel a call: about one unit an instruction.
    pub fuel: u64,
    /// Memory an instance, in bytes.
    pub memory_bytes_max: usize,
    /// Time a call, in milliseconds. None where time isn't to matter.
    pub deadline_ms: Option<u64>,
    /// When a plugin that fails is taken out of service.
    pub quarantine: Quarantine,
    /// How large enrichers may make an event's metadata.
    pub metadata: metadata::Limits,
}

impl Limits {
    /// The limits of a plugin that sets itself lower ones.
    pub fn within(self, own: OwnLimits) -> Self {
        let ms = |ms: u64| own.deadline_ms.unwrap_or(ms).min(ms);
        Self {
            fuel: own.fuel.unwrap_or(self.fuel).min(self.fuel),
            memory_bytes_max: own
                .memory_bytes
                .unwrap_or(self.memory_bytes_max)
                .min(self.memory_bytes_max),
            deadline_ms: self.deadline_ms.map(ms),
            ..self
        }
    }

    /// The limits while a plugin is loaded: nobody waits then, and a machine that is
    /// busy must not have it refused.
    pub(crate) fn while_loading(self) -> Self {
        Self {
            deadline_ms: self.deadline_ms.map(|ms| ms.max(LOADING_MS)),
            ..self
        }
    }
}
