//! What becomes of a tenant's fleet when its section changes on one node after the other, and with
//! the permissions that the guide names.

use anyhow::{Result, ensure};
use presence_tests::client::Client;
use presence_tests::host::{self, Host};
use presence_tests::nats::NatsServer;
use toml::Table;

use super::tenants::{Tenant, is_settled, site, sum, tenant};
use super::{Node, broker};
use crate::inputs::{FILTERED_OFFLINE, FILTERED_ONLINE};
use crate::tenants::until_states;
use crate::tenants_store::done;

fn with(mut tenant: Table, key: &str, value: impl Into<toml::Value>) -> Table {
    tenant.insert(key.into(), value.into());
    tenant
}

#[tokio::test]
async fn a_tenant_that_is_paused_on_one_node_is_handed_to_the_other() -> Result<()> {
    let server = NatsServer::start().await?;
    let client = Client::connect(&server.url()).await?;
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        let tenants = vec![tenant("acme"), tenant("beta")];
        let site = site(&server, name)?.with("tenant", tenants)?;
        let host = Host::start(&site).await?;
        nodes.push(Node { host, site });
    }
    let mut acme = Tenant::begin("acme", "acme.", client.clone()).await?;
    let mut beta = Tenant::begin("beta", "beta.", client).await?;
    for tenant in [&mut acme, &mut beta] {
        let speakers = tenant.all_speakers();
        tenant.until_told(FILTERED_ONLINE, &speakers).await?;
        is_settled(tenant.name, &nodes).await?;
    }
    let rests = vec![with(tenant("acme"), "paused", true), tenant("beta")];
    // By the hash, this is the node that is to own most of the shards.
    nodes[0].site.set("tenant", rests)?;
    let expected = [("acme", "paused"), ("beta", "serving")];
    until_states(&nodes[0].site, &expected).await?;
    is_settled("acme", &nodes[1..]).await?;
    acme.only_speakers_are_online().await?;
    let both = vec![tenant("acme"), tenant("beta")];
    nodes[0].site.set("tenant", both)?;
    // It has its share again.
    let (owned, of_acme) = ("presence_fleet_shards_owned", "tenant=\"acme\"");
    let second = &nodes[1].host;
    second
        .until_metric(owned, &[of_acme], |it| it > 0.0)
        .await?;
    is_settled("acme", &nodes).await?;
    for tenant in [&mut acme, &mut beta] {
        tenant.was_told(None).await?;
        let taken = sum(tenant.name, &nodes, "presence_fleet_takeovers_total");
        ensure!(taken.await? == 0.0, "{}", tenant.name);
    }
    Ok(())
}

#[tokio::test]
async fn tenants_become_a_fleet_node_by_node_and_nobody_goes_offline() -> Result<()> {
    let server = NatsServer::start().await?;
    let client = Client::connect(&server.url()).await?;
    let alone = || {
        let mut fleet = Table::new();
        fleet.insert("enabled".into(), false.into());
        with(tenant("acme"), "fleet", fleet)
    };
    let first = site(&server, "a")?.with("tenant", vec![alone()])?;
    let second = site(&server, "b")?.with("tenant", vec![alone()])?;
    let host = Host::start(&first).await?;
    let mut acme = Tenant::begin("acme", "acme.", client).await?;
    let speakers = acme.all_speakers();
    acme.until_told(FILTERED_ONLINE, &speakers).await?;
    let mut waiting = Host::spawn(&second)?;
    let words = ["tenant{name=\"acme\"}", "waiting while node `a` serves"];
    waiting.wait_for_log(0, &words).await?;
    let mut nodes = [(host, first), (waiting, second)].map(|(host, site)| Node { host, site });
    for node in &mut nodes {
        node.site.set("tenant", vec![tenant("acme")])?;
    }
    is_settled("acme", &nodes).await?;
    acme.only_speakers_are_online().await?;
    let offline = acme.told_on(FILTERED_OFFLINE);
    ensure!(offline.is_empty(), "{offline:?}");
    Ok(())
}

/// What the guide gives a node's user whose tenants come later: docs/operate/tenants.md.
const PERMISSIONS: &str = r#"authorization { users = [
  { user: node, password: p, permissions: {
    publish: { allow: [
      "*.presence.>", "*.presence-nodes.hello", "*.presence-directory.>", "$KV.*.>"
      "$JS.API.STREAM.INFO.*", "$JS.API.STREAM.CREATE.*", "$JS.API.STREAM.MSG.GET.*"
      "$JS.API.CONSUMER.>", "$JS.FC.*.>", "_INBOX.>"
    ] }
    subscribe: { allow: [
      "*.presence.>", "*.presence-nodes.hello", "*.presence-directory.invalidate", "_INBOX.>", "$SRV.>"
    ] }
  } }
] }"#;

#[tokio::test]
async fn the_documented_permissions_are_enough_for_fleets_of_tenants_that_come_later() -> Result<()>
{
    let page =
        std::fs::read_to_string(presence_tests::tools::root().join("docs/operate/tenants.md"))?;
    for line in PERMISSIONS.split('"').filter(|it| it.starts_with("$JS")) {
        ensure!(
            page.contains(&format!("`{line}`")),
            "{line} isn't documented"
        );
    }
    let server = broker(PERMISSIONS).await?;
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        let site = site(&server, name)?
            .with("nats.user", "node")?
            .with("nats.password", "p")?
            .with("tenant", vec![tenant("acme")])?;
        let host = Host::start(&site).await?;
        nodes.push(Node { host, site });
    }
    is_settled("acme", &nodes).await?;
    nodes.remove(0).host.stop().await?;
    is_settled("acme", &nodes).await?;
    ensure!(sum("acme", &nodes, "presence_fleet_takeovers_total").await? == 0.0);
    let host = &nodes[0].host;
    for metric in ["presence_nats_errors_total", "presence_nats_forbidden"] {
        ensure!(host.metric(metric, &[]).await? == 0.0, "{metric}");
    }
    Ok(())
}

#[tokio::test]
async fn two_tenants_with_the_same_subjects_are_no_fleet_together() -> Result<()> {
    let server = NatsServer::start().await?;
    let of_prefix = |name| with(tenant(name), "prefix", "acme");
    let one = site(&server, "a")?.with("tenant", vec![of_prefix("one")])?;
    let first = Host::start(&one).await?;
    // Another node's file gives the same subjects to another tenant, with other rules.
    let two = site(&server, "b")?.with("tenant", vec![of_prefix("two")])?;
    let mut second = Host::spawn(&two)?;
    second.unready().await?;
    until_states(&two, &[("two", "waiting")]).await?;
    let listed = done(host::run(&two, &["tenants", "show", "two"])?)?;
    let why = "waiting while the tenant `one` has the same subjects, on node `a`";
    ensure!(listed.contains(why), "{listed}");
    until_states(&one, &[("one", "serving")]).await?;
    first.stop().await?;
    until_states(&two, &[("two", "serving")]).await?;
    second.stop().await
}
