//! Which plugins are in force outlives a restart, and a file that is missing, or was
//! refused, never brings a built-in plugin back by itself.

use std::fs;

use anyhow::{Result, ensure};
use presence_tests::component;
use presence_tests::host::{self, Host};
use serde_json::Value;

use crate::world::World;

/// Who sees 12345 by the built-in `contacts`, and by `groups` in its place.
const BY_CONTACT: [&str; 2] = ["11111", "67890"];
const BY_GROUP: [&str; 1] = ["22222"];

/// A world in which a file overrides the built-in `contacts`.
async fn overridden() -> Result<World> {
    let mut world = World::start_with(|mut site| {
        site.set_pipeline(&[("contacts", None), ("redact", None)])?;
        site.write_plugin("contacts", groups_as_contacts()?)?;
        Ok(site)
    })
    .await?;
    world.until_visible_to("12345", &BY_GROUP).await?;
    Ok(world)
}

fn groups_as_contacts() -> Result<Vec<u8>> {
    component::named(&component::load("groups")?, "contacts")
}

/// The file that notes what is in force.
fn noted(world: &World) -> Result<Value> {
    let path = world
        .site
        .path()
        .join("presence-state/presence.plugins.json");
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[tokio::test]
async fn what_is_in_force_is_said_at_the_start_and_noted() -> Result<()> {
    let mut world = overridden().await?;
    let line = world.host.wait_for_log(0, &["in force: contacts"]).await?;
    ensure!(line.contains("plugins.d/contacts.wasm, sha256:"), "{line}");
    ensure!(line.contains("redact 0.1.0 (built-in, sha256:"), "{line}");
    let note = noted(&world)?;
    let sources: Vec<_> = [0, 1]
        .map(|place| {
            note["plugins"][place]["source"]
                .as_str()
                .unwrap_or_default()
        })
        .into();
    ensure!(sources[0].ends_with("plugins.d/contacts.wasm"), "{note}");
    assert_eq!(sources[1], "built-in", "{note}");
    // A swap is noted, too.
    world
        .site
        .set_pipeline(&[("groups", None), ("redact", None)])?;
    world
        .host
        .wait_for_log(0, &["pipeline swapped: groups 0.1.0 (built-in"])
        .await?;
    presence_tests::wait::until("the swap to be noted", async || {
        Ok((noted(&world)?["plugins"][0]["plugin"] == "groups").then_some(()))
    })
    .await?;
    let note = noted(&world)?;
    assert_eq!(note["plugins"][2]["plugin"], "contacts", "{note}");
    assert_eq!(note["plugins"][2]["in_pipeline"], false, "{note}");
    world.end().await
}

#[tokio::test]
async fn a_start_without_the_file_in_force_refuses_and_says_the_ways_out() -> Result<()> {
    let mut world = overridden().await?;
    world.host.process.kill().await?;
    let file = world.site.plugin_path("contacts");
    let aside = world.site.path().join("aside.wasm");
    fs::rename(&file, &aside)?;
    let digest = noted(&world)?["plugins"][0]["sha256"].to_string();
    for command in ["run", "check"] {
        let refusal = host::run(&world.site, &[command])?;
        assert_eq!(refusal.status.code(), Some(1));
        let said = String::from_utf8(refusal.stderr)?;
        for word in [
            "`contacts` 0.1.0",
            digest.trim_matches('"'),
            "put the file back",
            "source = \"built-in\"",
            "presence.plugins.json",
        ] {
            ensure!(said.contains(word), "{command} doesn't say {word}: {said}");
        }
    }
    // Without the folder, too.
    fs::remove_dir(world.site.path().join("plugins.d"))?;
    let refusal = host::run(&world.site, &["run"])?;
    assert_eq!(refusal.status.code(), Some(1));

    // With the file, it starts.
    fs::create_dir(world.site.path().join("plugins.d"))?;
    fs::rename(&aside, &file)?;
    world.host = Host::start(&world.site).await?;
    world.until_visible_to("12345", &BY_GROUP).await?;

    // So does a start without the file, after the operator has said so, and from then on.
    world.host.process.kill().await?;
    fs::remove_file(&file)?;
    world.site.set_stage("contacts", "source", "built-in")?;
    world.host = Host::start(&world.site).await?;
    world.until_visible_to("12345", &BY_CONTACT).await?;
    world.host.process.kill().await?;
    world
        .site
        .set_pipeline(&[("contacts", None), ("redact", None)])?;
    world.host = Host::start(&world.site).await?;
    world.until_visible_to("12345", &BY_CONTACT).await?;
    world.end().await
}

#[tokio::test]
async fn a_file_that_has_to_be_there_is_never_replaced_by_what_is_built_in() -> Result<()> {
    let mut world = World::start().await?;
    let from = world.host.log_len();
    world
        .site
        .set_pipeline(&[("groups", None), ("contacts", None)])?;
    world.site.set_stage("contacts", "source", "folder")?;
    let words = ["not swapped", "contacts.wasm does not exist"];
    world.host.wait_for_log(from, &words).await?;
    world.end().await
}

#[tokio::test]
async fn a_refused_file_that_is_deleted_leaves_what_ran_in_force_and_blocks_nothing() -> Result<()>
{
    let mut world = overridden().await?;
    let from = world.host.log_len();
    let bad = component::named(&component::load("fixtures/bad-config")?, "contacts")?;
    world.site.write_plugin("contacts", bad)?;
    world
        .host
        .wait_for_log(from, &["not swapped", "contacts"])
        .await?;
    fs::remove_file(world.site.plugin_path("contacts"))?;
    world.host.wait_for_log(from, &["is gone"]).await?;

    let stages = [("contacts", None), ("blocklist", None), ("redact", None)];
    world.site.set_pipeline(&stages)?;
    world
        .host
        .wait_for_log(from, &["pipeline swapped", "blocklist"])
        .await?;
    assert_eq!(world.probe("12345").await?.visible_to(), BY_GROUP);
    world.end().await
}

#[tokio::test]
async fn a_refused_file_of_a_built_in_plugin_that_is_deleted_blocks_nothing() -> Result<()> {
    let mut world = World::start_with(|mut site| {
        site.set_pipeline(&[("contacts", None), ("redact", None)])?;
        Ok(site)
    })
    .await?;
    let from = world.host.log_len();
    let bad = component::named(&component::load("fixtures/bad-config")?, "contacts")?;
    world.site.write_plugin("contacts", bad)?;
    world
        .host
        .wait_for_log(from, &["not swapped", "contacts"])
        .await?;
    fs::remove_file(world.site.plugin_path("contacts"))?;
    let stages = [("contacts", None), ("blocklist", None), ("redact", None)];
    world.site.set_pipeline(&stages)?;
    world
        .host
        .wait_for_log(from, &["pipeline swapped", "blocklist"])
        .await?;
    world.until_visible_to("12345", &["67890"]).await?;
    world.end().await
}

#[tokio::test]
async fn while_a_refused_file_lies_there_each_change_that_it_blocks_is_said_to_be() -> Result<()> {
    let mut world = overridden().await?;
    let from = world.host.log_len();
    let bad = component::named(&component::load("fixtures/bad-config")?, "contacts")?;
    world.site.write_plugin("contacts", bad)?;
    world
        .host
        .wait_for_log(from, &["not swapped", "contacts"])
        .await?;
    let from = world.host.log_len();
    let stages = [("contacts", None), ("blocklist", None), ("redact", None)];
    world.site.set_pipeline(&stages)?;
    world
        .host
        .wait_for_log(from, &["not swapped", "contacts"])
        .await?;
    assert_eq!(world.probe("12345").await?.visible_to(), BY_GROUP);
    world.end().await
}
