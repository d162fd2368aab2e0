//! The entries of the fleet's bucket.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::token;

/// A key of the fleet's bucket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A node's lease.
    Node(Arc<str>),
    /// The owner of a shard.
    Owner(u32),
}

impl Key {
    /// The key's name in the bucket.
    pub fn to_text(&self) -> String {
        match self {
            Self::Node(node) => format!("nodes.{}", token::encode(node)),
            Self::Owner(shard) => format!("owners.{shard}"),
        }
    }

    /// Parses a name of [`Self::to_text`]. `None` if it is another.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once('.')?;
        match kind {
            "nodes" => Some(Self::Node(token::decode(rest)?.into())),
            "owners" => {
                let shard: u32 = rest.parse().ok()?;
                (shard.to_string() == rest).then_some(Self::Owner(shard))
            }
            _ => None,
        }
    }
}

/// A node's lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// The number of the node's session.
    pub session: u64,
    /// The number of the renewal within the session.
    pub count: u64,
    /// Whether the node is about to leave, and takes no more shards.
    #[serde(default)]
    pub leaving: bool,
    /// Whether the node can't decide on anybody, and takes only shards that no other node can take.
    #[serde(default)]
    pub closed: bool,
}

/// The owner of a shard. The entry's revision is the epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerEntry {
    /// The name of the owner's node.
    pub node: Box<str>,
    /// The session of that node. When it is over, nobody owns the shard.
    pub session: u64,
    /// If the previous owner handed the shard over: its node, its epoch, and the sequence number of
    /// its last message. `None`: the shard was taken over.
    #[serde(default)]
    pub handed_over: Option<(Box<str>, u64, u64)>,
    /// The previous epoch; 0 if there was none.
    #[serde(default)]
    pub before: u64,
}

impl NodeEntry {
    /// The entry as JSON.
    pub fn to_json(&self) -> String {
        // Plain data in memory can always be written as JSON.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Parses an entry. `None` if it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

impl OwnerEntry {
    /// The entry as JSON.
    pub fn to_json(&self) -> String {
        // Plain data in memory can always be written as JSON.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Parses an entry. `None` if it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_and_nothing_else_is_one() {
        for key in [
            Key::Node("node-1".into()),
            Key::Node("a.b c".into()),
            Key::Owner(0),
            Key::Owner(63),
        ] {
            assert_eq!(Key::parse(&key.to_text()), Some(key));
        }
        for text in [
            "nodes",
            "nodes.",
            "nodes.a.b",
            "owners.01",
            "owners.x",
            "config",
        ] {
            assert_eq!(Key::parse(text), None, "{text}");
        }
    }

    #[test]
    fn entries_come_back() {
        let owner = OwnerEntry {
            node: "a".into(),
            session: 3,
            handed_over: Some(("b".into(), 7, 12)),
            before: 7,
        };
        assert_eq!(OwnerEntry::parse(&owner.to_json()), Some(owner));
        let node = NodeEntry::parse(r#"{"session":1,"count":2}"#).unwrap();
        assert_eq!((node.session, node.count, node.leaving), (1, 2, false));
        assert_eq!(NodeEntry::parse("{"), None);
    }
}
