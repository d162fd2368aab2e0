//! Redaction: a recording in a form that can be given to others.
//!
//! Only what is known to be harmless is kept. A message is written anew from what the processor
//! reads in it. Ids become pseudonyms, by a keyed hash: the same id has the same pseudonym
//! throughout a recording, and the key is forgotten at the end. Metadata is left out, except for
//! the keys that the operator names. So are settings, except for these and those of the built-in
//! plugins.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::anyhow;
use bytes::Bytes;
use presence_config::BODY_BYTES_MAX;
use presence_config::directory::Export;
use presence_core::message::{Kind, Limits, Message, Payload};
use presence_core::metadata::{CheckedMetadata, LIMITS_MAX};
use ring::hmac;
use ring::rand::SystemRandom;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// The length of the hash in a pseudonym, in bytes. Among a million ids, two share a pseudonym with
/// a probability of one in 37 million.
const PSEUDONYM_BYTES: usize = 8;

/// The settings that the built-in plugins read, whose values are no free text.
const SETTINGS: [&str; 4] = ["online", "lastSeen", "invisible", "doNotDisturb"];

/// The words that can be values of these settings. Any other text in them is an id.
const WORDS: [&str; 3] = ["everyone", "contacts", "nobody"];

pub(super) struct Redaction {
    key: hmac::Key,
    /// The metadata keys and settings that stay as they are.
    keep: BTreeSet<String>,
}

/// A message with nothing in it but what the processor reads.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    user_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    conn_id: Option<String>,
    timestamp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Box<RawValue>>,
}

impl Redaction {
    /// A redaction under a new key.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub(super) fn new(keep: &[String]) -> anyhow::Result<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        Ok(Self {
            key: key.map_err(|_| anyhow!("the system gives no random numbers"))?,
            keep: keep.iter().cloned().collect(),
        })
    }

    /// A message's redacted body. `None` for a message that the processor would refuse: its content
    /// is unknown.
    pub(super) fn body(&self, kind: Kind, payload: &Bytes) -> Option<Vec<u8>> {
        // The limits of the recorded processor are not known: these are the highest ones.
        let limits = Limits {
            body_bytes_max: BODY_BYTES_MAX,
            metadata: LIMITS_MAX,
        };
        let message = Message::parse(kind, payload, limits).ok()?;
        let mut body = Body {
            kind: None,
            user_id: self.user(message.user()),
            conn_id: None,
            timestamp: message.timestamp,
            last_seen: None,
            reason: None,
            metadata: None,
        };
        let metadata = match message.payload() {
            Payload::Connect { conn, metadata } | Payload::Heartbeat { conn, metadata } => {
                body.conn_id = Some(self.pseudonym("conn", conn));
                metadata
            }
            Payload::Disconnect { conn, reason } => {
                body.conn_id = Some(self.pseudonym("conn", conn));
                body.reason = Some(reason.reason.as_str());
                None
            }
            Payload::Online { metadata } => {
                body.kind = Some("user_online");
                metadata
            }
            Payload::Offline {
                last_seen,
                reason,
                metadata,
            } => {
                body.kind = Some("user_offline");
                body.last_seen = Some(last_seen);
                body.reason = Some(reason.reason.as_str());
                metadata
            }
        };
        body.metadata = metadata.and_then(|metadata| self.metadata(metadata));
        serde_json::to_vec(&body).ok()
    }

    /// A redacted directory.
    pub(super) fn directory(&self, export: Export) -> Export {
        let users = |list: BTreeSet<String>| list.iter().map(|user| self.user(user)).collect();
        let lists = |lists: BTreeMap<String, BTreeSet<String>>, of: &str| {
            let lists = lists.into_iter();
            let lists = lists.map(|(about, list)| (self.pseudonym(of, &about), users(list)));
            lists.collect()
        };
        let settings = export.settings.into_iter().map(|(user, settings)| {
            let settings = settings.into_iter();
            let kept = settings.filter_map(|(key, value)| {
                let value = self.setting(&key, value)?;
                Some((key, value))
            });
            (self.user(&user), kept.collect())
        });
        Export {
            settings: settings.collect(),
            contacts: lists(export.contacts, USER),
            groups: lists(export.groups, "group"),
            blocks: lists(export.blocks, USER),
        }
    }

    fn user(&self, id: &str) -> String {
        self.pseudonym(USER, id)
    }

    /// The pseudonym for an id of some kind.
    fn pseudonym(&self, kind: &str, id: &str) -> String {
        let hash = hmac::sign(&self.key, format!("{kind} {id}").as_bytes());
        let digits = hash.as_ref().iter().take(PSEUDONYM_BYTES);
        let digits: String = digits.map(|byte| format!("{byte:02x}")).collect();
        format!("{kind}-{digits}")
    }

    /// The metadata that is kept. `ip` and `socketId` never are.
    fn metadata(&self, given: CheckedMetadata<'_>) -> Option<Box<RawValue>> {
        let metadata = given.metadata(|key| self.keep.contains(key));
        let mut kept = Vec::new();
        metadata.write_public(&mut kept, |_| true);
        RawValue::from_string(String::from_utf8(kept).ok()?).ok()
    }

    fn setting(&self, key: &str, value: Box<RawValue>) -> Option<Box<RawValue>> {
        if self.keep.contains(key) {
            return Some(value);
        }
        if !SETTINGS.contains(&key) {
            return None;
        }
        let value = serde_json::from_str(value.get()).ok()?;
        serde_json::value::to_raw_value(&self.value(value)).ok()
    }

    /// A setting's value with pseudonyms for the ids in it.
    fn value(&self, value: Value) -> Value {
        match value {
            Value::String(text) if !WORDS.contains(&&*text) => self.user(&text).into(),
            Value::Array(list) => list.into_iter().map(|value| self.value(value)).collect(),
            Value::Object(fields) => {
                let fields = fields.into_iter();
                let known = fields.filter(|(key, _)| key == "contactsExcept");
                let known = known.map(|(key, value)| (key, self.value(value)));
                known.collect()
            }
            other => other,
        }
    }
}

