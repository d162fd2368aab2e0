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
