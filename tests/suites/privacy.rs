//! What viewers are shown follows the rules, the directory and the configuration of
//! now, message by message; and a query says the same.

use anyhow::Result;
use presence_tests::client::now_ms;
use presence_tests::component;
use presence_tests::host::Host;
use presence_tests::site::Site;
use serde_json::{Value, json};
use toml::{Table, toml};

use crate::inputs::{self, CONNECT, FILTERED_OFFLINE, FILTERED_ONLINE};
use crate::world::{World, on};

const FILTERED_UPDATED: &str = "presence.filtered.user_updated";

/// What a connect and the ledger's entry come to.
const RECORDS: f64 = 2.0;

/// Contacts get the device and the browser, who shares a group gets the device.
fn tiers() -> Table {
    toml! {
        tiers = [
            { for = "contacts", keys = ["device", "userAgent"], last_seen = true },
            { for = "everyone", keys = ["device"] },
        ]
    }
}

/// Ben is ann's contact, and they share a group with cleo.
fn site(mut site: Site) -> Result<Site> {
    site.set_pipeline(&[
        ("contacts", None),
        ("groups", None),
        ("redact", Some(tiers())),
    ])?;
    directory(&site, &["ben"])?;
    Ok(site)
}

fn directory(site: &Site, contacts: &[&str]) -> Result<()> {
    site.write_directory_value(&json!({
        "contacts": {"ann": contacts},
        "groups": {"team": ["ann", "ben", "cleo"]},
    }))
}

async fn come(world: &mut World) -> Result<()> {
    let connect = inputs::connect("ann", "c1", now_ms());
    world.client.input(CONNECT, connect).await?;
    world.tape.hosts(FILTERED_ONLINE, 2).await?;
    Ok(())
}

/// What a viewer is answered of ann.
async fn asked(world: &World, viewer: &str) -> Result<Value> {
    let question = json!({"viewerId": viewer, "userIds": ["ann"]}).to_string();
    let answer = world.client.request("presence.query", question).await?;
    Ok(answer["users"][0].clone())
}

fn online(metadata: &Value) -> Value {
    json!({"userId": "ann", "status": "online", "metadata": metadata})
}

#[tokio::test]
async fn a_viewer_who_comes_to_another_tier_is_told_what_they_may_see_now() -> Result<()> {
    let mut world = World::start_with(site).await?;
    come(&mut world).await?;
    let browser = json!({"device": "web", "userAgent": "Mozilla/5.0..."});
    assert_eq!(asked(&world, "ben").await?, online(&browser));

    directory(&world.site, &[])?;
    let told = world.tape.hosts(FILTERED_ONLINE, 3).await?.remove(2);
    assert_eq!(told.visible_to(), ["ben"]);
    assert_eq!(*told.field("metadata"), json!({"device": "web"}));
    assert_eq!(
        asked(&world, "ben").await?,
        online(&json!({"device": "web"}))
    );

    // And back, with somebody else, who was in the other tier all along.
    directory(&world.site, &["ben", "cleo"])?;
    let told = world.tape.hosts(FILTERED_ONLINE, 4).await?.remove(3);
    assert_eq!(told.visible_to(), ["ben", "cleo"]);
    assert_eq!(*told.field("metadata"), browser);
    assert_eq!(asked(&world, "cleo").await?, online(&browser));
    assert!(on(world.tape.seen(), FILTERED_OFFLINE).is_empty());
    world.end().await
}

