//! The protocol of a directory service: how a question is asked, and how its answer is read.
//!
//! Each question has a subject of its own, such as `<subject>.contacts.12345`, and a body with the
//! same content: `{"question":"contacts","id":"12345"}`. The answer has the form of a directory
//! file: a list of ids, a list of groups' names, or an object of settings.

use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use presence_core::directory::{Answer, Question, Setting};
use presence_core::message::{ID_BYTES_MAX, is_id};
use presence_core::names::{Id, Names};
use presence_core::token;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::reader;

/// The token after the subject, in place of a question, with which the service says that an answer
/// has changed.
pub const INVALIDATE: &str = "invalidate";

/// The header with which NATS services report that they failed.
pub const SERVICE_ERROR: &str = "Nats-Service-Error";

/// The body of a question.
#[derive(Serialize, Deserialize)]
struct Body<'a> {
    question: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Box<RawValue>>,
}

/// The answer of a service that failed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Failed {
    error: String,
}

/// The subject and the body of a question. `None` if it is about something that can't be an id:
/// nobody need be asked then.
pub fn request(subject: &str, question: &Question, names: &Names) -> Option<(String, Vec<u8>)> {
    let body = body(question, names)?;
    let mut subject = format!("{subject}.{}", body.question);
    if let Some(about) = body.id.as_ref().or(body.key.as_ref()) {
        if !is_id(about) {
            return None;
        }
        subject = format!("{subject}.{}", token::encode(about));
    }
    Some((subject, serde_json::to_vec(&body).ok()?))
}

/// The question, for the log.
pub fn name(question: &Question, names: &Names) -> String {
    let body = body(question, names);
    let text = body.and_then(|body| serde_json::to_string(&body).ok());
    text.unwrap_or_default()
}

fn body(question: &Question, names: &Names) -> Option<Body<'static>> {
    let word = word(question);
    let body = Body {
        question: word,
        id: None,
        key: None,
        value: None,
    };
    Some(match question {
        Question::Everyone => body,
        Question::Members(group) => Body {
            id: Some(group.to_string()),
            ..body
        },
        Question::WithSetting(setting) => Body {
            key: Some(setting.key().to_owned()),
            value: RawValue::from_string(setting.value().to_owned()).ok(),
            ..body
        },
        about => Body {
            id: Some(names.name(about.user()?)?.as_str().to_owned()),
            ..body
        },
    })
}

fn word(question: &Question) -> &'static str {
    match question {
        Question::Contacts(_) => "contacts",
        Question::WithContact(_) => "with-contact",
        Question::Members(_) => "members",
        Question::CoMembers(_) => "co-members",
        Question::BlockedBy(_) => "blocked-by",
        Question::Blockers(_) => "blockers",
        Question::Everyone => "everyone",
        Question::Groups(_) => "groups",
        Question::Settings(_) => "settings",
        Question::WithSetting(_) => "with-setting",
    }
}

/// An empty answer.
pub fn empty_answer(question: &Question) -> Bytes {
    Bytes::from_static(match question {
        Question::Settings(_) => b"{}",
        _ => b"[]",
    })
}

/// Reads the answer to a question.
pub fn answer(question: &Question, payload: &[u8], names: &Names) -> anyhow::Result<Answer> {
    let text = std::str::from_utf8(payload).context("the answer is not UTF-8")?;
    // Checked first, because a list would be accepted for an object.
    if text.trim_start().starts_with('{')
        && let Ok(Failed { error }) = serde_json::from_str(text)
    {
        bail!("it says: {error}");
    }
    Ok(match question {
        Question::Settings(_) => {
            Answer::settings(reader::settings(text).context("not an object of settings")?)
        }
        Question::Groups(_) => {
            let groups = reader::groups(text).context("not a list of groups")?;
            Answer::groups(groups.into_iter().map(Arc::from).collect())
        }
        _ => Answer::users(reader::ids(text, names).context("not a list of users")?),
    })
}

