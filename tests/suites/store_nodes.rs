//! Changing the pipeline of several nodes: each is asked, each is named, and of two operators at
//! once, one wins. The nodes are found as NATS services are.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use async_nats::client::RequestErrorKind;
use async_nats::jetstream;
use async_nats::service::{Info, PingResponse, Service, ServiceExt, Stats};
use futures_util::{FutureExt, StreamExt};
use presence_tests::host::Host;
use presence_tests::nats::NatsServer;
use presence_tests::site::Site;
use presence_tests::{host, wait};
use serde_json::{Value, json};
use std::fs;
use std::process::Output;

use crate::permissions;
use crate::store::{CONTACTS, apply, empty, run_err, run_ok};
use crate::world::World;

/// A pipeline that shows users only to members of their groups.
const GROUPS: &str = "[[pipeline]]\nplugin = \"groups\"\n";

/// A node that runs a revision, and a service that pretends to be another node.
async fn two() -> Result<(World, async_nats::Client, Service)> {
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?;
    let mut world = empty(server, site).await?;
    apply(&world.site, CONTACTS)?;
    world.host.ready().await?;
    let client = async_nats::connect(world.server.url()).await?;
    let metadata = [("node", "another"), ("prefix", ""), ("source", "store")];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let service = client.service_builder().metadata(HashMap::from(metadata));
    let service = service.start("presence", "0.1.0").await;
    let service = service.map_err(anyhow::Error::from_boxed)?;
    Ok((world, client, service))
}

/// Applies a pipeline while the other node is asked to validate it. `validate` gives its answer.
/// Returns whether the command succeeded, and its output.
async fn applied(
    world: &World,
    service: &Service,
    validate: impl AsyncFn(Value) -> Result<Value>,
) -> Result<(bool, String)> {
    let id = service.info().await.id;
    let endpoint = service.endpoint(format!("presence.admin.validate.{id}"));
    let mut asked = endpoint.await.map_err(anyhow::Error::from_boxed)?;
    let path = world.site.path().join("groups.toml");
    fs::write(&path, GROUPS)?;
    let args = ["pipeline", "apply", &path.to_string_lossy(), "--yes"];
    let mut command = host::command(&world.site, &args)?;
    let run = tokio::task::spawn_blocking(move || command.output());
    let request = wait::guarded("the other node to be asked", asked.next()).await?;
    let request = request.context("a request")?;
    let answer = validate(serde_json::from_slice(&request.message.payload)?).await?;
    request.respond(Ok(answer.to_string().into())).await?;
    let Output {
        status,
        stdout,
        stderr,
    } = wait::guarded("the command to end", run).await???;
    let said = String::from_utf8([stdout, stderr].concat())?;
    Ok((status.success(), said))
}

#[tokio::test]
async fn where_a_node_refuses_it_is_named_and_nothing_is_written() -> Result<()> {
    let (world, _, service) = two().await?;
    let refuses = async |revision: Value| {
        ensure!(revision["revision"] == 2, "{revision}");
        Ok(json!({"ok": false, "reason": "refused", "error": "no room\u{1b}[2J"}))
    };
    let (good_end, said) = applied(&world, &service, refuses).await?;
    let node = format!("node-{}  valid", world.site.http_port());
    for words in [
        "another  refused: no room\\u{1b}[2J\n",
        &node,
        "nothing was written: refused by 1 of 2 nodes",
    ] {
        ensure!(said.contains(words), "{words}: {said}");
    }
    ensure!(!good_end);
    let shown = run_ok(&world.site, &["pipeline", "show"])?;
    ensure!(shown.starts_with("# revision 1,"), "{shown}");
    world.end().await
}

#[tokio::test]
async fn a_node_that_ends_while_it_is_asked_is_named_and_not_waited_for() -> Result<()> {
    let (world, client, service) = two().await?;
    let id = service.info().await.id;
    let asked = format!("presence.admin.validate.{id}");
    let mut asked = client.subscribe(asked).await?;
    let path = world.site.path().join("groups.toml");
    fs::write(&path, GROUPS)?;
    let args = ["pipeline", "apply", &path.to_string_lossy(), "--yes"];
    let mut command = host::command(&world.site, &args)?;
    let run = tokio::task::spawn_blocking(move || command.output());
    wait::guarded("the other node to be asked", asked.next()).await?;
    asked.unsubscribe().await?;
    // The command ends sooner than the timeout of the request.
    let output = wait::guarded("the command to end", run).await???;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(!output.status.success(), "{said}");
    let words = "another  refused: it was asked, and doesn't answer any more: ";
    ensure!(said.contains(words), "{said}");
    ensure!(said.contains("nothing was written"), "{said}");
    world.end().await
}

