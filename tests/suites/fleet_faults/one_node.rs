//! One node that serves alone, on a cluster.

use anyhow::Result;
use presence_tests::process::Signal;

use super::scene::{Plan, Scene};

const TIMEOUT_MS: u64 = 5_000;

fn plan(name: &'static str) -> Plan {
    Plan {
        name,
        nodes: 1,
        timeout_ms: TIMEOUT_MS,
        lease_ms: None,
        is_orderly: false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_outlives_its_broker() -> Result<()> {
    let mut scene = Scene::start(plan("one_node_broker_killed")).await?;
    scene.begin_fault("its broker is killed");
    scene.cluster.servers[0].kill().await?;
    scene.end_fault("its broker is killed");
    scene.until_received(100).await?;
    scene.cluster.servers[0].resume().await?;
    scene.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_cut_off_for_longer_than_a_timeout_reports_nobody_who_stayed() -> Result<()>
{
    let mut scene = Scene::start(plan("one_node_cut_off")).await?;
    scene.begin_fault("the node is cut off");
    scene.nodes[0].links.iter().for_each(|link| link.cut());
    scene.nodes[0].running()?.unready().await?;
    scene.sleep(TIMEOUT_MS + 500).await;
    scene.nodes[0].links.iter().for_each(|link| link.resume());
    scene.nodes[0].ready().await?;
    scene.end_fault("the node is cut off");
    scene.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_and_starts_again_leaves_no_ghost() -> Result<()> {
    let mut scene = Scene::start(plan("one_node_killed")).await?;
    scene.begin_fault("the node is killed");
    scene.nodes[0].kill().await?;
    scene.nodes[0].spawn()?;
    scene.nodes[0].ready().await?;
    scene.end_fault("the node is killed");
    scene.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_restarted_in_order_tells_nobody_anything_twice() -> Result<()> {
    let mut scene = Scene::start(Plan {
        is_orderly: true,
        ..plan("one_node_restarted")
    })
    .await?;
    scene.begin_fault("the node restarts");
    scene.nodes[0].stop().await?;
    scene.nodes[0].spawn()?;
    scene.nodes[0].ready().await?;
    scene.end_fault("the node restarts");
    scene.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_stopped_goes_on_where_it_was() -> Result<()> {
    let mut scene = Scene::start(plan("one_node_stopped")).await?;
    scene.begin_fault("the node is stopped");
    scene.nodes[0].running()?.process.signal(Signal::STOP)?;
    scene.sleep(TIMEOUT_MS + 500).await;
    scene.nodes[0].running()?.process.signal(Signal::CONT)?;
    scene.nodes[0].ready().await?;
    scene.end_fault("the node is stopped");
    scene.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_that_are_slow_change_nothing() -> Result<()> {
    let scene = Scene::start(plan("one_node_slow")).await?;
    scene.begin_fault("links are slow");
    let slow = std::time::Duration::from_millis(80);
    let links = scene.nodes[0].links.iter();
    links
        .chain(scene.cluster.routes())
        .for_each(|link| link.slow(slow));
    scene.until_received(100).await?;
    let links = scene.nodes[0].links.iter();
    links
        .chain(scene.cluster.routes())
        .for_each(|link| link.resume());
    scene.end_fault("links are slow");
    scene.end().await
}
