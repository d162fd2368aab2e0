//! What plugins log: kept by nodes, and published over NATS while somebody follows it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use presence_tests::client::{ReceivedMessage, now_ms};
use presence_tests::process::Process;
use presence_tests::{component, host};
use serde_json::{Value, json};

use crate::inputs::{self, CONNECT};
use crate::store::{run_err, run_ok};
use crate::world::World;

/// A node whose pipeline has a plugin that explains what it reads of the metadata.
async fn world() -> Result<World> {
    World::start_with(|mut site| {
        let config = toml::from_str("steps = [{ get = \"mood\" }]")?;
        site.set_pipeline(&[("contacts", None), ("reader", Some(config))])?;
        site.set_stage("reader", "grants", vec!["widen"])?;
        site.write_plugin("reader", component::load("fixtures/reader")?)?;
        Ok(site)
    })
    .await
}

async fn connect_with_mood(world: &World, user: &str, mood: &str) -> Result<()> {
    let mut connect = inputs::connect(user, "c", now_ms());
    connect["metadata"] = json!({ "mood": mood });
    world.client.input(CONNECT, connect).await
}

fn lines(printed: &[String]) -> Result<Vec<Value>> {
    let lines = printed.iter().map(|line| serde_json::from_str(line));
    Ok(lines.collect::<Result<_, _>>()?)
}

#[tokio::test]
async fn what_a_plugin_logs_is_published_while_somebody_follows_it() -> Result<()> {
    let mut world = world().await?;
    connect_with_mood(&world, "12345", "before").await?;
    world.tape.catch_up(&world.client).await?;
    let published = |it: &ReceivedMessage| it.subject.starts_with("presence.admin.logs.");
    ensure!(!world.tape.seen().iter().any(published), "nobody follows");

    let args = ["plugins", "logs", "reader", "--follow", "--debug", "--json"];
    let mut follower = Process::spawn("logs", &mut host::command(&world.site, &args)?)?;
    let begins = |line: &str| line.starts_with("following reader ");
    follower.wait_for_log("it to follow", 0, begins).await?;
    connect_with_mood(&world, "22222", "after").await?;
    let has = |line: &str| line.contains("after");
    let line = follower.wait_for_stdout("the line", has).await?;
    let line: Value = serde_json::from_str(&line)?;
    assert_eq!(
        (&line["plugin"], &line["generation"], &line["level"]),
        (&json!("reader"), &json!(1), &json!("debug")),
        "{line}"
    );
    ensure!(
        line["node"].is_string() && line["tenant"].is_null(),
        "{line}"
    );
    let published = world.tape.next("the line", published).await?;
    assert_eq!(published.subject, "presence.admin.logs.reader");
    assert_eq!(published.body, line);
    follower.stop().await?;
    let printed = lines(&follower.stdout())?;
    let numbers: BTreeSet<_> = printed.iter().map(|it| it["seq"].as_u64()).collect();
    assert_eq!(numbers.len(), printed.len(), "each line once: {printed:?}");
    // The lines are kept. Lines for debugging from before somebody followed are not.
    let kept = run_ok(&world.site, &["plugins", "logs", "reader", "--debug"])?;
    ensure!(kept.contains("after") && !kept.contains("before"), "{kept}");
    let kept = run_ok(&world.site, &["plugins", "logs", "reader"])?;
    assert_eq!(kept, "");
    world.end().await
}

#[tokio::test]
async fn nodes_keep_the_last_lines_with_tenant_and_generation_and_a_quarantine_among_them()
-> Result<()> {
    let mut world = World::start_with(|mut site| {
        site.set("tenant.prefix", "acme")?;
        site.set_pipeline(&[("contacts", None), ("chatty", None)])?;
        site.write_plugin("chatty", component::load("fixtures/chatty")?)?;
        Ok(site)
    })
    .await?;
    for user in 0..30 {
        let connect = inputs::connect(&format!("user-{user}"), "c", now_ms());
        let subject = format!("acme.{CONNECT}");
        world.client.input(&subject, connect).await?;
    }
    let said = world.host.wait_for_log(0, &["put into quarantine"]).await?;
    for words in ["generation=1", "tenant=\"acme\""] {
        ensure!(said.contains(words), "{words}: {said}");
    }
    let args = ["plugins", "logs", "chatty", "--json", "--last", "500"];
    let kept = run_ok(&world.site, &args)?;
    let kept: Vec<_> = kept.lines().map(str::to_owned).collect();
    let kept = lines(&kept)?;
    for (level, words) in [
        ("info", "and another thing"),
        ("error", "put into quarantine"),
    ] {
        let is_it = |it: &&Value| it["text"].as_str().is_some_and(|it| it.starts_with(words));
        let line = kept.iter().find(is_it).context(words)?;
        assert_eq!(
            (&line["tenant"], &line["generation"], &line["level"]),
            (&json!("acme"), &json!(1), &json!(level)),
            "{line}"
        );
    }
    let shown = run_ok(&world.site, &["plugins", "logs", "chatty", "--last", "3"])?;
    assert_eq!(shown.lines().count(), 3, "{shown}");
    ensure!(shown.contains("generation 1"), "{shown}");
    world.end().await
}

#[tokio::test]
async fn a_name_that_is_none_is_refused_and_a_node_that_is_away_is_said() -> Result<()> {
    let world = world().await?;
    let error = run_err(&world.site, &["plugins", "logs", "a.b"])?;
    ensure!(error.contains("`_` and `-`"), "{error}");
    let site = world.site;
    world.host.stop().await?;
    let error = run_err(&site, &["plugins", "logs", "reader"])?;
    ensure!(error.contains("no node answers"), "{error}");
    Ok(())
}
