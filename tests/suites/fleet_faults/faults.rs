//! Three nodes that share the users, and one fault after another.

use std::time::Duration;

use anyhow::Result;
use presence_tests::process::Signal;

use super::scene::{Plan, Scene};

const LEASE_MS: u64 = 2_000;
const FLEET: Plan = Plan {
    name: "",
    nodes: 3,
    timeout_ms: 6_000,
    lease_ms: Some(LEASE_MS),
    is_orderly: false,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_killed() -> Result<()> {
    let mut scene = Scene::start(Plan {
        name: "killed",
        ..FLEET
    })
    .await?;
    scene.begin_fault("a node is killed");
    scene.nodes[1].kill().await?;
    scene.end_fault("a node is killed");
    scene.until_received(150).await?;
    scene.nodes[1].spawn()?;
    scene.nodes[1].ready().await?;
    scene.end().await
}

/// For some shards, these two are the owner and the standby, so that the third node has to start
/// from nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_are_killed_at_once() -> Result<()> {
    let mut scene = Scene::start(Plan {
        name: "two_killed",
        ..FLEET
    })
    .await?;
    scene.begin_fault("two nodes are killed");
    scene.nodes[0].kill().await?;
    scene.nodes[1].kill().await?;
    scene.end_fault("two nodes are killed");
    scene.until_received(100).await?;
    scene.nodes[0].spawn()?;
    scene.nodes[0].ready().await?;
    scene.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_stopped_for_longer_than_a_lease_and_goes_on() -> Result<()> {
    let mut scene = Scene::start(Plan {
        name: "stopped",
        ..FLEET
    })
    .await?;
    scene.begin_fault("a node is stopped");
    scene.nodes[1].running()?.process.signal(Signal::STOP)?;
    scene.sleep(2 * LEASE_MS + 500).await;
    scene.nodes[1].running()?.process.signal(Signal::CONT)?;
    scene.end_fault("a node is stopped");
    scene.nodes[1].ready().await?;
    scene.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_are_restarted_one_after_the_other() -> Result<()> {
    let mut scene = Scene::start(Plan {
        name: "rolling",
        is_orderly: true,
        ..FLEET
    })
    .await?;
    for node in &mut scene.nodes {
        node.stop().await?;
        node.spawn()?;
        node.ready().await?;
    }
    scene.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_becomes_three_and_one_again() -> Result<()> {
    let mut scene = Scene::start(Plan {
        name: "one_three_one",
        nodes: 1,
        is_orderly: true,
        ..FLEET
    })
    .await?;
    scene.join().await?;
    scene.join().await?;
    scene.until_received(150).await?;
    scene.nodes[0].stop().await?;
    scene.nodes[1].stop().await?;
    scene.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_cut_off_from_all_brokers() -> Result<()> {
    let mut scene = Scene::start(Plan {
        name: "cut_off",
        ..FLEET
    })
    .await?;
    scene.begin_fault("a node is cut off");
    scene.nodes[1].links.iter().for_each(|link| link.cut());
    scene.sleep(2 * LEASE_MS + 500).await;
    scene.nodes[1].links.iter().for_each(|link| link.resume());
    scene.end_fault("a node is cut off");
    scene.nodes[1].ready().await?;
    scene.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_hears_nothing_on_links_that_hang() -> Result<()> {
    let mut scene = Scene::start(Plan {
        name: "hangs",
        ..FLEET
    })
    .await?;
    scene.begin_fault("links hang");
    scene.nodes[1].links.iter().for_each(|link| link.pause());
    scene.sleep(2 * LEASE_MS + 500).await;
    scene.nodes[1].links.iter().for_each(|link| link.resume());
    scene.end_fault("links hang");
    scene.nodes[1].ready().await?;
    scene.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_broker_is_split_from_the_others() -> Result<()> {
    // Users on the split server's side aren't heard during the split, so the timeout is longer.
    let scene = Scene::start(Plan {
        name: "split",
        timeout_ms: 10_000,
        ..FLEET
    })
    .await?;
    scene.begin_fault("a broker is split off");
    scene.cluster.routes_of(1).for_each(|route| route.cut());
    scene.sleep(2 * LEASE_MS + 500).await;
    scene.cluster.routes_of(1).for_each(|route| route.resume());
    scene.cluster.wait_until_storing().await?;
    scene.end_fault("a broker is split off");
    scene.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_brokers_are_split_from_each_other() -> Result<()> {
    let scene = Scene::start(Plan {
        name: "all_split",
        timeout_ms: 10_000,
        ..FLEET
    })
    .await?;
    scene.begin_fault("no broker has the majority");
    scene.cluster.routes().for_each(|route| route.cut());
    scene.sleep(2 * LEASE_MS + 500).await;
    scene.cluster.routes().for_each(|route| route.resume());
    scene.cluster.wait_until_storing().await?;
    scene.end_fault("no broker has the majority");
    scene.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_is_stopped_and_goes_on() -> Result<()> {
    let scene = Scene::start(Plan {
        name: "broker_stopped",
        ..FLEET
    })
    .await?;
    scene.begin_fault("a broker is stopped");
    scene.cluster.servers[0].signal(Signal::STOP)?;
    scene.sleep(2 * LEASE_MS + 500).await;
    scene.cluster.servers[0].signal(Signal::CONT)?;
    scene.end_fault("a broker is stopped");
    scene.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_is_killed() -> Result<()> {
    let mut scene = Scene::start(Plan {
        name: "broker_killed",
        ..FLEET
    })
    .await?;
    scene.begin_fault("a broker is killed");
    scene.cluster.servers[0].kill().await?;
    scene.end_fault("a broker is killed");
    scene.until_received(150).await?;
    scene.cluster.servers[0].resume().await?;
    scene.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_links_are_slow() -> Result<()> {
    let scene = Scene::start(Plan {
        name: "slow",
        ..FLEET
    })
    .await?;
    let links = || {
        let of_nodes = scene.nodes.iter().flat_map(|node| node.links.iter());
        of_nodes.chain(scene.cluster.routes())
    };
    scene.begin_fault("links are slow");
    links().for_each(|link| link.slow(Duration::from_millis(60)));
    scene.until_received(150).await?;
    links().for_each(|link| link.resume());
    scene.end_fault("links are slow");
    scene.end().await
}
