//! Alerts for operators, on `presence.admin.alerts`: what has happened that a person should
//! look at. The log has the same.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use presence_config::subjects::ALERTS;
use presence_config::subjects::Subjects;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::clock;
use crate::tenant::Running;

/// How many alerts may wait for the broker's client.
const WAITING_MAX: usize = 256;

/// How often is looked which plugins are in quarantine.
const LOOK: Duration = Duration::from_millis(500);

/// Where alerts are raised. Cloning it shares it.
#[derive(Clone)]
pub(crate) struct Alerts {
    node: Arc<str>,
    raised: mpsc::Sender<Value>,
}

/// Alerts that have been raised.
pub(crate) struct Raised(mpsc::Receiver<Value>);

impl Alerts {
    /// Of a node.
    pub(crate) fn new(node: &str) -> (Self, Raised) {
        let (raised, alerts) = mpsc::channel(WAITING_MAX);
        let alerts = Raised(alerts);
        let node = node.into();
        (Self { node, raised }, alerts)
    }

    /// Raises an alert of a type, with more about it. Of too many at once, some are left out.
    pub(crate) fn raise(&self, what: &str, about: Value) {
        let mut alert = json!({
            "type": what,
            "node": &*self.node,
            "timestamp": clock::now_ms(),
        });
        if let (Value::Object(alert), Value::Object(about)) = (&mut alert, about) {
            alert.extend(about);
        }
        if self.raised.try_send(alert).is_err() {
            tracing::warn!("too many alerts at once: one is not published");
        }
    }
}

impl Raised {
    /// Publishes them for as long as the node runs.
    pub(crate) async fn publish(mut self, client: Client, subjects: Subjects) {
        let subject = subjects.of(ALERTS);
        while let Some(alert) = self.0.recv().await {
            let body = alert.to_string().into();
            // The client is gone only when the node ends.
            let _ = client.publish(subject.clone(), body).await;
        }
        std::future::pending().await
    }
}

/// Raises an alert when a plugin comes into quarantine, and when it is out again.
pub(crate) async fn follow_quarantine(alerts: Alerts, running: watch::Receiver<Running>) {
    let mut known: Vec<(Arc<str>, Arc<str>)> = Vec::new();
    let mut look = tokio::time::interval(LOOK);
    loop {
        look.tick().await;
        let Running {
            generation,
            blueprint,
            ..
        } = running.borrow().clone();
        let mut now = Vec::new();
        for stage in blueprint.stages().filter(|it| it.health.in_quarantine()) {
            let plugin = &stage.plugin;
            let is = (Arc::clone(&plugin.name), Arc::clone(&plugin.sha256));
            if now.contains(&is) {
                continue;
            }
            if !known.contains(&is) {
                alerts.raise(
                    "quarantine",
                    json!({
                        "plugin": &*plugin.name,
                        "version": plugin.manifest.version.to_string(),
                        "digest": format!("sha256:{}", plugin.sha256),
                        "generation": generation,
                        "onFailure": stage.on_failure.as_str(),
                        "error": "it failed on too many users",
                    }),
                );
            }
            now.push(is);
        }
        for (plugin, sha256) in known.iter().filter(|it| !now.contains(it)) {
            alerts.raise(
                "quarantine-over",
                json!({
                    "plugin": &**plugin,
                    "digest": format!("sha256:{sha256}"),
                    "generation": generation,
                }),
            );
        }
        known = now;
    }
}
