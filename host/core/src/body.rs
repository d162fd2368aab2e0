//! The bodies of published messages, with exactly the fields that the payload document shows.

pub mod explain;
pub mod query;

use base64::Engine as _;
use smallvec::SmallVec;

use crate::audience::{Audience, CHUNK};
use crate::event::{Change, Event};
use crate::json::{push_number, push_quoted};
use crate::message::Rejection;
use crate::names::{Id, Name, Names};
use crate::rules::Rendition;

/// About how many bytes a viewer takes in a body.
const VIEWER_BYTES: usize = 16;

/// What follows the list of viewers in a filtered message. Mostly it is stored inline.
type Tail = SmallVec<[u8; 512]>;

/// The body of a `user_online`, `user_offline` or `user_updated` as it is broadcast.
pub fn event(event: &Event) -> Vec<u8> {
    let mut json = Vec::with_capacity(256);
    begin(&mut json, event);
    match event.change {
        Change::Online | Change::Updated => {
            json.extend_from_slice(b",\"metadata\":");
            event.metadata.write_public(&mut json, |_| true);
        }
        Change::Offline { last_seen, reason } => {
            json.extend_from_slice(b",\"lastSeen\":");
            push_number(&mut json, last_seen);
            json.extend_from_slice(b",\"reason\":");
            push_quoted(&mut json, reason.as_str());
            if event.metadata.has_public() {
                json.extend_from_slice(b",\"metadata\":");
                event.metadata.write_public(&mut json, |_| true);
            }
        }
    }
    json.push(b'}');
    json
}

/// The filtered messages of an event for the viewers of a rendition: one, or as many as are needed
/// so that none is longer than `body_bytes_max`.
pub fn filtered(
    event: &Event,
    rendition: &Rendition,
    viewers: &Audience,
    names: &Names,
    body_bytes_max: usize,
) -> SmallVec<[Vec<u8>; 1]> {
    // Every body begins with the same head. Usually one allocation suffices.
    let room = 320 + VIEWER_BYTES * viewers.len() as usize;
    let mut body = Vec::with_capacity(room.min(body_bytes_max));
    let tail = frame(event, rendition, &mut body);
    let head = body.len();
    let list_max = body_bytes_max.saturating_sub(tail.len());
    let mut bodies = SmallVec::new();
    let names = names.read();
    let mut ids = viewers.ids();
    let mut chunk = [Id(0); CHUNK];
    loop {
        let mut rest = ids.fill(&mut chunk);
        if rest.is_empty() {
            break;
        }
        loop {
            let written = names.write_list(rest, list_max, &mut body);
            rest = rest.get(written..).unwrap_or_default();
            let Some((first, others)) = rest.split_first() else {
                break;
            };
            if body.len() == head {
                // A viewer who doesn't fit gets a message alone, which may be too long.
                names.write_list(&[*first], usize::MAX, &mut body);
                rest = others;
            }
            let next = body.get(..head).unwrap_or_default().to_vec();
            bodies.push(finish(std::mem::replace(&mut body, next), &tail));
        }
    }
    if body.len() > head {
        bodies.push(finish(body, &tail));
    }
    bodies
}

/// The filtered messages of an event for single viewers of a rendition, which differ only in the
/// viewer.
pub struct ToOne {
    head: Vec<u8>,
    tail: Tail,
}

impl ToOne {
    /// The messages of an event for viewers of this rendition.
    pub fn new(event: &Event, rendition: &Rendition) -> Self {
        let mut head = Vec::with_capacity(320);
        let tail = frame(event, rendition, &mut head);
        Self { head, tail }
    }

    /// The message for a viewer.
    pub fn body(&self, viewer: &Name) -> Vec<u8> {
        [&self.head, viewer.json(), &self.tail].concat()
    }
}

