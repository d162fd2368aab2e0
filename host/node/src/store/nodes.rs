//! Finds the nodes for operators' commands: those that answer as the NATS service, and the other
//! nodes of their fleets.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::StatusCode;
use async_nats::service::Info;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use presence_config::subjects::ADMIN_TENANTS;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use super::operator::{Operator, STATUS};
use crate::link::micro;

/// The search ends when no node has answered for this time.
const QUIET: Duration = Duration::from_millis(750);

/// A node that was found.
#[derive(Clone, Debug)]
pub struct FoundNode {
    /// Its name.
    pub name: String,
    /// Whether its pipeline comes from the store.
    pub follows_store: bool,
    /// Whether it waits for its turn, so that it only reports its state.
    pub waits: bool,
    pub(super) id: String,
}

/// The nodes that read their tenants from the store.
pub struct TenantNodes {
    /// The nodes, sorted by name.
    pub nodes: Vec<FoundNode>,
    /// Other nodes of their fleets that don't answer at all.
    pub silent: BTreeSet<String>,
}

impl Operator {
    /// The running nodes of this tenant, sorted by name, including those that wait for their turn.
    ///
    /// # Errors
    /// If there is none.
    pub async fn nodes(&self) -> anyhow::Result<Vec<FoundNode>> {
        let infos = self.found().await?;
        let nodes = sorted(infos.iter().filter_map(|info| self.node(info)));
        if nodes.is_empty() {
            let none = anyhow::anyhow!(
                "no node answers at {}: is `presence run` up there, with the same [tenant] prefix?",
                self.servers
            );
            return Err(self.with_broker_error(none));
        }
        Ok(nodes)
    }

    /// The running nodes that read their tenants from the store.
    ///
    /// # Errors
    /// If there is none.
    pub async fn nodes_with_tenants(&self) -> anyhow::Result<TenantNodes> {
        let infos = self.found().await?;
        let from_store = infos
            .iter()
            .filter(|info| said(info, "tenants") == Some("store"));
        let nodes = sorted(from_store.map(|info| FoundNode {
            name: said(info, "node").unwrap_or_default().to_owned(),
            follows_store: true,
            waits: false,
            id: info.id.clone(),
        }));
        if nodes.is_empty() {
            let none = anyhow::anyhow!(
                "no node answers at {} that has its tenants from the store: is `presence run` up \
                 there, with this configuration?",
                self.servers
            );
            return Err(self.with_broker_error(none));
        }
        let request = Bytes::from(json!("fleet").to_string());
        let asked = nodes.iter().map(|node| async {
            let asked = self.ask(node, ADMIN_TENANTS, request.clone(), STATUS);
            asked.await.map(|answer| fleet_nodes(answer.get("nodes")))
        });
        let answering = infos.iter().filter_map(|info| said(info, "node"));
        let silent = without_answering(answering, join_all(asked).await);
        Ok(TenantNodes { nodes, silent })
    }

    /// The nodes of this tenant's fleet that don't answer. `nodes`: those that do.
    pub async fn silent(&self, nodes: &[FoundNode]) -> BTreeSet<String> {
        let asked = nodes.iter().map(|node| async {
            let status = self.status(node).await;
            status.map(|status| fleet_nodes(status.pointer("/serving/fleet/nodes")))
        });
        let answering = nodes.iter().map(|node| &*node.name);
        without_answering(answering, join_all(asked).await)
    }

    /// The service information of all nodes that answer.
    async fn found(&self) -> anyhow::Result<Vec<Info>> {
        let inbox = self.client.new_inbox();
        let mut replies = self.client.subscribe(inbox.clone()).await?;
        let subject = format!("$SRV.INFO.{}", micro::NAME);
        self.client
            .publish_with_reply(subject, inbox, Bytes::new())
            .await?;
        let mut infos = Vec::new();
        let mut until = Instant::now() + STATUS;
        while let Ok(Some(reply)) = timeout_at(until, replies.next()).await {
            if reply.status == Some(StatusCode::NO_RESPONDERS) {
                break;
            }
            until = Instant::now() + QUIET;
            let info: Option<Info> = serde_json::from_slice(&reply.payload).ok();
            infos.extend(info.filter(|info| info.name == micro::NAME));
        }
        Ok(infos)
    }

    fn node(&self, info: &Info) -> Option<FoundNode> {
        (said(info, "prefix") == Some(&*self.prefix)).then(|| FoundNode {
            name: said(info, "node").unwrap_or_default().to_owned(),
            follows_store: said(info, "source") == Some("store"),
            waits: said(info, "waits") == Some("true"),
            id: info.id.clone(),
        })
    }
}

fn said<'a>(info: &'a Info, key: &str) -> Option<&'a str> {
    info.metadata.get(key).map(String::as_str)
}

fn sorted(nodes: impl Iterator<Item = FoundNode>) -> Vec<FoundNode> {
    let mut nodes: Vec<_> = nodes.collect();
    nodes.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    nodes
}

/// The names of a fleet's nodes, from the keys of an object or from a list.
fn fleet_nodes(listed: Option<&Value>) -> Vec<String> {
    let keys = listed
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(Map::keys);
    let list = listed.and_then(Value::as_array).into_iter().flatten();
    let list = list.filter_map(Value::as_str).map(str::to_owned);
    keys.cloned().chain(list).collect()
}

/// The nodes of the fleets, without those that answer. Nodes that couldn't be asked have named
/// none.
fn without_answering<'a>(
    answering: impl Iterator<Item = &'a str>,
    listed: Vec<anyhow::Result<Vec<String>>>,
) -> BTreeSet<String> {
    let mut silent: BTreeSet<_> = listed.into_iter().flatten().flatten().collect();
    for name in answering {
        silent.remove(name);
    }
    silent
}
