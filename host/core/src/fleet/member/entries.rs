//! The entries of the fleet's bucket.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::token;

/// A key of the fleet's bucket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A node's lease.
    Node(Arc<str>),
    /// Who owns a shard.
    Owner(u32),
}

impl Key {
    /// As the bucket has it.
    pub fn to_text(&self) -> String {
        match self {
            Self::Node(node) => format!("nodes.{}", token::encode(node)),
            Self::Owner(shard) => format!("owners.{shard}"),
        }
    }

    /// Reads what [`Self::to_text`] wrote; none if it is something else.
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
    /// Which run of the node this is.
    pub session: u64,
    /// Which renewal of the session this is.
    pub count: u64,
    /// Whether the node is about to leave: it takes nothing any more.
    #[serde(default)]
    pub leaving: bool,
    /// Whether the node can decide on nobody: it takes nothing that any other node can take.
    #[serde(default)]
    pub closed: bool,
}

/// Who owns a shard. The entry's revision is the epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerEntry {
    /// The node.
    pub node: Box<str>,
    /// Its session: when that is over, nobody owns the shard.
    pub session: u64,
    /// Where the owner before handed it over: which node, in which epoch, and the number of
    /// the last that it had told. None where the shard was taken.
    #[serde(default)]
    pub handed_over: Option<(Box<str>, u64, u64)>,
    /// The epoch before; 0 if there was none.
    #[serde(default)]
    pub before: u64,
}

impl NodeEntry {
    /// The value, JSON.
    pub fn to_json(&self) -> String {
        // Plain data in memory always has such a form.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads a value; none if it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

impl OwnerEntry {
    /// The value, JSON.
    pub fn to_json(&self) -> String {
        // Plain data in memory always has such a form.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads a value; none if it is something else.
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