/// What a user's pseudonym begins with.
const USER: &str = "user";

#[cfg(test)]
mod tests {
    use super::*;
    use presence_core::directory::Directory;
    use presence_core::names::Names;

    use presence_config::directory::Content;

    fn redaction(keep: &[&str]) -> Redaction {
        let keep: Vec<_> = keep.iter().map(|key| (*key).to_owned()).collect();
        Redaction::new(&keep).unwrap()
    }

    fn body(redaction: &Redaction, kind: Kind, body: &'static str) -> Option<String> {
        let body = redaction.body(kind, &Bytes::from_static(body.as_bytes()))?;
        Some(String::from_utf8(body).unwrap())
    }

    #[test]
    fn a_message_keeps_what_decisions_need_and_nothing_else() {
        let redaction = redaction(&["device", "ip"]);
        let connect = r#"{"userId":"ada","connId":"ada","timestamp":1698000000007,"secret":"x","reason":"x",
            "metadata":{"device": "web","ip":"10.0.0.1","status":{"text":"at ada's"}}}"#;
        let (user, conn) = (redaction.user("ada"), redaction.pseudonym("conn", "ada"));
        assert_eq!(user.len(), "user-".len() + 16);
        assert_ne!(user.strip_prefix("user-"), conn.strip_prefix("conn-"));
        let expected = format!(
            r#"{{"userId":"{user}","connId":"{conn}","timestamp":1698000000007,"metadata":{{"device":"web"}}}}"#
        );
        assert_eq!(body(&redaction, Kind::Connect, connect), Some(expected));

        let offline = r#"{"type":"user_offline","userId":"ada","timestamp":1698000000009,"reason":"ada left"}"#;
        let expected = format!(
            r#"{{"type":"user_offline","userId":"{user}","timestamp":1698000000009,"lastSeen":1698000000009,"reason":"disconnect"}}"#
        );
        assert_eq!(body(&redaction, Kind::Offline, offline), Some(expected));
        let refused = r#"{"userId":"ada","timestamp":"ada"}"#;
        assert_eq!(body(&redaction, Kind::Connect, refused), None);
    }

    #[test]
    fn a_redacted_message_is_read_as_the_same() {
        let redaction = redaction(&["activity"]);
        for (kind, text) in [
            (
                Kind::Connect,
                r#"{"userId":"u","connId":"c","timestamp":1698000000001}"#,
            ),
            (
                Kind::Heartbeat,
                r#"{"userId":"u","connId":"c","timestamp":1698000000001,"metadata":{"activity":"idle"}}"#,
            ),
            (
                Kind::Disconnect,
                r#"{"userId":"u","connId":"c","timestamp":1698000000001,"reason":"timeout"}"#,
            ),
            (
                Kind::Online,
                r#"{"userId":"u","timestamp":1698000000001,"metadata":{}}"#,
            ),
            (
                Kind::Offline,
                r#"{"userId":"u","timestamp":1698000000002,"lastSeen":1698000000001,"reason":"logout"}"#,
            ),
        ] {
            let says = |text: &str| {
                let text = text
                    .replace("\"u\"", &format!("\"{}\"", redaction.user("u")))
                    .replace(
                        "\"c\"",
                        &format!("\"{}\"", redaction.pseudonym("conn", "c")),
                    );
                let payload = Bytes::from(text.into_bytes());
                Message::parse(kind, &payload, BODY_BYTES_MAX).unwrap()
            };
            let redacted = body(&redaction, kind, text).unwrap();
            let [redacted, original] = [says(&redacted), says(text)];
            assert_eq!(redacted.user(), original.user());
            assert_eq!(redacted.timestamp, original.timestamp);
            assert_eq!(redacted.payload(), original.payload());
        }
    }

    #[test]
    fn another_recording_has_other_pseudonyms() {
        assert_ne!(redaction(&[]).user("ada"), redaction(&[]).user("ada"));
    }

    #[test]
    fn of_a_directory_stay_its_shape_and_the_settings_that_are_known() {
        let names = Names::new();
        let text = r#"{"contacts":{"ada":["ben"]},"groups":{"choir":["ada"]},"blocks":{"ben":["ada"]},
            "settings":{"ada":{"online":{"contactsExcept":["ben"],"note":"ben"},"lastSeen":"nobody",
            "invisible":true,"nick":"ada","theme":"dark"}}}"#;
        let (directory, _) = Content::parse(text, &names)
            .unwrap()
            .replace(&Directory::new());
        let redaction = redaction(&["theme"]);
        let export = redaction.directory(Export::of(&directory, &names));
        let (ada, ben) = (redaction.user("ada"), redaction.user("ben"));
        let choir = redaction.pseudonym("group", "choir");
        let expected = format!(
            r#"{{"contacts":{{"{ada}":["{ben}"]}},"groups":{{"{choir}":["{ada}"]}},"blocks":{{"{ben}":["{ada}"]}},"settings":{{"{ada}":{{"invisible":true,"lastSeen":"nobody","online":{{"contactsExcept":["{ben}"]}},"theme":"dark"}}}}}}"#
        );
        assert_eq!(serde_json::to_string(&export).unwrap(), expected);
    }
}
