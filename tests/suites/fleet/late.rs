//! What a node held while it was stopped, and passes on when it goes on.

use std::time::Duration;

use anyhow::{Result, ensure};
use presence_tests::client::{ReceivedMessage, now_ms};
use presence_tests::process::Signal;

use super::{SPEAKERS, Scene, are_settled, guest, hosts, speaker, user_of};
use crate::inputs::{self, CONNECT, HEARTBEAT, OFFLINE, ONLINE};

const GUESTS: usize = 24;

/// Longer than messages may overtake each other, and shorter than a lease.
const STOPPED: Duration = Duration::from_millis(2_500);

#[tokio::test]
async fn what_an_application_stated_meanwhile_holds() -> Result<()> {
    let mut scene = Scene::start().await?;
    let nodes = scene.nodes(&["a", "b"]).await?;
    are_settled(&hosts(&nodes)).await?;
    scene.are_online().await?;
    let state = async |subject: &str, users: std::ops::Range<usize>| -> Result<()> {
        for number in users {
            let user = guest(number);
            let said = match subject {
                ONLINE => inputs::online(&user, now_ms()),
                OFFLINE => inputs::offline(&user, now_ms()),
                _ => inputs::connect(&user, "c1", now_ms()),
            };
            scene.client.publish(subject, &said).await?;
        }
        scene.client.nats.flush().await?;
        // What comes next is later by any clock.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok(())
    };
    let (gone, back) = (0..GUESTS / 2, GUESTS / 2..GUESTS);

    // The broker gives either node half of what comes, also the one that is stopped.
    nodes[0].host.process.signal(Signal::STOP)?;
    state(ONLINE, gone.clone()).await?;
    state(OFFLINE, 0..GUESTS).await?;
    state(CONNECT, back.clone()).await?;
    tokio::time::sleep(STOPPED).await;
    nodes[0].host.process.signal(Signal::CONT)?;
    let is_passed_on = |it: &ReceivedMessage| {
        let user = user_of(&it.body).starts_with("guest");
        user && it.subject.starts_with("presence.shard.")
    };
    let all =
        |seen: &[ReceivedMessage]| seen.iter().filter(|it| is_passed_on(it)).count() == GUESTS * 2;
    scene.tape.until("all to be passed on", all).await?;
    // When owners answer these heartbeats, they have handled all that came before.
    for number in 0..SPEAKERS {
        let heartbeat = inputs::heartbeat(&speaker(number), "c1", now_ms());
        scene.client.input(HEARTBEAT, heartbeat).await?;
    }

    let users: Vec<_> = (0..GUESTS).map(guest).collect();
    let answer = scene.query(&users).await?;
    let users = answer["users"].as_array().into_iter().flatten();
    let online: Vec<_> = users.map(|user| user["status"] == "online").collect();
    ensure!(online.len() == GUESTS, "{answer}");
    for (number, is_online) in online.into_iter().enumerate() {
        let name = guest(number);
        ensure!(is_online == back.contains(&number), "{name}: {answer}");
    }
    scene.check_notifications().await
}
