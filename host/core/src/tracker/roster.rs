//! The users and connections that are known, and how to find them by name.
//!
//! Finding a connection is one look-up by the hash of (user, connection) and
//! copies no name. Hashes have a fixed seed, and their order reaches no output,
//! so the same inputs give the same outputs on every run.

use std::hash::{BuildHasher, Hash};

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::connection::{Connection, LiveConnection, NOT_QUEUED, SaveState, State};
use super::slab::{Key, Slab, Slot};
use super::user::User;
use crate::digest::{PartedDigest, digest};

#[derive(Debug)]
pub(super) struct Roster<M> {
    pub(super) users: Slab<User>,
    pub(super) connections: Slab<Connection<M>>,
    /// The slots of users and connections, by the hashes of their names.
    user_slots: HashTable<u32>,
    connection_slots: HashTable<u32>,
    /// The digest of the live connections. `None` until it is asked for.
    live: Option<PartedDigest>,
}

impl<M> Default for Roster<M> {
    fn default() -> Self {
        Self {
            users: Slab::default(),
            connections: Slab::default(),
            user_slots: HashTable::new(),
            connection_slots: HashTable::new(),
            live: None,
        }
    }
}

impl<M> Roster<M> {
    /// The key of the connection of this name. If there is none, it is added as an unknown one.
    pub(super) fn entry(&mut self, user: &str, conn: &str) -> Key {
        let hash = hash_of((user, conn));
        self.find_hashed(hash, user, conn)
            .unwrap_or_else(|| self.insert(hash, user, conn))
    }

    pub(super) fn find(&self, user: &str, conn: &str) -> Option<Key> {
        self.find_hashed(hash_of((user, conn)), user, conn)
    }

    pub(super) fn find_user(&self, user: &str) -> Option<Key> {
        let is_it = |slot: &u32| {
            let user_there = self.users.at(*slot);
            user_there.is_some_and(|(_, it)| *it.name == *user)
        };
        let slot = self.user_slots.find(spread(hash_of(user)), is_it)?;
        self.users.at(*slot).map(|(key, _)| key)
    }

    /// Replaces the state of a connection.
    pub(super) fn set_state(&mut self, key: Key, state: State<M>) {
        self.change(key, |before| *before = state);
    }

    /// Changes a live connection, and brings the digest up to date. The digest doesn't cover the
    /// metadata, nor when the connection was heard from: these may be changed directly.
    pub(super) fn change_live(&mut self, key: Key, change: impl FnOnce(&mut LiveConnection<M>)) {
        self.change(key, |state| {
            if let State::Live(life) = state {
                change(life);
            }
        });
    }

    fn change(&mut self, key: Key, change: impl FnOnce(&mut State<M>)) {
        let digest = |roster: &Self| {
            roster.live?;
            roster.digest_of(&roster.connections[key])
        };
        let before = digest(self);
        change(&mut self.connections[key].state);
        let after = digest(self);
        self.exchange(before, after);
    }

    /// Brings the digest up to date after a change of a user's list. `before`: what
    /// [`Self::shown_digest`] was before the change.
    pub(super) fn shown_changed(&mut self, user: Key, before: Option<u64>) {
        let after = self.shown_digest(user);
        self.exchange(before, after);
    }

    fn exchange(&mut self, before: Option<u64>, after: Option<u64>) {
        if before == after {
            return;
        }
        if let Some(live) = &mut self.live {
            before.into_iter().for_each(|digest| live.remove(digest));
            after.into_iter().for_each(|digest| live.add(digest));
        }
    }

    /// The digest of the connection that a user is shown by. `None` if no digest is kept, if the
    /// user has no more than one live connection, or if the connection has no id.
    pub(super) fn shown_digest(&self, user: Key) -> Option<u64> {
        self.live?;
        self.digest_of_shown(&self.users[user])
    }

    fn digest_of_shown(&self, user: &User) -> Option<u64> {
        let shown = user
            .list
            .newest
            .filter(|_| user.list.newest != user.list.oldest)?;
        let id = &self.connections[shown].id;
        (!id.is_empty()).then(|| digest(&[user.name.as_bytes(), id.as_bytes(), b"shown"]))
    }

