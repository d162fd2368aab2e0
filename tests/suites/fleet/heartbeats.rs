//! Standbys that take in no heartbeats themselves, because their owners tell them of heartbeats.

use anyhow::{Result, ensure};
use presence_tests::client::{Client, ReceivedMessage, now_ms};
use presence_tests::host::Host;
use presence_tests::wait;

use super::{SHARDS, Scene, are_settled, guest, hosts, user_of};
use crate::heartbeat_senders::HeartbeatSenders;
use crate::inputs::{self, CONNECT, FILTERED_OFFLINE, FILTERED_ONLINE, OFFLINE};
use crate::world::on;

/// Enough users that every shard has many heartbeats.
const CROWD: usize = 240;

/// Waits until all standbys rely on what their owners tell them.
async fn are_told(hosts: &[&Host]) -> Result<()> {
    wait::until("standbys to be told of heartbeats", async || {
        let mut told = 0.0;
        for host in hosts {
            told += host.metric("presence_fleet_shards_told", &[]).await?;
        }
        Ok((told == SHARDS as f64).then_some(()))
    })
    .await
}

/// Guests who connect, and are never heard from again, are offline in the end.
async fn guests_time_out(scene: &mut Scene, guests: &[String]) -> Result<()> {
    for user in guests {
        let connect = inputs::connect(user, "c1", now_ms());
        scene.client.input(CONNECT, connect).await?;
    }
    have_left(scene, guests).await
}

async fn have_left(scene: &mut Scene, guests: &[String]) -> Result<()> {
    let gone = |seen: &[ReceivedMessage]| {
        let gone = on(seen, FILTERED_OFFLINE);
        let has_left = |user: &String| gone.iter().any(|it| user_of(it) == user);
        guests.iter().all(has_left)
    };
    scene.tape.until("all guests to be offline", gone).await
}

#[tokio::test]
async fn a_standby_that_is_told_of_heartbeats_takes_over_without_losing_or_keeping_anybody()
-> Result<()> {
    let mut scene = Scene::start().await?;
    let mut nodes = scene.nodes(&["a", "b"]).await?;
    are_settled(&hosts(&nodes)).await?;
    scene.are_online().await?;
    let crowd: Vec<_> = (0..CROWD).map(|number| format!("crowd-{number}")).collect();
    let speaking = Client::connect(&scene.server.url()).await?;
    let _crowd = HeartbeatSenders::start(&speaking, &crowd);
    are_told(&hosts(&nodes)).await?;

    // Some have connected and are silent when a node dies.
    let guests: Vec<_> = (0..12).map(guest).collect();
    for user in &guests {
        let connect = inputs::connect(user, "c1", now_ms());
        scene.client.input(CONNECT, connect).await?;
    }
    nodes.remove(0).host.kill().await?;
    have_left(&mut scene, &guests).await?;
    are_settled(&hosts(&nodes)).await?;
    // By then everyone who stayed would have timed out, too.
    let others: Vec<_> = (12..18).map(guest).collect();
    guests_time_out(&mut scene, &others).await?;
    scene.check_notifications().await?;

    // Another one joins, is told, and is handed all shards.
    let joined = scene.nodes(&["c"]).await?;
    let both: Vec<_> = hosts(&nodes).into_iter().chain(hosts(&joined)).collect();
    are_settled(&both).await?;
    are_told(&both).await?;
    nodes.remove(0).host.stop().await?;
    are_settled(&hosts(&joined)).await?;
    let others: Vec<_> = (18..24).map(guest).collect();
    guests_time_out(&mut scene, &others).await?;
    scene.check_notifications().await?;
    let told = on(scene.tape.seen(), FILTERED_ONLINE).len();
    ensure!(told > 0, "viewers are told");
    let gone = on(scene.tape.seen(), OFFLINE);
    let crowd = gone.iter().filter(|it| user_of(it).starts_with("crowd"));
    ensure!(crowd.count() == 0, "{gone:#?}");
    Ok(())
}
