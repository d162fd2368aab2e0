//! Messages for tests whose time begins at 0. Such times are before 2001, so messages with them
//! wouldn't be parsed. They are parsed with later times, which are then replaced.

use bytes::Bytes;
use presence_core::message::{Kind, Message};
use serde_json::Value;

/// This is added to times before parsing.
const LATER_MS: u64 = 1_698_000_000_000;

/// The message with this body, with the times of the body.
pub(crate) fn message(kind: Kind, body: &Value) -> Message {
    let mut later = body.clone();
    for field in ["timestamp", "lastSeen"] {
        if let Some(at) = body[field].as_u64() {
            later[field] = at.saturating_add(LATER_MS).into();
        }
    }
    let payload = Bytes::from(later.to_string());
    let mut message = Message::parse(kind, &payload, 1 << 20).unwrap();
    message.timestamp -= LATER_MS;
    message.last_seen -= LATER_MS;
    message
}
