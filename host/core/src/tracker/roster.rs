//! The users and connections that are known, and how to find them by name.
//!
//! Finding a connection is one look-up by the hash of (user, connection) and
//! copies no name. Hashes have a fixed seed, and their order reaches no output,
//! so the same inputs give the same outputs on every run.

use std::hash::{BuildHasher, Hash};

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::connection::{Connection, NOT_QUEUED, SaveState, State};
use super::slab::{Key, Slab};
use super::user::User;

#[derive(Debug)]
pub(super) struct Roster<M> {
    pub(super) users: Slab<User>,
    pub(super) connections: Slab<Connection<M>>,
    user_keys: HashTable<Key>,
    connection_keys: HashTable<Key>,
}

impl<M> Default for Roster<M> {
    fn default() -> Self {
        Self {
            users: Slab::default(),
            connections: Slab::default(),
            user_keys: HashTable::new(),
            connection_keys: HashTable::new(),
        }
    }
}

impl<M> Roster<M> {
    /// The connection of this name, unknown so far if there was none.
    pub(super) fn entry(&mut self, user: &str, conn: &str) -> Key {
        let hash = hash_of((user, conn));
        self.find_hashed(hash, user, conn)
            .unwrap_or_else(|| self.insert(hash, user, conn))
    }

    pub(super) fn find(&self, user: &str, conn: &str) -> Option<Key> {
        self.find_hashed(hash_of((user, conn)), user, conn)
    }

    pub(super) fn find_user(&self, user: &str) -> Option<Key> {
        let is_it = |key: &Key| *self.users[*key].name == *user;
        self.user_keys.find(hash_of(user), is_it).copied()
    }

    /// Forgets a connection. Its user may then be spent.
    pub(super) fn remove(&mut self, key: Key) -> Option<Connection<M>> {
        let connection = self.connections.remove(key)?;
        if let Ok(entry) = self
            .connection_keys
            .find_entry(connection.hash, |it| *it == key)
        {
            entry.remove();
        }
        self.users[connection.user].known -= 1;
        Some(connection)
    }

    /// Forgets a user if nothing else is known of them.
    pub(super) fn remove_user_if_spent(&mut self, key: Key) -> Option<User> {
        let user = &self.users[key];
        if !user.is_spent() {
            return None;
        }
        if let Ok(entry) = self.user_keys.find_entry(user.hash, |it| *it == key) {
            entry.remove();
        }
        self.users.remove(key)
    }

    fn find_hashed(&self, hash: u64, user: &str, conn: &str) -> Option<Key> {
        let is_it = |key: &Key| {
            let connection = &self.connections[*key];
            *connection.id == *conn && *self.users[connection.user].name == *user
        };
        self.connection_keys.find(hash, is_it).copied()
    }

    /// The user of this name, a new one if there was none.
    pub(super) fn user_entry(&mut self, user: &str) -> Key {
        self.find_user(user)
            .unwrap_or_else(|| self.insert_user(user))
    }

    fn insert(&mut self, hash: u64, user: &str, conn: &str) -> Key {
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
        self.connection_keys
            .insert_unique(hash, key, |key| self.connections[*key].hash);
        key
    }

    fn insert_user(&mut self, name: &str) -> Key {
        let hash = hash_of(name);
        let key = self.users.insert(User::new(name, hash));
        self.user_keys
            .insert_unique(hash, key, |key| self.users[*key].hash);
        key
    }
}

fn hash_of(name: impl Hash) -> u64 {
    FixedState::default().hash_one(name)
}
