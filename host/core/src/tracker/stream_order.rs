//! Messages of a stream that arrive out of its order: late, or a second time, since nobody has
//! acknowledged them.
//!
//! A connection is as its last message says. So each connection has the number of the last message
//! that was taken from the stream for it, and earlier messages are ignored. An old connect brings
//! nobody back who has left since, and an old disconnect ends no newer connection, however late
//! they come, and whatever the senders' clocks say. Messages that come from no stream are ordered
//! by the senders' clocks alone.
//!
//! A late connect opens a connection that is older than those whose connects have overtaken it. The
//! numbers say where its place is among its user's connections.

use std::cmp::Reverse;

use super::Tracker;
use super::connection::{Connection, State};
use super::places::without_mark;
use super::slab::Key;
use crate::message::StreamPlace;

/// A message is late if it is fewer than this many messages of the stream behind its connection's
/// last one. Numbers are kept in 32 bits. So if the stream moves on by 2^32 messages, or a little
/// less, between two messages of a connection, the second one is taken for a late one.
const LATE_MAX: u32 = 1 << 24;

impl<M> Connection<M> {
    /// The number, in the stream, of its last message; 0: none.
    pub(super) fn stream_seq(&self) -> u32 {
        match &self.state {
            State::Live(life) => life.stream_seq,
            State::Closed(close) => close.stream_seq,
            State::Unknown => 0,
        }
    }

    fn set_stream_seq(&mut self, number: u32) {
        match &mut self.state {
            State::Live(life) => life.stream_seq = number,
            State::Closed(close) => close.stream_seq = number,
            State::Unknown => {}
        }
    }

    fn has_taken(&self, sequence: u64) -> bool {
        let stream_seq = self.stream_seq();
        stream_seq != 0 && stream_seq.wrapping_sub(kept(sequence)) < LATE_MAX
    }
}

/// The 32 bits of a number that are kept. They are never 0, which means none.
#[expect(clippy::cast_possible_truncation, reason = "it is meant to be")]
fn kept(sequence: u64) -> u32 {
    (sequence as u32).max(1)
}

impl<M: Clone> Tracker<M> {
    /// Whether this message of a connection, or a later one, was taken from the stream before.
    pub fn check_stream_duplicate(&mut self, user: &str, conn: &str, place: StreamPlace) -> bool {
        self.switch_stream(place.stream);
        if place.stream < self.stream {
            return false;
        }
        let connection = self.roster.find(user, conn);
        connection.is_some_and(|key| self.roster.connections[key].has_taken(place.sequence))
    }

    /// Notes that a message of a connection has been taken from the stream.
    pub fn note_stream_seq(&mut self, user: &str, conn: &str, place: StreamPlace) {
        if place.stream != self.stream || self.check_stream_duplicate(user, conn, place) {
            return;
        }
        if let Some(key) = self.roster.find(user, conn) {
            self.roster.connections[key].set_stream_seq(kept(place.sequence));
        }
    }

    /// Whether a connect counts for its user that the close of its connection has overtaken: it is
    /// the first one that comes, and the user has another live connection. It opens nothing. What
    /// it says of the user counts, once.
    pub fn take_first_overtaken(&mut self, user: &str, conn: &str) -> bool {
        let Some(key) = self.roster.find(user, conn) else {
            return false;
        };
        let State::Closed(close) = &mut self.roster.connections[key].state else {
            return false;
        };
        std::mem::take(&mut close.is_first) && self.is_connected(user)
    }

    /// The order of a connection that a message opens now, among its user's connections. It is the
    /// newest one, unless connections that are newer in the stream were opened before it.
    pub(super) fn order_opened(&mut self, user: Key, place: Option<StreamPlace>) -> i64 {
        let Some(place) = place.filter(|place| place.stream == self.stream) else {
            return self.orders.next_opened();
        };
        let mut opened = self.opened_of(user);
        let is_newer = |key: &Key| self.roster.connections[*key].has_taken(place.sequence);
        let newer = opened.iter().take_while(|(_, key)| is_newer(key)).count();
        let older = opened.get(newer).map_or(0, |(order, _)| *order);
        opened.truncate(newer);
        let Some((next, _)) = opened.last() else {
            return self.orders.next_opened();
        };
        let between = older.midpoint(*next);
        if between > older {
            return between;
        }
        // So many connects have come late to this place that no order is left for one more. A
        // snapshot that is being read lacks the connections whose order changes. The node that
        // takes the snapshot finds the difference, and takes another one.
        let order = self.orders.next_opened();
        for (_, key) in opened.into_iter().rev() {
            let order = self.orders.next_opened();
            self.reorder(key, order);
        }
        order
    }

