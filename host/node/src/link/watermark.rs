//! The watermark of received messages: the time up to which a shard has received all that the
//! broker sent. A shard gets it after the messages that arrived before that time. If some of these
//! were dropped, the shard gets the time as lost instead. A shard in which nothing depends on
//! watermarks gets none until there is a message for it, so that an idle shard has nothing to do.

use presence_core::Input;
use tokio::sync::watch;

/// The next watermark, and which shards lost messages before it. Times are by the host's clock.
pub(crate) struct Watermark {
    received: watch::Receiver<u64>,
    /// How many messages the subscription's queue holds.
    queue: u64,
    /// A watermark that isn't due yet, and the count of read messages at which it is due.
    pending: Option<(u64, u64)>,
    shards: Vec<Shard>,
    overflow: OverflowDetector,
}

/// What is known about a shard.
#[derive(Clone)]
struct Shard {
    /// When inputs for the shard were last dropped. `None` once it has been given a later
    /// watermark.
    dropped_at: Option<u64>,
    /// The last watermark, if the shard skipped it.
    skipped: Option<u64>,
    /// How many further watermarks the shard gets even if it says that it needs none: it may not
    /// have handled its last message yet.
    forced_watermarks: u8,
}

/// How many watermarks a shard gets after each message, even if it says that it needs none.
const FORCED_WATERMARKS: u8 = 8;

impl Watermark {
    /// `queue`: how many messages the subscription's queue holds.
    pub(crate) fn new(received: watch::Receiver<u64>, queue: usize, shards: usize) -> Self {
        Self {
            received,
            queue: queue as u64,
            pending: None,
            shards: vec![
                Shard {
                    dropped_at: None,
                    skipped: None,
                    forced_watermarks: FORCED_WATERMARKS,
                };
                shards
            ],
            overflow: OverflowDetector::default(),
        }
    }

    /// Returns the watermark that is due when `read` messages have been read in all, if there is
    /// one, although messages still wait: everything that had arrived before it has been read.
    pub(crate) fn after(&mut self, read: u64) -> Option<u64> {
        if self.pending.is_none() && self.received.has_changed().is_ok_and(|changed| changed) {
            let at = *self.received.borrow_and_update();
            self.pending = Some((at, read.saturating_add(self.queue)));
        }
        let (at, _) = self.pending.take_if(|(_, end)| *end <= read)?;
        Some(at)
    }

    /// Waits for the next watermark. `read`: how many messages have been read in all. The watermark
    /// is due once no message waits to be read.
    pub(crate) async fn arrives(&mut self, read: u64) {
        if self.pending.is_some() {
            return;
        }
        match self.received.changed().await {
            Ok(()) => {
                let at = *self.received.borrow_and_update();
                self.pending = Some((at, read.saturating_add(self.queue)));
            }
            // There will be no further watermark: the node ends.
            Err(_) => std::future::pending().await,
        }
    }

    /// Takes the pending watermark. To be called when no message waits to be read.
    pub(crate) fn take(&mut self) -> Option<u64> {
        self.pending.take().map(|(at, _)| at)
    }

    /// Notes that inputs for a shard were dropped.
    pub(crate) fn note_dropped(&mut self, shard: usize, now: u64) {
        if let Some(shard) = self.shards.get_mut(shard) {
            shard.dropped_at = Some(now);
        }
    }

    /// Checks whether the client may have dropped messages of this subscription. `read`: how many
    /// messages were read in all. `events`: how many drops the client has reported, of any
    /// subscription. If so, every shard may have lost messages.
    pub(crate) fn look_for_drops(&mut self, now: u64, read: u64, events: u64) {
        if self.overflow.may_have_overflowed(read, events, self.queue) {
            for shard in &mut self.shards {
                shard.dropped_at = Some(now);
            }
        }
    }

    /// As [`Self::look_for_drops`], when no message waits to be read.
    pub(crate) fn note_queue_empty(&mut self, now: u64, read: u64, events: u64) {
        self.look_for_drops(now, read, events);
        self.overflow.note_empty(read, events);
    }

    /// The input that gives a shard the watermark `at`.
    pub(crate) fn input(&self, shard: usize, at: u64) -> Input {
        let shard = self.shards.get(shard);
        match shard.is_some_and(|it| it.dropped_at.is_some()) {
            true => Input::LostUpTo { at },
            false => Input::ReceivedUpTo { at },
        }
    }

    /// Returns whether the shard skips the watermark `at`. `needs_no_watermark`: the shard says
    /// that nothing in it depends on watermarks.
    pub(crate) fn skips(&mut self, shard: usize, at: u64, needs_no_watermark: bool) -> bool {
        let Some(shard) = self.shards.get_mut(shard) else {
            return false;
        };
        let skips =
            needs_no_watermark && shard.forced_watermarks == 0 && shard.dropped_at.is_none();
        shard.forced_watermarks = shard.forced_watermarks.saturating_sub(1);
        shard.skipped = skips.then_some(at);
        skips
    }

    /// Notes that a shard is about to get a message. Returns the watermark that it must get first,
    /// if it skipped one.
    pub(crate) fn before_message(&mut self, shard: usize) -> Option<Input> {
        let known = self.shards.get_mut(shard)?;
        known.forced_watermarks = FORCED_WATERMARKS;
        let at = known.skipped.take()?;
        Some(self.input(shard, at))
    }

