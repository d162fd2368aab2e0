//! Plugins that fail while the host runs: filters fail closed, enrichers fail open, the event
//! becomes a dead letter, and the plugin gets into quarantine.

use anyhow::Result;
use presence_tests::client::now_ms;
use presence_tests::{component, http};
use serde_json::json;
use toml::toml;

use crate::inputs::{self, CONNECT, DISCONNECT, DLQ, EVENTS, FILTERED_OFFLINE, FILTERED_ONLINE};
use crate::world::World;

fn fixture(name: &str, as_plugin: &str) -> Result<Vec<u8>> {
    component::named(&component::load(&format!("fixtures/{name}"))?, as_plugin)
}

#[tokio::test]
async fn a_failing_filter_tells_nobody_and_its_successor_tells_them() -> Result<()> {
    let mut world = World::start_with(|mut site| {
        site.set_pipeline(&[
            ("contacts", None),
            ("picky", Some(toml! { user = "12345" })),
            ("redact", None),
        ])?;
        site.set("engine.retry_ms", 3_600_000)?;
        site.set("engine.retry_ms_max", 3_600_000)?;
        site.write_directory(r#"{"contacts": {"12345": ["67890"], "22222": ["67890"]}}"#)?;
        site.write_plugin("picky", component::load("fixtures/picky")?)?;
        site.set_stage("picky", "grants", vec!["widen"])?;
        Ok(site)
    })
    .await?;
    let client = world.client.clone();
    client
        .input(CONNECT, inputs::connect("12345", "c1", now_ms()))
        .await?;
    let dead = world.tape.hosts(DLQ, 1).await?.remove(0);
    assert_eq!(dead.text("reason"), "plugin-failed");
    assert_eq!(dead.text("subject"), "presence.events.user_online");
    assert!(dead.text("error").contains("picky"), "{:?}", dead.body);
    let event = world.tape.hosts(EVENTS, 1).await?.remove(0);
    assert_eq!(
        dead.text("payload").as_bytes(),
        event.bytes,
        "the event itself, as it was broadcast"
    );

    // Other events are processed.
    client
        .input(CONNECT, inputs::connect("22222", "c1", now_ms()))
        .await?;
    let filtered = world.tape.hosts(FILTERED_ONLINE, 1).await?.remove(0);
    assert_eq!(filtered.text("userId"), "22222");

    // Another generation decides at once on anyone who is pending.
    world
        .site
        .set_stage("picky", "config", toml! { user = "no-one" })?;
    let told = world.tape.next("12345 to be told of", |seen| {
        seen.subject == FILTERED_ONLINE && seen.text("userId") == "12345"
    });
    assert_eq!(told.await?.visible_to(), ["67890"]);
    world.end().await
}

#[tokio::test]
async fn a_plugins_first_failure_is_logged_with_its_user_unless_the_log_may_name_none() -> Result<()>
{
    for (names_users, user) in [(true, "user=\"12345\""), (false, "user=\"(hidden)\"")] {
        let mut world = World::start_with(|mut site| {
            site.set_pipeline(&[
                ("contacts", None),
                ("picky", Some(toml! { user = "12345" })),
                ("redact", None),
            ])?;
            site.write_plugin("picky", component::load("fixtures/picky")?)?;
            site.set_stage("picky", "grants", vec!["widen"])?;
            site.set("engine.retry_ms", 1_234)?;
            site.with("log.user_ids", names_users)
        })
        .await?;
        for conn in ["c1", "c2"] {
            let body = inputs::connect("12345", conn, now_ms());
            world.client.input(CONNECT, body).await?;
        }
        let words = [
            "WARN",
            "a plugin failed, and nobody new is told",
            "plugin=\"picky\"",
            user,
            "retry_in_ms=1234",
        ];
        let line = world.host.wait_for_log(0, &words).await?;
        assert_eq!(line.contains("12345"), names_users, "{line}");
        let failures = "presence_plugin_failures_total";
        world
            .host
            .until_metric(failures, &["plugin=\"picky\""], |n| n >= 1.0)
            .await?;
        let others = world.host.metric(failures, &["plugin=\"contacts\""]);
        assert_eq!(others.await?, 0.0);
        world.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_failing_redactor_leaves_the_bare_offline() -> Result<()> {
    let mut world = World::start_with(|mut site| {
        site.set_pipeline(&[("contacts", None), ("moody", None)])?;
        site.write_plugin("moody", component::load("fixtures/moody")?)?;
        Ok(site)
    })
    .await?;
    let client = world.client.clone();
    client
        .input(CONNECT, inputs::connect("12345", "c1", now_ms()))
        .await?;
    world.tape.hosts(FILTERED_ONLINE, 1).await?;
    let bye = inputs::disconnect("12345", "c1", now_ms(), "client_disconnect");
    client.input(DISCONNECT, bye).await?;
    let offline = world.tape.hosts(FILTERED_OFFLINE, 1).await?.remove(0);
    assert_eq!(offline.visible_to(), ["11111", "67890"]);
    assert_eq!(
        offline.fields(),
        ["type", "userId", "timestamp", "visibleTo"],
        "when the user was last seen is the redactor's to show"
    );
    let dead = world.tape.hosts(DLQ, 1).await?.remove(0);
    assert_eq!(dead.text("subject"), "presence.events.user_offline");
    assert!(dead.text("error").contains("moody"), "{:?}", dead.body);
    world.end().await
}

#[tokio::test]
async fn repeated_failure_ends_in_quarantine_and_the_last_good_filter_takes_over() -> Result<()> {
    let mut world = World::start_with(|mut site| {
        site.set_pipeline(&[("contacts", None), ("redact", None)])?;
        site.set_stage("contacts", "on_failure", "last-good")?;
        site.set("engine.workers", 1)?;
        site.set("engine.quarantine_failures", 3)?;
        Ok(site)
    })
    .await?;
    world.until_visible_to("12345", &["11111", "67890"]).await?;
    let from = world.host.log_len();
    world
        .site
        .write_plugin("contacts", fixture("trap", "contacts")?)?;
    world.host.wait_for_log(from, &["pipeline swapped"]).await?;
    for number in 0..3 {
        let user = format!("user-{number}");
        let body = inputs::connect(&user, "c1", now_ms());
        world.client.input(CONNECT, body).await?;
    }
    let line = world.host.wait_for_log(from, &["last good generation"]);
    assert!(line.await?.contains("contacts"));
    world.until_visible_to("12345", &["11111", "67890"]).await?;
    let metrics = world.host.metrics().await?;
    let label = ["plugin=\"contacts\""];
    assert_eq!(
        http::metric(&metrics, "presence_plugin_quarantined", &label),
        1.0,
        "{metrics}"
    );
    let ready = http::get(world.site.http_port(), "/readyz").await?.body;
    assert_eq!(ready, "ready\nplugin `contacts` is in quarantine\n");
    world.end().await
}

#[tokio::test]
async fn a_filter_that_fails_on_one_user_has_that_user_wait_and_nobody_else() -> Result<()> {
    let mut world = World::start_with(|mut site| {
        site.set_pipeline(&[
            ("contacts", None),
            ("picky", Some(toml! { user = "12345" })),
            ("redact", None),
        ])?;
        site.write_directory(r#"{"contacts": {"12345": ["67890"], "22222": ["67890"]}}"#)?;
        site.write_plugin("picky", component::load("fixtures/picky")?)?;
        site.set_stage("picky", "grants", vec!["widen"])?;
        // The event is tried again and again, by the only worker.
        for (key, value) in [
            ("engine.workers", 1),
            ("engine.quarantine_failures", 3),
            ("engine.quarantine_ms", 3_600_000),
            ("engine.retry_ms", 1),
            ("engine.retry_ms_max", 10),
        ] {
            site.set(key, value)?;
        }
        Ok(site)
    })
    .await?;
    let body = inputs::connect("12345", "c1", now_ms());
    world.client.input(CONNECT, body).await?;
    let failures = "presence_plugin_failures_total";
    world
        .host
        .until_metric(failures, &[], |n| n >= 20.0)
        .await?;
    world.until_visible_to("22222", &["67890"]).await?;
    let quarantined = ["plugin=\"picky\""];
    let quarantined = world
        .host
        .metric("presence_plugin_quarantined", &quarantined);
    assert_eq!(quarantined.await?, 0.0);
    world.end().await
}

#[tokio::test]
async fn failures_in_all_workers_count_together() -> Result<()> {
    const USERS: usize = 8;
    let world = World::start_with(|mut site| {
        site.set_pipeline(&[("trap", None), ("redact", None)])?;
        site.write_plugin("trap", component::load("fixtures/trap")?)?;
        site.set("engine.workers", 4)?;
        site.set("engine.quarantine_failures", 8)?;
        site.set("engine.retry_ms", 3_600_000)?;
        site.set("engine.retry_ms_max", 3_600_000)?;
        Ok(site)
    })
    .await?;
    for number in 0..USERS {
        let body = inputs::connect(&format!("user-{number}"), "c1", now_ms());
        world.client.input(CONNECT, body).await?;
    }
    let quarantined = "presence_plugin_quarantined";
    world
        .host
        .until_metric(quarantined, &["plugin=\"trap\""], |is| is == 1.0)
        .await?;
    world.end().await
}

#[tokio::test]
async fn a_component_that_asks_for_more_than_it_is_given_is_never_swapped_in() -> Result<()> {
    let mut world = World::start().await?;
    for (name, word) in [
        ("wants-wasi", "wasi:cli/environment"),
        ("bad-config", "refuses every configuration"),
        ("failing-self-test", "what is not so"),
    ] {
        let from = world.host.log_len();
        world
            .site
            .write_plugin("contacts", fixture(name, "contacts")?)?;
        world
            .host
            .wait_for_log(from, &["not swapped", word])
            .await?;
        let seen = world.probe("12345").await?;
        assert_eq!(seen.visible_to(), ["22222", "67890"], "{name}");
    }
    world.end().await
}

#[tokio::test]
async fn a_failing_enricher_is_passed_over() -> Result<()> {
    let mut world = World::start_with(|mut site| {
        site.set_pipeline(&[
            ("device-class", None),
            ("contacts", None),
            ("redact", Some(toml! { keys = ["device", "os"] })),
        ])?;
        // Not enough for the enricher, which reads a long user agent.
        site.set("engine.fuel", 1_000_000)?;
        site.set("tracker.metadata_bytes_max", 1_000_000)?;
        Ok(site)
    })
    .await?;
    let client = world.client.clone();
    let mut body = inputs::connect("12345", "c1", now_ms());
    body["metadata"]["userAgent"] = "Mozilla/5.0 (X11; Linux x86_64) Firefox/118.0".into();
    client.input(CONNECT, body.clone()).await?;
    let first = world.tape.hosts(FILTERED_ONLINE, 1).await?.remove(0);
    assert_eq!(
        *first.field("metadata"),
        json!({"device": "web", "os": "Linux"})
    );
    body["userId"] = "22222".into();
    body["metadata"]["userAgent"] = "x".repeat(200_000).into();
    client.input(CONNECT, body).await?;
    let dead = world.tape.hosts(DLQ, 1).await?.remove(0);
    assert_eq!(dead.text("reason"), "plugin-failed");
    assert!(dead.text("error").contains("fuel"), "{:?}", dead.body);
    let event = world.tape.hosts(EVENTS, 2).await?.remove(1);
    assert_eq!(
        event.text("userId"),
        "22222",
        "the event goes on without it"
    );
    assert_eq!(event.field("metadata").get("os"), None);
    world.end().await
}
