//! The settings of a tenant's shards, from its configuration and the limits of the broker.

use presence_core::quota::Cap;
use presence_core::{Settings, status, tracker};

use crate::subjects::Subjects;
use crate::{Config, Directory, Quotas};

/// The longest body in bytes, without room for headers, if the limit of the broker isn't known.
pub const BODY_BYTES_MAX: usize = (1 << 20) - HEADER_BYTES_MAX;

/// An upper bound of the headers of any publication, in bytes.
pub const HEADER_BYTES_MAX: usize = 1_024;

/// How often a node finds out up to when it has received everything, in milliseconds. This is
/// several times within a timeout.
#[must_use]
pub fn pulse_ms(timeout_ms: u64) -> u64 {
    (timeout_ms / 8).clamp(1, 250)
}

/// How many of `max` items one of a fleet's shards may have. 0: no limit. It is somewhat more than
/// an equal part. Users are spread over shards by chance, and nobody is to be refused because of
/// that.
fn share(max: usize, shards: usize) -> usize {
    let part = max.div_ceil(shards);
    part + (4.0 * (part as f64).sqrt()).ceil() as usize
}

/// The settings of a tenant's shards.
pub fn shard_settings(config: &Config, body_bytes_max: usize, quotas: &Quotas) -> Settings {
    let (shards, is_fleet) = (config.shard_count(), config.fleet.enabled);
    Settings {
        tracker: tracker::TrackerSettings {
            timeout_ms: config.tracker.timeout_ms,
            grace_ms: config.tracker.grace_ms,
            reorder_ms: config.tracker.reorder_ms,
            // The routers of a fleet pass on messages of one connection in parallel.
            ties_close: config.fleet.enabled,
            connections_per_user_max: config.tracker.connections_per_user_max,
            closes_max: config.tracker.closes_max.div_ceil(shards),
            damping: config.tracker.damping,
            receive_step_ms: Some(2 * pulse_ms(config.tracker.timeout_ms)),
            ..tracker::TrackerSettings::default()
        },
        broadcast: config.tracker.broadcast.clone(),
        reuse_verdicts: config.engine.reuse_verdicts,
        retry_ms: config.engine.retry_ms,
        retry_ms_max: config.engine.retry_ms_max,
        corrections_per_s: config.correction.messages_per_s.div_ceil(shards as u64),
        answer_wait_ms: match &config.directory {
            Directory::Request(request) => request.wait_ms,
            Directory::File { .. } | Directory::Kv { .. } => 0,
        },
        departures_max: config.query.departed_max.div_ceil(shards),
        inbox: config.inbox.enabled,
        statement_ttl_ms: config.tracker.statement_ttl_ms,
        statements_max: config.tracker.statements_max.div_ceil(shards),
        dead_letters: quotas.dead_letters.clone(),
        users: match is_fleet {
            true => Cap::new(share(config.limits.users_max, shards)),
            false => quotas.users.clone(),
        },
        connections: match is_fleet {
            true => Cap::new(share(config.limits.connections_max, shards)),
            false => quotas.connections.clone(),
        },
        limits_per_shard: is_fleet,
        audience_max: config.limits.audience_max,
        messages_per_s: config.limits.messages_per_s,
        status: config.status.enabled.then_some(status::StatusSettings {
            min_interval_ms: config.status.min_interval_ms,
            typing_ms: config.status.typing_ms,
            users_max: config.status.users_max.div_ceil(shards),
        }),
        body_bytes_max,
        node: config.node.name.clone(),
        subject_prefix: Subjects::new(config.tenant.prefix.as_deref()).of(""),
    }
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn a_shard_of_a_fleet_may_have_its_part_and_what_chance_makes_of_it() {
        assert_eq!(share(1_000_000, 64), 15_625 + 500);
        assert_eq!(share(100, 64), 2 + 6);
        assert_eq!(share(0, 64), 0, "without a limit");
    }
}
