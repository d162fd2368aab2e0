//! Parses a message in one pass, if it has nothing unusual.

use std::borrow::Cow;

use super::{BodyPart, Kind, MS_MIN, Parts, StatedReason, is_id};
use crate::json::Scanner;
use crate::metadata::{self, MetadataPlace};

/// Parses the body of a message. `None`: it must be parsed by `careful`, which finds out whether
/// anything is wrong with it.
pub(super) fn read(kind: Kind, body: &str, limits: metadata::Limits) -> Option<Parts> {
    let (mut json, mut fields) = (Scanner::new(body), Fields::default());
    json.object(|json, key| match key {
        "userId" => once(&mut fields.user, json.string()?),
        "connId" => once(&mut fields.conn, json.string()?),
        "timestamp" => once(&mut fields.timestamp, json.integer()?),
        "metadata" => {
            // The metadata of most heartbeats isn't read.
            let is_read = kind != Kind::Heartbeat;
            once(&mut fields.metadata, limits.scan(json, is_read)?)
        }
        "type" => once(&mut fields.kind, json.value()?),
        "lastSeen" => once(&mut fields.last_seen, json.integer()?),
        "reason" => once(&mut fields.reason, json.value()?),
        _ => json.value().map(drop),
    })?;
    json.end()?;
    fields.check(kind, body)
}

/// The first `userId` of a body. `None`: it isn't plain, or what comes before it isn't.
pub(super) fn user(text: &str) -> Option<&str> {
    let mut user = None;
    // The text isn't read on after the field.
    let _ = Scanner::new(text).object(|json, key| match key {
        "userId" => {
            user = json.string();
            None
        }
        _ => json.value().map(drop),
    });
    user
}

#[derive(Default)]
struct Fields<'a> {
    user: Option<&'a str>,
    conn: Option<&'a str>,
    timestamp: Option<u64>,
    metadata: Option<MetadataPlace>,
    kind: Option<&'a str>,
    last_seen: Option<u64>,
    reason: Option<&'a str>,
}

/// Sets a field. `None`: the field is there twice.
fn once<T>(field: &mut Option<T>, value: T) -> Option<()> {
    field.replace(value).is_none().then_some(())
}

impl Fields<'_> {
    fn check(self, kind: Kind, body: &str) -> Option<Parts> {
        if kind.other_type(self.kind).is_some() {
            return None;
        }
        Some(Parts {
            user: id(self.user?, body)?,
            conn: match kind.has_connection() {
                true => id(self.conn?, body)?,
                false => BodyPart::Place(0..0),
            },
            timestamp: time(self.timestamp?)?,
            metadata: self.metadata,
            last_seen: match (kind, self.last_seen) {
                (Kind::Offline, Some(ms)) => Some(time(ms)?),
                _ => None,
            },
            reason: StatedReason::of(self.reason),
        })
    }
}

fn time(ms: u64) -> Option<u64> {
    (ms >= MS_MIN).then_some(ms)
}

fn id(id: &str, body: &str) -> Option<BodyPart> {
    is_id(id).then(|| BodyPart::new(Cow::Borrowed(id), body))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::careful;
    use super::*;

    /// Fields with known keys and values, and with others.
    fn field() -> impl Strategy<Value = String> {
        let key = prop::sample::select(vec![
            "userId",
            "connId",
            "timestamp",
            "metadata",
            "type",
            "lastSeen",
            "reason",
            "other",
            r"user\u0049d",
            r"meta\u0064ata",
        ]);
        let value = prop::sample::select(vec![
            r#""u""#,
            r#""a\u0062c""#,
            r#""\ud800""#,
            r#""""#,
            "null",
            "7",
            "-1",
            "1.5",
            "1e3",
            "1698000000000",
            "1698000000000.0",
            r#""user_online""#,
            r#""user_offline""#,
            r#""logout""#,
            "{}",
            "{ }",
            r#"{"a":"x","b":[1,{"c":"\"}"}] }"#,
            r#"{"a":1,"a":2}"#,
            r#"{ "a\u0062" : "\\\"" , "c":1e999}"#,
            r#"{"a\u0062" :"\\\"" ,"c":1e9}"#,
            r#"{"a":"\udc00"}"#,
            "[[[[[[1]]]]]]",
            r#"{"a":[[[[1]]]]}"#,
            r#"{"a":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}"#,
        ]);
        let space = prop::sample::select(vec!["", " ", "\n\t"]);
        (key, value, space).prop_map(|(key, value, space)| {
            format!("{space}\"{key}\"{space}:{space}{value}{space}")
        })
    }

    fn well_formed() -> impl Strategy<Value = Vec<String>> {
        let fields = [
            r#""userId":"u""#,
            r#""connId":"c""#,
            r#""timestamp":1698000000000"#,
        ];
        Just(fields.map(String::from).to_vec())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]
        #[test]
        fn what_is_read_in_one_pass_is_what_is_read_carefully(
            known in well_formed(),
            more in prop::collection::vec(field(), 0..4),
            (place, cut) in (0..4_usize, prop::option::weighted(0.1, 0..80_usize)),
            kind in prop::sample::select(Kind::ALL.to_vec()),
        ) {
            let mut fields = known;
            let place = place.min(fields.len());
            fields.splice(place..place, more);
            let mut body = format!("{{{}}}", fields.join(","));
            if let Some(cut) = cut {
                body.truncate(cut);
            }
            let limits = metadata::Limits { keys: 2, bytes: 40, depth: 4 };
            let careful = careful::read(kind, &body, limits);
            if let Ok(parts) = &careful {
                let user = super::super::user_of(body.as_bytes());
                prop_assert_eq!(user.as_deref(), Some(parts.user.text(&body)));
            }
            if let Some(parts) = read(kind, &body, limits) {
                prop_assert_eq!(Ok(parts), careful);
            }
        }
    }

    #[test]
    fn what_clients_send_is_read_in_one_pass() {
        let head = r#"{"userId":"u","timestamp":1698000000000"#;
        for (kind, rest) in [
            (
                Kind::Connect,
                r#","connId":"c","metadata":{"device":"web","n":[1e3]}}"#,
            ),
            (Kind::Heartbeat, r#","connId":"c","more":[{}]}"#),
            (Kind::Disconnect, r#", "connId": "c", "reason": "a\nb" }"#),
            (
                Kind::Online,
                r#","type":"user_online","metadata":{"a b":"\"","c":[{"d":1e3}]}}"#,
            ),
            (
                Kind::Offline,
                r#","lastSeen":1698000000000,"reason":"logout"}"#,
            ),
        ] {
            let text = format!("{head}{rest}");
            let read = read(kind, &text, metadata::Limits::default());
            assert!(read.is_some(), "{text}");
        }
    }
}
