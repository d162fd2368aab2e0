//! What a node knows about the fleet's progress in the shared stream.

use std::time::Duration;

use tokio::time::Instant;

use crate::clock;
use crate::link::input_stream::ReadFrom;
use crate::link::shared_input::{ACK_WAIT, SharedProgress};

/// If no message on its way is handled for this long, the node doesn't wait for them any more. They
/// have been delivered twice by then.
const UNHANDLED: Duration = ACK_WAIT.saturating_mul(2);

/// What this node knows about the fleet's progress.
#[derive(Debug)]
pub(super) struct FleetProgress {
    /// The stream's creation time, and the number up to which all messages have been handled.
    pub(super) handled: Option<(u64, u64)>,
    /// The number of the last message that this node has got.
    pub(super) last_received: u64,
    /// Up to which number messages have been counted that were removed before they were delivered.
    lost: u64,
    /// When the stream was last found in order, in milliseconds since the Unix epoch.
    pub(super) in_order_at: u64,
}

impl FleetProgress {
    /// Nothing is known yet. A new consumer begins with the messages stored since `in_order_at`.
    pub(super) fn new(in_order_at: u64) -> Self {
        Self {
            handled: None,
            last_received: 0,
            lost: 0,
            in_order_at,
        }
    }

    /// Where a new consumer must begin: after the messages that the fleet is known to have handled.
    /// If nothing is known, with the messages stored since `in_order_at`, as on a node without
    /// stored state.
    pub(super) fn begin(&self, stream: u64) -> ReadFrom {
        match self.handled {
            Some((known, handled)) if known == stream => ReadFrom::At(handled + 1),
            Some(_) => ReadFrom::At(1),
            None => ReadFrom::Since(self.in_order_at),
        }
    }

    /// Whether the stream has lost its newest messages. `stream`: its creation time. `last`: the
    /// number of its last message.
    pub(super) fn has_lost_end(&self, stream: u64, last: u64) -> bool {
        let known = self.handled.filter(|(known, _)| *known == stream);
        known.is_some_and(|(_, handled)| handled.max(self.last_received) > last)
    }

    /// Notes the consumer's progress. `stream`: the stream's creation time. `first`: the number of
    /// its first message. Returns how many messages were removed before they were delivered.
    pub(super) fn note(&mut self, stream: u64, first: u64, progress: SharedProgress) -> u64 {
        let is_same = self.handled.is_some_and(|(known, _)| known == stream);
        if !is_same {
            self.last_received = 0;
            // Messages that were removed before the consumer was created don't count as lost.
            self.lost = match self.handled {
                Some(_) => 0,
                None => progress.delivered,
            };
        }
        self.handled = Some((stream, progress.handled));
        self.in_order_at = clock::wall_now_us() / 1_000;
        let gone = first.saturating_sub(1);
        let lost = gone.saturating_sub(self.lost.max(progress.delivered));
        self.lost = self.lost.max(gone);
        lost
    }
}

/// The messages that were stored when the node began.
#[derive(Debug)]
pub(super) struct StartBacklog {
    /// The number of the last of them.
    last: u64,
    /// Up to which number all had been handled at the last check, and since when.
    handled: Option<(u64, Instant)>,
}

impl StartBacklog {
    pub(super) fn new(last: u64) -> Self {
        Self {
            last,
            handled: None,
        }
    }

    /// Whether all of them have been handled, or waiting longer doesn't help: a shard has no owner,
    /// or its owner doesn't take them.
    pub(super) fn is_over(&mut self, now: Instant, progress: SharedProgress) -> bool {
        let handled = progress.handled;
        let (_, since) = *self
            .handled
            .take_if(|(before, _)| *before == handled)
            .get_or_insert((handled, now));
        self.handled = Some((handled, since));
        handled >= self.last
            || progress.pending == 0
                && (progress.unacknowledged == 0 || now.duration_since(since) >= UNHANDLED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(handled: u64, delivered: u64) -> SharedProgress {
        SharedProgress {
            handled,
            delivered,
            ..SharedProgress::default()
        }
    }

    #[test]
    fn a_consumer_that_is_gone_is_made_behind_what_was_handled() {
        let mut known = FleetProgress::new(5_000);
        assert_eq!(known.begin(7), ReadFrom::Since(5_000));
        known.note(7, 1, at(30, 40));
        assert_eq!(known.begin(7), ReadFrom::At(31));
        assert_eq!(known.begin(8), ReadFrom::At(1), "another stream");
        assert!(!known.has_lost_end(7, 30) && known.has_lost_end(7, 29));
        assert!(!known.has_lost_end(8, 3), "another stream");
    }

    #[test]
    fn what_was_removed_before_it_was_delivered_is_counted_once() {
        let mut known = FleetProgress::new(0);
        assert_eq!(
            known.note(7, 500, at(499, 499)),
            0,
            "before the fleet began"
        );
        assert_eq!(known.note(7, 500, at(510, 520)), 0);
        assert_eq!(known.note(7, 531, at(520, 520)), 10);
        assert_eq!(known.note(7, 531, at(520, 520)), 0);
        assert_eq!(
            known.note(7, 541, at(520, 535)),
            5,
            "one that was delivered isn't lost"
        );
        assert_eq!(known.note(8, 4, at(0, 0)), 3, "of another stream");
        let mut begins = FleetProgress::new(0);
        assert_eq!(begins.note(7, 500, at(10, 20)), 479, "while no node ran");
        assert_eq!(begins.note(7, 500, at(10, 20)), 0);
    }

    #[test]
    fn what_was_stored_before_is_waited_for_until_it_is_handled_or_nobody_handles_it() {
        let begun = Instant::now();
        let mut start_backlog = StartBacklog::new(100);
        let mut is_over = |seconds, handled, pending, unacknowledged| {
            let progress = SharedProgress {
                handled,
                pending,
                unacknowledged,
                ..SharedProgress::default()
            };
            start_backlog.is_over(begun + Duration::from_secs(seconds), progress)
        };
        assert!(!is_over(0, 10, 50, 40));
        assert!(!is_over(9, 10, 0, 90), "all is delivered, and not handled");
        assert!(!is_over(11, 60, 0, 40), "it goes on");
        assert!(!is_over(20, 60, 0, 40));
        assert!(is_over(21, 60, 0, 40), "it doesn't");
        assert!(!is_over(60, 60, 1, 40), "some are not delivered");
        assert!(is_over(60, 99, 0, 0), "the last ones were removed");
        assert!(is_over(60, 100, 7, 7), "later ones are on their way");
    }
}
