//! What plugins ask for and what operators grant, in a running node.

use anyhow::{Result, ensure};
use presence_tests::site::Site;
use presence_tests::{component, host};
use serde_json::json;

use crate::world::World;

/// All imports of what is built with the SDK, and what `contacts` and `groups` read.
const ALL: [&str; 4] = ["widen", "contacts", "groups", "log"];

/// The rule of `groups`, in the place of `contacts`.
fn groups() -> Result<Vec<u8>> {
    component::named(&component::load("groups")?, "contacts")
}

/// A pipeline of `contacts` alone. `stage`: the grants of its entry. `ceiling`: what any plugin may
/// be granted.
fn granting(mut site: Site, stage: &[&str], ceiling: &[&str]) -> Result<Site> {
    site.set_pipeline(&[("contacts", None)])?;
    site.set_stage("contacts", "grants", stage.to_vec())?;
    site.with("plugins.grants", ceiling.to_vec())
}

#[test]
fn each_half_refuses_by_itself_and_says_which_it_is() -> Result<()> {
    let lying = component::with(&groups()?, |manifest| {
        manifest.insert("capabilities".into(), json!(["contacts", "log"]));
    })?;
    let of_stage = "put \"groups\" into the grants of its [[pipeline]] entry";
    let of_node = "which [plugins] grants allows to no plugin; to allow it, put";
    for (bytes, stage, ceiling, words) in [
        (
            &lying,
            &ALL[..],
            &ALL[..],
            "and its manifest doesn't ask for that: put \"groups\" into its capabilities",
        ),
        (&groups()?, &["widen", "contacts", "log"], &ALL, of_stage),
        (&groups()?, &["widen", "none"], &ALL, of_stage),
        (&groups()?, &ALL, &["widen", "contacts", "log"], of_node),
        (&groups()?, &ALL, &["groups", "log"], of_node),
    ] {
        let site = granting(Site::new("nats://127.0.0.1:1")?, stage, ceiling)?;
        site.write_plugin("contacts", bytes)?;
        let output = host::run(&site, &["check"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(said.contains(words), "`{words}` is not in: {said}");
    }
    // A list without any of the capabilities for functions grants all of these.
    for stage in [&ALL[..], &["widen"]] {
        let site = granting(Site::new("nats://127.0.0.1:1")?, stage, &ALL)?;
        site.write_plugin("contacts", groups()?)?;
        let output = host::run(&site, &["check"])?;
        ensure!(output.status.success(), "{output:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_running_node_takes_a_plugin_once_it_is_granted_what_it_asks_for() -> Result<()> {
    let few = ["widen", "contacts", "log"];
    let mut world = World::start_with(|site| granting(site, &few, &few)).await?;
    world.until_visible_to("12345", &["11111", "67890"]).await?;
    let from = world.host.log_len();
    world.site.write_plugin("contacts", groups()?)?;
    let words = ["not swapped", "asks for `groups`"];
    world.host.wait_for_log(from, &words).await?;
    let seen = world.probe("12345").await?;
    assert_eq!(seen.visible_to(), ["11111", "67890"]);
    let from = world.host.log_len();
    world.site.set_stage("contacts", "grants", ALL.to_vec())?;
    let words = ["not swapped", "[plugins] grants allows to no plugin"];
    world.host.wait_for_log(from, &words).await?;
    world.site.set("plugins.grants", ALL.to_vec())?;
    world.until_visible_to("12345", &["22222"]).await?;
    world.end().await
}

#[tokio::test]
async fn a_grant_that_is_taken_away_stops_what_was_granted_it() -> Result<()> {
    let mut world = World::start_with(|mut site| {
        site.set_pipeline(&[("contacts", None)])?;
        site.set_stage("contacts", "grants", ALL.to_vec())?;
        site.write_plugin("contacts", groups()?)?;
        Ok(site)
    })
    .await?;
    world.until_visible_to("12345", &["22222"]).await?;
    let few = vec!["widen", "contacts", "log"];
    for key in ["ceiling", "entry"] {
        let from = world.host.log_len();
        match key {
            "ceiling" => world.site.set("plugins.grants", few.clone())?,
            _ => world.site.set_stage("contacts", "grants", few.clone())?,
        }
        let words = ["contacts", "may not run any more", "asks for `groups`"];
        world.host.wait_for_log(from, &words).await?;
        world.host.unready_because("asks for `groups`").await?;
        let seen = world.probe("12345").await?;
        assert!(seen.visible_to().is_empty(), "{key}");
        match key {
            "ceiling" => world.site.set("plugins.grants", ALL.to_vec())?,
            _ => world.site.set_stage("contacts", "grants", ALL.to_vec())?,
        }
        world.host.ready().await?;
        world.until_visible_to("12345", &["22222"]).await?;
    }
    // A file that asks for more than it is granted is a bad new file, and changes nothing.
    world.site.set_stage("contacts", "grants", ALL.to_vec())?;
    let greedy = component::with(&groups()?, |manifest| {
        manifest.insert(
            "capabilities".into(),
            json!([ALL.as_slice(), &["wasi"]].concat()),
        );
    })?;
    let from = world.host.log_len();
    world.site.write_plugin("contacts", greedy)?;
    let words = ["not swapped", "asks for `wasi`"];
    world.host.wait_for_log(from, &words).await?;
    world.until_visible_to("12345", &["22222"]).await?;
    world.host.ready().await?;
    world.end().await
}

#[test]
fn words_that_are_no_grants_are_refused_with_those_that_are() -> Result<()> {
    let mut site = Site::new("nats://127.0.0.1:1")?;
    for (grants, words) in [
        (vec!["fly"], "names `fly`"),
        (vec!["none", "log"], "names `none` and `log`"),
    ] {
        site.set("plugins.grants", grants)?;
        let output = host::run(&site, &["check"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(said.contains(words), "{output:?}");
    }
    Ok(())
}
