//! A configuration that is empty, cut off or gone is not the default one.

use std::fs;

use anyhow::{Result, ensure};
use presence_tests::host;
use presence_tests::site::{DIRECTORY, Site};
use serde_json::json;
use toml::toml;

use crate::world::World;

/// The viewers to whom the default pipeline would show user 12345.
const SEEN: [&str; 2] = ["22222", "67890"];

/// A world in which a rule hides the user. The default pipeline lacks this rule.
async fn world() -> Result<World> {
    World::start_with(|mut site| {
        site.set_pipeline(&[
            ("contacts", None),
            ("groups", None),
            ("privacy", None),
            ("blocklist", None),
            ("redact", Some(toml! { keys = ["device"] })),
        ])?;
        let mut directory: serde_json::Value = serde_json::from_str(DIRECTORY)?;
        directory["settings"] = json!({"12345": {"online": "nobody"}});
        site.write_directory_value(&directory)?;
        Ok(site)
    })
    .await
}

async fn is_hidden(world: &mut World) -> Result<()> {
    let seen = world.probe("12345").await?;
    ensure!(seen.visible_to().is_empty(), "{:?}", seen.visible_to());
    Ok(())
}

/// The file's text before its first `[[pipeline]]`.
fn without_pipeline(text: &str) -> &str {
    text.split("[[pipeline]]").next().unwrap_or_default()
}

#[tokio::test]
async fn a_file_that_is_empty_gone_or_without_its_pipeline_leaves_the_running_one() -> Result<()> {
    let mut world = world().await?;
    is_hidden(&mut world).await?;
    let path = world.site.config_path();
    let whole = fs::read_to_string(&path)?;
    for (text, words) in [
        (Some(""), &["not taken", "is empty"][..]),
        (None, &["not taken", "presence.toml"]),
        (Some("# all of it\n"), &["not taken", "nothing is set"]),
        (
            Some(without_pipeline(&whole)),
            &["not taken", "no [[pipeline]]"],
        ),
    ] {
        let from = world.host.log_len();
        match text {
            Some(text) => fs::write(&path, text)?,
            None => fs::remove_file(&path)?,
        }
        world.host.wait_for_log(from, words).await?;
        is_hidden(&mut world).await?;
        fs::write(&path, &whole)?;
    }
    world.end().await
}

#[tokio::test]
async fn a_stage_that_hid_users_and_is_taken_out_is_said_by_its_name() -> Result<()> {
    let mut world = world().await?;
    is_hidden(&mut world).await?;
    let from = world.host.log_len();
    world.site.set_pipeline(&[
        ("contacts", None),
        ("groups", None),
        ("blocklist", None),
        ("redact", Some(toml! { keys = ["device"] })),
    ])?;
    let words = ["WARN", "`privacy`", "no longer in the pipeline"];
    world.host.wait_for_log(from, &words).await?;
    world.until_visible_to("12345", &SEEN).await?;
    world.end().await
}

#[tokio::test]
async fn a_configuration_is_not_said_to_be_reloaded_before_its_pipeline_is_in_force() -> Result<()>
{
    let mut world = world().await?;
    let from = world.host.log_len();
    world
        .site
        .set_pipeline(&[("contacts", None), ("redact", None)])?;
    let reloaded = |line: &&String| line.ends_with("configuration reloaded");
    world
        .host
        .wait_for_log(from, &["configuration reloaded"])
        .await?;
    let log = world.host.process.stderr().split_off(from);
    let place = |word: &str| log.iter().position(|line| line.contains(word));
    ensure!(place("pipeline swapped").is_some(), "{log:#?}");
    ensure!(place("pipeline swapped") < place("configuration reloaded"));

    let from = world.host.log_len();
    world
        .site
        .set_pipeline(&[("contacts", None), ("none", None)])?;
    let words = ["WARN", "reloaded without its pipeline, which was refused"];
    world.host.wait_for_log(from, &words).await?;
    // Another change, while the pipeline is still refused.
    let from = world.host.log_len();
    world.site.set("tracker.grace_ms", 1)?;
    world
        .host
        .wait_for_log(from, &["configuration reloaded"])
        .await?;
    let log = world.host.process.stderr().split_off(from);
    ensure!(!log.iter().any(|line| reloaded(&line)), "{log:#?}");
    world.end().await
}

#[test]
fn a_file_that_is_named_and_is_empty_or_missing_is_an_error_at_the_start() -> Result<()> {
    let site = Site::new("nats://127.0.0.1:1")?;
    for (text, word) in [(Some(""), "is empty"), (None, "can't be read")] {
        match text {
            Some(text) => fs::write(site.config_path(), text)?,
            None => fs::remove_file(site.config_path())?,
        }
        for command in ["run", "check"] {
            let output = host::run(&site, &[command])?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(!output.status.success() && said.contains(word), "{said}");
        }
    }
    Ok(())
}
