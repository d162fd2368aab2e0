//! Nodes on the same subjects find each other: until users are shared out over
//! several, only one may serve them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use async_nats::connection::State;
use async_nats::{Client, Message};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};

use crate::http::Status;
use crate::reply::Replies;
use crate::request;
use crate::tasks::Tasks;
use crate::wire::Subjects;

/// Where nodes ask for each other: not among the subjects that many listen to as
/// a whole, so that the broker knows when nobody is there to answer.
const SUBJECT: &str = "presence-nodes.hello";

/// How long another node has to answer.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What a node says of itself.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Node {
    pub(crate) node: String,
    /// When it started, in milliseconds since the Unix epoch.
    pub(crate) epoch_ms: u64,
    /// Whether it takes input already.
    pub(crate) ready: bool,
}

/// Makes sure that no other node serves these subjects, and answers those that
/// start later. When it returns, the broker knows of all earlier subscriptions
/// of this client.
///
/// # Errors
/// If another node serves them, or began to start before this one.
pub(crate) async fn greet(
    client: &Client,
    subjects: &Subjects,
    me: Node,
    status: Arc<Status>,
    allowed: Arc<Replies>,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let subject = subjects.of(SUBJECT);
    let mut hellos = client.subscribe(subject.clone()).await?;
    let (replies, own) = (client.clone(), me.clone());
    tasks.spawn("hello", async move {
        while let Some(hello) = hellos.next().await {
            let Some(reply) = allowed.accept(hello.reply) else {
                continue;
            };
            let ready = status.is_ready();
            // A node is plain data, which always has a JSON form.
            let me = serde_json::to_vec(&Node {
                ready,
                ..own.clone()
            })
            .unwrap_or_default();
            let _ = replies.publish(reply, me.into()).await;
        }
    });
    let other = loop {
        // This client gets no echo of its own, so that any node that answers is another.
        let node = |reply: &Message| serde_json::from_slice::<Node>(&reply.payload).ok();
        match request::ask(client, &subject, Bytes::new(), TIMEOUT, node).await {
            Ok(other) => break other,
            // The broker says that nobody listens, or that nobody does who is a node.
            Err(_) if client.connection_state() == State::Connected => return Ok(()),
            // There is no broker to ask yet.
            Err(_) => tokio::time::sleep(TIMEOUT / 10).await,
        }
    };
    if other.ready || (other.epoch_ms, &other.node) < (me.epoch_ms, &me.node) {
        bail!(
            "node `{}` already serves {}: stop it first, or give this one another [tenant] prefix",
            other.node,
            subjects.of("presence.>")
        );
    }
    Ok(())
}
