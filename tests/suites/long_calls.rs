//! A plugin's call that takes long keeps its own tenant waiting, and no other on the same thread.

use anyhow::{Result, ensure};
use presence_tests::client::{Client, ReceivedMessage, now_ms};
use presence_tests::component;
use presence_tests::host::Host;
use presence_tests::nats::NatsServer;
use presence_tests::site::Site;
use serde_json::json;
use toml::toml;

use crate::tenants::{tenant, with};

#[tokio::test]
async fn a_call_that_goes_on_for_ever_keeps_no_other_tenant_waiting() -> Result<()> {
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?;
    site.write_plugin("spin", component::load("fixtures/spin")?)?;
    let busy = with(
        tenant("busy"),
        "pipeline",
        vec![toml! { plugin = "spin" }, toml! { plugin = "redact" }],
    );
    let site = site
        .with("engine.workers", 1)?
        .with("tracker.timeout_ms", 2_000)?
        .with("engine.fuel", 1_000_000_000_000_i64)?
        .with("engine.deadline_ms", 60_000)?
        .with("tenant", vec![busy, tenant("quiet")])?;
    let host = Host::start(&site).await?;
    let client = Client::connect(&server.url()).await?;
    let mut tape = client.record("*.presence.events.>").await?;
    let connect = async |tenant: &str, user: &str| {
        let body = json!({"userId": user, "connId": "c", "timestamp": now_ms()});
        let subject = format!("{tenant}.presence.connect");
        client.publish(&subject, &body).await
    };
    for number in 0..30 {
        if number == 10 {
            connect("busy", "12345").await?;
        }
        let user = format!("user-{number}");
        connect("quiet", &user).await?;
        let came = |user: &str, seen: &ReceivedMessage| {
            seen.subject == "quiet.presence.events.user_online" && seen.body["userId"] == *user
        };
        tape.next("their online", |seen| came(&user, seen)).await?;
    }
    // The users send no heartbeats, so they time out.
    let left = |seen: &ReceivedMessage| {
        seen.subject == "quiet.presence.events.user_offline" && seen.body["userId"] == "user-29"
    };
    tape.next("their time-out", left).await?;
    let seen = tape.seen().iter();
    let of_busy = seen.filter(|seen| seen.subject.starts_with("busy."));
    ensure!(of_busy.count() == 0, "its call is under way still");
    drop(host);
    Ok(())
}
