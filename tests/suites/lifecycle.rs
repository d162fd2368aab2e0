//! Starting, stopping, health, and what an operator is told.

use anyhow::Result;
use presence_tests::client::now_ms;
use presence_tests::host::{self, Host};
use presence_tests::site::Site;
use presence_tests::{http, tools};

use crate::inputs::{
    self, CONNECT, DISCONNECT, EVENTS, FILTERED_ONLINE, HEARTBEAT, ONLINE, SEED_MS,
};
use crate::world::World;

#[tokio::test]
async fn a_stop_drains_what_was_taken_in() -> Result<()> {
    const USERS: usize = 300;
    let mut world = World::start_with(|site| {
        let everyone = (0..USERS).map(|user| (format!("user-{user}"), vec!["viewer"]));
        let contacts: std::collections::BTreeMap<_, _> = everyone.collect();
        site.write_directory_value(&serde_json::json!({"contacts": contacts}))?;
        Ok(site)
    })
    .await?;
    for user in 0..USERS {
        let body = inputs::connect(&format!("user-{user}"), "c1", SEED_MS);
        world.client.publish(CONNECT, &body).await?;
    }
    // Stops in the middle of the load.
    world.tape.hosts(ONLINE, 1).await?;
    world.host.process.stop().await?;
    world.client.round_trip().await?;
    world
        .client
        .publish("presence.the-end", &serde_json::json!({}))
        .await?;
    world
        .tape
        .next("the end of the recording", |seen| {
            seen.subject == "presence.the-end"
        })
        .await?;

    let users = |subject: &str| {
        let seen = world
            .tape
            .seen()
            .iter()
            .filter(|seen| seen.subject == subject);
        let mut users: Vec<_> = seen.map(|seen| seen.text("userId").to_owned()).collect();
        users.sort_unstable();
        users
    };
    assert_eq!(users(ONLINE), users(EVENTS), "what was begun was finished");
    assert_eq!(
        users(ONLINE),
        users(FILTERED_ONLINE),
        "what was begun was finished"
    );
    Ok(())
}

#[tokio::test]
async fn a_stop_is_clean_without_a_broker() -> Result<()> {
    let mut world = World::start().await?;
    world.server.stop().await?;
    world.host.unready().await?;
    world.end().await
}

#[tokio::test]
async fn after_a_kill_heartbeats_adopt_their_connections_where_nothing_is_kept() -> Result<()> {
    let mut world = World::start_with(|site| site.with("state.dir", "")).await?;
    world
        .client
        .input(CONNECT, inputs::connect("12345", "c1", now_ms()))
        .await?;
    world.host.process.kill().await?;
    world.host = Host::start(&world.site).await?;
    world
        .client
        .input(HEARTBEAT, inputs::heartbeat("12345", "c1", now_ms()))
        .await?;
    let online = world.tape.hosts(ONLINE, 2).await?.remove(1);
    assert_eq!(online.field("metadata")["connId"], "c1");
    assert!(!world.site.path().join("presence-state").exists());
    world.end().await
}

#[tokio::test]
async fn health_and_metrics_mean_what_they_say() -> Result<()> {
    let world = World::start().await?;
    let port = world.site.http_port();
    let client = &world.client;
    client
        .input(CONNECT, inputs::connect("12345", "c1", now_ms()))
        .await?;
    for _ in 0..3 {
        client
            .input(HEARTBEAT, inputs::heartbeat("12345", "c1", now_ms()))
            .await?;
    }
    client
        .input(
            DISCONNECT,
            inputs::disconnect("12345", "c1", now_ms(), "logout"),
        )
        .await?;
    client.request(CONNECT, "nonsense").await?;

    assert_eq!(http::get(port, "/healthz").await?.status, 200);
    assert_eq!(http::get(port, "/readyz").await?.status, 200);
    assert_eq!(http::get(port, "/nothing-here").await?.status, 404);
    let metrics = world.host.metrics().await?;
    for (kind, count) in [("connect", 1.0), ("heartbeat", 3.0), ("disconnect", 1.0)] {
        let label = format!("kind=\"{kind}\"");
        let counted = http::metric(&metrics, "presence_inputs_total", &[&label]);
        assert!(
            counted >= count,
            "{kind} should be {count} or more in:\n{metrics}"
        );
    }
    let commented = metrics
        .lines()
        .filter(|line| line.starts_with("# HELP"))
        .count();
    assert!(commented > 0, "every metric says what it means:\n{metrics}");
    world.end().await
}

/// What `presence check` says, and its exit code.
fn check(site: &Site) -> Result<(Option<i32>, String)> {
    let output = host::run(site, &["check"])?;
    let says = [output.stdout, output.stderr].concat();
    Ok((
        output.status.code(),
        String::from_utf8_lossy(&says).into_owned(),
    ))
}

#[test]
fn a_sound_configuration_passes_the_check() -> Result<()> {
    let (code, says) = check(&Site::new("nats://127.0.0.1:1")?)?;
    assert_eq!(code, Some(0), "{says}");
    Ok(())
}

#[test]
fn an_unknown_key_is_named_with_its_line() -> Result<()> {
    let site = Site::new("nats://127.0.0.1:1")?;
    tools::write_atomically(
        &site.config_path(),
        "[tracker]\ngrace_ms = 5\ntimeut_ms = 500\n",
    )?;
    for command in ["check", "run"] {
        let output = host::run(&site, &[command])?;
        let says = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{command}: {says}");
        assert!(
            says.contains("timeut_ms"),
            "{command} should name the key: {says}"
        );
        assert!(
            says.contains("presence.toml:3"),
            "{command} should name the line: {says}"
        );
    }
    Ok(())
}

#[test]
fn the_check_says_all_that_is_wrong() -> Result<()> {
    let mut site = Site::new("nats://127.0.0.1:1")?;
    site.set_pipeline(&[
        ("no-such-filter", None),
        ("contacts", None),
        ("no-such-either", None),
    ])?;
    site.set("tracker.timeout_ms", 0)?;
    site.set("nats.creds", "no-such.creds")?;
    site.set("state.dir", "directory.json")?;
    site.write_directory("{\"contacts\": [")?;
    site.write_plugin("not-wasm", "this is no component")?;
    let (code, says) = check(&site)?;
    assert_eq!(code, Some(1), "{says}");
    for wrong in [
        "timeout_ms",
        "no-such.creds",
        "[state] dir",
        "no-such-filter",
        "no-such-either",
        "directory.json",
        "not-wasm.wasm",
    ] {
        assert!(says.contains(wrong), "{wrong} should be among:\n{says}");
    }
    Ok(())
}

#[test]
fn wrong_usage_is_another_code_than_failure() -> Result<()> {
    let site = Site::new("nats://127.0.0.1:1")?;
    let output = host::run(&site, &["replay", "no-such-file.ndjson"])?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let output = host::run(&site, &["run", "--no-such-option"])?;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    Ok(())
}
