//! Detects delays that the test didn't cause: this process, a node or the fleet's bucket is held
//! up, because the machine is busy, or because the bucket's servers elect a leader.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use async_nats::jetstream;
use presence_tests::cluster::Cluster;
use presence_tests::http;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::load;
use super::trace::{Fact, Trace};

const EVERY: Duration = Duration::from_millis(100);

/// How long a check may take before it counts as a stall.
const LATE: Duration = Duration::from_millis(400);

/// Notes when this process was held up. Then the clients of users and viewers were, too.
pub(super) fn pauses(trace: Arc<Trace>) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let begin = Instant::now();
            sleep(EVERY).await;
            if begin.elapsed() > EVERY + LATE {
                trace.note(Fact::Stall("this process"));
            }
        }
    })
}

/// Notes when a node was held up, while it ran.
pub(super) fn node(http_port: u16, trace: Arc<Trace>) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let begin = Instant::now();
            let _ = http::get(http_port, "/healthz").await;
            if begin.elapsed() > LATE {
                trace.note(Fact::Stall("a node"));
            }
            sleep(EVERY).await;
        }
    })
}

/// Notes when the fleet's bucket has no leader, or the servers take long to store something.
pub(super) async fn bucket(cluster: &Cluster, trace: Arc<Trace>) -> Result<JoinHandle<()>> {
    const INFO: &str = "$JS.API.STREAM.INFO.KV_presence-fleet";
    let client = load::connect(load::options("watch"), &cluster.urls(2)).await?;
    let other = jetstream::new(client.nats.clone());
    let other = other.get_key_value(Cluster::BUCKET).await?;
    Ok(tokio::spawn(async move {
        loop {
            let leads = async {
                let info = client.nats.request(INFO, "".into()).await.ok()?;
                // Only the leader answers.
                let info: Value = serde_json::from_slice(&info.payload).ok()?;
                info.pointer("/cluster/leader")?;
                other.put("watch", "".into()).await.ok()
            };
            if !timeout(LATE, leads).await.is_ok_and(|it| it.is_some()) {
                trace.note(Fact::Stall("the bucket"));
            }
            sleep(EVERY).await;
        }
    }))
}
