//! Which connection a user is shown by: as a rule, the newest live one.
//!
//! A user's live connections are a list, in the order in which they were opened: the order of
//! arrival, or the order of a stream (see `stream_order`). So the newest one is known at once, and
//! the next one when that ends, however many there are. A connection that was adopted has sent no
//! connect, and comes after all that were opened.
//!
//! With `shows_newest` off, a further connection doesn't change which one is shown. The shown
//! connection is put before all others, and stays there until it ends, or until `shows_newest` is
//! turned on. It keeps its order, and is marked. A user who is announced again, since an
//! application's offline has ended, is shown by the newest connection.

use std::sync::Arc;

use super::Tracker;
use super::connection::State;
use super::places::{ListEnds, MARK, Place, is_marked, without_mark};
use super::slab::Key;

impl<M: Clone> Tracker<M> {
    /// The metadata of the connection that a user is shown by.
    pub fn shown(&self, user: &str) -> Option<&M> {
        let user = &self.roster.users[self.roster.find_user(user)?];
        match &self.roster.connections[user.list.newest?].state {
            State::Live(life) => Some(&life.metadata),
            State::Closed(_) | State::Unknown => None,
        }
    }

    /// Takes a user who stays online and is to be shown again, since another connection is shown,
    /// or its metadata has changed. A user may come more than once. Call it until it returns
    /// `None`.
    pub fn take_reshown(&mut self) -> Option<Arc<str>> {
        self.reshown.pop()
    }

    /// Whether there are users for [`Self::take_reshown`].
    pub fn has_reshown(&self) -> bool {
        !self.reshown.is_empty()
    }

    /// Notes that every user with a live connection is to be shown again, since something else has
    /// changed that decides how: the enrichers. Not those for whom `stays` is true.
    pub fn reshow_all(&mut self, stays: impl Fn(&str) -> bool) {
        let users = self.roster.users.values();
        let shown = users.filter(|user| user.list.newest.is_some() && !stays(&user.name));
        self.reshown
            .extend(shown.map(|user| Arc::clone(&user.name)));
    }

    /// Replaces the metadata of live connections, where `read` returns other metadata. It gets the
    /// id of a connection and its metadata, and returns `None` if that stays the same. Users for
    /// whom `stays` is true aren't shown again.
    pub fn update_metadata(
        &mut self,
        read: impl Fn(&str, &M) -> Option<M>,
        stays: impl Fn(&str) -> bool,
    ) {
        for key in self.roster.connections.keys() {
            let connection = &mut self.roster.connections[key];
            let State::Live(life) = &mut connection.state else {
                continue;
            };
            let Some(metadata) = read(&connection.id, &life.metadata) else {
                continue;
            };
            life.metadata = metadata;
            let user = &self.roster.users[connection.user];
            let is_reshown = user.list.newest == Some(key) && !stays(&user.name);
            self.mark_changed(key);
            if is_reshown {
                self.note_reshown(key);
            }
        }
    }

    /// All records have been restored: puts the restored connections into their users' lists.
    pub fn finish_restore(&mut self) {
        let mut keys = std::mem::take(&mut self.unlinked);
        keys.sort_by_cached_key(|key| self.place(*key).map(|place| place.order));
        for key in keys {
            if let Some(place) = self.place(key) {
                self.orders.advance_past(place.order);
                self.link_newest(key);
            }
        }
        self.show_newest();
    }

    /// With `shows_newest` on, unmarks the connections that were kept ahead of newer ones.
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

    /// A user is announced again: the newest live connection is shown.
    pub(crate) fn show_newest_again(&mut self, user: &str) {
        if let Some(user) = self.roster.find_user(user) {
            self.show_newest_of(user);
        }
    }

    /// Shows a user by the newest live connection. Returns the connection that was shown before, if
    /// it was another one.
    fn show_newest_of(&mut self, user: Key) -> Option<Key> {
        let shown = self.roster.users[user].list.newest?;
        let order = self.place(shown)?.order;
        if !is_marked(order) {
            return None;
        }
        self.unlink(shown);
        self.change(shown, |place| place.order = without_mark(order));
        self.link_by_order(shown);
        self.mark_changed(shown);
        (!self.is_shown(shown)).then_some(shown)
    }

    /// Whether this connection is the one that its user is shown by.
    pub(super) fn is_shown(&self, key: Key) -> bool {
        let user = self.roster.connections[key].user;
        self.roster.users[user].list.newest == Some(key)
    }

    /// Notes that the user of this connection is to be shown again.
    pub(super) fn note_reshown(&mut self, key: Key) {
        let user = &self.roster.users[self.roster.connections[key].user];
        self.reshown.push(Arc::clone(&user.name));
    }

    /// Puts a connection that has become live into its user's list.
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
            self.mark_changed(shown);
        }
    }

    /// Gives a live connection another order. Its place in the list has to be right for that order,
    /// too.
    pub(super) fn reorder(&mut self, key: Key, order: i64) {
        self.change(key, |place| {
            place.order = match is_marked(place.order) {
                true => MARK + order,
                false => order,
            }
        });
        self.mark_changed(key);
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
