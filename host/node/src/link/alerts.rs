//! Alerts for operators, on `presence.admin.alerts`: events that a person should look at. The log
//! has them, too.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::Client;
use presence_config::escape::brief;
use presence_config::subjects::ALERTS;
use presence_config::subjects::Subjects;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::clock;
use crate::tenant::RunningPipelines;

/// How many alerts may wait for the broker's client.
const WAITING_MAX: usize = 256;

/// How many alerts are kept for the page.
const KEPT_MAX: usize = 50;

/// Raises alerts. Cloning it shares it.
#[derive(Clone)]
pub(crate) struct Alerts {
    node: Arc<str>,
    raised: mpsc::Sender<Value>,
    last: Arc<Mutex<RecentAlerts>>,
}

/// The last alerts, for the page.
#[derive(Default)]
struct RecentAlerts {
    kept: VecDeque<Value>,
    /// How many alerts there were since the node began.
    count: u64,
}

/// The receiving end: alerts that are to be published.
pub(crate) struct AlertReceiver(mpsc::Receiver<Value>);

impl Alerts {
    /// For a node of this name.
    pub(crate) fn new(node: &str) -> (Self, AlertReceiver) {
        let (raised, alerts) = mpsc::channel(WAITING_MAX);
        let alerts = AlertReceiver(alerts);
        let new = Self {
            node: node.into(),
            raised,
            last: Arc::default(),
        };
        (new, alerts)
    }

    fn last(&self) -> MutexGuard<'_, RecentAlerts> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many alerts were raised since the node began.
    pub(crate) fn count(&self) -> u64 {
        self.last().count
    }

    /// The last alerts, oldest first.
    pub(crate) fn kept(&self) -> Vec<Value> {
        self.last().kept.iter().cloned().collect()
    }

    /// Raises an alert of the type `what`, with the fields of `about`. Long texts are shortened: an
    /// error may quote text from others, and be as long as a message. An alert is not published if
    /// too many wait already.
    pub(crate) fn raise(&self, what: &str, about: Value) {
        let mut alert = json!({
            "type": what,
            "node": &*self.node,
            "timestamp": clock::now_ms(),
        });
        if let (Value::Object(alert), Value::Object(about)) = (&mut alert, about) {
            alert.extend(about.into_iter().map(|(key, value)| match value {
                Value::String(text) => (key, brief(&text).into()),
                value => (key, value),
            }));
        }
        {
            let mut last = self.last();
            if last.kept.len() >= KEPT_MAX {
                last.kept.pop_front();
            }
            last.kept.push_back(alert.clone());
            last.count += 1;
        }
        if self.raised.try_send(alert).is_err() {
            tracing::warn!("too many alerts at once: one is not published");
        }
    }
}

impl AlertReceiver {
    /// Publishes alerts for as long as the node runs.
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

/// A plugin in quarantine.
#[derive(PartialEq)]
struct Quarantined {
    plugin: Arc<str>,
    sha256: Arc<str>,
    is_candidate: bool,
    /// Whether it is in quarantine because it may not run any more (withdrawn), and not because it
    /// failed.
    is_withdrawn: bool,
}

impl Quarantined {
    /// Whether both are the same plugin in the same pipeline, for whatever reason it is in
    /// quarantine.
    fn is_of(&self, other: &Self) -> bool {
        self.plugin == other.plugin
            && self.sha256 == other.sha256
            && self.is_candidate == other.is_candidate
    }
}

/// Raises an alert when a plugin enters quarantine, and another when it leaves.
pub(crate) struct Quarantine {
    alerts: Alerts,
    running: watch::Receiver<RunningPipelines>,
    known: Vec<Quarantined>,
}

impl Quarantine {
    pub(crate) fn new(alerts: Alerts, running: watch::Receiver<RunningPipelines>) -> Self {
        Self {
            alerts,
            running,
            known: Vec::new(),
        }
    }

    /// Compares the plugins that are in quarantine now with those of the last look, and raises
    /// alerts for the difference. Returns whether the tenant still runs.
    pub(crate) fn check(&mut self) -> bool {
        let Self {
            alerts,
            running,
            known,
        } = self;
        let goes_on = running.has_changed().is_ok();
        let running = running.borrow().clone();
        let active = [(running.generation, &*running.blueprint, false)];
        let candidate = running.candidate.as_ref().map(|it| {
            let generation = &it.generation;
            (generation.number, &*generation.blueprint, true)
        });
        let mut now = Vec::new();
        for (generation, blueprint, is_candidate) in active.into_iter().chain(candidate) {
            for stage in blueprint.stages().filter(|it| it.in_quarantine()) {
                let plugin = &stage.plugin;
                let of = |is_candidate| Quarantined {
                    plugin: Arc::clone(&plugin.name),
                    sha256: Arc::clone(&plugin.sha256),
                    is_candidate,
                    is_withdrawn: stage.withdrawn().is_some(),
                };
                // A stage that both pipelines share counts as one plugin.
                if now.contains(&of(false)) || now.contains(&of(true)) {
                    continue;
                }
                if !known.contains(&of(is_candidate)) {
                    alerts.raise(
                        "quarantine",
                        json!({
                            "plugin": &*plugin.name,
                            "version": plugin.manifest.version.to_string(),
                            "digest": format!("sha256:{}", plugin.sha256),
                            "generation": generation,
                            "candidate": is_candidate,
                            "onFailure": stage.on_failure.as_str(),
                            "withdrawn": stage.withdrawn().is_some(),
                            "error": stage.withdrawn().unwrap_or("it failed on too many users"),
                        }),
                    );
                }
                now.push(of(is_candidate));
            }
        }
        let is_over = |it: &&Quarantined| !now.iter().any(|now| now.is_of(it));
        for over in known.iter().filter(is_over) {
            alerts.raise(
                "quarantine-over",
                json!({
                    "plugin": &*over.plugin,
                    "digest": format!("sha256:{}", over.sha256),
                    "generation": running.generation,
                    "candidate": over.is_candidate,
                }),
            );
        }
        *known = now;
        goes_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_alert_quotes_is_short() {
        let (alerts, mut raised) = Alerts::new("node");
        let why = format!("{}\n{}", "x".repeat(5_000_000), "y\n".repeat(100_000));
        alerts.raise("revision-refused", json!({"revision": 7, "error": why}));
        let alert = raised.0.try_recv().unwrap();
        assert_eq!(alert["revision"], 7);
        let error = alert["error"].as_str().unwrap();
        assert!(
            error.len() < 4_000 && error.contains("bytes more)"),
            "{error}"
        );
        assert_eq!(alerts.kept(), [alert]);
    }
}
