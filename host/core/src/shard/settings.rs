//! The settings of a shard.

use crate::dead_letter_limit::DeadLetterLimit;
use crate::quota::Cap;
use crate::{status, tracker};

/// The settings of a shard.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The tracker's settings.
    pub tracker: tracker::TrackerSettings,
    /// The keys of a connect's metadata that are broadcast, in their order.
    pub broadcast: Vec<String>,
    /// Whether verdicts are reused while nothing they read has changed.
    pub reuse_verdicts: bool,
    /// How long a failed decision waits for its first retry.
    pub retry_ms: u64,
    /// The longest wait between retries.
    pub retry_ms_max: u64,
    /// How many messages a second may go out to correct what viewers have been told; 0: no limit.
    pub corrections_per_s: u64,
    /// How long an event waits for answers of the directory that aren't cached.
    pub answer_wait_ms: u64,
    /// How many departures are remembered, to tell viewers who ask when a user was last seen.
    pub departures_max: usize,
    /// Whether each viewer is also told on a subject of their own.
    pub inbox: bool,
    /// How users' statuses are told. `None`: they aren't told.
    pub status: Option<status::StatusSettings>,
    /// How long an application's statement about a user without connections holds, unless it is
    /// repeated.
    pub statement_ttl_ms: u64,
    /// How many applications' statements may hold at a time.
    pub statements_max: usize,
    /// How many dead letters may be published.
    pub dead_letters: DeadLetterLimit,
    /// How many users may be online by their connections, over all shards.
    pub users: Cap,
    /// How many connections may be live, over all shards.
    pub connections: Cap,
    /// Whether this shard alone may have this many users and connections. It is so in a fleet,
    /// where an owner and its standbys have to refuse the same connections.
    pub limits_per_shard: bool,
    /// How many viewers a user may have; 0: no limit.
    pub audience_max: u64,
    /// How many messages a second are taken. It is only for the text of rejections.
    pub messages_per_s: u64,
    /// The longest body that the broker takes, in bytes.
    pub body_bytes_max: usize,
    /// This node's name, for dead letters.
    pub node: String,
    /// The prefix of the tenant's subjects, for dead letters. Empty as a rule.
    pub subject_prefix: String,
}

impl Settings {
    /// The settings of the tracker. A further connection is no event. It may change what is shown
    /// of its user at once only if statuses are told.
    pub(super) fn tracker_settings(&self) -> tracker::TrackerSettings {
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
            dead_letters: DeadLetterLimit::default(),
            users: Cap::default(),
            connections: Cap::default(),
            limits_per_shard: false,
            audience_max: 0,
            messages_per_s: 0,
            body_bytes_max: 1 << 20,
            node: "presence".into(),
            subject_prefix: String::new(),
        }
    }
}
