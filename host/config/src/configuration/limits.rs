//! `[limits]`: how much of the node a tenant may use. Other quotas are in the sections that they
//! are about, such as `[correction] messages_per_s`.

use super::checks::within;
use super::pipeline::STAGES_MAX;
use super::section::Section;

/// The highest rate that can be set.
const PER_S_MAX: u64 = 100_000_000;

/// The highest number that can be set.
const COUNT_MAX: usize = 1_000_000_000;

/// `[limits]`: how much of the node a tenant may use. 0 is no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many messages a second are taken in.
    pub messages_per_s: u64,
    /// How many messages may come at once.
    pub messages_burst: u64,
    /// How many questions a second are answered.
    pub queries_per_s: u64,
    /// How many connections may be live.
    pub connections_max: usize,
    /// How many users may be online by connections.
    pub users_max: usize,
    /// How many viewers a user may have.
    pub audience_max: u64,
    /// How many entries the directory may have.
    pub directory_entries_max: u64,
    /// How many plugins the pipeline may have.
    pub plugins_max: usize,
    /// How many bytes their files may have together.
    pub plugin_bytes_max: u64,
    /// How much memory the instances of all of them may have together, in bytes.
    pub plugin_memory_bytes_max: usize,
    /// How much processor time the tenant's shards may use, in milliseconds a second.
    pub cpu_ms_per_s: u64,
    /// The weight of the tenant when it shares threads with other tenants.
    pub weight: u64,
}

impl Limits {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let rate = |rate: Option<u64>| rate.unwrap_or(0);
        let messages_per_s = rate(section.get("messages_per_s", within(0..=PER_S_MAX)));
        let burst = section.get("messages_burst", within(1..=PER_S_MAX));
        let count = |count: Option<usize>| count.unwrap_or(0);
        Self {
            messages_per_s,
            messages_burst: burst.unwrap_or(messages_per_s),
            queries_per_s: rate(section.get("queries_per_s", within(0..=PER_S_MAX))),
            connections_max: count(section.get("connections_max", within(0..=COUNT_MAX))),
            users_max: count(section.get("users_max", within(0..=COUNT_MAX))),
            audience_max: rate(section.get("audience_max", within(0..=COUNT_MAX as u64))),
            directory_entries_max: rate(
                section.get("directory_entries_max", within(0..=100_000_000_000)),
            ),
            plugins_max: section
                .get("plugins_max", within(1..=STAGES_MAX))
                .unwrap_or(STAGES_MAX),
            plugin_bytes_max: rate(section.get("plugin_bytes_max", within(0..=1 << 40))),
            plugin_memory_bytes_max: count(
                section.get("plugin_memory_bytes_max", within(0..=1 << 50)),
            ),
            cpu_ms_per_s: rate(section.get("cpu_ms_per_s", within(0..=1_024_000))),
            weight: section.get("weight", within(1..=1_000)).unwrap_or(1),
        }
    }
}
