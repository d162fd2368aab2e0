//! Counters of a fleet, for metrics and the status.

use std::sync::atomic::{AtomicU64, Ordering};

use presence_core::fleet::replica::CatchUpReason;

/// The counters.
#[derive(Debug, Default)]
pub(crate) struct FleetFigures {
    /// How many inputs were passed on to their shards.
    pub(crate) routed: AtomicU64,
    /// How many messages came on the subject of a shard that isn't their user's.
    pub(crate) wrong_shard: AtomicU64,
    /// How many messages of owners to standbys were dropped for want of room.
    pub(crate) updates_dropped: AtomicU64,
    /// How many messages of other nodes couldn't be used.
    pub(crate) refused: AtomicU64,
    /// How many shards this node took over after they had lost their owners.
    pub(crate) takeovers: AtomicU64,
    /// How many shards other nodes have handed over to this one.
    pub(crate) handovers: AtomicU64,
    /// How often the node lost its session, and with it all shards that it owned.
    pub(crate) sessions_lost: AtomicU64,
    caught_up: [AtomicU64; REASONS.len()],
}

/// The reasons for catching up, and their names in metrics.
const REASONS: [(CatchUpReason, &str); 7] = [
    (CatchUpReason::Begins, "begins"),
    (CatchUpReason::Gap, "gap"),
    (CatchUpReason::Mismatch, "mismatch"),
    (CatchUpReason::Ledger, "ledger"),
    (CatchUpReason::Connections, "connections"),
    (CatchUpReason::LostInput, "lost-input"),
    (CatchUpReason::Silence, "silence"),
];

impl FleetFigures {
    /// Counts that a shard catches up. Returns the name of the reason.
    pub(super) fn count_catch_up(&self, why: CatchUpReason) -> &'static str {
        let mut counts = REASONS.iter().zip(&self.caught_up);
        let Some(((_, word), count)) = counts.find(|((reason, _), _)| *reason == why) else {
            return "";
        };
        count.fetch_add(1, Ordering::Relaxed);
        word
    }

    /// How often shards have caught up, for each reason.
    pub(crate) fn caught_up(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = REASONS.iter().zip(&self.caught_up);
        counts.map(|((_, word), count)| (*word, count.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_counted_apart() {
        let figures = FleetFigures::default();
        assert_eq!(
            figures.count_catch_up(CatchUpReason::LostInput),
            "lost-input"
        );
        figures.count_catch_up(CatchUpReason::LostInput);
        figures.count_catch_up(CatchUpReason::Begins);
        let counts: Vec<_> = figures
            .caught_up()
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(counts, [("begins", 1), ("lost-input", 2)]);
    }
}
