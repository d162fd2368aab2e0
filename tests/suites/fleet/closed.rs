//! Nodes that can't decide on anybody.

use std::fs;

use anyhow::{Result, ensure};
use presence_tests::host::Host;
use presence_tests::wait;

use super::{SHARDS, Scene, are_settled, site, speaker};

#[tokio::test]
async fn a_node_without_a_directory_gets_no_shard_until_it_has_one() -> Result<()> {
    let mut scene = Scene::start().await?;
    let first = scene.nodes(&["a"]).await?;
    scene.are_online().await?;
    let other = site(&scene.server, "b")?.with("directory.path", "directory.json")?;
    let directory = other.directory_path();
    let content = fs::read(&directory)?;
    fs::remove_file(&directory)?;
    let mut joined = Host::spawn(&other)?;
    joined.answers("/readyz", 503).await?;
    // It is the standby of all shards, and gets none of them.
    wait::until("the other node to be in step", async || {
        let in_step = joined.metric("presence_fleet_shards_in_step", &[]).await?;
        Ok((in_step == SHARDS as f64).then_some(()))
    })
    .await?;
    let owned = "presence_fleet_shards_owned";
    ensure!(first[0].host.metric(owned, &[]).await? == SHARDS as f64);
    let users: Vec<_> = (0..super::SPEAKERS).map(speaker).collect();
    let answer = scene.query(&users).await?;
    let users = answer["users"].as_array().into_iter().flatten();
    let hidden = users.filter(|user| user["status"] != "online");
    ensure!(hidden.count() == 0, "{answer}");

    fs::write(&directory, content)?;
    are_settled(&[&first[0].host, &joined]).await?;
    joined.ready().await?;
    scene.check_notifications().await
}
