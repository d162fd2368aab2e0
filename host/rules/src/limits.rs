//! The limits of plugin calls, from a configuration.

use presence_config::Config;
use presence_sandbox::{Limits, Quarantine};

/// The limits of each call. Without `clock` there is no deadline: fuel alone limits how long a call
/// runs.
#[must_use]
pub fn limits(config: &Config, clock: bool) -> Limits {
    let engine = &config.engine;
    Limits {
        fuel: engine.fuel,
        memory_bytes_max: engine.memory_bytes_max,
        deadline_ms: clock.then_some(engine.deadline_ms),
        quarantine: Quarantine {
            users: engine.quarantine_failures,
            window_ms: engine.quarantine_window_ms,
            ms: engine.quarantine_ms,
        },
        metadata: config.tracker.metadata,
    }
}
