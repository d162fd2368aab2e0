//! Messages of tests, whose time begins with 0. Those that are sent have a time after
//! 2001, and nothing else is different about them.

use bytes::Bytes;
use presence_core::message::{Kind, Message, Payload};
use serde_json::Value;

/// Before all that messages may say.
const LATER_MS: u64 = 1_698_000_000_000;

/// The message that a body is, with its own times.
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
    if let Payload::Offline { last_seen, .. } = &mut message.payload {
        *last_seen -= LATER_MS;
    }
    message
}
