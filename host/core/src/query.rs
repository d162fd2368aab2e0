//! Queries: a viewer asks who is online. They are parsed into types that can only hold valid
//! values.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use bytestring::ByteString;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::Value;

use crate::json::{Scanner, Text, present, shared};
use crate::message::{Cause, ID_BYTES_MAX};
use crate::token;

/// The maximum number of users in a query.
pub const USERS_MAX: usize = 1_000;

/// The reason of a refusal because of overload.
const OVERLOADED: &str = "overloaded";

/// A viewer's query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The viewer who asks.
    pub viewer: ByteString,
    /// The users whom the query is about.
    pub asked: QueriedUsers,
}

/// The users whom a query is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueriedUsers {
    /// These users, 1 to [`USERS_MAX`], in this order.
    Users(Vec<ByteString>),
    /// The viewer's own contacts.
    Contacts,
}

/// Why a question wasn't answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, as replies spell it.
    pub reason: &'static str,
    /// The exact error, in one line.
    pub error: String,
    /// The invalid field, such as `userIds[3]`, if there is one.
    pub field: Option<String>,
}

impl Refusal {
    /// A refusal that concerns no single field.
    pub fn new(cause: Cause, error: String) -> Self {
        Self {
            reason: cause.as_str(),
            error,
            field: None,
        }
    }

    /// A refusal because of an invalid field. `must`: what the field must be.
    pub fn field(field: impl Into<String>, must: &str) -> Self {
        Self::of(Cause::InvalidField, field.into(), must)
    }

    /// A refusal, since something that is needed for the answer is unavailable now.
    pub fn unavailable(error: &str) -> Self {
        Self {
            reason: "unavailable",
            error: error.into(),
            field: None,
        }
    }

    /// A refusal, since there are more questions at the moment than can be answered.
    pub fn overloaded() -> Self {
        Self {
            reason: OVERLOADED,
            ..Self::unavailable("more is asked than can be answered now: ask again later")
        }
    }

    /// Whether the question was refused because of overload.
    pub fn is_overload(&self) -> bool {
        self.reason == OVERLOADED
    }

    /// A refusal, since the feature must be enabled first.
    pub fn not_enabled(error: &str) -> Self {
        Self {
            reason: "not-enabled",
            ..Self::unavailable(error)
        }
    }

    fn missing(field: &str) -> Self {
        Self::of(Cause::MissingField, field.into(), "is missing")
    }

    fn of(cause: Cause, field: String, what: &str) -> Self {
        Self {
            error: format!("`{field}` {what}"),
            field: Some(field),
            ..Self::new(cause, String::new())
        }
    }
}

impl Query {
    /// Parses a query. `viewer_token`: the last token of the subject, if it names the viewer. The
    /// body needn't name the viewer then, and can't name another one. So a broker's permission for
    /// a subject is a permission for a viewer.
    ///
    /// # Errors
    /// Returns the first thing that is wrong with the query.
    pub fn parse(payload: &Bytes, viewer_token: Option<&str>) -> Result<Self, Refusal> {
        let text = text(payload)?;
        let fields = match Fields::scan(&text) {
            Some(fields) => fields,
            None => serde_json::from_str(&text).map_err(|error| diagnose(&text, &error, &[]))?,
        };
        let viewer = viewer(fields.viewer, viewer_token, &text)?;
        let asked = match fields.users {
            Users::Word(word) if word == "contacts" => QueriedUsers::Contacts,
            Users::Word(_) => return Err(Refusal::field("userIds", USERS)),
            Users::List(users) => {
                if users.is_empty() || users.len() > USERS_MAX {
                    let must = format!("must name 1 to {USERS_MAX} users, not {}", users.len());
                    return Err(Refusal::field("userIds", &must));
                }
                let users = users.into_iter().enumerate();
                let users = users
                    .map(|(place, Text(user))| id(|| format!("userIds[{place}]"), user, &text));
                QueriedUsers::Users(users.collect::<Result<_, _>>()?)
            }
        };
        Ok(Self { viewer, asked })
    }
}

