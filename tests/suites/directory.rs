//! The directory changes while the host runs, as a file and as a KV bucket.

use std::fs;

use anyhow::Result;
use async_nats::jetstream;
use async_nats::jetstream::kv::Store;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use presence_tests::client::{Client, now_ms};
use presence_tests::host::Host;
use presence_tests::nats::NatsServer;
use presence_tests::site::Site;
use serde_json::json;

use crate::inputs::{self, CONNECT};
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

/// A user whose id is no valid part of a key.
const AWKWARD: &str = "anna maria.o'neil@example.com";

fn key(kind: &str, id: &str) -> String {
    let plain = id
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if plain {
        format!("{kind}.{id}")
    } else {
        format!("{kind}.={}", URL_SAFE_NO_PAD.encode(id))
    }
}

async fn put(store: &Store, kind: &str, id: &str, viewers: &[&str]) -> Result<()> {
    store
        .put(key(kind, id), json!(viewers).to_string().into())
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_kv_bucket_is_read_and_watched() -> Result<()> {
    let server = NatsServer::start().await?;
    let client = Client::connect(&server.url()).await?;
    let config = jetstream::kv::Config {
        bucket: "presence-directory".into(),
        ..Default::default()
    };
    let store = jetstream::new(client.nats.clone())
        .create_key_value(config)
        .await?;
    put(&store, "contacts", "12345", &["67890", "11111"]).await?;
    put(&store, "groups", "team-a", &["12345", "22222"]).await?;
    put(&store, "blocks", "12345", &["11111"]).await?;
    put(&store, "contacts", AWKWARD, &["67890", AWKWARD]).await?;

    let site = Site::new(&server.url())?.with("directory.source", "kv")?;
    let tape = client.record("presence.>").await?;
    let host = Host::start(&site).await?;
    let mut world = World {
        host,
        client,
        tape,
        site,
        server,
    };
    world.until_visible_to("12345", &["22222", "67890"]).await?;
    world.until_visible_to(AWKWARD, &["67890"]).await?;

    store.delete(key("blocks", "12345")).await?;
    world
        .until_visible_to("12345", &["11111", "22222", "67890"])
        .await?;
    put(&store, "groups", "team-a", &["12345", AWKWARD]).await?;
    world
        .until_visible_to("12345", &["11111", "67890", AWKWARD])
        .await?;

    // A value that is no list is refused by itself; the others go on.
    store.put(key("contacts", "12345"), "{".into()).await?;
    put(&store, "contacts", "33333", &["44444"]).await?;
    world.until_visible_to("33333", &["44444"]).await?;
    world
        .client
        .input(CONNECT, inputs::connect("12345", "last", now_ms()))
        .await?;
    world.end().await
}