#[tokio::test]
async fn a_redactor_that_shows_less_is_told_even_if_it_was_changed_while_the_host_was_down()
-> Result<()> {
    let mut world = World::start_with(site).await?;
    come(&mut world).await?;
    world.host.until_saved(RECORDS).await?;
    world.host.process.kill().await?;
    world
        .site
        .set_stage("redact", "config", toml! { keys = ["device"] })?;
    world.host = Host::start(&world.site).await?;
    let told = world.tape.hosts(FILTERED_ONLINE, 3).await?.remove(2);
    assert_eq!(told.visible_to(), ["ben"], "cleo sees what she saw");
    assert_eq!(*told.field("metadata"), json!({"device": "web"}));

    // What viewers see doesn't differ by this: nobody is told anything.
    let from = world.host.log_len();
    let keys = toml! { keys = ["device", "location"] };
    world.site.set_stage("redact", "config", keys)?;
    let done = ["everyone online has been decided on again", "generation=2"];
    world.host.wait_for_log(from, &done).await?;
    let from = world.host.log_len();
    let keys = toml! { keys = ["userAgent"] };
    world.site.set_stage("redact", "config", keys)?;
    let done = ["everyone online has been decided on again", "generation=3"];
    world.host.wait_for_log(from, &done).await?;
    let told = world.tape.hosts(FILTERED_ONLINE, 4).await?.remove(3);
    assert_eq!(told.visible_to(), ["ben", "cleo"]);
    let browser = json!({"userAgent": "Mozilla/5.0..."});
    assert_eq!(*told.field("metadata"), browser);
    assert_eq!(asked(&world, "cleo").await?, online(&browser));
    world.end().await
}

#[tokio::test]
async fn where_statuses_are_on_what_is_shown_no_more_is_taken_back_by_an_update() -> Result<()> {
    let statuses = |it| {
        let mut site = site(it)?
            .with("status.enabled", true)?
            .with("inbox.enabled", true)?
            .with("status.min_interval_ms", 0)?;
        site.set_stage("redact", "config", toml! { keys = ["device", "activity"] })?;
        Ok(site)
    };
    let mut world = World::start_with(statuses).await?;
    let mut connect = inputs::connect("ann", "c1", now_ms());
    connect["metadata"]["activity"] = "typing".into();
    world.client.input(CONNECT, connect).await?;
    let told = world.tape.hosts(FILTERED_ONLINE, 1).await?.remove(0);
    let typing = json!({"device": "web", "activity": "typing"});
    assert_eq!(*told.field("metadata"), typing);

    let keys = toml! { keys = ["device"] };
    world.site.set_stage("redact", "config", keys)?;
    let told = world.tape.hosts(FILTERED_UPDATED, 1).await?.remove(0);
    assert_eq!(told.visible_to(), ["ben", "cleo"]);
    assert_eq!(*told.field("metadata"), json!({"device": "web"}));
    let inbox = world.tape.hosts("presence.inbox.cleo", 2).await?.remove(1);
    assert_eq!(inbox.text("type"), "user_updated");
    assert_eq!(*inbox.field("metadata"), json!({"device": "web"}));
    assert_eq!(
        asked(&world, "ben").await?,
        online(&json!({"device": "web"}))
    );
    assert_eq!(on(world.tape.seen(), FILTERED_ONLINE).len(), 1);
    world.end().await
}

#[tokio::test]
async fn one_stages_wish_to_be_asked_again_makes_no_other_stages_time_reusable() -> Result<()> {
    let reader = component::load("fixtures/reader")?;
    let prepare = |mut site: Site| {
        for name in ["clock", "alarm"] {
            site.write_plugin(name, component::named(&reader, name)?)?;
        }
        let steps = |step: toml::Value| toml! { steps = ["contacts", step] };
        let later = i64::try_from(now_ms() + 3_600_000)?;
        let alarm = steps(toml! { reconsider_at = later }.into());
        let clock = steps("now".into());
        site.set_pipeline(&[
            ("clock", Some(clock)),
            ("alarm", Some(alarm)),
            ("redact", None),
        ])?;
        for name in ["clock", "alarm"] {
            site.set_stage(name, "grants", vec!["widen"])?;
        }
        directory(&site, &["ben"])?;
        Ok(site)
    };
    let mut world = World::start_with(prepare).await?;
    for time in 1..=3 {
        let body = inputs::online("ann", now_ms());
        world.client.input(inputs::ONLINE, body).await?;
        world.tape.hosts(inputs::EVENTS, time).await?;
    }
    let metric = |name| world.host.metric(name, &[]);
    assert_eq!(metric("presence_verdicts_reused_total").await?, 0.0);
    world.end().await
}
