//! `[tracker]`: when a user is online, and which metadata is broadcast.

use presence_core::metadata::{LIMITS_MAX, Limits};
use presence_core::tracker::Damping;

use super::checks::within;
use super::problem::InvalidValue;
use super::section::Section;

/// The longest timeout or grace: a week, in milliseconds.
const WEEK_MS: u64 = 7 * 24 * 60 * 60 * 1000;

/// Metadata of a connection that is never broadcast, since it concerns nobody else.
const NEVER_BROADCAST: [&str; 2] = ["ip", "socketId"];

/// `[tracker]`: when a user is online, and which metadata is broadcast.
#[derive(Clone, Debug, PartialEq)]
pub struct Tracker {
    /// How long a connection lives without a heartbeat, in milliseconds.
    pub timeout_ms: u64,
    /// How long the last disconnect waits for a reconnect before the user is
    /// offline, in milliseconds.
    pub grace_ms: u64,
    /// How long after a close has arrived a message with an older timestamp is late and ignored, in
    /// milliseconds.
    pub reorder_ms: u64,
    /// How long an application's statement that a user without connections is online holds, in
    /// milliseconds.
    pub statement_ttl_ms: u64,
    /// How many live connections a user may have.
    pub connections_per_user_max: usize,
    /// How many closes are remembered, of all users together.
    pub closes_max: usize,
    /// How many applications' statements may hold, of all users together.
    pub statements_max: usize,
    /// How users who go offline again and again are damped.
    pub damping: Damping,
    /// The keys of a connection's metadata that are broadcast; never `ip` or
    /// `socketId`. What enrichers add is broadcast as well.
    pub broadcast: Vec<String>,
    /// How much metadata a message may have, or an event after an enricher.
    pub metadata: Limits,
}

impl Tracker {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let broadcast = section.get("broadcast", |keys: Vec<String>| {
            match keys
                .iter()
                .find(|key| NEVER_BROADCAST.contains(&key.as_str()))
            {
                None => Ok(keys),
                Some(key) => Err(InvalidValue::new(
                    format!("names `{key}`, which is never broadcast"),
                    "take it out of the list",
                )),
            }
        });
        Self {
            timeout_ms: section
                .get("timeout_ms", within(1..=WEEK_MS))
                .unwrap_or(30_000),
            grace_ms: section.get("grace_ms", within(0..=WEEK_MS)).unwrap_or(0),
            reorder_ms: section
                .get("reorder_ms", within(0..=60_000))
                .unwrap_or(2_000),
            statement_ttl_ms: section
                .get("statement_ttl_ms", within(1..=365 * 24 * 60 * 60 * 1_000))
                .unwrap_or(24 * 60 * 60 * 1_000),
            connections_per_user_max: section
                .get("connections_per_user_max", within(1..=1_000_000))
                .unwrap_or(256),
            closes_max: section
                .get("closes_max", within(1_000..=1_000_000_000))
                .unwrap_or(1_000_000),
            statements_max: section
                .get("statements_max", within(1..=1_000_000_000))
                .unwrap_or(1_000_000),
            damping: Damping {
                threshold: section
                    .get("flap_threshold", within(0..=1_000_000))
                    .and_then(|threshold: u64| threshold.try_into().ok())
                    .unwrap_or(100),
                half_life_ms: section
                    .get("flap_half_life_ms", within(100..=WEEK_MS))
                    .unwrap_or(60_000),
                grace_ms_max: section
                    .get("flap_grace_ms_max", within(0..=WEEK_MS))
                    .unwrap_or(60_000),
            },
            broadcast: broadcast.unwrap_or_else(|| {
                ["device", "userAgent", "location", "connId"]
                    .map(str::to_owned)
                    .to_vec()
            }),
            metadata: Limits {
                keys: section
                    .get("metadata_keys_max", within(1..=LIMITS_MAX.keys))
                    .unwrap_or(256),
                bytes: section
                    .get("metadata_bytes_max", within(2..=LIMITS_MAX.bytes))
                    .unwrap_or(16_384),
                depth: section
                    .get("metadata_depth_max", within(1..=LIMITS_MAX.depth))
                    .unwrap_or(16),
            },
        }
    }
}
