//! A canary from the command line: a share of the users is decided on by another plugin, more
//! of them, and then all or none, each step a revision.

use anyhow::{Context, Result, ensure};
use async_nats::jetstream;
use presence_tests::client::{Client, ReceivedMessage, now_ms};
use presence_tests::host::Host;
use presence_tests::http;
use presence_tests::nats::NatsServer;
use presence_tests::site::Site;
use presence_tests::{component, host, wait};
use serde_json::{Value, json};

use crate::inputs::{self, CONNECT};
use crate::store::{self, CONTACTS, apply, empty, plugin, push, run_err, run_ok};
use crate::world::World;

/// Who sees user 12345 by `contacts`, and by `groups` instead. The user is in a share of 45.07 %
/// and not in one of 45.06 %.
const BY_CONTACT: [&str; 2] = ["11111", "67890"];
const BY_GROUP: [&str; 1] = ["22222"];

/// A node whose pipeline shows users to their contacts, and in its store another plugin named
/// `contacts`.
async fn world(other: &str) -> Result<(World, String)> {
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?;
    let mut world = empty(server, site).await?;
    apply(&world.site, CONTACTS)?;
    world.host.ready().await?;
    let bytes = component::named(&component::load(other)?, "contacts")?;
    let path = plugin(&world.site, "other.wasm", &bytes)?;
    let digest = push(&world.site, &path)?;
    Ok((world, format!("contacts@{digest}")))
}

fn canary(world: &World, named: &str, percent: &str, more: &[&str]) -> Result<String> {
    let args = ["plugins", "canary", named, "--yes", "--percent", percent];
    run_ok(&world.site, &[&args[..], more].concat())
}

async fn status(world: &World) -> Result<Value> {
    let status = http::get(world.site.http_port(), "/status").await?;
    Ok(serde_json::from_str(&status.body)?)
}

#[tokio::test]
async fn a_canary_decides_on_its_share_grows_outlives_a_restart_and_is_promoted() -> Result<()> {
    let (mut world, named) = world("groups").await?;
    world.until_visible_to("12345", &BY_CONTACT).await?;
    let out = canary(&world, &named, "45.06", &[])?;
    ensure!(out.contains("+# canary: contacts@sha256:"), "{out}");
    assert_eq!(world.probe("12345").await?.visible_to(), BY_CONTACT);
    let error = run_err(
        &world.site,
        &["plugins", "canary", &named, "--percent", "101", "--yes"],
    )?;
    ensure!(error.contains("`101` is no share of the users"), "{error}");
    canary(&world, &named, "45.07", &["--abort-on", "errors>1%"])?;
    assert_eq!(world.probe("12345").await?.visible_to(), BY_GROUP);
    let beside = &status(&world).await?["serving"]["beside"];
    assert_eq!(
        (&beside["kind"], &beside["percent"]),
        (&"canary".into(), &45.07.into())
    );

    world.host.stop().await?;
    world.host = Host::start(&world.site).await?;
    assert_eq!(world.probe("12345").await?.visible_to(), BY_GROUP);

    run_ok(&world.site, &["plugins", "abort", "--yes"])?;
    assert_eq!(world.probe("12345").await?.visible_to(), BY_CONTACT);
    let error = run_err(&world.site, &["plugins", "promote", "--yes"])?;
    ensure!(error.contains("no canary runs"), "{error}");
    canary(&world, &named, "1", &[])?;
    assert_eq!(world.probe("12345").await?.visible_to(), BY_CONTACT);
    run_ok(&world.site, &["plugins", "promote", "--yes"])?;
    assert_eq!(world.probe("12345").await?.visible_to(), BY_GROUP);
    ensure!(status(&world).await?["serving"]["beside"].is_null());
    let history = run_ok(&world.site, &["pipeline", "history"])?;
    for words in [
        ": 45.06 %",
        "from 45.06 % to 45.07 %",
        "abort the canary",
        "promote the canary",
    ] {
        ensure!(history.contains(words), "{words}: {history}");
    }
    world.end().await
}

