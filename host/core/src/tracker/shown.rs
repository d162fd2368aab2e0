//! Which connection a user is shown by: the newest of the live ones.
//!
//! A user's live connections are a list, in the order in which they were opened: as they arrived here,
//! or as a stream has it (see `stored`). So
//! the newest is known, and the next when it goes, however many there are. One that
//! was adopted has never said what it is, and comes after all that were opened.
//!
//! Where a further connection is not to change what is shown, the one that the user is
//! shown by is put before all others and stays there until it goes, or until the newest
//! is to be shown after all. It keeps its order, and is marked. A user who is announced anew,
//! as an application's offline is over, is shown by the newest again.

use std::sync::Arc;

use super::Tracker;
use super::connection::State;
use super::places::{ListEnds, MARK, Place, is_marked, without_mark};
use super::slab::Key;

impl<M: Clone> Tracker<M> {
    /// What the newest of a user's live connections said of itself.
    pub fn shown(&self, user: &str) -> Option<&M> {
        let user = &self.roster.users[self.roster.find_user(user)?];
        match &self.roster.connections[user.list.newest?].state {
            State::Live(life) => Some(&life.metadata),
            State::Closed(_) | State::Unknown => None,
        }
    }

    /// A user who stays online and is to be shown otherwise than before, while there
    /// are any; each once or more. To be called until it returns none.
    pub fn take_reshown(&mut self) -> Option<Arc<str>> {
        self.reshown.pop()
    }

    /// Whether there are any.
    pub fn has_reshown(&self) -> bool {
        !self.reshown.is_empty()
    }

    /// Every user who is shown by a connection is to be shown anew, since something else has
    /// changed that this goes by.
    pub fn reshow_all(&mut self) {
        let users = self.roster.users.values();
        let shown = users.filter(|user| user.list.newest.is_some());
        self.reshown
            .extend(shown.map(|user| Arc::clone(&user.name)));
    }

    /// What live connections said of themselves is read otherwise from now on: by their ids, and
    /// as it was read before. None where that is the same.
    pub fn read_metadata_anew(&mut self, read: impl Fn(&str, &M) -> Option<M>) {
        for key in self.roster.connections.keys() {
            let connection = &mut self.roster.connections[key];
            let State::Live(life) = &mut connection.state else {
                continue;
            };
            let Some(metadata) = read(&connection.id, &life.metadata) else {
                continue;
            };
            life.metadata = metadata;
            self.note(key);
            if self.is_shown(key) {
                self.note_reshown(key);
            }
        }
    }

    /// All has been put back that was known before a restart.
    pub fn restored(&mut self) {
        let mut keys = std::mem::take(&mut self.unlinked);
        keys.sort_by_cached_key(|key| self.place(*key).map(|place| place.order));
        for key in keys {
            if let Some(place) = self.place(key) {
                self.orders.know(place.order);
                self.link_newest(key);
            }
        }
        self.show_newest();
    }

    /// Where the newest connection is to be shown, none stays before those opened after
    /// it.
    pub(super) fn show_newest(&mut self) {
        if !self.settings.shows_newest {
            return;
        }
        for user in self.roster.users.keys() {
            if let Some(shown) = self.show_newest_of(user) {
                self.note_reshown(shown);
            }
        }
    }

    /// A user is announced anew, and so by the newest of their live connections.
    pub(crate) fn announced_anew(&mut self, user: &str) {
        if let Some(user) = self.roster.find_user(user) {
            self.show_newest_of(user);
        }
    }

    /// A user is shown by the newest of their live connections. Says by which they were
    /// shown until now, if it was another.
    fn show_newest_of(&mut self, user: Key) -> Option<Key> {
        let shown = self.roster.users[user].list.newest?;
        let order = self.place(shown)?.order;
        if !is_marked(order) {
            return None;
        }
        self.unlink(shown);
        self.change(shown, |place| place.order = without_mark(order));
        self.link_by_order(shown);
        self.note(shown);
        (!self.is_shown(shown)).then_some(shown)
    }