#[tokio::test]
async fn of_two_operators_at_once_one_wins_and_the_other_is_told_by_whom() -> Result<()> {
    let (mut world, client, service) = two().await?;
    let bucket = jetstream::new(client)
        .get_key_value("presence-pipeline")
        .await?;
    let is_faster = async |mut revision: Value| {
        revision["who"] = "ada".into();
        revision["why"] = "mine is first".into();
        bucket
            .create("revision.2", revision.to_string().into())
            .await?;
        Ok(json!({"ok": true}))
    };
    let (good_end, said) = applied(&world, &service, is_faster).await?;
    for words in [
        "nothing was written: revision 2 was written by ada at ",
        "(mine is first), while this one was made",
    ] {
        ensure!(said.contains(words), "{words}: {said}");
    }
    ensure!(!good_end);
    world.until_visible_to("12345", &["22222"]).await?;
    world.end().await
}

#[tokio::test]
async fn what_was_made_from_an_earlier_revision_is_not_written_after_a_newer_one() -> Result<()> {
    let (mut world, client, service) = two().await?;
    let id = service.info().await.id;
    let endpoint = service.endpoint(format!("presence.admin.validate.{id}"));
    let mut validates = endpoint.await.map_err(anyhow::Error::from_boxed)?;
    let validates = tokio::spawn(async move {
        while let Some(request) = validates.next().await {
            let answer = json!({"ok": true}).to_string();
            let _ = request.respond(Ok(answer.into())).await;
        }
    });
    let endpoint = service.endpoint(format!("presence.admin.status.{id}"));
    let mut asked = endpoint.await.map_err(anyhow::Error::from_boxed)?;
    let bucket = jetstream::new(client)
        .get_key_value("presence-pipeline")
        .await?;
    let path = world.site.path().join("groups.toml");
    fs::write(&path, GROUPS)?;
    let args = ["pipeline", "apply", &path.to_string_lossy(), "--yes"];
    let mut command = host::command(&world.site, &args)?;
    let run = tokio::task::spawn_blocking(move || command.output());
    // The command has read revision 1. The nodes run 2 before it asks the second of them.
    let request = wait::guarded("the other node to be asked", asked.next()).await?;
    let request = request.context("a request")?;
    let one = bucket.get("revision.1").await?.context("a revision")?;
    let mut two: Value = serde_json::from_slice(&one)?;
    two["revision"] = 2.into();
    two["who"] = "ada".into();
    two["chain"][1]["config"]["keys"] = json!(["device", "location"]);
    bucket.create("revision.2", two.to_string().into()).await?;
    let said = "pipeline revision in force revision=2";
    world.host.wait_for_log(0, &[said]).await?;
    let answer = json!({"ok": true, "status": {}}).to_string();
    request.respond(Ok(answer.into())).await?;
    drop(asked);
    let output = wait::guarded("the command to end", run).await???;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "{said}");
    ensure!(
        said.contains("nothing was written: revision 2 was written by ada at "),
        "{said}"
    );
    ensure!(bucket.get("revision.3").await?.is_none());
    validates.abort();
    world.end().await
}

#[tokio::test]
async fn nodes_are_found_as_services_are_and_answer_only_where_they_may() -> Result<()> {
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?.with("tenant.prefix", "acme")?;
    let host = Host::start(&site).await?;
    let client = async_nats::connect(server.url()).await?;
    let ask = async |subject: String| -> Result<Vec<u8>> {
        let reply = wait::guarded("an answer", client.request(subject, "".into())).await??;
        Ok(reply.payload.into())
    };
    // A subject on which the node may publish, and the asker may not.
    let victim = "acme.presence.events.user_online";
    let mut forged = client.subscribe(victim).await?;
    client
        .publish_with_reply("$SRV.PING", victim, "".into())
        .await?;
    let ping: PingResponse = serde_json::from_slice(&ask("$SRV.PING".into()).await?)?;
    assert_eq!(
        (&*ping.name, &*ping.metadata["prefix"]),
        ("presence", "acme")
    );
    let info: Info = serde_json::from_slice(&ask("$SRV.INFO.presence".into()).await?)?;
    let status = format!("acme.presence.admin.status.{}", ping.id);
    let mut subjects = info.endpoints.iter().map(|it| &*it.subject);
    ensure!(subjects.any(|subject| subject == status), "{info:?}");
    client
        .publish_with_reply(status.clone(), victim, "".into())
        .await?;
    let answer: Value = serde_json::from_slice(&ask(status).await?)?;
    let name = format!("node-{}", site.http_port());
    assert_eq!(answer["status"]["node"], name);
    assert_eq!(answer["status"]["serving"]["source"], "folder");
    let stats = ask(format!("$SRV.STATS.presence.{}", ping.id)).await?;
    let stats: Stats = serde_json::from_slice(&stats)?;
    let requests: usize = stats.endpoints.iter().map(|it| it.requests).sum();
    assert_eq!(requests, 1, "{}", stats.name);
    let refused = "presence_replies_refused_total";
    assert_eq!(host.metric(refused, &[]).await?, 2.0);
    // A client that asks for an unknown service is told so, and doesn't wait for a time-out.
    for subject in ["$SRV.INFO.presence.another", "$SRV.OTHER"] {
        let answer = client.request(subject, "".into());
        let Err(error) = wait::guarded("an answer", answer).await? else {
            bail!("{subject} is answered");
        };
        assert_eq!(error.kind(), RequestErrorKind::NoResponders, "{subject}");
    }
    client.publish(victim, "the end".into()).await?;
    let first = wait::guarded("a message", forged.next()).await?;
    assert_eq!(&*first.context("a message")?.payload, b"the end");
    host.stop().await
}

