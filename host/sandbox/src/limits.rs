//! The limits of every call of a component.

use presence_core::metadata;

use crate::Quarantine;
use crate::manifest::OwnLimits;

/// How long a plugin may take for its configuration, and for each of its self-tests,
/// while it is loaded.
const LOADING_MS: u64 = 5_000;

/// The limits of every call. A plugin may set itself lower ones, never higher ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Fuel per call: about one unit per instruction.
    pub fuel: u64,
    /// Memory per instance, in bytes.
    pub memory_bytes_max: usize,
    /// The deadline of a call, in milliseconds. `None`: a call may take any time.
    pub deadline_ms: Option<u64>,
    /// When a plugin that fails is taken out of service.
    pub quarantine: Quarantine,
    /// How large enrichers may make an event's metadata.
    pub metadata: metadata::Limits,
}

impl Limits {
    /// The limits with those that a plugin sets itself, where these are lower.
    pub fn capped_by(self, own: OwnLimits) -> Self {
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

    /// The limits while a plugin is loaded. The deadline is longer: nobody waits then, and a busy
    /// machine must not make the plugin fail.
    pub(crate) fn while_loading(self) -> Self {
        Self {
            deadline_ms: self.deadline_ms.map(|ms| ms.max(LOADING_MS)),
            ..self
        }
    }
}