    /// The newest timestamp at which one of a user's live connections was opened, by its sender's
    /// clock, in milliseconds since the Unix epoch. `None` if that isn't known of any of them.
    pub(crate) fn last_opened(&self, user: &str) -> Option<u64> {
        let opened = self.opened_of(self.roster.find_user(user)?).into_iter();
        let opened = opened.filter_map(|(_, key)| match &self.roster.connections[key].state {
            State::Live(life) => Some(life.opened),
            State::Closed(_) | State::Unknown => None,
        });
        opened.max()
    }

    /// A user's live connections that were opened by a connect, with their orders; the newest comes
    /// first.
    fn opened_of(&self, user: Key) -> Vec<(i64, Key)> {
        let mut next = self.roster.users[user].list.newest;
        let opened = std::iter::from_fn(|| {
            let key = next?;
            let place = self.place(key)?;
            next = place.older;
            let order = without_mark(place.order);
            (order >= 0).then_some((order, key))
        });
        let mut opened: Vec<_> = opened.collect();
        // The connection at the head of the list may be a marked one, which needn't be the newest.
        opened.sort_unstable_by_key(|(order, _)| Reverse(*order));
        opened
    }

    /// The stream to which the connections' message numbers belong, by when the stream was made; 0:
    /// none.
    pub fn stream(&self) -> u64 {
        self.stream
    }

    /// Sets the stream to which the numbers of restored connections belong. Call it before
    /// they are restored.
    pub fn set_stream(&mut self, stream: u64) {
        self.stream = stream;
    }

