//! Nodes that are refused because they don't fit the fleet, and messages that are refused because
//! they don't fit a shard.

use anyhow::{Result, ensure};
use presence_tests::client::now_ms;
use presence_tests::host::Host;
use presence_tests::nats::NatsServer;
use presence_tests::tools;
use serde_json::json;

use super::{SHARDS, Scene, are_settled, broker, hosts, site, speaker};
use crate::inputs::{self, DLQ};
use crate::world::on;

/// Waits until a node ends by itself, and returns what it said.
pub(super) async fn ends(mut host: Host) -> Result<String> {
    let status = host.process.wait().await?;
    ensure!(!status.success(), "{status}");
    Ok(host.process.stderr().join("\n"))
}

#[tokio::test]
async fn a_node_without_jetstream_does_not_start() -> Result<()> {
    let account = "accounts { A: { users: [ { user: a, password: b } ] } }\nno_auth_user: a";
    let server = broker(account).await?;
    let said = ends(Host::spawn(&site(&server, "a")?)?).await?;
    ensure!(said.contains("a fleet needs JetStream"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_node_that_disagrees_with_the_fleet_does_not_start() -> Result<()> {
    let scene = Scene::start().await?;
    let nodes = scene.nodes(&["a"]).await?;
    let other = site(&scene.server, "b")?.with("fleet.shards", 16)?;
    let said = ends(Host::spawn(&other)?).await?;
    let words = "[fleet] shards is 16 here and 8 in the fleet";
    ensure!(said.contains(words), "{said}");
    let other = site(&scene.server, "b")?.with("fleet.lease_ms", 1_000)?;
    let said = ends(Host::spawn(&other)?).await?;
    ensure!(said.contains("[fleet] lease_ms is 1000 here"), "{said}");
    are_settled(&hosts(&nodes)).await
}

#[tokio::test]
async fn a_bucket_that_is_another_ones_is_refused() -> Result<()> {
    let server = NatsServer::start().await?;
    let client = presence_tests::client::Client::connect(&server.url()).await?;
    let context = async_nats::jetstream::new(client.nats.clone());
    let bucket = async_nats::jetstream::kv::Config {
        bucket: "presence-fleet".into(),
        ..Default::default()
    };
    context.create_key_value(bucket).await?;
    let said = ends(Host::spawn(&site(&server, "a")?)?).await?;
    ensure!(said.contains("is not the bucket of a fleet"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_second_node_of_one_name_waits() -> Result<()> {
    let scene = Scene::start().await?;
    let mut nodes = scene.nodes(&["a"]).await?;
    let twin = site(&scene.server, "a")?;
    let mut host = Host::spawn(&twin)?;
    host.wait_for_log(0, &["waiting while node `a`", "[node] name"])
        .await?;
    nodes.remove(0).host.stop().await?;
    host.ready().await?;
    host.stop().await
}

#[tokio::test]
async fn the_documented_permissions_are_enough_for_a_fleet() -> Result<()> {
    let permissions = std::fs::read_to_string(tools::root().join("docs/permissions.conf"))?;
    let server = broker(&permissions).await?;
    let of_processor = |name: &str| {
        site(&server, name)?
            .with("nats.user", "processor")?
            .with("nats.password", "change-me-processor")
    };
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        nodes.push(Host::start(&of_processor(name)?).await?);
    }
    are_settled(&nodes.iter().collect::<Vec<_>>()).await?;
    let second = nodes.pop().unwrap();
    second.stop().await?;
    are_settled(&nodes.iter().collect::<Vec<_>>()).await?;
    for node in &nodes {
        ensure!(node.metric("presence_nats_errors_total", &[]).await? == 0.0);
        let lost = node
            .metric("presence_fleet_sessions_lost_total", &[])
            .await?;
        ensure!(lost == 0.0);
    }
    Ok(())
}

#[tokio::test]
async fn what_does_not_belong_to_a_shard_is_refused_and_counted() -> Result<()> {
    let mut scene = Scene::start().await?;
    let nodes = scene.nodes(&["a", "b"]).await?;
    are_settled(&hosts(&nodes)).await?;
    scene.are_online().await?;
    let user = speaker(0);
    // The shard of the user is one of these.
    let heartbeat = inputs::heartbeat(&user, "c1", now_ms());
    for shard in 0..SHARDS {
        let subject = format!("presence.shard.{shard}.in.heartbeat");
        scene.client.publish(&subject, &heartbeat).await?;
    }
    let letters = |seen: &[presence_tests::client::ReceivedMessage]| {
        let letters = on(seen, DLQ);
        let wrong = letters.iter().filter(|it| it["reason"] == "wrong-shard");
        wrong.count() == SHARDS - 1
    };
    let what = "a dead letter of each wrong shard, by its owner alone";
    scene.tape.until(what, letters).await?;
    let told = "presence.shard.0.told";
    scene.client.publish_bytes(told, "no such thing").await?;
    for node in ["a", "b"] {
        for what in ["snapshot.0", "chunk.99", "synced.0", "other"] {
            let subject = format!("presence.node.{node}.fleet.{what}");
            scene.client.publish(&subject, &json!({"node": 1})).await?;
        }
    }
    for node in &nodes {
        let refused = |count: f64| count >= 4.0;
        node.host
            .until_metric("presence_fleet_refused_total", &[], refused)
            .await?;
    }
    are_settled(&hosts(&nodes)).await?;
    scene.check_notifications().await
}
