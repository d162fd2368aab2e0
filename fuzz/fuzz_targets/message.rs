//! Messages from clients: an accepted message keeps to the rules, and a rejection has a reason. The
//! first byte selects the kind of message.
#![no_main]

use bytes::Bytes;
use presence_core::message::{Kind, Limits, Message, Payload, is_id};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((kind, body)) = bytes.split_first() else {
        return;
    };
    let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
    let limits = Limits::from(8_192);
    let message = match Message::parse(kind, &Bytes::copy_from_slice(body), limits) {
        Ok(message) => message,
        Err(rejection) => {
            assert!(!rejection.error.is_empty());
            return;
        }
    };
    assert!(is_id(message.user()));
    assert!(message.timestamp > 978_307_200_000);
    let (conn, metadata) = match message.payload() {
        Payload::Connect { conn, metadata } | Payload::Heartbeat { conn, metadata } => {
            (Some(conn), metadata)
        }
        Payload::Disconnect { conn, .. } => (Some(conn), None),
        Payload::Online { metadata } | Payload::Offline { metadata, .. } => (None, metadata),
    };
    assert!(conn.is_none_or(|conn| is_id(conn)));
    if let Some(metadata) = metadata {
        assert_eq!(limits.metadata.read(metadata.text()), Ok(metadata));
    }
});