/// Reads which answer has changed, as the service says. `None`: all answers.
pub fn invalidated(payload: &[u8], names: &Names) -> anyhow::Result<Option<Question>> {
    if payload.is_empty() {
        return Ok(None);
    }
    let what = "its body must be that of a question, or empty for all";
    ensure!(payload.trim_ascii_start().starts_with(b"{"), what);
    let body: Body<'_> = serde_json::from_slice(payload).context(what)?;
    let about = || {
        let id = body.id.as_deref().context("`id` is missing")?;
        ensure!(
            is_id(id),
            "`id` must be a string of 1 to {ID_BYTES_MAX} bytes"
        );
        Ok(id)
    };
    let of_user = |question: fn(Id) -> Question| Ok(question(names.intern(about()?)));
    let question: anyhow::Result<Question> = match body.question {
        "contacts" => of_user(Question::Contacts),
        "with-contact" => of_user(Question::WithContact),
        "members" => Ok(Question::Members(about()?.into())),
        "co-members" => of_user(Question::CoMembers),
        "blocked-by" => of_user(Question::BlockedBy),
        "blockers" => of_user(Question::Blockers),
        "everyone" => Ok(Question::Everyone),
        "groups" => of_user(Question::Groups),
        "settings" => of_user(Question::Settings),
        "with-setting" => {
            let key = body.key.as_deref().context("`key` is missing")?;
            let value = body.value.as_ref().context("`value` is missing")?;
            Ok(Question::WithSetting(Arc::new(Setting::new(
                key,
                value.get(),
            )?)))
        }
        other => bail!("there is no question `{other}`"),
    };
    question.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(key: &str, value: &str) -> Question {
        Question::WithSetting(Arc::new(Setting::new(key, value).unwrap()))
    }

    #[test]
    fn each_question_has_a_subject_and_a_body_and_is_read_back() {
        let names = Names::new();
        let (ann, user) = (names.intern("ann@example.com"), names.intern("12345"));
        for (question, subject, body) in [
            (
                Question::Contacts(user),
                "d.contacts.12345",
                r#"{"question":"contacts","id":"12345"}"#,
            ),
            (
                Question::WithContact(ann),
                "d.with-contact.=YW5uQGV4YW1wbGUuY29t",
                r#"{"question":"with-contact","id":"ann@example.com"}"#,
            ),
            (
                Question::Members("team a".into()),
                "d.members.=dGVhbSBh",
                r#"{"question":"members","id":"team a"}"#,
            ),
            (
                Question::CoMembers(user),
                "d.co-members.12345",
                r#"{"question":"co-members","id":"12345"}"#,
            ),
            (
                Question::BlockedBy(user),
                "d.blocked-by.12345",
                r#"{"question":"blocked-by","id":"12345"}"#,
            ),
            (
                Question::Blockers(user),
                "d.blockers.12345",
                r#"{"question":"blockers","id":"12345"}"#,
            ),
            (
                Question::Everyone,
                "d.everyone",
                r#"{"question":"everyone"}"#,
            ),
            (
                Question::Groups(user),
                "d.groups.12345",
                r#"{"question":"groups","id":"12345"}"#,
            ),
            (
                Question::Settings(user),
                "d.settings.12345",
                r#"{"question":"settings","id":"12345"}"#,
            ),
            (
                with("online", "\"nobody\""),
                "d.with-setting.online",
                r#"{"question":"with-setting","key":"online","value":"nobody"}"#,
            ),
        ] {
            let (at, asked) = request("d", &question, &names).unwrap();
            assert_eq!(
                (&*at, std::str::from_utf8(&asked).unwrap()),
                (subject, body)
            );
            assert_eq!(invalidated(&asked, &names).unwrap(), Some(question));
        }
        assert_eq!(invalidated(b"", &names).unwrap(), None);
    }

    #[test]
    fn nobody_is_asked_about_what_is_no_id() {
        let names = Names::new();
        let long = "x".repeat(ID_BYTES_MAX + 1);
        for question in [
            Question::Contacts(names.intern(&long)),
            Question::Contacts(names.intern("")),
            Question::Settings(names.intern("")),
            Question::Members(long.as_str().into()),
            with(&long, "1"),
        ] {
            assert_eq!(request("d", &question, &names), None);
            answer(&question, &empty_answer(&question), &names).unwrap();
        }
    }

    #[test]
    fn answers_are_read_as_the_directory_file_is() {
        let names = Names::new();
        let user = names.intern("a");
        let read = |question, text: &str| answer(&question, text.as_bytes(), &names);
        let ids = [names.intern("b").0, names.intern("c").0];
        assert_eq!(
            read(Question::Contacts(user), r#"["b","c"]"#).unwrap(),
            Answer::users(ids.into_iter().collect())
        );
        assert_eq!(
            read(Question::Groups(user), r#"["t","s"]"#).unwrap(),
            Answer::groups(vec!["s".into(), "t".into()])
        );
        let error = r#"{"error":"nobody","x":1}"#;
        let settings = read(Question::Settings(user), error).unwrap();
        assert!(matches!(settings, Answer::Settings(settings) if settings.len() == 2));
        for (question, text, why) in [
            (Question::Everyone, "", "not a list of users"),
            (Question::Everyone, "{}", "not a list of users"),
            (Question::Everyone, r#"{"error":"busy"}"#, "it says: busy"),
            (Question::Everyone, "[7]", "not a list of users"),
            (Question::Everyone, r#"[""]"#, "not a list of users"),
            (Question::Groups(user), r#"[""]"#, "1 to 256 bytes"),
            (Question::Groups(user), r#"{"a":1}"#, "not a list of groups"),
            (Question::Settings(user), "[]", "not an object of settings"),
            (
                Question::Settings(user),
                r#"{"error":"no database"}"#,
                "it says: no database",
            ),
        ] {
            let error = format!("{:#}", read(question, text).unwrap_err());
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn what_says_of_no_answer_that_it_has_changed_is_refused() {
        for (body, why) in [
            ("contacts", "that of a question"),
            (r#"["contacts","1"]"#, "that of a question"),
            ("{}", "missing field `question`"),
            (
                r#"{"question":"friends","id":"1"}"#,
                "no question `friends`",
            ),
            (r#"{"question":"contacts"}"#, "`id` is missing"),
            (r#"{"question":"members","id":""}"#, "1 to 256 bytes"),
            (r#"{"question":"contacts","id":7}"#, "that of a question"),
            (r#"{"question":"with-setting","key":"a"}"#, "`value`"),
        ] {
            let error = invalidated(body.as_bytes(), &Names::new()).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(why), "{body}: {error}");
        }
    }
}
