//! The machine's clock is set while the host runs. Timeouts go on as before, rules that depend on
//! the time of day are asked again, and no body has an earlier time than one before it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use presence_tests::client::{ReceivedMessage, Recording, now_ms};
use presence_tests::component;
use presence_tests::host::Host;
use presence_tests::site::Site;
use serde_json::{Value, json};
use toml::toml;

use crate::heartbeat_senders::HeartbeatSenders;
use crate::inputs::{
    self, CONNECT, DISCONNECT, DLQ, FILTERED_OFFLINE, FILTERED_ONLINE, HEARTBEAT, OFFLINE, ONLINE,
};
use crate::world::{World, on};

const HOUR_MS: i64 = 3_600_000;
const MINUTE_MS: i64 = 60_000;
const TIMEOUT_MS: i64 = 3_000;

/// How many users connect late: more than the records that are written about all others meanwhile.
const LATE: usize = 20;

/// The user on whom the pipeline fails.
const UNLUCKY: &str = "unlucky";

/// Everyone has one contact, the viewer.
fn directory(users: &[&str], blocked: &[&str]) -> Value {
    let each = |users: &[&str]| -> BTreeMap<String, Value> {
        let viewer = |user: &&str| ((*user).to_owned(), json!(["viewer"]));
        users.iter().map(viewer).collect()
    };
    json!({"contacts": each(users), "blocks": each(blocked)})
}

fn site(site: Site) -> Result<Site> {
    site.with("tracker.timeout_ms", TIMEOUT_MS)?
        .with("state.flush_ms", 10)?
        .with("engine.workers", 2)
}

async fn connect(world: &World, user: &str) -> Result<()> {
    let body = inputs::connect(user, "c1", now_ms());
    world.client.input(CONNECT, body).await
}

async fn disconnect(world: &World, user: &str) -> Result<()> {
    let body = inputs::disconnect(user, "c1", now_ms(), "client_disconnect");
    world.client.input(DISCONNECT, body).await
}

/// Whom the host announced on a subject, in order.
fn users(seen: &[ReceivedMessage], subject: &str) -> Vec<String> {
    let text = |body: Value| body["userId"].as_str().unwrap_or_default().to_owned();
    on(seen, subject).into_iter().map(text).collect()
}

/// Records until the host has announced a user on a subject this many times, and returns the last
/// message.
async fn until(
    tape: &mut Recording,
    subject: &str,
    user: &str,
    times: usize,
) -> Result<ReceivedMessage> {
    let is_it = |seen: &&ReceivedMessage| seen.subject == subject && seen.text("userId") == user;
    let what = format!("{user} on {subject}, {times} times");
    tape.until(&what, |seen| seen.iter().filter(is_it).count() >= times)
        .await?;
    let last = tape.seen().iter().rev().find(is_it).cloned();
    last.context("it has been waited for")
}

fn timestamp(seen: &ReceivedMessage) -> u64 {
    seen.field("timestamp").as_u64().unwrap_or_default()
}

/// Whatever the clock was set to, no source has an event with an earlier time than the one before,
/// in the same epoch. (When a viewer gains sight of a user, the message has the time since when the
/// user is online: it is not checked.)
fn assert_times_never_run_back(seen: &[ReceivedMessage]) {
    let mut latest = BTreeMap::new();
    let happens = |seen: &&ReceivedMessage| {
        seen.is_from_host() && [ONLINE, OFFLINE, DLQ].contains(&&*seen.subject)
    };
    for seen in seen.iter().filter(happens) {
        let (source, epoch, _) = seen.sequence();
        let latest = latest.entry((source, epoch)).or_insert(0);
        assert!(timestamp(seen) >= *latest, "{latest}, and then: {seen:#?}");
        *latest = timestamp(seen);
    }
    assert!(!latest.is_empty());
}

