//! Up to when everything has been heard, as each shard is to know it: behind all that
//! had arrived by then, and not where something of it was dropped on the way.

use presence_core::Input;
use tokio::sync::watch;

/// What is to be told of the hearing, and to whom. Times are by the host's clock.
pub(crate) struct Hearing {
    heard: watch::Receiver<u64>,
    /// How many messages may wait to be read.
    queue: u64,
    /// What the shards don't know yet, and after how many messages they may.
    pending: Option<(u64, u64)>,
    /// Of each shard: when inputs for it were dropped last, until it knows.
    dropped_at: Vec<Option<u64>>,
    room: Room,
}

impl Hearing {
    /// `queue`: how many messages may wait to be read.
    pub(crate) fn new(heard: watch::Receiver<u64>, queue: usize, shards: usize) -> Self {
        Self {
            heard,
            queue: queue as u64,
            pending: None,
            dropped_at: vec![None; shards],
            room: Room::default(),
        }
    }

    /// So many messages have been read in all, and others wait. Says up to when all has
    /// been handed on, if that is news.
    pub(crate) fn after(&mut self, read: u64) -> Option<u64> {
        if self.pending.is_none() && self.heard.has_changed().is_ok_and(|changed| changed) {
            let at = *self.heard.borrow_and_update();
            self.pending = Some((at, read.saturating_add(self.queue)));
        }
        let (at, _) = self.pending.take_if(|(_, end)| *end <= read)?;
        Some(at)
    }

    /// Waits, while nothing waits to be read, for news of up to when all has been heard.
    pub(crate) async fn now(&mut self) -> u64 {
        if let Some((at, _)) = self.pending.take() {
            return at;
        }
        match self.heard.changed().await {
            Ok(()) => *self.heard.borrow_and_update(),
            // Nobody finds out any more: the node ends.
            Err(_) => std::future::pending().await,
        }
    }

    /// Inputs for a shard were dropped.
    pub(crate) fn dropped(&mut self, shard: usize, now: u64) {
        if let Some(dropped_at) = self.dropped_at.get_mut(shard) {
            *dropped_at = Some(now);
        }
    }

    /// So many messages have been read in all, and the client has said so often that it
    /// had no room for one in some subscription: if it may have been the one that is
    /// read here, nobody knows for which shard.
    pub(crate) fn look_for_drops(&mut self, now: u64, read: u64, events: u64) {
        if self.room.may_have_lacked(read, events, self.queue) {
            self.dropped_at.fill(Some(now));
        }
    }

    /// All that waited has been read: as [`Self::look_for_drops`].
    pub(crate) fn all_is_read(&mut self, now: u64, read: u64, events: u64) {
        self.look_for_drops(now, read, events);
        self.room.is_empty(read, events);
    }

    /// What a shard is told when all has been handed on that arrived by a time.
    pub(crate) fn word(&self, shard: usize, at: u64) -> Input {
        match self.dropped_at.get(shard) {
            Some(Some(_)) => Input::LostUpTo { at },
            _ => Input::ReceivedUpTo { at },
        }
    }

    /// A shard has been told. What was dropped arrived by the time at which it was, so
    /// a word of a later time is the last one that it belies.
    pub(crate) fn told(&mut self, shard: usize, at: u64) {
        if let Some(dropped_at) = self.dropped_at.get_mut(shard) {
            dropped_at.take_if(|dropped_at| *dropped_at < at);
        }
    }
}

/// Whether the subscription has had room for all messages. It has been full only if
/// as many messages as it holds are read without its being found empty.
#[derive(Default)]
struct Room {
    /// The last time it was found empty, and the time before that: how many messages had
    /// been read, and how often the client had said that it had no room.
    empty: [(u64, u64); 2],
}

impl Room {
    fn may_have_lacked(&self, read: u64, events: u64, queue: u64) -> bool {
        let [(last, events_then), (before, _)] = self.empty;
        // The client may say so late.
        let was_full = read - last >= queue || last - before >= queue;
        events > events_then && was_full
    }

    fn is_empty(&mut self, read: u64, events: u64) {
        let [last, _] = self.empty;
        self.empty = [(read, events), last];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARDS: usize = 2;

    fn hearing() -> (watch::Sender<u64>, Hearing) {
        let (heard, hearing) = watch::channel(0);
        (heard, Hearing::new(hearing, 10, SHARDS))
    }

    /// Whom a word says that all was heard, and who has got it then.
    fn tell(hearing: &mut Hearing, at: u64) -> [bool; SHARDS] {
        [0, 1].map(|shard| {
            let heard = matches!(hearing.word(shard, at), Input::ReceivedUpTo { .. });
            hearing.told(shard, at);
            heard
        })
    }

    #[test]
    fn a_shard_whose_inputs_were_dropped_is_not_told_that_it_heard_that_time() {
        let (_heard, mut hearing) = hearing();
        assert_eq!(tell(&mut hearing, 100), [true, true]);
        hearing.dropped(1, 150);
        // The one dropped may have come before 120, or after it.
        assert_eq!(tell(&mut hearing, 120), [true, false]);
        assert_eq!(tell(&mut hearing, 200), [true, false]);
        assert_eq!(tell(&mut hearing, 300), [true, true]);
    }

    #[test]
    fn a_shard_that_had_no_room_for_the_word_either_gets_the_next_one() {
        let (_heard, mut hearing) = hearing();
        hearing.dropped(0, 50);
        assert!(matches!(hearing.word(0, 100), Input::LostUpTo { at: 100 }));
        assert!(matches!(hearing.word(0, 200), Input::LostUpTo { at: 200 }));
        hearing.told(0, 200);
        assert!(matches!(
            hearing.word(0, 300),
            Input::ReceivedUpTo { at: 300 }
        ));
    }

    #[test]
    fn what_the_client_dropped_counts_where_the_subscription_may_have_been_full() {
        let (_heard, mut hearing) = hearing();
        hearing.all_is_read(1, 9, 1);
        assert_eq!(tell(&mut hearing, 10), [true, true], "another's event");
        hearing.look_for_drops(11, 19, 2);
        assert_eq!(tell(&mut hearing, 20), [false, false]);
        hearing.all_is_read(21, 25, 2);
        hearing.all_is_read(31, 25, 3);
        assert_eq!(tell(&mut hearing, 40), [false, false], "the event was late");
        hearing.all_is_read(41, 30, 4);
        assert_eq!(tell(&mut hearing, 50), [true, true], "another's event");
    }

    #[tokio::test]
    async fn the_word_comes_behind_all_that_had_arrived() {
        let (heard, mut hearing) = hearing();
        assert_eq!(hearing.after(100), None);
        heard.send_replace(7);
        assert_eq!(hearing.after(101), None);
        assert_eq!(hearing.after(110), None);
        assert_eq!(hearing.after(111), Some(7));
        heard.send_replace(8);
        assert_eq!(hearing.after(112), None);
        assert_eq!(hearing.now().await, 8, "nothing waits any more");
    }
}
