//! `presence record`: records the input of a live system, so that a replay does what the live
//! system did.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use presence_tests::client::{Client, ReceivedMessage, now_ms};
use presence_tests::process::Process;
use presence_tests::site::Site;
use presence_tests::{component, host};
use serde_json::{Value, json};

use crate::inputs::{
    self, CONNECT, DISCONNECT, FILTERED_OFFLINE, FILTERED_ONLINE, HEARTBEAT, ONLINE,
};
use crate::world::World;

/// Starts a recording, and waits until it misses nothing.
async fn record(site: &Site, args: &[&str]) -> Result<Process> {
    let args: Vec<_> = ["record"].iter().chain(args).copied().collect();
    let mut recorder = host::start(site, &args)?;
    let says = |line: &str| line.starts_with("recording presence.> to ");
    recorder
        .wait_for_log("it to begin", 0, says)
        .await
        .map(drop)?;
    Ok(recorder)
}

/// Waits for the end of a successful recording, and returns what it says.
async fn end(mut recorder: Process) -> Result<String> {
    let status = recorder.wait().await?;
    assert!(status.success(), "{}", recorder.log_tail());
    Ok(recorder.stderr().join("\n"))
}

fn lines(text: &str) -> Result<Vec<Value>> {
    let lines = text.lines().map(serde_json::from_str);
    Ok(lines.collect::<Result<_, _>>()?)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a temporary path is text")
}

/// The output of a successful command.
fn print(site: &Site, args: &[&str]) -> Result<String> {
    let output = host::run(site, args)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    Ok(String::from_utf8(output.stdout)?)
}

/// The parts of a filtered message that can be compared with one that was published at another
/// time.
fn shape(subject: &str, body: &Value) -> (String, Value, Value, Value) {
    let field = |name: &str| body.get(name).cloned().unwrap_or_default();
    let mut viewers = field("visibleTo");
    if let Some(viewers) = viewers.as_array_mut() {
        viewers.sort_unstable_by_key(Value::to_string);
    }
    (subject.into(), field("userId"), viewers, field("metadata"))
}

fn is_filtered(subject: &str) -> bool {
    [FILTERED_ONLINE, FILTERED_OFFLINE].contains(&subject)
}

/// The host's filtered messages.
fn live(seen: &[ReceivedMessage]) -> Vec<(String, Value, Value, Value)> {
    let filtered = seen.iter().filter(|seen| is_filtered(&seen.subject));
    filtered
        .map(|seen| shape(&seen.subject, &seen.body))
        .collect()
}

/// The filtered messages of a replay up to some time.
fn replayed(printed: &str, until: u64) -> Result<Vec<(String, Value, Value, Value)>> {
    let lines = lines(printed)?.into_iter().filter(|line| {
        let is_in_time = line["at"].as_u64().is_some_and(|at| at <= until);
        is_in_time && line["subject"].as_str().is_some_and(is_filtered)
    });
    let shapes = lines.map(|line| shape(line["subject"].as_str().unwrap_or(""), &line["data"]));
    Ok(shapes.collect())
}

#[tokio::test]
async fn a_recording_replays_to_what_the_live_system_did() -> Result<()> {
    let mut world = World::start().await?;
    let file = world.site.path().join("capture.ndjson");
    let recorder = record(&world.site, &[text(&file)?, "--messages", "6"]).await?;
    let client = &world.client;
    let input = async |subject: &str, body: Value| client.input(subject, body).await;
    input(CONNECT, inputs::connect("12345", "a", now_ms())).await?;
    input(CONNECT, inputs::connect("22222", "b", now_ms())).await?;
    input(HEARTBEAT, inputs::heartbeat("12345", "a", now_ms())).await?;
    client.publish_bytes(CONNECT, b"\xff".to_vec()).await?;
    client
        .publish(ONLINE, &inputs::online("67890", now_ms()))
        .await?;
    let goes = inputs::disconnect("12345", "a", now_ms(), "client_disconnect");
    input(DISCONNECT, goes).await?;
    let said = end(recorder).await?;
    assert!(said.contains("recorded 6 messages"), "{said}");
    assert!(said.contains("--messages"), "{said}");
    world.tape.hosts(FILTERED_OFFLINE, 1).await?;

    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    let capture = lines(&fs::read_to_string(&file)?)?;
    let subjects: Vec<_> = capture.iter().map(|line| &line["subject"]).collect();
    assert_eq!(
        subjects,
        [CONNECT, CONNECT, HEARTBEAT, CONNECT, ONLINE, DISCONNECT]
    );
    assert_eq!(capture[3]["payload"], "/w==");
    assert_eq!(capture[0]["data"]["metadata"]["socketId"], "socket_abc123");
    let until = capture[5]["at"].as_u64().context("a time")?;

    let printed = print(&world.site, &["replay", text(&file)?])?;
    let live = live(world.tape.seen());
    assert_eq!(live.len(), 3, "{live:?}");
    assert_eq!(replayed(&printed, until)?, live);
    world.end().await
}

