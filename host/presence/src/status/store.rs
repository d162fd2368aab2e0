//! The rows of `presence status` about the plugin store, and about a canary or a shadow.

use presence_kit::text::plain;
use serde_json::Value;

/// The rows: a title and a text each. Empty if the node doesn't follow the store.
pub(super) fn rows(status: &Value) -> Vec<[String; 2]> {
    let Some(store) = status.pointer("/serving/store").filter(|it| it.is_object()) else {
        return Vec::new();
    };
    let at = |value: &Value, pointer: &str| value.pointer(pointer).map(plain).unwrap_or_default();
    let revision = match store.get("revision").and_then(Value::as_u64) {
        Some(revision) => revision.to_string(),
        None => "none".to_owned(),
    };
    let mut rows = vec![["revision".to_owned(), revision]];
    if store.get("refused").is_some_and(Value::is_object) {
        let refused = format!(
            "{}: {}",
            at(store, "/refused/revision"),
            at(store, "/refused/why")
        );
        rows.push(["REFUSED".into(), refused]);
    }
    if store.get("away").is_some_and(Value::is_string) {
        rows.push(["STORE AWAY".into(), at(store, "/away")]);
    }
    let Some(beside) = status
        .pointer("/serving/beside")
        .filter(|it| it.is_object())
    else {
        return rows;
    };
    let kind = at(beside, "/kind");
    let (of, does) = match &*kind {
        "canary" => {
            let calls = at(beside, "/calls/candidate/calls");
            let failures = at(beside, "/calls/candidate/failures");
            let percent = at(beside, "/percent");
            let does =
                format!("decides on {percent} % of the users: {calls} calls, {failures} failed");
            (store.get("canary"), does)
        }
        _ => {
            let compared = at(beside, "/report/decisions/compared");
            let different = at(beside, "/report/decisions/different");
            let does = format!("is compared: {compared} decisions, {different} of them different");
            (status.pointer("/serving/shadow"), does)
        }
    };
    let of = of.cloned().unwrap_or_default();
    let digest = at(&of, "/digest");
    let digest = digest.get(.."sha256:".len() + 12).unwrap_or(&digest);
    rows.push([kind, format!("{}@{digest} {does}", at(&of, "/plugin"))]);
    rows
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_says_what_holds_of_the_store_and_what_runs_beside_the_pipeline() {
        assert!(rows(&json!({"serving": {"store": null}})).is_empty());
        let digest = format!("sha256:{}", "a".repeat(64));
        let mut status = json!({"serving": {
            "store": {
                "revision": 7,
                "refused": {"revision": 8, "why": "broken"},
                "away": null,
                "canary": {"plugin": "quiet", "digest": digest},
            },
            "beside": {
                "kind": "canary", "percent": 5,
                "calls": {"candidate": {"calls": 12, "failures": 1}},
            },
        }});
        let said = |status: &Value| {
            rows(status)
                .iter()
                .map(|it| it.join(" "))
                .collect::<Vec<_>>()
        };
        let canary =
            "canary quiet@sha256:aaaaaaaaaaaa decides on 5 % of the users: 12 calls, 1 failed";
        assert_eq!(said(&status), ["revision 7", "REFUSED 8: broken", canary]);
        status["serving"]["store"] = json!({"revision": null, "refused": null, "away": "gone"});
        status["serving"]["shadow"] = json!({"plugin": "quiet", "digest": digest});
        status["serving"]["beside"] = json!({
            "kind": "shadow",
            "report": {"decisions": {"compared": 9, "different": 2}},
        });
        let shadow =
            "shadow quiet@sha256:aaaaaaaaaaaa is compared: 9 decisions, 2 of them different";
        assert_eq!(said(&status), ["revision none", "STORE AWAY gone", shadow]);
    }
}