#[tokio::test]
async fn an_hour_back_stops_nothing() -> Result<()> {
    let late: Vec<_> = (0..LATE).map(|number| format!("late-{number}")).collect();
    let mut all = vec!["speaker", "silent", "leaver", "blocked", UNLUCKY];
    all.extend(late.iter().map(String::as_str));
    let picky = component::load("fixtures/picky")?;
    let mut world = World::start_with(|it| {
        let mut site = site(it)?
            .with("tracker.grace_ms", 300)?
            .with("engine.retry_ms", 100)?;
        site.write_plugin("picky", picky)?;
        site.set_pipeline(&[
            ("picky", Some(toml! { user = UNLUCKY })),
            ("blocklist", None),
            ("redact", None),
        ])?;
        site.set_stage("picky", "grants", vec!["widen"])?;
        site.write_directory_value(&directory(&all, &[]))?;
        Ok(site)
    })
    .await?;
    let _speaker = HeartbeatSenders::start(&world.client, &["speaker".to_owned()]);
    let _blocked = HeartbeatSenders::start(&world.client, &["blocked".to_owned()]);
    for user in ["speaker", "silent", "leaver", "blocked"] {
        connect(&world, user).await?;
        until(&mut world.tape, FILTERED_ONLINE, user, 1).await?;
    }

    world.site.set_wall_clock(-HOUR_MS)?;
    let line = world.host.wait_for_log(0, &["clock was set back"]).await?;
    // A grace ends, a lease ends, and a new block is told.
    let heartbeat = |user| inputs::heartbeat(user, "c1", now_ms());
    world.client.input(HEARTBEAT, heartbeat("silent")).await?;
    disconnect(&world, "leaver").await?;
    until(&mut world.tape, OFFLINE, "leaver", 1).await?;
    let gone = until(&mut world.tape, OFFLINE, "silent", 1).await?;
    assert_eq!(gone.text("reason"), "timeout");
    world
        .site
        .write_directory_value(&directory(&all, &["blocked"]))?;
    until(&mut world.tape, FILTERED_OFFLINE, "blocked", 1).await?;
    // What failed is tried again, and again.
    connect(&world, UNLUCKY).await?;
    world.tape.hosts(DLQ, 1).await?;
    let failures = "presence_plugin_failures_total";
    world
        .host
        .until_metric(failures, &[], |it| it >= 4.0)
        .await?;
    // A user who was gone is back with the next heartbeat: it is newer than all messages before it.
    world.client.input(HEARTBEAT, heartbeat("silent")).await?;
    until(&mut world.tape, ONLINE, "silent", 2).await?;

    // All of it is saved, and what is saved holds over a restart in the past.
    let records = "presence_state_records_total";
    let before = world.host.metric(records, &[]).await?;
    for user in &late {
        connect(&world, user).await?;
    }
    // Two records for each of these users, and few for those who go on sending heartbeats. So the
    // first of them is stored.
    let saved = |it: f64| it >= before + 2.0 * LATE as f64;
    world.host.until_metric(records, &[], saved).await?;
    let late_speaker = HeartbeatSenders::start(&world.client, &late[..1]);
    world.host.process.kill().await?;
    world.host = Host::start(&world.site).await?;
    world.client.input(HEARTBEAT, heartbeat(&late[0])).await?;
    drop(late_speaker);
    disconnect(&world, &late[0]).await?;
    until(&mut world.tape, FILTERED_OFFLINE, &late[0], 1).await?;

    world.tape.catch_up(&world.client).await?;
    assert_times_never_run_back(world.tape.seen());
    let online = users(world.tape.seen(), ONLINE);
    for user in ["speaker", "blocked", "leaver", "late-0"] {
        let times = online.iter().filter(|it| *it == user).count();
        assert_eq!(times, 1, "{user}: {online:?}");
    }
    assert!(!users(world.tape.seen(), OFFLINE).contains(&"blocked".to_owned()));
    assert!(line.contains("WARN"), "{line}");
    world.end().await
}

#[tokio::test]
async fn two_minutes_forward_and_back_end_nothing_but_what_goes_by_the_time_of_day() -> Result<()> {
    let speaking: Vec<_> = (0..10).map(|number| format!("speaker-{number}")).collect();
    let mut all: Vec<_> = speaking.iter().map(String::as_str).collect();
    all.extend(["silent", "leaver", "stated"]);
    let reader = component::load("fixtures/reader")?;
    let until_ms = i64::try_from(now_ms())? + MINUTE_MS;
    let mut world = World::start_with(|it| {
        let mut site = site(it)?
            .with("tracker.grace_ms", MINUTE_MS)?
            .with("tracker.statement_ttl_ms", MINUTE_MS)?;
        site.write_plugin("hours", component::named(&reader, "hours")?)?;
        site.set_pipeline(&[
            ("contacts", None),
            ("hours", Some(toml! { steps = [{ until = until_ms }] })),
            ("redact", None),
        ])?;
        site.set_stage("hours", "grants", vec!["widen"])?;
        site.write_directory_value(&directory(&all, &[]))?;
        Ok(site)
    })
    .await?;
    let _speakers = HeartbeatSenders::start(&world.client, &speaking);
    for user in speaking
        .iter()
        .map(String::as_str)
        .chain(["silent", "leaver"])
    {
        connect(&world, user).await?;
        until(&mut world.tape, FILTERED_ONLINE, user, 1).await?;
    }
    let stated = inputs::online("stated", now_ms());
    world.client.input(ONLINE, stated).await?;
    disconnect(&world, "leaver").await?;

    let set_at = now_ms();
    world.site.set_wall_clock(2 * MINUTE_MS)?;
    world
        .host
        .wait_for_log(0, &["clock was set forward"])
        .await?;
    // The time for which the rule waits has come, and bodies have the new time.
    for user in &all {
        let gone = until(&mut world.tape, FILTERED_OFFLINE, user, 1).await?;
        assert!(timestamp(&gone) >= set_at + 110_000, "{}", gone.body);
    }
    // A lease has its usual length.
    let gone = until(&mut world.tape, OFFLINE, "silent", 1).await?;
    assert_eq!(gone.text("reason"), "timeout");
    assert!(timestamp(&gone) >= set_at + 110_000, "{}", gone.body);

    world.site.set_wall_clock(0)?;
    world.host.wait_for_log(0, &["clock was set back"]).await?;
    until(&mut world.tape, FILTERED_ONLINE, "speaker-0", 2).await?;
    connect(&world, "leaver").await?;
    until(&mut world.tape, FILTERED_ONLINE, "stated", 2).await?;
    // When all about this user has come, all about the others has come, too.
    world.all_about("silent").await?;
    let seen = world.tape.seen();
    let hosts: Vec<_> = seen
        .iter()
        .filter(|it| it.is_from_host())
        .cloned()
        .collect();
    assert_eq!(users(&hosts, OFFLINE), ["silent"], "nobody else has gone");
    assert_eq!(users(&hosts, ONLINE).len(), 12, "and nobody came anew");
    assert_times_never_run_back(&hosts);
    world.end().await
}
