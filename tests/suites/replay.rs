//! `presence replay`: without a broker, in virtual time, with the same bytes every time.

use std::fs;

use anyhow::{Context, Result};
use presence_tests::site::Site;
use presence_tests::{component, host};
use serde_json::{Value, json};

use crate::inputs::{
    self, CONNECT, DISCONNECT, DLQ, EVENTS, FILTERED_OFFLINE, FILTERED_ONLINE, HEARTBEAT, OFFLINE,
    ONLINE, SEED_MS,
};

/// The output of a replay of these lines.
fn replay(site: &Site, lines: &[Value]) -> Result<String> {
    let file = site.path().join("inputs.ndjson");
    fs::write(
        &file,
        lines
            .iter()
            .map(|line| format!("{line}\n"))
            .collect::<String>(),
    )?;
    let output = host::run(
        site,
        &["replay", file.to_str().context("a temporary path is text")?],
    )?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// The seed document's day: two devices, activity, and the end of the last device. Then a second
/// user who falls silent, an application's statement, and an invalid message.
fn day() -> Vec<Value> {
    let web = "web_abc123";
    let mobile = "mobile_xyz789";
    vec![
        json!({"at": SEED_MS, "subject": CONNECT, "data": inputs::connect("12345", web, SEED_MS)}),
        json!({"at": SEED_MS + 10, "subject": CONNECT, "data": inputs::connect("12345", mobile, SEED_MS + 10)}),
        json!({"subject": HEARTBEAT, "data": inputs::heartbeat("12345", web, SEED_MS + 20)}),
        json!({"subject": DISCONNECT, "data": inputs::disconnect("12345", mobile, SEED_MS + 30, "client_disconnect")}),
        json!({"subject": DISCONNECT, "data": inputs::disconnect("12345", web, SEED_MS + 40, "client_disconnect")}),
        json!({"subject": CONNECT, "data": inputs::connect("22222", web, SEED_MS + 50)}),
        json!({"at": SEED_MS + 60, "subject": CONNECT, "payload": "/w==", "encoding": "base64"}),
        json!({"at": SEED_MS + 70, "subject": ONLINE, "data": inputs::online("12345", SEED_MS + 70)}),
    ]
}

#[test]
fn the_same_input_gives_the_same_bytes() -> Result<()> {
    let site = Site::new("nats://127.0.0.1:1")?;
    let first = replay(&site, &day())?;
    assert_eq!(first, replay(&site, &day())?);
    // The number of workers makes no difference, either.
    let site = site.with("engine.workers", 4)?;
    let third = replay(&site, &day())?;
    let bodies = |text: &str| -> Vec<String> {
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut bodies: Vec<_> = lines
            .map(|line| format!("{} {} {}", line["at"], line["subject"], line["data"]))
            .collect();
        bodies.sort_unstable();
        bodies
    };
    assert_eq!(bodies(&first), bodies(&third));
    Ok(())
}

#[test]
fn a_replayed_day_is_what_the_contract_says() -> Result<()> {
    let site = Site::new("nats://127.0.0.1:1")?;
    let lines: Vec<Value> = replay(&site, &day())?
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let on = |subject: &str| -> Vec<(u64, Value)> {
        let lines = lines.iter().filter(|line| line["subject"] == subject);
        lines
            .map(|line| (line["at"].as_u64().unwrap_or(0), line["data"].clone()))
            .collect()
    };
    for line in &lines {
        let names: Vec<_> = line
            .as_object()
            .into_iter()
            .flat_map(|line| line.keys())
            .collect();
        assert_eq!(names, ["at", "subject", "headers", "data"]);
        assert!(line["headers"]["Presence-Seq"].is_string(), "{line}");
    }

    let metadata =
        |conn: &str| json!({"device": "web", "userAgent": "Mozilla/5.0...", "connId": conn});
    let came = |user: &str, at: u64| json!({"type": "user_online", "userId": user, "timestamp": at, "metadata": metadata("web_abc123")});
    let left = json!({
        "type": "user_offline", "userId": "12345", "timestamp": SEED_MS + 40,
        "lastSeen": SEED_MS + 40, "reason": "disconnect",
    });
    let silent_at = SEED_MS + 50 + 30_000;
    let silent = json!({
        "type": "user_offline", "userId": "22222", "timestamp": silent_at,
        "lastSeen": SEED_MS + 50, "reason": "timeout",
        "metadata": {"timeoutDuration": 30_000, "lastHeartbeat": SEED_MS + 50},
    });
    // An application's statement ends a day later.
    let unsaid_at = SEED_MS + 70 + 86_400_000;
    let unsaid = json!({
        "type": "user_offline", "userId": "12345", "timestamp": unsaid_at,
        "lastSeen": SEED_MS + 70, "reason": "timeout",
        "metadata": {"timeoutDuration": 86_400_000, "lastHeartbeat": SEED_MS + 70},
    });
    assert_eq!(
        on(ONLINE),
        [
            (SEED_MS, came("12345", SEED_MS)),
            (SEED_MS + 50, came("22222", SEED_MS + 50))
        ]
    );
    assert_eq!(
        on(OFFLINE),
        [
            (SEED_MS + 40, left.clone()),
            (silent_at, silent.clone()),
            (unsaid_at, unsaid.clone())
        ]
    );
    assert_eq!(
        on(EVENTS),
        [
            (SEED_MS, came("12345", SEED_MS)),
            (SEED_MS + 40, left),
            (SEED_MS + 50, came("22222", SEED_MS + 50)),
            (SEED_MS + 70, inputs::online("12345", SEED_MS + 70)),
            (silent_at, silent),
            (unsaid_at, unsaid),
        ],
    );

    let sorted = |mut lines: Vec<(u64, Value)>| {
        for (_, data) in &mut lines {
            if let Some(Value::Array(viewers)) = data.get_mut("visibleTo") {
                viewers.sort_unstable_by_key(Value::to_string);
            }
        }
        lines
    };
    let seen_online = |user: &str, at: u64, viewers: &[&str]| {
        let data = json!({
            "type": "user_online", "userId": user, "timestamp": at,
            "visibleTo": viewers, "metadata": {"device": "web"},
        });
        (at, data)
    };
    let seen_offline = |user: &str, at: u64, last_seen: u64, viewers: &[&str]| {
        let data = json!({
            "type": "user_offline", "userId": user, "timestamp": at,
            "lastSeen": last_seen, "visibleTo": viewers,
        });
        (at, data)
    };
    assert_eq!(
        sorted(on(FILTERED_ONLINE)),
        [
            seen_online("12345", SEED_MS, &["22222", "67890"]),
            seen_online("22222", SEED_MS + 50, &["12345"]),
            seen_online("12345", SEED_MS + 70, &["22222", "67890"]),
        ],
    );
    assert_eq!(
        sorted(on(FILTERED_OFFLINE)),
        [
            seen_offline("12345", SEED_MS + 40, SEED_MS + 40, &["22222", "67890"]),
            seen_offline("22222", silent_at, SEED_MS + 50, &["12345"]),
            seen_offline("12345", unsaid_at, SEED_MS + 70, &["22222", "67890"]),
        ],
    );
    let dead = on(DLQ);
    assert_eq!(dead.len(), 1);
    let letter = dead
        .first()
        .map(|(_, letter)| letter)
        .context("one dead letter")?;
    assert_eq!(
        (letter["reason"].as_str(), letter["payload"].as_str()),
        (Some("invalid-json"), Some("/w=="))
    );
    Ok(())
}

/// A night in Berlin, when the clocks go forward or back. A colleague loses sight of the user at
/// ten in the evening, and gains it again at seven by the new time.
#[test]
fn a_night_ends_at_the_hour_by_the_clock_also_when_the_clocks_are_changed() -> Result<()> {
    const HOUR_MS: u64 = 3_600_000;
    let mut site = Site::new("nats://127.0.0.1:1")?.with("tracker.timeout_ms", 86_400_000)?;
    site.write_plugin("night", component::load("fixtures/night")?)?;
    site.set_pipeline(&[("groups", None), ("night", None), ("redact", None)])?;
    site.write_directory_value(&json!({
        "groups": {"team": ["ada", "ben", "cleo"], "close-friends:ada": ["ben"]},
        "settings": {"ada": {"timeZone": "Europe/Berlin"}},
    }))?;
    // The time of nine in the evening there, and the length of the night in hours.
    for (evening, night) in [(1_774_728_000_000, 8), (1_792_868_400_000, 10)] {
        let connect = inputs::connect("ada", "c", evening);
        let line = json!({"at": evening, "subject": CONNECT, "data": connect});
        let mut told = Vec::new();
        for line in replay(&site, &[line])?.lines() {
            let line: Value = serde_json::from_str(line)?;
            let subject = line["subject"].as_str().unwrap_or_default();
            if [FILTERED_ONLINE, FILTERED_OFFLINE].contains(&subject) {
                let after = line["at"].as_u64().context("at")? - evening;
                told.push((after, subject.to_owned(), line["data"]["visibleTo"].clone()));
            }
        }
        let line = |after: u64, subject: &str, viewers: Value| {
            (after * HOUR_MS, subject.to_owned(), viewers)
        };
        let expected = [
            line(0, FILTERED_ONLINE, json!(["ben", "cleo"])),
            line(1, FILTERED_OFFLINE, json!(["cleo"])),
            line(1 + night, FILTERED_ONLINE, json!(["cleo"])),
        ];
        assert_eq!(told.get(..3), Some(&expected[..]), "{told:?}");
    }
    Ok(())
}

#[test]
fn a_body_of_several_lines_is_published_on_one() -> Result<()> {
    let site = Site::new("nats://127.0.0.1:1")?;
    let body = "{\"userId\": \"12345\", \"connId\": \"c1\", \"timestamp\": 1700000000000, \
                \"metadata\": {\"device\": {\n\"os\":\r\n\"a\\nb\"}}}";
    let line = json!({"at": SEED_MS, "subject": CONNECT, "payload": body});
    let printed = replay(&site, &[line])?;
    let lines = printed.lines().map(serde_json::from_str::<Value>);
    let lines: Vec<_> = lines.collect::<Result<_, _>>()?;
    let shown = lines.iter().find(|it| it["subject"] == ONLINE);
    let shown = shown.context("they come online")?;
    assert_eq!(shown["data"]["metadata"]["device"]["os"], "a\nb");
    Ok(())
}