    /// Goes on with a newer stream, whose numbers start again: forgets those of the stream before.
    fn switch_stream(&mut self, stream: u64) {
        if stream <= self.stream {
            return;
        }
        self.stream = stream;
        for key in self.roster.connections.keys() {
            self.roster.connections[key].set_stream_seq(0);
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

    /// A tracker with a connection that has taken these messages; `true`: a connect.
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
        if tracker.check_stream_duplicate("ann", "web", place) {
            return;
        }
        match connects {
            true => tracker.connect(now, "ann", "web", now, || ()),
            false => tracker.disconnect(now, "ann", "web", now, Reason::Disconnect),
        };
        tracker.note_stream_seq("ann", "web", place);
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

    /// A tracker that is restored from the records of another one.
    fn copy(first: &mut Tracker<()>) -> Tracker<()> {
        let mut second = Tracker::new(TrackerSettings::default());
        second.set_stream(first.stream());
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

    /// Takes a connect of one of several connections. The metadata of each is its id.
    fn open(tracker: &mut Tracker<&'static str>, now: u64, conn: &'static str, sequence: u64) {
        if !tracker.check_stream_duplicate("ann", conn, at(sequence)) {
            tracker.connect_at(now, ("ann", conn), now, Some(at(sequence)), || conn);
            tracker.note_stream_seq("ann", conn, at(sequence));
        }
    }

    /// The connections by which the user is shown, one after the other: each is ended to show the
    /// next.
    fn shown_in_turn(mut tracker: Tracker<&'static str>) -> Vec<&'static str> {
        let shown = std::iter::from_fn(|| {
            let conn = *tracker.shown("ann")?;
            tracker.disconnect(HOUR + 60_000, "ann", conn, HOUR + 60_000, Reason::Logout);
            Some(conn)
        });
        shown.collect()
    }

    fn copy_of(first: &mut Tracker<&'static str>) -> Tracker<&'static str> {
        let mut second = Tracker::new(first.settings);
        second.set_stream(first.stream());
        for record in first.all_records() {
            second.restore(HOUR + 20_000, 0, record);
        }
        second.finish_restore();
        second
    }

    #[test]
    fn a_connect_that_is_late_is_of_an_older_connection_than_those_that_overtook_it() {
        let orders = [[1, 2, 3, 4], [4, 3, 2, 1], [2, 4, 1, 3], [3, 1, 4, 2]];
        for order in orders {
            let mut tracker = Tracker::new(TrackerSettings::default());
            for (now, number) in (HOUR..).zip(order) {
                let conn = ["", "a", "b", "c", "d"][number];
                open(&mut tracker, now, conn, 10 * number as u64);
            }
            let again = copy_of(&mut tracker);
            let newest_first = ["d", "c", "b", "a"];
            assert_eq!(shown_in_turn(again), newest_first, "{order:?}, put back");
            assert_eq!(shown_in_turn(tracker), newest_first, "{order:?}");
        }
    }

    #[test]
    fn nobody_is_shown_anew_because_of_a_connect_that_is_late() {
        let mut tracker = Tracker::new(TrackerSettings::default());
        open(&mut tracker, HOUR, "b", 9);
        open(&mut tracker, HOUR + 1, "a", 5);
        assert!(!tracker.has_reshown());
        // It was known by heartbeats alone.
        tracker.heartbeat(HOUR + 2, "ann", "c", HOUR + 2, || "c");
        open(&mut tracker, HOUR + 3, "c", 7);
        assert!(!tracker.has_reshown());
        assert_eq!(shown_in_turn(tracker), ["b", "c", "a"]);
    }

    #[test]
    fn who_goes_on_being_shown_does_so_where_a_connect_is_late() {
        let settings = TrackerSettings {
            shows_newest: false,
            ..TrackerSettings::default()
        };
        let mut tracker = Tracker::new(settings);
        for (now, (conn, sequence)) in
            (HOUR..).zip([("b", 20), ("d", 40), ("a", 10), ("c", 30), ("e", 50)])
        {
            open(&mut tracker, now, conn, sequence);
        }
        assert!(!tracker.has_reshown());
        assert_eq!(
            shown_in_turn(copy_of(&mut tracker)),
            ["b", "e", "d", "c", "a"]
        );
        // From now on, the newest is shown, and the first one has its place among them.
        tracker.reconfigure(TrackerSettings::default());
        assert_eq!(shown_in_turn(tracker), ["e", "d", "c", "b", "a"]);
    }

    #[test]
    fn a_connect_that_is_in_time_is_of_the_newest_connection() {
        let mut tracker = Tracker::new(TrackerSettings::default());
        open(&mut tracker, HOUR, "a", 5);
        open(&mut tracker, HOUR + 1, "b", 9);
        // A repeated connect makes a connection no newer.
        open(&mut tracker, HOUR + 2, "a", 12);
        tracker.connect(HOUR + 3, "ann", "of no stream", HOUR + 3, || "of no stream");
        open(&mut tracker, HOUR + 4, "c", 14);
        let newest_first = ["c", "of no stream", "b", "a"];
        assert_eq!(shown_in_turn(tracker), newest_first);
    }

    #[test]
    fn any_number_of_connects_may_be_late() {
        let mut tracker = Tracker::new(TrackerSettings::default());
        open(&mut tracker, HOUR, "first", 1);
        open(&mut tracker, HOUR, "newest", 1_000);
        for sequence in 2..42 {
            let conn = format!("late {sequence}");
            tracker.connect_at(HOUR, ("ann", &conn), HOUR, Some(at(sequence)), || "late");
            tracker.note_stream_seq("ann", &conn, at(sequence));
        }
        assert_eq!(tracker.shown("ann"), Some(&"newest"));
        let again = copy_of(&mut tracker);
        for mut tracker in [tracker, again] {
            for sequence in (2..42).rev() {
                let conn = format!("late {sequence}");
                tracker.disconnect(HOUR + 60_000, "ann", &conn, HOUR + 60_000, Reason::Logout);
                assert_eq!(tracker.shown("ann"), Some(&"newest"), "{sequence}");
            }
            assert_eq!(shown_in_turn(tracker), ["newest", "first"]);
        }
    }
}
