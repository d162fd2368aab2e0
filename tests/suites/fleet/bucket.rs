//! What nodes do when somebody removes a part of their bucket.

use anyhow::{Context, Result, ensure};
use async_nats::jetstream;
use presence_tests::client::Client;
use presence_tests::host::Host;
use presence_tests::wait;

use super::refused::ends;
use super::{SHARDS, Scene, are_settled, hosts, site};

async fn config(context: &jetstream::Context) -> Result<Option<String>> {
    let store = context.get_key_value("presence-fleet").await?;
    let value = store.get("config").await?;
    Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
}

#[tokio::test]
async fn what_all_nodes_have_in_common_is_written_again_when_it_is_gone() -> Result<()> {
    let mut scene = Scene::start().await?;
    let mut nodes = scene.nodes(&["a"]).await?;
    scene.are_online().await?;
    let context = jetstream::new(scene.client.nats.clone());
    let store = context.get_key_value("presence-fleet").await?;
    let before = config(&context).await?.context("config")?;
    let other = before.replace(&format!("\"shards\":{SHARDS}"), "\"shards\":16");
    ensure!(other != before, "{before}");
    for damage in ["", "junk", &other] {
        match damage {
            "" => store.delete("config").await?,
            other => {
                store.put("config", other.to_owned().into()).await?;
            }
        }
        wait::until("the configuration to be back", async || {
            Ok((config(&context).await? == Some(before.clone())).then_some(()))
        })
        .await?;
    }
    nodes[0]
        .host
        .wait_for_log(0, &["had lost its key `config`"])
        .await?;
    // So a node with another configuration doesn't join.
    let other = site(&scene.server, "b")?.with("fleet.shards", 16)?;
    let said = ends(Host::spawn(&other)?).await?;
    ensure!(said.contains("[fleet] shards is 16 here"), "{said}");
    are_settled(&hosts(&nodes)).await?;
    scene.check_notifications().await?;

    // While no node runs, nobody knows the common configuration.
    nodes.remove(0).host.stop().await?;
    store.delete("config").await?;
    let other = site(&scene.server, "b")?;
    let mut host = Host::spawn(&other)?;
    let words = "its key `config` is gone: a node that runs writes it again";
    host.wait_for_log(0, &[words]).await?;
    ensure!(config(&context).await?.is_none());
    host.process.kill().await?;
    Ok(())
}

#[tokio::test]
async fn a_lease_and_an_owner_that_were_purged_are_written_again() -> Result<()> {
    let mut scene = Scene::start().await?;
    let mut nodes = scene.nodes(&["a", "b"]).await?;
    are_settled(&hosts(&nodes)).await?;
    scene.are_online().await?;
    let client = Client::connect(&scene.server.url()).await?;
    let context = jetstream::new(client.nats.clone());
    let stream = context.get_stream("KV_presence-fleet").await?;
    for key in ["nodes.a", "owners.0", "owners.1", "owners.2", "owners.3"] {
        let subject = format!("$KV.presence-fleet.{key}");
        stream.purge().filter(subject).await?;
    }
    let lost = |lost: f64| lost > 0.0;
    let sessions = "presence_fleet_sessions_lost_total";
    nodes[0].host.until_metric(sessions, &[], lost).await?;
    are_settled(&hosts(&nodes)).await?;
    // Each shard can still change hands.
    nodes.remove(1).host.kill().await?;
    let all = |owned: f64| owned == SHARDS as f64;
    let owned = "presence_fleet_shards_owned";
    nodes[0].host.until_metric(owned, &[], all).await?;
    scene.check_notifications().await
}