/// An operator's question why a viewer can or can't see a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explain {
    /// The viewer.
    pub viewer: ByteString,
    /// The user.
    pub user: ByteString,
}

impl Explain {
    /// Parses the question.
    ///
    /// # Errors
    /// Returns the first thing that is wrong with the question.
    pub fn parse(payload: &Bytes) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        struct Fields<'a> {
            #[serde(rename = "viewerId", borrow)]
            viewer: Text<'a>,
            #[serde(rename = "userId", borrow)]
            user: Text<'a>,
        }
        let text = text(payload)?;
        let fields: Fields<'_> = serde_json::from_str(&text)
            .map_err(|error| diagnose(&text, &error, &["viewerId", "userId"]))?;
        Ok(Self {
            viewer: id(|| "viewerId".into(), fields.viewer.0, &text)?,
            user: id(|| "userId".into(), fields.user.0, &text)?,
        })
    }
}

/// What `userIds` must be.
const USERS: &str = "must be a list of user ids, or \"contacts\"";

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(rename = "viewerId", borrow, default, deserialize_with = "present")]
    viewer: Option<Text<'a>>,
    #[serde(rename = "userIds", borrow)]
    users: Users<'a>,
}

impl<'a> Fields<'a> {
    /// Parses the text of a query with a list of ids. `None`: it isn't plain, or isn't well-formed.
    fn scan(text: &'a str) -> Option<Self> {
        let (mut json, mut viewer, mut users) = (Scanner::new(text), None, None);
        json.object(|json, key| match key {
            "viewerId" if viewer.is_none() => {
                viewer = Some(json.string()?);
                Some(())
            }
            "userIds" if users.is_none() => {
                let mut ids = Vec::with_capacity(128);
                json.list(|json| {
                    ids.push(Text(Cow::Borrowed(json.string()?)));
                    Some(())
                })?;
                users = Some(ids);
                Some(())
            }
            "viewerId" | "userIds" => None,
            _ => json.value().map(drop),
        })?;
        json.end()?;
        Some(Self {
            viewer: viewer.map(|viewer| Text(Cow::Borrowed(viewer))),
            users: Users::List(users?),
        })
    }
}

enum Users<'a> {
    List(Vec<Text<'a>>),
    Word(String),
}

impl<'de: 'a, 'a> Deserialize<'de> for Users<'a> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct UsersVisitor;
        impl<'de> Visitor<'de> for UsersVisitor {
            type Value = Users<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of user ids, or \"contacts\"")
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<Users<'de>, E> {
                Ok(Users::Word(word.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Users<'de>, A::Error> {
                let mut users = Vec::with_capacity(128);
                while let Some(user) = list.next_element()? {
                    users.push(user);
                }
                Ok(Users::List(users))
            }
        }
        input.deserialize_any(UsersVisitor)
    }
}

fn text(payload: &Bytes) -> Result<ByteString, Refusal> {
    ByteString::try_from(payload.clone())
        .map_err(|error| Refusal::new(Cause::InvalidJson, format!("not UTF-8: {error}")))
}

/// The viewer who asks, from the body and the subject.
fn viewer(
    named: Option<Text<'_>>,
    token: Option<&str>,
    text: &ByteString,
) -> Result<ByteString, Refusal> {
    let named = named
        .map(|Text(viewer)| id(|| "viewerId".into(), viewer, text))
        .transpose()?;
    let Some(token) = token else {
        return named.ok_or_else(|| Refusal::missing("viewerId"));
    };
    let Some(viewer) = token::decode(token) else {
        let must = "must be the subject's last token: as it is, if it is of letters, digits, \
                    `_` and `-`, else as `=` and its base64url";
        return Err(Refusal::field("viewerId", must));
    };
    match named {
        Some(named) if named != viewer => {
            let must = "must be whom the subject names, or be left out";
            Err(Refusal::field("viewerId", must))
        }
        Some(named) => Ok(named),
        None => id(|| "viewerId".into(), viewer.into(), text),
    }
}