/// Writes what precedes the list of viewers in a filtered message. Returns what follows it.
fn frame(event: &Event, rendition: &Rendition, body: &mut Vec<u8>) -> Tail {
    begin(body, event);
    if let (Change::Offline { last_seen, .. }, true) = (event.change, rendition.last_seen) {
        body.extend_from_slice(b",\"lastSeen\":");
        push_number(body, last_seen);
    }
    body.extend_from_slice(b",\"visibleTo\":[");
    let head = body.len();
    match event.change {
        Change::Online | Change::Updated => {
            body.extend_from_slice(b"],\"metadata\":");
            event
                .metadata
                .write_public(body, |key| rendition.shows(key));
            body.push(b'}');
        }
        Change::Offline { .. } => body.extend_from_slice(b"]}"),
    }
    let tail = Tail::from_slice(body.get(head..).unwrap_or_default());
    body.truncate(head);
    tail
}

/// A dead letter: what couldn't be processed, and why.
pub fn dead_letter(
    subject: &str,
    rejection: &Rejection,
    payload: &[u8],
    timestamp: u64,
    node: &str,
    body_bytes_max: usize,
) -> Vec<u8> {
    let mut head = b"{\"subject\":".to_vec();
    push_quoted(&mut head, subject);
    head.extend_from_slice(b",\"reason\":");
    push_quoted(&mut head, rejection.cause.as_str());
    head.extend_from_slice(b",\"error\":");
    push_quoted(&mut head, &rejection.error);
    head.extend_from_slice(b",\"payload\":");
    let mut tail = b",\"timestamp\":".to_vec();
    push_number(&mut tail, timestamp);
    tail.extend_from_slice(b",\"node\":");
    push_quoted(&mut tail, node);
    let room = body_bytes_max.saturating_sub(head.len() + tail.len() + LETTER_BYTES);
    let (text, encoding, whole) = encode_beginning(payload, room);
    let mut json = head;
    json.reserve(text.len() + tail.len() + LETTER_BYTES);
    json.extend_from_slice(text.as_bytes());
    json.extend_from_slice(b",\"encoding\":");
    push_quoted(&mut json, encoding);
    json.extend_from_slice(&tail);
    if !whole {
        json.extend_from_slice(b",\"truncated\":true,\"size\":");
        push_number(&mut json, payload.len() as u64);
    }
    json.push(b'}');
    json
}

/// An upper bound of the rest of a letter: the encoding, and the note that it was cut.
const LETTER_BYTES: usize = 96;

/// As much of the beginning of some bytes as fits into `room` as a JSON string; the name of its
/// encoding; and whether that is everything.
fn encode_beginning(bytes: &[u8], room: usize) -> (String, &'static str, bool) {
    let mut kept = bytes;
    loop {
        let (text, encoding) = encode(kept);
        if text.len() <= room || kept.is_empty() {
            return (text, encoding, kept.len() == bytes.len());
        }
        // The rest probably grows as much by escaping as the whole did.
        let scaled = kept.len() * room / text.len();
        let shorter = bytes.get(..scaled.min(kept.len() - 1)).unwrap_or_default();
        kept = match std::str::from_utf8(shorter) {
            // The cut has split a character: the text ends before it, and is still UTF-8.
            Err(error) if error.error_len().is_none() => {
                shorter.get(..error.valid_up_to()).unwrap_or_default()
            }
            _ => shorter,
        };
    }
}

/// The reply to an accepted input.
pub fn accepted() -> Vec<u8> {
    b"{\"ok\":true}".to_vec()
}

/// The reply to a refused input.
pub fn refused(rejection: &Rejection) -> Vec<u8> {
    let mut json = b"{\"ok\":false,\"reason\":".to_vec();
    push_quoted(&mut json, rejection.cause.as_str());
    json.extend_from_slice(b",\"error\":");
    push_quoted(&mut json, &rejection.error);
    json.push(b'}');
    json
}

/// The reply to an input that was ignored, since it came too late.
pub fn stale(why: &str) -> Vec<u8> {
    let mut json = b"{\"ok\":false,\"reason\":\"stale\",\"error\":".to_vec();
    push_quoted(&mut json, why);
    json.push(b'}');
    json
}

