//! The lines that plugins log, for operators' commands.

use std::time::Duration;

use async_nats::Subscriber;
use bytes::Bytes;
use futures_util::StreamExt as _;
use presence_config::subjects::{ADMIN_FOLLOW, LOGS};
use serde_json::{Value, json};

use super::operator::{FoundNode, Operator, STATUS};

/// How often a follower renews its requests: several times within a node's lease.
pub const RENEW: Duration = Duration::from_secs(10);

/// The published lines of a plugin.
pub struct LogLines(Subscriber);

impl LogLines {
    /// Waits for the next line. `None` once the connection is closed.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            let message = self.0.next().await?;
            // Messages in another form were published by others.
            if let Ok(line @ Value::Object(_)) = serde_json::from_slice(&message.payload) {
                return Some(line);
            }
        }
    }
}

impl Operator {
    /// Subscribes to a plugin's lines. Nodes publish them only on request.
    ///
    /// # Errors
    /// If the connection is closed.
    pub async fn subscribe(&self, plugin: &str) -> anyhow::Result<LogLines> {
        let subject = self.subjects.of(LOGS);
        let lines = self.client.subscribe(format!("{subject}.{plugin}")).await?;
        Ok(LogLines(lines))
    }

    /// Waits until NATS denies the subscription, and returns its message.
    pub async fn wait_forbidden(&self) -> String {
        self.complaint.wait_for(&self.subjects.of(LOGS)).await
    }

    /// The last lines of a plugin on a node. With `follow`, the node publishes new ones for a
    /// while.
    ///
    /// # Errors
    /// If the node doesn't answer.
    pub async fn log_lines(
        &self,
        node: &FoundNode,
        plugin: &str,
        debug: bool,
        follow: bool,
    ) -> anyhow::Result<Vec<Value>> {
        let body = json!({"plugin": plugin, "debug": debug, "follow": follow});
        let body = Bytes::from(body.to_string());
        let mut answer = self.ask(node, ADMIN_FOLLOW, body, STATUS).await?;
        let lines = answer.get_mut("lines").and_then(Value::as_array_mut);
        let mut lines = lines.map(std::mem::take).unwrap_or_default();
        for line in lines.iter_mut().filter_map(Value::as_object_mut) {
            line.insert("node".into(), node.name.clone().into());
        }
        Ok(lines)
    }
}
