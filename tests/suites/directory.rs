//! The directory changes while the host runs.

use std::fs;

use anyhow::Result;
use serde_json::json;

use crate::world::World;

#[tokio::test]
async fn a_renamed_file_takes_effect() -> Result<()> {
    let mut world = World::start().await?;
    world.until_visible_to("12345", &["22222", "67890"]).await?;
    let directory = json!({"contacts": {"12345": ["33333"]}, "groups": {}, "blocks": {}});
    world.site.write_directory_value(&directory)?;
    world.until_visible_to("12345", &["33333"]).await?;
    world.end().await
}

#[tokio::test]
async fn a_file_rewritten_in_place_takes_effect() -> Result<()> {
    let mut world = World::start().await?;
    fs::write(
        world.site.directory_path(),
        r#"{"contacts": {"12345": ["33333", "44444"]}}"#,
    )?;
    world.until_visible_to("12345", &["33333", "44444"]).await?;
    fs::write(
        world.site.directory_path(),
        r#"{"contacts": {"12345": ["55555"]}}"#,
    )?;
    world.until_visible_to("12345", &["55555"]).await?;
    world.end().await
}

#[tokio::test]
async fn a_broken_file_keeps_what_was_read_and_says_so() -> Result<()> {
    let mut world = World::start().await?;
    let from = world.host.log_len();
    world.site.write_directory(r#"{"contacts": {"12345": ["#)?;
    world.host.wait_for_log(from, &["directory.json"]).await?;
    let seen = world.probe("12345").await?;
    assert_eq!(seen.visible_to(), ["22222", "67890"]);
    world
        .site
        .write_directory(r#"{"contacts": {"12345": ["33333"]}}"#)?;
    world.until_visible_to("12345", &["33333"]).await?;
    world.end().await
}

#[tokio::test]
async fn a_bucket_is_followed_and_read_again_after_the_broker_was_away() -> Result<()> {
    let mut world = World::start_with(|site| site.with("directory.source", "kv")).await?;
    let bucket = async_nats::jetstream::new(world.client.nats.clone());
    // The host made it.
    let bucket = bucket.get_key_value("presence-directory").await?;
    let put = async |key: &str, value: serde_json::Value| {
        bucket.put(key, value.to_string().into()).await.map(drop)
    };
    put("contacts.12345", json!(["33333", "ann@example.com"])).await?;
    put("groups.team-a", json!(["12345", "44444"])).await?;
    world
        .until_visible_to("12345", &["33333", "44444", "ann@example.com"])
        .await?;
    put("contacts.=YW5uQGV4YW1wbGUuY29t", json!(["12345"])).await?;
    world
        .until_visible_to("ann@example.com", &["12345"])
        .await?;

    // An entry that can't be read changes nothing, and is logged.
    let from = world.host.log_len();
    put("blocks.12345", json!("33333")).await?;
    world.host.wait_for_log(from, &["blocks.12345"]).await?;
    put("blocks.12345", json!(["33333"])).await?;
    world
        .until_visible_to("12345", &["44444", "ann@example.com"])
        .await?;

    world.server.restart().await?;
    world.host.ready().await?;
    world.client = presence_tests::client::Client::connect(&world.server.url()).await?;
    world.tape = world.client.record("presence.>").await?;
    let bucket = async_nats::jetstream::new(world.client.nats.clone());
    let bucket = bucket.get_key_value("presence-directory").await?;
    bucket.delete("groups.team-a").await?;
    world
        .until_visible_to("12345", &["ann@example.com"])
        .await?;
    world.end().await
}
