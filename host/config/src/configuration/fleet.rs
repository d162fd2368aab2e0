//! `[fleet]`: several nodes that share a tenant's users.

use presence_core::fleet::FleetSettings;

use super::basics::Tenant;
use super::checks::{any, within};
use super::problem::InvalidValue;
use super::section::Section;
use super::tracker::Tracker;

/// The largest number of shards.
const SHARDS_MAX: u64 = 1_024;

/// The default number of shards of a fleet.
pub(super) const SHARDS: u32 = 64;

/// As [`SHARDS`], for one of several tenants. Most are small, and each shard costs messages, memory
/// and a subscription, even without users.
pub(super) const SHARDS_OF_TENANT: u32 = 8;

/// `[fleet]`: several nodes that share a tenant's users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// Whether this node is one of a fleet.
    pub enabled: bool,
    /// Into how many shards the fleet's users are divided.
    pub shards: u32,
    /// How long a node owns its shards without renewing its lease, in milliseconds.
    pub lease_ms: u64,
    /// How many standbys each shard has, besides its owner.
    pub standbys: usize,
}

impl Fleet {
    pub(super) fn read(
        section: &mut Section<'_, '_>,
        shards_default: u32,
        tenant: &Tenant,
        tracker: &Tracker,
    ) -> Self {
        let shards = section.get("shards", within(1..=SHARDS_MAX));
        let fleet = Self {
            enabled: section.get("enabled", any).unwrap_or(false),
            shards: shards
                .and_then(|it| it.try_into().ok())
                .unwrap_or(shards_default),
            lease_ms: section
                .get("lease_ms", within(300..=600_000))
                .unwrap_or(6_000),
            standbys: section.get("standbys", within(0..=8)).unwrap_or(1),
        };
        if fleet.enabled {
            fleet.check(section, tenant, tracker);
        }
        fleet
    }

    fn check(&self, section: &mut Section<'_, '_>, tenant: &Tenant, tracker: &Tracker) {
        // In the rest of the timeout, each connection is heard at least once.
        let lease_ms_max = tracker.timeout_ms / 3 * 2;
        if self.lease_ms > lease_ms_max {
            let what = format!(
                "is {}, which is too long for `timeout_ms` = {} in [tracker]: a node that is cut off \
                 would report users as gone before its lease ends",
                self.lease_ms, tracker.timeout_ms
            );
            let fix = format!(
                "choose a lease of at most two thirds of the timeout ({lease_ms_max}), or a longer \
                 timeout"
            );
            section.refuse("lease_ms", InvalidValue::new(what, fix));
        }
        if tenant.shards != 0 {
            let what = "is true, and `shards` in [tenant] is set, too";
            let fix = "leave that out: `shards` in [fleet] says how many there are";
            section.refuse("enabled", InvalidValue::new(what, fix));
        }
    }

    /// The settings of a fleet for the core.
    pub fn settings(&self) -> FleetSettings {
        FleetSettings::of_lease(self.lease_ms, self.standbys)
    }
}
