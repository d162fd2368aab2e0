//! Which connection a user is shown by: the newest of the live ones.
//!
//! A user's live connections are a list, in the order in which they were opened. So
//! the newest is at hand, and the next when it goes, however many there are. One that
//! was adopted has never said what it is, and comes after all that were opened.
//!
//! Where a further connection is not to change what is shown, the one that the user is
//! shown by keeps its place before all others until it goes.

use std::sync::Arc;

use super::Tracker;
use super::connection::State;
use super::slab::Key;

/// The two ends of a user's list.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ends {
    oldest: Option<Key>,
    newest: Option<Key>,
}

/// A live connection's place in its user's list.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// Rises with each that is opened, and is below 0 for one that was adopted.
    pub(super) order: i64,
    older: Option<Key>,
    newer: Option<Key>,
}

impl Place {
    /// One that isn't in a list yet.
    pub(super) fn new(order: i64) -> Self {
        Self {
            order,
            ..Self::default()
        }
    }
}

/// The orders that were given last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Orders {
    opened: i64,
    adopted: i64,
}

impl Orders {
    pub(super) fn opened(&mut self) -> i64 {
        self.opened += 1;
        self.opened
    }

    pub(super) fn adopted(&mut self) -> i64 {
        self.adopted -= 1;
        self.adopted
    }

    fn know(&mut self, order: i64) {
        self.opened = self.opened.max(order);
        self.adopted = self.adopted.min(order);
    }
}

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

    /// All has been put back that was known before a restart.
    pub fn restored(&mut self) {
        let mut keys = std::mem::take(&mut self.unlinked);
        keys.sort_by_key(|key| self.place(*key).map(|place| place.order));
        for key in keys {
            if let Some(place) = self.place(key) {
                self.orders.know(place.order);
                self.link_newest(key);
            }
        }
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
        self.link_newest(key);
        if let Some(shown) = shown.filter(|shown| was_opened(self.place(*shown)))
            && !self.settings.shows_newest
        {
            self.unlink(shown);
            let order = self.orders.opened();
            self.change(shown, |place| place.order = order);
            self.link_newest(shown);
            self.note(shown);
        }
    }

    /// Takes a live connection out of its user's list.
    pub(super) fn unlink(&mut self, key: Key) {
        let Some(Place { older, newer, .. }) = self.place(key).copied() else {
            return;
        };
        let user = self.roster.connections[key].user;
        match older {
            Some(older) => self.change(older, |place| place.newer = newer),
            None => self.roster.users[user].list.oldest = newer,
        }
        match newer {
            Some(newer) => self.change(newer, |place| place.older = older),
            None => self.roster.users[user].list.newest = older,
        }
    }

    fn link_newest(&mut self, key: Key) {
        let user = self.roster.connections[key].user;
        let list = &mut self.roster.users[user].list;
        let before = list.newest.replace(key);
        match before {
            Some(before) => self.change(before, |place| place.newer = Some(key)),
            None => list.oldest = Some(key),
        }
        self.change(key, |place| (place.older, place.newer) = (before, None));
    }

    fn link_oldest(&mut self, key: Key) {
        let user = self.roster.connections[key].user;
        let list = &mut self.roster.users[user].list;
        let before = list.oldest.replace(key);
        match before {
            Some(before) => self.change(before, |place| place.older = Some(key)),
            None => list.newest = Some(key),
        }
        self.change(key, |place| (place.older, place.newer) = (None, before));
    }

    fn place(&self, key: Key) -> Option<&Place> {
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