#[tokio::test]
async fn an_operator_changes_the_pipeline_and_an_auditor_reads_it_with_the_permissions_of_the_example()
-> Result<()> {
    let server = permissions::server().await?;
    let site_of = |user: &str| permissions::as_user(Site::new(&server.url())?, user);
    let processor = site_of("processor")?.with("plugins.source", "store")?;
    let checked = run_ok(&processor, &["check", "--connect"])?;
    ensure!(checked.contains("ok\n"), "{checked}");
    let mut host = Host::spawn(&processor)?;
    host.wait_for_log(0, &["ready node="]).await?;
    let (operator, auditor) = (site_of("operator")?, site_of("auditor")?);
    apply(&operator, CONTACTS)?;
    host.ready().await?;
    let rule = presence_tests::component::load("public")?;
    let path = operator.path().join("public.wasm");
    fs::write(&path, rule)?;
    let path = path.to_string_lossy();
    run_ok(&operator, &["plugins", "push", &path])?;
    apply(&operator, GROUPS)?;
    let out = run_ok(&operator, &["plugins", "rollback", "--yes"])?;
    ensure!(out.contains("revision 3 is written"), "{out}");

    let shown = run_ok(&auditor, &["pipeline", "show"])?;
    ensure!(
        shown.contains("by operator: rollback to revision 1"),
        "{shown}"
    );
    run_ok(&auditor, &["pipeline", "history"])?;
    run_ok(&auditor, &["plugins", "history", "contacts"])?;
    let listed = run_ok(&auditor, &["plugins", "list"])?;
    ensure!(listed.contains("public"), "{listed}");
    let other = auditor.path().join("privacy.wasm");
    fs::write(&other, presence_tests::component::load("privacy")?)?;
    for forbidden in [
        &["plugins", "push", &other.to_string_lossy()][..],
        &["pipeline", "rollback", "--yes"],
        &["plugins", "rollback", "--yes"],
    ] {
        run_err(&auditor, forbidden)?;
    }
    let shown = run_ok(&operator, &["pipeline", "show"])?;
    ensure!(shown.starts_with("# revision 3,"), "{shown}");
    host.stop().await
}

#[tokio::test]
async fn a_node_that_waits_for_its_turn_is_named_and_takes_the_revision_then() -> Result<()> {
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?;
    let mut world = empty(server, site).await?;
    apply(&world.site, CONTACTS)?;
    world.host.ready().await?;
    let site = Site::new(&world.server.url())?.with("plugins.source", "store")?;
    let mut second = Host::spawn(&site)?;
    let name = format!("node-{}", site.http_port());
    let client = async_nats::connect(world.server.url()).await?;
    let inbox = client.new_inbox();
    let mut nodes = client.subscribe(inbox.clone()).await?;
    let info = wait::until("the second node to be found", async || {
        let subject = "$SRV.INFO.presence";
        client
            .publish_with_reply(subject, inbox.clone(), "".into())
            .await?;
        while let Some(Some(info)) = nodes.next().now_or_never() {
            let info: Info = serde_json::from_slice(&info.payload)?;
            if info.metadata.get("node") == Some(&name) {
                return Ok(Some(info));
            }
        }
        Ok(None)
    });
    let info = info.await?;
    assert_eq!(info.metadata["waits"], "true");
    assert_eq!(info.endpoints.len(), 1, "{info:?}");
    let out = apply(&world.site, GROUPS)?;
    let line = format!("{name}  not asked: it waits for its turn");
    ensure!(
        out.contains(&line) && out.contains("revision 2 is written"),
        "{out}"
    );
    world.host.stop().await?;
    second.ready().await?;
    assert_eq!(second.metric("presence_pipeline_revision", &[]).await?, 2.0);
    second.stop().await
}