#[tokio::test]
async fn it_ends_when_it_is_told_to_or_is_full_and_leaves_what_is_there_alone() -> Result<()> {
    let world = World::start().await?;
    let file = world.site.path().join("capture.ndjson");
    let recorder = record(&world.site, &[text(&file)?]).await?;
    let connect = || inputs::connect("12345", "a", now_ms());
    world.client.input(CONNECT, connect()).await?;
    let is_there = async || Ok((!fs::read_to_string(&file)?.is_empty()).then_some(()));
    presence_tests::wait::until("the line to be there", is_there).await?;
    recorder.terminate()?;
    let said = end(recorder).await?;
    assert!(said.contains("recorded 1 message ("), "{said}");
    assert!(said.contains("told to stop"), "{said}");
    let whole = fs::read_to_string(&file)?;
    assert_eq!(lines(&whole)?.len(), 1);

    let output = host::run(&world.site, &["record", text(&file)?])?;
    let stderr = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("is there already"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert_eq!(fs::read_to_string(&file)?, whole);

    let recorder = record(&world.site, &["-", "--bytes", "10"]).await?;
    world.client.input(CONNECT, connect()).await?;
    assert!(end(recorder).await?.contains("--bytes"));
    let recorder = record(&world.site, &["-", "--for", "1ms"]).await?;
    assert!(end(recorder).await?.contains("--for"));
    world.end().await
}

/// Ids and values that can't occur by chance.
const SECRETS: [&str; 9] = [
    "ada-lovelace",
    "ben@example.com",
    "charles-b",
    "the-choir",
    "tab-of-ada",
    "Mozilla",
    "socket_abc123",
    "nickname",
    "countess",
];

async fn fill(client: &Client) -> Result<()> {
    let bucket = async_nats::jetstream::new(client.nats.clone());
    let bucket = bucket.get_key_value("presence-directory").await?;
    for (key, value) in [
        (
            "contacts.ada-lovelace",
            json!(["ben@example.com", "mary-s"]),
        ),
        ("groups.the-choir", json!(["ada-lovelace", "charles-b"])),
        ("blocks.ada-lovelace", json!(["mary-s"])),
        (
            "settings.ada-lovelace",
            json!({"online": {"contactsExcept": ["ben@example.com"]}, "nickname": "countess"}),
        ),
    ] {
        bucket.put(key, value.to_string().into()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_redacted_recording_tells_nothing_of_anyone_and_decides_the_same() -> Result<()> {
    let kv = |site: Site| site.with("directory.source", "kv");
    let mut world = World::start_with(kv).await?;
    fill(&world.client).await?;
    world
        .until_visible_to("ada-lovelace", &["ben@example.com", "charles-b"])
        .await?;
    let file = world.site.path().join("capture.ndjson");
    let directory = world.site.path().join("redacted.json");
    let (file, directory) = (text(&file)?, text(&directory)?);
    let redact = ["--redact", "--keep", "device", "--messages", "2"];
    let args: Vec<_> = [file, "--directory", directory]
        .into_iter()
        .chain(redact)
        .collect();
    let recorder = record(&world.site, &args).await?;
    let from = world.tape.seen().len();
    let client = &world.client;
    let connect = inputs::connect("ada-lovelace", "tab-of-ada", now_ms());
    client.input(CONNECT, connect).await?;
    // The processor refuses this message, so its content is unknown.
    client
        .publish(CONNECT, &json!({"userId": ["ada-lovelace"]}))
        .await?;
    let goes = inputs::disconnect("ada-lovelace", "tab-of-ada", now_ms(), "ada-lovelace");
    client.input(DISCONNECT, goes).await?;
    let said = end(recorder).await?;
    assert!(said.contains("can't be told: 1"), "{said}");
    let went = |seen: &[ReceivedMessage]| {
        let mut new = seen.iter().skip(from);
        new.any(|seen| seen.subject == FILTERED_OFFLINE)
    };
    world.tape.until("the offline", went).await?;

    let (capture, contacts) = (fs::read_to_string(file)?, fs::read_to_string(directory)?);
    for secret in SECRETS.iter().chain(&["mary-s"]) {
        assert!(!capture.contains(secret), "{secret} is in {capture}");
        assert!(!contacts.contains(secret), "{secret} is in {contacts}");
    }
    let settings = &serde_json::from_str::<Value>(&contacts)?["settings"];
    let settings = settings.as_object().and_then(|all| all.values().next());
    let except = &settings.context("settings")?["online"]["contactsExcept"];
    assert!(except[0].as_str().is_some_and(|id| id.starts_with("user-")));

    // The configuration names the bucket, and `--directory` the file.
    let replay = ["replay", file, "--directory", directory];
    let printed = print(&world.site, &replay)?;
    let shapes = replayed(&printed, u64::MAX)?;
    let counts = |shapes: &[(String, Value, Value, Value)]| -> Vec<_> {
        let counted = shapes.iter().map(|(subject, _, viewers, metadata)| {
            let viewers = viewers.as_array().map(Vec::len);
            (subject.clone(), viewers, metadata.clone())
        });
        counted.collect()
    };
    assert_eq!(counts(&shapes), counts(&live(&world.tape.seen()[from..])));
    assert_eq!(shapes.len(), 2);
    let contacts: Value = serde_json::from_str(&contacts)?;
    assert!(contacts["contacts"][shapes[0].1.as_str().unwrap_or("")].is_array());

    // A rule can be tried on the recording.
    let rule = world.site.path().join("rule.wasm");
    fs::write(
        &rule,
        component::named(&component::load("groups")?, "contacts")?,
    )?;
    let diff: Vec<_> = replay
        .into_iter()
        .chain(["--json", "--plugin", text(&rule)?])
        .collect();
    let diff: Value = serde_json::from_str(&print(&world.site, &diff)?)?;
    assert_eq!(
        diff["lost"],
        json!({"pairs": 1, "users": 1, "viewers": 1}),
        "{diff}"
    );
    world.end().await
}

#[tokio::test]
async fn what_cannot_be_recorded_is_said_in_one_line() -> Result<()> {
    let away = Site::new("nats://127.0.0.1:1")?;
    for command in ["record", "replay"] {
        let help = print(&away, &[command, "--help"])?;
        assert!(help.contains(&format!("  presence {command} ")), "{help}");
    }
    let file = away.path().join("capture.ndjson");
    let fails = |site: &Site, code: i32, args: &[&str]| -> Result<String> {
        let output = host::run(site, args)?;
        let stderr = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        Ok(stderr)
    };
    let stderr = fails(&away, 1, &["record", text(&file)?])?;
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("can't connect to NATS"), "{stderr}");
    assert!(!file.exists());
    for wrong in [
        &["--for", "60"][..],
        &["--messages", "0"],
        &["--bytes", "0"],
        &["--keep", "device"],
    ] {
        let args: Vec<_> = ["record", "-"].iter().chain(wrong).copied().collect();
        fails(&away, 2, &args)?;
    }
    let asked = World::start_with(|site| site.with("directory.source", "request")).await?;
    let directory = asked.site.path().join("written.json");
    let args = ["record", text(&file)?, "--directory", text(&directory)?];
    let stderr = fails(&asked.site, 1, &args)?;
    assert!(stderr.contains("can't be written down"), "{stderr}");
    assert!(!file.exists() && !directory.exists());
    asked.end().await
}