    /// Whether a user is shown by this connection.
    pub(super) fn is_shown(&self, key: Key) -> bool {
        let user = self.roster.connections[key].user;
        self.roster.users[user].list.newest == Some(key)
    }

    /// Notes that a user is to be shown otherwise than before.
    pub(super) fn note_reshown(&mut self, key: Key) {
        let user = &self.roster.users[self.roster.connections[key].user];
        self.reshown.push(Arc::clone(&user.name));
    }

    /// Takes a connection that has become live into its user's list.
    pub(super) fn link(&mut self, key: Key) {
        let was_opened = |place: Option<&Place>| place.is_some_and(|place| place.order >= 0);
        if !was_opened(self.place(key)) {
            return self.link_oldest(key);
        }
        let shown = self.roster.users[self.roster.connections[key].user]
            .list
            .newest;
        self.link_by_order(key);
        if let Some(shown) = shown.filter(|shown| was_opened(self.place(*shown)))
            && !self.settings.shows_newest
        {
            self.unlink(shown);
            self.change(shown, |place| {
                place.order = MARK + without_mark(place.order)
            });
            self.link_newest(shown);
            self.note(shown);
        }
    }

    /// Gives a live connection another order, by which it has the same place in the list.
    pub(super) fn reorder(&mut self, key: Key, order: i64) {
        self.change(key, |place| {
            place.order = match is_marked(place.order) {
                true => MARK + order,
                false => order,
            }
        });
        self.note(key);
    }

    /// Takes a live connection out of its user's list.
    pub(super) fn unlink(&mut self, key: Key) {
        let Some(Place { older, newer, .. }) = self.place(key).copied() else {
            return;
        };
        let user = self.roster.connections[key].user;
        let shown = self.roster.shown_digest(user);
        match older {
            Some(older) => self.change(older, |place| place.newer = newer),
            None => self.roster.users[user].list.oldest = newer,
        }
        match newer {
            Some(newer) => self.change(newer, |place| place.older = older),
            None => self.roster.users[user].list.newest = older,
        }
        self.roster.shown_changed(user, shown);
    }

    fn link_newest(&mut self, key: Key) {
        let older = self.ends(key).newest;
        self.link_between(older, key, None);
    }

    fn link_oldest(&mut self, key: Key) {
        let newer = self.ends(key).oldest;
        self.link_between(None, key, newer);
    }

    fn link_by_order(&mut self, key: Key) {
        let (mut older, mut newer) = (self.ends(key).newest, None);
        let order = |key| self.place(key).map_or(0, |place| place.order);
        while let Some(next) = older.filter(|next| order(*next) > order(key)) {
            newer = Some(next);
            older = self.place(next).and_then(|place| place.older);
        }
        self.link_between(older, key, newer);
    }

    fn link_between(&mut self, older: Option<Key>, key: Key, newer: Option<Key>) {
        let user = self.roster.connections[key].user;
        let shown = self.roster.shown_digest(user);
        match older {
            Some(older) => self.change(older, |place| place.newer = Some(key)),
            None => self.ends(key).oldest = Some(key),
        }
        match newer {
            Some(newer) => self.change(newer, |place| place.older = Some(key)),
            None => self.ends(key).newest = Some(key),
        }
        self.change(key, |place| (place.older, place.newer) = (older, newer));
        self.roster.shown_changed(user, shown);
    }

    /// The ends of the list of a connection's user.
    fn ends(&mut self, key: Key) -> &mut ListEnds {
        let user = self.roster.connections[key].user;
        &mut self.roster.users[user].list
    }

    pub(super) fn place(&self, key: Key) -> Option<&Place> {
        match &self.roster.connections.get(key)?.state {
            State::Live(life) => Some(&life.place),
            State::Closed(_) | State::Unknown => None,
        }
    }

    fn change(&mut self, key: Key, change: impl FnOnce(&mut Place)) {
        if let State::Live(life) = &mut self.roster.connections[key].state {
            change(&mut life.place);
        }
    }
}
