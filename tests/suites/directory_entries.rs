//! The entries of a directory are read strictly, wherever they come from.

use anyhow::{Result, ensure};
use async_nats::jetstream::kv::Store;
use presence_tests::client::now_ms;
use presence_tests::host::Host;
use serde_json::json;

use crate::inputs::{self, CONNECT, EVENTS, FILTERED_ONLINE};
use crate::world::World;

const REFUSED: &str = "presence_directory_refused_entries";

async fn world() -> Result<(World, Store)> {
    let world = World::start_with(|site| site.with("directory.source", "kv")).await?;
    let bucket = bucket(&world).await?;
    Ok((world, bucket))
}

async fn bucket(world: &World) -> Result<Store> {
    let jetstream = async_nats::jetstream::new(world.client.nats.clone());
    Ok(jetstream.get_key_value("presence-directory").await?)
}

async fn put(bucket: &Store, key: &str, value: &str) -> Result<()> {
    bucket.put(key, value.to_owned().into()).await?;
    Ok(())
}

async fn until_refused(world: &World, of: &str, count: f64) -> Result<()> {
    let label = format!("for=\"{of}\"");
    let host = &world.host;
    host.until_metric(REFUSED, &[&label], |it| it == count)
        .await
}

#[tokio::test]
async fn a_file_in_which_a_key_is_there_twice_is_refused_whatever_the_section() -> Result<()> {
    let mut world = World::start().await?;
    for text in [
        r#"{"settings": {"12345": {"invisible": true, "invisible": false}}}"#,
        r#"{"settings": {"12345": {"invisible": true}, "12345": {}}}"#,
        r#"{"blocks": {"12345": ["67890"], "12345": []}}"#,
        r#"{"settings": {"": {}}}"#,
    ] {
        let from = world.host.log_len();
        world.site.write_directory(text)?;
        let words = ["directory.json", "line 1 column"];
        world.host.wait_for_log(from, &words).await?;
        let seen = world.probe("12345").await?;
        ensure!(seen.visible_to() == ["22222", "67890"], "{text}");
    }
    world.end().await
}

#[tokio::test]
async fn a_key_that_is_not_canonical_is_refused_at_once_and_at_the_next_start() -> Result<()> {
    let (mut world, bucket) = world().await?;
    put(&bucket, "contacts.12345", r#"["67890", "11111"]"#).await?;
    world.until_visible_to("12345", &["11111", "67890"]).await?;
    let from = world.host.log_len();
    // Another way to write `blocks.12345`, and two keys that would fight.
    put(&bucket, "contacts.=MTIzNDU", r#"["33333"]"#).await?;
    let words = ["contacts.=MTIzNDU", "write it as `contacts.12345`"];
    world.host.wait_for_log(from, &words).await?;
    put(&bucket, "blocks.ann.b", r#"["1"]"#).await?;
    let words = ["blocks.ann.b", "write it as `blocks.=YW5uLmI`"];
    world.host.wait_for_log(from, &words).await?;
    until_refused(&world, "key", 2.0).await?;
    let seen = world.probe("12345").await?;
    ensure!(seen.visible_to() == ["11111", "67890"]);

    world.host.process.stop().await?;
    world.host = Host::start(&world.site).await?;
    until_refused(&world, "key", 2.0).await?;
    let seen = world.probe("12345").await?;
    ensure!(seen.visible_to() == ["11111", "67890"]);
    bucket.delete("contacts.=MTIzNDU").await?;
    bucket.delete("blocks.ann.b").await?;
    until_refused(&world, "key", 0.0).await?;
    world.end().await
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_holds_its_last_value_over_a_restart() -> Result<()> {
    let (mut world, bucket) = world().await?;
    put(&bucket, "contacts.12345", r#"["67890", "11111"]"#).await?;
    put(&bucket, "blocks.12345", r#"["11111"]"#).await?;
    world.until_visible_to("12345", &["67890"]).await?;
    put(&bucket, "blocks.12345", r#"["11111""#).await?;
    until_refused(&world, "value", 1.0).await?;
    let seen = world.probe("12345").await?;
    ensure!(seen.visible_to() == ["67890"]);

    world.host.process.stop().await?;
    world.host = Host::start(&world.site).await?;
    until_refused(&world, "value", 1.0).await?;
    let seen = world.probe("12345").await?;
    ensure!(seen.visible_to() == ["67890"]);
    put(&bucket, "blocks.12345", "[]").await?;
    world.until_visible_to("12345", &["11111", "67890"]).await?;
    until_refused(&world, "value", 0.0).await?;
    world.end().await
}

#[tokio::test]
async fn of_a_user_whose_entry_cannot_be_read_nobody_new_is_told() -> Result<()> {
    let (mut world, bucket) = world().await?;
    put(&bucket, "contacts.1", r#"["67890"]"#).await?;
    put(&bucket, "contacts.2", r#"["67890"]"#).await?;
    put(&bucket, "blocks.1", r#"{"67890": true}"#).await?;
    until_refused(&world, "value", 1.0).await?;
    for user in ["1", "2"] {
        let body = inputs::connect(user, "c1", now_ms());
        world.client.input(CONNECT, body).await?;
    }
    world.tape.hosts(EVENTS, 2).await?;
    let online = world.tape.hosts(FILTERED_ONLINE, 1).await?;
    ensure!(online[0].text("userId") == "2");
    let query = json!({"viewerId": "67890", "userIds": ["1"]});
    let answer = world.client.request("presence.query", query.to_string());
    ensure!(!answer.await?.to_string().contains("online"));

    put(&bucket, "blocks.1", "[]").await?;
    let online = world.tape.hosts(FILTERED_ONLINE, 2).await?;
    ensure!(online[1].text("userId") == "1" && online[1].visible_to() == ["67890"]);
    world.end().await
}