#[tokio::test]
async fn a_canary_that_breaks_its_rule_is_aborted_with_the_figures_in_the_history() -> Result<()> {
    let (mut world, named) = world("fixtures/trap").await?;
    canary(&world, &named, "100", &["--abort-on", "errors>10%"])?;
    for user in 0..30 {
        let user = format!("user-{user}");
        let connect = inputs::connect(&user, "c", now_ms());
        world.client.input(CONNECT, connect).await?;
    }
    let client = async_nats::connect(world.server.url()).await?;
    let bucket = jetstream::new(client)
        .get_key_value("presence-pipeline")
        .await?;
    let aborted = wait::until("the abort to be written", async || {
        Ok(bucket.get("revision.3").await?)
    });
    let aborted: Value = serde_json::from_slice(&aborted.await?)?;
    assert_eq!(aborted["candidate"], Value::Null);
    let why = aborted["why"].as_str().context("a reason")?;
    for words in [
        "abort the canary contacts@",
        "calls of the candidate failed",
        "errors>10%",
    ] {
        ensure!(why.contains(words), "{words}: {why}");
    }
    world.until_visible_to("12345", &BY_CONTACT).await?;
    world.end().await
}

/// Connects thirty users, on whom the canary's plugin fails.
async fn fails(world: &World) -> Result<()> {
    for user in 0..30 {
        let connect = inputs::connect(&format!("user-{user}"), "c", now_ms());
        world.client.input(CONNECT, connect).await?;
    }
    Ok(())
}

async fn bucket(world: &World) -> Result<jetstream::kv::Store> {
    let client = async_nats::connect(world.server.url()).await?;
    let jetstream = jetstream::new(client);
    Ok(jetstream.get_key_value("presence-pipeline").await?)
}

