//! Tenants in the store, and several nodes that are asked about a change.

use std::collections::HashMap;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use async_nats::Message;
use async_nats::service::ServiceExt as _;
use futures_util::StreamExt as _;
use presence_tests::host::Host;
use presence_tests::nats::NatsServer;
use presence_tests::{host, wait};
use serde_json::{Value, json};
use std::fs;

use crate::tenants_store::{apply, change, done, node, section, site, until_states};

#[tokio::test]
async fn a_node_that_validates_for_long_is_waited_for_and_one_that_ends_is_not() -> Result<()> {
    let server = NatsServer::start().await?;
    let site = site(&server)?;
    let node = Host::start(&site).await?;
    let client = async_nats::connect(server.url()).await?;
    let metadata = [("node", "another"), ("tenants", "store")];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let service = client.service_builder().metadata(HashMap::from(metadata));
    let service = service.start("presence", "0.1.0").await;
    let service = service.map_err(anyhow::Error::from_boxed)?;
    let subject = format!("presence.admin.tenants.{}", service.info().await.id);
    let mut asked = client.subscribe(subject).await?;
    let path = site.path().join("tenants.toml");
    fs::write(&path, section("beta", ""))?;
    let applies = || -> Result<_> {
        let args = ["tenants", "apply", &path.to_string_lossy(), "--yes"];
        let mut command = host::command(&site, &args)?;
        Ok(tokio::task::spawn_blocking(move || command.output()))
    };
    let said = |output: Output| {
        let said = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&said).into_owned()
    };
    let what = |request: &Message| -> Result<Value> {
        let request: Value = serde_json::from_slice(&request.payload)?;
        Ok(request)
    };
    let run = applies()?;
    let fleet = wait::guarded("the node to be asked for its fleet", asked.next()).await?;
    let fleet = fleet.context("a request")?;
    ensure!(what(&fleet)? == "fleet");
    let reply = fleet.reply.context("a reply subject")?;
    let nobody = json!({"ok": true, "nodes": []});
    client.publish(reply, nobody.to_string().into()).await?;
    let validates = wait::guarded("the node to be asked", asked.next()).await?;
    let validates = validates.context("a request")?;
    ensure!(what(&validates)?["validate"]["beta"].is_object());
    // The other node reports its state, however long this takes.
    for _ in 0..3 {
        let request = wait::guarded("the node to be asked how it is", asked.next()).await?;
        let request = request.context("a request")?;
        ensure!(what(&request)? == json!({"states": []}));
        let reply = request.reply.context("a reply subject")?;
        let states = json!({"ok": true, "place": 0, "tenants": [], "leftOut": 0});
        client.publish(reply, states.to_string().into()).await?;
    }
    let reply = validates.reply.context("a reply subject")?;
    let refused = json!({"ok": false, "error": "thought about it"});
    client.publish(reply, refused.to_string().into()).await?;
    let said_of = said(wait::guarded("the command to end", run).await???);
    ensure!(said_of.contains("refused: thought about it"), "{said_of}");
    let run = applies()?;
    // This time, it doesn't say which nodes are in its fleet.
    wait::guarded("the node to be asked for its fleet", asked.next()).await?;
    wait::guarded("the node to be asked", asked.next()).await?;
    asked.unsubscribe().await?;
    // The command ends sooner than the timeout of the request.
    let said_of = said(wait::guarded("the command to end", run).await???);
    let words = "refused: it was asked, and doesn't answer any more: ";
    ensure!(said_of.contains(words), "{said_of}");
    ensure!(said_of.contains("nothing was written"), "{said_of}");
    node.stop().await
}

#[tokio::test]
async fn of_two_nodes_one_serves_a_tenant_and_the_command_says_that_the_other_waits() -> Result<()>
{
    let (mut first, one, server) = node().await?;
    first.ready().await?;
    let other = site(&server)?.with("node.name", "other")?;
    let mut second = Host::spawn(&other)?;
    second.unready().await?;
    until_states(&other, &[("acme", "waiting")]).await?;
    let said = done(apply(&one, &section("beta", ""))?)?;
    let lines: Vec<_> = said.lines().filter(|it| it.contains(": beta ")).collect();
    let is_one = |state: &str| lines.iter().filter(|it| it.contains(state)).count() == 1;
    let is_so = lines.len() == 2 && is_one("beta serving") && is_one("beta waiting: waiting while");
    anyhow::ensure!(is_so, "{said}");
    let said = change(&one, "pause", "beta")?;
    anyhow::ensure!(said.matches("beta paused").count() == 2, "{said}");
    let said = change(&one, "resume", "beta")?;
    anyhow::ensure!(
        said.matches("beta waiting: waiting while").count() == 1,
        "{said}"
    );
    first.stop().await?;
    until_states(&other, &[("acme", "serving"), ("beta", "serving")]).await?;
    second.stop().await
}
