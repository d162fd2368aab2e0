//! Users whom the application names in the subject are partitioned by the broker itself.

use anyhow::{Result, ensure};
use presence_tests::client::now_ms;

use super::{SHARDS, Scene, are_settled, broker, guest, hosts, user_of};
use crate::inputs::{self, FILTERED_OFFLINE, FILTERED_ONLINE};
use crate::world::on;

#[tokio::test]
async fn the_broker_maps_a_users_subject_to_the_shard() -> Result<()> {
    let map = |kind: &str| {
        format!("\"presence.{kind}.*\": \"presence.shard.{{{{partition({SHARDS},1)}}}}.in.{kind}\"")
    };
    let maps = ["connect", "heartbeat", "disconnect"].map(map);
    let server = broker(&format!("mappings {{ {} }}", maps.join("\n"))).await?;
    let mut scene = Scene::start_on(server).await?;
    let nodes = scene.nodes(&["a", "b"]).await?;
    are_settled(&hosts(&nodes)).await?;
    scene.are_online().await?;
    for number in 0..8 {
        let user = guest(number);
        let subject = format!("presence.connect.{user}");
        let connect = inputs::connect(&user, "c1", now_ms());
        scene.client.input(&subject, connect).await?;
        let subject = format!("presence.disconnect.{user}");
        let bye = inputs::disconnect(&user, "c1", now_ms() + 1, "client_disconnect");
        scene.client.input(&subject, bye).await?;
    }
    let gone = |seen: &[presence_tests::client::ReceivedMessage]| {
        let guests = |subject| {
            let told = on(seen, subject).into_iter();
            told.filter(|it| user_of(it).starts_with("guest")).count()
        };
        guests(FILTERED_ONLINE) == 8 && guests(FILTERED_OFFLINE) == 8
    };
    scene.tape.until("all guests to come and go", gone).await?;
    for node in &nodes {
        let wrong = node
            .host
            .metric("presence_fleet_wrong_shard_total", &[])
            .await?;
        ensure!(wrong == 0.0);
    }
    scene.check_notifications().await
}
