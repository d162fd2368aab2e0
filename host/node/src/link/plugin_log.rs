//! Publishes the log lines of plugins on `presence.admin.logs.<plugin>` while a command follows
//! them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::Client;
use presence_config::Tenant;
use presence_config::subjects::{LOGS, Subjects};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::interval;

use crate::ops::plugin_lines::{self, FollowRequest, LEASE, PluginLine};
use crate::tasks::Tasks;

/// How often expired follow leases are removed.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// The size limit of the lines in one answer, in bytes. Every server carries messages of this size.
const ANSWER_BYTES_MAX: usize = 512 * 1_024;

/// The request of a command.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    plugin: String,
    /// Whether lines of level debug are wanted, too.
    #[serde(default)]
    debug: bool,
    /// Whether lines that are logged from now on are to be published.
    #[serde(default)]
    follow: bool,
}

/// Where the lines of each tenant's plugins are published. Cloning it shares it.
#[derive(Clone, Default)]
pub(crate) struct PluginLogs(Arc<Mutex<BTreeMap<String, Target>>>);

/// The client and subject prefix of one tenant.
#[derive(Clone)]
struct Target {
    client: Client,
    prefix: Option<String>,
}

impl PluginLogs {
    /// Starts the task that publishes followed lines for as long as the node runs.
    pub(crate) fn start(node: &str, tasks: &Tasks) -> Self {
        let logs = Self::default();
        tasks.spawn("plugin-log", publish(logs.clone(), node.to_owned()));
        logs
    }

    /// Publishes the lines of a tenant's plugins on the tenant's own subjects, and in its account.
    pub(crate) fn add(&self, tenant: &Tenant, client: &Client) {
        let target = Target {
            client: client.clone(),
            prefix: tenant.prefix.clone(),
        };
        let mut targets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        targets.insert(tenant.lines_key(), target);
    }

    /// Forgets a tenant that has ended, and the lines of its plugins: a later tenant of the same
    /// name doesn't get them.
    pub(crate) fn forget(&self, tenant: &str) {
        let mut targets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        targets.remove(tenant);
        drop(targets);
        plugin_lines::forget(tenant);
    }

    fn of(&self, tenant: &str) -> Option<Target> {
        let targets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        targets.get(tenant).cloned()
    }
}

async fn publish(logs: PluginLogs, node: String) {
    let mut followed = plugin_lines::followed();
    let mut look = interval(CHECK_EVERY);
    loop {
        tokio::select! {
            mut line = next(&mut followed) => {
                let Some(target) = logs.of(&line.tenant) else {
                    continue;
                };
                line.tenant = target.prefix.unwrap_or_default();
                let (subject, body) = message(&line, &node);
                // The client is gone only when the tenant ends.
                let _ = target.client.publish(subject, body.to_string().into()).await;
            }
            _ = look.tick() => plugin_lines::expire(),
        }
    }
}

async fn next(followed: &mut mpsc::Receiver<PluginLine>) -> PluginLine {
    match followed.recv().await {
        Some(line) => line,
        // Another node of this process has taken the receiver.
        None => std::future::pending().await,
    }
}

/// The subject and the body with which a line is published.
fn message(line: &PluginLine, node: &str) -> (String, Value) {
    let prefix = Some(&*line.tenant).filter(|prefix| !prefix.is_empty());
    let subject = Subjects::new(prefix).of(LOGS);
    let mut body = json!(line);
    if let Value::Object(body) = &mut body {
        body.insert("node".into(), node.into());
    }
    (format!("{subject}.{}", line.plugin), body)
}

/// Answers a command that asks for the lines of a tenant's plugin, and starts to follow the plugin
/// if the command asks for it.
///
/// # Errors
/// What is wrong with the request.
pub(crate) fn answer(tenant: &Tenant, request: &[u8]) -> Result<Value, String> {
    let request: Request = serde_json::from_slice(request)
        .map_err(|error| format!("it doesn't say whose lines: {error}"))?;
    presence_config::name(&request.plugin)
        .map_err(|fix| format!("the plugin's name `{}`: {fix}", request.plugin))?;
    let wanted = FollowRequest {
        tenant: tenant.lines_key(),
        plugin: request.plugin,
        is_debug: request.debug,
    };
    if request.follow {
        plugin_lines::follow(wanted.clone())?;
    }
    let mut lines = plugin_lines::last(&wanted, ANSWER_BYTES_MAX);
    for line in &mut lines {
        line.tenant = tenant.prefix.clone().unwrap_or_default();
    }
    Ok(json!({
        "ok": true,
        "lines": lines,
        "leaseMs": request.follow.then_some(LEASE.as_millis() as u64),
    }))
}

#[cfg(test)]
mod tests {
    use presence_config::Config;

    use super::*;

    #[test]
    fn a_line_goes_to_the_subject_of_its_tenant_and_plugin() {
        let mut line = PluginLine {
            epoch: 1,
            seq: 7,
            timestamp: 1,
            plugin: "quiet".into(),
            tenant: String::new(),
            generation: Some(3),
            level: "info",
            text: "hello".into(),
            left_out: 0,
        };
        let (subject, body) = message(&line, "node-1");
        assert_eq!(subject, "presence.admin.logs.quiet");
        let expected = json!({
            "epoch": 1, "seq": 7, "timestamp": 1, "plugin": "quiet", "generation": 3,
            "level": "info", "text": "hello", "node": "node-1",
        });
        assert_eq!(body, expected);
        (line.tenant, line.left_out) = ("acme".into(), 2);
        let (subject, body) = message(&line, "node-1");
        assert_eq!(subject, "acme.presence.admin.logs.quiet");
        assert_eq!(
            (&body["tenant"], &body["leftOut"]),
            (&"acme".into(), &2.into())
        );
    }

    #[test]
    fn a_request_names_a_plugin() {
        for (request, problem) in [
            ("", "whose lines"),
            (r#"{"plugin": "a.b"}"#, "name `a.b`"),
            (r#"{"plugin": "a", "more": 1}"#, "unknown field"),
        ] {
            let error = answer(&Config::default().tenant, request.as_bytes()).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
        let answer = answer(&Config::default().tenant, br#"{"plugin": "of-nobody"}"#).unwrap();
        assert_eq!(answer, json!({"ok": true, "lines": [], "leaseMs": null}));
    }
}
