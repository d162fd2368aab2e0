//! Parses a message field by field, and finds out what is wrong with it.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{BodyPart, ID_BYTES_MAX, Kind, MS_MIN, Parts, Rejection, StatedReason, diagnosis};
use crate::json::{Text, present};
use crate::metadata;

/// Parses the body of a message.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(kind: Kind, body: &str, limits: metadata::Limits) -> Result<Parts, Rejection> {
    // serde would also accept an array, with the fields by position.
    let fields = match body.trim_ascii_start().starts_with('[') {
        false => serde_json::from_str::<Fields<'_>>(body),
        true => Err(serde::de::Error::custom("an array")),
    };
    let fields = fields.map_err(|error| diagnosis::diagnose(kind, body, &error))?;
    fields.check(kind, body, limits)
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(rename = "userId", borrow)]
    user: Text<'a>,
    #[serde(rename = "connId", borrow, default, deserialize_with = "present")]
    conn: Option<&'a RawValue>,
    #[serde(borrow)]
    timestamp: &'a RawValue,
    #[serde(borrow, default, deserialize_with = "present")]
    metadata: Option<&'a RawValue>,
    #[serde(rename = "type", borrow, default, deserialize_with = "present")]
    kind: Option<&'a RawValue>,
    #[serde(rename = "lastSeen", borrow, default, deserialize_with = "present")]
    last_seen: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    reason: Option<&'a RawValue>,
}

impl<'a> Fields<'a> {
    fn check(self, kind: Kind, body: &str, limits: metadata::Limits) -> Result<Parts, Rejection> {
        if let Some(expected) = kind.other_type(self.kind.map(RawValue::get)) {
            let error = format!("must be \"{expected}\" on this subject");
            return Err(Rejection::field("type", &error));
        }
        let user = id("userId", self.user.0, body)?;
        let timestamp = time("timestamp", self.timestamp)?;
        let metadata = match self.metadata {
            None => None,
            Some(raw) => {
                let checked = limits.place(raw.get(), body);
                Some(checked.map_err(|error| Rejection::field("metadata", &error))?)
            }
        };
        let conn = if kind.has_connection() {
            let raw = self.conn.ok_or_else(|| Rejection::missing("connId"))?;
            let Text(conn) = serde_json::from_str(raw.get())
                .map_err(|_| Rejection::field("connId", MUST_BE_TEXT))?;
            id("connId", conn, body)?
        } else {
            BodyPart::Place(0..0)
        };
        let last_seen = match (kind, self.last_seen) {
            (Kind::Offline, Some(raw)) => Some(time("lastSeen", raw)?),
            _ => None,
        };
        Ok(Parts {
            user,
            conn,
            timestamp,
            metadata,
            last_seen,
            reason: StatedReason::of(self.reason.map(RawValue::get)),
        })
    }
}

fn id(field: &str, id: Cow<'_, str>, body: &str) -> Result<BodyPart, Rejection> {
    if id.is_empty() {
        return Err(Rejection::field(field, "must not be empty"));
    }
    if id.len() > ID_BYTES_MAX {
        return Err(Rejection::field(field, "must be at most 256 bytes long"));
    }
    Ok(BodyPart::new(id, body))
}

/// The error text for a time that isn't a number of milliseconds.
const MUST_BE_MS: &str = "must be a positive integer of milliseconds since 1970";

/// The error text for an id that isn't text. Half a surrogate pair isn't text, either.
pub(super) const MUST_BE_TEXT: &str = "must be a string of valid Unicode";

fn time(field: &str, raw: &RawValue) -> Result<u64, Rejection> {
    match raw.get().parse() {
        Ok(0) | Err(_) => Err(Rejection::field(field, MUST_BE_MS)),
        Ok(ms) if ms < MS_MIN => {
            let must = format!("{MUST_BE_MS}: {ms} is before 2001, and looks like seconds");
            Err(Rejection::field(field, &must))
        }
        Ok(ms) => Ok(ms),
    }
}
