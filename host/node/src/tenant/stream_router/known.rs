//! What a node knows of how far the fleet has come in the stream that its nodes share.

use std::time::Duration;

use tokio::time::Instant;

use crate::clock;
use crate::link::input_stream::Begin;
use crate::link::shared_input::{ACK_WAIT, SharedProgress};

/// For how long nothing that is on its way is handled before it isn't waited for any more. It has been
/// delivered for the second time by then.
const UNHANDLED: Duration = ACK_WAIT.saturating_mul(2);

/// What this node knows of how far the fleet has come.
#[derive(Debug)]
pub(super) struct Known {
    /// The stream, by when it was made, and up to where all of it has been handled.
    pub(super) handled: Option<(u64, u64)>,
    /// The last message that this node was given.
    pub(super) given: u64,
    /// Up to where messages that were removed before they were delivered have been counted.
    lost: u64,
    /// When the stream was last in order, in milliseconds since the Unix epoch.
    pub(super) in_order_at: u64,
}

impl Known {
    /// Nothing yet. Where a consumer is to be made, it begins with what was stored since then.
    pub(super) fn new(in_order_at: u64) -> Self {
        Self {
            handled: None,
            given: 0,
            lost: 0,
            in_order_at,
        }
    }

    /// Where a consumer is to begin, since there is none: behind what the fleet is known to have
    /// handled. Of nothing, with what was stored since then, as a node that has no state.
    pub(super) fn begin(&self, stream: u64) -> Begin {
        match self.handled {
            Some((known, handled)) if known == stream => Begin::At(handled + 1),
            Some(_) => Begin::At(1),
            None => Begin::Since(self.in_order_at),
        }
    }

    /// Whether a stream that was made then, and has this last message, has lost its end.
    pub(super) fn has_lost_end(&self, stream: u64, last: u64) -> bool {
        let known = self.handled.filter(|(known, _)| *known == stream);
        known.is_some_and(|(_, handled)| handled.max(self.given) > last)
    }

    /// The consumer is so far in a stream that was made then. Says how many messages are not there
    /// any more that were not delivered. `first`: the first that is there.
    pub(super) fn note(&mut self, stream: u64, first: u64, progress: SharedProgress) -> u64 {
        let is_same = self.handled.is_some_and(|(known, _)| known == stream);
        if !is_same {
            self.given = 0;
            // What was removed before the consumer was made is none of the fleet's.
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

/// What was stored when the node began.
#[derive(Debug)]
pub(super) struct Behind {
    /// The last message of it.
    last: u64,
    /// Up to where all had been handled at the last look, and since when that is so.
    handled: Option<(u64, Instant)>,
}

impl Behind {
    pub(super) fn new(last: u64) -> Self {
        Self {
            last,
            handled: None,
        }
    }

    /// Whether all of it has been handled, or what is left of it waits for something else than time: a shard
    /// that has no owner, or an owner that doesn't take it.
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
        let mut known = Known::new(5_000);
        assert_eq!(known.begin(7), Begin::Since(5_000));
        known.note(7, 1, at(30, 40));
        assert_eq!(known.begin(7), Begin::At(31));
        assert_eq!(known.begin(8), Begin::At(1), "another stream");
        assert!(!known.has_lost_end(7, 30) && known.has_lost_end(7, 29));
        assert!(!known.has_lost_end(8, 3), "another stream");
    }

    #[test]
    fn what_was_removed_before_it_was_delivered_is_counted_once() {
        let mut known = Known::new(0);
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
        let mut begins = Known::new(0);
        assert_eq!(begins.note(7, 500, at(10, 20)), 479, "while no node ran");
        assert_eq!(begins.note(7, 500, at(10, 20)), 0);
    }

    #[test]
    fn what_was_stored_before_is_waited_for_until_it_is_handled_or_nobody_handles_it() {
        let begun = Instant::now();
        let mut behind = Behind::new(100);
        let mut is_over = |seconds, handled, pending, unacknowledged| {
            let progress = SharedProgress {
                handled,
                pending,
                unacknowledged,
                ..SharedProgress::default()
            };
            behind.is_over(begun + Duration::from_secs(seconds), progress)
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
