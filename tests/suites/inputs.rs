//! The bodies that transports and applications send, as the seed document
//! shows them.

use serde_json::{Value, json};

pub(crate) const CONNECT: &str = "presence.connect";
pub(crate) const DISCONNECT: &str = "presence.disconnect";
pub(crate) const HEARTBEAT: &str = "presence.heartbeat";
pub(crate) const EVENTS: &str = "presence.events";
pub(crate) const ONLINE: &str = "presence.events.user_online";
pub(crate) const OFFLINE: &str = "presence.events.user_offline";
pub(crate) const FILTERED_ONLINE: &str = "presence.filtered.user_online";
pub(crate) const FILTERED_OFFLINE: &str = "presence.filtered.user_offline";
pub(crate) const DLQ: &str = "presence.dlq";

/// The time that the seed document uses throughout.
pub(crate) const SEED_MS: u64 = 1_698_000_000_000;

pub(crate) fn connect(user: &str, conn: &str, at: u64) -> Value {
    json!({
        "userId": user,
        "connId": conn,
        "timestamp": at,
        "metadata": {"device": "web", "userAgent": "Mozilla/5.0...", "socketId": "socket_abc123"},
    })
}

pub(crate) fn heartbeat(user: &str, conn: &str, at: u64) -> Value {
    json!({
        "userId": user,
        "connId": conn,
        "timestamp": at,
        "metadata": {"activity": "typing", "location": "chat:67890", "lastMessageId": "msg_456"},
    })
}

pub(crate) fn disconnect(user: &str, conn: &str, at: u64, reason: &str) -> Value {
    json!({"userId": user, "connId": conn, "timestamp": at, "reason": reason})
}

/// An application's own statement that a user is online.
pub(crate) fn online(user: &str, at: u64) -> Value {
    json!({"type": "user_online", "userId": user, "timestamp": at, "metadata": {"device": "web"}})
}

/// An application's own statement that a user is offline.
pub(crate) fn offline(user: &str, at: u64) -> Value {
    json!({
        "type": "user_offline",
        "userId": user,
        "timestamp": at,
        "lastSeen": at,
        "reason": "disconnect",
    })
}
