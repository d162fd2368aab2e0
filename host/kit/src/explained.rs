//! Puts a stage of an explanation into words.

use serde_json::Value;

use crate::text::plain;

/// What a stage of an explanation does to the viewer, in words.
#[must_use]
pub fn what_it_does(stage: &Value, viewer: &str) -> String {
    let says = match &*word(stage, "/turn") {
        "admitted" => format!("admits {viewer}"),
        "removed" => format!("removes {viewer}"),
        "kept" => format!("keeps {viewer}"),
        "absent" if word(stage, "/role") == "redactor" => {
            format!("shows nothing to {viewer}, who was not admitted")
        }
        "absent" => format!("does not admit {viewer}"),
        "failed" => format!("failed: {}", word(stage, "/failure")),
        "not-reached" => "was not asked, because a stage before it failed".into(),
        _ => "changes metadata only".into(),
    };
    let stands_in = if flag(stage, "/standsIn") {
        ", the last good version: the newer one failed"
    } else {
        ""
    };
    format!(
        "{} {} ({}{stands_in}) {says}",
        word(stage, "/plugin"),
        word(stage, "/version"),
        word(stage, "/role"),
    )
}

/// The reasons that a stage of an explanation gives, each with whom it is about: the user, if the
/// stage decides for all viewers at once, or this viewer alone.
pub fn reasons(stage: &Value, user: &str, viewer: &str) -> Vec<String> {
    let about = |key: &str, whom: &str| -> Vec<String> {
        let reasons = stage.get(key).and_then(Value::as_array);
        let reasons = reasons.into_iter().flatten();
        reasons
            .map(|reason| format!("says of {whom}: {}", plain(reason)))
            .collect()
    };
    [about("reasons", user), about("viewerReasons", viewer)].concat()
}

/// The value at a JSON pointer as plain text; empty if there is none.
#[must_use]
pub fn word(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).map(plain).unwrap_or_default()
}

/// Whether the value at a JSON pointer is `true`.
#[must_use]
pub fn flag(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer) == Some(&Value::Bool(true))
}
