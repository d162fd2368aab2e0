//! What a test sees of faults that it didn't make: this process itself is held up, or the bucket in
//! which a fleet notes who owns what has no leader.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use presence_tests::cluster::Cluster;
use serde_json::Value;
use tokio::task::JoinHandle;

use super::load;
use super::trace::{Fact, Trace};

/// How late a look may be before that counts as a pause.
const LATE: Duration = Duration::from_millis(300);

/// Notes when this process was held up: then users' and viewers' clients were, too, and most
/// likely nodes and brokers.
pub(super) fn pauses(trace: Arc<Trace>) -> JoinHandle<()> {
    const EVERY: Duration = Duration::from_millis(50);
    tokio::spawn(async move {
        loop {
            let begin = Instant::now();
            tokio::time::sleep(EVERY).await;
            if begin.elapsed() > EVERY + LATE {
                trace.note_all([Fact::FaultBegins("a pause"), Fact::FaultEnds("a pause")]);
            }
        }
    })
}

/// Notes from when to when the fleet's bucket has no leader, as it is while its servers elect one.
pub(super) async fn bucket(cluster: &Cluster, trace: Arc<Trace>) -> Result<JoinHandle<()>> {
    const WHAT: &str = "no leader of the bucket";
    const INFO: &str = "$JS.API.STREAM.INFO.KV_presence-fleet";
    let client = load::connect(load::options("watch"), &cluster.urls(2)).await?;
    Ok(tokio::spawn(async move {
        let mut is_there = true;
        loop {
            let info = client.nats.request(INFO, "".into()).await.ok();
            let info: Option<Value> = info.and_then(|it| serde_json::from_slice(&it.payload).ok());
            // Only the leader answers, and only if it has a majority does it still lead.
            let leads = info.is_some_and(|info| info.pointer("/cluster/leader").is_some());
            if leads != is_there {
                is_there = leads;
                trace.note(match leads {
                    true => Fact::FaultEnds(WHAT),
                    false => Fact::FaultBegins(WHAT),
                });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }))
}