fn id(
    field: impl Fn() -> String,
    id: Cow<'_, str>,
    text: &ByteString,
) -> Result<ByteString, Refusal> {
    if id.is_empty() {
        return Err(Refusal::field(field(), "must not be empty"));
    }
    if id.len() > ID_BYTES_MAX {
        let must = format!("must be at most {ID_BYTES_MAX} bytes long");
        return Err(Refusal::field(field(), &must));
    }
    Ok(shared(id, text))
}

/// What is wrong with a question that couldn't be parsed. `strings`: its fields, which must all be
/// strings. Empty for a query.
fn diagnose(text: &str, error: &serde_json::Error, strings: &[&str]) -> Refusal {
    let value = match serde_json::from_str::<Value>(text) {
        Ok(value) => value,
        Err(error) => return Refusal::new(Cause::InvalidJson, format!("not JSON: {error}")),
    };
    let Some(fields) = value.as_object() else {
        let error = "the message must be a JSON object".into();
        return Refusal::new(Cause::NotAnObject, error);
    };
    for field in strings {
        match fields.get(*field) {
            None => return Refusal::missing(field),
            Some(value) if !value.is_string() => {
                return Refusal::field(*field, "must be a string");
            }
            Some(_) => {}
        }
    }
    if fields.get("viewerId").is_some_and(|id| !id.is_string()) {
        return Refusal::field("viewerId", "must be a string");
    }
    match fields.get("userIds") {
        None if strings.is_empty() => Refusal::missing("userIds"),
        Some(Value::Array(users)) => match users.iter().position(|user| !user.is_string()) {
            Some(place) => Refusal::field(format!("userIds[{place}]"), "must be a string"),
            None => Refusal::new(Cause::InvalidJson, format!("not well-formed: {error}")),
        },
        None | Some(Value::String(_)) => {
            Refusal::new(Cause::InvalidJson, format!("not well-formed: {error}"))
        }
        Some(_) => Refusal::field("userIds", USERS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str, token: Option<&str>) -> Result<Query, Refusal> {
        Query::parse(&Bytes::copy_from_slice(body.as_bytes()), token)
    }

    fn list(count: usize) -> String {
        serde_json::json!({"viewerId": "v", "userIds": vec!["u"; count]}).to_string()
    }

    #[test]
    fn a_query_names_its_viewer_and_users_in_order() {
        let query = parse(
            r#"{"viewerId":"v","userIds":["b","\u0061","b"],"x":1}"#,
            None,
        )
        .unwrap();
        assert_eq!(query.viewer, "v");
        let users = ["b", "a", "b"].map(ByteString::from).to_vec();
        assert_eq!(query.asked, QueriedUsers::Users(users));
        let query = parse(r#"{"viewerId":"v","userIds":"contacts"}"#, None).unwrap();
        assert_eq!(query.asked, QueriedUsers::Contacts);
        for count in [1, USERS_MAX] {
            assert!(parse(&list(count), None).is_ok());
        }
    }

    #[test]
    fn what_is_scanned_is_what_serde_reads() {
        let bodies = [
            r#"{"viewerId":"v","userIds":["a","b"]}"#,
            r#" { "userIds" : [ "a" , "ü" ] , "x": [{"userIds":["\u0062"]}, 1e3], "viewerId" : "v" } "#,
            r#"{"userIds":[],"viewerId":"v"}"#,
            r#"{"userIds":["a"]}"#,
            r#"{"viewerId":"v","userIds":["a\u0062"]}"#,
            r#"{"viewer\u0049d":"v","userIds":["a"]}"#,
            r#"{"viewerId":"v","viewerId":"v","userIds":["a"]}"#,
            r#"{"viewerId":"v","userIds":["a"],"userIds":["b"]}"#,
            r#"{"viewerId":"v","userIds":["a",]}"#,
            r#"{"viewerId":"v","userIds":["a"]} x"#,
            r#"{"viewerId":null,"userIds":["a"]}"#,
            r#"{"viewerId":"v","userIds":["a",7]}"#,
            r#"{"viewerId":"v","userIds":"contacts"}"#,
            r#"["v",["a"]]"#,
            "{}",
        ];
        let read = |fields: Fields<'_>| {
            let users = match fields.users {
                Users::List(users) => users.into_iter().map(|it| it.0.into_owned()).collect(),
                Users::Word(word) => vec![word],
            };
            (fields.viewer.map(|it| it.0.into_owned()), users)
        };
        let mut scanned = 0;
        for body in bodies {
            if let Some(fields) = Fields::scan(body) {
                scanned += 1;
                let careful = serde_json::from_str(body).unwrap();
                assert_eq!(read(fields), read(careful), "{body}");
            }
        }
        assert_eq!(scanned, 4);
    }

    #[test]
    fn the_subject_says_who_asks_and_the_body_cannot_differ() {
        let anonymous = r#"{"userIds":["u"]}"#;
        assert_eq!(parse(anonymous, Some("v")).unwrap().viewer, "v");
        let token = token::encode("ann@example.com");
        let query = parse(anonymous, Some(&token)).unwrap();
        assert_eq!(query.viewer, "ann@example.com");
        let own = r#"{"viewerId":"v","userIds":["u"]}"#;
        assert_eq!(parse(own, Some("v")).unwrap().viewer, "v");
        for (body, token) in [(own, "w"), (anonymous, "=dg"), (anonymous, "=!")] {
            let refusal = parse(body, Some(token)).unwrap_err();
            assert_eq!(refusal.reason, "invalid-field");
            assert_eq!(refusal.field.as_deref(), Some("viewerId"));
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let long = format!(r#"{{"viewerId":"v","userIds":["{}"]}}"#, "x".repeat(257));
        for (body, reason, field) in [
            ("", "invalid-json", None),
            ("{", "invalid-json", None),
            ("[]", "not-an-object", None),
            ("\"contacts\"", "not-an-object", None),
            (r#"{"userIds":["u"]}"#, "missing-field", Some("viewerId")),
            (r#"{"viewerId":"v"}"#, "missing-field", Some("userIds")),
            (
                r#"{"viewerId":null,"userIds":["u"]}"#,
                "invalid-field",
                Some("viewerId"),
            ),
            (
                r#"{"viewerId":"","userIds":["u"]}"#,
                "invalid-field",
                Some("viewerId"),
            ),
            (
                r#"{"viewerId":"v","userIds":[]}"#,
                "invalid-field",
                Some("userIds"),
            ),
            (
                r#"{"viewerId":"v","userIds":"everyone"}"#,
                "invalid-field",
                Some("userIds"),
            ),
            (
                r#"{"viewerId":"v","userIds":{}}"#,
                "invalid-field",
                Some("userIds"),
            ),
            (
                r#"{"viewerId":"v","userIds":["a","b","c",7]}"#,
                "invalid-field",
                Some("userIds[3]"),
            ),
            (
                r#"{"viewerId":"v","userIds":["a",""]}"#,
                "invalid-field",
                Some("userIds[1]"),
            ),
            (&long, "invalid-field", Some("userIds[0]")),
            (&list(USERS_MAX + 1), "invalid-field", Some("userIds")),
            (
                r#"{"viewerId":"v","viewerId":"w","userIds":["u"]}"#,
                "invalid-json",
                None,
            ),
        ] {
            let refusal = parse(body, None).unwrap_err();
            assert_eq!(refusal.reason, reason, "{body}: {refusal:?}");
            assert_eq!(refusal.field.as_deref(), field, "{body}: {refusal:?}");
        }
        let refusal = Query::parse(&Bytes::from_static(b"\xff"), None).unwrap_err();
        assert_eq!(refusal.reason, "invalid-json");
    }
}
