//! Metrics of the fleet that the node belongs to.

use super::super::Status;
use super::{Exposition, read};
use crate::fleet::Fleet;

/// Writes the metrics.
pub(super) fn write(text: &mut Exposition, fleet: &Fleet, status: &Status) {
    let nodes = fleet.nodes().len();
    text.value("presence_fleet_nodes", nodes);
    let owned = status.shards.total(|figures| &figures.leads);
    text.value("presence_fleet_shards_owned", owned);
    let synced = status.shards.total(|figures| &figures.synced);
    text.value("presence_fleet_shards_in_step", synced);
    text.value("presence_fleet_shards_told", fleet.forwarded_shards());
    text.value("presence_fleet_shards_ownerless", fleet.ownerless());
    let figures = &fleet.figures;
    text.value("presence_fleet_in_touch", u8::from(fleet.is_in_touch()));
    text.value("presence_fleet_takeovers_total", read(&figures.takeovers));
    text.value("presence_fleet_handovers_total", read(&figures.handovers));
    let lost = read(&figures.sessions_lost);
    text.value("presence_fleet_sessions_lost_total", lost);
    text.values(
        "presence_fleet_catch_ups_total",
        "reason",
        figures.caught_up(),
    );
    text.value("presence_fleet_routed_total", read(&figures.routed));
    let wrong = read(&figures.wrong_shard);
    text.value("presence_fleet_wrong_shard_total", wrong);
    text.value("presence_fleet_refused_total", read(&figures.refused));
    let dropped = read(&figures.updates_dropped);
    text.value("presence_fleet_told_dropped_total", dropped);
    text.value("presence_fleet_fenced_total", fleet.lease.dropped());
}
