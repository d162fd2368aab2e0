//! What operators' commands hear of what plugins log.

use std::time::Duration;

use async_nats::Subscriber;
use bytes::Bytes;
use futures_util::StreamExt as _;
use presence_config::subjects::{ADMIN_FOLLOW, LOGS};
use serde_json::{Value, json};

use super::operator::{FoundNode, Operator, STATUS};

/// How often one who follows asks the nodes again: several times within a lease of theirs.
pub const RENEW: Duration = Duration::from_secs(10);

/// Lines of a plugin, as they are published.
pub struct LogLines(Subscriber);

impl LogLines {
    /// Waits for the next line; none once the connection is closed.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            let message = self.0.next().await?;
            // What is no line was published by others.
            if let Ok(line @ Value::Object(_)) = serde_json::from_slice(&message.payload) {
                return Some(line);
            }
        }
    }
}

impl Operator {
    /// Hears the lines of a plugin that nodes publish, which they do once they are asked.
    ///
    /// # Errors
    /// If the connection is closed.
    pub async fn subscribe(&self, plugin: &str) -> anyhow::Result<LogLines> {
        let subject = self.subjects.of(LOGS);
        let lines = self.client.subscribe(format!("{subject}.{plugin}")).await?;
        Ok(LogLines(lines))
    }

    /// Waits until NATS says that lines may not be heard.
    pub async fn wait_forbidden(&self) -> String {
        self.complaint.wait_for(&self.subjects.of(LOGS)).await
    }

    /// The last lines of a plugin that a node has. With `follow`, it publishes those to come
    /// for a while.
    ///
    /// # Errors
    /// If it doesn't answer.
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
