//! Quotas in a fleet: an owner and its standby refuse the same, so that a takeover neither forgets
//! who was taken in nor brings in who was refused.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use presence_core::fleet::hash;
use presence_tests::client::{Client, ReceivedMessage, now_ms};
use presence_tests::host::Host;
use presence_tests::site::Site;
use presence_tests::wait;
use serde_json::Value;

use super::{Node, SPEAKERS, Scene, are_settled, guest, hosts, shard_of, site, speaker};
use crate::heartbeat_senders::HeartbeatSenders;
use crate::inputs::{self, CONNECT, DISCONNECT, HEARTBEAT, ONLINE};

async fn nodes(scene: &Scene, limits: impl Fn(Site) -> Result<Site>) -> Result<Vec<Node>> {
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        let site = limits(site(&scene.server, name)?)?;
        let host = Host::spawn(&site)?;
        nodes.push(Node { host, site });
    }
    for node in &mut nodes {
        node.host.ready().await?;
    }
    are_settled(&hosts(&nodes)).await?;
    Ok(nodes)
}

impl Scene {
    /// Has a user connect. Says whether the fleet takes that.
    async fn connects(&self, user: &str) -> Result<bool> {
        let connect = inputs::connect(user, "c1", now_ms()).to_string();
        let answer = self.client.request(CONNECT, connect).await?;
        if answer["ok"] == true {
            return Ok(true);
        }
        ensure!(answer["reason"] == "quota-exceeded", "{answer}");
        Ok(false)
    }

    /// Which of these users are online.
    async fn online(&self, users: &[String]) -> Result<Vec<String>> {
        let answer = self.query(users).await?;
        let online = answer["users"].as_array().context("users")?.iter();
        let online = online.filter(|user| user["status"] == "online");
        let names = online.filter_map(|user| user["userId"].as_str());
        Ok(names.map(str::to_owned).collect())
    }
}

/// Kills the one of two nodes that owns a shard, and waits until the other one has all of them.
async fn kill_owner(nodes: &mut Vec<Node>, shard: u32) -> Result<()> {
    let owner = match hash::rank(0, shard, ["a", "b"])[..] {
        ["a", ..] => 0,
        _ => 1,
    };
    nodes.remove(owner).host.kill().await?;
    are_settled(&hosts(nodes)).await
}

#[tokio::test]
async fn a_shard_takes_its_share_of_the_connections_before_and_after_a_takeover() -> Result<()> {
    let mut scene = Scene::start().await?;
    // The limit of 80 in 8 shards gives each shard 10, and 13 more because users are spread by
    // chance.
    let mut nodes = nodes(&scene, |site| site.with("limits.connections_max", 80)).await?;
    scene.are_online().await?;
    let shard = 3;
    let speakers = (0..SPEAKERS).map(speaker);
    let there = speakers.filter(|it| shard_of(it) == shard).count();
    let in_shard = (0..).map(guest).filter(|it| shard_of(it) == shard);
    let users: Vec<_> = in_shard.take(30).collect();
    let mut taken = Vec::new();
    for user in &users {
        if scene.connects(user).await? {
            taken.push(user.clone());
        }
    }
    ensure!(taken.len() + there == 23, "{there} and {taken:?}");
    ensure!(taken.iter().eq(&users[..taken.len()]), "the first ones");

    // They send heartbeats, or they would have timed out by the takeover.
    let client = Client::connect(&scene.server.url()).await?;
    let _others = HeartbeatSenders::start(&client, &taken[1..]);
    let first = HeartbeatSenders::start(&client, &taken[..1]);
    kill_owner(&mut nodes, shard).await?;
    let is_taken = scene.connects(&users[29]).await?;
    ensure!(!is_taken, "the limit is still reached");
    drop(first);
    client.round_trip().await?;
    let bye = inputs::disconnect(&taken[0], "c1", now_ms(), "client_disconnect");
    scene.client.input(DISCONNECT, bye).await?;
    // While the new owner is unsure who is connected, it may count the user who left as one from
    // whom it has yet to hear.
    wait::until("room for one again", async || {
        Ok(scene.connects(&users[29]).await?.then_some(()))
    })
    .await?;
    scene.check_notifications().await
}

#[tokio::test]
async fn who_was_refused_for_too_many_messages_is_not_there_after_a_takeover() -> Result<()> {
    let mut scene = Scene::start().await?;
    // The speakers send half as many messages.
    let limits = |site: Site| site.with("limits.messages_per_s", 500);
    let mut nodes = nodes(&scene, limits).await?;
    scene.are_online().await?;
    let (mut number, mut refused) = (0, Vec::new());
    while refused.len() < 10 {
        for _ in 0..300 {
            let noise = inputs::heartbeat(&format!("noise-{number}"), "c1", now_ms());
            scene.client.publish(HEARTBEAT, &noise).await?;
        }
        let user = guest(number);
        if !scene.connects(&user).await? {
            refused.push(user);
        }
        number += 1;
    }
    kill_owner(&mut nodes, 0).await?;
    let online = scene.online(&refused).await?;
    ensure!(online.is_empty(), "{online:?} were refused");
    // The heartbeats of speakers are taken, however many other messages come.
    let speakers: Vec<_> = (0..SPEAKERS).map(speaker).collect();
    ensure!(scene.online(&speakers).await? == speakers);
    scene.tape.catch_up(&scene.client).await?;
    let letters: Vec<Value> = crate::world::on(scene.tape.seen(), inputs::DLQ);
    let error = "more than 500 messages a second arrive";
    let told = letters.iter().filter_map(|it| it["error"].as_str());
    ensure!(told.filter(|it| it.contains(error)).count() >= refused.len());
    scene.check_notifications().await
}

#[tokio::test]
async fn no_application_says_that_its_message_is_one_too_many() -> Result<()> {
    let mut scene = Scene::start().await?;
    let nodes = scene.nodes(&["a", "b"]).await?;
    are_settled(&hosts(&nodes)).await?;
    scene.are_online().await?;
    for number in 0..40 {
        let connect = inputs::connect(&guest(number), "c1", now_ms());
        let forged = [("Presence-Excess", "1")];
        scene
            .client
            .publish_with(CONNECT, &forged, &connect)
            .await?;
    }
    let are_there = |seen: &[ReceivedMessage]| {
        let came = crate::world::on(seen, ONLINE);
        let came: BTreeSet<_> = came.iter().filter_map(|it| it["userId"].as_str()).collect();
        (0..40).all(|number| came.contains(&*guest(number)))
    };
    scene
        .tape
        .until("all of them to come online", are_there)
        .await
}
