//! What is shown of a user who has several connections: the metadata of the newest.

use anyhow::Result;
use presence_tests::client::now_ms;
use presence_tests::site::Site;
use presence_tests::wait;
use serde_json::{Value, json};
use toml::toml;

use crate::inputs::{self, CONNECT, DISCONNECT, EVENTS, FILTERED_ONLINE, HEARTBEAT, ONLINE};
use crate::world::{World, on};

const FILTERED_UPDATED: &str = "presence.filtered.user_updated";

/// Ann's one contact is Ben, who sees devices and what enrichers add to them.
fn site(site: Site) -> Result<Site> {
    let mut site = site;
    let redact = toml! { keys = ["device", "os", "connId", "activity"] };
    site.set_pipeline(&[
        ("device-class", None),
        ("contacts", None),
        ("redact", Some(redact)),
    ])?;
    site.write_directory_value(&json!({"contacts": {"ann": ["ben"]}}))?;
    Ok(site)
}

async fn connect(world: &World, conn: &str, device: &str, agent: &str) -> Result<()> {
    let mut body = inputs::connect("ann", conn, now_ms());
    body["metadata"] = json!({"device": device, "userAgent": agent});
    world.client.input(CONNECT, body).await
}

async fn go(world: &World, conn: &str) -> Result<()> {
    let bye = inputs::disconnect("ann", conn, now_ms(), "client_disconnect");
    world.client.input(DISCONNECT, bye).await
}

/// The metadata in the answer to Ben's query about Ann.
async fn asked(world: &World) -> Result<Value> {
    let question = json!({"viewerId": "ben", "userIds": ["ann"]}).to_string();
    let answer = world.client.request("presence.query", question).await?;
    Ok(answer["users"][0]["metadata"].clone())
}

const LINUX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:109.0) Gecko/20100101 Firefox/118.0";
const ANDROID: &str = "Mozilla/5.0 (Android 13; Mobile; rv:109.0) Gecko/118.0 Firefox/118.0";

/// The metadata that a viewer is shown when one of the two connections is shown.
fn by(conn: &str) -> Value {
    match conn {
        "laptop" => json!({"device": "web", "os": "Linux", "connId": "laptop"}),
        _ => json!({"device": "mobile", "os": "Android", "connId": "phone"}),
    }
}

#[tokio::test]
async fn a_further_connection_is_no_event_and_the_next_is_shown_when_the_shown_one_goes()
-> Result<()> {
    let mut world = World::start_with(site).await?;
    connect(&world, "laptop", "web", LINUX).await?;
    connect(&world, "phone", "mobile", ANDROID).await?;
    assert_eq!(asked(&world).await?, by("laptop"));
    go(&world, "laptop").await?;
    let told = world.tape.hosts(FILTERED_ONLINE, 2).await?;
    let shown: Vec<_> = told.iter().map(|seen| seen.field("metadata")).collect();
    assert_eq!(shown, [&by("laptop"), &by("phone")]);
    assert_eq!(told[1].visible_to(), ["ben"]);
    assert_eq!(asked(&world).await?, by("phone"));

    // A connection that isn't shown comes and goes unnoticed.
    connect(&world, "tablet", "web", LINUX).await?;
    go(&world, "tablet").await?;
    assert_eq!(asked(&world).await?, by("phone"));
    go(&world, "phone").await?;
    let seen = world.all_about("ann").await?;
    assert_eq!(on(&seen, FILTERED_ONLINE).len(), 2);
    // A change of the shown connection is no transition: the user comes online only once.
    assert_eq!(on(&seen, ONLINE).len(), 1);
    let events = on(&seen, EVENTS);
    let types: Vec<_> = events.iter().map(|body| body["type"].clone()).collect();
    assert_eq!(types, ["user_online", "user_offline"]);
    world.end().await
}

#[tokio::test]
async fn where_statuses_are_on_the_newest_is_shown_and_told_as_an_update() -> Result<()> {
    let mut world = World::start_with(|it| {
        site(it)?
            .with("status.enabled", true)?
            .with("status.min_interval_ms", 0)
    })
    .await?;
    connect(&world, "laptop", "web", LINUX).await?;
    connect(&world, "phone", "mobile", ANDROID).await?;
    world.tape.hosts(FILTERED_UPDATED, 1).await?;
    assert_eq!(asked(&world).await?, by("phone"));
    go(&world, "phone").await?;
    let told = world.tape.hosts(FILTERED_UPDATED, 2).await?;
    let shown: Vec<_> = told.iter().map(|seen| seen.field("metadata")).collect();
    assert_eq!(shown, [&by("phone"), &by("laptop")]);
    assert_eq!(asked(&world).await?, by("laptop"));
    let seen = world.all_about("ann").await?;
    assert_eq!(on(&seen, "presence.events.user_updated").len(), 2);
    assert_eq!(on(&seen, FILTERED_ONLINE).len(), 1);
    world.end().await
}

#[tokio::test]
async fn typing_ends_by_itself() -> Result<()> {
    let mut world = World::start_with(|it| {
        site(it)?
            .with("status.enabled", true)?
            .with("status.min_interval_ms", 0)?
            .with("status.typing_ms", 300)
    })
    .await?;
    connect(&world, "laptop", "web", LINUX).await?;
    let mut body = inputs::heartbeat("ann", "laptop", now_ms());
    body["metadata"] = json!({"activity": "typing"});
    world.client.input(HEARTBEAT, body).await?;
    let told = world.tape.hosts(FILTERED_UPDATED, 2).await?;
    let activities: Vec<_> = told
        .iter()
        .map(|seen| seen.field("metadata")["activity"].clone())
        .collect();
    assert_eq!(activities, ["typing", "active"]);
    wait::until("a query to say so, too", async || {
        Ok((asked(&world).await?["activity"] == "active").then_some(()))
    })
    .await?;
    world.end().await
}