    /// The digest of the live connections, of the activities that they report, and of which of them
    /// each user is shown by. Connections without an id are placeholders, and are left out.
    pub(super) fn live_digest(&mut self) -> PartedDigest {
        let all = || {
            let connections = self.connections.values();
            let connections = connections.filter_map(|it| self.digest_of(it));
            let users = self.users.values();
            let shown = users.filter_map(|it| self.digest_of_shown(it));
            connections.chain(shown).collect()
        };
        let live = self.live.unwrap_or_else(all);
        debug_assert_eq!(live, all());
        self.live = Some(live);
        live
    }

    fn digest_of(&self, connection: &Connection<M>) -> Option<u64> {
        let State::Live(life) = &connection.state else {
            return None;
        };
        let user = self.users[connection.user].name.as_bytes();
        let id = (!connection.id.is_empty()).then_some(connection.id.as_bytes())?;
        Some(match life.digest_state() {
            0 => digest(&[user, id]),
            said => digest(&[user, id, &[said]]),
        })
    }

    /// Forgets a connection that isn't live. The user may have to be forgotten, too.
    pub(super) fn remove(&mut self, key: Key) -> Option<Connection<M>> {
        let connection = self.connections.remove(key)?;
        let hash = spread(connection.hash);
        if let Ok(entry) = self
            .connection_slots
            .find_entry(hash, |slot| *slot == key.slot())
        {
            entry.remove();
        }
        self.users[connection.user].known -= 1;
        Some(connection)
    }

    /// Forgets a user if nothing is known of the user any more.
    pub(super) fn remove_user_if_spent(&mut self, key: Key) -> Option<User> {
        let user = &self.users[key];
        if !user.is_spent() {
            return None;
        }
        let hash = spread(hash_of(&*user.name));
        if let Ok(entry) = self.user_slots.find_entry(hash, |slot| *slot == key.slot()) {
            entry.remove();
        }
        self.users.remove(key)
    }

    fn find_hashed(&self, hash: u32, user: &str, conn: &str) -> Option<Key> {
        let is_it = |slot: &u32| {
            self.connections.at(*slot).is_some_and(|(_, connection)| {
                *connection.id == *conn && *self.users[connection.user].name == *user
            })
        };
        let slot = self.connection_slots.find(spread(hash), is_it)?;
        self.connections.at(*slot).map(|(key, _)| key)
    }

    /// The key of the user of this name. If there is none, the user is added.
    pub(super) fn user_entry(&mut self, user: &str) -> Key {
        self.find_user(user)
            .unwrap_or_else(|| self.insert_user(user))
    }

    fn insert(&mut self, hash: u32, user: &str, conn: &str) -> Key {
        let user = self.user_entry(user);
        self.users[user].known += 1;
        let key = self.connections.insert(Connection {
            id: conn.into(),
            user,
            hash,
            state: State::Unknown,
            lease_entry: NOT_QUEUED,
            forgetting_queued: false,
            saving: SaveState::default(),
        });
        let connections = &self.connections;
        let hash_at = |slot: &u32| {
            let connection = connections.at(*slot);
            connection.map_or(0, |(_, connection)| spread(connection.hash))
        };
        self.connection_slots
            .insert_unique(spread(hash), key.slot(), hash_at);
        key
    }

    fn insert_user(&mut self, name: &str) -> Key {
        let key = self.users.insert(User::new(name));
        let users = &self.users;
        let hash_at = |slot: &u32| {
            let user = users.at(*slot);
            user.map_or(0, |(_, user)| spread(hash_of(&*user.name)))
        };
        self.user_slots
            .insert_unique(spread(hash_of(name)), key.slot(), hash_at);
        key
    }
}

// There may be millions of users and connections.
const _: () = assert!(size_of::<Slot<Connection<()>>>() <= 120);
const _: () = assert!(size_of::<Slot<User>>() <= 96);

/// A hash, cut to the 32 bits that are kept with a connection.
fn hash_of(name: impl Hash) -> u32 {
    FixedState::default().hash_one(name) as u32
}

/// Spreads a hash over 64 bits: a table uses the first bits of a hash as well as the last.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
