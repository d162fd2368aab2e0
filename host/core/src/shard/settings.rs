//! The settings of a shard.

use crate::allowance::Allowance;
use crate::quota::Cap;
use crate::{status, tracker};

/// What a shard goes by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The tracker's figures.
    pub tracker: tracker::TrackerSettings,
    /// The keys of a connect's metadata that are broadcast, in their order.
    pub broadcast: Vec<String>,
    /// Whether verdicts are reused while nothing they read has changed.
    pub reuse_verdicts: bool,
    /// How long a failed decision waits for its first retry.
    pub retry_ms: u64,
    /// The longest wait between retries.
    pub retry_ms_max: u64,
    /// How many messages a second may go out to correct what viewers have been told;
    /// 0 for as many as there are.
    pub corrections_per_s: u64,
    /// How long an event waits for answers of the directory that aren't cached.
    pub answer_wait_ms: u64,
    /// How many departures are remembered, to tell viewers who ask since when a
    /// user is offline.
    pub departures_max: usize,
    /// Whether each viewer is also told on a subject of their own.
    pub inbox: bool,
    /// How users' statuses are told, if they are.
    pub status: Option<status::StatusSettings>,
    /// How long an application's statement holds that a user is online who has no
    /// connection, unless it is repeated.
    pub statement_ttl_ms: u64,
    /// How many applications' statements may hold at a time.
    pub statements_max: usize,
    /// How many dead letters may be published.
    pub dead_letters: Allowance,
    /// How many users may be online by connections of theirs, of all shards together.
    pub users: Cap,
    /// How many connections may be live, of all shards together.
    pub connections: Cap,
    /// Whether this shard alone may have so many users and connections: in a fleet, its owner and
    /// its standbys have to refuse the same.
    pub counts_apart: bool,
    /// How many viewers a user may have; 0 for as many as there are.
    pub audience_max: u64,
    /// How many messages a second are taken, for those that are refused since there are more.
    pub messages_per_s: u64,
    /// The longest body that the broker takes, in bytes.
    pub body_bytes_max: usize,
    /// This node's name, for dead letters.
    pub node: String,
    /// What a tenant's subjects begin with, for dead letters; as a rule nothing.
    pub subject_prefix: String,
}

impl Settings {
    /// A further connection is no event: only where statuses are told may it change at
    /// once what is shown of its user.
    pub(super) fn of_tracker(&self) -> tracker::TrackerSettings {
        tracker::TrackerSettings {
            shows_newest: self.status.is_some(),
            ..self.tracker
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tracker: tracker::TrackerSettings::default(),
            broadcast: ["device", "userAgent", "location", "connId"]
                .map(String::from)
                .into(),
            reuse_verdicts: true,
            retry_ms: 1_000,
            retry_ms_max: 60_000,
            corrections_per_s: 0,
            answer_wait_ms: 2_000,
            departures_max: 100_000,
            inbox: false,
            status: None,
            statement_ttl_ms: 24 * 60 * 60 * 1_000,
            statements_max: 1_000_000,
            dead_letters: Allowance::default(),
            users: Cap::default(),
            connections: Cap::default(),
            counts_apart: false,
            audience_max: 0,
            messages_per_s: 0,
            body_bytes_max: 1 << 20,
            node: "presence".into(),
            subject_prefix: String::new(),
        }
    }
}