fn begin(json: &mut Vec<u8>, event: &Event) {
    json.extend_from_slice(match event.change {
        Change::Online => b"{\"type\":\"user_online\",\"userId\":".as_slice(),
        Change::Offline { .. } => b"{\"type\":\"user_offline\",\"userId\":",
        Change::Updated => b"{\"type\":\"user_updated\",\"userId\":",
    });
    json.extend_from_slice(event.name.json());
    json.extend_from_slice(b",\"timestamp\":");
    push_number(json, event.timestamp);
}

/// Replaces the comma behind the last viewer with what follows the list.
fn finish(mut body: Vec<u8>, tail: &[u8]) -> Vec<u8> {
    body.pop();
    body.extend_from_slice(tail);
    body
}

/// Bytes as a JSON string, and how they are encoded in it.
fn encode(bytes: &[u8]) -> (String, &'static str) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (crate::json::quoted(text), "utf8"),
        Err(_) => {
            let text = base64::engine::general_purpose::STANDARD.encode(bytes);
            (format!("\"{text}\""), "base64")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Cause;
    use crate::metadata::Metadata;

    fn online(names: &Names) -> Event {
        let user = names.intern("12345");
        let name = names.name(user).unwrap();
        let metadata = Metadata::parse(r#"{"device":"web","connId":"c"}"#, |_| true);
        Event {
            user,
            name,
            timestamp: 7,
            change: Change::Online,
            metadata,
        }
    }

    #[test]
    fn a_long_audience_is_split_into_whole_messages() {
        let names = Names::new();
        let event = online(&names);
        let viewers: Audience = (0..100)
            .map(|n| names.intern(&format!("viewer-{n}")))
            .collect();
        let keys = ["device".into()].into();
        let rendition = Rendition {
            audience: viewers.clone(),
            keys,
            last_seen: true,
        };
        let bodies = filtered(&event, &rendition, &viewers, &names, 300);
        let mut told = Vec::new();
        for body in &bodies {
            assert!(body.len() <= 300);
            let body: serde_json::Value = serde_json::from_slice(body).unwrap();
            assert_eq!(body["metadata"], serde_json::json!({"device": "web"}));
            told.extend(body["visibleTo"].as_array().unwrap().clone());
        }
        assert!(bodies.len() > 5);
        assert_eq!(told.len(), 100);
        assert!(filtered(&event, &rendition, &Audience::nobody(), &names, 300).is_empty());
        // A viewer for whom there is no room gets a message alone.
        let each = filtered(&event, &rendition, &viewers, &names, 1);
        assert_eq!(each.len(), 100);
    }

    #[test]
    fn a_dead_letter_that_would_not_fit_carries_the_beginning() {
        let rejection = Rejection::new(Cause::InvalidJson, "no".into());
        let payload = "ä".repeat(5_000);
        let body = dead_letter(
            "presence.connect",
            &rejection,
            payload.as_bytes(),
            1,
            "n",
            4_096,
        );
        assert!(body.len() <= 4_096);
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (&body["truncated"], &body["size"]),
            (&true.into(), &10_000.into())
        );
        assert!(payload.starts_with(body["payload"].as_str().unwrap()));
        assert_eq!(body["encoding"], "utf8");
        assert!(body["payload"].as_str().unwrap().len() > 3_500);
        for bytes_max in [300, 1_024, 4_096] {
            for payload in ["x".repeat(5_000), "\u{1}".repeat(5_000)] {
                let body = dead_letter("s", &rejection, payload.as_bytes(), 1, "n", bytes_max);
                assert!(body.len() <= bytes_max);
                assert!(body.len() > bytes_max - 60, "{} of {bytes_max}", body.len());
            }
        }
        let whole = dead_letter("s", &rejection, &[0xff, 0], 1, "n", 4_096);
        let whole: serde_json::Value = serde_json::from_slice(&whole).unwrap();
        assert_eq!(
            (&whole["payload"], &whole["encoding"]),
            (&"/wA=".into(), &"base64".into())
        );
        assert!(whole.get("truncated").is_none());
    }
}