async fn ended(world: &World) -> Result<()> {
    wait::until("the canary to end", async || {
        let beside = &status(world).await?["serving"]["beside"];
        Ok(beside.is_null().then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_canary_breaks_its_rule_also_where_a_later_revision_is_refused_and_stays_ended()
-> Result<()> {
    let (mut world, named) = world("fixtures/trap").await?;
    canary(&world, &named, "100", &["--abort-on", "errors>10%"])?;
    let bucket = bucket(&world).await?;
    let with = bucket.get("revision.2").await?.context("a revision")?;
    let with: Value = serde_json::from_slice(&with)?;
    let mut refused = with.clone();
    refused["revision"] = 3.into();
    refused["candidate"] = Value::Null;
    refused["chain"][1]["config"] = serde_json::json!({"keys": 5});
    bucket
        .create("revision.3", refused.to_string().into())
        .await?;
    world
        .host
        .wait_for_log(0, &["pipeline not swapped"])
        .await?;
    fails(&world).await?;
    ended(&world).await?;
    world.until_visible_to("12345", &BY_CONTACT).await?;

    // The node needn't write the canary's end, since revision 3 has no canary. Waits until the node
    // knows this: revision 4, which has the canary again, is another case.
    let settled = "the canary has ended in the store already";
    world.host.wait_for_log(0, &[settled]).await?;

    // The same one doesn't run again, whatever the store says, and nothing says that it does.
    let mut again = with;
    again["revision"] = 4.into();
    again["candidate"]["percent"] = 50.into();
    bucket
        .create("revision.4", again.to_string().into())
        .await?;
    for restarts in [false, true] {
        if restarts {
            let args = ["plugins", "canary", &named, "--percent", "60", "--yes"];
            let output = host::run(&world.site, &args)?;
            let error =
                String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            let words = ["it has ended on this node", "nothing was written"];
            ensure!(words.iter().all(|it| error.contains(it)), "{error}");
            // It would write the end at once.
            world.host.process.kill().await?;
            world.host = Host::start(&world.site).await?;
        }
        let said = "its canary doesn't run: it has ended on this node (abort the canary";
        world.host.wait_for_log(0, &[said]).await?;
        let status = &status(&world).await?["serving"];
        ensure!(status["beside"].is_null(), "{status}");
    }
    world.end().await
}

#[tokio::test]
async fn the_end_of_a_canary_is_written_behind_what_cannot_be_read() -> Result<()> {
    let (mut world, named) = world("fixtures/trap").await?;
    canary(&world, &named, "100", &["--abort-on", "errors>10%"])?;
    let bucket = bucket(&world).await?;
    bucket.create("revision.3", "?".into()).await?;
    world
        .host
        .wait_for_log(0, &["revision 3 in the bucket"])
        .await?;
    fails(&world).await?;
    ended(&world).await?;
    let aborted = wait::until("the abort to be written", async || {
        Ok(bucket.get("revision.4").await?)
    });
    let aborted: Value = serde_json::from_slice(&aborted.await?)?;
    assert_eq!(aborted["candidate"], Value::Null);
    world.end().await
}

#[tokio::test]
async fn a_shadow_says_what_would_differ_and_changes_nothing() -> Result<()> {
    let (mut world, named) = world("groups").await?;
    let site = &world.site;
    let args = ["plugins", "shadow", &named, "--for", "3s", "--json"];
    let mut command = host::command(site, &args)?;
    let run = tokio::task::spawn_blocking(move || command.output());
    wait::until("the shadow to begin", async || {
        let beside = &status(&world).await?["serving"]["beside"];
        Ok((beside["kind"] == "shadow").then_some(()))
    })
    .await?;
    let error = run_err(&world.site, &["plugins", "shadow", &named, "--for", "1s"])?;
    ensure!(error.contains("another shadow runs"), "{error}");
    assert_eq!(world.probe("12345").await?.visible_to(), BY_CONTACT);
    let output = run.await??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let shadow = &report["nodes"][0]["shadow"];
    assert_eq!(shadow["isOver"], true);
    let report = &shadow["report"];
    ensure!(
        report["decisions"]["different"].as_u64() > Some(0),
        "{report}"
    );
    assert_eq!(report["lost"]["pairs"], 2, "{report}");
    assert_eq!(report["gained"]["pairs"], 1, "{report}");
    assert_eq!(report["examples"][0]["userId"], "12345");
    ensure!(status(&world).await?["serving"]["beside"].is_null());
    world.end().await
}

#[tokio::test]
async fn a_shadow_ends_before_its_time_when_an_operator_says_so() -> Result<()> {
    let (world, named) = world("groups").await?;
    let ends: [&[&str]; 2] = [
        &["plugins", "shadow", "--end"],
        &["plugins", "abort", "--yes"],
    ];
    for end in ends {
        let args = ["plugins", "shadow", &named, "--for", "24h"];
        let mut command = host::start(&world.site, &args)?;
        wait::until("the shadow to begin", async || {
            let beside = &status(&world).await?["serving"]["beside"];
            Ok((beside["kind"] == "shadow").then_some(()))
        })
        .await?;
        let said = run_ok(&world.site, end)?;
        ensure!(said.contains(": ended"), "{said}");
        ensure!(status(&world).await?["serving"]["beside"].is_null());
        // The command that began the shadow prints its report.
        ensure!(command.wait().await?.success(), "{}", command.log_tail());
        let report = command.stdout().join("\n");
        ensure!(report.contains("decisions compared"), "{report}");
    }
    let error = run_err(&world.site, ends[0])?;
    ensure!(error.contains("no shadow runs"), "{error}");
    let error = run_err(&world.site, ends[1])?;
    ensure!(error.contains("no canary runs"), "{error}");
    world.end().await
}

#[tokio::test]
async fn a_candidate_in_quarantine_is_in_the_metrics_and_the_node_stays_ready() -> Result<()> {
    let (world, named) = world("fixtures/trap").await?;
    canary(&world, &named, "100", &[])?;
    let name = "presence_candidate_quarantined";
    let label = ["plugin=\"contacts\""];
    world
        .host
        .until_metric(name, &label, |it| it == 0.0)
        .await?;
    for user in 0..40 {
        let user = format!("user-{user}");
        let connect = inputs::connect(&user, "c", now_ms());
        world.client.input(CONNECT, connect).await?;
    }
    world
        .host
        .until_metric(name, &label, |it| it == 1.0)
        .await?;
    let active = world.host.metric("presence_plugin_quarantined", &label);
    assert_eq!(active.await?, 0.0, "it is the other pipeline's");
    // Every node has the same plugins: to send users elsewhere would help none of them.
    let ready = http::get(world.site.http_port(), "/readyz").await?;
    assert_eq!(ready.status, 200);
    let said = "ready\nplugin `contacts` of the canary is in quarantine\n";
    assert_eq!(ready.body, said);
    world.end().await
}

/// The revision that a node has written.
async fn written(world: &World, number: u64) -> Result<Value> {
    let bucket = store::bucket(world).await?;
    let key = format!("revision.{number}");
    let written = wait::until("the revision to be written", async || {
        Ok(bucket.get(&*key).await?)
    });
    Ok(serde_json::from_slice(&written.await?)?)
}

async fn connect(world: &World, users: std::ops::Range<u32>) -> Result<()> {
    for user in users {
        let user = format!("user-{user}");
        let connect = inputs::connect(&user, "c", now_ms());
        world.client.input(CONNECT, connect).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_canary_is_promoted_by_itself_once_it_has_been_at_work_for_its_time() -> Result<()> {
    let (mut world, named) = world("groups").await?;
    let after = ["--abort-on", "errors>1%", "--promote-after", "1s"];
    canary(&world, &named, "100", &after)?;
    connect(&world, 0..30).await?;
    let promoted = written(&world, 3).await?;
    assert_eq!(promoted["candidate"], Value::Null);
    let digest = named.strip_prefix("contacts@").context("a digest")?;
    assert_eq!(promoted["chain"][0]["digest"], digest);
    let why = promoted["why"].as_str().context("a reason")?;
    ensure!(why.contains("no rule was broken within 1 s"), "{why}");
    world.until_visible_to("12345", &BY_GROUP).await?;
    let is_alert = |it: &ReceivedMessage| {
        it.subject == "presence.admin.alerts" && it.text("type") == "canary-promoted"
    };
    let says_so = |seen: &[ReceivedMessage]| seen.iter().filter(|it| is_alert(it)).count() == 1;
    world.tape.until("an alert that says so", says_so).await?;
    world.end().await
}

#[tokio::test]
async fn a_canary_that_hides_users_or_shows_them_is_aborted() -> Result<()> {
    let (world, named) = world("groups").await?;
    let contacts = (0..20).map(|user| (format!("user-{user}"), json!(["67890"])));
    let contacts: serde_json::Map<_, _> = contacts.collect();
    let directory = json!({"contacts": contacts, "groups": {}});
    world.site.write_directory_value(&directory)?;
    let metric = "presence_directory_users";
    world
        .host
        .until_metric(metric, &[], |it| it >= 20.0)
        .await?;
    connect(&world, 0..20).await?;
    canary(&world, &named, "100", &["--abort-on", "hidden>10%"])?;
    let aborted = written(&world, 3).await?;
    let why = aborted["why"].as_str().context("a reason")?;
    ensure!(
        why.contains("the candidate hides ") && why.contains("hidden>10%"),
        "{why}"
    );

    // The other way round.
    run_ok(&world.site, &["plugins", "activate", &named, "--yes"])?;
    let first: Value =
        serde_json::from_str(&run_ok(&world.site, &["pipeline", "show", "1", "--json"])?)?;
    let digest = first["chain"][0]["digest"].as_str().context("a digest")?;
    let before = format!("contacts@{digest}");
    canary(&world, &before, "100", &["--abort-on", "shown>10%"])?;
    let aborted = written(&world, 6).await?;
    let why = aborted["why"].as_str().context("a reason")?;
    ensure!(
        why.contains("the candidate shows ") && why.contains("shown>10%"),
        "{why}"
    );
    world.end().await
}

#[tokio::test]
async fn a_canary_is_aborted_while_the_store_is_away_and_that_is_written_later() -> Result<()> {
    let (mut world, named) = world("fixtures/trap").await?;
    canary(&world, &named, "100", &["--abort-on", "errors>10%"])?;
    world.server.set_config("jetstream: disabled")?;
    world.server.restart().await?;
    world.client = Client::connect(&world.server.url()).await?;
    world.tape = world.client.record("presence.>").await?;
    world.host.ready().await?;
    let from = world.host.log_len();
    connect(&world, 0..30).await?;
    let said = "abort the canary contacts@";
    world.host.wait_for_log(from, &[said]).await?;
    let unwritten = "the end of a canary can't be written yet";
    world.host.wait_for_log(from, &[unwritten]).await?;
    world.until_visible_to("12345", &BY_CONTACT).await?;
    ensure!(status(&world).await?["serving"]["beside"].is_null());
    world.server.set_config("")?;
    world.server.restart().await?;
    let aborted = written(&world, 3).await?;
    assert_eq!(aborted["candidate"], Value::Null);
    world.host.ready().await?;
    world.client = Client::connect(&world.server.url()).await?;
    world.tape = world.client.record("presence.>").await?;
    world.until_visible_to("12345", &BY_CONTACT).await?;
    world.end().await
}
