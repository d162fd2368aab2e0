//! Messages of a stream that come out of its order: late, or for the second time, since nobody has
//! said that they were handled.
//!
//! A connection's last message is what holds of it. So each connection has the number of the last
//! one that it has taken from the stream, and what stands before that is taken no more: an old
//! connect brings nobody back who has left since, and an old disconnect ends no newer connection,
//! however late they come, and whatever the senders' clocks say. Messages that come from no stream
//! are ordered by the senders' clocks alone.

use super::Tracker;
use super::connection::{Connection, State};
use crate::message::StreamPlace;

/// Over how many messages of the stream one may come late. Numbers are kept to 32 bits, so a
/// connection that sends nothing over so many messages less than a whole round takes its next one
/// for an old one.
const LATE_MAX: u32 = 1 << 24;

impl<M> Connection<M> {
    /// The number of its last message; 0 for none.
    pub(super) fn stored(&self) -> u32 {
        match &self.state {
            State::Live(life) => life.stored,
            State::Closed(close) => close.stored,
            State::Unknown => 0,
        }
    }

    fn note_stored(&mut self, number: u32) {
        match &mut self.state {
            State::Live(life) => life.stored = number,
            State::Closed(close) => close.stored = number,
            State::Unknown => {}
        }
    }

    fn has_taken(&self, sequence: u64) -> bool {
        let stored = self.stored();
        stored != 0 && stored.wrapping_sub(kept(sequence)) < LATE_MAX
    }
}

/// As much of a number as is kept.
#[expect(clippy::cast_possible_truncation, reason = "it is meant to be")]
fn kept(sequence: u64) -> u32 {
    (sequence as u32).max(1)
}

impl<M: Clone> Tracker<M> {
    /// Whether a message of a connection, or a later one, was taken from the stream before.
    pub fn has_taken(&mut self, user: &str, conn: &str, place: StreamPlace) -> bool {
        self.goes_on_with(place.stream);
        if place.stream < self.stream {
            return false;
        }
        let connection = self.roster.find(user, conn);
        connection.is_some_and(|key| self.roster.connections[key].has_taken(place.sequence))
    }

    /// A message of a connection has been taken from the stream.
    pub fn took(&mut self, user: &str, conn: &str, place: StreamPlace) {
        if place.stream != self.stream || self.has_taken(user, conn, place) {
            return;
        }
        if let Some(key) = self.roster.find(user, conn) {
            self.roster.connections[key].note_stored(kept(place.sequence));
        }
    }

    /// The stream that connections' numbers are of, as when it was made; 0 for none.
    pub fn stream(&self) -> u64 {
        self.stream
    }

    /// The numbers of connections that are put back are of this stream. To be said before them.
    pub fn begin_with_stream(&mut self, stream: u64) {
        self.stream = stream;
    }

    /// The numbers of a stream that is made anew are others.
    fn goes_on_with(&mut self, stream: u64) {
        if stream <= self.stream {
            return;
        }
        self.stream = stream;
        for key in self.roster.connections.keys() {
            self.roster.connections[key].note_stored(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::{Reason, TrackerSettings};

    const HOUR: u64 = 3_600_000;

    fn at(sequence: u64) -> StreamPlace {
        StreamPlace {
            stream: 7,
            sequence,
        }
    }

    /// A connection that has taken these messages: `true` for a connect.
    fn tracker(messages: &[(u64, bool)]) -> Tracker<()> {
        let mut tracker = Tracker::new(TrackerSettings::default());
        for (number, (sequence, connects)) in (0..).zip(messages) {
            take(
                &mut tracker,
                HOUR + number * 10_000,
                at(*sequence),
                *connects,
            );
        }
        tracker
    }

    /// Takes a message as a shard does.
    fn take(tracker: &mut Tracker<()>, now: u64, place: StreamPlace, connects: bool) {
        if tracker.has_taken("ann", "web", place) {
            return;
        }
        match connects {
            true => tracker.connect(now, "ann", "web", now, || ()),
            false => tracker.disconnect(now, "ann", "web", now, Reason::Disconnect),
        };
        tracker.took("ann", "web", place);
    }

    #[test]
    fn an_old_connect_brings_nobody_back_however_late_it_is() {
        for messages in [&[(5, true), (9, false)][..], &[(9, false)]] {
            let mut tracker = tracker(messages);
            take(&mut tracker, HOUR + 50_000, at(5), true);
            assert!(!tracker.is_online("ann"), "{messages:?}");
            take(&mut tracker, HOUR + 50_000, at(10), true);
            assert!(tracker.is_online("ann"), "the next one does");
        }
    }

    #[test]
    fn an_old_disconnect_ends_no_newer_connection_whatever_the_clocks_say() {
        let mut tracker = tracker(&[(5, true), (12, true)]);
        take(&mut tracker, HOUR + 50_000, at(9), false);
        assert!(tracker.is_online("ann"));
        take(&mut tracker, HOUR + 50_000, at(13), false);
        assert!(!tracker.is_online("ann"));
    }

    #[test]
    fn numbers_may_pass_what_is_kept_of_them() {
        let round = u64::from(u32::MAX);
        let mut tracker = tracker(&[(round - 1, true), (round + 3, false)]);
        take(&mut tracker, HOUR + 50_000, at(round), true);
        assert!(!tracker.is_online("ann"));
        take(&mut tracker, HOUR + 50_000, at(round + 1 + (1 << 30)), true);
        assert!(tracker.is_online("ann"));
    }

    #[test]
    fn a_stream_that_is_made_anew_has_numbers_of_its_own() {
        let mut tracker = tracker(&[(500, true)]);
        let anew = |sequence| StreamPlace {
            stream: 8,
            sequence,
        };
        take(&mut tracker, HOUR + 50_000, anew(3), false);
        assert!(!tracker.is_online("ann"));
        take(&mut tracker, HOUR + 60_000, anew(2), true);
        assert!(!tracker.is_online("ann"), "it is late in the new one");
        take(&mut tracker, HOUR + 60_000, anew(4), true);
        assert!(tracker.is_online("ann"));
    }

    /// Another one that begins with what this one knows.
    fn copy(first: &mut Tracker<()>) -> Tracker<()> {
        let mut second = Tracker::new(TrackerSettings::default());
        second.begin_with_stream(first.stream());
        for record in first.all_records() {
            second.restore(HOUR + 20_000, 0, record);
        }
        second
    }

    #[test]
    fn what_is_put_back_knows_what_came_before_it() {
        let mut closed = copy(&mut tracker(&[(5, true), (9, false)]));
        take(&mut closed, HOUR + 50_000, at(5), true);
        assert!(!closed.is_online("ann"));
        let mut live = copy(&mut tracker(&[(5, true), (12, true)]));
        take(&mut live, HOUR + 25_000, at(9), false);
        assert!(live.is_online("ann"), "an old disconnect");
        take(&mut live, HOUR + 25_000, at(13), false);
        assert!(!live.is_online("ann"));
    }

    #[test]
    fn what_is_put_back_keeps_nothing_from_a_stream_that_is_made_anew() {
        let mut copy = copy(&mut tracker(&[(500, true), (501, false)]));
        let anew = StreamPlace {
            stream: 8,
            sequence: 3,
        };
        take(&mut copy, HOUR + 50_000, anew, true);
        assert!(copy.is_online("ann"));
    }
}