    /// Notes that a shard has got the watermark `at`. A dropped message arrived before it was
    /// dropped. So if `at` is later than the last drop, the next watermark is not affected by it.
    pub(crate) fn note_sent(&mut self, shard: usize, at: u64) {
        if let Some(shard) = self.shards.get_mut(shard) {
            shard.dropped_at.take_if(|dropped_at| *dropped_at < at);
        }
    }
}

/// Whether the subscription has had room for all messages. It can only have been full if as many
/// messages as it holds were read without finding it empty.
#[derive(Default)]
struct OverflowDetector {
    /// The last two times that the subscription was found empty: how many messages had been read by
    /// then, and how many drops the client had reported.
    empty: [(u64, u64); 2],
}

impl OverflowDetector {
    fn may_have_overflowed(&self, read: u64, events: u64, queue: u64) -> bool {
        let [(last, events_then), (before, _)] = self.empty;
        // The client may report a drop late, so the period before the last one counts, too.
        let was_full = read - last >= queue || last - before >= queue;
        events > events_then && was_full
    }

    fn note_empty(&mut self, read: u64, events: u64) {
        let [last, _] = self.empty;
        self.empty = [(read, events), last];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARDS: usize = 2;

    fn watermark() -> (watch::Sender<u64>, Watermark) {
        let (sender, received) = watch::channel(0);
        (sender, Watermark::new(received, 10, SHARDS))
    }

    /// Which shards get a watermark that says that everything was received.
    fn send(watermark: &mut Watermark, at: u64) -> [bool; SHARDS] {
        [0, 1].map(|shard| {
            let is_received = matches!(watermark.input(shard, at), Input::ReceivedUpTo { .. });
            watermark.note_sent(shard, at);
            is_received
        })
    }

    #[test]
    fn a_shard_whose_inputs_were_dropped_gets_that_time_as_lost() {
        let (_sender, mut watermark) = watermark();
        assert_eq!(send(&mut watermark, 100), [true, true]);
        watermark.note_dropped(1, 150);
        // The one dropped may have come before 120, or after it.
        assert_eq!(send(&mut watermark, 120), [true, false]);
        assert_eq!(send(&mut watermark, 200), [true, false]);
        assert_eq!(send(&mut watermark, 300), [true, true]);
    }

    #[test]
    fn a_shard_that_had_no_room_for_the_watermark_either_gets_the_next_one() {
        let (_sender, mut watermark) = watermark();
        watermark.note_dropped(0, 50);
        assert!(matches!(
            watermark.input(0, 100),
            Input::LostUpTo { at: 100 }
        ));
        assert!(matches!(
            watermark.input(0, 200),
            Input::LostUpTo { at: 200 }
        ));
        watermark.note_sent(0, 200);
        assert!(matches!(
            watermark.input(0, 300),
            Input::ReceivedUpTo { at: 300 }
        ));
    }

    #[test]
    fn what_the_client_dropped_counts_where_the_subscription_may_have_been_full() {
        let (_sender, mut watermark) = watermark();
        watermark.note_queue_empty(1, 9, 1);
        assert_eq!(send(&mut watermark, 10), [true, true], "another's event");
        watermark.look_for_drops(11, 19, 2);
        assert_eq!(send(&mut watermark, 20), [false, false]);
        watermark.note_queue_empty(21, 25, 2);
        watermark.note_queue_empty(31, 25, 3);
        assert_eq!(
            send(&mut watermark, 40),
            [false, false],
            "the event was late"
        );
        watermark.note_queue_empty(41, 30, 4);
        assert_eq!(send(&mut watermark, 50), [true, true], "another's event");
    }

    #[test]
    fn a_shard_where_nothing_goes_by_watermarks_gets_one_before_a_message() {
        let (_sender, mut watermark) = watermark();
        for at in 0..u64::from(FORCED_WATERMARKS) {
            assert!(!watermark.skips(0, at, true), "it may have more to handle");
            assert!(!watermark.skips(1, at, false));
        }
        assert!(watermark.skips(0, 20, true) && !watermark.skips(1, 20, false));
        assert!(watermark.skips(0, 30, true));
        let before = watermark.before_message(0);
        assert!(matches!(before, Some(Input::ReceivedUpTo { at: 30 })));
        assert!(!watermark.skips(0, 40, true), "it may not know of that yet");
        assert!(watermark.before_message(0).is_none());
        for at in 50..50 + u64::from(FORCED_WATERMARKS) {
            watermark.skips(0, at, true);
        }
        watermark.note_dropped(0, 60);
        assert!(!watermark.skips(0, 70, true), "it is to know of that");
    }

    #[tokio::test]
    async fn a_watermark_comes_after_all_that_had_arrived() {
        let (sender, mut watermark) = watermark();
        assert_eq!(watermark.after(100), None);
        sender.send_replace(7);
        assert_eq!(watermark.after(101), None);
        assert_eq!(watermark.after(110), None);
        assert_eq!(watermark.after(111), Some(7));
        sender.send_replace(8);
        assert_eq!(watermark.after(112), None);
        watermark.arrives(111).await;
        assert_eq!(watermark.take(), Some(8), "nothing waits any more");
    }
}
